//! What the tests of the library, of the command and of the reference service share: keys and records,
//! servers of their own, stores that fail when they are told to.

pub mod data;
pub mod gated;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod proxy;
#[cfg(feature = "redis")]
pub mod redis_server;

use std::error::Error;
use std::fmt::Debug;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use lexikon_auth::clock::{Clock, ManualClock};
use lexikon_auth::crypto::{Candidates, HashFormat, KeyHash, PresentedKey};
use lexikon_auth::store::{KeyLookup, KeyStore, MemoryStore};
use lexikon_auth::{
    KeyId, KeyRecord, OwnerId, Refusal, SecretRing, ServerSecret, StoreError, Verifier,
};
use sha2::{Digest, Sha256};

/// Four secrets that fill a ring, and one that is in none.
pub const SECRETS: [&str; 5] = [
    "122b598615dcbe810beacd557705a54b5edbbbe5ce7f8fbeebef7a58f99d96fb",
    "2a0631187348761d11bb570232010b84550c17410b39af09e18c4f72a30e4cfa",
    "4a88d041814553e7177e2827b8d8041cd532733057360ee9c66dd01d53fb03b9",
    "b90d33960e1dfe62090b927f63bce4bc38332ac630f1f9be4b8ffdf9c75f8d23",
    "2b54d22149c7ae5934d3a7855e7cb4ee0c5c1f8c8dfba276cc0aee530c6c63c6",
];

/// A key as the lexikon service issued them, without a tag.
pub const UNTAGGED: &str = "lxk_edBFF8ucL0GHS745Bd_44XqHMsFz86GM9hgsvj67plc";

/// A key tagged under `SECRETS[0]`, computed by the Python in tests/library/secrets.rs.
pub const TAGGED: &str = "lxk_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgiX8OIpAP";

/// [`TAGGED`] with another tag.
pub const FORGED: &str = "lxk_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgiX8OIpAQ";

pub fn secret(text: &str) -> ServerSecret {
    ServerSecret::new(&text.into()).expect("a good secret")
}

/// A ring of these secrets, current first.
pub fn ring(secrets: &[&str]) -> SecretRing {
    let (current, retired) = secrets.split_first().expect("a current secret");
    retired.iter().fold(SecretRing::new(secret(current)), |ring, retired| {
        ring.with_retired(secret(retired)).expect("room in the ring")
    })
}

/// A ring of the first secret alone.
pub fn one_secret() -> SecretRing {
    ring(&SECRETS[..1])
}

/// What a key is looked up by under the first secret.
pub fn candidates(key: &str) -> Candidates {
    Candidates::compute(&PresentedKey::parse(key).unwrap(), &one_secret()).unwrap()
}

/// The HMAC-SHA-256 that a key is stored under, by the `hmac` crate.
pub fn hmac_hash(secret: &str, key: &str) -> KeyHash {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length");
    mac.update(key.as_bytes());
    KeyHash::from_bytes(mac.finalize().into_bytes().into())
}

/// The plain SHA-256 that a key is stored under.
pub fn legacy_hash(key: &str) -> KeyHash {
    KeyHash::from_bytes(Sha256::digest(key).into())
}

/// A moment in the year 2027, from which the tests count.
pub fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub fn clock_at_noon() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(noon()))
}

/// A clock that goes wherever it is set, also back.
pub struct WildClock(pub Mutex<SystemTime>);

impl Clock for WildClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// A record in force of `user-1`, with the scope `read`.
pub fn record(id: &str, hash: KeyHash) -> KeyRecord {
    let mut record = KeyRecord::new(KeyId::from(id), OwnerId::from("user-1"), hash);
    record.scopes = "read".into();
    record
}

/// A record of [`UNTAGGED`], stored in one of the formats.
pub fn untagged_record(format: HashFormat) -> KeyRecord {
    match format {
        HashFormat::HmacSha256 => record("modern", hmac_hash(SECRETS[0], UNTAGGED)),
        HashFormat::Sha256 => record("legacy", legacy_hash(UNTAGGED)),
        other => panic!("no record is made in {other:?}"),
    }
}

/// A memory store that holds these records.
pub fn store(records: &[KeyRecord]) -> MemoryStore {
    let store = MemoryStore::new();
    records.iter().for_each(|record| ready(store.insert(record)).expect("a new record"));
    store
}

/// A verifier under the first secret at noon.
pub fn verifier<S: KeyLookup>(store: S) -> Verifier<S> {
    Verifier::new(store, one_secret()).with_clock(clock_at_noon())
}

/// Why a key is refused.
pub fn refusal<S: KeyLookup>(verifier: &Verifier<S>, key: &str) -> Refusal {
    let error = ready(verifier.verify(key)).expect_err("a refusal");
    error.refusal().unwrap_or_else(|| panic!("unavailable: {error:?}")).clone()
}

/// Returns the same row whatever it is asked for, as a broken index would.
pub struct WrongRow(pub Arc<KeyRecord>);

impl KeyLookup for WrongRow {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Ok(Some(self.0.clone()))
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
}

/// The answer of a future that never waits, as with the memory store.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the future waits"),
    }
}

/// A log that tests can read.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).expect("a UTF-8 log")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Both forms of a value's `Debug`.
pub fn debugged(value: &dyn Debug) -> String {
    format!("{value:?}\n{value:#?}\n")
}

/// All that an error prints: `Display` and `Debug` of it and of its sources.
pub fn printed(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |&error| error.source())
        .map(|error| format!("{error}\n{error:#}\n{}", debugged(&error)))
        .collect()
}

/// Asserts that not even a part of `secret` stands in `text`.
#[track_caller]
pub fn assert_reveals_nothing(text: &str, secret: &str) {
    const TELLING: usize = 12;
    for part in secret.as_bytes().windows(TELLING) {
        // A part that cuts a character in two; those beside it do not.
        let Ok(part) = str::from_utf8(part) else { continue };
        assert!(!text.contains(part), "a part of the secret is printed: {text}");
    }
}

/// The examples of README.md and of the pages in docs, compiled as tests.
#[cfg(all(
    doctest,
    feature = "sqlite",
    feature = "postgres",
    feature = "cache",
    feature = "redis",
    feature = "axum",
    feature = "metrics"
))]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../docs/caching.md")]
#[doc = include_str!("../../docs/migration.md")]
#[doc = include_str!("../../docs/telemetry.md")]
struct Pages;
