//! The background task that has a verifier follow a legacy policy kept elsewhere.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::error::StoreError;
use crate::policy::LegacyPolicy;
use crate::store::PolicySource;
use crate::verify::Verifier;

/// How often the policy is read.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long one read may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A running task that has a verifier follow a policy. The task ends when this is dropped, and the
/// verifier keeps the policy that it read last.
#[derive(Debug)]
#[must_use = "dropping it ends the task, and the policy is followed no more"]
pub struct PolicyFollower {
    _stop: watch::Sender<()>,
}

impl<S: Send + Sync + 'static> Verifier<S> {
    /// Has this verifier follow the legacy policy of `source`: reads it now, and then every 2 seconds in
    /// a task on the current Tokio runtime.
    ///
    /// The source may tighten what [`Policy`](crate::Policy) says of legacy keys, and never loosen it:
    /// [`Refuse`](LegacyPolicy::Refuse) in code stays, of two dates the earlier counts, and a date in code
    /// yields to `Refuse` alone. Over the other policies, which accept every legacy key, the source's holds.
    /// As long as it says nothing, the one in code does.
    ///
    /// While the source cannot be read, the policy that was read last stays; that is logged once.
    ///
    /// # Errors
    /// [`StoreError`] when the first read fails: a service that does not know its policy should not
    /// start.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    ///
    /// # Examples
    /// ```
    /// # #[cfg(feature = "sqlite")] {
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::sync::Arc;
    /// # use lexikon_auth::admin::KeyTable;
    /// # use lexikon_auth::{LegacyPolicy, SecretRing, ServerSecret, Verifier};
    /// # use lexikon_auth::store::SqliteStore;
    /// # let folder = tempfile::tempdir()?;
    /// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
    /// let store = SqliteStore::open_or_create(folder.path().join("keys.db")).await?;
    /// # KeyTable::from(store.clone()).set_policy(LegacyPolicy::Shadow, "alice").await?;
    /// let verifier = Arc::new(Verifier::new(store.clone(), ring));
    /// let following = verifier.follow_policy(store).await?; // for as long as it is held
    /// // Somebody ran `lxk migrate policy shadow`.
    /// assert_eq!(verifier.legacy_policy(), LegacyPolicy::Shadow);
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
    /// # }
    /// ```
    pub async fn follow_policy(
        self: &Arc<Self>,
        source: impl PolicySource,
    ) -> Result<PolicyFollower, StoreError> {
        self.apply(read(&source).await?);
        let (stop, mut stopped) = watch::channel(());
        let verifier = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = verifier.follow(&source) => {}
                // An error: the sender is gone.
                _ = stopped.changed() => {}
            }
        });
        Ok(PolicyFollower { _stop: stop })
    }

    async fn follow(&self, source: &impl PolicySource) {
        let mut is_readable = true;
        loop {
            sleep(INTERVAL).await;
            match read(source).await {
                Ok(policy) => {
                    self.apply(policy);
                    is_readable = true;
                }
                Err(error) if is_readable => {
                    warn!(%error, "the legacy policy cannot be read; the last one stays");
                    is_readable = false;
                }
                Err(_) => {}
            }
        }
    }

    fn apply(&self, policy: Option<LegacyPolicy>) {
        if self.follow_legacy_policy(policy) {
            info!(policy = self.legacy_policy().as_str(), "the legacy policy changed");
        }
    }
}

async fn read(source: &impl PolicySource) -> Result<Option<LegacyPolicy>, StoreError> {
    let policy = timeout(TIMEOUT, source.legacy_policy()).await;
    policy.unwrap_or_else(|elapsed| Err(StoreError::Unavailable(elapsed.into())))
}
