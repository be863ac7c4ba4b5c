//! What the memory store takes: bytes a key, and allocations a verification. Prints both as JSON.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lexikon_auth_benches::{Keys, Kind, now};

const COUNT: usize = 1_000_000;

/// The system's allocator, counting.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: all calls go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let (empty, _) = usage();
    let Keys { verifier, texts } = Keys::new(Kind::Tagged, COUNT);
    let (full, _) = usage();
    let plaintexts = texts.count() * texts.first().len();
    let bytes_a_key = (full - empty - plaintexts) as f64 / COUNT as f64;

    let (_, before) = usage();
    assert!(texts.iter().all(|text| now(verifier.verify(text)).is_ok()));
    let (_, after) = usage();
    let allocations = (after - before) as f64 / COUNT as f64;

    println!(r#"{{"bytes_a_key":{bytes_a_key},"allocations_a_verification":{allocations}}}"#);
}

fn usage() -> (usize, u64) {
    (BYTES.load(Ordering::Relaxed), ALLOCATIONS.load(Ordering::Relaxed))
}
