//! What the SQL stores share: the lexikon service's tables, and statements that SQLite and PostgreSQL
//! both understand.

use std::time::{Duration, SystemTime};

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::FormatCounts;
use crate::crypto::hash::KeyHash;
use crate::crypto::secret::ServerSecret;
use crate::error::StoreError;
use crate::id::KeyId;
use crate::policy::LegacyPolicy;
use crate::record::KeyRecord;
use crate::time_zone::TimeZone;

/// The columns of `api_keys` that verification and management need.
pub(crate) const API_KEYS: [&str; 9] = [
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
pub(crate) const USERS: [&str; 2] = ["id", "is_active"];

/// The column that the extension adds to both tables in SQLite: the number of a row's latest change.
pub(crate) const CHANGE: &str = "lexikon_auth_change";

/// The columns that the extension of the schema adds to `api_keys`. All nullable.
pub(crate) const DETAILS: [&str; 3] = ["revoked_at", "revoked_reason", "hash_format"];

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

/// The extension's own tables.
pub(crate) const CREATE_TABLES: [&str; 5] = [
    "CREATE TABLE IF NOT EXISTS lexikon_auth_secrets (\
        fingerprint VARCHAR NOT NULL PRIMARY KEY, \
        added_at TIMESTAMP NOT NULL, \
        current_since TIMESTAMP)",
    "CREATE TABLE IF NOT EXISTS lexikon_auth_policies (\
        number BIGINT NOT NULL PRIMARY KEY, \
        legacy VARCHAR NOT NULL, \
        accept_until TIMESTAMP, \
        changed_at TIMESTAMP NOT NULL, \
        changed_by VARCHAR NOT NULL)",
    "CREATE TABLE IF NOT EXISTS lexikon_auth_deprecations (\
        key_id VARCHAR NOT NULL PRIMARY KEY, \
        expires_at_before TIMESTAMP, \
        expires_at_set TIMESTAMP NOT NULL, \
        deprecated_at TIMESTAMP NOT NULL)",
    "CREATE TABLE IF NOT EXISTS lexikon_auth_settings (\
        name VARCHAR NOT NULL PRIMARY KEY, \
        value VARCHAR NOT NULL)",
    "CREATE TABLE IF NOT EXISTS lexikon_auth_caches (\
        prefix VARCHAR NOT NULL, \
        address VARCHAR NOT NULL, \
        last_seen_at TIMESTAMP NOT NULL, \
        PRIMARY KEY (prefix, address))",
];
pub(crate) const REGISTER_CACHE: &str = "INSERT INTO lexikon_auth_caches \
     (prefix, address, last_seen_at) VALUES ($1, $2, $3) \
     ON CONFLICT (prefix, address) DO UPDATE SET last_seen_at = excluded.last_seen_at";
pub(crate) const SELECT_SECRETS: &str =
    "SELECT fingerprint FROM lexikon_auth_secrets ORDER BY added_at, fingerprint";
pub(crate) const INSERT_SECRET: &str = "INSERT INTO lexikon_auth_secrets (fingerprint, added_at) \
     VALUES ($1, $2) ON CONFLICT DO NOTHING";
pub(crate) const SELECT_POLICY: &str =
    "SELECT legacy, accept_until FROM lexikon_auth_policies ORDER BY number DESC LIMIT 1";

pub(crate) const SELECT_TIME_ZONE: &str =
    "SELECT value FROM lexikon_auth_settings WHERE name = 'time_zone'";
/// The first one stands.
pub(crate) const INSERT_TIME_ZONE: &str = "INSERT INTO lexikon_auth_settings (name, value) \
     VALUES ('time_zone', $1) ON CONFLICT DO NOTHING";
/// The expiry that a key had before the deprecation that it is under.
pub(crate) const SELECT_EXPIRY_BEFORE: &str = "SELECT d.expires_at_before \
     FROM lexikon_auth_deprecations d \
     JOIN api_keys k ON k.id = d.key_id AND k.expires_at = d.expires_at_set WHERE k.id = $1";

/// What a database offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schema {
    /// Whether `api_keys` has the columns of the extension.
    pub(crate) has_details: bool,
    /// Whether `users` is this crate's own, with nothing but an id and a state.
    pub(crate) owns_users: bool,
    /// Whether `users` says where an owner is written to.
    pub(crate) has_email: bool,
    /// Whether the table of secrets is there.
    pub(crate) has_secrets: bool,
    /// Whether it says since when a secret is current.
    pub(crate) has_current_since: bool,
    /// Whether the table of policies is there.
    pub(crate) has_policies: bool,
    /// Whether the table of deprecations is there.
    pub(crate) has_deprecations: bool,
    /// Whether the table of settings is there.
    pub(crate) has_settings: bool,
    /// Whether the table of shared caches is there.
    pub(crate) has_caches: bool,
}

