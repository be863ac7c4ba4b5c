//! Leases of connections, and what an error of the database means.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgDatabaseError, PgPool, PgSeverity, Postgres};
use sqlx::query::Query;
use sqlx::{Connection, SqlStr, Transaction};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout, timeout_at};

use crate::error::StoreError;
use crate::store::sql::constant;
use crate::unsettled::Unsettled;
use crate::util::lock::lock;

/// How long a connection waits for its next statement before it goes back to the pool.
const KEPT: Duration = Duration::from_millis(50);
/// How long a connection stays away from the pool, whose limits of age it is to obey.
const AWAY: Duration = Duration::from_secs(1);

/// How long a write may still be made whose answer never came: a commit can stall in the server, and the
/// network deliver what was sent to it, after everybody gave up.
const AFTERMATH: Duration = Duration::from_secs(60);

/// How much later than it should the answer to a statement that was given up may come.
const OVERDUE: Duration = Duration::from_millis(100);

/// Connections of a pool, some of them kept for the next statement: with every return the pool asks the
/// server for a sign of life, which doubles the round trips of a verification.
#[derive(Clone)]
pub(crate) struct Connections {
    pool: PgPool,
    /// How long a statement takes at most.
    patience: Duration,
    /// What a transaction begins with that writes: the server gives it up when nobody waits any more.
    begin: Option<SqlStr>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    idle: Vec<Idle>,
    /// Whether a task is there to give them back.
    is_swept: bool,
}

/// A connection that nobody uses.
struct Idle {
    connection: PoolConnection<Postgres>,
    /// When it was taken from the pool.
    taken_at: Instant,
    idle_since: Instant,
}

impl Connections {
    pub(super) fn new(pool: PgPool, patience: Duration) -> Self {
        Self { pool, patience, begin: None, kept: Arc::default() }
    }

    /// Has the server give up writes after the patience, where the pool's own connections do not: a
    /// statement that waits for a lock would be made long after everybody was told that it was not.
    pub(super) async fn limit_writes(self) -> Result<Self, StoreError> {
        let mut lease = self.lease().await?;
        let query =
            "SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'statement_timeout'";
        let limit = sqlx::query_scalar(query).fetch_one(&mut *lease).await;
        lease.end();
        let (limit, patience): (i64, _) = (limit.map_err(unavailable)?, self.patience.as_millis());
        if (1..=patience).contains(&u128::from(limit.unsigned_abs())) {
            return Ok(self);
        }
        let begin = format!("BEGIN; SET LOCAL statement_timeout = {}", patience.max(1));
        Ok(Self { begin: Some(constant(begin)), ..self })
    }

