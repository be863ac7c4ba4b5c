//! Issuing, listing, changing and revoking keys.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock::{Clock, SystemClock};
use crate::crypto::hash::{HashFormat, KeyHash};
use crate::crypto::key::ApiKey;
use crate::crypto::secret::{SecretRing, ServerSecret};
use crate::error::{ManageError, StoreError};
use crate::id::{KeyId, OwnerId};
use crate::record::{KeyRecord, KeyUpdate};
use crate::scopes::Scopes;
use crate::store::{FormatCounts, HashChange, KeyStore, Page, Succession};
use crate::util::time::{LAST_SECOND, cut_to_microseconds};

/// Longest owner id, name, scope list or reason, in bytes.
const MAX_TEXT: usize = 1024;

/// Issues and manages keys. Share it in an [`Arc`]; it is not `Clone`.
///
/// ```
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use lexikon_auth::{KeyManager, NewKey, SecretRing, ServerSecret, Verifier};
/// use lexikon_auth::store::MemoryStore;
/// let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
/// let store = MemoryStore::new();
/// let manager = KeyManager::new(store.clone(), &ring);
/// let verifier = Verifier::new(store, ring);
///
/// let issued = manager.issue(NewKey::new("user-1", "deploy").scopes("read,write")).await?;
/// assert!(verifier.verify(issued.key.expose_secret()).await?.allows("write"));
/// manager.revoke(&issued.record.id, Some("laptop lost")).await?;
/// assert!(verifier.verify(issued.key.expose_secret()).await.is_err());
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
/// ```
pub struct KeyManager<S> {
    store: S,
    secret: ServerSecret,
    clock: Arc<dyn Clock>,
}

impl<S: KeyStore> KeyManager<S> {
    /// Makes a manager that issues under the current secret of the ring.
    pub fn new(store: S, ring: &SecretRing) -> Self {
        Self { store, secret: ring.current().clone(), clock: Arc::new(SystemClock) }
    }

    /// Sets the clock.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Issues a key. Its plaintext is in the answer and nowhere else.
    ///
    /// # Errors
    /// [`ManageError::Invalid`] for an empty owner or id, a text of over 1024 bytes or with a NUL in it,
    /// a scope with white space in it, or an expiry that is not in the future or after the year 9999;
    /// `ManageError::Store(StoreError::UnknownOwner(_))` where the store keeps owners and does not know
    /// this one; `ManageError::Store(StoreError::Conflict)` for an [`id`](NewKey::id) that a key has
    /// already; [`ManageError::Store`] when it cannot write.
    pub async fn issue(&self, new: NewKey) -> Result<IssuedKey, ManageError> {
        let scopes = Scopes::parse(new.scopes.as_str())?;
        let issued = self.draw(NewKey { scopes, ..new })?;
        self.store.insert(&issued.record).await?;
        Ok(issued)
    }

