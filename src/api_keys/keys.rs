//! The handle: what it does, and how it ends.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::timeout;
use tracing::warn;

use super::layers::Layers;
use crate::error::{ManageError, StoreError, VerifyError};
#[cfg(feature = "tower")]
use crate::http::ApiKeyLayer;
use crate::id::KeyId;
use crate::manage::{IssuedKey, KeyManager, NewKey, Rotation};
#[cfg(feature = "cache")]
use crate::store::CachedStore;
#[cfg(feature = "redis")]
use crate::store::RedisStore;
use crate::store::{DynKeyStore, KeyStore};
use crate::tasks::{Flusher, Follower, PolicyFollower};
use crate::util::lock::lock;
use crate::util::run_to_end::run_to_end;
use crate::verify::{VerifiedKey, Verifier};

/// How long the database may take to say that it is there.
const PING_LIMIT: Duration = Duration::from_secs(2);
/// How long connections may take to close at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// The API keys of one database, ready for use: a [`Verifier`] and a [`KeyManager`] over it, and the tasks that
/// keep caches and policy up to date and write last uses. Clones share all of it.
///
/// ```no_run
/// # #[cfg(feature = "sqlite")] {
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use lexikon_auth::{ApiKeys, NewKey, SecretRing};
/// let ring = SecretRing::from_env()?; // API_KEY_SECRET, made with: openssl rand -hex 32
/// let keys = ApiKeys::open("sqlite:keys.db", ring).await?; // or "postgres://lexikon@localhost/lexikon"
///
/// let issued = keys.issue(NewKey::new("user-1", "deploy").scopes("read,write")).await?;
/// let verified = keys.verify(issued.key.expose_secret()).await?;
/// assert!(verified.allows("write"));
///
/// keys.shutdown().await?; // writes last uses that are still waiting
/// # Ok(()) }
/// # }
/// ```
///
/// Caches are there if the [options](ApiKeys::options) say so. What only a store has, such as
/// `set_owner_active`, is reached through the store: open it first, and pass it to the options.
///
/// # Tasks
///
/// The tasks run on the Tokio runtime that the handle was opened on, and end with [`shutdown`](Self::shutdown),
/// or when the last clone is dropped, and the last layer made by one. Dropped, they write what is waiting in the
/// background, if the runtime lives long enough.
///
/// A [`verifier`](Self::verifier) that outlives them goes on: caches over a database fall back to entries of 5
/// seconds, the policy stays as it is, and no last use is written any more.
///
/// # Processes
///
/// Open a handle in the process that uses it. It does not survive a `fork`: the child has none of the
/// runtime's threads, its connections are the parent's, and a SQLite database
/// [must not](https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_)
/// be used in it. A server that forks workers opens one in each of them.
#[derive(Clone)]
#[must_use = "dropping it ends the tasks that keep caches up to date and write last uses"]
pub struct ApiKeys(Arc<Shared>);

pub(super) struct Shared {
    pub(super) verifier: Arc<Verifier<DynKeyStore>>,
    pub(super) manager: KeyManager<DynKeyStore>,
    pub(super) layers: Layers,
    pub(super) follower: Mutex<Option<Follower>>,
    /// Until it is shut down.
    pub(super) running: AsyncMutex<Option<Running>>,
}

/// What a shutdown ends, beside the follower.
pub(super) struct Running {
    pub(super) flusher: Flusher<DynKeyStore>,
    pub(super) policy_follower: Option<PolicyFollower>,
    /// Closes the connections that were opened for this.
    pub(super) close: Option<Close>,
}

pub(super) type Close = Pin<Box<dyn Future<Output = ()> + Send>>;

