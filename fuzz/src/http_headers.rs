//! Headers of requests: the layer lets pass what names one good key, and nothing else.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body_util::Empty;
use lexikon_auth::crypto::KeyHash;
use lexikon_auth::http::ApiKeyLayer;
use lexikon_auth::store::{KeyStore, MemoryStore};
use lexikon_auth::{KeyRecord, VerifiedKey, Verifier};
use tower::{Layer, Service};

use crate::{SECRETS, hmac, ready, ring};

const KEY: &str = "lxk_0000000000000000000000000000000000000000000";

/// Headers, a line each. Its first byte says which header: `k` the key's, `a` Authorization.
pub fn http_headers(data: &[u8]) {
    let Some((settings, data)) = data.split_first() else { return };
    let mut request = Request::new(());
    for line in data.split(|&byte| byte == b'\n') {
        let name = match line.first() {
            Some(b'k') => HeaderName::from_static("x-api-key"),
            Some(b'a') => AUTHORIZATION,
            _ => continue,
        };
        let Ok(value) = HeaderValue::from_bytes(&line[1..]) else { continue };
        request.headers_mut().append(name, value);
    }
    let is_named = names_the_key(request.headers());
    let count = request.headers().len();

    let store = MemoryStore::new();
    let hash = KeyHash::from_bytes(hmac(SECRETS[0].as_bytes(), KEY.as_bytes()));
    let record = KeyRecord::new("key".into(), "owner".into(), hash);
    ready(store.insert(&record)).expect("an empty store");
    let mut layer = ApiKeyLayer::new(Arc::new(Verifier::new(store, ring())));
    if settings & 1 == 1 {
        layer = layer.optional();
    }
    if settings & 2 == 2 {
        layer = layer.allow_other_schemes();
    }
    let inner = tower::service_fn(async |request: Request<()>| {
        assert!(!format!("{request:?}").contains("lxk_"), "a key is shown");
        assert!(!request.headers().contains_key("x-api-key"), "a key gets through");
        let has_key = request.extensions().get::<VerifiedKey>().is_some();
        let mut response = Response::new(Empty::<bytes::Bytes>::new());
        response.extensions_mut().insert(has_key);
        Ok::<_, Infallible>(response)
    });
    let response = ready(layer.layer(inner).call(request)).expect("it cannot fail");
    match (response.status().as_u16(), response.extensions().get::<bool>()) {
        (200, Some(true)) => assert!(is_named, "accepted without the key"),
        (200, Some(false)) => {
            assert!(settings & 3 != 0, "passed without a key");
            assert!(!is_named, "the key was overlooked");
        }
        (401, None) => assert!(!is_named, "the key was refused"),
        (400, None) => assert!(count > 0, "there is nothing that could be ill-formed"),
        other => panic!("{other:?}"),
    }
}

/// Whether the headers name this key, once or in two ways, and no other.
fn names_the_key(headers: &HeaderMap) -> bool {
    let values = |name: HeaderName| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let keys: Vec<_> = values(HeaderName::from_static("x-api-key")).collect();
    let authorizations: Vec<_> = values(AUTHORIZATION).collect();
    let is_bearer = |value: &&[u8]| value.len() > 7 && value[..7].eq_ignore_ascii_case(b"bearer ");
    let token =
        |value: &[u8]| String::from_utf8_lossy(&value[7..]).trim_start_matches(' ').to_owned();
    let tokens = authorizations.iter().filter(|value| is_bearer(value)).map(|value| token(value));
    let tokens: Vec<_> = tokens.filter(|token| token.starts_with("lxk_")).collect();
    let is_alone = tokens.is_empty() || authorizations.len() == 1;
    keys.len() <= 1
        && is_alone
        && keys.len() + tokens.len() > 0
        && keys.iter().all(|key| *key == KEY.as_bytes())
        && tokens.iter().all(|token| token == KEY)
}
