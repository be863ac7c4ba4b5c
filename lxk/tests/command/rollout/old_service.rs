//! The versions of the service before this crate, written from the facts of the service alone.

use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use lexikon_auth_tests::SECRETS;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};

/// The database, as code sees it that does not know this crate.
#[derive(Clone)]
pub enum Database {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Database {
    pub async fn run(&self, statement: String) {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement));
        match self {
            Self::Sqlite(pool) => statement.execute(pool).await.map(drop),
            Self::Postgres(pool) => statement.execute(pool).await.map(drop),
        }
        .unwrap();
    }

    /// Whether the key and its owner are active, and the expiry as text, of the row with this hash.
    async fn row(&self, hash: &str) -> Option<(bool, bool, Option<String>)> {
        let select = "SELECT coalesce(k.is_active, FALSE), coalesce(u.is_active, FALSE), \
             CAST(k.expires_at AS TEXT) FROM api_keys k LEFT JOIN users u ON u.id = k.user_id \
             WHERE k.key_hash = $1";
        match self {
            Self::Sqlite(pool) => sqlx::query_as(select).bind(hash).fetch_optional(pool).await,
            Self::Postgres(pool) => sqlx::query_as(select).bind(hash).fetch_optional(pool).await,
        }
        .unwrap()
    }
}

/// The code before this crate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Old {
    V0_9,
    V1_0,
}

impl Old {
    /// What a key is stored under.
    fn hash(self, key: &str) -> String {
        match self {
            Self::V0_9 => hex::encode(Sha256::digest(key)),
            Self::V1_0 => {
                let mut mac = Hmac::<Sha256>::new_from_slice(SECRETS[0].as_bytes()).unwrap();
                mac.update(key.as_bytes());
                hex::encode(mac.finalize().into_bytes())
            }
        }
    }

    /// Whether an instance accepts a key; it writes down the use, as these did with every request.
    pub async fn accepts(self, database: &Database, key: &str) -> bool {
        let hash = self.hash(key);
        let Some((is_active, owner_is_active, expires_at)) = database.row(&hash).await else {
            return false;
        };
        let now = now();
        let is_expired = expires_at.is_some_and(|expires_at| expires_at <= now);
        let accepted = is_active && owner_is_active && !is_expired;
        if accepted {
            let used =
                format!("UPDATE api_keys SET last_used_at = '{now}' WHERE key_hash = '{hash}'");
            database.run(used).await;
        }
        accepted
    }

    pub async fn issue(self, database: &Database, name: &str, owner: &str) {
        let (hash, created) = match self {
            Self::V0_9 => (self.hash(&key(name)), "2026-06-01 09:30:00"),
            Self::V1_0 => (self.hash(&key(name)), "2026-11-10 14:00:00"),
        };
        let insert = format!(
            "INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at) \
             VALUES ('{name}', '{owner}', '{hash}', '{name}', 'read', TRUE, '{created}')"
        );
        database.run(insert).await;
    }
}

/// The time as the columns have it.
fn now() -> String {
    let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    now.replace('T', " ").replace('Z', "")
}

/// The key that the service issued under this name.
pub fn key(name: &str) -> String {
    format!("lxk_{name:A<43}")
}
