//! A manager and a verifier on one store in memory, and what a manager is asked and answers.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lexikon_auth::clock::ManualClock;
use lexikon_auth::store::{MemoryStore, Page};
use lexikon_auth::{
    IssuedKey, KeyId, KeyManager, KeyRecord, ManageError, NewKey, Refusal, Rotation, StoreError,
    Verifier,
};
use lexikon_auth_tests::{clock_at_noon, one_secret, ready};

pub const SECOND: Duration = Duration::from_secs(1);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const NANOSECOND: Duration = Duration::from_nanos(1);
pub const MICROSECOND: Duration = Duration::from_micros(1);

/// The last instant of the year 9999 that a column can hold.
pub fn end_of_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(253_402_300_799_999_999)
}

/// The earliest and latest times that the type can hold, or close to it.
pub fn extremes() -> [SystemTime; 4] {
    let most = Duration::from_secs(i64::MAX as u64);
    let epoch = SystemTime::UNIX_EPOCH;
    [epoch - most, epoch - NANOSECOND, end_of_time() + MICROSECOND, epoch + most]
}

/// A manager and a verifier on one store, at noon.
pub struct Desk {
    pub store: MemoryStore,
    pub clock: Arc<ManualClock>,
    pub manager: KeyManager<MemoryStore>,
    pub verifier: Verifier<MemoryStore>,
}

impl Desk {
    pub fn new() -> Self {
        let (store, clock, ring) = (MemoryStore::new(), clock_at_noon(), one_secret());
        let manager = KeyManager::new(store.clone(), &ring).with_clock(clock.clone());
        let verifier = Verifier::new(store.clone(), ring).with_clock(clock.clone());
        Self { store, clock, manager, verifier }
    }

    pub fn issue(&self, new: NewKey) -> IssuedKey {
        ready(self.manager.issue(new)).expect("a good request")
    }

    pub fn rotate(&self, id: &KeyId, overlap: Duration) -> IssuedKey {
        ready(self.manager.rotate(id, Rotation::default().overlap(overlap)))
            .expect("a good request")
    }

    pub fn stored(&self, id: &KeyId) -> Arc<KeyRecord> {
        ready(self.manager.find(id)).unwrap().expect("a record")
    }

    /// The ids of an owner's keys, as they are listed.
    pub fn listed(&self, owner: &str, page: &Page) -> Vec<KeyId> {
        let records = ready(self.manager.list(&owner.into(), page)).unwrap();
        records.iter().map(|record| record.id.clone()).collect()
    }

    /// `None` when the key is accepted.
    pub fn refusal(&self, key: &IssuedKey) -> Option<Refusal> {
        let answer = ready(self.verifier.verify(key.key.expose_secret()));
        answer.err().map(|error| error.refusal().expect("a refusal").clone())
    }
}

pub fn new_key() -> NewKey {
    NewKey::new("user-1", "deploy").scopes("read,write")
}

/// The field that a request was refused for.
pub fn invalid_field<T: Debug>(answer: Result<T, ManageError>) -> &'static str {
    match answer.unwrap_err() {
        ManageError::Invalid { field, .. } => field,
        other => panic!("not invalid: {other:?}"),
    }
}

pub fn store_error<T: Debug>(answer: Result<T, ManageError>) -> StoreError {
    match answer.unwrap_err() {
        ManageError::Store(error) => error,
        other => panic!("not from the store: {other:?}"),
    }
}
