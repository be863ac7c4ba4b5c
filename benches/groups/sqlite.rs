//! Verification through a SQLite file, against the statement that it rests on.

use std::hint::black_box;
use std::path::Path;

use criterion::Criterion;
use lexikon_auth::Verifier;
use lexikon_auth::store::SqliteStore;
use lexikon_auth_benches::alternatives::{hmac_sha256, sha256};
use lexikon_auth_benches::{Kind, Texts, draw, ring, rng};
use rand::seq::SliceRandom;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tokio::runtime::Builder;

use crate::limit;

const COUNT: usize = 100_000;
/// What [`SqliteStore`] sends for an untagged key under one secret.
const SELECT: &str = "SELECT k.id, k.user_id, u.is_active, k.key_hash, k.name, k.scopes, \
    k.is_active, k.created_at, k.expires_at, k.last_used_at, NULL, NULL, NULL \
    FROM api_keys k LEFT JOIN users u ON u.id = k.user_id WHERE k.key_hash IN (?, ?)";

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sqlite");
    limit::unit(&mut group);
    let folder = tempfile::tempdir().expect("a folder for the database");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let pool = runtime.block_on(connect(&folder.path().join("keys.db"))).expect("a new database");
    let store = runtime.block_on(SqliteStore::from_pool(pool.clone())).expect("new tables");
    let texts = runtime.block_on(fill(&pool)).expect("the tables take rows");

    let hashes: Vec<_> =
        texts.iter().map(|text| [hmac_sha256(text), sha256(text)].map(hex::encode)).collect();
    let mut hashes = hashes.iter().cycle();
    group.bench_function("bare SELECT", |b| {
        b.iter(|| {
            let [hmac, sha] = hashes.next().expect("endless");
            let rows = sqlx::query(SELECT).bind(hmac).bind(sha).fetch_all(&pool);
            let rows = runtime.block_on(rows).expect("an answer");
            assert_eq!(rows.len(), 1);
            rows
        });
    });
    let verifier = Verifier::new(store, ring(1));
    let mut next = texts.endless(0);
    group.bench_function("verify", |b| {
        b.iter(|| runtime.block_on(verifier.verify(black_box(next()))).expect("accepted"));
    });
}

/// One connection, set as [`SqliteStore`] sets its own, for both to share.
async fn connect(path: &Path) -> sqlx::Result<SqlitePool> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqlitePoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .connect_with(options)
        .await
}

/// Writes the rows in one transaction: a hundred thousand would take minutes.
async fn fill(pool: &SqlitePool) -> sqlx::Result<Texts> {
    let mut rng = rng();
    let mut transaction = pool.begin().await?;
    let mut texts = Vec::with_capacity(COUNT);
    for number in 0..COUNT {
        let (text, record) = draw(Kind::Untagged, number, &mut rng);
        sqlx::query("INSERT INTO users (id, is_active) VALUES (?, 1) ON CONFLICT DO NOTHING")
            .bind(record.owner.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at) \
             VALUES (?, ?, ?, ?, ?, 1, '2026-01-01 00:00:00.000000')",
        )
        .bind(record.id.to_string())
        .bind(record.owner.as_str())
        .bind(record.hash.to_hex())
        .bind(&*record.name)
        .bind(record.scopes.as_str())
        .execute(&mut *transaction)
        .await?;
        texts.push(text);
    }
    transaction.commit().await?;
    texts.shuffle(&mut rng);
    Ok(Texts::new(&texts))
}
