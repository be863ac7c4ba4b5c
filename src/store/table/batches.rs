//! Changes to many rows, a thousand at a time.

use super::filter::Condition;
use super::{Database, KeyTable, Session, Value};
use crate::error::StoreError;
use crate::store::sql::FROM;

/// Rows that are changed in one transaction: a service that works on the same rows waits for one.
const BATCH: usize = 1000;

/// A statement about the rows of a batch.
pub(super) struct Step<'a> {
    /// The statement; `{ids}` stands for the ids of the batch.
    pub(super) statement: String,
    pub(super) values: Vec<Value<'a>>,
}

/// Which rows are gone through, in the order of their ids.
pub(super) struct Rows<'a> {
    /// The column with the ids.
    pub(super) id: &'static str,
    pub(super) from: &'static str,
    /// How the rows are locked, where there is more than one writer at a time.
    pub(super) lock: &'static str,
    pub(super) condition: Condition<'a>,
}

impl<'a> Rows<'a> {
    /// Keys.
    pub(super) fn keys(condition: Condition<'a>) -> Self {
        Self { id: "k.id", from: FROM, lock: "FOR UPDATE OF k", condition }
    }
}

impl KeyTable {
    /// Runs the steps on every row, batch by batch, and returns how many rows the first of them changed
    /// altogether. `progress` is told how many that are so far, after each batch.
    pub(super) async fn in_batches(
        &self,
        rows: Rows<'_>,
        steps: &[Step<'_>],
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<u64, StoreError> {
        let Rows { id, from, lock, condition } = rows;
        let has_several_writers = match &self.database {
            #[cfg(feature = "sqlite")]
            Database::Sqlite(_) => false,
            #[cfg(feature = "postgres")]
            Database::Postgres(_) => true,
        };
        let lock = if has_several_writers { lock } else { "" };
        let mut changed = 0;
        let mut last: Option<String> = None;
        loop {
            let mut session = Session::write(&self.database).await?;
            session.take_turns().await?;
            let mut condition = condition.clone();
            if let Some(last) = &last {
                condition.and(&format!("{id} > ?"), Value::Text(last));
            }
            let select = format!(
                "SELECT {id} {from} WHERE {} ORDER BY {id} LIMIT {BATCH} {lock}",
                condition.text
            );
            let ids = session.rows(&select, &condition.values).await?;
            let ids = ids.iter().map(|row| row.text(0)).collect::<Result<Vec<_>, _>>()?;
            let Some(end) = ids.last() else { return Ok(changed) };
            for (index, step) in steps.iter().enumerate() {
                let first = step.values.len() + 1;
                let places = (first..first + ids.len()).map(|number| format!("${number}"));
                let places = places.collect::<Vec<_>>().join(", ");
                let values = step.values.iter().copied();
                let values: Vec<_> = values.chain(ids.iter().map(|id| Value::Text(id))).collect();
                let statement = step.statement.replace("{ids}", &places);
                let rows = session.execute(&statement, &values).await?;
                if index == 0 {
                    changed += rows;
                }
            }
            session.commit().await?;
            progress(changed);
            if ids.len() < BATCH {
                return Ok(changed);
            }
            last = Some(end.clone());
        }
    }
}
