//! The in-process cache: what it keeps, what it forgets, and that a slow read brings nothing back.
#![cfg(feature = "cache")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lexikon_auth::store::{CacheOptions, CachedStore, Change, KeyLookup, KeyStore};
use lexikon_auth::store::{ChangeFeed, HashChange, Message, Subscription};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{KeyRecord, Refusal, StoreError, VerifiedKey, Verifier, VerifyError};
use lexikon_auth_tests::gated::Gated;
use lexikon_auth_tests::{SECRETS, candidates, hmac_hash, legacy_hash, one_secret, record};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{advance, sleep};

/// The nth key.
fn key(number: u32) -> String {
    format!("lxk_{number:043}")
}

fn row(number: u32) -> KeyRecord {
    record(&format!("key-{number}"), hmac_hash(SECRETS[0], &key(number)))
}

/// A store with these rows.
fn gated(rows: &[KeyRecord]) -> Gated {
    Gated { keys: lexikon_auth_tests::store(rows), ..Gated::default() }
}

/// The same, and a cache over it.
fn cached(rows: &[KeyRecord]) -> (Gated, CachedStore<Gated>) {
    let store = gated(rows);
    (store.clone(), CachedStore::new(store, CacheOptions::default()))
}

fn verifier(store: &CachedStore<Gated>) -> Verifier<CachedStore<Gated>> {
    Verifier::new(store.clone(), one_secret())
}

type Verification = JoinHandle<Result<VerifiedKey, VerifyError>>;

/// Begins to verify the first key.
fn begin(cached: &CachedStore<Gated>) -> Verification {
    let verifier = verifier(cached);
    tokio::spawn(async move { verifier.verify(&key(1)).await })
}

/// A closed store, a cache over it, and a verification that waits there with its row in hand.
async fn slow_verification(rows: &[KeyRecord]) -> (Gated, CachedStore<Gated>, Verification) {
    let (store, cached) = cached(rows);
    store.closed.send_replace(true);
    let slow = begin(&cached);
    store.reach(1).await;
    (store, cached, slow)
}

