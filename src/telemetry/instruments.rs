//! The instruments, registered with the recorder of the `metrics` crate when they are made.
#![allow(dead_code)] // each feature uses its part

use std::time::{Duration, Instant};

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::metric::Metric;

/// Names and values of labels: constants, so that the number of series is bounded.
pub(crate) type Labels<'a> = &'a [(&'static str, &'static str)];

impl Metric {
    fn unit(&self) -> Unit {
        match self.name.rsplit('_').next() {
            Some("seconds") => Unit::Seconds,
            Some("bytes") => Unit::Bytes,
            _ => Unit::Count,
        }
    }
}

#[derive(Clone)]
pub(crate) struct Counter(metrics::Counter);

impl Counter {
    pub(crate) fn new(metric: &Metric, labels: Labels<'_>) -> Self {
        describe_counter!(metric.name, metric.unit(), metric.meaning);
        Self(counter!(metric.name, labels))
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.increment(count);
    }
}

#[derive(Clone)]
pub(crate) struct Gauge(metrics::Gauge);

impl Gauge {
    pub(crate) fn new(metric: &Metric, labels: Labels<'_>) -> Self {
        describe_gauge!(metric.name, metric.unit(), metric.meaning);
        Self(gauge!(metric.name, labels))
    }

    /// Sets the gauge to what `value` returns. Without the feature, `value` is not called.
    pub(crate) fn set(&self, value: impl FnOnce() -> f64) {
        self.0.set(value());
    }
}

#[derive(Clone)]
pub(crate) struct Histogram(metrics::Histogram);

impl Histogram {
    pub(crate) fn new(metric: &Metric, labels: Labels<'_>) -> Self {
        describe_histogram!(metric.name, metric.unit(), metric.meaning);
        Self(histogram!(metric.name, labels))
    }

    pub(crate) fn record(&self, duration: Duration) {
        self.0.record(duration);
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}
