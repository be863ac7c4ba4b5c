//! What servers and caches do, measured in one run on servers of its own.

mod caches;
#[expect(dead_code, reason = "tests use the rest")]
#[path = "../../../../tests/src/proxy.rs"]
mod proxy;
mod redis_tier;
mod revocation;
mod servers;
mod sqlite;

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lexikon_auth::crypto::Candidates;
use lexikon_auth::store::{
    CacheOptions, CachedStore, KeyLookup, KeyStore, MemoryStore, PostgresStore,
};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{KeyId, KeyRecord, StoreError, Verifier};
use lexikon_auth_benches::{machine, ring};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use servers::Postgres;
use sqlx::postgres::PgPool;
use tokio::task::JoinSet;

pub type Failure = Box<dyn Error + Send + Sync>;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The system's allocator, counting the bytes in use.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How much to do.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Keys in the table, and in Redis.
    keys: u32,
    /// How long each throughput is measured.
    time: Duration,
    revocations: usize,
}

/// The table, row by row.
#[derive(Default)]
pub struct Table(String);

impl Table {
    fn heading(&mut self, text: &str, columns: &str) {
        let count = columns.matches('|').count() + 1;
        let line = ["---"].repeat(count).join(" | ");
        let _ = write!(self.0, "\n### {text}\n\n| {columns} |\n| {line} |\n");
    }

    fn row(&mut self, cells: &[&str]) {
        let row = format!("| {} |", cells.join(" | "));
        eprintln!("{row}");
        self.0.push_str(&row);
        self.0.push('\n');
    }
}

fn main() -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let Some(instance) = revocation::Instance::from_environment() {
        return runtime.block_on(instance.run());
    }
    if let Some(other) = sqlite::Other::from_environment() {
        return runtime.block_on(other.run());
    }
    let effort = match std::env::args().nth(1).as_deref() {
        None => Effort { keys: 1_000_000, time: Duration::from_secs(5), revocations: 1000 },
        Some("--quick") => Effort { keys: 100_000, time: Duration::from_secs(1), revocations: 100 },
        Some("--sqlite") => {
            let mut table = Table::default();
            runtime.block_on(sqlite::measure(&mut table))?;
            print!("{}", table.0);
            return Ok(());
        }
        Some(_) => return Err("usage: benches/run-servers [--quick | --sqlite]".into()),
    };
    let mut table = Table::default();
    runtime.block_on(measure(effort, &mut table))?;
    let machine = machine().map_err(|error| error.to_string())?;
    let text = format!(
        "Measured on: {machine}, PostgreSQL and Redis on the same machine. Medians, or what is said.\n{}",
        table.0
    );
    std::fs::write("results-servers.md", &text)?;
    print!("{text}");
    Ok(())
}

async fn measure(effort: Effort, table: &mut Table) -> Result<(), Failure> {
    memory(table).await;
    caches::measure(effort, table).await;
    let postgres = Postgres::start()?;
    fill(&postgres, effort.keys).await?;
    throughput(effort, &postgres, table).await?;
    revocation::measure(effort, &postgres, table).await?;
    sqlite::measure(table).await?;
    redis_tier::measure(effort, &postgres, table).await
}

/// The key with a number, as the table holds it: version 0.9 of the service stored plain SHA-256, which
/// SQL can compute.
pub fn key(number: u32) -> String {
    format!("lxk_{number:043}")
}

async fn fill(postgres: &Postgres, keys: u32) -> Result<(), Failure> {
    PostgresStore::connect(postgres.options()).await?;
    let pool = PgPool::connect_with(postgres.options()).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "INSERT INTO users SELECT 'user-' || n, true FROM generate_series(0, 999) n; \
         ALTER TABLE api_keys DISABLE TRIGGER USER; \
         INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at) \
         SELECT gen_random_uuid(), 'user-' || n % 1000, \
         encode(sha256(('lxk_' || lpad(n::text, 43, '0'))::bytea), 'hex'), 'name ' || n, 'read,write', \
         true, '2026-01-01' FROM generate_series(0, {keys} - 1) n; \
         ALTER TABLE api_keys ENABLE TRIGGER USER"
    )))
    .execute(&pool)
    .await?;
    sqlx::raw_sql("VACUUM ANALYZE api_keys").execute(&pool).await?;
    pool.close().await;
    Ok(())
}

/// Verifications a second by some tasks at once, each of a random key.
pub async fn rate<S: KeyLookup + 'static>(
    verifier: &Arc<Verifier<S>>,
    keys: u32,
    tasks: usize,
    time: Duration,
) -> f64 {
    let presented = |task| -> Vec<String> {
        let mut rng = StdRng::seed_from_u64(task as u64);
        (0..100_000).map(|_| key(rng.random_range(0..keys))).collect()
    };
    let presented: Vec<_> = (0..tasks).map(presented).collect();
    let mut running = JoinSet::new();
    let start = Instant::now();
    for presented in presented {
        let verifier = verifier.clone();
        running.spawn(async move {
            let mut count = 0_u64;
            for keys in presented.chunks(64).cycle() {
                for key in keys {
                    verifier.verify(key).await.expect("accepted").id();
                }
                count += keys.len() as u64;
                if start.elapsed() > time {
                    break;
                }
                // A store that never waits would keep the others from running.
                tokio::task::yield_now().await;
            }
            count
        });
    }
    let count: u64 = running.join_all().await.into_iter().sum();
    count as f64 / start.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_unstable_by(f64::total_cmp);
    rates[rates.len() / 2]
}

