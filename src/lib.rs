//! Issues, stores and verifies `lxk_` API keys: HMAC-SHA-256 at rest, constant-time comparison, and
//! legacy SHA-256 hashes accepted for as long as a migration takes.
//!
//! `ApiKeys` is the usual set-up in one call (features `sqlite` or `postgres`):
//!
//! ```no_run
//! # #[cfg(feature = "sqlite")] {
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use lexikon_auth::{ApiKeys, NewKey, SecretRing};
//! let ring = SecretRing::from_env()?; // API_KEY_SECRET, made with: openssl rand -hex 32
//! let keys = ApiKeys::open("sqlite:keys.db", ring).await?;
//! let issued = keys.issue(NewKey::new("user-1", "deploy").scopes("read,write")).await?;
//! let verified = keys.verify(issued.key.expose_secret()).await?;
//! assert!(verified.allows("write"));
//! keys.shutdown().await?;
//! # Ok(()) }
//! # }
//! ```
//!
//! It is made of parts, which need no feature: a [`KeyManager`] and a [`Verifier`] over one of the stores of
//! [`store`].
//!
//! ```
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use lexikon_auth::{KeyManager, NewKey, SecretRing, ServerSecret, Verifier};
//! use lexikon_auth::store::MemoryStore;
//!
//! let secret = ServerSecret::new(&ServerSecret::generate()?)?; // or SecretRing::from_env()
//! let ring = SecretRing::new(secret);
//! let store = MemoryStore::new();
//! let manager = KeyManager::new(store.clone(), &ring);
//! let verifier = Verifier::new(store, ring);
//!
//! let issued = manager.issue(NewKey::new("user-1", "deploy").scopes("read,write")).await?;
//! let verified = verifier.verify(issued.key.expose_secret()).await?;
//! assert!(verified.allows("write"));
//! # Ok(()) }
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
//! ```
//!
//! # How a verification goes
//!
//! ```text
//! header bytes
//!   -> PresentedKey   length, prefix, alphabet; borrowed, no copy            (malformed: refuse)
//!   -> tag            keys that this crate issued                            (forged: refuse)
//!   -> Candidates     HMAC under each secret, SHA-256: all computed, always
//!   -> KeyLookup      one look-up with all candidates                        (error: unavailable)
//!   -> comparison     constant time, against every candidate; this decides
//!   -> policy         expiry, revocation, owner, legacy policy
//!   -> VerifiedKey    id, owner, scopes, format, expiry
//! ```
//!
//! A *refusal* is a definite no; *unavailable* means that the store could not answer. They are two
//! variants of [`VerifyError`], because a service answers 401 to one and 503 to the other.
//!
//! # Features
//!
//! | feature | adds | costs |
//! | --- | --- | --- |
//! | none | keys, secrets, verification, management, [`MemoryStore`](store::MemoryStore), [`DynKeyStore`](store::DynKeyStore) | ten direct dependencies |
//! | `sqlite` | `store::SqliteStore`: the tables of the lexikon service as they are, or the same ones in an empty file, which is in WAL mode; `admin`; `ApiKeys` by URL | sqlx with bundled SQLite, time, jiff, futures-util, percent-encoding, on Linux inotify; implies `tokio` |
//! | `postgres` | `store::PostgresStore`: the same in PostgreSQL, one prepared statement a verification; `admin`; `ApiKeys` by URL | sqlx, jiff, futures-util; implies `tokio` |
//! | `tls-rustls`, `tls-native-tls` | TLS to PostgreSQL (`sslmode=`) and Redis (`rediss://`), with the authorities that the operating system trusts. Take one of the two | rustls with ring; or native-tls, on Linux with OpenSSL |
//! | `cache` | `store::CachedStore`: a cache in memory over any store | quick_cache; implies `tokio` |
//! | `redis` | `store::RedisStore`: a second level of cache that instances share | redis; implies `tokio` |
//! | `tokio` | `ApiKeys` over any store; `tasks`: last uses written on a timer, caches told of changes made elsewhere, a policy that is followed | tokio (`rt`, `sync`, `time`, `macros`) |
//! | `tower` | `http::ApiKeyLayer`: the key of every request verified, for axum, hyper and tonic; scopes as types | http, http-body, bytes, tower-layer, tower-service, pin-project-lite, httpdate |
//! | `axum` | `VerifiedKey` and `http::Scoped<Write>` as arguments of handlers | axum-core; implies `tower` |
//! | `throttle` | `http::Throttle`: a limit on refused keys for each client address, with memory that is bounded | governor, quick_cache, ipnet; implies `tower` and `tokio` |
//! | `metrics` | what verifiers, caches, stores, followers and web layers count and time, through the `metrics` crate: [`telemetry`]. Install the recorder before verifiers and stores are made | metrics |
//! | `conformance` | `conformance`: the tests that every store must pass | tokio (`rt-multi-thread`) |
//!
//! A feature adds; it never changes what the others do.
//!
//! The two for TLS are the exception. With both, PostgreSQL goes by native-tls, and the redis crate goes by
//! rustls and loads no authorities, so that `ApiKeysOptions::redis` refuses `rediss://`. And with `tls-rustls`,
//! ring becomes the default provider of rustls for the process, unless there is one when the first connection by
//! TLS is made: a program that wants another chooses it before, by `CryptoProvider::install_default`.
//!
//! # Secrets
//!
//! Keys and server secrets are wiped from memory when their values are dropped, and are never part of
//! an error, a log line, a `Debug` output or a database. Every read of a key is a visible
//! [`expose_secret`](ApiKey::expose_secret). What a caller presents is borrowed and not wiped: the
//! buffer of the request is the caller's.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod admin;
#[cfg(feature = "tokio")]
mod api_keys;
pub mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod crypto;
mod error;
#[cfg(feature = "tower")]
pub mod http;
mod id;
mod manage;
mod pending_use;
mod policy;
mod record;
mod scopes;
pub mod store;
pub mod tasks;
pub mod telemetry;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod time_zone;
mod unsettled;
mod util;
mod verify;
mod write_behind;

