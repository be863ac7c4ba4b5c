//! The feed of changes: what triggers report, by LISTEN and NOTIFY.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};

use super::connections::with_time_limit;
use super::error::store_error;
use super::schema::{CHANNEL, Triggers};
use crate::error::StoreError;
use crate::store::change::{HEARTBEAT, new_heartbeat};
use crate::store::{Change, ChangeFeed, Message, Subscription};

/// The changes of keys and owners in a PostgreSQL database, as they are committed.
///
/// Each heartbeat of the feed proves that the triggers are in place and have been since the one before:
/// a feed whose triggers were disabled or dropped counts as lost. Under logical replication they fire as
/// well, in the worker that applies changes, and with the rights of its role.
///
/// A connection pooler that shares connections between transactions does not pass notifications on;
/// the follower notices, because its own do not come back.
#[derive(Clone)]
pub struct PostgresFeed {
    options: Arc<PgConnectOptions>,
    time_limit: Duration,
}

impl PostgresFeed {
    pub(super) fn new(options: Arc<PgConnectOptions>, time_limit: Duration) -> Self {
        Self { options, time_limit }
    }
}

impl fmt::Debug for PostgresFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options hold the password, and print it.
        let mut debug = f.debug_struct("PostgresFeed");
        debug.field("host", &self.options.get_host());
        debug.field("database", &self.options.get_database()).finish_non_exhaustive()
    }
}

/// A connection that listens.
pub struct PostgresSubscription {
    listener: PgListener,
    /// As they were when it began.
    triggers: Triggers,
    /// The latest heartbeat that this connection has sent.
    heartbeat: String,
}

impl ChangeFeed for PostgresFeed {
    type Subscription = PostgresSubscription;

    async fn subscribe(&self) -> Result<PostgresSubscription, StoreError> {
        with_time_limit(self.time_limit, async {
            // A new pool each time: what is left of a connection that was lost goes with its pool.
            let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(self.time_limit);
            let pool = pool.connect_lazy_with((*self.options).clone());
            let mut listener = PgListener::connect_with(&pool).await.map_err(store_error)?;
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await.map_err(store_error)?;
            let triggers = Triggers::prove(&mut listener).await?;
            Ok(PostgresSubscription { listener, triggers, heartbeat: String::new() })
        })
        .await
    }
}

impl Subscription for PostgresSubscription {
    async fn receive(&mut self) -> Result<Message, StoreError> {
        // `None` says that the connection was lost. The listener would open another and go on as if
        // nothing had been missed.
        let lost = || StoreError::Unavailable("the connection that listens was lost".into());
        let notification = self.listener.try_recv().await.map_err(store_error)?.ok_or_else(lost)?;
        Ok(match notification.payload() {
            heartbeat if heartbeat == self.heartbeat => Message::Heartbeat,
            heartbeat if heartbeat.starts_with(HEARTBEAT) => Message::Other,
            change => Message::Changed(Change::from_text(change)),
        })
    }

    async fn heartbeat(&mut self) -> Result<(), StoreError> {
        if Triggers::prove(&mut self.listener).await? != self.triggers {
            // Disabled, a key revoked, and enabled again, for instance.
            let problem = "the triggers that report changes were disabled or replaced for a while";
            return Err(StoreError::Unavailable(problem.into()));
        }
        self.heartbeat = new_heartbeat()?;
        let notify =
            sqlx::query("SELECT pg_catalog.pg_notify($1, $2)").bind(CHANNEL).bind(&self.heartbeat);
        notify.execute(&mut self.listener).await.map_err(store_error).map(drop)
    }
}
