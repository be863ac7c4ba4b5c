//! What the crate tells those who operate it: security events always, metrics with the feature
//! `metrics`. Both are listed in docs/telemetry.md.
//!
//! Without the feature the instruments are empty and their methods do nothing, so that nobody else has
//! to ask whether it is there.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod calls;
#[cfg(feature = "tower")]
mod http;
#[cfg(feature = "metrics")]
mod recorded;
pub(crate) mod security;
pub(crate) mod table;
#[cfg(not(feature = "metrics"))]
mod unrecorded;
mod verifications;

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use self::calls::{Calls, Operation};
#[cfg(feature = "tower")]
pub(crate) use self::http::HttpAnswers;
#[cfg(feature = "metrics")]
pub(crate) use self::recorded::*;
#[cfg(not(feature = "metrics"))]
pub(crate) use self::unrecorded::*;
pub(crate) use self::verifications::Verifications;

/// The target of the `tracing` events that concern security: uses of legacy keys, refusals, stores that
/// do not answer or answer wrongly, and entries of Redis that were tampered with.
///
/// They name keys by id and never hold a key, a hash or a secret. A filter such as
/// `lexikon_auth::security=debug` also shows the refusals of keys that are none, which anybody can cause
/// in any number.
pub const SECURITY_TARGET: &str = "lexikon_auth::security";

/// Bounds of buckets, in seconds, that suit all times that this crate measures: from the microsecond of
/// a verification in the cache to the seconds after which a store is given up.
///
/// ```
/// use lexikon_auth::telemetry::LATENCY_BUCKETS;
/// use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let times = Matcher::Prefix("lexikon_auth_".to_owned());
/// let builder = PrometheusBuilder::new().set_buckets_for_metric(times, LATENCY_BUCKETS)?;
/// // Before any store and verifier is made: each looks for the recorder once.
/// let metrics = builder.install_recorder()?;
/// // `metrics.render()` is what Prometheus reads.
/// # Ok(()) }
/// ```
#[cfg(feature = "metrics")]
pub const LATENCY_BUCKETS: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1,
    0.2, 0.5, 1.0, 2.0, 5.0,
];

/// A counter that the application can read, and that is exported as well.
pub(crate) struct ReadableCounter {
    total: AtomicU64,
    exported: Counter,
}

impl ReadableCounter {
    pub(crate) fn new(exported: Counter) -> Self {
        Self { total: AtomicU64::new(0), exported }
    }

    /// Counts, and returns what the count was before.
    pub(crate) fn add(&self, count: u64) -> u64 {
        self.exported.add(count);
        self.total.fetch_add(count, Ordering::Relaxed)
    }

    pub(crate) fn read(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}