    /// Returns the record of a key. `None` when there is none.
    ///
    /// # Errors
    /// [`ManageError::Store`] when the store cannot answer.
    pub async fn find(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, ManageError> {
        Ok(self.store.find_by_id(id).await?)
    }

    /// Returns the records of an owner, newest first, revoked and expired keys included. An unknown owner has
    /// none. A page shorter than its limit is the last; after an id that is unknown or another owner's
    /// comes an empty one.
    ///
    /// # Errors
    /// [`ManageError::Store`] when the store cannot answer.
    ///
    /// # Examples
    /// ```
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # use lexikon_auth::{KeyManager, NewKey, OwnerId, SecretRing, ServerSecret};
    /// # use lexikon_auth::store::{MemoryStore, Page};
    /// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
    /// # let manager = KeyManager::new(MemoryStore::new(), &ring);
    /// # for name in ["one", "two", "three"] {
    /// #     manager.issue(NewKey::new("user-1", name)).await?;
    /// # }
    /// # let mut count = 0;
    /// let (owner, limit) = (OwnerId::from("user-1"), 2);
    /// let mut page = Page::first(limit);
    /// loop {
    ///     let records = manager.list(&owner, &page).await?;
    ///     // ... use `records` ...
    /// #   count += records.len();
    ///     match records.last() {
    ///         Some(last) if records.len() == limit as usize => {
    ///             page = Page::after(limit, last.id.clone());
    ///         }
    ///         _ => break,
    ///     }
    /// }
    /// # assert_eq!(count, 3);
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
    /// ```
    pub async fn list(
        &self,
        owner: &OwnerId,
        page: &Page,
    ) -> Result<Vec<Arc<KeyRecord>>, ManageError> {
        Ok(self.store.list(owner, page).await?)
    }

    /// Changes name, scopes and expiry of a key.
    ///
    /// A later expiry, or none, also brings back a key that has expired, after a rotation too. A revoked
    /// key stays revoked, and so does one that [`expire`](Self::expire) has marked.
    ///
    /// # Errors
    /// [`ManageError::Invalid`] as for [`issue`](Self::issue), except that an expiry may be in the
    /// past, from 1970 on; `ManageError::Store(StoreError::NotFound(_))`.
    pub async fn update(&self, id: &KeyId, update: KeyUpdate) -> Result<(), ManageError> {
        check_text("the name", update.name.as_deref().unwrap_or_default())?;
        let scopes = update.scopes.map(|scopes| Scopes::parse(scopes.as_str())).transpose()?;
        check_text("the scopes", scopes.as_ref().map_or("", Scopes::as_str))?;
        let expires_at = match update.expires_at {
            Some(Some(date)) => Some(Some(check_date(date)?)),
            other => other,
        };
        Ok(self.store.update(id, &KeyUpdate { scopes, expires_at, ..update }).await?)
    }

    /// Revokes a key, for good and at once. Revoking it again changes nothing.
    ///
    /// The lexikon service's own tables have no place for the time and the reason, which are dropped
    /// there until `extend_schema` of the store has added the columns.
    ///
    /// # Errors
    /// `ManageError::Store(StoreError::NotFound(_))`; [`ManageError::Invalid`] for a reason of over
    /// 1024 bytes or with a NUL in it.
    pub async fn revoke(&self, id: &KeyId, reason: Option<&str>) -> Result<(), ManageError> {
        check_text("the reason", reason.unwrap_or_default())?;
        Ok(self.store.revoke(id, self.now(), reason).await?)
    }

    /// Issues a successor with the same owner, name and scopes, and lets the old key expire after the
    /// overlap, which may be zero; never later than it would have expired anyway.
    ///
    /// The successor takes over the old key's expiry unless the rotation sets another. A deprecation is
    /// about the old key alone: the successor gets the expiry that was there before it.
    ///
    /// The old key only gets an expiry, which a later [`update`](Self::update) can lift: when a key has
    /// leaked, [`revoke`](Self::revoke) it too. Within the overlap it may be rotated again, which gives
    /// it a second successor.
    ///
    /// # Errors
    /// `ManageError::Store(StoreError::NotFound(_))`; `ManageError::Store(StoreError::NotInForce(_))`
    /// for a key that is revoked or has expired; `ManageError::Store(StoreError::Changed(_))` when its
    /// owner, scopes or expiry changed at the same time, and it can be tried again;
    /// [`ManageError::Invalid`] for an expiry that is not in
    /// the future, or an expiry or overlap that ends after the year 9999.
    pub async fn rotate(&self, id: &KeyId, rotation: Rotation) -> Result<IssuedKey, ManageError> {
        let old = self.store.find_by_id(id).await?.ok_or(StoreError::NotFound(id.clone()))?;
        let now = self.now();
        old.check_rotation(&old, now)?;
        let expires_at = match (rotation.expires_at, old.expires_at) {
            (Some(set), _) => set,
            (None, None) => None,
            (None, date) => self.store.expiry_before_deprecation(id).await?.unwrap_or(date),
        };
        // The scopes as they stand: trimmed, they could grant more.
        let (owner, name, scopes) = (old.owner.clone(), old.name.clone(), old.scopes.clone());
        let issued = self.draw(NewKey { id: None, owner, name, scopes, expires_at })?;
        let old_expires_at =
            now.checked_add(rotation.overlap).and_then(|date| check_date(date).ok());
        let old_expires_at = old_expires_at.ok_or(INVALID_OVERLAP)?;
        let (old, successor) = ((*old).clone(), issued.record.clone());
        self.store.rotate(&Succession { old, old_expires_at, successor, now }).await?;
        Ok(issued)
    }

    /// Draws another plaintext for a key, in place of the old one, which is refused from then on. Id,
    /// owner, name, scopes and dates stay.
    ///
    /// For a key whose plaintext never reached its owner: the answer to [`issue`](Self::issue) was lost.
    /// To replace a key that is in use, [`rotate`](Self::rotate) it.
    ///
    /// # Errors
    /// `ManageError::Store(StoreError::NotFound(_))`; `ManageError::Store(StoreError::NotInForce(_))`
    /// for a key that is revoked or has expired; `ManageError::Store(StoreError::Changed(_))` when
    /// somebody else replaced the plaintext at the same time.
    ///
    /// # Examples
    /// ```
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # use lexikon_auth::{KeyManager, ManageError, NewKey, SecretRing, ServerSecret};
    /// # use lexikon_auth::store::MemoryStore;
    /// # use lexikon_auth::StoreError;
    /// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
    /// # let manager = KeyManager::new(MemoryStore::new(), &ring);
    /// let new = || NewKey::new("user-1", "deploy").id("made of the caller's Idempotency-Key");
    /// # manager.issue(new()).await?;
    /// let issued = match manager.issue(new()).await {
    ///     // The caller asks again, because the first answer was lost: no second key.
    ///     Err(ManageError::Store(StoreError::Conflict)) => {
    ///         manager.reissue(&"made of the caller's Idempotency-Key".into()).await?
    ///     }
    ///     issued => issued?,
    /// };
    /// # assert_eq!(manager.list(&"user-1".into(), &lexikon_auth::store::Page::first(9)).await?.len(), 1);
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
    /// ```
    pub async fn reissue(&self, id: &KeyId) -> Result<IssuedKey, ManageError> {
        let old = self.store.find_by_id(id).await?.ok_or(StoreError::NotFound(id.clone()))?;
        old.check_rotation(&old, self.now())?;
        let key = ApiKey::generate(&self.secret)?;
        let replacement = KeyHash::of(&key, &self.secret);
        let change = HashChange { id: id.clone(), expected: old.hash, replacement };
        if !self.store.replace_hash(&change).await? {
            return Err(StoreError::Changed(id.clone()).into());
        }
        let mut record = KeyRecord::clone(&old);
        record.hash = replacement;
        record.format = Some(HashFormat::HmacSha256);
        Ok(IssuedKey { key, record })
    }

    /// Marks every key past its expiry as revoked, and returns how many there were. Verification
    /// refuses them without this; it is for readers that look at `is_active` alone.
    ///
    /// # Errors
    /// [`ManageError::Store`] when the store cannot write.
    pub async fn expire(&self) -> Result<u64, ManageError> {
        Ok(self.store.expire(self.now()).await?)
    }

    /// Counts the keys that are not revoked, by the format of their hash.
    ///
    /// # Errors
    /// [`ManageError::Store`] when the store cannot answer.
    pub async fn count_by_format(&self) -> Result<FormatCounts, ManageError> {
        Ok(self.store.count_by_format().await?)
    }

    /// Draws a key and its record.
    fn draw(&self, new: NewKey) -> Result<IssuedKey, ManageError> {
        let NewKey { id, owner, name, scopes, expires_at } = new;
        if owner.as_str().is_empty() {
            return Err(ManageError::Invalid { field: "the owner", problem: "is empty; name one" });
        }
        check_text("the owner", owner.as_str())?;
        if let Some(id) = &id {
            check_id(id)?;
        }
        check_text("the name", &name)?;
        check_text("the scopes", scopes.as_str())?;
        let now = self.now();
        let expires_at = expires_at.map(check_date).transpose()?;
        if expires_at.is_some_and(|date| date <= now) {
            let problem = "is not in the future; choose a later date, or none";
            return Err(ManageError::Invalid { field: "the expiry", problem });
        }
        let key = ApiKey::generate(&self.secret)?;
        let hash = KeyHash::of(&key, &self.secret);
        let id = id.map_or_else(KeyId::random, Ok)?;
        let mut record = KeyRecord::new(id, owner, hash);
        record.format = Some(HashFormat::HmacSha256);
        record.name = name;
        record.scopes = scopes;
        record.created_at = Some(now);
        record.expires_at = expires_at;
        Ok(IssuedKey { key, record })
    }

    fn now(&self) -> SystemTime {
        cut_to_microseconds(self.clock.now())
    }
}

impl<S> fmt::Debug for KeyManager<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyManager").field("secret", &self.secret).finish_non_exhaustive()
    }
}

