//! The store in SQLite: the lexikon service's own tables as they are, or the same tables in an empty
//! database.
//!
//! Rows that this store writes read back in SQLAlchemy: times as `YYYY-MM-DD HH:MM:SS.ffffff`, booleans
//! as 0 and 1, hashes as 64 hex digits. `expires_at` and `last_used_at` are in the
//! [`TimeZone`](crate::store::TimeZone) of the service, as it writes them; all other times are in UTC, as
//! SQLite's own `CURRENT_TIMESTAMP` is.

mod connections;
mod dialect;
mod error;
mod feed;
mod file;
mod schema;
mod store;
mod timestamp;
mod triggers;

use sqlx::Sqlite;

pub use self::feed::SqliteFeed;
use super::sql::store::SqlStore;

/// Keys in a SQLite database. Clones share its connections.
///
/// In an empty database the store creates the tables `api_keys` and `users`. There an owner is
/// created with its first key. In a database of the lexikon service it uses the service's tables
/// without a change; owners are the service's users, and a key for an unknown one is an error.
///
/// A revocation's time and reason and the format of a hash have no column in the service's table.
/// [`extend_schema`](Self::extend_schema) adds them.
///
/// ```
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("keys.db");
/// use lexikon_auth::store::SqliteStore;
/// let store = SqliteStore::open_or_create(&path).await?;
/// # store.close().await;
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
/// ```
pub type SqliteStore = SqlStore<Sqlite>;
