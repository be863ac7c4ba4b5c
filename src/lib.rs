//! x
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod clock;
mod error;
#[cfg(feature = "tokio")]
mod flusher;
mod hash;
mod hmac;
mod key;
mod manage;
mod policy;
mod record;
mod scopes;
mod secret;
pub mod store;
mod usage;
mod verify;

pub use clock::{Clock, ManualClock, SystemClock};
pub use error::{ManageError, Refusal, StoreError, VerifyError};
#[cfg(feature = "tokio")]
pub use flusher::{DEFAULT_FLUSH_INTERVAL, Flusher};
pub use hash::{Candidates, HashFormat, KeyHash};
pub use key::{ApiKey, EntropyError, KEY_PREFIX, MalformedKey, PresentedKey};
pub use manage::{IssuedKey, KeyManager, NewKey, Rotation};
pub use policy::{LegacyPolicy, Policy, RetiredPolicy, UntaggedPolicy};
pub use record::{KeyId, KeyRecord, OwnerId, Revocation};
pub use scopes::Scopes;
pub use secret::{SecretError, SecretFingerprint, SecretRing, ServerSecret};
#[cfg(feature = "sqlite")]
pub use store::SqliteStore;
pub use store::{
    DynKeyStore, FormatCounts, HashChange, KeyLookup, KeyStore, KeyUpdate, MemoryStore, Page, Usage,
};
pub use usage::Flushed;
pub use verify::{VerifiedKey, Verifier};

/// The examples of README.md, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
