//! The instruments without the feature `metrics`: of size zero, and without effect.
#![allow(dead_code)] // each feature uses its part

use std::time::Duration;

use super::metric::Metric;

pub(crate) type Labels<'a> = &'a [(&'static str, &'static str)];

#[derive(Clone)]
pub(crate) struct Counter;

impl Counter {
    pub(crate) fn new(_: &Metric, _: Labels<'_>) -> Self {
        Self
    }

    pub(crate) fn add(&self, _: u64) {}
}

#[derive(Clone)]
pub(crate) struct Gauge;

impl Gauge {
    pub(crate) fn new(_: &Metric, _: Labels<'_>) -> Self {
        Self
    }

    pub(crate) fn set(&self, _: impl FnOnce() -> f64) {}
}

#[derive(Clone)]
pub(crate) struct Histogram;

impl Histogram {
    pub(crate) fn new(_: &Metric, _: Labels<'_>) -> Self {
        Self
    }

    pub(crate) fn record(&self, _: Duration) {}
}

#[derive(Clone, Copy)]
pub(crate) struct Stopwatch;

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self
    }

    pub(crate) fn elapsed(self) -> Duration {
        Duration::ZERO
    }
}
