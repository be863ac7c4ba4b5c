//! Where instances find the legacy policy that they share.

use std::future::Future;

use crate::error::StoreError;
use crate::policy::LegacyPolicy;

/// Where a legacy policy is kept that instances share: `SqliteStore` and `PostgresStore`, whose databases
/// hold it.
pub trait PolicySource: Send + Sync + 'static {
    /// The policy, or `None` where none has been set: then a verifier keeps its own, which this can tighten
    /// and never loosen.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    fn legacy_policy(
        &self,
    ) -> impl Future<Output = Result<Option<LegacyPolicy>, StoreError>> + Send;
}
