//! What the fuzzer runs: each function holds a part of the crate against an oracle that is written as
//! plainly as the format's description, and panics when they differ.

mod http_headers;
mod sqlite_row;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{Seek, Write};
use std::os::unix::ffi::OsStringExt;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hmac::{Hmac, KeyInit, Mac};
use lexikon_auth::crypto::{Candidates, HashFormat, KeyHash, MalformedKey, PresentedKey};
use lexikon_auth::store::KeyLookup;
use lexikon_auth::{
    KeyRecord, Refusal, Scopes, SecretError, SecretRing, ServerSecret, StoreError, Verifier,
    VerifyError,
};
use sha2::{Digest, Sha256};

pub use http_headers::http_headers;
pub use lexikon_auth::fuzzing::redis_entry;
pub use sqlite_row::sqlite_row;

/// The parser: length, prefix, alphabet, in this order.
pub fn key(data: &[u8]) {
    assert_eq!(PresentedKey::parse(data).map(|key| key.is_tagged()), parse(data));
}

fn parse(data: &[u8]) -> Result<bool, MalformedKey> {
    if data.len() < 4 + 16 || data.len() > 4 + 124 {
        return Err(MalformedKey::Length);
    }
    if &data[..4] != b"lxk_" {
        return Err(MalformedKey::Prefix);
    }
    let base62 = |&byte: &u8| BASE62.contains(&byte);
    if !data[4..].iter().all(|byte| base62(byte) || b"-_".contains(byte)) {
        return Err(MalformedKey::Alphabet);
    }
    Ok(data.len() == 4 + 51 && data[4..].iter().all(base62))
}

const BASE62: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Where the messages of errors about secrets are written.
const MESSAGES: &str = include_str!("../../src/crypto/secret.rs");
/// The current secret and a retired one.
const SECRETS: [&str; 2] =
    ["fuzzing current 0123456789abcdef!", "fuzzing retired 0123456789abcdef!"];

fn ring() -> SecretRing {
    let secret = |text: &str| ServerSecret::new(&text.into()).expect("a strong secret");
    SecretRing::new(secret(SECRETS[0])).with_retired(secret(SECRETS[1])).expect("two secrets")
}

fn hmac(secret: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn tag(secret: &str, signed: &[u8]) -> Vec<u8> {
    let key = hmac(secret.as_bytes(), b"lexikon-auth v1 key tag");
    let digit = |word: &[u8]| {
        let word = u64::from(u32::from_be_bytes(word.try_into().expect("four bytes")));
        BASE62[(word * 62 / (1 << 32)) as usize]
    };
    hmac(&key, signed).chunks(4).map(digit).collect()
}

/// Tag, candidates and verification. The first byte says which row the store returns, the second
/// whether the tag is repaired first, so that the fuzzer gets past it.
pub fn verify(data: &[u8]) {
    let [row, repair, presented @ ..] = data else { return };
    let mut presented = presented.to_vec();
    if presented.len() == 55 && repair % 4 > 0 {
        let tag = tag(SECRETS[usize::from(*repair) % SECRETS.len()], &presented[..47]);
        presented[47..].copy_from_slice(&tag);
    }
    let expected = candidates(&presented);
    if let (Ok(key), Ok(expected)) = (PresentedKey::parse(&presented), &expected) {
        let computed = Candidates::compute(&key, &ring()).expect("the oracle knows the tag");
        let computed: Vec<_> = computed.as_slice().iter().map(|hash| *hash.as_bytes()).collect();
        assert_eq!(&computed, expected);
    }

    // A row under one of the candidates, or with one bit of it changed.
    let mut hash =
        expected.clone().map_or([0; 32], |hashes| hashes[usize::from(*row) % hashes.len()]);
    let changed = row & 0x80 != 0;
    if changed {
        hash[usize::from(*row) % 32] ^= 1 << (row % 8);
    }
    let record = KeyRecord::new("id".into(), "owner".into(), KeyHash::from_bytes(hash));
    let answer = ready(Verifier::new(Single(Arc::new(record)), ring()).verify(&presented));
    match (answer, expected) {
        (Ok(verified), Ok(hashes)) => {
            assert!(!changed, "a row that was not asked for was granted");
            let legacy = hashes.len() > SECRETS.len() && hash == hashes[SECRETS.len()];
            assert_eq!(verified.format() == HashFormat::Sha256, legacy);
        }
        (Err(VerifyError::Unavailable(StoreError::WrongRow(_))), Ok(_)) => assert!(changed),
        (Err(VerifyError::Refused(refusal)), Err(expected)) => assert_eq!(refusal, expected),
        (answer, expected) => panic!("{answer:?} where {expected:?} was expected"),
    }
}

/// The hashes that a presented text may be stored under, or why there are none.
fn candidates(presented: &[u8]) -> Result<Vec<[u8; 32]>, Refusal> {
    let tagged = parse(presented)?;
    let mut hashes: Vec<_> =
        SECRETS.iter().map(|secret| hmac(secret.as_bytes(), presented)).collect();
    if tagged {
        let (signed, presented) = presented.split_at(47);
        if !SECRETS.iter().any(|secret| tag(secret, signed) == presented) {
            return Err(Refusal::ForgedTag);
        }
    } else {
        hashes.push(Sha256::digest(presented).into());
    }
    Ok(hashes)
}

/// A store that answers every look-up with the same row.
struct Single(Arc<KeyRecord>);

impl KeyLookup for Single {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Ok(Some(self.0.clone()))
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
}

/// The answer of a future that waits for nothing.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the future waits"),
    }
}

