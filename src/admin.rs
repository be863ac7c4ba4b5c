//! The table of keys as a whole: what an operator asks and changes.

mod batches;
mod caches;
mod database;
mod deprecation;
mod filter;
mod import;
mod policy;
mod preflight;
mod secrets;
mod session;
mod status;
mod table;
mod time_zone;

pub use self::batches::BatchObserver;
pub use self::deprecation::{DeprecatedKeys, DeprecationDates};
pub use self::filter::{KeyFilter, KnownFormat};
pub use self::import::Imported;
pub use self::policy::StoredPolicy;
pub use self::secrets::KnownSecret;
pub use self::status::{ClassCounts, LastUses, LegacyImpact, MigrationStatus};
pub use self::table::{KeyTable, ListedKey};
pub use self::time_zone::{ImpossibleUse, ZoneReplacement};
