//! Verifies 1000 keys of one kind, for `instructions` to count under callgrind. Argument: the kind.
//!
//! Only [`measured`] counts. Its keys have been verified before, so that what happens once, such as
//! queueing a use, is left out.

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use lexikon_auth::crypto::{Candidates, PresentedKey};
use lexikon_auth::store::{KeyStore, MemoryStore};
use lexikon_auth::{KeyManager, KeyRecord, NewKey, Refusal, SecretRing, ServerSecret, Verifier};

fn main() {
    let kind = std::env::args().nth(1).unwrap_or_default();
    let secret = ServerSecret::new(&"instructions 0123456789abcdef!!!".into()).expect("strong");
    let ring = SecretRing::new(secret);
    let store = MemoryStore::new();
    let key = |number: usize| match &*kind {
        "tagged" => {
            let manager = KeyManager::new(store.clone(), &ring);
            let issued = ready(manager.issue(NewKey::new("owner", "key"))).expect("issued");
            issued.key.expose_secret().to_owned()
        }
        "untagged" => stored(&store, &ring, number, 0),
        "legacy" => stored(&store, &ring, number, 1),
        "unknown" => untagged(number),
        "forged" => format!("lxk_{number:0>51}"),
        "malformed" => format!("lxk_{number:0>43}").replace('0', "!"),
        _ => panic!("no such kind: {kind:?}"),
    };
    let keys: Vec<String> = (0..1000).map(key).collect();
    let reason = match &*kind {
        "unknown" => Some("unknown"),
        "forged" => Some("forged_tag"),
        "malformed" => Some("malformed"),
        _ => None,
    };
    let verifier = Verifier::new(store, ring);
    for key in &keys {
        let answer = ready(verifier.verify(key));
        let refusal = answer.err().map(|error| error.refusal().map(Refusal::as_str));
        assert_eq!(refusal.flatten(), reason);
    }
    measured(&verifier, &keys);
}

#[inline(never)]
fn measured(verifier: &Verifier<MemoryStore>, keys: &[String]) {
    for key in keys {
        black_box(ready(verifier.verify(black_box(key))).is_ok());
    }
}

fn untagged(number: usize) -> String {
    format!("lxk_{number:0>43}")
}

/// An untagged key whose row holds the given one of its candidates.
fn stored(store: &MemoryStore, ring: &SecretRing, number: usize, candidate: usize) -> String {
    let key = untagged(number);
    let presented = PresentedKey::parse(&key).expect("well-formed");
    let hash = Candidates::compute(&presented, ring).expect("no tag").as_slice()[candidate];
    let record = KeyRecord::new((&*number.to_string()).into(), "owner".into(), hash);
    ready(store.insert(&record)).expect("a new row");
    key
}

/// The answer of a future that waits for nothing.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the future waits"),
    }
}
