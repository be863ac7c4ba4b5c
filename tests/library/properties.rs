//! What holds for every input, against oracles that are too plain to be wrong.

use std::collections::BTreeSet;

use lexikon_auth::crypto::{HashFormat, KeyHash, MalformedKey, PresentedKey};
use lexikon_auth::store::{KeyStore, MemoryStore};
use lexikon_auth::{ApiKey, KeyId, OwnerId, Refusal, Scopes, Verifier};
use lexikon_auth_tests::{SECRETS, TAGGED, UNTAGGED, hmac_hash, ready, record, ring, secret};
use proptest::collection::vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::sample::{Index, select, subsequence};

const KEY_ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What parsing has to answer: whether the key is tagged, or what is wrong.
fn parse_oracle(text: &[u8]) -> Result<bool, MalformedKey> {
    if text.len() < 20 || text.len() > 128 {
        return Err(MalformedKey::Length);
    }
    if &text[..4] != b"lxk_" {
        return Err(MalformedKey::Prefix);
    }
    let body = &text[4..];
    if body.iter().any(|byte| !KEY_ALPHABET.as_bytes().contains(byte)) {
        return Err(MalformedKey::Alphabet);
    }
    Ok(body.len() == 51 && !body.contains(&b'-') && !body.contains(&b'_'))
}

/// Texts that are keys, nearly keys, and anything.
fn presented() -> impl Strategy<Value = Vec<u8>> {
    let key = "lxk_[A-Za-z0-9_-]{10,130}".prop_map(String::into_bytes);
    let tagged = "lxk_[A-Za-z0-9]{51}".prop_map(String::into_bytes);
    let changed = (key.clone(), any::<Index>(), any::<u8>()).prop_map(|(mut key, at, byte)| {
        let position = at.index(key.len());
        key[position] = byte;
        key
    });
    let text = any::<String>().prop_map(|text| format!("lxk_{text}").into_bytes());
    prop_oneof![vec(any::<u8>(), 0..200), key, tagged, changed, text]
}

/// A verifier under the secrets of the ring whose store holds these keys, each under its secret.
fn verifier(secrets: &[&str], keys: &[(&str, &str)]) -> Verifier<MemoryStore> {
    let store = MemoryStore::new();
    for (key, secret) in keys {
        ready(store.insert(&record(key, hmac_hash(secret, key)))).expect("a new record");
    }
    Verifier::new(store, ring(secrets))
}

fn refusal(verifier: &Verifier<MemoryStore>, presented: &[u8]) -> Option<Refusal> {
    ready(verifier.verify(presented)).err().map(|error| error.refusal().expect("a refusal").clone())
}

/// How a tagged key is refused after the byte at `position` became `byte`. A hyphen or underscore
/// makes an untagged key of it, which has no tag to fail on and is refused by the look-up.
fn refusal_of_change(position: usize, byte: u8) -> Refusal {
    match byte {
        _ if position < 4 => Refusal::Malformed(MalformedKey::Prefix),
        b'-' | b'_' => Refusal::Unknown,
        _ if byte.is_ascii_alphanumeric() => Refusal::ForgedTag,
        _ => Refusal::Malformed(MalformedKey::Alphabet),
    }
}

#[test]
fn every_change_of_one_byte_of_a_tagged_key_is_refused() {
    let issued = ApiKey::generate(&secret(SECRETS[0])).unwrap();
    for key in [TAGGED, issued.expose_secret()] {
        let verifier = verifier(&SECRETS[..1], &[(key, SECRETS[0])]);
        assert_eq!(refusal(&verifier, key.as_bytes()), None);
        for (position, &original) in key.as_bytes().iter().enumerate() {
            for byte in (0..=u8::MAX).filter(|byte| *byte != original) {
                let mut changed = key.as_bytes().to_vec();
                changed[position] = byte;
                let expected = Some(refusal_of_change(position, byte));
                assert_eq!(refusal(&verifier, &changed), expected, "{byte} at {position}");
            }
        }
    }
}

#[test]
fn hash_formats_read_back_from_their_names_and_from_nothing_else() {
    for format in [HashFormat::HmacSha256, HashFormat::Sha256] {
        assert_eq!(HashFormat::from_name(format.as_str()), Some(format));
        assert_eq!(format.to_string(), format.as_str());
    }
    for name in ["", "SHA256", "sha-256", "hmac_sha256", " sha256", "sha256\0", "HmacSha256"] {
        assert_eq!(HashFormat::from_name(name), None, "{name:?}");
    }
}

