//! The process that is measured.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tempfile::NamedTempFile;
use tokio::net::TcpStream;

use crate::{Failure, handler};

/// A process that listens. It is stopped with the value.
pub struct Service {
    pub address: String,
    first_key: String,
    process: Child,
    _input: Option<ChildStdin>,
    _keys: Option<NamedTempFile>,
}

impl Service {
    /// The reference service, as benches/run-http has built it.
    pub fn start(variables: &[(&str, &str)]) -> Result<Self, Failure> {
        let program = std::env::var("LEXIKON_API").map_err(|_| "start it with benches/run-http")?;
        let folder = tempfile::tempdir()?;
        let first_key = folder.path().join("first_key.header");
        let mut command = Command::new(program);
        command.env("ADDRESS", "127.0.0.1:0").env("FIRST_KEY_FILE", &first_key);
        let mut service = Self::launch(command.envs(variables.to_vec()))?;
        let header = std::fs::read_to_string(first_key)?;
        service.first_key = header.trim_start_matches("X-API-Key: ").trim_end().to_owned();
        Ok(service)
    }

    /// A handler with a layer before it.
    pub fn serve_handler(layer: &str, keys: &[String]) -> Result<Self, Failure> {
        let mut file = NamedTempFile::new()?;
        file.write_all(keys.join("\n").as_bytes())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.env(handler::LAYER, layer).env(handler::KEYS, file.path());
        let mut service = Self::launch(&mut command)?;
        service._keys = Some(file);
        Ok(service)
    }

    fn launch(command: &mut Command) -> Result<Self, Failure> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(process.stdout.take().expect("is piped"));
        let input = process.stdin.take();
        let mut address = String::new();
        for line in output.lines() {
            let line = line?;
            if let Some(url) = line.strip_prefix("Listening on http://") {
                address = url.to_owned();
                break;
            }
        }
        if address.is_empty() {
            return Err("the service does not start".into());
        }
        let first_key = String::new();
        Ok(Self { address, first_key, process, _input: input, _keys: None })
    }

    async fn send(&self, request: http::request::Builder, body: &str) -> Result<String, Failure> {
        let stream = TcpStream::connect(&self.address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = request.header("host", &self.address).header("x-api-key", &self.first_key);
        let request = request.header("content-type", "application/json");
        let response =
            sender.send_request(request.body(Full::<Bytes>::from(body.to_owned()))?).await?;
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await?.to_bytes().into())?;
        if !parts.status.is_success() {
            return Err(format!("{}: {text}", parts.status).into());
        }
        Ok(text)
    }

    pub async fn get(&self, path: &str) -> Result<String, Failure> {
        self.send(Request::get(path), "").await
    }

    /// Writes what the clients will read.
    pub async fn write_entry(&self) -> Result<(), Failure> {
        let request = Request::put("/api/entries/lexikon");
        self.send(request, r#"{"definition": "a book of words"}"#).await.map(drop)
    }

    /// Resident megabytes after each fifth of some time.
    pub fn memory_over(&self, time: Duration) -> tokio::task::JoinHandle<Vec<f64>> {
        const PARTS: u32 = 5;
        let path = format!("/proc/{}/status", self.process.id());
        tokio::spawn(async move {
            let mut megabytes = Vec::new();
            for _ in 0..PARTS {
                tokio::time::sleep(time / PARTS).await;
                let status = std::fs::read_to_string(&path).unwrap_or_default();
                let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
                let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
                megabytes.push(
                    kilobytes.and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN)
                        / 1024.0,
                );
            }
            megabytes
        })
    }

    /// What the process has spent so far, in user and kernel.
    pub fn processor_time(&self) -> Result<Duration, Failure> {
        /// Ticks a second: `USER_HZ` on every Linux that there is.
        const TICKS: u64 = 100;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("an unknown form of /proc")?;
        let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let (user, kernel) = (fields.next().ok_or("no field")??, fields.next().ok_or("no field")??);
        Ok(Duration::from_millis((user + kernel) * 1000 / TICKS))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
