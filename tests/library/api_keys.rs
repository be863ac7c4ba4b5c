//! The one handle for the usual: what it puts together, what it says where it cannot, and how it ends.
#![cfg(feature = "tokio")]

use std::time::Duration;

use futures_util::FutureExt;
use lexikon_auth::store::{KeyStore, MemoryStore};
use lexikon_auth::{ApiKeys, NewKey};
use lexikon_auth_tests::one_secret;
use tokio::time::{sleep, timeout};

/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
async fn wait_until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test]
async fn a_store_in_memory_needs_no_more_than_its_handle() {
    let store = MemoryStore::new();
    let keys = ApiKeys::options(one_secret()).over(store.clone()).await.unwrap();
    assert!(keys.is_following(), "nothing is cached");
    let issued = keys.issue(NewKey::new("user-1", "deploy").scopes("read")).await.unwrap();
    assert!(keys.verify(issued.key.expose_secret()).await.unwrap().allows("read"));

    keys.clone().shutdown().await.unwrap();
    let kept = store.find_by_id(&issued.record.id).await.unwrap().unwrap();
    assert!(kept.last_used_at.is_some());
    // The store is the application's own, and goes on; nobody writes last uses any more.
    assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
    keys.shutdown().await.unwrap();

    keys.revoke(&issued.record.id, None).await.unwrap();
    assert!(keys.verify(issued.key.expose_secret()).await.is_err(), "nothing is cached");
}

