//! Any headers at all, held against an oracle that looks at them one by one.
#![cfg(feature = "tower")]

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Response};
use http_body_util::Empty;
use lexikon_auth::VerifiedKey;
use lexikon_auth::http::ApiKeyLayer;
use lexikon_auth_tests::{
    FORGED, SECRETS, TAGGED, UNTAGGED, hmac_hash, ready, record, store, verifier,
};
use proptest::collection::vec;
use proptest::prelude::*;
use tower::{Layer, Service};

const KEY_HEADER: &str = "x-api-key";

/// What the oracle expects: the status, and whose key arrived.
#[derive(Debug, PartialEq)]
enum Expected {
    Passes(Option<&'static str>),
    Denied(u16),
}

/// The rules of the layer's documentation, without regard to speed.
fn oracle(keys: &[Vec<u8>], authorizations: &[Vec<u8>], settings: Settings) -> Expected {
    let token = |value: &Vec<u8>| {
        let (scheme, token) = value.split_at_checked(6)?;
        let blanks = token.iter().take_while(|&&byte| b" \t".contains(&byte)).count();
        let is_bearer = scheme.eq_ignore_ascii_case(b"bearer") && blanks > 0;
        is_bearer.then(|| token[blanks..].to_vec())
    };
    let has_no_scheme = |value: &Vec<u8>| value.trim_ascii_start().starts_with(b"lxk_");
    let tokens: Vec<Option<Vec<u8>>> = authorizations.iter().map(token).collect();
    let is_ours =
        |token: &Option<Vec<u8>>| token.as_ref().is_some_and(|token| token.starts_with(b"lxk_"));
    let ours = tokens.iter().any(is_ours);
    let mut presented: Vec<Vec<u8>> = keys.to_vec();
    presented.extend(tokens.iter().filter(|token| is_ours(token)).flatten().cloned());
    let is_one_value =
        |key: &Vec<u8>| !key.is_empty() && key.iter().all(|byte| (b'!'..=b'~').contains(byte));
    let is_ill_formed = keys.len() > 1
        || authorizations.iter().any(has_no_scheme)
        || (ours && authorizations.len() > 1)
        || !presented.iter().all(is_one_value)
        || presented.windows(2).any(|pair| pair[0] != pair[1]);
    if is_ill_formed {
        return Expected::Denied(400);
    }
    match presented.first() {
        Some(key) if key == TAGGED.as_bytes() => Expected::Passes(Some("tagged")),
        Some(key) if key == UNTAGGED.as_bytes() => Expected::Passes(Some("untagged")),
        Some(_) => Expected::Denied(401),
        None if settings.other_schemes && !authorizations.is_empty() => Expected::Passes(None),
        // A token that is no key, where nobody else judges it; of several, the last one counts.
        None if tokens.last().is_some_and(Option::is_some) => Expected::Denied(401),
        None if settings.optional => Expected::Passes(None),
        None => Expected::Denied(401),
    }
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    optional: bool,
    other_schemes: bool,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(TAGGED.into()),
        2 => Just(UNTAGGED.into()),
        1 => Just(FORGED.into()),
        1 => Just(b"lxk_".to_vec()),
        1 => Just(b"eyJhbGciOi.e30.c2ln".to_vec()),
        1 => vec(prop_oneof![0x20..0x7f_u8, 0x80..=0xff_u8, Just(b'\t')], 0..60),
    ]
}

fn authorization() -> impl Strategy<Value = Vec<u8>> {
    let scheme = prop_oneof![
        4 => Just("Bearer "), 1 => Just("bEARER  "), 1 => Just("Bearer\t"), 1 => Just("Basic "), 1 => Just("Bearer"), 1 => Just("")
    ];
    (scheme, key()).prop_map(|(scheme, key)| [scheme.as_bytes(), &key].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn every_request_gets_what_the_rules_say(
        keys in vec(key(), 0..3),
        authorizations in vec(authorization(), 0..3),
        (optional, other_schemes) in any::<(bool, bool)>(),
    ) {
        let store = store(&[
            record("tagged", hmac_hash(SECRETS[0], TAGGED)),
            record("untagged", hmac_hash(SECRETS[0], UNTAGGED)),
        ]);
        let mut layer = ApiKeyLayer::new(Arc::new(verifier(store)));
        if optional {
            layer = layer.optional();
        }
        if other_schemes {
            layer = layer.allow_other_schemes();
        }
        let mut request = Request::new(());
        for key in &keys {
            request.headers_mut().append(KEY_HEADER, HeaderValue::from_bytes(key).unwrap());
        }
        for value in &authorizations {
            request.headers_mut().append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        let show = async |request: Request<()>| {
            // Nothing that may be a key gets through, and nothing is shown.
            assert!(!request.headers().contains_key(KEY_HEADER));
            let log = format!("{request:?}");
            assert!(!log.contains("lxk_") && !log.contains("eyJ"), "{log}");
            let mut response = Response::new(Empty::<hyper::body::Bytes>::new());
            if let Some(key) = request.extensions().get::<VerifiedKey>() {
                let id = HeaderValue::try_from(key.id().to_string()).unwrap();
                response.headers_mut().insert("id", id);
            }
            Ok::<_, Infallible>(response)
        };
        let response = ready(layer.layer(tower::service_fn(show)).call(request)).unwrap();
        let id = response.headers().get("id").map(|id| id.to_str().unwrap());
        let seen = match response.status().as_u16() {
            200 => Expected::Passes(["tagged", "untagged"].into_iter().find(|known| id == Some(known))),
            status => Expected::Denied(status),
        };
        let settings = Settings { optional, other_schemes };
        prop_assert_eq!(seen, oracle(&keys, &authorizations, settings));
    }
}