#[track_caller]
fn assert_revoked<T: std::fmt::Debug>(answer: Result<T, VerifyError>) {
    assert!(matches!(answer, Err(VerifyError::Refused(Refusal::Revoked(_)))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_read_does_not_bring_a_revoked_key_back() {
    for change in [Change::Key("key-1".into()), Change::Owner("user-1".into()), Change::All] {
        let (store, cached, slow) = slow_verification(&[row(1)]).await;

        store.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
        cached.invalidate(change);
        // One that begins after the revocation may join the slow read, but not believe it.
        let later = begin(&cached);
        tokio::task::yield_now().await;
        store.closed.send_replace(false);

        _ = slow.await.unwrap().expect("it began before the revocation");
        assert_revoked(later.await.unwrap());
        assert_revoked(verifier(&cached).verify(&key(1)).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_miss_does_not_hide_a_new_key() {
    let (store, cached, slow) = slow_verification(&[]).await;
    store.keys.insert(&row(1)).await.unwrap();
    cached.invalidate(Change::Added);
    store.closed.send_replace(false);
    assert!(slow.await.unwrap().is_err(), "it began before the key was added");
    _ = verifier(&cached).verify(&key(1)).await.expect("the key is there");
}

#[tokio::test(start_paused = true)]
async fn another_key_may_change_while_one_is_loaded() {
    let (store, cached, slow) = slow_verification(&[row(1)]).await;
    for number in 2..1000 {
        cached.invalidate(Change::Key((&*format!("key-{number}")).into()));
    }
    store.closed.send_replace(false);
    _ = slow.await.unwrap().unwrap();
    _ = verifier(&cached).verify(&key(1)).await.unwrap();
    assert_eq!(store.reads(), 1, "the load was kept");
}

#[tokio::test(start_paused = true)]
async fn more_changes_than_are_remembered_keep_a_load_out() {
    let (store, cached, slow) = slow_verification(&[row(1)]).await;
    store.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
    cached.invalidate(Change::Key("key-1".into()));
    for number in 0..100_000 {
        cached.invalidate(Change::Key((&*format!("other-{number}")).into()));
    }
    store.closed.send_replace(false);
    _ = slow.await.unwrap().expect("it began before the revocation");
    assert_revoked(verifier(&cached).verify(&key(1)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_one_load() {
    let (store, cached) = cached(&[row(1)]);
    store.closed.send_replace(true);
    let verifications: Vec<_> = (0..64).map(|_| begin(&cached)).collect();
    store.reach(1).await;
    store.closed.send_replace(false);
    for verification in verifications {
        _ = verification.await.unwrap().unwrap();
    }
    assert_eq!(store.reads(), 1);
}

#[tokio::test]
async fn a_caller_that_gives_up_does_not_disturb_the_others() {
    let (store, cached, first) = slow_verification(&[row(1)]).await;
    let second = begin(&cached);
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    store.closed.send_replace(false);
    _ = second.await.unwrap().expect("the load went on");
    assert_eq!(store.reads(), 1);
}

#[tokio::test]
async fn a_load_that_everybody_gave_up_is_dropped_and_begun_again() {
    let (store, cached, task) = slow_verification(&[row(1)]).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(store.closed.receiver_count(), 0, "nothing of it is left");
    store.closed.send_replace(false);
    _ = verifier(&cached).verify(&key(1)).await.unwrap();
    assert_eq!(store.reads(), 2);
}

#[tokio::test]
async fn errors_are_shared_and_not_kept() {
    let (store, cached) = cached(&[row(1)]);
    store.fails.send_replace(true);
    let error = verifier(&cached).verify(&key(1)).await.unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(_)), "{error:?}");
    assert!(lexikon_auth_tests::printed(&error).contains("switched off"), "{error:?}");
    store.fails.send_replace(false);
    _ = verifier(&cached).verify(&key(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_follower_answers_are_used_for_five_seconds() {
    let (store, cached) = cached(&[row(1)]);
    for number in [1, 2] {
        let before = store.reads();
        let _ = verifier(&cached).verify(&key(number)).await;
        advance(Duration::from_millis(4990)).await;
        let _ = verifier(&cached).verify(&key(number)).await;
        assert_eq!(store.reads(), before + 1, "kept");
        advance(Duration::from_millis(10)).await;
        let _ = verifier(&cached).verify(&key(number)).await;
        assert_eq!(store.reads(), before + 2, "read again");
    }
}

#[tokio::test(start_paused = true)]
async fn at_its_expiry_a_key_is_looked_up_again() {
    let mut row = row(1);
    row.expires_at = Some(SystemTime::now() + Duration::from_secs(3));
    let (store, cached) = cached(&[row]);
    for (wait, reads) in [(0, 1), (2, 1), (2, 2)] {
        advance(Duration::from_secs(wait)).await;
        cached.find(&candidates(&key(1))).await.unwrap();
        assert_eq!(store.reads(), reads);
    }
}

/// A feed in the hands of a test.
struct Channel {
    messages: Arc<Mutex<mpsc::UnboundedReceiver<Message>>>,
    alive: watch::Receiver<bool>,
    beats: mpsc::UnboundedSender<Message>,
}

struct Ears {
    channel: Channel,
}

impl ChangeFeed for Channel {
    type Subscription = Ears;

    async fn subscribe(&self) -> Result<Ears, StoreError> {
        self.alive.clone().wait_for(|alive| *alive).await.unwrap();
        let (messages, alive) = (self.messages.clone(), self.alive.clone());
        Ok(Ears { channel: Self { messages, alive, beats: self.beats.clone() } })
    }
}

impl Subscription for Ears {
    async fn receive(&mut self) -> Result<Message, StoreError> {
        Ok(self.channel.messages.lock().await.recv().await.expect("the test holds the sender"))
    }

    async fn heartbeat(&mut self) -> Result<(), StoreError> {
        if *self.channel.alive.borrow() {
            self.channel.beats.send(Message::Heartbeat).unwrap();
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_keeps_answers_long_and_notices_silence() {
    let (store, cached) = cached(&[row(1), row(2)]);
    let (send, messages) = mpsc::unbounded_channel();
    let (alive, is_alive) = watch::channel(true);
    let messages = Arc::new(Mutex::new(messages));
    let feed = Channel { messages, alive: is_alive, beats: send.clone() };
    let read = async |number| {
        let before = store.reads();
        let _ = verifier(&cached).verify(&key(number)).await;
        store.reads() - before
    };

    assert_eq!(read(1).await, 1);
    advance(Duration::from_millis(1)).await;
    let follower = Follower::spawn(cached.clone(), feed);
    follower.connected().await;
    assert_eq!(read(1).await, 1, "nobody vouches for what was read before");
    sleep(Duration::from_secs(200)).await;
    assert!(follower.is_connected(), "beats come back");
    assert_eq!(read(1).await, 0, "kept for five minutes");
    sleep(Duration::from_secs(101)).await;
    assert_eq!(read(1).await, 1, "and no longer");

    assert_eq!(read(2).await, 1);
    store.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
    send.send(Message::Changed(Change::Key("key-1".into()))).unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_revoked(verifier(&cached).verify(&key(1)).await);
    assert_eq!(read(2).await, 0, "only what the change concerns is forgotten");

    alive.send_replace(false);
    let silence = tokio::time::Instant::now();
    follower.lost().await;
    assert!(silence.elapsed() <= Duration::from_secs(3), "{:?}", silence.elapsed());
    assert_eq!(read(1).await, 0, "young enough");
    assert_eq!(read(2).await, 0, "young enough");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(read(2).await, 1, "five seconds are the bound now");

    advance(Duration::from_millis(1)).await;
    alive.send_replace(true);
    follower.connected().await;
    assert_eq!(read(2).await, 1, "read while nobody listened");
    assert_eq!(read(2).await, 0);

    follower.shutdown().await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(read(2).await, 1, "without a follower the short age counts");
}

#[tokio::test]
async fn unknown_keys_have_a_budget_of_their_own() {
    let store = gated(&[row(0)]);
    let options = CacheOptions::default().max_unknown_bytes(64 << 10);
    let cached = CachedStore::new(store.clone(), options);
    cached.find(&candidates(&key(0))).await.unwrap();
    for garbage in 1..5000 {
        assert_eq!(cached.find(&candidates(&key(garbage))).await.unwrap(), None);
    }
    let before = store.reads();
    assert_eq!(cached.find(&candidates(&key(4999))).await.unwrap(), None);
    cached.find(&candidates(&key(0))).await.unwrap();
    assert_eq!(store.reads(), before, "the latest garbage and the good key are both kept");
    for garbage in 1..5000 {
        cached.find(&candidates(&key(garbage))).await.unwrap();
    }
    assert!(store.reads() > before + 4000, "not all garbage is kept");
}

#[tokio::test]
async fn a_change_takes_what_it_concerns_and_no_more() {
    let mut other = row(2);
    other.owner = "user-2".into();
    let (store, cached) = cached(&[row(1), other, row(3)]);
    // Three keys, and one that is unknown. Which of them are read again after a change?
    let read_again = async || {
        let mut numbers = Vec::new();
        for number in 1..=4 {
            let before = store.reads();
            cached.find(&candidates(&key(number))).await.unwrap();
            if store.reads() > before {
                numbers.push(number);
            }
        }
        numbers
    };
    assert_eq!(read_again().await, [1, 2, 3, 4]);
    assert_eq!(read_again().await, [0; 0]);
    let changes = [
        (Change::Key("key-1".into()), vec![1]),
        (Change::Owner("user-1".into()), vec![1, 3]),
        (Change::Owner("user-2".into()), vec![2]),
        (Change::Added, vec![4]),
        (Change::All, vec![1, 2, 3, 4]),
    ];
    for (change, expected) in changes {
        cached.invalidate(change.clone());
        assert_eq!(read_again().await, expected, "{change:?}");
    }
}

#[tokio::test]
async fn a_legacy_key_is_looked_up_again_when_a_key_is_added() {
    let (store, cached) = cached(&[record("old", legacy_hash(&key(1))), row(2)]);
    let found = cached.find(&candidates(&key(1))).await.unwrap().unwrap();
    assert_eq!(found.id, "old".into());
    cached.find(&candidates(&key(2))).await.unwrap();
    // A row that is preferred to the one that is kept.
    store.keys.insert(&row(1)).await.unwrap();
    cached.invalidate(Change::Added);
    let before = store.reads();
    let found = cached.find(&candidates(&key(1))).await.unwrap().unwrap();
    assert_eq!(found.id, "key-1".into());
    cached.find(&candidates(&key(2))).await.unwrap();
    assert_eq!(store.reads(), before + 1, "a key under its first candidate is kept");
}

#[tokio::test]
async fn the_number_of_entries_is_bounded_too() {
    let store = gated(&(0..1000).map(row).collect::<Vec<_>>());
    let options = CacheOptions::default().max_entries(100);
    let cached = CachedStore::new(store.clone(), options);
    for number in (0..1000).chain((0..1000).rev()) {
        cached.find(&candidates(&key(number))).await.unwrap();
    }
    assert!((1900..1990).contains(&store.reads()), "about 100 of them are kept: {}", store.reads());
}

#[tokio::test]
async fn a_hash_that_a_row_is_given_is_no_longer_unknown() {
    let keys = lexikon_auth_tests::store(&[row(1)]);
    let cached = CachedStore::new(keys, CacheOptions::default());
    assert_eq!(cached.find(&candidates(&key(2))).await.unwrap(), None);
    let (id, expected, replacement) = ("key-1".into(), row(1).hash, row(2).hash);
    let change = HashChange { id, expected, replacement };
    assert!(cached.replace_hash(&change).await.unwrap());
    assert!(cached.find(&candidates(&key(2))).await.unwrap().is_some());
}

#[tokio::test]
async fn long_ids_count() {
    let bytes = async |id: &str| {
        let cached = CachedStore::new(
            lexikon_auth_tests::store(&[record(id, row(1).hash)]),
            CacheOptions::default(),
        );
        cached.find(&candidates(&key(1))).await.unwrap();
        cached.bytes()
    };
    assert_eq!(bytes(&"x".repeat(1024)).await, bytes("x").await + 1023);
}
