//! The verifier: from the bytes of a header to a verified key.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::clock::{Clock, SystemClock};
use crate::crypto::hash::{Candidates, HashFormat, Match};
use crate::crypto::key::PresentedKey;
use crate::crypto::secret::SecretRing;
use crate::error::{Refusal, StoreError, VerifyError};
use crate::id::{KeyId, OwnerId};
use crate::policy::{CurrentLegacyPolicy, LegacyPolicy, Policy, RetiredPolicy, UntaggedPolicy};
use crate::record::KeyRecord;
use crate::scopes::Scopes;
use crate::store::{HashChange, KeyLookup, KeyStore};
use crate::telemetry::{Stopwatch, VerifierMetrics, security};
use crate::write_behind::{Flushed, WriteBehind};

/// Decides whether a presented key is accepted.
///
/// Verification reads, and writes nothing. Last uses and hash upgrades are queued in memory, and
/// written by a [`flush`](Self::flush): by hand, or on a timer with `spawn_flush` (feature `tokio`).
///
/// It is not `Clone`: make one for the process, and share it in an [`Arc`].
///
/// ```
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use lexikon_auth::{Refusal, SecretRing, ServerSecret, Verifier};
/// use lexikon_auth::store::MemoryStore;
/// let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
/// let verifier = Verifier::new(MemoryStore::new(), ring);
///
/// let error = verifier.verify("lxk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").await.unwrap_err();
/// assert_eq!(error.to_string(), "the API key was refused"); // for the caller
/// assert_eq!(error.refusal(), Some(&Refusal::Unknown)); // for the log
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
/// ```
pub struct Verifier<S> {
    store: S,
    ring: SecretRing,
    policy: Policy,
    /// What [`Policy`] says of legacy keys, until it is changed.
    legacy: CurrentLegacyPolicy,
    clock: Arc<dyn Clock>,
    write_behind: WriteBehind,
    telemetry: VerifierMetrics,
}

impl<S: KeyLookup> Verifier<S> {
    /// Makes a verifier with the default [`Policy`], which accepts every key that the lexikon service does.
    pub fn new(store: S, ring: SecretRing) -> Self {
        let (policy, clock) = (Policy::default(), Arc::new(SystemClock));
        let legacy = CurrentLegacyPolicy::new(policy.legacy);
        let (write_behind, telemetry) = (WriteBehind::new(), VerifierMetrics::new());
        Self { store, ring, policy, legacy, clock, write_behind, telemetry }
    }

