//! A PostgreSQL server of the test's own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::{PgConnectOptions, PgPool};

/// A server; it stops when its input closes with the value or the process.
pub struct Server {
    port: u16,
    script: Child,
    output: BufReader<ChildStdout>,
}

impl Server {
    pub fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/postgres-server");
        let mut script = Command::new(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script runs");
        let mut output = BufReader::new(script.stdout.take().unwrap());
        let mut port = String::new();
        output.read_line(&mut port).unwrap();
        let port =
            port.trim().parse().expect("PostgreSQL is installed (tests/run does it) and starts");
        Self { port, script, output }
    }

    /// Ends the server at once, as a loss of power does.
    pub fn kill(&mut self) {
        self.command("kill");
    }

    /// Starts it on the same port, with the same data.
    pub fn start_again(&mut self) {
        self.command("start");
    }

    fn command(&mut self, command: &str) {
        writeln!(self.script.stdin.as_mut().unwrap(), "{command}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n");
    }

    /// The same database, for another process.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The database that is there from the start.
    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("postgres")
            .database("postgres")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

/// A new empty database, on one server for each test binary.
pub async fn database() -> PgConnectOptions {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let options = SERVER.get_or_init(Server::start).options();
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let server = PgPool::connect_with(options.clone()).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::raw_sql(create).execute(&server).await.unwrap();
    server.close().await;
    options.database(&name)
}
