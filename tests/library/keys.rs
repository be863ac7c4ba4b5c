//! The plaintext key: generation, parsing, and that nothing prints it.

use std::collections::HashSet;

use lexikon_auth::crypto::{Candidates, KEY_PREFIX, MalformedKey, PresentedKey};
use lexikon_auth::store::{KeyStore, MemoryStore};
use lexikon_auth::{ApiKey, KeyManager, ManageError, NewKey, SecretError, ServerSecret, Verifier};
use lexikon_auth_tests::{
    SECRETS, TAGGED, UNTAGGED, assert_reveals_nothing, debugged, hmac_hash, printed, ready, record,
    ring, secret,
};
use secrecy::ExposeSecret;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A text of `length` bytes that begins with the prefix.
fn key_of_length(length: usize) -> String {
    format!("{KEY_PREFIX}{}", "A".repeat(length - KEY_PREFIX.len()))
}

/// Every text that is no key, and why.
fn malformed() -> Vec<(&'static str, Vec<u8>, MalformedKey)> {
    let hash = hmac_hash(SECRETS[0], UNTAGGED).to_hex();
    let body = &UNTAGGED[4..];
    let cases: Vec<(&str, String, MalformedKey)> = vec![
        ("empty", String::new(), MalformedKey::Length),
        ("the prefix alone", "lxk_".into(), MalformedKey::Length),
        ("a space", " ".into(), MalformedKey::Length),
        ("one byte too short", key_of_length(19), MalformedKey::Length),
        ("one byte too long", key_of_length(129), MalformedKey::Length),
        ("a megabyte with the prefix", key_of_length(1 << 20), MalformedKey::Length),
        ("a megabyte without it", "x".repeat(1 << 20), MalformedKey::Length),
        ("prefix in upper case", format!("LXK_{body}"), MalformedKey::Prefix),
        ("prefix with a hyphen", format!("lxk-{body}"), MalformedKey::Prefix),
        ("prefix of another product", format!("sk_live_{body}"), MalformedKey::Prefix),
        ("no prefix", body.into(), MalformedKey::Prefix),
        ("a space before", format!(" {UNTAGGED}"), MalformedKey::Prefix),
        ("an Authorization header", format!("Bearer {UNTAGGED}"), MalformedKey::Prefix),
        ("quoted", format!("\"{UNTAGGED}\""), MalformedKey::Prefix),
        ("a stored hash", hash.clone(), MalformedKey::Prefix),
        ("a stored hash in upper case", hash.to_uppercase(), MalformedKey::Prefix),
        ("a UUID", "ef4eb8aa-4d1f-493e-8ac6-2257a6a956b5".into(), MalformedKey::Prefix),
        ("only NULs", "\0".repeat(47), MalformedKey::Prefix),
        ("a NUL within", format!("lxk_\0{}", &body[1..]), MalformedKey::Alphabet),
        ("a NUL behind", format!("{UNTAGGED}\0"), MalformedKey::Alphabet),
        ("a space behind", format!("{UNTAGGED} "), MalformedKey::Alphabet),
        ("a newline behind", format!("{UNTAGGED}\n"), MalformedKey::Alphabet),
        ("a tagged key and a newline", format!("{TAGGED}\r\n"), MalformedKey::Alphabet),
        ("an accent", format!("lxk_é{}", &body[2..]), MalformedKey::Alphabet),
        ("full-width letters", format!("lxk_{}", "ａ".repeat(14)), MalformedKey::Alphabet),
        ("base64, not base64url", format!("lxk_{}+/==", &body[4..]), MalformedKey::Alphabet),
        ("a statement", format!("lxk_' OR '1'='1{}", &body[11..]), MalformedKey::Alphabet),
    ];
    let not_utf8 = [b"lxk_".as_slice(), &[0xff; 43]].concat();
    cases
        .into_iter()
        .map(|(case, text, reason)| (case, text.into_bytes(), reason))
        .chain([("not UTF-8", not_utf8, MalformedKey::Alphabet)])
        .collect()
}

#[test]
fn what_is_no_key_is_refused_with_its_reason() {
    for (case, text, reason) in malformed() {
        assert_eq!(PresentedKey::parse(&text).unwrap_err(), reason, "{case}");
    }
}

