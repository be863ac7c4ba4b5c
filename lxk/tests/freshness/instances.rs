//! The set-ups that docs/caching.md names, each an instance of a service: its caches, its follower, its verifier.

use std::sync::Mutex;
use std::time::Duration;

use lexikon_auth::store::{
    CacheOptions, CachedStore, DynKeyStore, PostgresStore, RedisOptions, RedisStore, SqliteStore,
};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{KeyManager, Verifier};
use lexikon_auth_tests::{one_secret, proxy::Proxy, redis_server};

use crate::slow::Slow;

/// In place of 5 seconds, so that a minute plays much.
pub const MAX_AGE_UNFOLLOWED: Duration = Duration::from_secs(1);

/// Of the instances that PostgreSQL tells, and of those that Redis tells.
pub const PREFIXES: [&str; 2] = ["told by postgres:", "told by redis:"];

/// By whom an instance is told what others change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    Database,
    Redis,
    None,
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Postgres,
    Sqlite,
}

type Stack = CachedStore<DynKeyStore>;

pub struct Instance {
    pub index: usize,
    pub name: &'static str,
    pub place: Place,
    pub feed: Feed,
    pub slow: Slow,
    /// The way to Redis.
    pub tier: Option<Proxy>,
    pub manager: KeyManager<Stack>,
    pub verifier: Verifier<Stack>,
    follow: Box<dyn Fn() -> Option<Follower> + Send + Sync>,
    follower: Mutex<Option<Follower>>,
}

impl Instance {
    pub fn describe(&self) -> String {
        let tier = if self.tier.is_some() { " -> Redis" } else { "" };
        format!("{:?}{tier} -> memory, feed {:?}", self.place, self.feed)
    }

    /// Follows anew, and gives up the follower that there was, before or after.
    pub async fn replace_follower(&self, overlap: bool) {
        let old = self.follower.lock().unwrap().take();
        if overlap {
            let new = (self.follow)();
            drop(old);
            *self.follower.lock().unwrap() = new;
            return;
        }
        if let Some(old) = old {
            old.shutdown().await;
        }
        let new = (self.follow)();
        *self.follower.lock().unwrap() = new;
    }

    /// Waits until it is followed, at the start.
    pub async fn connected(&self) {
        let is_connected = || {
            let follower = self.follower.lock().unwrap();
            follower.as_ref().is_none_or(Follower::is_connected)
        };
        while !is_connected() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// An instance in the making.
pub struct Plan {
    pub name: &'static str,
    pub feed: Feed,
    /// The port of Redis, where it is to have a tier there.
    pub redis: Option<u16>,
}

impl Plan {
    pub async fn on_postgres(self, index: usize, database: PostgresStore) -> Instance {
        let (slow, changes) = (Slow::new(database.clone()), database.changes());
        let follow = move |store| Follower::spawn(store, changes.clone());
        self.build(index, Place::Postgres, slow, follow).await
    }

    pub async fn on_sqlite(self, index: usize, database: SqliteStore) -> Instance {
        let (slow, changes) = (Slow::new(database.clone()), database.changes());
        let follow = move |store| Follower::spawn(store, changes.clone());
        self.build(index, Place::Sqlite, slow, follow).await
    }

    async fn build(
        self,
        index: usize,
        place: Place,
        slow: Slow,
        follow_database: impl Fn(Stack) -> Follower + Send + Sync + 'static,
    ) -> Instance {
        let ring = one_secret();
        let mut tier = None;
        let mut shared = None;
        if let Some(port) = self.redis {
            let proxy = Proxy::to(port).await;
            let client = redis_server::client(proxy.port);
            let prefix = PREFIXES[usize::from(self.feed == Feed::Redis)];
            let options = RedisOptions::default().prefix(prefix);
            shared = Some(RedisStore::new(slow.clone(), client, &ring, options).await);
            tier = Some(proxy);
        }
        let beneath = match &shared {
            Some(shared) => DynKeyStore::new(shared.clone()),
            None => DynKeyStore::new(slow.clone()),
        };
        let options = CacheOptions::default().max_age_unfollowed(MAX_AGE_UNFOLLOWED);
        let store = CachedStore::new(beneath, options);
        let (followed, feed) = (store.clone(), self.feed);
        let follow = move || {
            let store = followed.clone();
            match feed {
                Feed::Database => Some(follow_database(store)),
                Feed::Redis => Some(Follower::spawn(store, shared.as_ref()?.changes())),
                Feed::None => None,
            }
        };
        Instance {
            index,
            name: self.name,
            place,
            feed: self.feed,
            slow,
            tier,
            manager: KeyManager::new(store.clone(), &ring),
            verifier: Verifier::new(store, ring),
            follower: Mutex::new(follow()),
            follow: Box::new(follow),
        }
    }
}
