//! A PostgreSQL server of the test's own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::{PgConnectOptions, PgPool};

/// One server for each test binary; it stops when its input closes with the process.
struct Server {
    port: u16,
    _process: Child,
}

impl Server {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/postgres-server");
        let mut process = Command::new(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script runs");
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let port =
            port.trim().parse().expect("PostgreSQL is installed (tests/run does it) and starts");
        Self { port, _process: process }
    }
}

/// A new empty database.
pub async fn database() -> PgConnectOptions {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let port = SERVER.get_or_init(Server::start).port;
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username("postgres")
        .database("postgres");
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let server = PgPool::connect_with(options.clone()).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::raw_sql(create).execute(&server).await.unwrap();
    server.close().await;
    options.database(&name)
}
