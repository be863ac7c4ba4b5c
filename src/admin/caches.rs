//! The shared caches that instances use.

use std::time::SystemTime;

use super::session::{Session, Value};
use super::table::KeyTable;
use crate::error::StoreError;
use crate::store::SharedCache;
use crate::store::sql::CACHES;

impl KeyTable {
    /// Returns the caches that instances have used since then, as they noted
    /// [themselves](crate::store::KeyLookup::register_cache). None without the extension of the schema.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn shared_caches(&self, since: SystemTime) -> Result<Vec<SharedCache>, StoreError> {
        if !self.schema().has_caches {
            return Ok(Vec::new());
        }
        let select = format!(
            "SELECT prefix, address FROM {CACHES} WHERE last_seen_at > $1 ORDER BY prefix, address"
        );
        let mut session = Session::read(&self.database).await?;
        let rows = session.rows(&select, &[Value::Time(since)]).await?;
        session.rollback().await?;
        rows.iter().map(|row| Ok(SharedCache::stored(row.text(0)?, row.text(1)?))).collect()
    }
}
