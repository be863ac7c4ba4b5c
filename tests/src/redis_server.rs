//! A Redis server of the test's own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lexikon_auth::store::RedisOptions;

/// A server; it stops when its input closes with the value or the process.
pub struct RedisServer {
    pub port: u16,
    process: u32,
    script: Child,
}

impl RedisServer {
    pub fn start() -> Self {
        Self::run(&[])
    }

    fn run(arguments: &[String]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/redis-server");
        let mut script = Command::new(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script runs");
        let mut line = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (port, process) = line.trim().split_once(' ').expect("Redis is installed (tests/run)");
        Self { port: port.parse().unwrap(), process: process.parse().unwrap(), script }
    }

    /// Sends a signal to the server itself: `KILL`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.process);
        let done = Command::new("sh").args(["-c", &kill]).status();
        assert!(done.unwrap().success(), "{kill}");
    }

    /// Starts another, empty one in its place, after it was killed.
    pub fn start_again(&mut self) {
        let port = self.port.to_string();
        drop(self.script.stdin.take());
        self.script.wait().unwrap();
        *self = Self::run(&[port]);
    }

    pub fn client(&self) -> redis::Client {
        client(self.port)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

pub fn client(port: u16) -> redis::Client {
    redis::Client::open(("127.0.0.1", port)).unwrap()
}

/// One server for each test binary.
fn shared() -> &'static RedisServer {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    SERVER.get_or_init(RedisServer::start)
}

pub fn shared_client() -> redis::Client {
    shared().client()
}

/// The same server, for another process.
pub fn shared_url() -> String {
    format!("redis://127.0.0.1:{}", shared().port)
}

/// A busy machine may take its time.
pub fn patient() -> RedisOptions {
    RedisOptions::default().timeout(Duration::from_secs(60))
}

/// A prefix that nobody has used.
pub fn prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test {}:", COUNT.fetch_add(1, Ordering::Relaxed))
}
