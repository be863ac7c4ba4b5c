//! A store beneath a cache or a tier: its reads are counted, and can be held up or fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lexikon_auth::crypto::Candidates;
use lexikon_auth::store::{KeyLookup, KeyStore, MemoryStore};
use lexikon_auth::{ApiKey, KeyRecord, StoreError};
use tokio::sync::watch;
use tokio::task::yield_now;

use crate::{candidates, one_secret, record};

/// Reads at once, and answers when it is not closed.
#[derive(Clone, Default)]
pub struct Gated {
    pub keys: MemoryStore,
    pub closed: watch::Sender<bool>,
    pub fails: watch::Sender<bool>,
    pub reads: Arc<AtomicU64>,
}

impl Gated {
    /// Adds a key, and returns what it is looked up by.
    pub async fn issue(&self, id: &str) -> Candidates {
        let key = ApiKey::generate(one_secret().current()).unwrap();
        let candidates = candidates(key.expose_secret());
        self.keys.insert(&record(id, candidates.as_slice()[0])).await.unwrap();
        candidates
    }

    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// Waits until so many reads are under way, or done.
    pub async fn reach(&self, reads: u64) {
        while self.reads() < reads {
            yield_now().await;
        }
    }
}

impl KeyLookup for Gated {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let answer = self.keys.find(candidates).await;
        self.closed.subscribe().wait_for(|closed| !closed).await.unwrap();
        if *self.fails.borrow() {
            return Err(StoreError::Unavailable("switched off".into()));
        }
        answer
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
}
