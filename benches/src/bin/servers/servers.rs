//! Servers that stop with this process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use crate::Failure;

fn start(script: &str) -> Result<(Child, String), Failure> {
    let path = format!("{}/../tests/servers/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut script = Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(script.stdout.take().expect("is piped")).read_line(&mut line)?;
    Ok((script, line.trim().to_owned()))
}

fn stop(script: &mut Child) {
    drop(script.stdin.take());
    let _ = script.wait();
}

pub struct Postgres {
    pub port: u16,
    script: Child,
}

impl Postgres {
    pub fn start() -> Result<Self, Failure> {
        let (script, port) = start("postgres-server")?;
        Ok(Self { port: port.parse()?, script })
    }

    pub fn options(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(self.port);
        options.username("postgres").database("postgres")
    }

    /// Transactions a second that PostgreSQL's own benchmark reaches with the look-up of a random row by
    /// its hash: alone, or beside one that no row has, as an untagged key is looked up.
    pub fn pgbench(
        &self,
        keys: u32,
        clients: usize,
        time: Duration,
        candidates: usize,
    ) -> Result<f64, Failure> {
        let hash = "encode(sha256(('lxk_' || lpad(:n::text, 43, '0'))::bytea), 'hex')";
        let hashes = match candidates {
            1 => hash.to_owned(),
            _ => format!("ANY(ARRAY[reverse({hash}), {hash}])"),
        };
        let select = format!(
            "\\set n random(0, {} - 1)\n\
             SELECT k.id, k.user_id, u.is_active, k.key_hash, k.name, k.scopes, k.is_active, \
             k.created_at, k.expires_at, k.last_used_at, k.revoked_at, k.revoked_reason, k.hash_format \
             FROM api_keys k LEFT JOIN users u ON u.id = k.user_id WHERE k.key_hash = {hashes};\n",
            keys
        );
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("select.sql");
        std::fs::write(&file, select)?;
        let find = "ls /usr/lib/postgresql/*/bin/pgbench | sort -V | tail -n 1";
        let program = Command::new("sh").args(["-c", find]).output()?.stdout;
        let output = Command::new(String::from_utf8(program)?.trim())
            .args(["-n", "-M", "prepared", "-h", "127.0.0.1", "-U", "postgres"])
            .args(["-p", &self.port.to_string(), "-T", &time.as_secs().max(1).to_string()])
            .args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string(), "-f"])
            .arg(file)
            .arg("postgres")
            .output()?;
        let output = String::from_utf8(output.stdout)?;
        let line = output.lines().find_map(|line| line.strip_prefix("tps = "));
        let rate = line.and_then(|line| line.split(' ').next()).ok_or("pgbench prints a rate")?;
        Ok(rate.parse()?)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        stop(&mut self.script);
    }
}

pub struct RedisServer {
    pub port: u16,
    process: String,
    script: Child,
}

impl RedisServer {
    pub fn start() -> Result<Self, Failure> {
        let (script, line) = start("redis-server")?;
        let (port, process) = line.split_once(' ').ok_or("a port and a process")?;
        Ok(Self { port: port.parse()?, process: process.to_owned(), script })
    }

    pub fn client(&self) -> Result<redis::Client, Failure> {
        Ok(redis::Client::open(("127.0.0.1", self.port))?)
    }

    pub fn signal(&self, signal: &str) -> Result<(), Failure> {
        Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.process)]).status()?;
        Ok(())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.signal("CONT");
        stop(&mut self.script);
    }
}