impl Schema {
    /// Recognises the tables by their columns.
    pub(crate) fn recognise(tables: &Tables) -> Result<Self, StoreError> {
        let Tables { api_keys, users, secrets, policies, deprecations, settings, caches } = tables;
        require("api_keys", api_keys, &API_KEYS)?;
        require("users", users, &USERS)?;
        let has = |columns: &[String], name: &str| columns.iter().any(|column| column == name);
        Ok(Self {
            has_details: DETAILS.iter().all(|column| has(api_keys, column)),
            owns_users: users.iter().all(|name| USERS.contains(&&**name) || name == CHANGE),
            has_email: has(users, "email"),
            has_secrets: !secrets.is_empty(),
            has_current_since: has(secrets, CURRENT_SINCE),
            has_policies: !policies.is_empty(),
            has_deprecations: !deprecations.is_empty(),
            has_settings: !settings.is_empty(),
            has_caches: !caches.is_empty(),
        })
    }
}

/// The columns of the tables that concern this crate; none where there is no such table.
pub(crate) struct Tables {
    pub(crate) api_keys: Vec<String>,
    pub(crate) users: Vec<String>,
    pub(crate) secrets: Vec<String>,
    pub(crate) policies: Vec<String>,
    pub(crate) deprecations: Vec<String>,
    pub(crate) settings: Vec<String>,
    pub(crate) caches: Vec<String>,
}

fn require(table: &str, known: &[String], required: &[&str]) -> Result<(), StoreError> {
    if known.is_empty() {
        let problem = "is missing; open the database of a lexikon service, or an empty one";
        return Err(StoreError::Schema(format!("table {table} {problem}")));
    }
    match required.iter().find(|column| !known.iter().any(|known| known == *column)) {
        Some(column) => Err(StoreError::Schema(format!(
            "table {table} has no column {column}; open the database of a lexikon service"
        ))),
        None => Ok(()),
    }
}

/// Keys with their owners.
pub(crate) const FROM: &str = "FROM api_keys k LEFT JOIN users u ON u.id = k.user_id";

/// The statements of a store, made once from the columns that its table has.
#[derive(Debug)]
pub(crate) struct Statements {
    /// The columns of a record, in the order in which rows are read.
    columns: String,
    pub(crate) find_by_id: SqlStr,
    pub(crate) list: SqlStr,
    pub(crate) list_after: SqlStr,
    pub(crate) insert: SqlStr,
    pub(crate) update: SqlStr,
    pub(crate) set_expiry: SqlStr,
    pub(crate) revoke: SqlStr,
    pub(crate) expire: SqlStr,
    pub(crate) replace_hash: SqlStr,
    pub(crate) count_by_format: SqlStr,
}

impl Statements {
    /// `oldest` is a value of `created_at` before every other, for rows that have none; `id` is the
    /// column in the order of its bytes, whatever the database's collation.
    pub(crate) fn new(schema: Schema, oldest: &str, id: &str) -> Self {
        let details = |with: &'static str, without| if schema.has_details { with } else { without };
        let columns = details(
            "k.revoked_at, k.revoked_reason, k.hash_format",
            // Typed, because PostgreSQL takes a bare NULL for text.
            "CAST(NULL AS TIMESTAMP), CAST(NULL AS VARCHAR), CAST(NULL AS VARCHAR)",
        );
        let columns = format!(
            "k.id, k.user_id, u.is_active, k.key_hash, k.name, k.scopes, k.is_active, \
             k.created_at, k.expires_at, k.last_used_at, {columns}"
        );
        let select = format!("SELECT {columns} {FROM}");
        let created = format!("coalesce(k.created_at, '{oldest}')");
        let page = format!("ORDER BY {created} DESC, {id} DESC LIMIT $2");
        let (more_columns, more_values) = (
            details(", revoked_at, revoked_reason, hash_format", ""),
            details(", $10, $11, $12", ""),
        );
        let revocation = details(
            ", revoked_at = CASE WHEN is_active THEN $2 ELSE revoked_at END, \
             revoked_reason = CASE WHEN is_active THEN $3 ELSE revoked_reason END",
            "",
        );
        let format = details("hash_format", "CAST(NULL AS VARCHAR)");
        Self {
            find_by_id: constant(format!("{select} WHERE k.id = $1")),
            list: constant(format!("{select} WHERE k.user_id = $1 {page}")),
            // By the stored value of the last row: one time has several texts in SQLite.
            list_after: constant(format!(
                "{select} WHERE k.user_id = $1 AND ({created}, {id}) < \
                 (SELECT {created}, {id} FROM api_keys k WHERE k.id = $3 AND k.user_id = $1) {page}"
            )),
            insert: constant(format!(
                "INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at, \
                 expires_at, last_used_at{more_columns}) \
                 SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9{more_values} \
                 WHERE EXISTS (SELECT 1 FROM users WHERE id = $2)"
            )),
            update: constant(
                "UPDATE api_keys SET name = coalesce($2, name), scopes = coalesce($3, scopes), \
                 expires_at = CASE WHEN $4 THEN $5 ELSE expires_at END WHERE id = $1",
            ),
            set_expiry: constant("UPDATE api_keys SET expires_at = $2 WHERE id = $1"),
            // A revoked row is written again with what it holds, so that it counts as found.
            revoke: constant(format!(
                "UPDATE api_keys SET is_active = FALSE{revocation} WHERE id = $1"
            )),
            // In SQLite, texts of one format compare as their times do, also without a fraction.
            expire: constant(format!(
                "UPDATE api_keys SET is_active = FALSE{} WHERE is_active AND expires_at <= $1",
                details(", revoked_at = $2, revoked_reason = 'expired'", "")
            )),
            replace_hash: constant(format!(
                "UPDATE api_keys SET key_hash = $3{} WHERE id = $1 AND key_hash = $2",
                details(", hash_format = 'hmac-sha256'", "")
            )),
            count_by_format: constant(format!(
                "SELECT count(*) FILTER (WHERE {format} = 'hmac-sha256'), \
                 count(*) FILTER (WHERE {format} = 'sha256'), count(*) FROM api_keys WHERE is_active"
            )),
            columns,
        }
    }