    /// Runs a write. What is not answered in time goes on for as long again, until it is known what has
    /// become of it.
    pub(super) async fn write<T, W>(&self, write: impl FnOnce(Lease) -> W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let deadline = Instant::now() + self.patience;
        let lease = limited(self.patience, self.lease()).await?;
        let mut write = Box::pin(write(lease));
        let limit = self.patience + OVERDUE;
        let settled: Unsettled = match timeout_at(deadline.into(), &mut write).await {
            Ok(done) if is_unknown(&done) => {
                // The server may not have noticed that the connection broke, and goes on for as long.
                Unsettled::new(sleep(limit))
            }
            Ok(done) => return done,
            Err(_) => {
                let rest = tokio::spawn(timeout(limit, write));
                Unsettled::new(async move {
                    let is_known = matches!(rest.await, Ok(Ok(done)) if !is_unknown(&done));
                    if !is_known {
                        sleep(AFTERMATH).await;
                    }
                })
            }
        };
        Err(StoreError::Unsettled(settled))
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(super) async fn lease(&self) -> Result<Lease, StoreError> {
        let kept = lock(&self.kept).idle.pop().filter(|_| !self.pool.is_closed());
        let (connection, taken_at) = match kept {
            Some(Idle { connection, taken_at, .. }) => (connection, taken_at),
            None => (self.pool.acquire().await.map_err(unavailable)?, Instant::now()),
        };
        Ok(Lease { connections: self.clone(), connection: Some(connection), taken_at })
    }

    /// A connection that has just given a sign of life. Those that do not are closed on the way: where
    /// one has broken, all have perhaps.
    pub(super) async fn lease_alive(&self) -> Result<Lease, StoreError> {
        for _ in 0..self.pool.options().get_max_connections() {
            let mut lease = self.lease().await?;
            if lease.ping().await.is_ok() {
                return Ok(lease);
            }
        }
        self.lease().await
    }

    /// Keeps a connection, unless somebody may be waiting for it or it has been away for long.
    fn keep(&self, connection: PoolConnection<Postgres>, taken_at: Instant) {
        let is_wanted = self.pool.num_idle() == 0
            && self.pool.size() == self.pool.options().get_max_connections();
        let Ok(runtime) = Handle::try_current() else { return };
        if is_wanted || taken_at.elapsed() > AWAY {
            return;
        }
        let mut kept = lock(&self.kept);
        kept.idle.push(Idle { connection, taken_at, idle_since: Instant::now() });
        if !kept.is_swept {
            kept.is_swept = true;
            runtime.spawn(sweep(Arc::downgrade(&self.kept)));
        }
    }
}

/// Gives back what is not used any more, until nothing is kept.
async fn sweep(kept: Weak<Mutex<Kept>>) {
    loop {
        sleep(KEPT).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut kept = lock(&kept);
        let unused = |idle: &mut Idle| idle.idle_since.elapsed() >= KEPT;
        // Dropped, a connection goes back to its pool.
        kept.idle.extract_if(.., unused).for_each(drop);
        if kept.idle.is_empty() {
            kept.is_swept = false;
            return;
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A pool takes connections back in a task of its own, and panics without a runtime. Where there
        // is none any more, the process is about to end, and its connections with it.
        if Handle::try_current().is_err() {
            self.idle.drain(..).for_each(|idle| std::mem::forget(idle.connection));
        }
    }
}

/// A connection for some statements. Unless their work [ended](Self::end), an answer may still be on its
/// way: nobody gets the connection before it has arrived, and where it does not, it is closed.
pub(super) struct Lease {
    connections: Connections,
    /// Until the lease has ended.
    connection: Option<PoolConnection<Postgres>>,
    taken_at: Instant,
}

impl Lease {
    /// Begins a transaction that writes.
    pub(super) async fn begin_write(&mut self) -> Result<Transaction<'_, Postgres>, StoreError> {
        let transaction = match self.connections.begin.clone() {
            Some(begin) => self.begin_with(begin).await,
            None => self.begin().await,
        };
        transaction.map_err(unavailable)
    }

    /// Runs one statement that writes, and ends.
    pub(super) async fn execute(
        mut self,
        query: Query<'static, Postgres, PgArguments>,
    ) -> Result<u64, StoreError> {
        if self.connections.begin.is_none() {
            let done = query.execute(&mut *self).await;
            self.end_after(&done);
            return Ok(done.map_err(unavailable)?.rows_affected());
        }
        let mut transaction = self.begin_write().await?;
        let done = query.execute(&mut *transaction).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        self.end();
        Ok(done.rows_affected())
    }

    /// Ends with the answer to the last statement, unless the connection broke: kept, it would be the
    /// next to be used, again and again.
    pub(super) fn end_after<T>(self, answer: &sqlx::Result<T>) {
        if !is_broken(answer) {
            self.end();
        }
    }

    pub(super) fn end(mut self) {
        if let Some(connection) = self.connection.take() {
            self.connections.keep(connection, self.taken_at);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let Ok(runtime) = Handle::try_current() else { return std::mem::forget(connection) };
        // Callers may give up as often as they like: a new connection each time would cost the server
        // far more than the statement did. While a statement waits for a lock, its session goes on even
        // where the connection is closed: until it ends, it takes up room in the pool, or there would be
        // any number of them.
        let limit = self.connections.patience + OVERDUE;
        runtime.spawn(async move {
            if !matches!(timeout(limit, connection.ping()).await, Ok(Ok(()))) {
                connection.close_on_drop();
            }
        });
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("the lease has not ended")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("the lease has not ended")
    }
}

/// Gives up `work` after `patience`.
pub(super) async fn limited<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let answer = timeout(patience, work).await;
    answer.unwrap_or_else(|elapsed| Err(StoreError::Unavailable(elapsed.into())))
}

/// Whether the connection is of no more use, as far as the answer tells.
pub(super) fn is_broken<T>(answer: &sqlx::Result<T>) -> bool {
    answer.as_ref().is_err_and(|error| !is_undone(error))
}

/// Whether the server says that nothing was done. It goes on after an `ERROR`; with anything worse it ends
/// the session.
fn is_undone(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref());
    error.is_some_and(|error: &PgDatabaseError| error.severity() == PgSeverity::Error)
}

/// Whether a write that failed may have been made all the same.
fn is_unknown<T>(done: &Result<T, StoreError>) -> bool {
    match done {
        Err(StoreError::Unavailable(error)) => {
            !error.downcast_ref::<sqlx::Error>().is_some_and(is_undone)
        }
        _ => false,
    }
}

/// What a failure of sqlx means to a caller. PostgreSQL's codes:
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
pub(crate) fn unavailable(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|database| database.code()).as_deref() {
        // unique_violation
        Some("23505") => StoreError::Conflict,
        // read_only_sql_transaction, insufficient_privilege
        Some("25006" | "42501") => StoreError::ReadOnly(error.into()),
        // data_corrupted, index_corrupted
        Some("XX001" | "XX002") => StoreError::Corrupt(error.into()),
        _ => StoreError::Unavailable(error.into()),
    }
}
