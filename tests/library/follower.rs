//! The follower: what it tells a store first, and what a cache does when it tells nothing any more.
#![cfg(feature = "cache")]

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::Candidates;
use lexikon_auth::store::{
    CacheOptions, CachedStore, DynKeyStore, KeyLookup, KeyStore, MemoryStore,
};
use lexikon_auth::store::{ChangeFeed, FeedEvent, FeedEventKind, Message, Subscription};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{KeyRecord, StoreError};
use lexikon_auth_tests::{UNTAGGED, candidates, legacy_hash, ready, record};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// A feed without changes, whose beats come back, or panic as they do.
struct Quiet {
    panics: bool,
}

struct Beats {
    sender: UnboundedSender<()>,
    receiver: UnboundedReceiver<()>,
    panic: bool,
}

impl ChangeFeed for Quiet {
    type Subscription = Beats;

    async fn subscribe(&self) -> Result<Beats, StoreError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        Ok(Beats { sender, receiver, panic: self.panics })
    }
}

impl Subscription for Beats {
    async fn receive(&mut self) -> Result<Message, StoreError> {
        self.receiver.recv().await.unwrap();
        assert!(!self.panic, "as a client of a database may");
        Ok(Message::Heartbeat)
    }

    async fn heartbeat(&mut self) -> Result<(), StoreError> {
        self.sender.send(()).unwrap();
        Ok(())
    }
}

/// Where the follower of the tests below runs.
fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Follows, has the `fault` happen, and checks that the cache does not believe its feed for ever.
#[track_caller]
fn assert_not_vouched_for(panics: bool, fault: impl FnOnce(Runtime) -> Option<Runtime>) {
    let keys = lexikon_auth_tests::store(&[record("key-1", legacy_hash(UNTAGGED))]);
    let options = CacheOptions::default().max_age_unfollowed(Duration::ZERO);
    let cached = CachedStore::new(keys.clone(), options);
    let is_revoked = || {
        let found = ready(cached.find(&candidates(UNTAGGED)));
        found.unwrap().unwrap().is_revoked()
    };
    let runtime = runtime();
    let follower = runtime.block_on(async {
        // A store that wraps another passes on all that it is told.
        let follower = Follower::spawn(DynKeyStore::new(cached.clone()), Quiet { panics });
        follower.connected().await;
        follower
    });
    // Beats have been answered by then, more than one of them; or the task has panicked.
    thread::sleep(Duration::from_millis(2500));
    assert!(!is_revoked());
    // Nobody reports it.
    ready(keys.revoke(&"key-1".into(), SystemTime::now(), None)).unwrap();
    let runtime = fault(runtime);
    thread::sleep(Duration::from_millis(3100));
    assert!(is_revoked(), "3 seconds after the latest beat nothing is vouched for");
    let is_alive = runtime.is_some() && !panics;
    assert_eq!(follower.is_connected(), is_alive);
    runtime.into_iter().for_each(Runtime::shutdown_background);
}

#[test]
fn a_cache_whose_follower_has_lost_its_runtime_trusts_nothing_old() {
    assert_not_vouched_for(false, |runtime| {
        runtime.shutdown_background();
        None
    });
}

#[test]
fn a_cache_whose_follower_has_panicked_trusts_nothing_old() {
    assert_not_vouched_for(true, Some);
}

/// As in a process that was stopped and goes on.
#[test]
fn a_cache_whose_follower_does_not_get_to_run_trusts_nothing_old() {
    assert_not_vouched_for(false, |runtime| {
        runtime.spawn(async { thread::sleep(Duration::from_secs(6)) });
        Some(runtime)
    });
}

#[test]
fn a_cache_whose_follower_runs_keeps_what_it_has() {
    let keys = lexikon_auth_tests::store(&[record("key-1", legacy_hash(UNTAGGED))]);
    let options = CacheOptions::default().max_age_unfollowed(Duration::ZERO);
    let cached = CachedStore::new(keys, options);
    let runtime = runtime();
    let follower = runtime.block_on(async {
        let follower = Follower::spawn(cached.clone(), Quiet { panics: false });
        follower.connected().await;
        follower
    });
    for _ in 0..50 {
        ready(cached.find(&candidates(UNTAGGED))).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(cached.loads(), 1, "each beat extends the trust");
    runtime.block_on(follower.shutdown());
}

#[test]
fn the_end_of_a_follower_that_was_replaced_costs_a_cache_a_second_at_most() {
    let keys = lexikon_auth_tests::store(&[record("key-1", legacy_hash(UNTAGGED))]);
    let options = CacheOptions::default().max_age_unfollowed(Duration::ZERO);
    let cached = CachedStore::new(keys, options);
    let runtime = runtime();
    let new = runtime.block_on(async {
        let old = Follower::spawn(cached.clone(), Quiet { panics: false });
        old.connected().await;
        let new = Follower::spawn(cached.clone(), Quiet { panics: false });
        new.connected().await;
        old.shutdown().await;
        new
    });
    let start = std::time::Instant::now();
    loop {
        let loads = cached.loads();
        ready(cached.find(&candidates(UNTAGGED))).unwrap();
        if cached.loads() == loads {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "the word of the newer one stands");
        thread::sleep(Duration::from_millis(50));
    }
    runtime.block_on(new.shutdown());
}

/// A feed that cannot be reached.
struct Dead;

impl ChangeFeed for Dead {
    type Subscription = Beats;

    async fn subscribe(&self) -> Result<Beats, StoreError> {
        Err(StoreError::Unavailable("down".into()))
    }
}

/// Writes down what it is told.
#[derive(Clone, Default)]
struct Told {
    keys: MemoryStore,
    events: Arc<Mutex<Vec<FeedEvent>>>,
}

impl KeyLookup for Told {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.keys.find(candidates).await
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        self.events.lock().unwrap().push(event.clone());
    }
}

#[tokio::test(start_paused = true)]
async fn until_the_feed_is_reached_it_counts_as_lost() {
    let told = Told::default();
    let follower = Follower::spawn(told.clone(), Dead);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*told.events.lock().unwrap(), [FeedEvent::of_database(FeedEventKind::Lost)]);
    follower.shutdown().await;

    let told = Told::default();
    let follower = Follower::spawn(told.clone(), Quiet { panics: false });
    follower.connected().await;
    let first = [FeedEventKind::Lost, FeedEventKind::Connected].map(FeedEvent::of_database);
    assert_eq!(told.events.lock().unwrap()[..2], first);
}
