//! The keys that clients present, and the databases that know them.

use lexikon_auth::crypto::KeyHash;
use lexikon_auth::store::{PostgresStore, SqliteStore};
use lexikon_auth::{ApiKey, ServerSecret};
use lexikon_auth_benches::{SECRETS, ring};
use rand::RngExt;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::sqlite::SqlitePool;

use crate::Failure;

/// Keys in the table, of each format.
pub const GOOD: usize = 9_000;
const LEGACY: usize = 1_000;
/// Keys that are in no table: of customers that are gone.
const UNKNOWN: usize = 1_000;

/// Keys of one kind.
#[derive(Clone)]
pub struct Kind {
    pub name: &'static str,
    /// Of 100 requests, how many present such a key.
    pub share: u32,
    pub is_accepted: bool,
    pub keys: Vec<String>,
}

/// The keys that a client may present.
#[derive(Clone)]
pub struct Presented(pub Vec<Kind>);

impl Presented {
    fn new() -> Result<Self, Failure> {
        let secret = ring(1).current().clone();
        let stranger = ServerSecret::new(&SECRETS[2].to_owned().into())?;
        let issue = |secret: &ServerSecret, count: usize| {
            let key = |_| ApiKey::generate(secret).map(|key| key.expose_secret().to_owned());
            (0..count).map(key).collect::<Result<Vec<_>, _>>()
        };
        let untagged = |from: usize, count: usize| {
            (from..from + count).map(|number| format!("lxk_{number:043}")).collect()
        };
        let kind = |name, share, is_accepted, keys| Kind { name, share, is_accepted, keys };
        Ok(Self(vec![
            kind("good", 85, true, issue(&secret, GOOD)?),
            kind("legacy", 10, true, untagged(0, LEGACY)),
            kind("unknown", 3, false, untagged(LEGACY, UNKNOWN)),
            kind("forged", 2, false, issue(&stranger, UNKNOWN)?),
        ]))
    }

    /// Good keys alone.
    pub fn good() -> Result<Self, Failure> {
        let Self(mut kinds) = Self::new()?;
        kinds.truncate(1);
        kinds[0].share = 100;
        Ok(Self(kinds))
    }

    /// A key, and whether it is to be accepted.
    pub fn draw(&self, rng: &mut StdRng) -> (&str, bool) {
        let mut place = rng.random_range(0..100);
        let Self(kinds) = self;
        let drawn = kinds.iter().find(|kind| {
            let is_here = place < kind.share;
            place = place.saturating_sub(kind.share);
            is_here
        });
        let kind = drawn.expect("the shares add up to 100");
        (&kind.keys[rng.random_range(0..kind.keys.len())], kind.is_accepted)
    }

    /// The hex hashes of the table.
    fn rows(&self) -> Vec<String> {
        let ring = ring(1);
        let hmac = |key: &String| {
            let key = lexikon_auth::crypto::PresentedKey::parse(key).expect("an issued key");
            let candidates =
                lexikon_auth::crypto::Candidates::compute(&key, &ring).expect("a good tag");
            candidates.as_slice()[0].to_hex()
        };
        let sha = |key: &String| KeyHash::from_bytes(Sha256::digest(key).into()).to_hex();
        let Self(kinds) = self;
        kinds[0].keys.iter().map(hmac).chain(kinds[1].keys.iter().map(sha)).collect()
    }
}

const INSERT: &str = "INSERT INTO api_keys \
     (id, user_id, key_hash, name, scopes, is_active, created_at) \
     VALUES ($1, 'user-' || $2, $3, 'load', 'read', true, '2026-01-01 00:00:00')";

pub async fn fill_sqlite(url: &str) -> Result<Presented, Failure> {
    let presented = Presented::new()?;
    let path = url.strip_prefix("sqlite://").ok_or("a URL of SQLite")?;
    SqliteStore::open_or_create(path).await?.close().await;
    let pool = SqlitePool::connect(url).await?;
    let mut transaction = pool.begin().await?;
    for user in 0..100 {
        sqlx::query("INSERT INTO users VALUES ('user-' || $1, true)")
            .bind(user)
            .execute(&mut *transaction)
            .await?;
    }
    for (number, hash) in presented.rows().into_iter().enumerate() {
        let number = number as i64;
        let insert = sqlx::query(INSERT).bind(number.to_string()).bind(number % 100).bind(hash);
        insert.execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    pool.close().await;
    Ok(presented)
}

pub async fn fill_postgres(options: PgConnectOptions) -> Result<Presented, Failure> {
    let presented = Presented::new()?;
    PostgresStore::connect(options.clone()).await?.close().await;
    let pool = PgPool::connect_with(options).await?;
    sqlx::raw_sql("INSERT INTO users SELECT 'user-' || n, true FROM generate_series(0, 99) n")
        .execute(&pool)
        .await?;
    let insert = "INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at) \
         SELECT n::text, 'user-' || n % 100, hash, 'load', 'read', true, '2026-01-01' \
         FROM unnest($1::text[]) WITH ORDINALITY AS rows (hash, n)";
    sqlx::query(insert).bind(presented.rows()).execute(&pool).await?;
    pool.close().await;
    Ok(presented)
}
