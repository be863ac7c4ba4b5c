//! What the heap sees: verification allocates nothing, freed memory holds no key and no secret, and a
//! cache stays within its bound.
//!
//! The allocator of this test counts allocations and bytes, and can keep blocks back instead of freeing them, so
//! that a test can search them as they were left. It watches each thread by itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::ptr::null_mut;

use lexikon_auth::crypto::PresentedKey;
use lexikon_auth::store::{DynKeyStore, KeyStore, MemoryStore};
use lexikon_auth::{
    ApiKey, KeyManager, LegacyPolicy, NewKey, OwnerId, Policy, RetiredPolicy, Rotation, SecretRing,
    ServerSecret, UntaggedPolicy, Verifier,
};
use lexikon_auth_tests::{
    FORGED, SECRETS, TAGGED, UNTAGGED, clock_at_noon, debugged, hmac_hash, legacy_hash, noon,
    printed, ready, record, ring, secret,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::block_api::compress256;
use zeroize::Zeroizing;

#[global_allocator]
static ALLOCATOR: Watching = Watching;

struct Watching;

/// Blocks that can be kept back at once.
const MAX_KEPT: usize = 4096;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// The bytes that are allocated and not freed.
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static IS_KEEPING: Cell<bool> = const { Cell::new(false) };
    static KEPT_COUNT: Cell<usize> = const { Cell::new(0) };
    static KEPT: [Cell<(*mut u8, Layout)>; MAX_KEPT] =
        const { [const { Cell::new((null_mut(), Layout::new::<u8>())) }; MAX_KEPT] };
}

/// Growing is left to the trait's own `realloc`, which allocates, copies and frees the old block.
// SAFETY: every block comes from the system's allocator and goes back there, at once or later.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        LIVE.set(LIVE.get() + layout.size() as i64);
        // Zeroed, so that the whole block may be read when it is freed.
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as i64);
        if IS_KEEPING.get() {
            let count = KEPT_COUNT.replace(KEPT_COUNT.get() + 1);
            KEPT.with(|kept| kept[count].set((block, layout)));
        } else {
            // SAFETY: as the caller promises.
            unsafe { System.dealloc(block, layout) }
        }
    }
}

/// How many blocks `work` allocates.
fn allocations_of<T>(work: impl FnOnce() -> T) -> usize {
    let before = ALLOCATIONS.get();
    drop(work());
    ALLOCATIONS.get() - before
}

/// The blocks that `work` frees, as it leaves them.
fn freed_by<T>(work: impl FnOnce() -> T) -> Vec<Vec<u8>> {
    IS_KEEPING.set(true);
    drop(work());
    IS_KEEPING.set(false);
    let count = KEPT_COUNT.replace(0);
    let look = |kept: &Cell<(*mut u8, Layout)>| {
        let (block, layout) = kept.get();
        // SAFETY: the block was kept back, so it is still allocated, and it was zeroed at first.
        let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) }.to_vec();
        // SAFETY: nobody else knows the block any more.
        unsafe { System.dealloc(block, layout) };
        bytes
    };
    KEPT.with(|kept| kept[..count].iter().map(look).collect())
}

/// Whether a part of `secret` stands in the blocks: sixteen bytes, so that no copy of 31 escapes.
fn hold(blocks: &[Vec<u8>], secret: &[u8]) -> bool {
    const PART: usize = 16;
    let mut parts = secret.chunks_exact(PART);
    parts.any(|part| blocks.iter().any(|block| block.windows(PART).any(|bytes| bytes == part)))
}

/// Asserts that nothing of these secrets is left in what `work` frees.
#[track_caller]
fn assert_leaves_nothing<T>(secrets: &[&str], work: impl FnOnce() -> T) {
    let freed = freed_by(work);
    for secret in secrets {
        assert!(!hold(&freed, secret.as_bytes()), "a part of a secret is left in freed memory");
    }
}

#[test]
fn the_allocator_sees_what_is_allocated_and_what_is_left() {
    let text = SECRETS[0];
    assert_eq!(allocations_of(|| String::from(text)), 1);
    assert_eq!(allocations_of(|| ()), 0);
    assert!(hold(&freed_by(|| String::from(text)), text.as_bytes()), "dropped without wiping");
    assert!(!hold(&freed_by(|| Zeroizing::new(String::from(text))), text.as_bytes()));
    // Wiped at the end, but copied on the way.
    let growing = || {
        let mut grown = Zeroizing::new(String::new());
        text.chars().for_each(|character| grown.push(character));
        grown
    };
    assert!(hold(&freed_by(growing), text.as_bytes()), "left behind by growing");
}

