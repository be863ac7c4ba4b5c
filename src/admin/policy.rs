//! The legacy policy that instances follow.

use std::time::SystemTime;

use super::session::Session;
use super::table::KeyTable;
use crate::error::StoreError;
use crate::policy::LegacyPolicy;
use crate::store::sql::row::Row;
use crate::store::sql::schema::POLICIES;
use crate::store::sql::settings::read_policy;
use crate::store::sql::value::Value;

/// A legacy policy that an operator has set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredPolicy {
    /// The policy.
    pub policy: LegacyPolicy,
    /// When it was set.
    pub changed_at: SystemTime,
    /// Who set it, as they said.
    pub changed_by: String,
}

impl KeyTable {
    /// Sets the legacy policy that the instances follow which call
    /// [`follow_policy`](crate::Verifier::follow_policy): within seconds. Dates are kept to the
    /// microsecond. Policies set before are kept as a history.
    ///
    /// # Errors
    /// [`StoreError::Schema`] without the extension of the schema; others when the database cannot write.
    pub async fn set_policy(&self, policy: LegacyPolicy, by: &str) -> Result<(), StoreError> {
        self.schema().require_table(POLICIES)?;
        let accept_until = match policy {
            LegacyPolicy::AcceptUntil(date) => Some(date),
            _ => None,
        };
        let insert = format!(
            "INSERT INTO {POLICIES} (number, legacy, accept_until, changed_at, changed_by) \
             SELECT coalesce(max(number), 0) + 1, $1, $2, $3, $4 FROM {POLICIES}"
        );
        let values = [
            policy.as_str().into(),
            Value::Time("a date", accept_until),
            Value::date(self.now()),
            by.into(),
        ];
        let mut session = Session::write(&self.database).await?;
        session.lock_maintenance().await?;
        session.execute(&insert, &values).await?;
        session.commit().await
    }

    /// Returns the policies that were set last, latest first; none where instances go by what their code
    /// says.
    ///
    /// # Errors
    /// [`StoreError::Schema`] when one is not known to this version; others when the database cannot
    /// answer.
    #[doc(alias = "audit")]
    #[doc(alias = "history")]
    pub async fn policies(&self, limit: u32) -> Result<Vec<StoredPolicy>, StoreError> {
        if !self.schema().has_table(POLICIES) {
            return Ok(Vec::new());
        }
        let select = format!(
            "SELECT legacy, accept_until, changed_at, changed_by FROM {POLICIES} \
             ORDER BY number DESC LIMIT $1"
        );
        let read = |row: &dyn Row| {
            Ok(StoredPolicy {
                policy: read_policy(row)?,
                changed_at: row.time(2)?.unwrap_or(SystemTime::UNIX_EPOCH),
                changed_by: row.string(3)?,
            })
        };
        self.rows(&select, &[limit.into()], read).await
    }
}