#[cfg(feature = "tokio")]
pub use api_keys::{ApiKeys, ApiKeysOptions};
pub use crypto::key::ApiKey;
pub use crypto::secret::{SecretError, SecretRing, ServerSecret};
pub use error::{ManageError, Refusal, StoreError, VerifyError};
pub use id::{KeyId, OwnerId};
pub use manage::{IssuedKey, KeyManager, NewKey, Rotation};
pub use policy::{LegacyPolicy, Policy, RetiredPolicy, UntaggedPolicy};
pub use record::{KeyRecord, KeyUpdate};
pub use scopes::{InvalidScopes, Scopes};
pub use verify::{VerifiedKey, Verifier};

/// What stands between parsing and decision, for the harness in tests/valgrind alone: no part of
/// the API, and compiled only with `--cfg lexikon_auth_constant_time`.
#[cfg(lexikon_auth_constant_time)]
#[doc(hidden)]
pub mod constant_time {
    use subtle::Choice;

    use crate::crypto::{Candidates, KeyHash, PresentedKey};
    use crate::{SecretRing, ServerSecret};

    pub fn tag_is_valid(key: &PresentedKey<'_>, ring: &SecretRing) -> Choice {
        key.tag_is_valid(ring)
    }

    pub fn candidates(key: &PresentedKey<'_>, ring: &SecretRing) -> Candidates {
        let mut candidates = Candidates::none();
        candidates.fill(key, ring);
        candidates
    }

    pub fn position(candidates: &Candidates, stored: &KeyHash) -> u8 {
        candidates.position(stored)
    }

    pub fn secrets(ring: &SecretRing) -> impl Iterator<Item = &ServerSecret> {
        ring.secrets()
    }
}

/// Decoders that no public function reaches with any bytes, for the fuzzer alone: no part of the API,
/// and compiled only with `--cfg fuzzing`.
#[cfg(all(fuzzing, feature = "redis"))]
#[doc(hidden)]
pub mod fuzzing {
    pub fn redis_entry(bytes: &[u8]) {
        crate::store::redis::entry::check(bytes);
    }
}