/// A store with a key for every kind of answer, under a ring of four secrets.
fn store_of_every_kind(keys: &[(&str, ApiKey)]) -> MemoryStore {
    let store = MemoryStore::new();
    for (kind, key) in keys {
        let mut row = record(kind, hmac_hash(SECRETS[0], key.expose_secret()));
        match *kind {
            "retired" => row.hash = hmac_hash(SECRETS[3], key.expose_secret()),
            "expired" => row.expires_at = Some(noon()),
            "revoked" => row.revocation = Some(Box::default()),
            "disabled" => row.owner = OwnerId::from("disabled"),
            _ => {}
        }
        ready(store.insert(&row)).unwrap();
    }
    ready(store.insert(&record("legacy", legacy_hash(UNTAGGED)))).unwrap();
    ready(store.insert(&record("untagged", hmac_hash(SECRETS[0], OTHER_UNTAGGED)))).unwrap();
    store.set_owner_active(&OwnerId::from("disabled"), false);
    store
}

const OTHER_UNTAGGED: &str = "lxk_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-";

fn keys_of_every_kind() -> Vec<(&'static str, ApiKey)> {
    ["current", "retired", "expired", "revoked", "disabled"]
        .map(|kind| (kind, ApiKey::generate(&secret(SECRETS[0])).unwrap()))
        .into()
}

#[test]
fn verification_allocates_nothing() {
    let keys = keys_of_every_kind();
    let unknown = format!("lxk_{}", "A".repeat(43));
    let longest = format!("lxk_{}", "A".repeat(124));
    let malformed = ["", "lxk_", "Bearer", "lxk_\0AAAAAAAAAAAAAAAAAAAA", &"x".repeat(1 << 20)];
    let mut presented = vec![UNTAGGED, OTHER_UNTAGGED, TAGGED, FORGED, &*unknown, &*longest];
    presented.extend(keys.iter().map(|(_, key)| key.expose_secret()));
    presented.extend(malformed);

    let upgrade =
        Policy::default().legacy(LegacyPolicy::UpgradeOnUse).retired(RetiredPolicy::UpgradeOnUse);
    let refuse = Policy::default().legacy(LegacyPolicy::Refuse).untagged(UntaggedPolicy::Refuse);
    for policy in [Policy::default(), upgrade, refuse] {
        let verifier = Verifier::new(store_of_every_kind(&keys), ring(&SECRETS[..4]))
            .with_policy(policy)
            .with_clock(clock_at_noon());
        // The first look-up of a thread and the first log line of a place allocate, once each.
        for key in [UNTAGGED, OTHER_UNTAGGED] {
            _ = ready(verifier.verify(key));
        }
        for key in &presented {
            for time in ["first", "second"] {
                let allocations = allocations_of(|| ready(verifier.verify(key)));
                assert_eq!(allocations, 0, "{time} verification of {key:.60} under {policy:?}");
            }
        }
    }
}

#[test]
fn the_store_chosen_at_run_time_costs_one_allocation_unless_it_answers_at_once() {
    let keys = keys_of_every_kind();
    let store = DynKeyStore::new(store_of_every_kind(&keys));
    let id = "current".into();
    assert_eq!(allocations_of(|| ready(store.find_by_id(&id))), 1);
    let verifier = Verifier::new(store, ring(&SECRETS[..4]));
    let key = keys[0].1.expose_secret();
    _ = ready(verifier.verify(key)).unwrap();
    assert_eq!(allocations_of(|| ready(verifier.verify(key))), 0);
    assert_eq!(allocations_of(|| ready(verifier.verify("lxk_"))), 0);
}

#[test]
fn parsing_allocates_nothing() {
    for text in [TAGGED, UNTAGGED, "", "lxk_", "lxk_é"] {
        assert_eq!(allocations_of(|| PresentedKey::parse(text).is_ok()), 0);
    }
}

#[test]
fn a_generated_key_is_one_allocation_and_is_wiped_on_drop() {
    let secret = secret(SECRETS[0]);
    assert_eq!(allocations_of(|| ApiKey::generate(&secret)), 1);
    let mut text = [0; 55];
    let freed = freed_by(|| {
        let key = ApiKey::generate(&secret).unwrap();
        text.copy_from_slice(key.expose_secret().as_bytes());
    });
    assert_eq!(freed, [[0; 55]]);
    assert!(text.starts_with(b"lxk_"));
}