    /// Sets the policy.
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, legacy: CurrentLegacyPolicy::new(policy.legacy), ..self }
    }

    /// Sets the clock.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Verifies a key as it was presented: the key alone, without `Bearer` and white space.
    ///
    /// # Errors
    /// [`VerifyError::Refused`] when the key is not accepted, [`VerifyError::Unavailable`] when the
    /// store could not answer.
    ///
    /// # Examples
    /// ```
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # use lexikon_auth::{KeyManager, NewKey, SecretRing, ServerSecret, Verifier};
    /// # use lexikon_auth::store::MemoryStore;
    /// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
    /// # let store = MemoryStore::new();
    /// # let issued = KeyManager::new(store.clone(), &ring).issue(NewKey::new("user-1", "")).await?;
    /// # let verifier = Verifier::new(store, ring);
    /// let header = format!("Bearer {}", issued.key.expose_secret()); // Authorization
    /// let key = header.strip_prefix("Bearer ").unwrap_or_default().trim();
    /// assert_eq!(verifier.verify(key).await?.owner().as_str(), "user-1");
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
    /// ```
    pub fn verify<'a>(
        &'a self,
        presented: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> impl Future<Output = Result<VerifiedKey, VerifyError>> + Send + 'a {
        let presented = presented.as_ref();
        async move {
            let started = Stopwatch::start();
            let mut candidates = Candidates::none();
            let answer = match self.fill(&mut candidates, presented) {
                Ok(()) => match self.store.find(&candidates).await {
                    Ok(found) => self.decide(&candidates, found),
                    Err(error) => Err(VerifyError::Unavailable(error)),
                },
                Err(refusal) => Err(refusal.into()),
            };
            self.report(started, &answer);
            answer
        }
    }

    /// Verifies a key without a future, for programs that are not asynchronous.
    ///
    /// `None` is no answer: the store has to be asked over a connection, by [`verify`](Self::verify). A
    /// [`MemoryStore`](crate::store::MemoryStore) always answers, a cache where it knows, and a key that is
    /// malformed or has a forged tag is refused over any store.
    ///
    /// # Errors
    /// [`VerifyError::Refused`] when the key is not accepted, [`VerifyError::Unavailable`] when the
    /// store returned a row that it was not asked for.
    ///
    /// # Examples
    /// ```
    /// # fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # use lexikon_auth::{SecretRing, ServerSecret};
    /// use lexikon_auth::{Refusal, Verifier};
    /// use lexikon_auth::store::MemoryStore;
    /// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
    /// let verifier = Verifier::new(MemoryStore::new(), ring);
    ///
    /// let key = "lxk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    /// let answer = verifier.verify_now(key).expect("a store in memory always answers");
    /// assert_eq!(answer.unwrap_err().refusal(), Some(&Refusal::Unknown));
    /// # Ok(()) }
    /// # run().unwrap();
    /// ```
    pub fn verify_now(
        &self,
        presented: &(impl AsRef<[u8]> + ?Sized),
    ) -> Option<Result<VerifiedKey, VerifyError>> {
        let started = Stopwatch::start();
        let mut candidates = Candidates::none();
        let answer = match self.fill(&mut candidates, presented.as_ref()) {
            Ok(()) => self.decide(&candidates, self.store.find_now(&candidates)?),
            Err(refusal) => Err(refusal.into()),
        };
        self.report(started, &answer);
        Some(answer)
    }

    #[inline]
    fn fill(&self, candidates: &mut Candidates, presented: &[u8]) -> Result<(), Refusal> {
        let key = PresentedKey::parse(presented)?;
        if !key.is_tagged() && self.policy.untagged == UntaggedPolicy::Refuse {
            return Err(Refusal::UntaggedClosed);
        }
        if key.is_tagged() && !bool::from(key.tag_is_valid(&self.ring)) {
            return Err(Refusal::ForgedTag);
        }
        candidates.fill(&key, &self.ring);
        Ok(())
    }

    /// Decides over the row that the store found.
    #[inline]
    fn decide(
        &self,
        candidates: &Candidates,
        found: Option<Arc<KeyRecord>>,
    ) -> Result<VerifiedKey, VerifyError> {
        let record = found.ok_or(Refusal::Unknown)?;
        let Some(matched) = candidates.matching(&record.hash) else {
            return Err(VerifyError::Unavailable(StoreError::WrongRow(record.id.clone())));
        };
        let now = self.clock.now();
        let refuse = |refusal: fn(KeyId) -> Refusal| Err(refusal(record.id.clone()).into());
        if record.is_expired(now) {
            return refuse(Refusal::Expired);
        }
        if record.is_revoked() {
            return refuse(Refusal::Revoked);
        }
        if !record.owner_active {
            return refuse(Refusal::OwnerDisabled);
        }
        let upgrade = match matched {
            Match::Current => false,
            Match::Retired => self.policy.retired == RetiredPolicy::UpgradeOnUse,
            Match::Legacy => {
                let policy = self.legacy.read();
                if !policy.accepts(now) {
                    return refuse(Refusal::LegacyClosed);
                }
                if policy == LegacyPolicy::Shadow {
                    self.telemetry.shadow_refused(&record, now);
                } else {
                    security::legacy_accepted(&record, now);
                }
                policy == LegacyPolicy::UpgradeOnUse
            }
        };
        self.write_behind.record_use(&record, now, matched.format());
        if upgrade {
            let (id, expected) = (record.id.clone(), record.hash);
            let replacement = candidates.current();
            self.write_behind.queue_change(HashChange { id, expected, replacement });
        }
        Ok(VerifiedKey { record, matched })
    }

    #[inline]
    fn report(&self, started: Stopwatch, answer: &Result<VerifiedKey, VerifyError>) {
        match answer {
            Ok(verified) => self.telemetry.accepted(started, verified.matched),
            Err(error) => self.telemetry.not_accepted(started, error),
        }
    }

    /// Counts the uses that were dropped because more than 114,688 keys were used between two flushes.
    /// Over a store that is only a [`KeyLookup`] there is no flush: the queue fills up once, and what this
    /// counts from then on means nothing.
    pub fn dropped_uses(&self) -> u64 {
        self.write_behind.dropped()
    }
}

