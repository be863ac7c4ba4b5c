//! Every store passes the suite, bare and erased.
#![cfg(feature = "conformance")]

use std::sync::Arc;

use lexikon_auth::conformance::{self, Subject};
use lexikon_auth::crypto::Candidates;
#[cfg(any(feature = "cache", feature = "redis"))]
use lexikon_auth::store::Change;
#[cfg(feature = "cache")]
use lexikon_auth::store::{CacheOptions, CachedStore};
use lexikon_auth::store::{DynKeyStore, KeyLookup, MemoryStore};
use lexikon_auth::store::{FeedEvent, SharedCache};
#[cfg(feature = "redis")]
use lexikon_auth::store::{RedisOptions, RedisStore};
use lexikon_auth::{KeyRecord, OwnerId, StoreError};
#[cfg(feature = "redis")]
use lexikon_auth::{SecretRing, ServerSecret};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use lexikon_auth_tests::data;
#[cfg(feature = "redis")]
use lexikon_auth_tests::redis_server;

struct Memory;

impl Subject for Memory {
    type Store = MemoryStore;

    async fn empty(&self) -> MemoryStore {
        MemoryStore::new()
    }

    async fn set_owner_active(&self, store: &MemoryStore, owner: &OwnerId, active: bool) {
        store.set_owner_active(owner, active);
    }

