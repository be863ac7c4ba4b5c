//! Which of the tables a database has.

use std::collections::HashMap;

use super::dialect::Dialect;
use super::row::Row;
use super::schema::{Schema, TABLES};
use crate::error::StoreError;

/// Finds out what a database offers.
///
/// # Errors
/// [`StoreError::Schema`] where it has other tables than those of the lexikon service.
pub(crate) async fn schema<DB: Dialect>(
    connection: &mut DB::Connection,
) -> Result<Schema, StoreError> {
    let mut tables = HashMap::new();
    for table in TABLES {
        let rows = DB::fetch_on(connection, DB::SELECT_COLUMNS, &[table.into()]).await?;
        let columns = rows.iter().map(|row| row.string(0)).collect::<Result<Vec<_>, _>>()?;
        if !columns.is_empty() {
            tables.insert(table, columns);
        }
    }
    Schema::new(tables)
}
