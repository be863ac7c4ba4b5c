//! One handle for the usual: a database, its caches, and all that has to run beside them.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod database;
mod keys;
mod layers;
mod options;

pub use self::keys::ApiKeys;
pub use self::options::ApiKeysOptions;
