//! The feed of changes: the files say that somebody may have written, `PRAGMA data_version` that somebody
//! has, and the rows themselves what, by the numbers that [triggers](super::triggers) give them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::{Instant, sleep, sleep_until};

use super::error::store_error;
use super::file::{Notices, OpenedFile, Watch};
use super::schema;
use crate::error::StoreError;
use crate::store::{Change, ChangeFeed, Message, Subscription};

/// How often the database is asked while somebody writes.
const INTERVAL: Duration = Duration::from_millis(30);
/// More changes than these at once are reported as a change of anything.
const MANY: i64 = 1000;

/// The version of the data and of the schema, and the latest number in each table: 0 where no row has one,
/// and NULL where there is no row. All as of one moment.
const LATEST: &str = "SELECT (SELECT data_version FROM pragma_data_version), \
    (SELECT schema_version FROM pragma_schema_version), \
    coalesce((SELECT max(lexikon_auth_change) FROM api_keys WHERE lexikon_auth_change IS NOT NULL), \
        (SELECT 0 FROM api_keys LIMIT 1)), \
    coalesce((SELECT max(lexikon_auth_change) FROM users WHERE lexikon_auth_change IS NOT NULL), \
        (SELECT 0 FROM users LIMIT 1))";
const CHANGED_KEYS: &str = "SELECT id, lexikon_auth_change FROM api_keys \
    WHERE lexikon_auth_change > $1 ORDER BY lexikon_auth_change";
const CHANGED_OWNERS: &str = "SELECT id, lexikon_auth_change FROM users \
    WHERE lexikon_auth_change > $1 ORDER BY lexikon_auth_change";

const NO_TRIGGERS: &str = "the triggers that report changes are missing or of another version; run \
    extend_schema, or lxk schema apply";
/// The changes of keys and owners in a SQLite database, whoever makes them, as they are committed.
///
/// On Linux the system tells when somebody writes to the files; elsewhere, and where it has no room for
/// another watch (`fs.inotify.max_user_watches`), the feed looks at them every 30 milliseconds. Then, and every
/// second for the heartbeat of a [`Follower`](crate::tasks::Follower), it asks the database, on a connection of its own
/// that writes nothing. What that costs stands in `benches/results-servers.md`.
///
/// - More than 1000 changes of keys or of owners at once, a key or an owner that is changed twice between
///   two looks, removed, or gets another id, and any change of the schema are reported as
///   [`Change::All`].
/// - A change of `last_used_at`, `hash_format` or another column that no decision depends on is not
///   reported.
/// - Where a trigger is missing, because a migration has copied the table or somebody has dropped it,
///   or where the file has been replaced by another, the feed is lost.
/// - What a writer changes that has switched triggers off (`SQLITE_DBCONFIG_ENABLE_TRIGGER`) is not reported.
/// - Unless its writer has `PRAGMA recursive_triggers` on, a row is not reported that an `OR REPLACE` removes for
///   a conflict in another column than `id` and `key_hash`, or an `UPDATE OR REPLACE` that leaves no row in
///   the table but those that it wrote: SQLite fires no trigger for it.
#[derive(Clone)]
pub struct SqliteFeed {
    options: Arc<SqliteConnectOptions>,
    file: OpenedFile,
    interval: Duration,
}

impl SqliteFeed {
    pub(super) fn new(options: Arc<SqliteConnectOptions>, file: OpenedFile) -> Self {
        Self { options, file, interval: INTERVAL }
    }

    /// Sets how often the database is asked at most while somebody writes, and how often to look whether
    /// somebody does where the system does not tell: how late a change arrives. Default 30 milliseconds. A [`Follower`](crate::tasks::Follower) takes a feed that
    /// is silent for 2 seconds for lost.
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }
}

impl fmt::Debug for SqliteFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options may hold the key of an encrypted database, and print it.
        let mut debug = f.debug_struct("SqliteFeed");
        debug.field("file", &self.file.path());
        debug.field("interval", &self.interval).finish_non_exhaustive()
    }
}

/// A connection that looks for changes.
pub struct SqliteSubscription {
    feed: SqliteFeed,
    watch: Watch,
    notices: Option<Notices>,
    connection: SqliteConnection,
    seen: Seen,
    due: Instant,
    is_asked: bool,
    messages: VecDeque<Message>,
}

/// How far the feed has come.
struct Seen {
    data_version: i64,
    schema_version: i64,
    keys: Option<i64>,
    owners: Option<i64>,
}

impl ChangeFeed for SqliteFeed {
    type Subscription = SqliteSubscription;

