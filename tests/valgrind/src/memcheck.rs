//! Runs the real verification functions with the presented key and the server secrets marked as
//! undefined memory. Valgrind's memcheck then reports every branch and every memory index that depends
//! on them, as libsecp256k1 does it: <https://github.com/bitcoin-core/secp256k1/blob/master/src/ctime_tests.c>.
//!
//! Results become defined again where the verifier decides over them, and nowhere else.

mod valgrind;

use std::hint::black_box;

use lexikon_auth::crypto::{Candidates, KeyHash, PresentedKey};
use lexikon_auth::{SecretRing, ServerSecret, constant_time};
use valgrind::{assume_defined, assume_undefined};

const KEYS: [(&str, &str); 3] = [
    ("untagged key", "lxk_edBFF8ucL0GHS745Bd_44XqHMsFz86GM9hgsvj67plc"),
    (
        "untagged key of two blocks",
        "lxk_edBFF8ucL0GHS745Bd_44XqHMsFz86GM9hgsvj67plc_and_a_longer_body",
    ),
    ("tagged key", "lxk_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO"),
];
const SECRETS: [&str; 3] = [
    "constant time current 0123456789abcdef",
    "constant time retired 0123456789abcdef",
    "constant time older 0123456789abcdef",
];

fn main() {
    let leak = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("leak") => true,
        Some(other) => panic!("unknown argument {other}; give none, or: leak"),
    };
    assert!(valgrind::is_running(), "this program proves nothing outside valgrind");
    for secrets in [1, SECRETS.len()] {
        let secret = |text: &&str| ServerSecret::new(&(*text).into()).expect("a strong secret");
        let mut ring = SecretRing::new(secret(&SECRETS[0]));
        for retired in &SECRETS[1..secrets] {
            ring = ring.with_retired(secret(retired)).expect("another secret");
        }
        for (name, key) in KEYS {
            println!("{name}, {secrets} secrets");
            check(key, &ring, leak);
        }
    }
}

fn check(key: &str, ring: &SecretRing, leak: bool) {
    // What a store would hold: the hash at each position, and one that is nobody's.
    let presented = PresentedKey::parse(key).expect("well-formed");
    let mut stored = constant_time::candidates(&presented, ring).as_slice().to_vec();
    stored.push(KeyHash::from_bytes([7; 32]));

    let mut text = key.as_bytes().to_vec();
    // The parser tells well-formed from malformed; from here on, nothing may depend on the key.
    let presented = PresentedKey::parse(&text).expect("well-formed");
    assume_undefined(text.as_ptr(), text.len());
    for secret in constant_time::secrets(ring) {
        assume_undefined(secret, 1);
    }

    if presented.is_tagged() {
        let valid = constant_time::tag_is_valid(&presented, ring).unwrap_u8();
        assume_defined(&valid);
        assert_eq!(black_box(valid), 0, "the tag was made by nobody");
    }
    let candidates = constant_time::candidates(&presented, ring);
    for (expected, stored) in stored.iter().enumerate() {
        let position = constant_time::position(&candidates, stored);
        let early_exit = leak && leaky_position(&candidates, stored).is_some();
        black_box(early_exit);
        assume_defined(&position);
        let found = usize::from(position);
        assert_eq!(found.min(stored_positions(&candidates)), expected);
    }

    for secret in constant_time::secrets(ring) {
        assume_defined(secret);
    }
    text.clear();
}

fn stored_positions(candidates: &Candidates) -> usize {
    candidates.as_slice().len()
}

/// The control: a comparison that stops at the first byte that differs. Memcheck has to report it.
#[inline(never)]
fn leaky_position(candidates: &Candidates, stored: &KeyHash) -> Option<usize> {
    let differs = |hash: &KeyHash| {
        hash.as_bytes().iter().zip(stored.as_bytes()).any(|(one, other)| black_box(one) != other)
    };
    candidates.as_slice().iter().position(|hash| !differs(hash))
}
