//! Loads from the store beneath: one for each question, however many callers wait for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::{FutureExt, Shared, WeakShared, ready};

use super::CachedStore;
use super::entries::Copies;
use super::log::Position;
use crate::crypto::hash::{Candidates, KeyHash};
use crate::error::StoreError;
use crate::record::KeyRecord;
use crate::store::{Change, KeyLookup};
use crate::util::lock::lock;

pub(super) type Answer = Result<Option<Arc<KeyRecord>>, StoreError>;
type SharedAnswer = Result<Reading, Arc<StoreError>>;
type Load = Shared<Pin<Box<dyn Future<Output = SharedAnswer> + Send>>>;

/// What a load found.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) record: Option<Arc<KeyRecord>>,
    /// Whether no row that is added later can be preferred: the record has the first candidate.
    pub(super) is_final: bool,
}

impl Reading {
    /// Whether the answer may be another one after a change.
    pub(super) fn depends_on(&self, change: &Change) -> bool {
        let record = self.record.as_ref();
        match change {
            Change::Key(id) => record.is_some_and(|record| record.id == *id),
            Change::Owner(owner) => record.is_some_and(|record| record.owner == *owner),
            Change::Added => !self.is_final,
            Change::All => true,
        }
    }
}

/// A load that somebody waits for.
pub(super) struct Flight {
    number: u64,
    started_at: Position,
    /// Weak, so that a load that nobody waits for any more is dropped, and its connection with it.
    load: WeakShared<Pin<Box<dyn Future<Output = SharedAnswer> + Send>>>,
}

/// Takes a flight off the list when its load has ended, however it did.
struct Landing {
    cache: Arc<Copies>,
    question: KeyHash,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = lock(&self.cache.flights);
        if flights.get(&self.question).is_some_and(|flight| flight.number == self.number) {
            flights.remove(&self.question);
        }
    }
}

impl<S: KeyLookup + 'static> CachedStore<S> {
    pub(super) async fn load(&self, question: KeyHash, candidates: &Candidates) -> Answer {
        let asked_at = self.cache.ledger().changes.position();
        loop {
            let (started_at, load) = self.join_or_start(question, candidates);
            let answer = load.await;
            // The load may have begun long before this call, and missed a change that was complete by
            // then. Another one that begins now does not.
            let reading = answer.map_err(|error| StoreError::Unavailable(error.into()))?;
            if !self.cache.ledger().changes.concerns(started_at, asked_at, &reading) {
                return Ok(reading.record);
            }
        }
    }

    /// Joins the load for this question, or starts one. It runs as long as somebody waits for it.
    fn join_or_start(&self, question: KeyHash, candidates: &Candidates) -> (Position, Load) {
        let mut flights = lock(&self.cache.flights);
        if let Some(flight) = flights.get(&question)
            && let Some(load) = flight.load.upgrade()
        {
            return (flight.started_at, load);
        }
        let started_at = self.cache.ledger().changes.position();
        // A load that was under way when the cache was asked may have ended since.
        if let Some(record) = self.cache.answer(&question) {
            return (started_at, ready(Ok(Reading { record, is_final: true })).boxed().shared());
        }
        let number = self.cache.counters.loads.add(1);
        let landing = Landing { cache: self.cache.clone(), question, number };
        let (store, candidates) = (self.store.clone(), candidates.clone());
        let load = async move {
            let read_at = landing.cache.now();
            let record = store.find(&candidates).await.map_err(Arc::new)?;
            let is_final = record.as_ref().is_some_and(|found| found.hash == candidates.current());
            let reading = Reading { record, is_final };
            landing.cache.keep(question, started_at, read_at, &reading);
            Ok(reading)
        };
        let load = (Box::pin(load) as Pin<Box<dyn Future<Output = SharedAnswer> + Send>>).shared();
        let weak = load.downgrade().expect("it has not been polled");
        flights.insert(question, Flight { number, started_at, load: weak });
        (started_at, load)
    }
}
