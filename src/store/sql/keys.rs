//! The methods of a store, each one statement or one transaction.

use std::array::from_fn;
use std::sync::Arc;
use std::time::SystemTime;

use super::dialect::Dialect;
use super::row::{Row, only};
use super::schema::{CACHES, DEPRECATIONS};
use super::statements::{REGISTER_CACHE, SELECT_EXPIRY_BEFORE, Statements};
use super::store::SqlStore;
use super::value::Value;
use crate::crypto::hash::{Candidates, HashFormat, KeyHash};
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::KeyRecord;
use crate::record::KeyUpdate;
use crate::store::{
    FeedEvent, FormatCounts, HashChange, KeyLookup, KeyStore, Page, SharedCache, Succession, Usage,
};
use crate::telemetry::Operation;
use crate::util::time::MICROSECOND;

impl<DB: Dialect> KeyLookup for SqlStore<DB> {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let call = async {
            let hashes = candidates.as_slice();
            let find = self.statements.find[hashes.len() - 1].clone();
            // In place: this is the statement that requests wait for.
            let values: [_; Candidates::MAX] =
                from_fn(|index| hashes.get(index).map(|hash| hash.to_hex().into()));
            let rows = self.fetch(find, &values.map(Value::Text)[..hashes.len()]).await?;
            let records = rows.iter().map(|row| self.read(row)).collect::<Result<Vec<_>, _>>()?;
            Ok(earliest(hashes, records).map(Arc::new))
        };
        self.metrics.measure(Operation::Find, call).await
    }

    async fn on_feed_event(&self, _: &FeedEvent) {}

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        if !self.has_table(CACHES).await? {
            return Ok(());
        }
        let now = Value::Time("last_seen_at", Some(SystemTime::now()));
        let values = [cache.prefix.as_str().into(), cache.address.as_str().into(), now];
        self.execute(REGISTER_CACHE, &values).await.map(drop)
    }
}