/// Loading secrets. The first byte says where the secret stands; the rest is the secret.
pub fn secret(data: &[u8]) {
    let [place, secret @ ..] = data else { return };
    thread_local!(static FILE: RefCell<tempfile::NamedTempFile> =
        RefCell::new(tempfile::NamedTempFile::new().expect("a temporary file")));
    let in_file = place & 1 == 1;
    // A variable of the environment cannot hold a NUL.
    if !in_file && secret.contains(&0) {
        return;
    }
    let previous = place & 2 == 2;
    let loaded = FILE.with_borrow_mut(|file| {
        file.as_file().set_len(0).expect("a file can be emptied");
        file.rewind().expect("a file can be rewound");
        file.write_all(secret).expect("a file can be written");
        let path = file.path().to_owned();
        SecretRing::from_variables(|name| {
            let (base, of_file) = match name.strip_suffix("_FILE") {
                Some(base) => (base, true),
                None => (name, false),
            };
            let here = (base == "API_KEY_SECRET_PREVIOUS") == previous;
            match (here, of_file == in_file) {
                (true, true) if in_file => Some(path.clone().into()),
                (true, true) => Some(OsString::from_vec(secret.to_vec())),
                (false, _) if name == "API_KEY_SECRET" => Some(SECRETS[0].into()),
                _ => None,
            }
        })
    });

    let text = match in_file {
        true => secret
            .strip_suffix(b"\n")
            .map_or(secret, |text| text.strip_suffix(b"\r").unwrap_or(text)),
        false => secret,
    };
    let mut distinct = text.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let strong = str::from_utf8(text).is_ok() && text.len() >= 32 && distinct.len() >= 8;
    match loaded {
        Ok(ring) if text.is_empty() => assert!(previous && ring.fingerprints().count() == 1),
        Ok(ring) => {
            assert!(strong, "a weak secret was taken");
            let fingerprint = hex::encode(&hmac(text, b"lexikon-auth v1 fingerprint")[..8]);
            assert!(ring.fingerprints().any(|known| known.to_string() == fingerprint));
        }
        Err(error) => {
            let told = format!("{error} {error:?}");
            if let Ok(text) = str::from_utf8(text) {
                // A secret such as `placeholder` is a word of the message itself.
                let is_telling = text.len() >= 8 && !MESSAGES.contains(text);
                assert!(!is_telling || !told.contains(text), "an error tells the secret");
            }
            match error {
                SecretError::Placeholder { .. } => {}
                SecretError::Repeated { .. } => assert_eq!(text, SECRETS[0].as_bytes()),
                SecretError::Unreadable { .. } => assert!(secret.len() > 64 * 1024),
                error => assert!(!strong, "a strong secret was refused: {error}"),
            }
        }
    }
}

/// Scopes: those of a row as they stand between commas, those that people write trimmed, empty and repeated
/// names dropped, unless white space or a control character stands in one. Names are separated by NUL.
pub fn scopes(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (text, asked) = text.split_once('\0').unwrap_or((text, "read"));
    let of_row = Scopes::from(text);
    let names: Vec<_> = text.split(',').filter(|name| !name.is_empty()).collect();
    assert_eq!(of_row.iter().collect::<Vec<_>>(), names);
    assert_eq!(of_row.allows(asked), names.iter().any(|name| [asked, "admin"].contains(name)));

    let mut expected = Vec::new();
    for name in text.split(',') {
        if !name.trim().is_empty() && !expected.contains(&name.trim()) {
            expected.push(name.trim());
        }
    }
    let splits = |c: char| c.is_whitespace() || c.is_control();
    let Ok(parsed) = Scopes::parse(text) else {
        return assert!(
            expected.iter().any(|name| name.contains(splits)),
            "refused without reason"
        );
    };
    assert!(!expected.iter().any(|name| name.contains(splits)));
    assert_eq!(parsed.iter().collect::<Vec<_>>(), expected);
    assert_eq!(Scopes::from(parsed.as_str()), parsed, "what is stored reads back");
}

/// Stored hashes: 64 lower-case hex digits and nothing else.
pub fn stored_hash(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let digits = text.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    let hash = KeyHash::from_hex(text);
    assert_eq!(hash.is_some(), digits && text.len() == 64);
    if let Some(hash) = hash {
        assert_eq!(hash.to_hex(), text);
        assert_eq!(hash.as_bytes()[..], hex::decode(text).expect("hex digits"));
    }
}
