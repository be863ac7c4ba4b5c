//! What the crate reports to its operators: security events always, metrics with the feature `metrics`.
//! Both are listed in docs/telemetry.md.
//!
//! Without the feature the instruments are of size zero and do nothing, so that only this file knows of it.

#[cfg_attr(not(feature = "metrics"), path = "telemetry/no_op_instruments.rs")]
mod instruments;
pub(crate) mod metric;
mod readable_counter;
pub(crate) mod security;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod store_metrics;
mod verifier_metrics;

pub(crate) use self::instruments::*;
pub(crate) use self::readable_counter::ReadableCounter;
pub use self::security::SECURITY_TARGET;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use self::store_metrics::{Operation, StoreMetrics};
pub(crate) use self::verifier_metrics::VerifierMetrics;

/// Bounds of buckets, in seconds, that suit all times that this crate measures: from the microsecond of
/// a verification in the cache to the seconds after which a store is given up.
///
/// For `PrometheusBuilder::set_buckets_for_metric` of metrics-exporter-prometheus, as docs/telemetry.md shows.
#[cfg(feature = "metrics")]
pub const LATENCY_BUCKETS: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1,
    0.2, 0.5, 1.0, 2.0, 5.0,
];
