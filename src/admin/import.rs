//! Records from elsewhere.

use std::collections::HashMap;

use super::session::Session;
use super::table::KeyTable;
use crate::error::StoreError;
use crate::id::KeyId;
use crate::record::KeyRecord;
use crate::store::sql::value::Value;

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Records that were added.
    pub added: u64,
    /// Records that were there already, as they are.
    pub unchanged: u64,
    /// Ids whose key, or whose hash, is there already, but not the same.
    pub conflicts: Vec<KeyId>,
}

impl KeyTable {
    /// Adds records, all or none, and their owners where owners are the store's to create. What is there
    /// already, apart from traces of use, is passed over, so that an import can be run again. Where
    /// anything is there that differs, nothing is added, and the answer says what.
    ///
    /// # Errors
    /// [`StoreError::UnknownOwner`] in a database of the lexikon service; others when the database cannot
    /// write.
    #[doc(alias = "migrate")]
    pub async fn import(&self, records: &[KeyRecord]) -> Result<Imported, StoreError> {
        let mut session = Session::write(&self.database).await?;
        let mut imported = Imported::default();
        let present = self.present(&mut session, records).await?;
        for record in records {
            match present.get(&record.id.to_string()).or(present.get(&record.hash.to_hex())) {
                None => {
                    session.insert(record).await?;
                    imported.added += 1;
                }
                Some(known) if is_same(known, &self.as_stored(record)) => imported.unchanged += 1,
                Some(_) => imported.conflicts.push(record.id.clone()),
            }
        }
        if imported.conflicts.is_empty() {
            session.commit().await?;
        } else {
            session.rollback().await?;
            imported.added = 0;
        }
        Ok(imported)
    }

    /// Returns the rows that have the id or the hash of one of the records, by their ids and by their
    /// hashes.
    async fn present(
        &self,
        session: &mut Session,
        records: &[KeyRecord],
    ) -> Result<HashMap<String, KeyRecord>, StoreError> {
        let names: Vec<_> =
            records.iter().map(|record| (record.id.to_string(), record.hash.to_hex())).collect();
        let (mut ids, mut hashes, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (id, hash) in &names {
            values.extend([Value::from(&**id), Value::from(&**hash)]);
            ids.push(format!("${}", values.len() - 1));
            hashes.push(format!("${}", values.len()));
        }
        let mut present = HashMap::new();
        if names.is_empty() {
            return Ok(present);
        }
        let condition =
            format!("WHERE k.id IN ({}) OR k.key_hash IN ({})", ids.join(", "), hashes.join(", "));
        let select = self.statements().select_with("NULL", &condition);
        for record in session.rows(&select, &values, |row| self.read(row)).await? {
            present.insert(record.hash.to_hex(), record.clone());
            present.insert(record.id.to_string(), record);
        }
        Ok(present)
    }

    /// Returns the record as it will be read.
    fn as_stored(&self, record: &KeyRecord) -> KeyRecord {
        let expires_at = record.expires_at.map(|time| self.time_zone().stored(time));
        KeyRecord { expires_at, ..record.clone() }
    }
}

/// Returns whether two records say the same of a key. Traces of use may differ, the owner's state is the
/// owner's, and a revocation's details have no place in every table.
fn is_same(one: &KeyRecord, other: &KeyRecord) -> bool {
    let essence = |record: &KeyRecord| KeyRecord {
        owner_active: true,
        format: None,
        last_used_at: None,
        revocation: record.revocation.as_ref().map(|_| Box::default()),
        ..record.clone()
    };
    essence(one) == essence(other)
}