proptest! {
    #[test]
    fn parsing_never_panics_and_agrees_with_the_oracle(text in presented()) {
        let parsed = PresentedKey::parse(&text).map(|key| key.is_tagged());
        prop_assert_eq!(parsed, parse_oracle(&text));
    }

    #[test]
    fn a_generated_key_is_refused_after_any_change_under_any_secret(
        signer in select(&SECRETS[..]),
        position in 0_usize..55,
        byte in any::<u8>(),
    ) {
        let key = ApiKey::generate(&secret(signer)).unwrap();
        let verifier = verifier(&[signer], &[(key.expose_secret(), signer)]);
        let mut changed = key.expose_secret().as_bytes().to_vec();
        let expected = (changed[position] != byte).then(|| refusal_of_change(position, byte));
        changed[position] = byte;
        prop_assert_eq!(refusal(&verifier, &changed), expected);
    }

    #[test]
    fn a_key_verifies_under_exactly_the_secrets_of_its_ring(
        issuer in 0_usize..5,
        members in subsequence(vec![0_usize, 1, 2, 3, 4], 1..=4).prop_shuffle(),
    ) {
        let (issuing, issuer_text) = (secret(SECRETS[issuer]), SECRETS[issuer]);
        let tagged = ApiKey::generate(&issuing).unwrap();
        let tagged = tagged.expose_secret();
        let secrets: Vec<_> = members.iter().map(|&index| SECRETS[index]).collect();
        let verifier = verifier(&secrets, &[(tagged, issuer_text), (UNTAGGED, issuer_text)]);
        let place = members.iter().position(|&index| index == issuer);
        for (key, without) in [(tagged, Refusal::ForgedTag), (UNTAGGED, Refusal::Unknown)] {
            let answer = ready(verifier.verify(key)).map(|key| key.is_under_retired_secret());
            let answer = answer.map_err(|error| error.refusal().cloned());
            let expected = place.map(|place| place > 0).ok_or(Some(without));
            prop_assert_eq!(answer, expected);
        }
    }

    #[test]
    fn what_was_issued_is_hashed_as_the_reference_does(signer in select(&SECRETS[..])) {
        let secret = secret(signer);
        let key = ApiKey::generate(&secret).unwrap();
        prop_assert_eq!(KeyHash::of(&key, &secret), hmac_hash(signer, key.expose_secret()));
    }

    #[test]
    fn a_hash_reads_back_from_its_hex(one in any::<[u8; 32]>(), other in any::<[u8; 32]>()) {
        let hash = KeyHash::from_bytes(one);
        let hex = hash.to_hex();
        prop_assert_eq!(&hex, &one.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        prop_assert_eq!(KeyHash::from_hex(&hex), Some(hash));
        prop_assert_eq!(hash.as_bytes(), &one);
        prop_assert_eq!(hash == KeyHash::from_bytes(other), one == other);
    }

    #[test]
    fn hashes_that_differ_in_one_bit_are_not_equal(bytes in any::<[u8; 32]>(), bit in 0_usize..256) {
        let mut changed = bytes;
        changed[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(KeyHash::from_bytes(bytes) != KeyHash::from_bytes(changed));
    }

    #[test]
    fn only_64_lower_case_hex_digits_are_a_hash(
        text in prop_oneof![any::<String>(), "[0-9a-f]{62,66}", "[0-9a-fA-F]{64}", "[0-9a-g]{64}"],
    ) {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let expected = text.len() == 64 && text.bytes().all(is_hex);
        prop_assert_eq!(KeyHash::from_hex(&text).is_some(), expected);
    }

    #[test]
    fn ids_print_back_to_their_text_and_sort_as_texts_do(texts in vec(id_text(), 2)) {
        let ids = [KeyId::from(&*texts[0]), KeyId::from(&*texts[1])];
        prop_assert_eq!(ids[0].to_string(), &*texts[0]);
        prop_assert_eq!(ids[0].cmp(&ids[1]), texts[0].cmp(&texts[1]));
        prop_assert_eq!(ids[0] == ids[1], texts[0] == texts[1]);
        let owner = OwnerId::from(&*texts[0]);
        prop_assert_eq!(owner.as_str(), &*texts[0]);
    }

    #[test]
    fn parsed_scopes_are_the_trimmed_distinct_names_in_their_order(text in scope_text()) {
        let mut seen = BTreeSet::new();
        let trimmed = text.split(',').map(|name| name.trim_matches(char::is_whitespace));
        let names: Vec<_> = trimmed.filter(|name| !name.is_empty() && seen.insert(*name)).collect();
        let splits = |name: &&str| name.chars().any(|c| c.is_whitespace() || c.is_control());
        let Ok(scopes) = Scopes::parse(&text) else {
            prop_assert!(names.iter().any(splits));
            return Ok(());
        };
        prop_assert!(!names.iter().any(splits));
        prop_assert_eq!(scopes.iter().collect::<Vec<_>>(), names.clone());
        prop_assert_eq!(scopes.as_str(), names.join(","));
        prop_assert_eq!(scopes.to_string(), scopes.as_str());
        prop_assert_eq!(Scopes::parse(scopes.as_str()), Ok(scopes));
    }

    #[test]
    fn a_row_grants_what_stands_between_its_commas(text in scope_text(), asked in scope_name()) {
        let scopes = Scopes::from(&*text);
        let mut names = text.split(',').filter(|name| !name.is_empty());
        let granted = names.any(|name| [&*asked, "admin"].contains(&name));
        prop_assert_eq!(scopes.allows(&asked), granted);
        prop_assert_eq!(scopes.as_str(), text);
    }

    #[test]
    fn scopes_allow_what_they_name_and_admin_allows_all(
        text in scope_text(),
        asked in scope_name(),
    ) {
        let scopes = Scopes::from(&*text);
        let holds = |wanted: &str| scopes.iter().any(|name| name == wanted);
        prop_assert_eq!(scopes.allows(&asked), holds("admin") || holds(&asked));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_scopes_grant_nothing(blanks in "[ ,\t\n]{0,20}", asked in scope_name()) {
        prop_assert!(!Scopes::from(&*blanks).allows("admin"));
        let parsed = Scopes::parse(&blanks);
        prop_assert_eq!(&parsed, &Ok(Scopes::default()));
        prop_assert!(!parsed.unwrap().allows(&asked));
    }
}

#[test]
fn scope_names_are_case_sensitive_and_never_lists() {
    let allowed =
        [("read", "read"), ("read,write", "write"), ("x,admin", "anything"), ("ad,x", "x")];
    let refused = [
        ("Admin", "read"),
        ("ADMIN", "read"),
        ("administrator", "read"),
        ("read", "Read"),
        ("read", "rea"),
        ("read", "reads"),
        ("read,write", "read,write"),
        ("read", ""),
        ("", ""),
        ("read write", "read"),
        ("read;admin", "read"),
        ("read, write", "write"),
        ("admin ", "read"),
        (" admin", "admin"),
        ("\tread", "read"),
    ];
    for (scopes, asked) in allowed {
        assert!(Scopes::from(scopes).allows(asked), "{scopes:?} and {asked:?}");
    }
    for (scopes, asked) in refused {
        assert!(!Scopes::from(scopes).allows(asked), "{scopes:?} and {asked:?}");
    }
}

fn scope_name() -> impl Strategy<Value = String> {
    const KNOWN: [&str; 9] =
        ["read", "write", "admin", "Admin", "read,write", "", "rea", "schreiben", "é"];
    prop_oneof![3 => select(&KNOWN[..]).prop_map(str::to_owned), 1 => any::<String>()]
}

/// Names with spaces around them, some twice, some empty.
fn scope_text() -> impl Strategy<Value = String> {
    let padded = ("[ \t]{0,2}", scope_name(), "[ \u{a0}]{0,2}");
    let name = padded.prop_map(|(before, name, after)| format!("{before}{name}{after}"));
    vec(name, 0..8).prop_map(|names| names.join(","))
}

/// UUIDs in their usual form, in other forms, and anything.
fn id_text() -> impl Strategy<Value = String> {
    let uuid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
    prop_oneof![
        4 => uuid,
        1 => uuid.prop_map(|text| text.to_uppercase()),
        1 => uuid.prop_map(|text| text.replace('-', "")),
        1 => uuid.prop_map(|text| format!("{{{text}}}")),
        1 => Just("ef4eb8aa-4d1f-493e-8ac6-2257a6a956b5".to_owned()),
        2 => any::<String>(),
    ]
}
