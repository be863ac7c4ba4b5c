//! Every group in one process, so that all figures of a table come from one run.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

mod alternatives;
mod cache;
mod digest;
mod issue;
mod limit;
mod sqlite;
mod threads;
mod verify;

fn config() -> Criterion {
    Criterion::default()
        .sample_size(50)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = all;
    config = config();
    targets = limit::bench, digest::bench, verify::bench, sqlite::bench, cache::bench,
        issue::bench, threads::bench,
        alternatives::bench,
}
criterion_main!(all);
