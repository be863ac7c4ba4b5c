//! The limit: SHA-256's compression function and nothing else.

use std::hint::black_box;

use criterion::Criterion;
use criterion::measurement::WallTime;
use lexikon_auth_benches::UNIT;
use sha2::block_api::compress256;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limit");
    unit(&mut group);
    group.bench_function("one compression", |b| b.iter(|| compressions(&[BLOCK])));
    group.bench_function("two compressions in series", |b| b.iter(|| compressions(&[BLOCK; 2])));
}

/// What an untagged key takes at least: two compressions in series for HMAC, and one for plain
/// SHA-256. Every group measures it anew, so that a machine that changes its pace between two groups
/// does not bend the ratios.
pub fn unit(group: &mut criterion::BenchmarkGroup<'_, WallTime>) {
    group.bench_function(UNIT, |b| {
        b.iter(|| (compressions(&[BLOCK; 2]), compressions(&[BLOCK])));
    });
}

const BLOCK: [u8; 64] = [0x5a; 64];

/// The state after the blocks, one call each, as HMAC has to make them.
#[inline]
fn compressions<const N: usize>(blocks: &[[u8; 64]; N]) -> [u32; 8] {
    let mut state = black_box([0x6a09_e667; 8]);
    for block in black_box(blocks) {
        compress256(&mut state, std::slice::from_ref(block));
    }
    state
}