#[test]
fn a_refused_text_is_not_printed() {
    let verifier = Verifier::new(MemoryStore::new(), ring(&SECRETS[..1]));
    for (_, text, _) in malformed() {
        let error = ready(verifier.verify(&text)).unwrap_err();
        assert_reveals_nothing(
            &printed(&error),
            &String::from_utf8_lossy(&text[..text.len().min(200)]),
        );
    }
}

#[test]
fn a_key_is_20_to_128_bytes_long() {
    for length in 4..=200 {
        let text = key_of_length(length);
        assert_eq!(PresentedKey::parse(&text).is_ok(), (20..=128).contains(&length), "{length}");
    }
}

/// The lengths are chosen around the vector steps of the alphabet check, which overlap at the end.
#[test]
fn every_byte_value_is_judged_the_same_at_every_position() {
    for length in [20, 21, 35, 36, 37, 47, 54, 55, 56, 68, 127, 128] {
        let good = key_of_length(length).into_bytes();
        for position in 0..length {
            for byte in 0..=u8::MAX {
                let mut text = good.clone();
                text[position] = byte;
                let expected = match position {
                    0..4 if byte != good[position] => Err(MalformedKey::Prefix),
                    4.. if !byte.is_ascii_alphanumeric() && !b"-_".contains(&byte) => {
                        Err(MalformedKey::Alphabet)
                    }
                    _ => Ok(length == 55 && (position < 4 || byte.is_ascii_alphanumeric())),
                };
                let parsed = PresentedKey::parse(&text).map(|key| key.is_tagged());
                assert_eq!(parsed, expected, "byte {byte} at {position} of {length}");
            }
        }
    }
}

#[test]
fn only_51_base62_characters_carry_a_tag() {
    let cases = [
        (TAGGED.into(), true),
        (format!("lxk_{}", "z".repeat(51)), true),
        (format!("lxk_{}", "z".repeat(50)), false),
        (format!("lxk_{}", "z".repeat(52)), false),
        (format!("lxk_{}-", "z".repeat(50)), false),
        (format!("lxk_-{}", "z".repeat(50)), false),
        (format!("lxk_{}_{}", "z".repeat(25), "z".repeat(25)), false),
        (UNTAGGED.into(), false),
        (format!("lxk_{}", "_".repeat(43)), false),
    ];
    for (text, tagged) in cases {
        assert_eq!(PresentedKey::parse(&text).unwrap().is_tagged(), tagged, "{text}");
    }
}

#[test]
fn a_body_may_hold_hyphens_and_underscores_anywhere() {
    for body in ["_".repeat(16), "-".repeat(124), "lxk_lxk_lxk_lxk_".into(), "-_a_-".repeat(5)] {
        assert!(PresentedKey::parse(&format!("lxk_{body}")).is_ok(), "{body}");
    }
}

#[test]
fn generated_keys_are_well_formed_and_carry_the_tag_of_their_secret() {
    let (own, other) = (ring(&SECRETS[..1]), ring(&SECRETS[1..2]));
    for _ in 0..200 {
        let key = ApiKey::generate(own.current()).unwrap();
        let text = key.expose_secret();
        assert_eq!(text.len(), 55);
        let body = text.strip_prefix("lxk_").expect("the prefix");
        assert!(body.bytes().all(|byte| BASE62.contains(&byte)), "outside base62");
        let presented = PresentedKey::parse(text).unwrap();
        assert!(presented.is_tagged());
        assert!(Candidates::compute(&presented, &own).is_some());
        assert!(Candidates::compute(&presented, &other).is_none());
    }
}

/// Pearson's statistic over the 62 characters, for equal expectations.
fn chi_square(counts: &[u32; 62]) -> f64 {
    let expected = f64::from(counts.iter().sum::<u32>()) / 62.0;
    counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum()
}

/// With 61 degrees of freedom, 170 is exceeded with probability 3.2e-12. The 53 statistics below cry
/// wolf less than once in 5e9 runs; six bits modulo 62 would score above 20 000 over all characters.
const CHI_SQUARE_BOUND: f64 = 170.0;

