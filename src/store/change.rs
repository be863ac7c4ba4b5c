//! Changes to keys, and the feeds that report those made elsewhere.

use std::future::Future;
use std::time::Instant;

use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};

/// What changed, as far as caches of records are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key with this id was changed or removed.
    Key(KeyId),
    /// This owner was enabled, disabled, added or removed.
    Owner(OwnerId),
    /// A key was added, or an existing one got another hash: what was unknown may be known now.
    Added,
    /// Anything.
    All,
}

impl Change {
    /// Returns the change as text, for channels.
    #[cfg(feature = "redis")]
    pub(crate) fn to_text(&self) -> String {
        match self {
            Self::Key(id) => format!("key:{id}"),
            Self::Owner(owner) => format!("owner:{owner}"),
            Self::Added => "added".to_owned(),
            Self::All => "all".to_owned(),
        }
    }

    /// Reads a text from a channel. One that is not understood may mean anything.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(crate) fn from_text(text: &str) -> Self {
        match text.split_once(':') {
            Some(("key", id)) => Self::Key(id.into()),
            Some(("owner", owner)) => Self::Owner(owner.into()),
            None if text == "added" => Self::Added,
            _ => Self::All,
        }
    }
}

/// An event of a feed, as a follower reports it to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeedEvent {
    /// Whose changes the feed reports.
    pub origin: FeedOrigin,
    /// What happened.
    pub kind: FeedEventKind,
}

impl FeedEvent {
    /// An event of a feed by the database.
    pub fn of_database(kind: FeedEventKind) -> Self {
        Self { origin: FeedOrigin::Database, kind }
    }

    /// An event of a feed by a shared cache.
    pub fn of_shared_cache(kind: FeedEventKind) -> Self {
        Self { origin: FeedOrigin::SharedCache, kind }
    }
}

/// Whose changes a feed reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedOrigin {
    /// Those of the database: every cache over it has to be invalidated.
    Database,
    /// Those that were published in a cache that instances share: it is up to date already, and the
    /// caches above it have to be invalidated.
    SharedCache,
}

/// What happened to a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedEventKind {
    /// From now on every change is reported, for as long as each [`Heartbeat`](Self::Heartbeat) is
    /// followed by another in time.
    Connected,
    /// A change.
    Changed(Change),
    /// The feed works: it has reported every change since `since`. From `until` on it counts as lost
    /// unless another heartbeat has come by then: whoever would report the loss may be gone, or kept
    /// from running.
    Heartbeat {
        /// When the feed was connected.
        since: Instant,
        /// When the feed counts as lost without another heartbeat.
        until: Instant,
    },
    /// Changes may have gone unreported since the last event, and may from now on.
    Lost,
}

/// Where changes are reported that others make: other instances, other programs.
pub trait ChangeFeed: Send + Sync + 'static {
    /// A live connection to the feed.
    type Subscription: Subscription;

    /// Whose changes are reported: those of the database, unless this says otherwise.
    fn origin(&self) -> FeedOrigin {
        FeedOrigin::Database
    }

    /// Connects. Every change that is committed after this returned is reported.
    ///
    /// # Errors
    /// [`StoreError`] when the feed cannot be reached. The follower tries again.
    fn subscribe(&self) -> impl Future<Output = Result<Self::Subscription, StoreError>> + Send;
}

/// A live connection to a [`ChangeFeed`].
pub trait Subscription: Send {
    /// Waits for the next message, in the order in which changes were committed. The future may be
    /// dropped at any time without losing a message.
    ///
    /// # Errors
    /// [`StoreError`] when the connection is lost.
    fn receive(&mut self) -> impl Future<Output = Result<Message, StoreError>> + Send;

    /// Proves that changes are being reported, and have been since the last heartbeat, and sends one
    /// through the feed to this very subscription, where it arrives as [`Message::Heartbeat`] after every
    /// change that was committed before.
    ///
    /// # Errors
    /// [`StoreError`] when the connection is lost, or a change may have gone unreported.
    fn heartbeat(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What arrives through a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A change.
    Changed(Change),
    /// The latest [`heartbeat`](Subscription::heartbeat) of this very subscription.
    Heartbeat,
    /// Nothing of interest here, such as the heartbeat of another instance.
    Other,
}

/// Returns a text for the next heartbeat of a subscription. Each is new and cannot be guessed: somebody
/// who listens too and repeats an old one would otherwise hide that the feed lags behind.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) fn new_heartbeat() -> Result<String, StoreError> {
    let name = KeyId::random().map_err(|error| StoreError::Unavailable(error.into()))?;
    Ok(format!("{HEARTBEAT}{name}"))
}

/// What the heartbeats of all subscriptions begin with on a channel.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) const HEARTBEAT: &str = "heartbeat:";
