//! The tier in Redis: hits, clearing among many names, and what a fault costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lexikon_auth::Verifier;
use lexikon_auth::store::{CacheOptions, CachedStore, PostgresStore, RedisOptions, RedisStore};
use lexikon_auth_benches::ring;

use crate::servers::{Postgres, RedisServer};
use crate::{Effort, Failure, Table, key, latencies, rate};

pub async fn measure(
    effort: Effort,
    postgres: &Postgres,
    table: &mut Table,
) -> Result<(), Failure> {
    let server = RedisServer::start()?;
    let database = PostgresStore::connect(postgres.options()).await?;
    let store =
        RedisStore::new(database, server.client()?, &ring(1), RedisOptions::default()).await;
    hits(effort, &store, table).await?;
    fault(&server, &store, table).await?;
    clearing(effort, &server, &store, table).await
}

type Tier = RedisStore<PostgresStore>;

async fn hits(effort: Effort, store: &Tier, table: &mut Table) -> Result<(), Failure> {
    const WARM: u32 = 10_000;
    table.heading("Verification with Redis between, 10 000 keys", "work | a second");
    let verifier = Arc::new(Verifier::new(store.clone(), ring(1)));
    for number in 0..WARM {
        verifier.verify(&key(number)).await?.id();
    }
    for tasks in [1, 16] {
        let through = rate(&verifier, WARM, tasks, effort.time).await;
        table.row(&[&format!("hit in Redis, {tasks} task(s)"), &format!("{through:.0}")]);
    }
    let verifier =
        Arc::new(Verifier::new(CachedStore::new(store.clone(), CacheOptions::default()), ring(1)));
    for number in 0..WARM {
        verifier.verify(&key(number)).await?.id();
    }
    let above = rate(&verifier, WARM, 1, effort.time.min(Duration::from_secs(3))).await;
    table.row(&["hit in the cache in memory above it, 1 task", &format!("{above:.0}")]);
    Ok(())
}

async fn fault(server: &RedisServer, store: &Tier, table: &mut Table) -> Result<(), Failure> {
    table.heading(
        "Verification, one at a time, in the 2 seconds around the moment in which Redis hangs (SIGSTOP)",
        "what | p50 | p99 | most | goal",
    );
    let verifier = Verifier::new(store.clone(), ring(1));
    let (start, mut all, mut is_stopped) = (Instant::now(), Vec::new(), false);
    while start.elapsed() < Duration::from_secs(2) {
        if !is_stopped && start.elapsed() > Duration::from_secs(1) {
            server.signal("STOP")?;
            is_stopped = true;
        }
        let began = Instant::now();
        verifier.verify(&key(7)).await?.id();
        all.push(began.elapsed());
    }
    server.signal("CONT")?;
    let slow = all.iter().filter(|took| **took > Duration::from_millis(50)).count();
    let name = format!("{} verifications, {slow} of them slower than 50 ms", all.len());
    latencies(table, &name, all, "one waits 100 ms");
    while store.counts().bypassed > 0 {
        let before = store.counts().hits;
        tokio::time::sleep(Duration::from_millis(100)).await;
        verifier.verify(&key(7)).await?.id();
        if store.counts().hits > before {
            break;
        }
    }
    Ok(())
}

async fn clearing(
    effort: Effort,
    server: &RedisServer,
    store: &Tier,
    table: &mut Table,
) -> Result<(), Failure> {
    let mut connection = server.client()?.get_multiplexed_async_connection().await?;
    let value = vec![7_u8; 300];
    for thousand in 0..effort.keys / 1000 {
        let mut pipe = redis::pipe();
        for number in 0..1000 {
            let name = format!("lexikon:auth:key:{:064x}", thousand * 1000 + number);
            pipe.cmd("SET").arg(name).arg(&value).ignore();
        }
        pipe.exec_async(&mut connection).await?;
    }
    table.heading(
        &format!("Redis with {} names, while another connection reads", effort.keys),
        "step | p50 | p99 | most | goal",
    );
    let mut other = server.client()?.get_multiplexed_async_connection().await?;
    let reads = tokio::spawn(async move {
        loop {
            let get = redis::cmd("GET").arg("lexikon:auth:key:7").exec_async(&mut other).await;
            if get.is_err() {
                return;
            }
        }
    });
    let (mut cursor, mut steps) = (0_u64, Vec::new());
    loop {
        let began = Instant::now();
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg("lexikon:auth:key:*").arg("COUNT").arg(500);
        (cursor, _) = scan.query_async::<(u64, Vec<String>)>(&mut connection).await?;
        steps.push(began.elapsed());
        if cursor == 0 {
            break;
        }
    }
    steps.sort_unstable();
    let p95 = crate::percentile(&steps, 95);
    latencies(table, &format!("one SCAN of 500, p95 {p95}"), steps, "p95 under 50 ms");
    let began = Instant::now();
    let removed = store.clear().await?;
    let took = began.elapsed();
    reads.abort();
    let batches = (removed / 500).max(1) as u32;
    let name =
        format!("`clear`: {removed} entries in {:.1} s, a batch on average", took.as_secs_f64());
    latencies(table, &name, vec![took / batches], "");
    Ok(())
}