async fn throughput(effort: Effort, postgres: &Postgres, table: &mut Table) -> Result<(), Failure> {
    let Effort { keys, time, .. } = effort;
    table.heading(
        &format!("Verification over PostgreSQL, {keys} keys in random order"),
        "work | a second | ratio | goal",
    );
    let database = PostgresStore::connect(postgres.options()).await?;
    let verifier = Arc::new(Verifier::new(database.clone(), ring(1)));
    let mut uncached = 0.0;
    for clients in [1, 8] {
        rate(&verifier, keys, clients, time / 5).await;
        // In turns, so that a moment of noise does not hit one of them alone.
        let (mut single, mut same, mut ours) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..5 {
            single.push(postgres.pgbench(keys, clients, time / 2, 1)?);
            same.push(postgres.pgbench(keys, clients, time / 2, 2)?);
            ours.push(rate(&verifier, keys, clients, time / 2).await);
        }
        let [single, same, ours] = [single, same, ours].map(median);
        if clients == 1 {
            uncached = ours;
        }
        let name = format!("pgbench, a prepared SELECT by one hash, {clients} at a time");
        table.row(&[&name, &format!("{single:.0}"), "", ""]);
        let name =
            format!("pgbench, by two hashes, as an untagged key is looked up, {clients} at a time");
        table.row(&[&name, &format!("{same:.0}"), "1.00", ""]);
        let name = format!("verify, no cache, {clients} at a time");
        let ratio = format!("{:.2} x ({:.2} x one hash)", ours / same, ours / single);
        table.row(&[&name, &format!("{ours:.0}"), &ratio, "at least 0.8 x"]);
    }

    const WARM: u32 = 10_000;
    let store = CachedStore::new(database.clone(), CacheOptions::default());
    let follower = Follower::spawn(store.clone(), database.changes());
    follower.connected().await;
    let verifier = Arc::new(Verifier::new(store, ring(1)));
    for number in 0..WARM {
        verifier.verify(&key(number)).await?.id();
    }
    let cached = rate(&verifier, WARM, 1, time).await;
    let name = format!("verify, cached, 1 task, {WARM} keys");
    let ratio = format!("{:.0} x without", cached / uncached);
    table.row(&[&name, &format!("{cached:.0}"), &ratio, "at least 100 x"]);

    let memory = MemoryStore::new();
    for number in 0..WARM {
        let text = key(number);
        let presented = lexikon_auth::crypto::PresentedKey::parse(&text)?;
        let candidates = Candidates::compute(&presented, &ring(1)).expect("no tag");
        let record = database.find(&candidates).await?.expect("is there");
        memory.insert(&record).await?;
    }
    let memory = Arc::new(Verifier::new(memory, ring(1)));
    let in_memory = rate(&memory, WARM, 1, time).await;
    let name = format!("verify, store in memory, 1 task, {WARM} keys");
    table.row(&[
        &name,
        &format!("{in_memory:.0}"),
        &format!("{:.2} x cached", in_memory / cached),
        "",
    ]);
    follower.shutdown().await;
    Ok(())
}

/// Finds every key.
struct Endless;

impl KeyLookup for Endless {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let id = KeyId::random().expect("entropy");
        let owner = "0c1e8a52-6d1f-4c39-9d2f-6a1b7a0c9b11".into();
        let mut record = KeyRecord::new(id, owner, candidates.as_slice()[0]);
        record.name = "a name of usual length".into();
        record.scopes = "read,write".into();
        Ok(Some(Arc::new(record)))
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
}

async fn memory(table: &mut Table) {
    const KEYS: u32 = 1_000_000;
    const BOUND: usize = 32 << 20;
    table.heading(
        "Memory of the cache after traffic of 1 000 000 different keys",
        "what | bytes | of the bound",
    );
    let before = BYTES.load(Ordering::Relaxed);
    let options = CacheOptions::default().max_bytes(BOUND as u64);
    let store = CachedStore::new(Endless, options);
    let most = AtomicU64::new(0);
    for number in 0..KEYS {
        let text = key(number);
        let presented = lexikon_auth::crypto::PresentedKey::parse(&text).expect("a key");
        let candidates = Candidates::compute(&presented, &ring(1)).expect("no tag");
        store.find(&candidates).await.expect("found");
        most.fetch_max((BYTES.load(Ordering::Relaxed) - before) as u64, Ordering::Relaxed);
    }
    let most = most.into_inner();
    let share = most as f64 / BOUND as f64;
    table.row(&["allocated at most", &most.to_string(), &format!("{:.0} %", 100.0 * share)]);
}

/// A percentile of what was measured, in milliseconds.
pub fn percentile(sorted: &[Duration], percent: usize) -> String {
    let at = (sorted.len() * percent / 100).min(sorted.len() - 1);
    format!("{:.2} ms", sorted[at].as_secs_f64() * 1000.0)
}

/// The rows that every set of latencies gets: median, 99th percentile, most.
pub fn latencies(table: &mut Table, name: &str, mut all: Vec<Duration>, goal: &str) {
    all.sort_unstable();
    let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(&all, percent));
    table.row(&[name, &p50, &p99, &max, goal]);
}
