//! Clients that send one request after the other, each on a connection of its own.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Failure;
use crate::keys::Presented;

/// What all clients have seen.
pub struct Outcome {
    /// Of each request, in microseconds, sorted.
    latencies: Vec<u32>,
    pub errors: u64,
    good: u64,
    good_accepted: u64,
    time: Duration,
}

impl Outcome {
    pub fn requests(&self) -> usize {
        self.latencies.len()
    }

    pub fn rate(&self) -> f64 {
        self.requests() as f64 / self.time.as_secs_f64()
    }

    /// The share of good keys that were accepted.
    pub fn accepted(&self) -> f64 {
        self.good_accepted as f64 / self.good as f64
    }

    /// In milliseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let place = (share * (self.latencies.len() - 1) as f64) as usize;
        f64::from(self.latencies[place]) / 1000.0
    }
}

#[derive(Default)]
struct Seen {
    latencies: Vec<u32>,
    errors: u64,
    good: u64,
    good_accepted: u64,
}

/// Sends requests for some time.
pub async fn drive(
    address: &str,
    presented: &Presented,
    clients: usize,
    time: Duration,
) -> Result<Outcome, Failure> {
    let presented = Arc::new(presented.clone());
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        tasks.spawn(client(address.to_owned(), presented.clone(), number as u64, started + time));
    }
    let mut all = Seen::default();
    while let Some(seen) = tasks.join_next().await {
        let seen = seen??;
        all.latencies.extend(seen.latencies);
        all.errors += seen.errors;
        all.good += seen.good;
        all.good_accepted += seen.good_accepted;
    }
    let time = started.elapsed();
    all.latencies.sort_unstable();
    let Seen { latencies, errors, good, good_accepted } = all;
    Ok(Outcome { latencies, errors, good, good_accepted, time })
}

async fn client(
    address: String,
    presented: Arc<Presented>,
    seed: u64,
    until: Instant,
) -> Result<Seen, Failure> {
    let stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut seen = Seen::default();
    while Instant::now() < until {
        let (key, is_good) = presented.draw(&mut rng);
        let request = Request::get("/api/entries/lexikon")
            .header("host", &address)
            .header("x-api-key", key)
            // Refused keys come from everywhere, so that no address is throttled.
            .header("x-forwarded-for", Ipv4Addr::from(rng.random::<u32>()).to_string())
            .body(Empty::<Bytes>::new())?;
        let started = Instant::now();
        let response = sender.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        seen.latencies.push(started.elapsed().as_micros() as u32);
        let expected = if is_good { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        seen.errors += u64::from(status != expected);
        seen.good += u64::from(is_good);
        seen.good_accepted += u64::from(is_good && status == StatusCode::OK);
    }
    Ok(seen)
}