/// What a new key is for.
#[derive(Debug, Clone)]
pub struct NewKey {
    id: Option<KeyId>,
    owner: OwnerId,
    name: Box<str>,
    scopes: Scopes,
    expires_at: Option<SystemTime>,
}

impl NewKey {
    /// Makes a key that may do nothing and never expires.
    pub fn new(owner: impl Into<OwnerId>, name: &str) -> Self {
        let (owner, scopes) = (owner.into(), Scopes::default());
        Self { id: None, owner, name: name.into(), scopes, expires_at: None }
    }

    /// Sets the id, in place of a random one. A second key with the same id is a
    /// [`Conflict`](StoreError::Conflict): so a caller who asks again, not knowing whether the first
    /// time succeeded, makes no second key; see [`reissue`](KeyManager::reissue).
    pub fn id(self, id: impl Into<KeyId>) -> Self {
        Self { id: Some(id.into()), ..self }
    }

    /// Sets what the key may do, such as `read,write`; `admin` grants every scope. Spaces around names
    /// are dropped when the key is issued.
    pub fn scopes(self, scopes: impl Into<Scopes>) -> Self {
        Self { scopes: scopes.into(), ..self }
    }

    /// Sets when the key stops being accepted.
    pub fn expires_at(self, date: SystemTime) -> Self {
        Self { expires_at: Some(date), ..self }
    }
}

