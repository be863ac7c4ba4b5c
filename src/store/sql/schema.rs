//! The tables of the lexikon service, and what this crate adds to them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::StoreError;

/// The columns of `api_keys` that verification and management need.
const API_KEYS: [&str; 9] = [
    "id",
    "user_id",
    "key_hash",
    "name",
    "scopes",
    "is_active",
    "last_used_at",
    "created_at",
    "expires_at",
];

/// The columns of `users` that verification needs: all that an own schema has.
const USERS: [&str; 2] = ["id", "is_active"];

/// The column that the extension adds to both tables in SQLite: the number of a row's latest change.
pub(crate) const CHANGE: &str = "lexikon_auth_change";

/// The columns that the extension adds to `api_keys`. All nullable.
pub(crate) const EXTRA_COLUMNS: [&str; 3] = ["revoked_at", "revoked_reason", "hash_format"];

/// The table of the secrets that rows were written under.
pub(crate) const SECRETS: &str = "lexikon_auth_secrets";
/// The column of `SECRETS` that says since when every instance has had a secret as its current one.
pub(crate) const CURRENT_SINCE: &str = "current_since";
/// The table of the legacy policies that operators have set, the latest with the highest number.
pub(crate) const POLICIES: &str = "lexikon_auth_policies";
/// The table of what deprecation replaced.
pub(crate) const DEPRECATIONS: &str = "lexikon_auth_deprecations";
/// The table of what all instances have to agree on.
pub(crate) const SETTINGS: &str = "lexikon_auth_settings";

/// The table of the shared caches that instances use.
pub(crate) const CACHES: &str = "lexikon_auth_caches";

/// The extension's own tables, each with the statement that creates it.
pub(crate) const OWN_TABLES: [(&str, &str); 5] = [
    (
        SECRETS,
        "CREATE TABLE IF NOT EXISTS lexikon_auth_secrets (\
        fingerprint VARCHAR NOT NULL PRIMARY KEY, \
        added_at TIMESTAMP NOT NULL, \
        current_since TIMESTAMP)",
    ),
    (
        POLICIES,
        "CREATE TABLE IF NOT EXISTS lexikon_auth_policies (\
        number BIGINT NOT NULL PRIMARY KEY, \
        legacy VARCHAR NOT NULL, \
        accept_until TIMESTAMP, \
        changed_at TIMESTAMP NOT NULL, \
        changed_by VARCHAR NOT NULL)",
    ),
    (
        DEPRECATIONS,
        "CREATE TABLE IF NOT EXISTS lexikon_auth_deprecations (\
        key_id VARCHAR NOT NULL PRIMARY KEY, \
        expires_at_before TIMESTAMP, \
        expires_at_set TIMESTAMP NOT NULL, \
        deprecated_at TIMESTAMP NOT NULL)",
    ),
    (
        SETTINGS,
        "CREATE TABLE IF NOT EXISTS lexikon_auth_settings (\
        name VARCHAR NOT NULL PRIMARY KEY, \
        value VARCHAR NOT NULL)",
    ),
    (
        CACHES,
        "CREATE TABLE IF NOT EXISTS lexikon_auth_caches (\
        prefix VARCHAR NOT NULL, \
        address VARCHAR NOT NULL, \
        last_seen_at TIMESTAMP NOT NULL, \
        PRIMARY KEY (prefix, address))",
    ),
];

/// The tables that concern this crate.
pub(super) const TABLES: [&str; 7] =
    ["api_keys", "users", SECRETS, POLICIES, DEPRECATIONS, SETTINGS, CACHES];

/// What a database offers: the columns of the tables that concern this crate. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Schema(Arc<HashMap<&'static str, Vec<String>>>);

impl Schema {
    /// Makes a schema of the tables that are there.
    ///
    /// # Errors
    /// [`StoreError::Schema`] where they are not those of the lexikon service.
    pub(super) fn new(tables: HashMap<&'static str, Vec<String>>) -> Result<Self, StoreError> {
        let schema = Self(Arc::new(tables));
        for (table, required) in [("api_keys", &API_KEYS[..]), ("users", &USERS)] {
            let problem = if !schema.has_table(table) {
                "is missing; open an empty database, in PostgreSQL also an empty schema \
                 (?options=-csearch_path%3Dname), or that of a lexikon service"
                    .to_owned()
            } else if let Some(column) = required.iter().find(|name| !schema.has(table, name)) {
                format!("has no column {column}; open the database of a lexikon service")
            } else {
                continue;
            };
            return Err(StoreError::Schema(format!("table {table} {problem}")));
        }
        Ok(schema)
    }

    pub(crate) fn has_table(&self, table: &str) -> bool {
        self.0.contains_key(table)
    }

    /// Returns whether a table has a column.
    pub(crate) fn has(&self, table: &str, column: &str) -> bool {
        self.0.get(table).is_some_and(|columns| columns.iter().any(|known| known == column))
    }

    /// Returns whether `api_keys` has the columns of the extension.
    pub(crate) fn has_extra_columns(&self) -> bool {
        EXTRA_COLUMNS.iter().all(|column| self.has("api_keys", column))
    }

    /// Returns whether `users` is this crate's own, with nothing but an id and a state.
    pub(crate) fn owns_users(&self) -> bool {
        self.0["users"].iter().all(|column| USERS.contains(&&**column) || column == CHANGE)
    }

    /// Fails where the extension was not added, with its `table`.
    pub(crate) fn require_table(&self, table: &str) -> Result<(), StoreError> {
        let problem = || format!("table {table} is missing; run extend_schema first");
        if self.has_table(table) { Ok(()) } else { Err(StoreError::Schema(problem())) }
    }

    /// Fails where the extension is of a version without a column.
    pub(crate) fn require_column(&self, table: &str, column: &str) -> Result<(), StoreError> {
        let problem = || format!("table {table} has no column {column}; run extend_schema first");
        if self.has(table, column) { Ok(()) } else { Err(StoreError::Schema(problem())) }
    }
}
