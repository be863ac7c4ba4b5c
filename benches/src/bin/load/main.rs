//! The reference service under load, and what the layer costs: real processes, real HTTP.

mod clients;
mod handler;
mod keys;
#[path = "../servers/servers.rs"]
#[allow(dead_code)] // the other benchmark uses its part of this
mod servers;
mod service;

use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

use clients::{Outcome, drive};
use keys::Presented;
use lexikon_auth_benches::{SECRETS, machine};
use servers::{Postgres, RedisServer};
use service::Service;

pub type Failure = Box<dyn Error + Send + Sync>;

/// Connections, each with one request at a time.
const CLIENTS: usize = 100;

fn main() -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let Ok(layer) = std::env::var(handler::LAYER) {
        return runtime.block_on(handler::serve(&layer));
    }
    let time = match std::env::args().nth(1).as_deref() {
        None => Duration::from_secs(60),
        Some("--quick") => Duration::from_secs(10),
        Some(_) => return Err("usage: benches/run-http [--quick]".into()),
    };
    let machine = machine().map_err(|error| error.to_string())?;
    let text = format!(
        "Measured on: {machine}; service, clients, PostgreSQL and Redis on the same machine.\n\n\
         {}\n{}",
        runtime.block_on(loads(time))?,
        runtime.block_on(overhead(time))?
    );
    std::fs::write("results-http.md", &text)?;
    print!("{text}");
    Ok(())
}

/// The service on each of its databases.
async fn loads(time: Duration) -> Result<String, Failure> {
    let folder = tempfile::tempdir()?;
    let sqlite = format!("sqlite://{}", folder.path().join("keys.db").display());
    let presented = keys::fill_sqlite(&sqlite).await?;
    let on_sqlite = load(&[("DATABASE_URL", &sqlite)], &presented, time).await?;

    let Presented(kinds) = &presented;
    let mix = kinds.iter().map(|kind| {
        format!(
            "{} % of the requests present one of {} {} keys",
            kind.share,
            kind.keys.len(),
            kind.name
        )
    });
    let mut table = format!(
        "### The reference service, {CLIENTS} clients at once for {} s\n\n{}.\n\n\
         | what | SQLite | PostgreSQL and Redis | goal |\n| --- | ---: | ---: | ---: |\n",
        time.as_secs(),
        mix.collect::<Vec<_>>().join(", ")
    );

    let (postgres, redis) = (Postgres::start()?, RedisServer::start()?);
    let presented = keys::fill_postgres(postgres.options()).await?;
    let database = format!("postgres://postgres@127.0.0.1:{}/postgres", postgres.port);
    let redis = format!("redis://127.0.0.1:{}", redis.port);
    let variables = [("DATABASE_URL", &*database), ("REDIS_URL", &redis)];
    let on_postgres = load(&variables, &presented, time).await?;

    for (name, goal, figure) in FIGURES {
        let row =
            format!("| {name} | {} | {} | {goal} |", figure(&on_sqlite), figure(&on_postgres));
        eprintln!("{row}");
        writeln!(table, "{row}")?;
    }
    Ok(table)
}

struct Load {
    outcome: Outcome,
    hit_rate: f64,
    statements: f64,
    /// Resident megabytes after each fifth of the time.
    memory: Vec<f64>,
}

type Figure = fn(&Load) -> String;

const FIGURES: [(&str, &str, Figure); 9] = [
    ("requests a second", "", |load| format!("{:.0}", load.outcome.rate())),
    ("errors: any answer but the right one", "0", |load| load.outcome.errors.to_string()),
    ("good and legacy keys accepted", "100 %", |load| {
        format!("{} %", 100.0 * load.outcome.accepted())
    }),
    ("p50", "", |load| format!("{:.2} ms", load.outcome.percentile(0.50))),
    ("p95", "5 ms, at most 500", |load| format!("{:.2} ms", load.outcome.percentile(0.95))),
    ("p99", "", |load| format!("{:.2} ms", load.outcome.percentile(0.99))),
    ("hits of the cache in memory", "99 %, at least 80", |load| {
        format!("{:.1} %", 100.0 * load.hit_rate)
    }),
    ("statements of the database, for 1000 requests", "", |load| {
        format!("{:.1}", 1000.0 * load.statements / load.outcome.requests() as f64)
    }),
    ("resident memory after each fifth of the time", "under 60 MB, flat", |load| {
        let memory: Vec<_> =
            load.memory.iter().map(|megabytes| format!("{megabytes:.0}")).collect();
        format!("{} MB", memory.join(", "))
    }),
];

