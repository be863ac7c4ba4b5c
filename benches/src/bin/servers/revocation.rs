//! How long a revocation in one process takes to be a refusal in another.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use lexikon_auth::store::ChangeFeed;
use lexikon_auth::store::{
    CacheOptions, CachedStore, KeyLookup, KeyStore, PostgresStore, SqliteStore,
};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{KeyManager, NewKey, Verifier, VerifyError};
use lexikon_auth_benches::ring;
use sqlx::postgres::PgConnectOptions;
use tokio::time::sleep;

use crate::proxy::{Mode, Proxy};
use crate::servers::Postgres;
use crate::{Effort, Failure, Table, latencies};

/// Tells this program that it is the instance that refuses: the port of the database, and that of the
/// way to its notifications; or the path of a database.
const VARIABLE: &str = "LEXIKON_AUTH_BENCH_INSTANCE";

fn options(port: u16) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port);
    options.username("postgres").database("postgres")
}

/// Verifies keys without end, and prints when each is refused first.
pub enum Instance {
    Postgres { database: u16, feed: u16 },
    Sqlite(PathBuf),
}

impl Instance {
    pub fn from_environment() -> Option<Self> {
        let database = std::env::var(VARIABLE).ok()?;
        let ports =
            database.split_once(' ').map(|(database, feed)| (database.parse(), feed.parse()));
        match ports {
            Some((Ok(database), Ok(feed))) => Some(Self::Postgres { database, feed }),
            _ => Some(Self::Sqlite(database.into())),
        }
    }

    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Postgres { database, feed } => {
                let feed = PostgresStore::connect(options(feed)).await?.changes();
                Self::follow(PostgresStore::connect(options(database)).await?, feed).await
            }
            Self::Sqlite(path) => {
                let store = SqliteStore::open(path).await?;
                let feed = store.changes();
                Self::follow(store, feed).await
            }
        }
    }

    async fn follow(store: impl KeyLookup + 'static, feed: impl ChangeFeed) -> Result<(), Failure> {
        let store = CachedStore::new(store, CacheOptions::default());
        let follower = Follower::spawn(store.clone(), feed);
        follower.connected().await;
        let verifier = Arc::new(Verifier::new(store, ring(1)));
        let mut keys: Vec<String> = Vec::new();
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            if line.is_empty() {
                break;
            }
            keys.push(line);
        }
        for key in &keys {
            verifier.verify(key).await?.id();
        }
        println!("ready");
        loop {
            let mut refused = None;
            for (number, key) in keys.iter().enumerate() {
                match verifier.verify(key).await {
                    Ok(verified) => drop(verified),
                    Err(VerifyError::Refused(_)) => refused = Some(number),
                    Err(error) => return Err(error.into()),
                }
                if number % 64 == 0 {
                    tokio::task::yield_now().await;
                }
                if let Some(number) = refused.take() {
                    println!("{} {}", nanoseconds(), keys[number]);
                    keys.swap_remove(number);
                    break;
                }
            }
            if keys.is_empty() {
                return Ok(());
            }
        }
    }
}

fn nanoseconds() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos()
}

pub async fn measure(
    effort: Effort,
    postgres: &Postgres,
    table: &mut Table,
) -> Result<(), Failure> {
    table.heading(
        "From the end of a revocation in one process to the first refusal in another, which verifies all the time",
        "channel | p50 | p99 | most | goal",
    );
    let connected = lags(effort.revocations, postgres, false).await?;
    let name = format!("connected, {} revocations", effort.revocations);
    latencies(table, &name, connected, "p99 under 50 ms");
    let cut = lags(20, postgres, true).await?;
    latencies(table, "notifications cut before, 20 revocations", cut, "most under 8 s");
    Ok(())
}

async fn lags(count: usize, postgres: &Postgres, is_cut: bool) -> Result<Vec<Duration>, Failure> {
    let proxy = Proxy::to(postgres.port).await;
    let manager = KeyManager::new(PostgresStore::connect(postgres.options()).await?, &ring(1));
    let instance = format!("{} {}", postgres.port, proxy.port);
    let cut = || {
        if is_cut {
            proxy.set(Mode::Blackhole);
        }
    };
    lags_of(&instance, count, &manager, Duration::from_millis(2), cut).await
}

/// How long each of some revocations takes to be a refusal in another process.
pub async fn lags_of<S: KeyStore>(
    instance: &str,
    count: usize,
    manager: &KeyManager<S>,
    pause: Duration,
    before: impl FnOnce(),
) -> Result<Vec<Duration>, Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(VARIABLE, instance)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().expect("is piped");
    let mut issued = Vec::new();
    for _ in 0..count {
        let key = manager.issue(NewKey::new("user-1", "bench").scopes("read")).await?;
        writeln!(input, "{}", key.key.expose_secret())?;
        issued.push(key);
    }
    writeln!(input)?;
    let mut output = BufReader::new(child.stdout.take().expect("is piped")).lines();
    output.next().ok_or("the instance is ready")??;
    let refusals = Arc::new(Mutex::new(HashMap::new()));
    let reader = std::thread::spawn({
        let refusals = refusals.clone();
        move || {
            for line in output.map_while(Result::ok) {
                let (time, key) = line.split_once(' ').expect("a time and a key");
                let time: u128 = time.parse().expect("a number");
                refusals.lock().expect("no panic").insert(key.to_owned(), time);
            }
        }
    });
    before();
    let mut revoked = Vec::new();
    for key in &issued {
        manager.revoke(&key.record.id, None).await?;
        revoked.push((key.key.expose_secret().to_owned(), nanoseconds()));
        sleep(pause).await;
    }
    let status = tokio::task::spawn_blocking(move || child.wait()).await??;
    assert!(status.success(), "every key was refused");
    reader.join().expect("no panic");
    let refusals = refusals.lock().expect("no panic");
    let lag = |(key, revoked): (String, u128)| {
        // The notification can be faster than the answer to whoever revoked.
        Duration::from_nanos(refusals[&key].saturating_sub(revoked) as u64)
    };
    Ok(revoked.into_iter().map(lag).collect())
}
