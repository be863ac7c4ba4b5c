//! Which Idempotency-Key is being answered, or was a moment ago: agreed upon by all instances, in a table of
//! their own beside the keys.

use std::time::Duration;

use lexikon_auth::store::DatabaseUrl;
use lexikon_auth::{KeyId, StoreError};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};

use crate::FLUSH_INTERVAL;

/// How long a claim holds, from its taking on and again from the answer on. Each instance writes a use within
/// [`FLUSH_INTERVAL`]: a key whose first use is that much older than the end of its claim is known to be in use
/// when the claim ends.
pub const HELD: Duration = FLUSH_INTERVAL.saturating_mul(4);

const CREATE: &str = "CREATE TABLE IF NOT EXISTS lexikon_api_claims \
                      (key_id VARCHAR PRIMARY KEY, until BIGINT NOT NULL)";

/// Runs a statement that both databases know, and returns how many rows it changed.
macro_rules! execute {
    ($claims:expr, $statement:literal, $($value:expr),+) => {
        match $claims {
            Claims::Sqlite(pool) => {
                let query = sqlx::query($statement)$(.bind($value))+;
                query.execute(pool).await.map(|done| done.rows_affected())
            }
            Claims::Postgres(pool) => {
                let query = sqlx::query($statement)$(.bind($value))+;
                query.execute(pool).await.map(|done| done.rows_affected())
            }
        }
    };
}

/// One request's right to answer with the key of this id.
pub struct Claim {
    id: String,
    /// Seconds since 1970. No two claims of an id have the same.
    until: i64,
}

#[derive(Clone)]
pub enum Claims {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Claims {
    pub async fn open(database_url: &str) -> Result<Self, sqlx::Error> {
        match database_url.parse().map_err(sqlx::Error::config)? {
            DatabaseUrl::Sqlite { path, .. } => {
                let options = SqliteConnectOptions::new().filename(path);
                let pool =
                    SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
                sqlx::query(CREATE).execute(&pool).await?;
                Ok(Self::Sqlite(pool))
            }
            DatabaseUrl::Postgres(options) => {
                let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await?;
                // IF NOT EXISTS fails where two instances come at once: the second one waits.
                let mut transaction = pool.begin().await?;
                let lock = "SELECT pg_advisory_xact_lock(hashtext('lexikon_api_claims'))";
                sqlx::query(lock).execute(&mut *transaction).await?;
                sqlx::query(CREATE).execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(Self::Postgres(pool))
            }
            other => Err(sqlx::Error::Configuration(format!("no claims in {other:?}").into())),
        }
    }

    pub fn database_kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
        }
    }

    /// Claims the key with this id, for [`HELD`]. `None` where somebody else has.
    pub async fn take(&self, id: &KeyId) -> Result<Option<Claim>, StoreError> {
        self.try_take(id).await.map_err(unavailable)
    }

    /// Has a claim hold for [`HELD`] from now on. `false` where it has ended, and somebody else's begun.
    pub async fn renew(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.try_renew(claim).await.map_err(unavailable)
    }

    async fn try_take(&self, id: &KeyId) -> Result<Option<Claim>, sqlx::Error> {
        let now = self.now().await?;
        execute!(self, "DELETE FROM lexikon_api_claims WHERE until <= $1", now)?;
        let claim = Claim { id: id.to_string(), until: end(now) };
        // Of two at once, one inserts a row.
        let rows = execute!(
            self,
            "INSERT INTO lexikon_api_claims (key_id, until) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            &claim.id,
            claim.until
        )?;
        Ok((rows > 0).then_some(claim))
    }

    async fn try_renew(&self, claim: &Claim) -> Result<bool, sqlx::Error> {
        let until = end(self.now().await?);
        let rows = execute!(
            self,
            "UPDATE lexikon_api_claims SET until = $1 WHERE key_id = $2 AND until = $3",
            until,
            &claim.id,
            claim.until
        )?;
        Ok(rows > 0)
    }

    /// By the clock of the database, which all instances share.
    async fn now(&self) -> Result<i64, sqlx::Error> {
        match self {
            Self::Sqlite(pool) => sqlx::query_scalar("SELECT unixepoch()").fetch_one(pool).await,
            Self::Postgres(pool) => {
                let now = "SELECT floor(extract(epoch FROM clock_timestamp()))::bigint";
                sqlx::query_scalar(now).fetch_one(pool).await
            }
        }
    }

    pub async fn close(self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// When a claim ends that is taken now. Now is in whole seconds, rounded down: without one more, it could end
/// early.
fn end(now: i64) -> i64 {
    now + HELD.as_secs() as i64 + 1
}

fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(error.into())
}