    async fn subscribe(&self) -> Result<SqliteSubscription, StoreError> {
        self.file.check()?;
        let options = (*self.options).clone().create_if_missing(false).disable_statement_logging();
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(store_error)?;
        let watch = Watch::new(self.file.path());
        let notices = watch.notices();
        check_triggers(&mut connection).await?;
        let seen = latest(&mut connection).await?;
        // By now the file is open, and it cannot become another unnoticed.
        self.file.check()?;
        Ok(SqliteSubscription {
            feed: self.clone(),
            notices,
            watch,
            connection,
            seen,
            due: Instant::now() + self.interval,
            is_asked: false,
            messages: VecDeque::new(),
        })
    }
}

impl Subscription for SqliteSubscription {
    async fn receive(&mut self) -> Result<Message, StoreError> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            // However often somebody writes, the database is not asked more often than that.
            sleep_until(self.due).await;
            let snapshot = self.watch.snapshot();
            if self.is_asked || self.watch.may_have_changed(&snapshot) {
                self.look().await?;
                self.watch.mark_read(snapshot);
                self.due = Instant::now() + self.feed.interval;
            } else {
                match &mut self.notices {
                    Some(notices) => notices.written().await,
                    None => sleep(self.feed.interval).await,
                }
            }
        }
    }

    async fn heartbeat(&mut self) -> Result<(), StoreError> {
        self.is_asked = true;
        Ok(())
    }
}

impl SqliteSubscription {
    /// Asks the database. Dropped on the way, it has seen nothing.
    async fn look(&mut self) -> Result<(), StoreError> {
        let (connection, seen) = (&mut self.connection, &self.seen);
        let mut now = latest(connection).await?;
        let same_schema = now.schema_version == seen.schema_version;
        if self.is_asked {
            self.feed.file.check()?;
        }
        // Whatever becomes of a trigger changes the version.
        if !same_schema {
            check_triggers(connection).await?;
        }
        if now.data_version != seen.data_version {
            let keys = changed(seen.keys, &mut now.keys, CHANGED_KEYS, connection).await?;
            let owners = changed(seen.owners, &mut now.owners, CHANGED_OWNERS, connection).await?;
            // While triggers were missing, if only for a moment, anything may have changed.
            match (keys, owners) {
                (Some(keys), Some(owners)) if same_schema => {
                    let keys = keys.into_iter().flat_map(|(id, number)| {
                        let added = (number & 1 == 1).then_some(Change::Added);
                        [Some(Change::Key(id.as_str().into())), added].into_iter().flatten()
                    });
                    let owners =
                        owners.into_iter().map(|(id, _)| Change::Owner(id.as_str().into()));
                    self.messages.extend(keys.chain(owners).map(Message::Changed));
                }
                _ => self.messages.push_back(Message::Changed(Change::All)),
            }
        }
        self.seen = now;
        if std::mem::take(&mut self.is_asked) {
            self.messages.push_back(Message::Heartbeat);
        }
        Ok(())
    }
}

/// Returns the rows of a table that have changed, with their numbers; `None` where it may be any.
async fn changed(
    seen: Option<i64>,
    now: &mut Option<i64>,
    select: &'static str,
    connection: &mut SqliteConnection,
) -> Result<Option<Vec<(String, i64)>>, StoreError> {
    // Whatever was in an empty table has gone without a trace.
    let (Some(before), Some(latest)) = (seen, *now) else { return Ok(None) };
    let count = |number: i64| number >> 1;
    if before == latest {
        return Ok(Some(Vec::new()));
    }
    if !(1..=MANY).contains(&(count(latest) - count(before))) {
        return Ok(None);
    }
    let rows = sqlx::query_as::<_, (String, i64)>(select).bind(before).fetch_all(connection).await;
    let rows = rows.map_err(store_error)?;
    // Somebody may have been faster than this second question.
    *now = rows.last().map_or(*now, |(_, number)| Some(*number));
    let is_complete =
        rows.iter().map(|(_, number)| count(*number)).eq((count(before) + 1..).take(rows.len()));
    Ok(is_complete.then_some(rows))
}

async fn check_triggers(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    if !schema::reports_changes(connection).await? {
        return Err(StoreError::Schema(NO_TRIGGERS.to_owned()));
    }
    Ok(())
}

async fn latest(connection: &mut SqliteConnection) -> Result<Seen, StoreError> {
    let row = sqlx::query_as(LATEST).fetch_one(connection).await.map_err(store_error)?;
    let (data_version, schema_version, keys, owners) = row;
    Ok(Seen { data_version, schema_version, keys, owners })
}
