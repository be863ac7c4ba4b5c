//! The shared caches that instances use.

use std::time::SystemTime;

use super::table::KeyTable;
use crate::error::StoreError;
use crate::store::SharedCache;
use crate::store::sql::row::Row;
use crate::store::sql::schema::CACHES;
use crate::store::sql::value::Value;

impl KeyTable {
    /// Returns the caches that instances have used since then, as they noted
    /// [themselves](crate::store::KeyLookup::register_cache). None without the extension of the schema.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn shared_caches(&self, since: SystemTime) -> Result<Vec<SharedCache>, StoreError> {
        if !self.schema().has_table(CACHES) {
            return Ok(Vec::new());
        }
        let select = format!(
            "SELECT prefix, address FROM {CACHES} WHERE last_seen_at > $1 ORDER BY prefix, address"
        );
        let read = |row: &dyn Row| Ok(SharedCache::stored(row.string(0)?, row.string(1)?));
        self.rows(&select, &[Value::date(since)], read).await
    }
}
