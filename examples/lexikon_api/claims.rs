//! Which Idempotency-Key is being answered, or was a moment ago: agreed upon by all instances, in a table of
//! their own beside the keys.

use std::time::Duration;

use lexikon_auth::{KeyId, StoreError};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};

/// How long a claim holds. Longer than an answer takes, than uses take to show to other instances, and than
/// the clients of two requests that were sent at once wait for the second.
pub const HELD: Duration = Duration::from_secs(10);

const CREATE: &str = "CREATE TABLE IF NOT EXISTS lexikon_api_claims \
                      (key_id VARCHAR PRIMARY KEY, until BIGINT NOT NULL)";

/// One statement, by the clock of the database: of two claims at once, one changes a row.
macro_rules! take {
    ($now:literal) => {
        concat!(
            "INSERT INTO lexikon_api_claims (key_id, until) VALUES ($1, ",
            $now,
            " + $2) ON CONFLICT (key_id) DO UPDATE SET until = excluded.until \
             WHERE lexikon_api_claims.until <= ",
            $now
        )
    };
}

#[derive(Clone)]
pub enum Claims {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Claims {
    pub async fn open(database_url: &str) -> Result<Self, sqlx::Error> {
        match database_url.strip_prefix("sqlite://") {
            Some(path) => {
                let options = SqliteConnectOptions::new().filename(path);
                let pool =
                    SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
                sqlx::query(CREATE).execute(&pool).await?;
                Ok(Self::Sqlite(pool))
            }
            None => {
                let pool = PgPoolOptions::new().max_connections(2).connect(database_url).await?;
                // IF NOT EXISTS fails where two instances come at once: the second one waits.
                let mut transaction = pool.begin().await?;
                let lock = "SELECT pg_advisory_xact_lock(hashtext('lexikon_api_claims'))";
                sqlx::query(lock).execute(&mut *transaction).await?;
                sqlx::query(CREATE).execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(Self::Postgres(pool))
            }
        }
    }

    /// Claims the key with this id, for [`HELD`]. `false` where somebody else has.
    pub async fn take(&self, id: &KeyId) -> Result<bool, StoreError> {
        // Whole seconds, rounded down: one more, or the claim could end early.
        let (id, held) = (id.to_string(), HELD.as_secs() as i64 + 1);
        let taken = match self {
            Self::Sqlite(pool) => {
                let take = sqlx::query(take!("unixepoch()")).bind(id).bind(held);
                take.execute(pool).await.map(|done| done.rows_affected())
            }
            Self::Postgres(pool) => {
                let take = take!("floor(extract(epoch FROM clock_timestamp()))::bigint");
                let take = sqlx::query(take).bind(id).bind(held);
                take.execute(pool).await.map(|done| done.rows_affected())
            }
        };
        taken.map(|rows| rows > 0).map_err(|error| StoreError::Unavailable(error.into()))
    }

    pub async fn close(self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}
