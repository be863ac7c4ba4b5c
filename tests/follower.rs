//! The follower: what it tells a store first.
#![cfg(feature = "tokio")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lexikon_auth::store::{ChangeFeed, FeedEvent, Message, Subscription};
use lexikon_auth::{Candidates, Follower, KeyLookup, KeyRecord, MemoryStore, StoreError};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// A feed without changes, whose beats come back.
struct Quiet;

struct Beats {
    sender: UnboundedSender<()>,
    receiver: UnboundedReceiver<()>,
}

impl ChangeFeed for Quiet {
    type Subscription = Beats;

    async fn subscribe(&self) -> Result<Beats, StoreError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        Ok(Beats { sender, receiver })
    }
}

impl Subscription for Beats {
    async fn receive(&mut self) -> Result<Message, StoreError> {
        self.receiver.recv().await.unwrap();
        Ok(Message::Beat)
    }

    async fn beat(&mut self) -> Result<(), StoreError> {
        self.sender.send(()).unwrap();
        Ok(())
    }
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

    async fn observe(&self, event: &FeedEvent) {
        self.events.lock().unwrap().push(event.clone());
    }
}

#[tokio::test(start_paused = true)]
async fn until_the_feed_is_reached_it_counts_as_lost() {
    let told = Told::default();
    let follower = Follower::spawn(told.clone(), Dead);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*told.events.lock().unwrap(), [FeedEvent::Lost]);
    follower.shutdown().await;

    let told = Told::default();
    let follower = Follower::spawn(told.clone(), Quiet);
    follower.connected().await;
    assert_eq!(told.events.lock().unwrap()[..2], [FeedEvent::Lost, FeedEvent::Connected]);
}