#[tokio::test]
async fn a_handle_that_is_dropped_writes_what_is_waiting() {
    let store = MemoryStore::new();
    let keys = ApiKeys::options(one_secret()).over(store.clone()).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    drop(keys.verify(issued.key.expose_secret()).await.unwrap());
    drop(keys.clone());
    assert!(store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at.is_none());
    drop(keys);
    wait_until("the last use is written", async || {
        store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at.is_some()
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_that_is_given_up_half_way_goes_on() {
    let store = MemoryStore::new();
    let keys = ApiKeys::options(one_secret()).over(store.clone()).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    drop(keys.verify(issued.key.expose_secret()).await.unwrap());
    // It begins, and has to wait for the end of a task.
    assert!(keys.shutdown().now_or_never().is_none());
    keys.shutdown().await.unwrap();
    assert!(store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at.is_some());
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_layer_keeps_the_tasks_running() {
    use axum::body::Body;
    use http::{Request, StatusCode};
    use tower::ServiceExt;

    let store = MemoryStore::new();
    let options = ApiKeys::options(one_secret()).flush_interval(Duration::from_millis(10));
    let keys = options.over(store.clone()).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    let app = crate::web::app(keys.layer());
    drop(keys);
    let mut written = None;
    // The first use could be written by a last flush, and not the second.
    for _ in 0..2 {
        let request = Request::get("/required").header("X-API-Key", issued.key.expose_secret());
        let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let earlier = written;
        wait_until("the use is written", async || {
            written = store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at;
            written > earlier
        })
        .await;
    }
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn a_cache_over_a_store_that_reports_nothing_is_not_up_to_date() {
    use lexikon_auth::store::CacheOptions;
    let options = ApiKeys::options(one_secret()).cache(CacheOptions::default());
    let keys = options.over(MemoryStore::new()).await.unwrap();
    assert!(!keys.is_following());
}

#[cfg(all(feature = "cache", feature = "redis"))]
mod both_caches {
    use lexikon_auth::store::CacheOptions;
    use lexikon_auth_tests::redis_server;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// An instance over a store that reports nothing, which shares a Redis with others.
    async fn instance(
        store: &MemoryStore,
        prefix: &str,
        max_age: Duration,
        ttl: Duration,
    ) -> ApiKeys {
        let keys = ApiKeys::options(one_secret())
            .cache(CacheOptions::default().max_age(max_age).max_age_unfollowed(HOUR))
            .redis(&redis_server::shared_url())
            .redis_options(redis_server::patient().prefix(prefix).ttl(ttl))
            .over(store.clone())
            .await
            .unwrap();
        wait_until("the other instances are followed", async || keys.is_following()).await;
        keys
    }

    #[tokio::test]
    async fn a_change_by_another_instance_reaches_them() {
        let (store, prefix) = (MemoryStore::new(), redis_server::prefix());
        let keys = instance(&store, &prefix, HOUR, HOUR).await;
        let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
        assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
        let other = instance(&store, &prefix, HOUR, HOUR).await;
        other.revoke(&issued.record.id, None).await.unwrap();
        wait_until("the key is refused", async || {
            keys.verify(issued.key.expose_secret()).await.is_err()
        })
        .await;
        other.shutdown().await.unwrap();
        keys.shutdown().await.unwrap();
        assert!(!keys.is_following());
    }

    #[tokio::test]
    async fn a_change_past_them_shows_after_the_life_of_an_entry() {
        let (store, prefix) = (MemoryStore::new(), redis_server::prefix());
        let short = Duration::from_secs(1);
        let keys = instance(&store, &prefix, HOUR, HOUR).await;
        let quick = instance(&store, &redis_server::prefix(), short, short).await;
        let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
        for keys in [&keys, &quick, &keys, &keys] {
            assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
        }
        store.revoke(&issued.record.id, std::time::SystemTime::now(), None).await.unwrap();
        wait_until("the key is refused", async || {
            quick.verify(issued.key.expose_secret()).await.is_err()
        })
        .await;
        assert!(keys.verify(issued.key.expose_secret()).await.is_ok(), "nobody has reported it");
        quick.shutdown().await.unwrap();
        keys.shutdown().await.unwrap();
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_url_of_redis_that_cannot_be_read_is_not_repeated() {
    use lexikon_auth::StoreError;
    use lexikon_auth_tests::{assert_reveals_nothing, debugged, printed};
    let password = "a-password-of-redis";
    let options = ApiKeys::options(one_secret()).redis(&format!("rediss://:{password}@host:port/"));
    assert_reveals_nothing(&debugged(&options), password);
    let error = options.over(MemoryStore::new()).await.unwrap_err();
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    assert!(error.to_string().contains("URL of Redis"), "{error}");
    assert_reveals_nothing(&printed(&error), password);
}

#[cfg(all(feature = "redis", feature = "tls-native-tls", feature = "tls-rustls"))]
#[tokio::test]
async fn redis_by_tls_that_would_trust_no_authority_is_refused() {
    use lexikon_auth::StoreError;
    let options = ApiKeys::options(one_secret());
    let error = options.redis("rediss://localhost/").over(MemoryStore::new()).await.unwrap_err();
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    assert!(error.to_string().contains("both features"), "{error}");
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::path::PathBuf;

    use lexikon_auth::admin::KeyTable;
    use lexikon_auth::store::SqliteStore;
    use lexikon_auth::{LegacyPolicy, Policy, SecretRing, StoreError, VerifyError};
    use lexikon_auth_tests::{SECRETS, data, ring};
    use tempfile::TempDir;

    use super::*;

    /// A folder for a database.
    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("keys.db")
        }

        fn url(&self) -> String {
            format!("sqlite:{}", self.path().display())
        }

        async fn open(&self) -> ApiKeys {
            ApiKeys::open(&self.url(), one_secret()).await.unwrap()
        }

        /// Somebody else with access to the file, who does not use this crate.
        async fn other(&self) -> sqlx::SqlitePool {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.path());
            sqlx::SqlitePool::connect_with(options).await.unwrap()
        }
    }

    #[tokio::test]
    async fn one_call_opens_a_database_and_another_ends_it() {
        let folder = Folder::new();
        // On whatever thread there is.
        let url = folder.url();
        let opening = tokio::spawn(async move { ApiKeys::open(&url, one_secret()).await });
        let keys = opening.await.unwrap().unwrap();
        let issued = keys.issue(NewKey::new("user-1", "deploy").scopes("read")).await.unwrap();
        let key = issued.key.expose_secret();
        assert!(keys.verify(key).await.unwrap().allows("read"));
        let other = keys.issue(NewKey::new("user-1", "other")).await.unwrap();
        let (first, second) = tokio::join!(keys.shutdown(), keys.shutdown());
        first.unwrap();
        second.unwrap();
        // What is not cached would have to be looked up.
        let error = keys.verify(other.key.expose_secret()).await.unwrap_err();
        assert!(matches!(error, VerifyError::Unavailable(_)), "{error:?}");

        let again =
            ApiKeys::open(&format!("{}?mode=rw", folder.url()), one_secret()).await.unwrap();
        assert!(again.verify(key).await.is_ok());
        let record = again.manager().find(&issued.record.id).await.unwrap().unwrap();
        assert!(record.last_used_at.is_some(), "the shutdown wrote it");
        again.shutdown().await.unwrap();
    }

    #[cfg(feature = "cache")]
    #[tokio::test]
    async fn a_change_that_somebody_else_makes_reaches_the_cache() {
        use lexikon_auth::store::CacheOptions;
        let folder = Folder::new();
        let hour = Duration::from_secs(3600);
        let options = CacheOptions::default().max_age(hour).max_age_unfollowed(hour);
        let keys = ApiKeys::options(one_secret()).cache(options).open(&folder.url()).await.unwrap();
        let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
        for _ in 0..3 {
            assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
        }
        let revoke = "UPDATE api_keys SET is_active = 0";
        sqlx::query(revoke).execute(&folder.other().await).await.unwrap();
        wait_until("the key is refused", async || {
            keys.verify(issued.key.expose_secret()).await.is_err()
        })
        .await;
        keys.shutdown().await.unwrap();
        assert!(!keys.is_following());
    }

    #[tokio::test]
    async fn a_health_endpoint_can_ask_the_database() {
        let folder = Folder::new();
        let keys = folder.open().await;
        keys.ping().await.unwrap();
        keys.shutdown().await.unwrap();
        let error = keys.ping().await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    }

    #[cfg(feature = "cache")]
    #[tokio::test]
    async fn a_cache_can_be_looked_at_where_there_is_one() {
        use lexikon_auth::store::CacheOptions;
        let folder = Folder::new();
        let keys = folder.open().await;
        assert!(keys.cache().is_none());
        #[cfg(feature = "redis")]
        assert!(keys.redis().is_none());
        keys.shutdown().await.unwrap();

        let options = ApiKeys::options(one_secret()).cache(CacheOptions::default());
        let keys = options.open(&folder.url()).await.unwrap();
        let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
        for _ in 0..3 {
            assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
        }
        let counts = keys.cache().unwrap().counts();
        assert!(counts.misses > 0 && counts.misses + counts.hits == 3, "{counts:?}");
        keys.ping().await.unwrap();
        assert_eq!(keys.cache().unwrap().counts().misses, counts.misses, "past the cache");
        keys.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn another_secret_than_the_first_one_is_refused() {
        let folder = Folder::new();
        folder.open().await.shutdown().await.unwrap();
        let error = ApiKeys::open(&folder.url(), ring(&SECRETS[1..2])).await.unwrap_err();
        assert!(matches!(error, StoreError::UnknownSecret { .. }), "{error:?}");
        let both: SecretRing = ring(&SECRETS[..2]);
        ApiKeys::open(&folder.url(), both).await.unwrap().shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_named() {
        let folder = Folder::new();
        let url = format!("{}?mode=rw", folder.url());
        let error = ApiKeys::open(&url, one_secret()).await.unwrap_err();
        assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
        assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
        assert!(!folder.path().exists());
        folder.open().await.shutdown().await.unwrap();
        let error =
            ApiKeys::open(&format!("{}?mode=ro", folder.url()), one_secret()).await.unwrap_err();
        assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
        assert!(error.to_string().contains("take ?mode=ro out"), "{error}");
        for url in ["sqlite::memory:", "keys.db", "mysql://root@localhost/keys"] {
            let error = ApiKeys::open(url, one_secret()).await.unwrap_err();
            assert!(matches!(error, StoreError::CannotOpen(_)), "{url}: {error:?}");
        }
    }

    #[tokio::test]
    async fn tables_of_the_service_stay_as_they_are_unless_they_are_to_be_extended() {
        let folder = Folder::new();
        std::fs::write(folder.path(), data::SQLITE).unwrap();
        // It waits for nothing that cannot come.
        let options = ApiKeys::options(one_secret());
        #[cfg(feature = "cache")]
        let options = options.cache(lexikon_auth::store::CacheOptions::default());
        let keys = timeout(PATIENCE, options.open(&folder.url())).await.unwrap().unwrap();
        assert!(!cfg!(feature = "cache") || !keys.is_following());
        keys.shutdown().await.unwrap();
        assert_eq!(std::fs::read(folder.path()).unwrap(), data::SQLITE);

        let options = ApiKeys::options(one_secret()).time_zone("Europe/Paris".parse().unwrap());
        let keys = options.extend_schema().open(&folder.url()).await.unwrap();
        wait_until("changes are reported", async || keys.is_following()).await;
        keys.shutdown().await.unwrap();
        let table = KeyTable::from(SqliteStore::open(folder.path()).await.unwrap());
        assert!(table.is_extended());
        assert_eq!(table.time_zone().name(), "Europe/Paris");
    }

    #[tokio::test]
    async fn a_shutdown_that_could_not_write_says_so_until_it_has_written() {
        let folder = Folder::new();
        let store = SqliteStore::open_or_create(folder.path()).await.unwrap();
        let pool = folder.other().await;
        let keys = ApiKeys::options(one_secret()).over_sqlite(store.clone()).await.unwrap();
        let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
        drop(keys.verify(issued.key.expose_secret()).await.unwrap());
        let rename = "ALTER TABLE api_keys RENAME TO elsewhere";
        sqlx::query(rename).execute(&pool).await.unwrap();
        for _ in 0..2 {
            assert!(keys.shutdown().await.is_err());
        }
        let rename = "ALTER TABLE elsewhere RENAME TO api_keys";
        sqlx::query(rename).execute(&pool).await.unwrap();
        keys.shutdown().await.unwrap();
        assert!(store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at.is_some());
    }

    #[tokio::test]
    async fn the_policy_of_the_database_is_followed_and_loosens_nothing() {
        let folder = Folder::new();
        let store = SqliteStore::open_or_create(folder.path()).await.unwrap();
        let table = KeyTable::from(store.clone());
        table.set_policy(LegacyPolicy::Shadow, "alice").await.unwrap();
        let policy = Policy::default().legacy(LegacyPolicy::Refuse);

        let strict = ApiKeys::options(one_secret()).policy(policy);
        let strict = strict.over_sqlite(store.clone()).await.unwrap();
        assert_eq!(strict.verifier().legacy_policy(), LegacyPolicy::Refuse);
        let keys = ApiKeys::options(one_secret()).over_sqlite(store).await.unwrap();
        assert_eq!(keys.verifier().legacy_policy(), LegacyPolicy::Shadow);
        table.set_policy(LegacyPolicy::UpgradeOnUse, "alice").await.unwrap();
        wait_until("the policy changes", async || {
            keys.verifier().legacy_policy() == LegacyPolicy::UpgradeOnUse
        })
        .await;
        assert_eq!(strict.verifier().legacy_policy(), LegacyPolicy::Refuse);

        // The connections are the application's own.
        keys.shutdown().await.unwrap();
        table.set_policy(LegacyPolicy::Accept, "alice").await.unwrap();
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use std::net::TcpListener;

    use lexikon_auth::StoreError;
    use lexikon_auth::store::PostgresStore;
    use lexikon_auth_tests::postgres::{Server, database};
    use lexikon_auth_tests::{assert_reveals_nothing, printed};
    use sqlx::postgres::{PgConnectOptions, PgPool};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
    use tokio::net::{TcpSocket, TcpStream};

    use super::*;

    const PASSWORD: &str = "a-password-of-lexikon";

    fn url(options: &PgConnectOptions) -> String {
        let (port, database) = (options.get_port(), options.get_database().unwrap());
        format!("postgresql+asyncpg://postgres:{PASSWORD}@127.0.0.1:{port}/{database}")
    }

    /// The error of opening, which reveals no password.
    async fn error_of(url: &str) -> StoreError {
        let error = ApiKeys::open(url, one_secret()).await.unwrap_err();
        assert_reveals_nothing(&printed(&error), PASSWORD);
        error
    }

    /// A port on which nobody listens for as long as this is held.
    struct ClosedPort(TcpSocket);

    impl ClosedPort {
        fn new() -> Self {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            Self(socket)
        }

        fn number(&self) -> u16 {
            self.0.local_addr().unwrap().port()
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_said() {
        let closed = ClosedPort::new();
        let port = closed.number();
        let error = error_of(&format!("postgres://me:{PASSWORD}@127.0.0.1:{port}/keys")).await;
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("Connection refused"), "{text}");
        assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    }

    /// Takes a connection, and says that the server is not yet ready for one.
    async fn is_starting(listener: &tokio::net::TcpListener) {
        let (mut client, _) = listener.accept().await.unwrap();
        let _ = client.read(&mut [0; 1024]).await.unwrap();
        let fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
        let length = u32::try_from(fields.len() + 4).unwrap();
        client.write_all(&[b"E", &length.to_be_bytes()[..], fields].concat()).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_starts_at_the_same_time_is_waited_for() {
        let server = database().await;
        let (port, database) = (server.get_port(), server.get_database().unwrap());
        let closed = ClosedPort::new();
        let url = format!("postgres://postgres@127.0.0.1:{}", closed.number());
        let url = format!("{url}/{database}?sslmode=disable");
        let opening = tokio::spawn(async move { ApiKeys::open(&url, one_secret()).await });
        sleep(Duration::from_millis(500)).await;
        let listener = closed.0.listen(16).unwrap();
        timeout(PATIENCE, is_starting(&listener)).await.unwrap();
        let forwarding = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
            }
        });
        opening.await.unwrap().unwrap().shutdown().await.unwrap();
        forwarding.abort();
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_said() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let error = error_of(&format!("postgres://me:{PASSWORD}@127.0.0.1:{port}/keys")).await;
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    }

    #[tokio::test]
    async fn a_database_that_falls_silent_does_not_hold_up_a_health_endpoint() {
        use lexikon_auth_tests::proxy::{Mode, Proxy};
        let options = database().await;
        let proxy = Proxy::to(options.get_port()).await;
        let keys = ApiKeys::open(&url(&options.port(proxy.port)), one_secret()).await.unwrap();
        keys.ping().await.unwrap();
        proxy.set(Mode::Blackhole);
        let error = timeout(PATIENCE, keys.ping()).await.unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_wrong_database_and_a_wrong_password_are_said() {
        let server = Server::start();
        let pool = PgPool::connect_with(server.options()).await.unwrap();
        let port = server.options().get_port();
        // As the server's own user, who may write to its files.
        for statement in [
            "CREATE ROLE lexikon LOGIN PASSWORD 'another-password'",
            "COPY (VALUES ('host all lexikon 127.0.0.1/32 scram-sha-256'), \
             ('host all postgres 127.0.0.1/32 trust')) \
             TO PROGRAM 'cat > pg_hba.conf'",
            "SELECT pg_reload_conf()",
        ] {
            sqlx::raw_sql(statement).execute(&pool).await.unwrap();
        }
        let error =
            error_of(&format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}/nowhere")).await;
        assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
        assert!(error.to_string().contains("database \"nowhere\" does not exist"), "{error}");

        // The server reads its file again when it comes to it.
        let url = format!("postgres://lexikon:{PASSWORD}@127.0.0.1:{port}/postgres");
        wait_until("the password is refused", async || {
            let error = error_of(&url).await;
            assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
            error.to_string().contains("password authentication failed for user \"lexikon\"")
        })
        .await;
    }

    #[cfg(not(any(feature = "tls-rustls", feature = "tls-native-tls")))]
    #[tokio::test]
    async fn tls_without_its_feature_is_said() {
        let url = url(&database().await);
        let error = error_of(&format!("{url}?ssl=require")).await;
        assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
        assert!(error.to_string().contains("feature tls-rustls"), "{error}");
    }

    #[cfg(all(feature = "cache", feature = "redis"))]
    #[tokio::test]
    async fn a_change_that_somebody_else_makes_reaches_the_caches() {
        use lexikon_auth::store::CacheOptions;
        use lexikon_auth_tests::redis_server;
        let options = database().await;
        let hour = Duration::from_secs(3600);
        let cache = CacheOptions::default().max_age(hour).max_age_unfollowed(hour);
        let keys = ApiKeys::options(one_secret())
            .cache(cache)
            .redis(&redis_server::shared_url())
            .redis_options(redis_server::patient().prefix(&redis_server::prefix()))
            .open(&url(&options))
            .await
            .unwrap();
        wait_until("changes are reported", async || keys.is_following()).await;
        let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
        for _ in 0..3 {
            assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
        }
        let counts = keys.redis().unwrap().counts();
        assert!(counts.hits + counts.misses + counts.bypassed > 0, "{counts:?}");
        let other = PgPool::connect_with(options).await.unwrap();
        sqlx::query("UPDATE api_keys SET is_active = FALSE").execute(&other).await.unwrap();
        wait_until("the key is refused", async || {
            keys.verify(issued.key.expose_secret()).await.is_err()
        })
        .await;
        keys.shutdown().await.unwrap();
    }

    #[cfg(feature = "redis")]
    #[tokio::test]
    async fn redis_that_is_down_keeps_nobody_from_starting() {
        let url = url(&database().await);
        let closed = ClosedPort::new();
        let redis = format!("redis://127.0.0.1:{}", closed.number());
        let keys = ApiKeys::options(one_secret()).redis(&redis).open(&url).await.unwrap();
        let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
        assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
        keys.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_pool_of_the_application_stays_open() {
        let pool = PgPool::connect_with(database().await).await.unwrap();
        let store = PostgresStore::from_pool(pool.clone(), Duration::from_secs(10)).await.unwrap();
        let keys = ApiKeys::options(one_secret()).over_postgres(store).await.unwrap();
        keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
        keys.shutdown().await.unwrap();
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM api_keys").fetch_one(&pool).await.unwrap();
        assert_eq!(count, 1);
    }
}
