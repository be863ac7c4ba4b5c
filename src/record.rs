//! What a store knows of a key.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::SystemTime;

use crate::crypto::hash::{HashFormat, KeyHash};
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::pending_use::PendingUse;
use crate::scopes::Scopes;

/// Everything that a store knows of a key, its owner's state included.
///
/// Times are kept to the microsecond, the precision of the service's columns.
// In this order, so that what a verification reads lies together behind the reference count, in two
// cache lines instead of four.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(C)]
pub struct KeyRecord {
    /// The hash that the key is stored under.
    pub hash: KeyHash,
    /// When the key stops being accepted. `None`: never.
    pub expires_at: Option<SystemTime>,
    /// A use that waits to be written.
    pub(crate) pending_use: PendingUse,
    /// Whether the owner exists and is active. A property of the owner, read with every look-up.
    pub owner_active: bool,
    /// The format of the hash, where the row says so. For counting: verification never relies on it.
    pub format: Option<HashFormat>,
    /// The key's revocation. `None` while it is in force.
    pub revocation: Option<Box<Revocation>>,
    /// The id.
    pub id: KeyId,
    /// The owner.
    pub owner: OwnerId,
    /// What the owner calls the key.
    pub name: Box<str>,
    /// What the key may do.
    pub scopes: Scopes,
    /// When the key was made. `None` where the row does not say.
    pub created_at: Option<SystemTime>,
    /// When the key was last used, as far as it has been written.
    pub last_used_at: Option<SystemTime>,
}

impl KeyRecord {
    /// Makes a record in force: no name, no scopes, no dates, its owner active.
    ///
    /// For stores, and to import hashes from another system: plain SHA-256, or HMAC-SHA-256 under a
    /// secret of the ring, of keys that begin with `lxk_`.
    ///
    /// # Examples
    /// ```
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use lexikon_auth::{KeyId, KeyRecord, SecretRing, ServerSecret, Verifier};
    /// use lexikon_auth::crypto::{HashFormat, KeyHash};
    /// use lexikon_auth::store::{KeyStore, MemoryStore};
    /// let store = MemoryStore::new();
    /// let hash = "a4f0010a3f12bd5f08214fb0d325a6479580e53296c28463cf613b0bdf498035";
    /// let hash = KeyHash::from_hex(hash).ok_or("not 64 lower-case hex digits")?;
    /// let mut record = KeyRecord::new(KeyId::random()?, "user-1".into(), hash);
    /// record.name = "imported".into();
    /// record.scopes = "read".into();
    /// record.format = Some(HashFormat::Sha256);
    /// store.insert(&record).await?;
    ///
    /// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
    /// let verifier = Verifier::new(store, ring);
    /// assert!(verifier.verify("lxk_edBFF8ucL0GHS745Bd_44XqHMsFz86GM9hgsvj67plc").await?.allows("read"));
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
    /// ```
    pub fn new(id: KeyId, owner: OwnerId, hash: KeyHash) -> Self {
        Self {
            id,
            owner,
            owner_active: true,
            hash,
            format: None,
            name: "".into(),
            scopes: Scopes::default(),
            revocation: None,
            created_at: None,
            expires_at: None,
            last_used_at: None,
            pending_use: PendingUse::default(),
        }
    }

    /// Returns whether the key is past its expiry at `now`. A key expires at the very instant of its date.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }

    /// Returns whether a successor of the key in force at `now`, made from what `read` said, takes over neither
    /// more nor less than the key has by now.
    pub(crate) fn check_rotation(&self, read: &Self, now: SystemTime) -> Result<(), StoreError> {
        if self.is_revoked() || self.is_expired(now) {
            return Err(StoreError::NotInForce(self.id.clone()));
        }
        let rights = |key: &Self| (key.owner.clone(), key.scopes.clone(), key.expires_at);
        if rights(self) != rights(read) {
            return Err(StoreError::Changed(self.id.clone()));
        }
        Ok(())
    }

    /// Returns whether the key has been revoked.
    pub fn is_revoked(&self) -> bool {
        self.revocation.is_some()
    }
}

/// What is known of a revocation. `is_active` that is NULL in the service's table counts as revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocation {
    /// When, where the schema can hold it.
    pub at: Option<SystemTime>,
    /// Why, where the schema can hold it and a reason was given.
    pub reason: Option<Box<str>>,
}

/// Changes to a key. What is `None` stays as it is.
///
/// ```
/// use lexikon_auth::KeyUpdate;
/// let update = KeyUpdate::default().name("deploy, second site").never_expires();
/// assert_eq!((update.scopes, update.expires_at), (None, Some(None)));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyUpdate {
    /// The new name.
    pub name: Option<Box<str>>,
    /// The new scopes. [`KeyManager::update`](crate::KeyManager::update) drops spaces around their names.
    pub scopes: Option<Scopes>,
    /// The new expiry; `Some(None)` takes the expiry away.
    pub expires_at: Option<Option<SystemTime>>,
}

impl KeyUpdate {
    /// Sets the name.
    pub fn name(self, name: &str) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Sets the scopes, in place of all that the key has.
    pub fn scopes(self, scopes: impl Into<Scopes>) -> Self {
        Self { scopes: Some(scopes.into()), ..self }
    }

    /// Sets when the key stops being accepted.
    pub fn expires_at(self, date: SystemTime) -> Self {
        Self { expires_at: Some(Some(date)), ..self }
    }

    /// Takes the expiry away.
    pub fn never_expires(self) -> Self {
        Self { expires_at: Some(None), ..self }
    }
}

/// A record that is found by its id, in a set that holds no second copy of the id.
#[derive(Debug)]
pub(crate) struct ById(pub(crate) Arc<KeyRecord>);

impl Borrow<KeyId> for ById {
    fn borrow(&self) -> &KeyId {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}
