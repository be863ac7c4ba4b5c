//! What the lexikon service's own code wrote, and the answers that it gave.

/// A database in SQLite.
pub const SQLITE: &[u8] = include_bytes!("../data/lexikon.sqlite");

/// The plaintext of each key in [`SQLITE`], with the answer.
pub const SQLITE_CASES: &str = include_str!("../data/lexikon_sqlite_cases.json");

/// A dump of a database in PostgreSQL.
pub const POSTGRES: &str = include_str!("../data/lexikon_postgres.sql");

/// The plaintext of each key in [`POSTGRES`], with the answer.
pub const POSTGRES_CASES: &str = include_str!("../data/lexikon_postgres_cases.json");

/// Keys with their hashes in both formats.
pub const HASH_VECTORS: &str = include_str!("../../src/crypto/hash_vectors.json");