#[test]
fn an_issued_key_is_wiped_on_drop() {
    let manager = KeyManager::new(MemoryStore::new(), &ring(&SECRETS[..1]));
    let (mut first, mut second) = (String::with_capacity(55), String::with_capacity(55));
    let freed = freed_by(|| {
        let issued = ready(manager.issue(NewKey::new("user-1", "deploy"))).unwrap();
        first.push_str(issued.key.expose_secret());
        drop(debugged(&issued));
        let rotation = Rotation::default().overlap(std::time::Duration::ZERO);
        let rotated = ready(manager.rotate(&issued.record.id, rotation)).unwrap();
        second.push_str(rotated.key.expose_secret());
    });
    for text in [first, second] {
        assert_eq!(text.len(), 55);
        assert!(!hold(&freed, text.as_bytes()), "a part of a key is left in freed memory");
    }
}

#[test]
fn verification_leaves_no_copy_of_the_key() {
    let keys = keys_of_every_kind();
    let verifier = Verifier::new(store_of_every_kind(&keys), ring(&SECRETS[..4]));
    let malformed = format!("{TAGGED}\n");
    let mut presented = vec![UNTAGGED, TAGGED, FORGED, &*malformed];
    presented.extend(keys.iter().map(|(_, key)| key.expose_secret()));
    for key in presented {
        assert_leaves_nothing(&[key], || match ready(verifier.verify(key)) {
            Ok(verified) => drop(debugged(&verified)),
            Err(error) => drop(printed(&error)),
        });
    }
    assert_leaves_nothing(&[UNTAGGED], || ready(verifier.flush()).unwrap());
}

#[test]
fn a_server_secret_is_wiped_on_drop() {
    let long = SECRETS.concat();
    for text in [SECRETS[0], &long] {
        let given = SecretString::from(text);
        assert_leaves_nothing(&[text], || ServerSecret::new(&given).unwrap());
    }
    for refused in ["not long enough, by some bytes", "change-me-0123456789-abcdefghijklmnop"] {
        let given = SecretString::from(refused);
        assert_leaves_nothing(&[refused], || {
            ServerSecret::new(&given).map_err(|error| printed(&error))
        });
    }
    let mut text = String::with_capacity(64);
    let freed = freed_by(|| {
        let generated = ServerSecret::generate().unwrap();
        text.push_str(generated.expose_secret());
        ServerSecret::new(&generated).unwrap()
    });
    assert_eq!(text.len(), 64);
    assert!(!hold(&freed, text.as_bytes()), "a part of a secret is left in freed memory");
}

/// The two states that HMAC keeps instead of a secret of up to 64 bytes. Whoever has them can compute
/// every hash, so they are as secret as the text.
fn hmac_states(secret: &str) -> Vec<u8> {
    let mut key = [0; 64];
    key[..secret.len()].copy_from_slice(secret.as_bytes());
    let states = [0x36, 0x5c].map(|pad| {
        // Fractional parts of the square roots of the first eight primes (FIPS 180-4, 5.3.3).
        let mut state = [2.0_f64, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0]
            .map(|prime| (prime.sqrt().fract() * 2_f64.powi(32)) as u32);
        compress256(&mut state, &[key.map(|byte| byte ^ pad)]);
        state
    });
    states.as_flattened().iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn the_states_of_a_secret_are_wiped_on_drop() {
    let leaked = freed_by(|| Box::new(ManuallyDrop::new(secret(SECRETS[0]))));
    assert!(hold(&leaked, &hmac_states(SECRETS[0])), "the needle is not the right one");

    let freed = freed_by(|| {
        let two = ring(&SECRETS[..2]);
        // A clone has room for what it holds and no more.
        let three = two.clone().with_retired(secret(SECRETS[2])).unwrap();
        let repeated = two.clone().with_retired(secret(SECRETS[0])).unwrap_err();
        let full = ring(&SECRETS[..4]);
        (two, three, repeated, full)
    });
    for text in &SECRETS[..4] {
        assert!(!hold(&freed, &hmac_states(text)), "a state is left in freed memory");
    }
}

/// Loads a ring from these variables, and prints it or its error.
fn load(variables: &[(&str, &str)]) -> String {
    let lookup = |name: &str| {
        let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
        Some(OsString::from(value))
    };
    match SecretRing::from_variables(lookup) {
        Ok(ring) => debugged(&ring),
        Err(error) => printed(&error),
    }
}

#[test]
fn loading_from_variables_leaves_no_copy_of_the_secret() {
    let [one, other] = [SECRETS[0], SECRETS[1]];
    let short = &one[..31];
    let cases = [
        vec![("API_KEY_SECRET", one)],
        vec![("API_KEY_SECRET", one), ("API_KEY_SECRET_PREVIOUS", other)],
        vec![("API_KEY_SECRET", one), ("API_KEY_SECRET_PREVIOUS", one)],
        vec![("API_KEY_SECRET", one), ("API_KEY_SECRET_PREVIOUS", &other[..31])],
        vec![("API_KEY_SECRET", one), ("API_KEY_SECRET_FILE", "/run/secrets/api-key")],
        vec![("API_KEY_SECRET", short)],
        vec![("API_KEY_SECRET_PREVIOUS", one)],
    ];
    for variables in cases {
        assert_leaves_nothing(&[one, other], || load(&variables));
    }
}

#[test]
fn loading_from_files_leaves_no_copy_of_the_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted");
    let text = SECRETS[0];
    let contents = [
        text.as_bytes().to_vec(),
        format!("{text}\r\n").into_bytes(),
        text.as_bytes()[..31].to_vec(),
        [text.as_bytes(), &[0xff]].concat(),
        text.repeat(1024).into_bytes(),
        text.repeat(1025).into_bytes(),
    ];
    for content in contents {
        std::fs::write(&path, content).unwrap();
        let variables = [("API_KEY_SECRET_FILE", path.to_str().expect("a UTF-8 path"))];
        assert_leaves_nothing(&[text], || load(&variables));
    }
}

