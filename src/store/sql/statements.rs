//! The statements that SQLite and PostgreSQL both understand.

use std::array::from_fn;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::dialect::Dialect;
use super::schema::Schema;
use crate::crypto::hash::{Candidates, HashFormat};

/// Keys with their owners.
pub(crate) const FROM: &str = "FROM api_keys k LEFT JOIN users u ON u.id = k.user_id";

pub(crate) const REGISTER_CACHE: SqlStr = SqlStr::from_static(
    "INSERT INTO lexikon_auth_caches \
     (prefix, address, last_seen_at) VALUES ($1, $2, $3) \
     ON CONFLICT (prefix, address) DO UPDATE SET last_seen_at = excluded.last_seen_at",
);
pub(crate) const SELECT_SECRETS: SqlStr = SqlStr::from_static(
    "SELECT fingerprint FROM lexikon_auth_secrets ORDER BY added_at, fingerprint",
);
pub(crate) const INSERT_SECRET: SqlStr = SqlStr::from_static(
    "INSERT INTO lexikon_auth_secrets (fingerprint, added_at) \
     VALUES ($1, $2) ON CONFLICT DO NOTHING",
);
pub(crate) const SELECT_POLICY: SqlStr = SqlStr::from_static(
    "SELECT legacy, accept_until FROM lexikon_auth_policies ORDER BY number DESC LIMIT 1",
);

pub(crate) const SELECT_TIME_ZONE: SqlStr =
    SqlStr::from_static("SELECT value FROM lexikon_auth_settings WHERE name = 'time_zone'");
/// The first one stands.
pub(crate) const INSERT_TIME_ZONE: SqlStr = SqlStr::from_static(
    "INSERT INTO lexikon_auth_settings (name, value) \
     VALUES ('time_zone', $1) ON CONFLICT DO NOTHING",
);
/// The expiry that a key had before the deprecation that it is under.
pub(crate) const SELECT_EXPIRY_BEFORE: SqlStr = SqlStr::from_static(
    "SELECT d.expires_at_before \
     FROM lexikon_auth_deprecations d \
     JOIN api_keys k ON k.id = d.key_id AND k.expires_at = d.expires_at_set WHERE k.id = $1",
);

/// Adds an owner who is not there. Not by a conflict alone, which the feed of changes of SQLite takes for a
/// replacement.
pub(crate) const INSERT_OWNER: SqlStr = SqlStr::from_static(
    "INSERT INTO users (id, is_active) \
     SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM users WHERE id = $1) ON CONFLICT DO NOTHING",
);
pub(crate) const SET_OWNER_ACTIVE: SqlStr =
    SqlStr::from_static("UPDATE users SET is_active = $2 WHERE id = $1");
/// The same where owners are this crate's own.
pub(crate) const UPSERT_OWNER: SqlStr = SqlStr::from_static(
    "INSERT INTO users (id, is_active) VALUES ($1, $2) \
     ON CONFLICT (id) DO UPDATE SET is_active = excluded.is_active",
);

/// The statements of a store, made once from the columns that its table has.
#[derive(Debug)]
pub(crate) struct Statements {
    /// The columns of a record, in the order in which rows are read.
    columns: String,
    /// The look-ups for one candidate, for two, and so on.
    pub(crate) find: [SqlStr; Candidates::MAX],
    pub(crate) find_by_id: SqlStr,
    /// Of a row that the transaction will write.
    pub(crate) find_to_write: SqlStr,
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
    pub(crate) fn new<DB: Dialect>(schema: &Schema) -> Self {
        const HMAC_SHA256: HashFormat = HashFormat::HmacSha256;
        const SHA256: HashFormat = HashFormat::Sha256;
        let if_extended = |part| if schema.has_extra_columns() { part } else { "" };
        let extra_columns = if schema.has_extra_columns() {
            "k.revoked_at, k.revoked_reason, k.hash_format"
        } else {
            // Typed, because PostgreSQL takes a bare NULL for text.
            "CAST(NULL AS TIMESTAMP), CAST(NULL AS VARCHAR), CAST(NULL AS VARCHAR)"
        };
        let columns = format!(
            "k.id, k.user_id, u.is_active, k.key_hash, k.name, k.scopes, k.is_active, \
             k.created_at, k.expires_at, k.last_used_at, {extra_columns}"
        );
        let select = format!("SELECT {columns} {FROM}");
        let find = |candidates: usize| {
            // Not one array: for an array of unknown length PostgreSQL expects ten elements, finds a plan
            // made for the actual ones cheaper, and plans anew with every statement.
            let others: String = (2..=candidates).map(|place| format!(", ${place}")).collect();
            constant(format!("{select} WHERE k.key_hash IN ($1{others})"))
        };
        let (id, oldest) = (DB::ID_IN_BYTE_ORDER, DB::OLDEST);
        let created = format!("coalesce(k.created_at, '{oldest}')");
        let page = format!("ORDER BY {created} DESC, {id} DESC LIMIT $2");
        let more_columns = if_extended(", revoked_at, revoked_reason, hash_format");
        let more_values = if_extended(", $10, $11, $12");
        let revocation = if_extended(
            ", revoked_at = CASE WHEN is_active THEN $2 ELSE revoked_at END, \
             revoked_reason = CASE WHEN is_active THEN $3 ELSE revoked_reason END",
        );
        let expiry = if_extended(", revoked_at = $2, revoked_reason = 'expired'");
        let upgrade = if_extended(", hash_format = $4");
        let format =
            if schema.has_extra_columns() { "hash_format" } else { "CAST(NULL AS VARCHAR)" };
        Self {
            find: from_fn(|index| find(index + 1)),
            find_by_id: constant(format!("{select} WHERE k.id = $1")),
            find_to_write: constant(format!("{select} WHERE k.id = $1 {}", DB::LOCK_ROW)),
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
                "UPDATE api_keys SET is_active = FALSE{expiry} WHERE is_active AND expires_at <= $1"
            )),
            replace_hash: constant(format!(
                "UPDATE api_keys SET key_hash = $3{upgrade} WHERE id = $1 AND key_hash = $2"
            )),
            count_by_format: constant(format!(
                "SELECT count(*) FILTER (WHERE {format} = '{HMAC_SHA256}'), \
                 count(*) FILTER (WHERE {format} = '{SHA256}'), count(*) FROM api_keys WHERE is_active"
            )),
            columns,
        }
    }

    /// Returns a query for the records that `condition` selects, each with another column at its end.
    pub(crate) fn select_with(&self, column: &str, condition: &str) -> String {
        format!("SELECT {}, {column} {FROM} {condition}", self.columns)
    }
}

/// Marks a statement as made of constants alone: values are always bound. Clones share it.
pub(crate) fn constant(statement: impl Into<Arc<str>>) -> SqlStr {
    AssertSqlSafe(statement.into()).into_sql_str()
}