/// A key that has just been issued.
#[derive(Debug)]
#[non_exhaustive]
pub struct IssuedKey {
    /// The plaintext, to be shown to the owner once.
    pub key: ApiKey,
    /// The record as it was written. What it says of the owner is not read back.
    pub record: KeyRecord,
}

/// How a key is replaced by its successor. The default ends the old key at once, and the successor
/// takes over its expiry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotation {
    overlap: Duration,
    /// Where it is not that of the old key.
    expires_at: Option<Option<SystemTime>>,
}

impl Rotation {
    /// Sets how much longer the old key is accepted; zero ends it at once.
    pub fn overlap(self, overlap: Duration) -> Self {
        Self { overlap, ..self }
    }

    /// Sets when the successor stops being accepted.
    pub fn expires_at(self, date: SystemTime) -> Self {
        Self { expires_at: Some(Some(date)), ..self }
    }

    /// Has the successor not expire, whatever the old key does.
    pub fn never_expires(self) -> Self {
        Self { expires_at: Some(None), ..self }
    }
}

const INVALID_OVERLAP: ManageError =
    ManageError::Invalid { field: "the overlap", problem: "ends after the year 9999; shorten it" };

fn check_text(field: &'static str, text: &str) -> Result<(), ManageError> {
    let problem = match text {
        // PostgreSQL cannot store it, and C code would cut the text there.
        text if text.contains('\0') => "contains a NUL character; remove it",
        text if text.len() > MAX_TEXT => "is longer than 1024 bytes; shorten it",
        _ => return Ok(()),
    };
    Err(ManageError::Invalid { field, problem })
}

fn check_id(id: &KeyId) -> Result<(), ManageError> {
    let text = id.to_string();
    if text.is_empty() {
        return Err(ManageError::Invalid { field: "the id", problem: "is empty; choose one" });
    }
    check_text("the id", &text)
}

/// Returns a date that every store can hold, to the microsecond.
fn check_date(date: SystemTime) -> Result<SystemTime, ManageError> {
    match date.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) if since.as_secs() <= LAST_SECOND => Ok(cut_to_microseconds(date)),
        _ => {
            let problem = "is not between the years 1970 and 9999; choose a date there";
            Err(ManageError::Invalid { field: "the expiry", problem })
        }
    }
}
