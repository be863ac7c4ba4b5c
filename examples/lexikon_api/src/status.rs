//! Whether the service is alive, ready and well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lexikon_auth::ApiKeys;
use lexikon_auth::store::{CachedStore, FormatCounts, RedisStore};
use lexikon_auth::telemetry::LATENCY_BUCKETS;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::answer::Failure;

/// How long a count of the whole table is shown: anybody may ask.
const COUNT_AGAIN: Duration = Duration::from_secs(30);
/// How long a count may take.
const LONGEST_COUNT: Duration = Duration::from_secs(5);
/// How often histograms are summed up; what waits for it takes memory.
const SUM_UP: Duration = Duration::from_secs(1);

pub struct Status {
    keys: ApiKeys,
    database_kind: &'static str,
    metrics: PrometheusHandle,
    counts: Mutex<Option<(Instant, Option<FormatCounts>)>>,
}

/// Has this crate's metrics, and those of others, be shown at `/api/metrics`.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), LATENCY_BUCKETS)?;
    let handle = builder.install_recorder()?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut timer = tokio::time::interval(SUM_UP);
        loop {
            timer.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

impl Status {
    pub fn new(keys: ApiKeys, database_kind: &'static str, metrics: PrometheusHandle) -> Self {
        Self { keys, database_kind, metrics, counts: Mutex::default() }
    }

    /// How far the migration is; null where the table could not be counted.
    async fn migration(&self) -> Value {
        let mut counts = self.counts.lock().await;
        if counts.is_none_or(|(at, _)| at.elapsed() > COUNT_AGAIN) {
            let count = timeout(LONGEST_COUNT, self.keys.manager().count_by_format()).await;
            // A failure is remembered too: nobody makes the table be counted again and again.
            *counts = Some((Instant::now(), count.ok().and_then(Result::ok)));
        }
        let (_, counts) = counts.expect("just counted");
        counts.map_or(Value::Null, |FormatCounts { hmac_sha256, sha256, unknown }| {
            json!({ "hmac_sha256": hmac_sha256, "sha256": sha256, "unknown": unknown })
        })
    }

    fn caches(&self) -> Value {
        let counts = self.keys.cache().map(CachedStore::counts).unwrap_or_default();
        let hits = counts.hits + counts.unknown_hits;
        // Not a number before the first look-up, which is null in JSON.
        let hit_rate = hits as f64 / (hits + counts.misses) as f64;
        json!({
            "hits": hits,
            "misses": counts.misses,
            "hit_rate": hit_rate,
            "bytes": counts.bytes,
            "entries": counts.entries,
            "followed": self.keys.is_following(),
            "redis": self.keys.redis().map(RedisStore::counts).map(|counts| {
                json!({
                    "hits": counts.hits,
                    "misses": counts.misses,
                    "bypassed": counts.bypassed,
                    "rejected": counts.rejected,
                })
            }),
        })
    }
}

/// Alive: the process answers.
pub async fn health() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// Ready: the database answers too.
pub async fn ready(State(status): State<Arc<Status>>) -> Result<Json<Value>, Failure> {
    match status.keys.ping().await {
        Ok(()) => Ok(Json(json!({ "status": "ready" }))),
        Err(error) => {
            tracing::warn!(%error, "the database does not answer");
            let message = "the database does not answer";
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message))
        }
    }
}

/// How the parts are. With the status 200 also when one of them is down: whoever asks wants to know which.
pub async fn status(State(status): State<Arc<Status>>) -> Json<Value> {
    let started = Instant::now();
    let latency = status.keys.ping().await.is_ok().then(|| started.elapsed());
    let migration = match latency {
        Some(_) => status.migration().await,
        None => Value::Null,
    };
    Json(json!({
        "database": {
            "kind": status.database_kind,
            "is_up": latency.is_some(),
            "latency_seconds": latency.map(|latency| latency.as_secs_f64()),
        },
        "cache": status.caches(),
        "migration": migration,
    }))
}

/// The metrics, in the text format of Prometheus.
pub async fn metrics(State(status): State<Arc<Status>>) -> Response {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    ([("content-type", TEXT)], status.metrics.render()).into_response()
}
