//! A handle over one of the databases.

use super::keys::{ApiKeys, Close};
use super::options::{ApiKeysOptions, Tasks};
use crate::crypto::secret::SecretRing;
use crate::error::StoreError;
#[cfg(feature = "postgres")]
use crate::store::PostgresStore;
use crate::store::{ChangeFeed, DatabaseUrl, DynKeyStore, KeyStore, PolicySource};
#[cfg(feature = "sqlite")]
use crate::store::{SqliteMode, SqliteStore};

#[cfg(feature = "sqlite")]
const READ_ONLY: &str = "last uses are written to it; take ?mode=ro out of its URL";

/// What is done first with either store, and differs in its type alone.
macro_rules! prepared {
    ($options:expr, $store:expr) => {{
        let (options, mut store) = (&$options, $store);
        if options.extends_schema {
            store = store.extend_schema().await?;
        }
        if let Some(zone) = &options.time_zone {
            store = store.with_time_zone(zone.clone()).await?;
        }
        store.check_secrets(&options.ring).await?;
        store
    }};
}

impl ApiKeys {
    /// Opens a database with the usual settings: [`ApiKeysOptions::open`].
    ///
    /// # Errors
    /// Those of [`ApiKeysOptions::open`].
    pub async fn open(url: &str, ring: SecretRing) -> Result<Self, StoreError> {
        Self::options(ring).open(url).await
    }
}

impl ApiKeysOptions {
    /// Opens a database by its [URL](DatabaseUrl).
    ///
    /// In an empty database the tables are made, and a missing file of SQLite is created, unless the URL
    /// says `?mode=rw`. Tables that are there stay as they are without
    /// [`extend_schema`](Self::extend_schema). Of new and of extended tables, the first secret that they
    /// are opened with is noted, and others are refused from then on.
    ///
    /// Caches are told of changes that others make. The start waits until they are, 5 seconds at most; then
    /// it goes on with a warning in the log, and with cached entries of 5 seconds until they are.
    ///
    /// # Errors
    /// With the cause in its text, and no password. [`StoreError::CannotOpen`] for what has to be mended:
    /// a URL, a path, a user or a password; [`StoreError::Unavailable`] for a server that does not answer;
    /// [`StoreError::UnknownSecret`] for another secret than the one that is noted;
    /// [`StoreError::Schema`] for tables of something else; [`StoreError::TimeZoneMismatch`].
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub async fn open(self, url: &str) -> Result<ApiKeys, StoreError> {
        match url.parse().map_err(|error| StoreError::CannotOpen(Box::new(error)))? {
            #[cfg(feature = "sqlite")]
            DatabaseUrl::Sqlite { path, mode } => {
                let store = match mode {
                    SqliteMode::Create => SqliteStore::open_or_create(&path).await,
                    SqliteMode::ReadWrite => SqliteStore::open(&path).await,
                    SqliteMode::ReadOnly => Err(StoreError::CannotOpen(READ_ONLY.into())),
                };
                let store = store.map_err(|error| match error {
                    StoreError::CannotOpen(error) => {
                        StoreError::CannotOpen(format!("{}: {error}", path.display()).into())
                    }
                    error => error,
                })?;
                let opened = store.clone();
                let close: Close = Box::pin(async move { opened.close().await });
                self.sqlite(store, Some(close)).await
            }
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(options) => {
                let store = PostgresStore::connect(options).await?;
                let opened = store.clone();
                let close: Close = Box::pin(async move { opened.close().await });
                self.postgres(store, Some(close)).await
            }
        }
    }

    /// Uses a store in SQLite that the application has opened, such as with a pool of its own.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    #[cfg(feature = "sqlite")]
    pub async fn over_sqlite(self, store: SqliteStore) -> Result<ApiKeys, StoreError> {
        self.sqlite(store, None).await
    }

    /// Uses a store in PostgreSQL that the application has opened, such as with a pool of its own.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    #[cfg(feature = "postgres")]
    pub async fn over_postgres(self, store: PostgresStore) -> Result<ApiKeys, StoreError> {
        self.postgres(store, None).await
    }

    #[cfg(feature = "sqlite")]
    async fn sqlite(self, store: SqliteStore, close: Option<Close>) -> Result<ApiKeys, StoreError> {
        let store = prepared!(self, store);
        let feed = store.changes();
        self.start_over(store, feed, close).await
    }

    #[cfg(feature = "postgres")]
    async fn postgres(
        self,
        store: PostgresStore,
        close: Option<Close>,
    ) -> Result<ApiKeys, StoreError> {
        let store = prepared!(self, store);
        let feed = store.changes();
        self.start_over(store, feed, close).await
    }

    async fn start_over(
        self,
        database: impl KeyStore + PolicySource + Clone,
        feed: impl ChangeFeed,
        close: Option<Close>,
    ) -> Result<ApiKeys, StoreError> {
        let layers = self.with_caches(DynKeyStore::new(database.clone())).await?;
        let verifier = self.verifier(&layers);
        let policy_follower = Some(verifier.follow_policy(database).await?);
        let follower = if layers.is_cached { Some(layers.follow(feed).await) } else { None };
        Ok(self.start(layers, verifier, Tasks { follower, policy_follower, close }))
    }
}
