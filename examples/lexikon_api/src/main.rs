//! What the lexikon API does with keys, as a service to copy from.
//!
//! ```sh
//! cargo run -p lexikon_api
//! ```
//!
//! needs no configuration: a database of its own, which is gone at the end, and a first key in a file
//! beside it. The variables of [`config`] make it a real one.

mod answer;
mod body;
mod claims;
mod config;
mod entries;
mod first_key;
mod keys;
mod log;
mod serve;
mod status;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRef};
use axum::http::header::{self, HeaderValue};
use axum::routing::{delete, get};
use axum::{Router, middleware};
use lexikon_auth::http::{ApiKeyNotice, Throttle};
use lexikon_auth::store::CacheOptions;
use lexikon_auth::{ApiKeys, StoreError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::claims::Claims;
use self::config::Config;
use self::status::Status;

/// How often last uses are written. Short, so that a repeated POST soon sees that its key is in use.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// No body of this API is longer.
const MAX_BODY: usize = 16 << 10;

/// What the handlers share.
#[derive(Clone, FromRef)]
struct App {
    keys: ApiKeys,
    claims: Claims,
    entries: entries::Entries,
    status: Arc<Status>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lexikon_api: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    // Logs go to the standard error; no key goes there, or to the standard output.
    let targets: Targets = std::env::var("RUST_LOG").as_deref().unwrap_or("info").parse()?;
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(log).with(targets).init();
    // Before the stores are made: they register their metrics then.
    let metrics = status::install_metrics()?;

    let config = Config::from_env()?;
    let keys = open_keys(&config).await?;
    if let Some(owner) = &config.first_key_for {
        first_key::make(&keys, owner, &config.first_key_file).await?;
    }
    let claims = Claims::open(&config.database_url).await?;

    let app = App {
        keys: keys.clone(),
        claims: claims.clone(),
        entries: entries::Entries::default(),
        status: Arc::new(Status::new(keys.clone(), claims.database_kind(), metrics)),
    };
    // Before anybody may think that it runs, and ask it to stop.
    let stop = stop_signal()?;
    let listener = TcpListener::bind(&config.address).await?;
    println!("Listening on http://{}", listener.local_addr()?);
    serve::serve(listener, router(app, &config), stop).await;

    keys.shutdown().await?;
    claims.close().await;
    tracing::info!("stopped, and all last uses are written");
    Ok(())
}

async fn open_keys(config: &Config) -> Result<ApiKeys, StoreError> {
    let options = ApiKeys::options(config.ring.clone())
        .extend_schema()
        .flush_interval(FLUSH_INTERVAL)
        .cache(CacheOptions::default());
    let options = match &config.redis_url {
        Some(url) => options.redis(url),
        None => options,
    };
    options.open(&config.database_url).await
}

fn router(app: App, config: &Config) -> Router {
    let throttle = Throttle::new(|extensions| {
        extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
    })
    .trusted_proxies(config.trusted_proxies.iter().copied());
    let layer = app
        .keys
        .layer()
        .realm("lexikon")
        .expect("a plain word")
        .respond_with(answer::detail)
        .notice(ApiKeyNotice::default())
        .throttle(throttle);

    let protected = Router::new()
        .route("/api/auth/api-keys", get(keys::list).post(keys::create))
        .route("/api/auth/api-keys/{id}", delete(keys::revoke))
        .route("/api/entries/{word}", get(entries::read).put(entries::write))
        .layer(middleware::from_fn(log::note_key))
        .layer(layer);
    Router::new()
        .merge(protected)
        .route("/api/health", get(status::health))
        .route("/api/ready", get(status::ready))
        .route("/api/status", get(status::status))
        .route("/api/metrics", get(status::metrics))
        .route("/api/openapi.json", get(openapi))
        .fallback(answer::no_such_route)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(log::request))
        .with_state(app)
}

/// The description of this API, which the tests hold against its real answers.
async fn openapi() -> ([(header::HeaderName, HeaderValue); 1], &'static str) {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], include_str!("openapi.json"))
}

/// Completes when the process is asked to stop, from now on.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