impl ApiKeys {
    pub(super) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// Verifies a key as it was presented, by [`Verifier::verify`].
    ///
    /// # Errors
    /// [`VerifyError::Refused`] when the key is not accepted, [`VerifyError::Unavailable`] when the
    /// store could not answer.
    pub fn verify<'a>(
        &'a self,
        presented: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> impl Future<Output = Result<VerifiedKey, VerifyError>> + Send + 'a {
        self.0.verifier.verify(presented)
    }

    /// Issues a key, by [`KeyManager::issue`].
    ///
    /// # Errors
    /// Those of [`KeyManager::issue`].
    pub async fn issue(&self, new: NewKey) -> Result<IssuedKey, ManageError> {
        self.0.manager.issue(new).await
    }

    /// Issues a successor of a key, by [`KeyManager::rotate`].
    ///
    /// # Errors
    /// Those of [`KeyManager::rotate`].
    pub async fn rotate(&self, id: &KeyId, rotation: Rotation) -> Result<IssuedKey, ManageError> {
        self.0.manager.rotate(id, rotation).await
    }

    /// Revokes a key, by [`KeyManager::revoke`].
    ///
    /// # Errors
    /// Those of [`KeyManager::revoke`].
    pub async fn revoke(&self, id: &KeyId, reason: Option<&str>) -> Result<(), ManageError> {
        self.0.manager.revoke(id, reason).await
    }

    /// The layer for a web service, with the usual settings. It keeps the tasks running for as long as it is
    /// in use.
    ///
    /// ```
    /// # #[cfg(feature = "axum")] {
    /// # use axum::{Router, routing::get};
    /// # use lexikon_auth::{ApiKeys, VerifiedKey};
    /// # fn app(keys: &ApiKeys) -> Router {
    /// Router::new()
    ///     .route("/hello", get(async |key: VerifiedKey| format!("hello {}", key.owner())))
    ///     .layer(keys.layer())
    /// # }
    /// # }
    /// ```
    #[cfg(feature = "tower")]
    pub fn layer(&self) -> ApiKeyLayer {
        ApiKeyLayer::new(self.0.verifier.clone()).keep(self.0.clone())
    }

    /// The verifier. It does not keep the tasks running.
    pub fn verifier(&self) -> &Arc<Verifier<DynKeyStore>> {
        &self.0.verifier
    }

    /// The manager: lists, updates and counts keys.
    pub fn manager(&self) -> &KeyManager<DynKeyStore> {
        &self.0.manager
    }

    /// Returns the cache in memory, if the options ask for one: for its counts, and to invalidate what nobody
    /// reports.
    #[cfg(feature = "cache")]
    pub fn cache(&self) -> Option<&CachedStore<DynKeyStore>> {
        self.0.layers.cache.as_ref()
    }

    /// Returns the cache in Redis, if the options ask for one: for its counts, and whether it is used.
    #[cfg(feature = "redis")]
    pub fn redis(&self) -> Option<&RedisStore<DynKeyStore>> {
        self.0.layers.redis.as_ref()
    }

    /// Asks the database for a key that is not there, past all caches, and waits 2 seconds at most. For a
    /// health endpoint.
    ///
    /// # Errors
    /// [`StoreError`] when it does not answer.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let nobody = KeyId::from("nobody");
        let answer = timeout(PING_LIMIT, self.0.layers.store.find_by_id(&nobody)).await;
        answer.map_err(|elapsed| StoreError::Unavailable(elapsed.into()))?.map(drop)
    }

    /// Whether changes that others make count at once: nothing is cached, or a follower is connected. For a
    /// health endpoint; it asks nobody.
    ///
    /// Over a database it means all changes. Where it is `false`, they count after
    /// `CacheOptions::max_age_unfollowed`, 5 seconds, and entries in Redis
    /// are not read.
    ///
    /// Over [another store](super::ApiKeysOptions::over) with both caches it means the changes that other
    /// handles with the same Redis make. With one cache it is always `false`, and says nothing.
    pub fn is_following(&self) -> bool {
        !self.0.layers.is_cached
            || lock(&self.0.follower).as_ref().is_some_and(Follower::is_connected)
    }

    /// Ends the tasks, writes the last uses and hash upgrades that are waiting, and closes the connections
    /// that were opened for this handle and its clones. Call it when requests are no longer served: what is
    /// verified afterwards is not written, and answered only where the connections are the application's own.
    ///
    /// How long that takes is up to the store: what is waiting is written in batches, each within its time
    /// limit; connections then have 5 seconds to close. Once begun it runs to its end, also if its future is
    /// dropped, as a `timeout` does, for as long as the runtime lives. Whoever calls it again waits for the
    /// first shutdown, and tries once more to write what that could not.
    ///
    /// # Errors
    /// [`StoreError`] when the store could not write. All else is done. What is waiting is lost, unless the
    /// connections are the application's own and another call succeeds.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        let shared = self.0.clone();
        run_to_end(async move { shared.shutdown().await }).await
    }
}

impl Shared {
    async fn shutdown(&self) -> Result<(), StoreError> {
        let mut running = self.running.lock().await;
        let Some(Running { flusher, policy_follower, close }) = running.take() else {
            return self.verifier.flush().await.map(drop);
        };
        let flushed = flusher.shutdown().await;
        drop(policy_follower);
        let follower = lock(&self.follower).take();
        if let Some(follower) = follower {
            follower.shutdown().await;
        }
        if let Some(close) = close
            && timeout(CLOSE_LIMIT, close).await.is_err()
        {
            warn!(
                "connections to the database are still in use; they are left to close by themselves"
            );
        }
        flushed.map(drop)
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys").field("verifier", &self.0.verifier).finish_non_exhaustive()
    }
}
