//! Several processes on one SQLite file: how late a revocation arrives, and what waiting for one costs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lexikon_auth::store::{CacheOptions, CachedStore, SqliteStore};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{KeyManager, NewKey};
use lexikon_auth_benches::ring;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tokio::time::sleep;

use crate::revocation::lags_of;
use crate::{Failure, Table, latencies};

const REVOCATIONS: usize = 200;

/// Tells this program to be another process on the database.
const VARIABLE: &str = "LEXIKON_AUTH_BENCH_SQLITE";

/// Another process on the database.
pub enum Other {
    /// Writes `last_used_at` as the service does with every request, some 200 times a second.
    Writes(PathBuf),
    /// Follows changes and does nothing else, and prints what part of a core it took.
    Idles(PathBuf),
    /// Wakes as often, and does nothing at all.
    Wakes,
}

impl Other {
    pub fn from_environment() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        match text.split_once(' ')? {
            ("writes", path) => Some(Self::Writes(path.into())),
            ("idles", path) => Some(Self::Idles(path.into())),
            _ => Some(Self::Wakes),
        }
    }

    fn start(&self) -> Result<Child, Failure> {
        let text = match self {
            Self::Writes(path) => format!("writes {}", path.display()),
            Self::Idles(path) => format!("idles {}", path.display()),
            Self::Wakes => "wakes ".to_owned(),
        };
        let program = std::env::current_exe()?;
        Ok(Command::new(program).env(VARIABLE, text).stdout(Stdio::piped()).spawn()?)
    }

    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Writes(path) => write(&path).await,
            Self::Idles(path) => idle(&path).await,
            Self::Wakes => {
                let timer = async {
                    loop {
                        sleep(Duration::from_millis(30)).await;
                    }
                };
                tokio::spawn(timer);
                part_of_a_core().await
            }
        }
    }
}

async fn write(path: &Path) -> Result<(), Failure> {
    let options = SqliteConnectOptions::new().filename(path);
    let pool = SqlitePool::connect_with(options.busy_timeout(Duration::from_secs(60))).await?;
    for number in (0_u64..).cycle() {
        let update =
            "UPDATE api_keys SET last_used_at = datetime('now') WHERE rowid = $1 % 1000 + 1";
        sqlx::query(update).bind(number.cast_signed()).execute(&pool).await?;
        sleep(Duration::from_millis(4)).await;
    }
    Ok(())
}

async fn idle(path: &Path) -> Result<(), Failure> {
    let database = SqliteStore::open(path).await?;
    let follower = Follower::spawn(
        CachedStore::new(database.clone(), CacheOptions::default()),
        database.changes(),
    );
    follower.connected().await;
    part_of_a_core().await
}

async fn part_of_a_core() -> Result<(), Failure> {
    sleep(Duration::from_secs(1)).await;
    let (before, start) = (processor_time()?, Instant::now());
    sleep(Duration::from_secs(20)).await;
    let took = processor_time()? - before;
    println!("{:.3}", 100.0 * took.as_secs_f64() / start.elapsed().as_secs_f64());
    Ok(())
}

/// The time that the threads of this process have run.
fn processor_time() -> Result<Duration, Failure> {
    let mut time = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task")? {
        let statistics = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let nanoseconds = statistics.split(' ').next().ok_or("a number")?;
        time += Duration::from_nanos(nanoseconds.parse()?);
    }
    Ok(time)
}

pub async fn measure(table: &mut Table) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    table.heading(
        &format!("{REVOCATIONS} revocations in one process on a SQLite file, and the first refusals in another, which verifies all the time"),
        "journal, what else happens | p50 | p99 | most | goal",
    );
    for journal in ["WAL", "DELETE"] {
        let path = folder.path().join(format!("{journal}.db"));
        let store = SqliteStore::open_or_create(&path).await?;
        let manager = KeyManager::new(store.clone(), &ring(1));
        let issue = || manager.issue(NewKey::new("user-1", "bench").scopes("read"));
        for _ in 0..1000 {
            issue().await?;
        }
        let options = SqliteConnectOptions::new().filename(&path);
        let pool = SqlitePool::connect_with(options).await?;
        store.close().await;
        let set = sqlx::AssertSqlSafe(format!("PRAGMA journal_mode = {journal}"));
        sqlx::raw_sql(set).execute(&pool).await?;
        pool.close().await;

        let manager = KeyManager::new(SqliteStore::open(&path).await?, &ring(1));
        let instance = path.display().to_string();
        let pause = Duration::from_millis(47);
        let lags = lags_of(&instance, REVOCATIONS, &manager, pause, || ()).await?;
        latencies(table, &format!("{journal}, nothing"), lags, "p99 under 50 ms");
        let mut writer = Other::Writes(path.clone()).start()?;
        let lags = lags_of(&instance, REVOCATIONS, &manager, pause, || ()).await;
        writer.kill()?;
        writer.wait()?;
        let name =
            format!("{journal}, a third process writes `last_used_at` up to 250 times a second");
        latencies(table, &name, lags?, "p99 under 50 ms");
    }
    table.heading(
        "A process that follows a SQLite file in which nothing happens, for 20 seconds",
        "what | of a core | goal",
    );
    let mut part = |name: &str, other: Other, goal: &str| {
        let percent = String::from_utf8(other.start()?.wait_with_output()?.stdout)?;
        table.row(&[name, &format!("{} %", percent.trim()), goal]);
        Ok::<_, Failure>(())
    };
    for journal in ["WAL", "DELETE"] {
        let path = folder.path().join(format!("{journal}.db"));
        part(journal, Other::Idles(path), "less than 0.1 %")?;
    }
    part("nothing but a timer as often", Other::Wakes, "")?;
    Ok(())
}