#[cfg(feature = "cache")]
mod cache {
    use std::sync::Arc;
    use std::time::Duration;

    use lexikon_auth::crypto::Candidates;
    use lexikon_auth::store::{CacheOptions, CachedStore, KeyLookup};
    use lexikon_auth::{ApiKeys, KeyId, KeyRecord, StoreError};
    use tokio::runtime::Builder;

    use super::*;

    /// Finds every key.
    struct Endless;

    impl KeyLookup for Endless {
        async fn find(
            &self,
            candidates: &Candidates,
        ) -> Result<Option<Arc<KeyRecord>>, StoreError> {
            let hash = candidates.as_slice()[0];
            let owner = OwnerId::from(KeyId::random().unwrap().to_string());
            let mut record = KeyRecord::new(KeyId::random().unwrap(), owner, hash);
            record.name = "a name of usual length".into();
            record.scopes = "read,write".into();
            Ok(Some(Arc::new(record)))
        }

        async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
    }

    #[test]
    fn a_hit_of_the_usual_handle_allocates_nothing() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let keys = keys_of_every_kind();
        let options = CacheOptions::default().max_age_unfollowed(Duration::from_secs(3600));
        let handle = runtime.block_on(async {
            let handle = ApiKeys::options(ring(&SECRETS[..4])).cache(options);
            handle.over(store_of_every_kind(&keys)).await.unwrap()
        });
        let key = keys[0].1.expose_secret();
        // The first one is a look-up, and the first use of a key is noted anew.
        for _ in 0..2 {
            _ = runtime.block_on(handle.verify(key)).unwrap();
        }
        assert_eq!(allocations_of(|| ready(handle.verify(key))), 0);
        assert_eq!(allocations_of(|| handle.verifier().verify_now(key).unwrap()), 0);
    }

    #[test]
    fn memory_stays_within_the_bound() {
        const BOUND: u64 = 4 << 20;
        const UNKNOWN: u64 = 64 << 10;
        let options = CacheOptions::default().max_bytes(BOUND).max_unknown_bytes(UNKNOWN);
        let before = LIVE.get();
        let cached = CachedStore::new(Endless, options);
        let mut most = 0;
        for number in 0..50_000 {
            ready(cached.find(&lexikon_auth_tests::candidates(&format!("lxk_{number:043}"))))
                .unwrap();
            most = most.max(LIVE.get() - before);
            assert!(cached.bytes() <= BOUND);
        }
        assert!(most < (BOUND + UNKNOWN) as i64, "{most} bytes");
        assert!(most > (BOUND / 2) as i64, "the room is used: {most} bytes");
        drop(cached);
        assert!(LIVE.get() - before < 1000, "all of it is given back");
    }
}
