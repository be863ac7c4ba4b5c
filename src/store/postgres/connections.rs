//! The connections of a store: how long they are kept, and how long a statement may take.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, Postgres};
use sqlx::query::Query;
use sqlx::{Connection, SqlStr, Transaction};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout, timeout_at};

use super::error::{is_broken, is_unknown, store_error};
use crate::error::StoreError;
use crate::store::sql::statements::constant;
use crate::unsettled::Unsettled;
use crate::util::lock::lock;

/// How long a connection waits for its next statement before it goes back to the pool.
const IDLE_LIMIT: Duration = Duration::from_millis(50);
/// How long a connection stays away from the pool, whose limits of age it is to obey.
const AGE_LIMIT: Duration = Duration::from_secs(1);

/// How long a write may still be made whose answer never came: a commit can stall in the server, and the
/// network deliver what was sent to it, after everybody gave up.
const UNSETTLED_FOR: Duration = Duration::from_secs(60);

/// How much later than it should the answer to a statement that was given up may come.
const GRACE: Duration = Duration::from_millis(100);

/// Connections of a pool, some of them kept for the next statement: with every return the pool asks the
/// server for a sign of life, which doubles the round trips of a verification.
#[derive(Clone)]
pub(crate) struct Connections {
    pool: PgPool,
    /// How long a statement takes at most.
    time_limit: Duration,
    /// What a transaction begins with that writes: the server gives it up when nobody waits any more.
    begin: Option<SqlStr>,
    idle: Arc<Mutex<IdleConnections>>,
}

#[derive(Default)]
struct IdleConnections {
    connections: Vec<IdleConnection>,
    /// Whether a task is there to give them back.
    has_sweeper: bool,
}

/// A connection that nobody uses.
struct IdleConnection {
    connection: PoolConnection<Postgres>,
    /// When it was taken from the pool.
    taken_at: Instant,
    idle_since: Instant,
}

impl Connections {
    pub(super) fn new(pool: PgPool, time_limit: Duration) -> Self {
        Self { pool, time_limit, begin: None, idle: Arc::default() }
    }

    /// Has the server give up writes after the time limit, where the pool's own connections do not: a
    /// statement that waits for a lock would be made long after everybody was told that it was not.
    pub(super) async fn limit_writes(self) -> Result<Self, StoreError> {
        let mut lease = self.lease().await?;
        let query =
            "SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'statement_timeout'";
        let limit = sqlx::query_scalar(query).fetch_one(&mut *lease).await;
        lease.end();
        let (limit, time_limit): (i64, _) =
            (limit.map_err(store_error)?, self.time_limit.as_millis());
        if (1..=time_limit).contains(&u128::from(limit.unsigned_abs())) {
            return Ok(self);
        }
        let begin = format!("BEGIN; SET LOCAL statement_timeout = {}", time_limit.max(1));
        Ok(Self { begin: Some(constant(begin)), ..self })
    }

    /// Runs a write. What is not answered in time goes on for as long again, until it is known what has
    /// become of it.
    pub(super) async fn write<T, W>(&self, write: impl FnOnce(Lease) -> W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let deadline = Instant::now() + self.time_limit;
        let lease = self.with_time_limit(self.lease()).await?;
        let mut write = Box::pin(write(lease));
        let limit = self.time_limit + GRACE;
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
                        sleep(UNSETTLED_FOR).await;
                    }
                })
            }
        };
        Err(StoreError::Unsettled(settled))
    }

    /// Runs `work` on a connection, and gives it up after the time limit.
    pub(super) async fn with_lease<T>(
        &self,
        work: impl AsyncFnOnce(&mut Lease) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.with_time_limit(async {
            let mut lease = self.lease().await?;
            let done = work(&mut lease).await?;
            lease.end();
            Ok(done)
        })
        .await
    }

    /// Gives up `work` after the time limit.
    pub(super) fn with_time_limit<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> impl Future<Output = Result<T, StoreError>> {
        with_time_limit(self.time_limit, work)
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(super) fn time_limit(&self) -> Duration {
        self.time_limit
    }

    pub(super) async fn lease(&self) -> Result<Lease, StoreError> {
        let idle = lock(&self.idle).connections.pop().filter(|_| !self.pool.is_closed());
        let (connection, taken_at) = match idle {
            Some(IdleConnection { connection, taken_at, .. }) => (connection, taken_at),
            None => (self.pool.acquire().await.map_err(store_error)?, Instant::now()),
        };
        Ok(Lease { connections: self.clone(), connection: Some(connection), taken_at })
    }

    /// Takes a connection that has just given a sign of life. Those that do not are closed on the way: where
    /// one has broken, all have perhaps.
    pub(super) async fn lease_tested(&self) -> Result<Lease, StoreError> {
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
        if is_wanted || taken_at.elapsed() > AGE_LIMIT {
            return;
        }
        let mut idle = lock(&self.idle);
        idle.connections.push(IdleConnection { connection, taken_at, idle_since: Instant::now() });
        if !idle.has_sweeper {
            idle.has_sweeper = true;
            runtime.spawn(sweep(Arc::downgrade(&self.idle)));
        }
    }
}

/// Gives back what is not used any more, until nothing is kept.
async fn sweep(idle: Weak<Mutex<IdleConnections>>) {
    loop {
        sleep(IDLE_LIMIT).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = lock(&idle);
        let unused = |unused: &mut IdleConnection| unused.idle_since.elapsed() >= IDLE_LIMIT;
        // Dropped, a connection goes back to its pool.
        idle.connections.extract_if(.., unused).for_each(drop);
        if idle.connections.is_empty() {
            idle.has_sweeper = false;
            return;
        }
    }
}

impl Drop for IdleConnections {
    fn drop(&mut self) {
        // A pool takes connections back in a task of its own, and panics without a runtime. Where there
        // is none any more, the process is about to end, and its connections with it.
        if Handle::try_current().is_err() {
            self.connections.drain(..).for_each(|idle| std::mem::forget(idle.connection));
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
        transaction.map_err(store_error)
    }

    /// Runs one statement that writes, and ends.
    pub(super) async fn execute(
        mut self,
        query: Query<'static, Postgres, PgArguments>,
    ) -> Result<u64, StoreError> {
        if self.connections.begin.is_none() {
            let done = query.execute(&mut *self).await;
            self.end_after(&done);
            return Ok(done.map_err(store_error)?.rows_affected());
        }
        let mut transaction = self.begin_write().await?;
        let done = query.execute(&mut *transaction).await.map_err(store_error)?;
        transaction.commit().await.map_err(store_error)?;
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
        let limit = self.connections.time_limit + GRACE;
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

/// Gives up `work` after `time_limit`.
pub(super) fn with_time_limit<T>(
    time_limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> impl Future<Output = Result<T, StoreError>> {
    // Not an async function, whose future would have room for the work twice.
    timeout(time_limit, work)
        .map(|answer| answer.unwrap_or_else(|elapsed| Err(StoreError::Unavailable(elapsed.into()))))
}