impl<DB: Dialect> KeyStore for SqlStore<DB> {
    async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let (store, record) = (self.clone(), record.clone());
        let call = DB::write(&self.connections, move |connection| {
            Box::pin(async move { store.insert_on(connection, &record).await })
        });
        self.metrics.measure(Operation::Insert, call).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let call = async {
            let rows = self.fetch(self.statements.find_by_id.clone(), &[id.into()]).await?;
            Ok(rows.first().map(|row| self.read(row)).transpose()?.map(Arc::new))
        };
        self.metrics.measure(Operation::FindById, call).await
    }

    async fn list(&self, owner: &OwnerId, page: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        let call = async {
            let Statements { list, list_after, .. } = &*self.statements;
            let list = if page.after.is_some() { list_after } else { list };
            let mut values = vec![owner.as_str().into(), page.limit.into()];
            values.extend(page.after.as_ref().map(Value::from));
            let rows = self.fetch(list.clone(), &values).await?;
            rows.iter().map(|row| self.read(row).map(Arc::new)).collect()
        };
        self.metrics.measure(Operation::List, call).await
    }

    async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Result<(), StoreError> {
        let call = async {
            let values = [
                id.into(),
                update.name.as_deref().into(),
                update.scopes.as_ref().map(|scopes| scopes.as_str()).into(),
                update.expires_at.is_some().into(),
                self.local("expires_at", update.expires_at.flatten()),
            ];
            require_found(id, self.execute(self.statements.update.clone(), &values).await?)
        };
        self.metrics.measure(Operation::Update, call).await
    }

    async fn revoke(
        &self,
        id: &KeyId,
        at: SystemTime,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        let call = async {
            let values = [id.into(), Value::Time("revoked_at", Some(at)), reason.into()];
            require_found(id, self.execute(self.statements.revoke.clone(), &values).await?)
        };
        self.metrics.measure(Operation::Revoke, call).await
    }

    async fn rotate(&self, succession: &Succession) -> Result<(), StoreError> {
        let store = self.clone();
        let Succession { old, old_expires_at, successor, now } = succession.clone();
        let call = DB::write(&self.connections, move |connection| {
            Box::pin(async move {
                let statements = &store.statements;
                // Two rotations of one key take turns, and the second sees what the first did.
                let find = statements.find_to_write.clone();
                let stored = DB::fetch_on(connection, find, &[Value::from(&old.id)]).await?;
                let stored = stored.first().ok_or_else(|| StoreError::NotFound(old.id.clone()))?;
                store.read(stored)?.check_rotation(&old, now)?;
                store.insert_on(connection, &successor).await?;
                let is_deprecated = store.schema.has_table(DEPRECATIONS)
                    && !DB::fetch_on(connection, SELECT_EXPIRY_BEFORE, &[Value::from(&old.id)])
                        .await?
                        .is_empty();
                let expires_at = rotated_expiry(&old, old_expires_at, is_deprecated);
                let values = [Value::from(&old.id), store.local("expires_at", Some(expires_at))];
                DB::execute_on(connection, statements.set_expiry.clone(), &values).await.map(drop)
            })
        });
        self.metrics.measure(Operation::Rotate, call).await
    }

    async fn expiry_before_deprecation(
        &self,
        id: &KeyId,
    ) -> Result<Option<Option<SystemTime>>, StoreError> {
        if !self.schema.has_table(DEPRECATIONS) {
            return Ok(None);
        }
        let rows = self.fetch(SELECT_EXPIRY_BEFORE, &[id.into()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(row.time(0)?.map(|local| self.time_zone().first_instant(local))))
    }

    async fn expire(&self, now: SystemTime) -> Result<u64, StoreError> {
        let call = async {
            let reached = self.time_zone().reached(now);
            let values =
                [Value::Time("expires_at", Some(reached)), Value::Time("revoked_at", Some(now))];
            self.execute(self.statements.expire.clone(), &values).await
        };
        self.metrics.measure(Operation::Expire, call).await
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        let call = DB::record_usage(&self.connections, &self.schema, self.time_zone(), batch);
        self.metrics.measure(Operation::RecordUsage, call).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        let call = async {
            let values = [
                Value::from(&change.id),
                Value::from(&change.expected),
                Value::from(&change.replacement),
                HashFormat::HmacSha256.into(),
            ];
            match self.execute(self.statements.replace_hash.clone(), &values).await {
                Ok(changed) => Ok(changed == 1),
                Err(StoreError::Conflict) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.metrics.measure(Operation::ReplaceHash, call).await
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        let call = async {
            let row = only(self.fetch(self.statements.count_by_format.clone(), &[]).await?)?;
            let (hmac_sha256, sha256) = (row.count(0)?, row.count(1)?);
            Ok(FormatCounts { hmac_sha256, sha256, unknown: row.count(2)? - hmac_sha256 - sha256 })
        };
        self.metrics.measure(Operation::CountByFormat, call).await
    }
}

/// Returns the record of the earliest candidate, of the rows that a look-up found.
fn earliest(hashes: &[KeyHash], records: Vec<KeyRecord>) -> Option<KeyRecord> {
    let preference = |record: &KeyRecord| hashes.iter().position(|hash| *hash == record.hash);
    records.into_iter().min_by_key(preference)
}

/// Fails where an update of one row by its id changed none.
fn require_found(id: &KeyId, rows: u64) -> Result<(), StoreError> {
    if rows == 0 { Err(StoreError::NotFound(id.clone())) } else { Ok(()) }
}

/// Returns when a key expires that is rotated. Undoing a deprecation must not bring it back, so its date may
/// not be the one that the deprecation set.
fn rotated_expiry(old: &KeyRecord, old_expires_at: SystemTime, is_deprecated: bool) -> SystemTime {
    match old.expires_at {
        Some(date) if date <= old_expires_at => {
            if is_deprecated {
                date - MICROSECOND
            } else {
                date
            }
        }
        _ => old_expires_at,
    }
}
