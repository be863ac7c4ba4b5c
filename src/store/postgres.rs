//! The store in PostgreSQL: the lexikon service's own tables as they are, or the same tables in an
//! empty schema.
//!
//! Times are `timestamp without time zone`: `expires_at` and `last_used_at` in the
//! [`TimeZone`](crate::store::TimeZone) of the service, as it writes them, all others in UTC. They are bound and
//! read as such and never taken from the server's clock, so the time zone of this store's sessions does
//! not matter. That of the service's does for `created_at`, which its table fills with `now()`: it is
//! read as UTC, so where the sessions are not in UTC it is off by their zone. No decision on a key
//! depends on it.

mod connections;
mod dialect;
mod error;
mod feed;
mod reach;
mod schema;
mod store;
mod timestamp;

use sqlx::Postgres;

pub use self::feed::PostgresFeed;
use super::sql::store::SqlStore;

/// Keys in a PostgreSQL database. Clones share its connections.
///
/// In a schema without tables the store creates `api_keys` and `users`; there an owner is created with
/// its first key. In a database of the lexikon service it uses the service's tables without a change;
/// owners are the service's users, and a key for an unknown one is an error.
///
/// A verification is one prepared statement, whatever the number of candidates.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use lexikon_auth::store::PostgresStore;
/// let store = PostgresStore::connect("postgres://lexikon@localhost/lexikon".parse()?).await?;
/// # Ok(()) }
/// ```
///
/// # Rights
///
/// The role that makes or extends the tables owns them. Instances may have another, which needs:
///
/// ```sql
/// GRANT SELECT, INSERT, UPDATE ON api_keys TO lexikon;
/// GRANT SELECT ON users TO lexikon; -- INSERT and UPDATE as well, where the tables are this crate's own
/// GRANT SELECT, INSERT ON lexikon_auth_secrets TO lexikon;
/// GRANT SELECT ON lexikon_auth_policies, lexikon_auth_deprecations, lexikon_auth_settings TO lexikon;
/// GRANT SELECT, INSERT, UPDATE ON lexikon_auth_caches TO lexikon;
/// ```
pub type PostgresStore = SqlStore<Postgres>;