#[test]
fn generated_keys_are_distinct_and_uniform_in_every_character() {
    const KEYS: usize = 20_000;
    let secret = secret(SECRETS[0]);
    let mut counts = [[0; 62]; 51];
    let mut seen = HashSet::new();
    for _ in 0..KEYS {
        let key = ApiKey::generate(&secret).unwrap();
        let body = &key.expose_secret().as_bytes()[4..];
        for (counts, character) in counts.iter_mut().zip(body) {
            counts[BASE62.binary_search(character).expect("base62")] += 1;
        }
        seen.insert(body[..43].to_vec());
    }
    assert_eq!(seen.len(), KEYS);
    for (position, counts) in counts.iter().enumerate() {
        let statistic = chi_square(counts);
        assert!(statistic < CHI_SQUARE_BOUND, "{statistic} at {position}: {counts:?}");
    }
    for part in [&counts[..43], &counts[43..]] {
        let pooled = std::array::from_fn(|digit| part.iter().map(|counts| counts[digit]).sum());
        let statistic = chi_square(&pooled);
        assert!(statistic < CHI_SQUARE_BOUND, "{statistic}: {pooled:?}");
    }
}

/// The statistic above can fail: a generator that takes six bits modulo 62.
#[test]
fn a_biased_generator_exceeds_the_bound() {
    let mut counts = [14_000; 62];
    counts[..2].fill(28_000);
    assert!(chi_square(&counts) > 20_000.0);
    let mut counts = [14_000; 62];
    counts[61] = 0;
    assert!(chi_square(&counts) > CHI_SQUARE_BOUND);
}

#[test]
fn no_value_that_holds_a_secret_prints_it() {
    let server_secret = secret(SECRETS[0]);
    let ring = ring(&SECRETS[..2]);
    let store = MemoryStore::new();
    let manager = KeyManager::new(store.clone(), &ring);
    let verifier = Verifier::new(store.clone(), ring.clone());
    let issued = ready(manager.issue(NewKey::new("user-1", "deploy"))).unwrap();
    let key = issued.key.expose_secret();
    let presented = PresentedKey::parse(key).unwrap();
    let candidates = Candidates::compute(&presented, &ring).unwrap();
    let verified = ready(verifier.verify(key)).unwrap();

    let values: [&dyn std::fmt::Debug; 12] = [
        &issued.key,
        &issued.record,
        &issued,
        &presented,
        &candidates,
        &verified,
        &server_secret,
        &ring,
        &store,
        &manager,
        &verifier,
        &server_secret.fingerprint(),
    ];
    for value in values {
        let text = debugged(value);
        for secret in [key, SECRETS[0], SECRETS[1]] {
            assert_reveals_nothing(&text, secret);
        }
        // The whole hash of a row is more than a log needs.
        assert_reveals_nothing(&text, &issued.record.hash.to_hex());
    }
    assert_eq!(debugged(&issued.key), "ApiKey([REDACTED])\nApiKey([REDACTED])\n");
    assert_eq!(debugged(&presented), "PresentedKey([REDACTED])\nPresentedKey([REDACTED])\n");
    assert_reveals_nothing(&server_secret.fingerprint().to_string(), SECRETS[0]);
    let generated = ServerSecret::generate().unwrap();
    assert_reveals_nothing(&debugged(&generated), generated.expose_secret());
}

#[test]
fn no_error_prints_a_key_or_a_secret() {
    let store = MemoryStore::new();
    let verifier = Verifier::new(store.clone(), ring(&SECRETS[..1]));
    let key = ApiKey::generate(&secret(SECRETS[0])).unwrap();
    let mut revoked = record("revoked", hmac_hash(SECRETS[0], key.expose_secret()));
    revoked.revocation = Some(Box::default());
    ready(store.insert(&revoked)).unwrap();

    let forged = format!("{}{}", &key.expose_secret()[..47], &TAGGED[47..]);
    let malformed = format!("{} ", key.expose_secret());
    for presented in [key.expose_secret(), UNTAGGED, &forged, &malformed] {
        let error = ready(verifier.verify(presented)).unwrap_err();
        for text in [key.expose_secret(), UNTAGGED, SECRETS[0]] {
            assert_reveals_nothing(&printed(&error), text);
        }
    }

    let conflict: ManageError = ready(store.insert(&revoked)).unwrap_err().into();
    assert_reveals_nothing(&printed(&conflict), &revoked.hash.to_hex());

    let repeated: SecretError = ring(&SECRETS[..1]).with_retired(secret(SECRETS[0])).unwrap_err();
    assert_reveals_nothing(&printed(&repeated), SECRETS[0]);
}
