//! The feed of the changes that are published in Redis, for instances that share nothing else.

use std::fmt;
use std::sync::Arc;

use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSubStream};
use redis::{Client, Msg};

use super::error::unavailable;
use super::options::RedisOptions;
use super::script::Scripts;
use super::server::examine;
use crate::error::StoreError;
use crate::store::change::{
    Change, ChangeFeed, FeedOrigin, HEARTBEAT, Message, Subscription, new_heartbeat,
};

/// The changes that other instances make through their [`RedisStore`](crate::store::RedisStore).
#[derive(Clone)]
pub struct RedisFeed {
    client: Client,
    options: Arc<RedisOptions>,
}

impl RedisFeed {
    pub(super) fn new(client: Client, options: RedisOptions) -> Self {
        Self { client, options: Arc::new(options) }
    }
}

impl fmt::Debug for RedisFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisFeed")
            .field("channel", &self.options.channel())
            .finish_non_exhaustive()
    }
}

/// A connection that is subscribed, and one that publishes.
pub struct RedisSubscription {
    messages: PubSubStream,
    publisher: MultiplexedConnection,
    options: Arc<RedisOptions>,
    scripts: Scripts,
    /// The latest heartbeat that this subscription has sent.
    heartbeat: String,
}

impl ChangeFeed for RedisFeed {
    type Subscription = RedisSubscription;

    fn origin(&self) -> FeedOrigin {
        FeedOrigin::SharedCache
    }

    async fn subscribe(&self) -> Result<RedisSubscription, StoreError> {
        let mut subscribed = self.client.get_async_pubsub().await.map_err(unavailable)?;
        subscribed.subscribe(self.options.channel()).await.map_err(unavailable)?;
        let mut publisher =
            self.client.get_multiplexed_async_connection().await.map_err(unavailable)?;
        prove(&mut publisher, &self.options).await?;
        let scripts = Scripts::new();
        scripts.touch(&mut publisher, &self.options).await.map_err(unavailable)?;
        Ok(RedisSubscription {
            messages: subscribed.into_on_message(),
            publisher,
            options: self.options.clone(),
            scripts,
            heartbeat: String::new(),
        })
    }
}

impl Subscription for RedisSubscription {
    async fn receive(&mut self) -> Result<Message, StoreError> {
        let lost = || StoreError::Unavailable("the subscription to Redis was lost".into());
        let message: Msg = self.messages.next().await.ok_or_else(lost)?;
        Ok(match message.get_payload_bytes() {
            heartbeat if heartbeat == self.heartbeat.as_bytes() => Message::Heartbeat,
            heartbeat if heartbeat.starts_with(HEARTBEAT.as_bytes()) => Message::Other,
            change => match str::from_utf8(change) {
                Ok(change) => Message::Changed(Change::from_text(change)),
                Err(_) => Message::Changed(Change::All),
            },
        })
    }

    async fn heartbeat(&mut self) -> Result<(), StoreError> {
        prove(&mut self.publisher, &self.options).await?;
        self.heartbeat = new_heartbeat()?;
        let heartbeat = self.scripts.publish(&mut self.publisher, &self.options, &self.heartbeat);
        heartbeat.await.map_err(unavailable)
    }
}

/// Proves that changes are published here. Stores do not publish on a server that they cannot rely on. And a
/// process that changes many rows may be killed between a commit and its invalidation: its marker stays.
async fn prove(
    connection: &mut MultiplexedConnection,
    options: &RedisOptions,
) -> Result<(), StoreError> {
    examine(connection).await.map_err(unavailable)?;
    let marker =
        redis::cmd("EXISTS").arg(options.bulk_change_marker()).query_async(connection).await;
    match marker.map_err(unavailable)? {
        false => Ok(()),
        true => {
            let problem = "many keys are being changed, or that was interrupted: run it again";
            Err(StoreError::Unavailable(problem.into()))
        }
    }
}