async fn load(
    variables: &[(&str, &str)],
    presented: &Presented,
    time: Duration,
) -> Result<Load, Failure> {
    let secret =
        [("API_KEY_SECRET", SECRETS[0]), ("FIRST_KEY_FOR", "operator"), ("RUST_LOG", "error")];
    let proxies = [("TRUSTED_PROXIES", "127.0.0.0/8")];
    let service = Service::start(&[&secret, &proxies[..], variables].concat())?;
    service.write_entry().await?;
    let memory = service.memory_over(time);
    let outcome = drive(&service.address, presented, CLIENTS, time).await?;
    let memory = memory.await?;
    let status: serde_json::Value = serde_json::from_str(&service.get("/api/status").await?)?;
    let hit_rate = status["cache"]["hit_rate"].as_f64().ok_or("no hit rate")?;
    let metrics = service.get("/api/metrics").await?;
    let statements = metrics
        .lines()
        .filter(|line| line.starts_with("lexikon_auth_store_duration_seconds_count"));
    let count = |line: &str| line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
    let statements = statements.filter_map(count).sum();
    Ok(Load { outcome, hit_rate, statements, memory })
}

/// The same handler with and without the layer, in turns.
async fn overhead(time: Duration) -> Result<String, Failure> {
    /// Many short ones, compared one by one: the machine is faster at one time than at another.
    const ROUNDS: u32 = 21;
    let presented = Presented::good()?;
    let Presented(kinds) = &presented;
    let keys = &kinds[0].keys;
    let services = [
        Service::serve_handler("none", keys)?,
        Service::serve_handler("passing", keys)?,
        Service::serve_handler("verifying", keys)?,
    ];
    let mut rates = [const { Vec::new() }; 3];
    let mut costs = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        for (index, service) in services.iter().enumerate() {
            let before = service.processor_time()?;
            let outcome = drive(&service.address, &presented, CLIENTS, time / 60).await?;
            if outcome.errors > 0 {
                return Err(format!("{} errors", outcome.errors).into());
            }
            let spent = service.processor_time()? - before;
            // The first round fills caches and buffers.
            if round > 0 {
                rates[index].push(outcome.rate());
                costs[index].push(spent.as_secs_f64() * 1e6 / outcome.requests() as f64);
            }
        }
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ratio = |values: &[Vec<f64>; 3], index: usize| {
        median(values[index].iter().zip(&values[0]).map(|(value, bare)| value / bare).collect())
    };
    let mut table = format!(
        "### The same handler without and with the layer, {CLIENTS} clients at once, medians of {ROUNDS} \
         rounds\n\n| before the handler | requests a second | ratio | processor time of the service a \
         request | ratio | goal |\n| --- | ---: | ---: | ---: | ---: | ---: |\n"
    );
    let names = ["nothing", "a layer that does nothing but box a future", "`ApiKeyLayer`, {} keys"];
    for (index, name) in names.into_iter().enumerate() {
        let goal = if index == 2 { "at least 0.95" } else { "" };
        writeln!(
            table,
            "| {} | {:.0} | {:.3} | {:.2} µs | {:.3} | {goal} |",
            name.replace("{}", &keys.len().to_string()),
            median(rates[index].clone()),
            ratio(&rates, index),
            median(costs[index].clone()),
            ratio(&costs, index),
        )?;
    }
    eprint!("{table}");
    Ok(table)
}