    /// A query for the records that `condition` selects.
    pub(crate) fn select(&self, condition: &str) -> SqlStr {
        constant(format!("SELECT {} {FROM} {condition}", self.columns))
    }

    /// A query for the records that `condition` selects, each with another column at its end.
    pub(crate) fn select_with(&self, column: &str, condition: &str) -> String {
        format!("SELECT {}, {column} {FROM} {condition}", self.columns)
    }
}

/// A statement made of constants alone: values are always bound.
pub(crate) fn constant(statement: impl Into<String>) -> SqlStr {
    AssertSqlSafe(statement.into()).into_sql_str()
}

/// When a key expires that is rotated. Undoing a deprecation must not bring it back, so its date may not be
/// the one that the deprecation set.
pub(crate) fn rotated_expiry(
    old: &KeyRecord,
    old_expires_at: SystemTime,
    is_deprecated: bool,
) -> SystemTime {
    match old.expires_at {
        Some(date) if date <= old_expires_at => {
            // The shortest time that columns hold.
            if is_deprecated { date - Duration::from_micros(1) } else { date }
        }
        _ => old_expires_at,
    }
}

/// An update of one row by its id has to meet it.
pub(crate) fn found(id: &KeyId, rows: u64) -> Result<(), StoreError> {
    if rows == 0 { Err(StoreError::NotFound(id.clone())) } else { Ok(()) }
}

/// From the answer to [`SELECT_POLICY`].
pub(crate) fn policy(
    legacy: &str,
    accept_until: Option<SystemTime>,
) -> Result<LegacyPolicy, StoreError> {
    LegacyPolicy::from_name(legacy, accept_until).ok_or_else(|| {
        StoreError::Schema(format!(
            "table {POLICIES} holds the policy {legacy:?}, which this version does not know; update \
             this program, or set another policy"
        ))
    })
}

/// From the answer to [`SELECT_TIME_ZONE`].
pub(crate) fn time_zone(name: &str) -> Result<TimeZone, StoreError> {
    name.parse().map_err(|_| {
        StoreError::Schema(format!(
            "table {SETTINGS} holds the time zone {name:?}, which this version does not know; update \
             this program, or mend the row"
        ))
    })
}

/// From the answer to [`Statements::count_by_format`]: HMAC-SHA-256, SHA-256, and all.
pub(crate) fn counts((hmac_sha256, sha256, all): (i64, i64, i64)) -> FormatCounts {
    FormatCounts {
        hmac_sha256: hmac_sha256.unsigned_abs(),
        sha256: sha256.unsigned_abs(),
        unknown: (all - hmac_sha256 - sha256).unsigned_abs(),
    }
}

/// Of the rows that a look-up found, the one of the earliest candidate.
pub(crate) fn earliest(hashes: &[KeyHash], records: Vec<KeyRecord>) -> Option<KeyRecord> {
    let preference = |record: &KeyRecord| hashes.iter().position(|hash| *hash == record.hash);
    records.into_iter().min_by_key(preference)
}

/// Whether the database knows the secret that would write to it; `None` when it knows none yet.
pub(crate) fn knows(current: &ServerSecret, known: &[String]) -> Result<Option<()>, StoreError> {
    let current = current.fingerprint();
    match known {
        [] => Ok(None),
        _ if known.contains(&current.to_string()) => Ok(Some(())),
        _ => Err(StoreError::UnknownSecret { current, known: known.join(", ") }),
    }
}

/// A secret can be added only where there is a table for it.
pub(crate) fn require_secrets(schema: Schema) -> Result<(), StoreError> {
    let problem = "table lexikon_auth_secrets is missing; run extend_schema first";
    if schema.has_secrets { Ok(()) } else { Err(StoreError::Schema(problem.to_owned())) }
}