    fn keeps_owners(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory() {
    conformance::run(&Memory).await;
}

/// A subject behind the erased store. It keeps the newest bare store, to reach its owners: the suite
/// runs one check after the other.
struct Erased<T: Subject> {
    subject: T,
    bare: tokio::sync::Mutex<Option<T::Store>>,
}

impl<T: Subject> Erased<T> {
    fn new(subject: T) -> Self {
        Self { subject, bare: tokio::sync::Mutex::default() }
    }
}

impl<T: Subject> Subject for Erased<T> {
    type Store = DynKeyStore;

    async fn empty(&self) -> DynKeyStore {
        let store = self.subject.empty().await;
        *self.bare.lock().await = Some(store.clone());
        DynKeyStore::new(store)
    }

    async fn set_owner_active(&self, _: &DynKeyStore, owner: &OwnerId, active: bool) {
        let bare = self.bare.lock().await;
        let store = bare.as_ref().expect("a store was made");
        self.subject.set_owner_active(store, owner, active).await;
    }

    fn keeps_details(&self) -> bool {
        self.subject.keeps_details()
    }

    fn keeps_owners(&self) -> bool {
        self.subject.keeps_owners()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_erased() {
    conformance::run(&Erased::new(Memory)).await;
}

/// A subject behind the in-process cache.
#[cfg(feature = "cache")]
struct Cached<T>(T);

#[cfg(feature = "cache")]
impl<T: Subject> Subject for Cached<T> {
    type Store = CachedStore<T::Store>;

    async fn empty(&self) -> Self::Store {
        CachedStore::new(self.0.empty().await, CacheOptions::default())
    }

    async fn set_owner_active(&self, store: &Self::Store, owner: &OwnerId, active: bool) {
        self.0.set_owner_active(store.inner(), owner, active).await;
        store.invalidate(Change::Owner(owner.clone()));
    }

    fn keeps_details(&self) -> bool {
        self.0.keeps_details()
    }

    fn keeps_owners(&self) -> bool {
        self.0.keeps_owners()
    }
}

/// A subject behind the tier in Redis.
#[cfg(feature = "redis")]
struct Tiered<T>(T);

#[cfg(feature = "redis")]
impl<T: Subject> Subject for Tiered<T> {
    type Store = RedisStore<T::Store>;

    async fn empty(&self) -> Self::Store {
        let secret = ServerSecret::new(&ServerSecret::generate().unwrap()).unwrap();
        let options = RedisOptions::default().prefix(&redis_server::prefix());
        // The suite is about what a store answers, not when.
        let options = options.timeout(std::time::Duration::from_secs(60));
        let client = redis_server::shared_client();
        RedisStore::new(self.0.empty().await, client, &SecretRing::new(secret), options).await
    }

    async fn set_owner_active(&self, store: &Self::Store, owner: &OwnerId, active: bool) {
        self.0.set_owner_active(store.inner(), owner, active).await;
        store.invalidate(Change::Owner(owner.clone())).await;
    }

    fn keeps_details(&self) -> bool {
        self.0.keeps_details()
    }

    fn keeps_owners(&self) -> bool {
        self.0.keeps_owners()
    }
}

/// Runs the suite on a store behind each cache alone, and behind both.
#[cfg(any(feature = "cache", feature = "redis"))]
async fn run_cached<T: Subject>(subject: impl Fn() -> T) {
    #[cfg(feature = "cache")]
    conformance::run(&Cached(subject())).await;
    #[cfg(feature = "redis")]
    conformance::run(&Tiered(subject())).await;
    #[cfg(all(feature = "cache", feature = "redis"))]
    conformance::run(&Erased::new(Cached(Tiered(subject())))).await;
}

#[cfg(any(feature = "cache", feature = "redis"))]
#[tokio::test(flavor = "multi_thread")]
async fn memory_cached() {
    run_cached(|| Memory).await;
}

/// A wrapper that passes on what it is told to.
struct Wrapper<S> {
    inner: S,
    events: bool,
    caches: bool,
}

impl<S: KeyLookup> KeyLookup for Wrapper<S> {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.inner.find(candidates).await
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        if self.events {
            self.inner.on_feed_event(event).await;
        }
    }

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        if self.caches { self.inner.register_cache(cache).await } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_wrapper_that_passes_all_on() {
    conformance::run_wrapper(async |inner| Wrapper { inner, events: true, caches: true }).await;
}

#[tokio::test]
#[should_panic(expected = "every event is passed on")]
async fn a_wrapper_that_swallows_events() {
    conformance::run_wrapper(async |inner| Wrapper { inner, events: false, caches: true }).await;
}

#[tokio::test]
#[should_panic(expected = "a shared cache is passed on")]
async fn a_wrapper_that_swallows_caches() {
    conformance::run_wrapper(async |inner| Wrapper { inner, events: true, caches: false }).await;
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn the_cache_as_a_wrapper() {
    conformance::run_wrapper(async |inner| CachedStore::new(inner, CacheOptions::default())).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn the_tier_as_a_wrapper() {
    let secret = ServerSecret::new(&ServerSecret::generate().unwrap()).unwrap();
    // Nobody listens there.
    let client = redis_server::client(1);
    let (ring, options) = (SecretRing::new(secret), RedisOptions::default());
    conformance::run_wrapper(async |inner| RedisStore::new(inner, client, &ring, options).await)
        .await;
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::panic::AssertUnwindSafe;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::FutureExt;
    use lexikon_auth::store::SqliteStore;
    use sqlx::sqlite::SqlitePool;
    use tempfile::TempDir;

    use super::*;

    /// The store's own schema.
    struct Own(TempDir);

    /// The lexikon service's tables as they are, or with the extension.
    struct Service {
        folder: TempDir,
        extended: bool,
        zone: &'static str,
    }

    fn folder() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    fn new_path(folder: &TempDir) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        folder.path().join(format!("{}.db", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    impl Own {
        async fn at(&self, path: &Path) -> SqliteStore {
            let store = SqliteStore::open_or_create(path).await.unwrap();
            for owner in conformance::OWNERS {
                store.set_owner_active(&owner.into(), true).await.unwrap();
            }
            store
        }
    }

    impl Subject for Own {
        type Store = SqliteStore;

        async fn empty(&self) -> SqliteStore {
            self.at(&new_path(&self.0)).await
        }

        async fn set_owner_active(&self, store: &SqliteStore, owner: &OwnerId, active: bool) {
            store.set_owner_active(owner, active).await.unwrap();
        }

        fn keeps_owners(&self) -> bool {
            false
        }
    }

    impl Subject for Service {
        type Store = SqliteStore;

        async fn empty(&self) -> SqliteStore {
            let path = new_path(&self.folder);
            std::fs::write(&path, data::SQLITE).unwrap();
            let pool = SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
            sqlx::query("DELETE FROM api_keys").execute(&pool).await.unwrap();
            for owner in conformance::OWNERS {
                let insert = "INSERT INTO users (id, email, first_name, last_name, language, \
                              adoption_level, is_active) VALUES ($1, $1, '', '', '', '', 1)";
                sqlx::query(insert).bind(owner).execute(&pool).await.unwrap();
            }
            pool.close().await;
            let store = SqliteStore::open(&path).await.unwrap();
            let store = store.with_time_zone(self.zone.parse().unwrap()).await.unwrap();
            if self.extended { store.extend_schema().await.unwrap() } else { store }
        }

        async fn set_owner_active(&self, store: &SqliteStore, owner: &OwnerId, active: bool) {
            store.set_owner_active(owner, active).await.unwrap();
        }

        fn keeps_details(&self) -> bool {
            self.extended
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn own_schema() {
        conformance::run(&Own(folder())).await;
        conformance::run(&Erased::new(Own(folder()))).await;
    }

    #[cfg(all(feature = "cache", feature = "redis"))]
    #[tokio::test(flavor = "multi_thread")]
    async fn cached() {
        run_cached(|| Own(folder())).await;
    }

    /// A store with a fault that a trigger makes.
    struct Broken {
        store: Own,
        trigger: &'static str,
    }

    impl Subject for Broken {
        type Store = SqliteStore;

        async fn empty(&self) -> SqliteStore {
            let path = new_path(&self.store.0);
            let store = self.store.at(&path).await;
            let pool = SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
            sqlx::raw_sql(self.trigger).execute(&pool).await.unwrap();
            pool.close().await;
            store
        }

        async fn set_owner_active(&self, store: &SqliteStore, owner: &OwnerId, active: bool) {
            self.store.set_owner_active(store, owner, active).await;
        }

        fn keeps_owners(&self) -> bool {
            self.store.keeps_owners()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_breaks_a_promise_is_told_which() {
        for (trigger, promise) in [
            (
                "CREATE TRIGGER forgets AFTER UPDATE OF hash_format ON api_keys \
                 WHEN OLD.key_hash = NEW.key_hash \
                 BEGIN UPDATE api_keys SET hash_format = OLD.hash_format WHERE id = NEW.id; END",
                "record_usage writes format",
            ),
            (
                "CREATE TRIGGER goes_back AFTER UPDATE OF hash_format ON api_keys \
                 WHEN OLD.hash_format = 'hmac-sha256' \
                 BEGIN UPDATE api_keys SET hash_format = 'sha256' WHERE id = NEW.id; END",
                "record_usage never writes format back from HMAC-SHA-256 to SHA-256",
            ),
            (
                "CREATE TRIGGER loses AFTER UPDATE OF last_used_at ON api_keys \
                 BEGIN UPDATE api_keys SET last_used_at = NULL WHERE id = NEW.id; END",
                "record_usage writes last_used_at",
            ),
        ] {
            let subject = Broken { store: Own(folder()), trigger };
            let suite = AssertUnwindSafe(conformance::run(&subject)).catch_unwind();
            let panic = suite.await.expect_err("the fault is found");
            let told = panic.downcast_ref::<String>().map(|told| &**told);
            let told = told.or(panic.downcast_ref().copied()).expect("a message");
            assert!(told.contains(promise), "{told}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn tables_of_the_service() {
        for (extended, zone) in [(false, "UTC"), (true, "UTC"), (true, "America/New_York")] {
            conformance::run(&Service { folder: folder(), extended, zone }).await;
            conformance::run(&Erased::new(Service { folder: folder(), extended, zone })).await;
        }
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use std::time::Duration;

    use lexikon_auth::store::PostgresStore;
    use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

    use super::*;

    /// The suite is about what a store answers, not when: a busy machine has time.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn store(database: PgConnectOptions) -> PostgresStore {
        let pool = PgPoolOptions::new().acquire_timeout(PATIENCE).max_connections(10);
        let pool = pool.connect_with(database).await.unwrap();
        PostgresStore::from_pool(pool, PATIENCE).await.unwrap()
    }

    /// The store's own schema.
    struct Own;

    /// The lexikon service's tables as they are, or with the extension.
    struct Service {
        extended: bool,
        zone: &'static str,
    }

    impl Subject for Own {
        type Store = PostgresStore;

        async fn empty(&self) -> PostgresStore {
            let store = store(lexikon_auth_tests::postgres::database().await).await;
            for owner in conformance::OWNERS {
                store.set_owner_active(&owner.into(), true).await.unwrap();
            }
            store
        }

        async fn set_owner_active(&self, store: &PostgresStore, owner: &OwnerId, active: bool) {
            store.set_owner_active(owner, active).await.unwrap();
        }

        fn keeps_owners(&self) -> bool {
            false
        }
    }

    impl Subject for Service {
        type Store = PostgresStore;

        async fn empty(&self) -> PostgresStore {
            let options = lexikon_auth_tests::postgres::database().await;
            let pool = PgPool::connect_with(options.clone()).await.unwrap();
            let dump = data::POSTGRES;
            sqlx::raw_sql(dump).execute(&pool).await.unwrap();
            let owners = "DELETE FROM public.api_keys; \
                          UPDATE public.users SET id = 'owner-a' WHERE id = 'user-1'; \
                          UPDATE public.users SET id = 'owner-b' WHERE id = 'user-2'";
            sqlx::raw_sql(owners).execute(&pool).await.unwrap();
            pool.close().await;
            let store = store(options).await.with_time_zone(self.zone.parse().unwrap());
            let store = store.await.unwrap();
            if self.extended { store.extend_schema().await.unwrap() } else { store }
        }

        async fn set_owner_active(&self, store: &PostgresStore, owner: &OwnerId, active: bool) {
            store.set_owner_active(owner, active).await.unwrap();
        }

        fn keeps_details(&self) -> bool {
            self.extended
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn own_schema() {
        conformance::run(&Own).await;
        conformance::run(&Erased::new(Own)).await;
    }

    #[cfg(all(feature = "cache", feature = "redis"))]
    #[tokio::test(flavor = "multi_thread")]
    async fn cached() {
        run_cached(|| Own).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn tables_of_the_service() {
        for (extended, zone) in [(false, "UTC"), (true, "UTC"), (true, "Europe/Paris")] {
            conformance::run(&Service { extended, zone }).await;
            conformance::run(&Erased::new(Service { extended, zone })).await;
        }
    }
}