impl<S: KeyStore> Verifier<S> {
    /// Writes the last uses and hash upgrades queued since the last flush. Call it before shutting
    /// down.
    ///
    /// # Errors
    /// [`StoreError`] when the store could not write. What was not written is kept and written by the
    /// next flush, also when the future is dropped half-way.
    pub async fn flush(&self) -> Result<Flushed, StoreError> {
        self.write_behind.flush(&self.store).await
    }
}

impl<S> Verifier<S> {
    /// Returns what happens to legacy keys now. Dates are kept to the microsecond.
    pub fn legacy_policy(&self) -> LegacyPolicy {
        self.legacy.read()
    }

    /// Changes what happens to legacy keys, from the next verification on.
    pub fn set_legacy_policy(&self, policy: LegacyPolicy) {
        self.legacy.set(policy);
    }

    /// Changes it to that of [`Policy`], as `shared` tightens it. Returns whether it was another.
    #[cfg(feature = "tokio")]
    pub(crate) fn follow_legacy_policy(&self, shared: Option<LegacyPolicy>) -> bool {
        let policy = self.policy.legacy;
        self.legacy.set(shared.map_or(policy, |shared| policy.tightened_by(shared)))
    }

    #[cfg(feature = "tower")]
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }
}

#[cfg(feature = "tokio")]
impl<S> Verifier<S> {
    /// Completes when enough waits to be worth a flush before its time, or on request.
    pub(crate) async fn flush_wanted(&self) {
        self.write_behind.wake.notified().await;
    }

    pub(crate) fn request_flush(&self) {
        self.write_behind.wake.notify_one();
    }
}

impl<S> fmt::Debug for Verifier<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Verifier");
        debug.field("ring", &self.ring).field("policy", &self.policy);
        debug.field("legacy", &self.legacy).finish_non_exhaustive()
    }
}

/// The proof that a key was verified. Only a [`Verifier`] makes one.
///
/// It tells what was true at that moment: hold it for a request, not longer. That a key is accepted
/// says nothing of what it may do: ask [`allows`](Self::allows).
#[derive(Clone, Debug)]
#[must_use = "a verified key may do only what its scopes allow"]
pub struct VerifiedKey {
    record: Arc<KeyRecord>,
    matched: Match,
}

impl VerifiedKey {
    /// Returns the id of the key, safe to log.
    pub fn id(&self) -> &KeyId {
        &self.record.id
    }

    /// Returns the owner of the key.
    pub fn owner(&self) -> &OwnerId {
        &self.record.owner
    }

    /// Returns what the owner calls the key.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Returns the scopes of the key.
    pub fn scopes(&self) -> &Scopes {
        &self.record.scopes
    }

    /// Returns whether the key may do what `scope` stands for: it holds that name, or `admin`, which grants
    /// every scope. `scope` is one name, not a list; see [`Scopes::allows`].
    #[must_use]
    pub fn allows(&self, scope: &str) -> bool {
        self.record.scopes.allows(scope)
    }

    /// Returns when the key stops being accepted. `None`: never.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.record.expires_at
    }

    /// Returns the format that the key is stored in, as the comparison found it: [`HashFormat::Sha256`] is
    /// the legacy one.
    pub fn format(&self) -> HashFormat {
        self.matched.format()
    }

    /// Returns whether the hash is under a retired secret.
    ///
    /// `false` does not mean that the retired secrets can go: a key whose hash has moved to the current
    /// secret still carries the tag of the one it was issued under; see
    /// [`RetiredPolicy`](crate::RetiredPolicy).
    pub fn is_under_retired_secret(&self) -> bool {
        self.matched == Match::Retired
    }
}
