//! What the layers and extractors answer to those who are not let in.
#![cfg(feature = "axum")]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use lexikon_auth::crypto::Candidates;
use lexikon_auth::http::{ApiKeyLayer, InvalidRealm, Read, RequireScope, Scoped};
use lexikon_auth::store::{KeyLookup, Revocation};
use lexikon_auth::{KeyRecord, LegacyPolicy, OwnerId, Policy, StoreError, VerifiedKey, Verifier};
use lexikon_auth_tests::{
    FORGED, SECRETS, TAGGED, UNTAGGED, clock_at_noon, hmac_hash, legacy_hash, noon, record, ring,
    store,
};

use crate::web::{
    INVALID_REQUEST, INVALID_TOKEN, LEGACY, NO_KEY, UNKNOWN, app, bearer, get_from, key, layer,
};

#[tokio::test]
async fn no_key_is_a_challenge_without_an_error() {
    let app = app(layer());
    for headers in [&[][..], &[("authorization", "Basic dXNlcjpwYXNz")]] {
        get_from(&app, "/", headers).await.denied(401, NO_KEY);
    }
    let named = app_named("lexikon");
    let answer = get_from(&named, "/", &[]).await;
    assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"lexikon\"");
    for realm in ["a\"b", "a\\b", "a\nb", "ä"] {
        let InvalidRealm { .. } = layer().realm(realm).unwrap_err();
    }
}

fn app_named(realm: &str) -> Router {
    app(layer().realm(realm).unwrap())
}

#[tokio::test]
async fn every_refusal_has_the_same_bytes() {
    let mut expired = record("expired", hmac_hash(SECRETS[0], &key(1)));
    expired.expires_at = Some(noon() - Duration::from_secs(1));
    let mut revoked = record("revoked", hmac_hash(SECRETS[0], &key(2)));
    revoked.revocation = Some(Box::new(Revocation::default()));
    let mut orphaned = record("orphaned", hmac_hash(SECRETS[0], &key(3)));
    orphaned.owner = OwnerId::from("gone");
    let legacy = record("legacy", legacy_hash(LEGACY));
    let policy = Policy::default().legacy(LegacyPolicy::Refuse);
    let store = store(&[expired, revoked, orphaned, legacy]);
    store.set_owner_active(&OwnerId::from("gone"), false);
    let verifier = Verifier::new(store, ring(&SECRETS[..1])).with_clock(clock_at_noon());
    let verifier = verifier.with_policy(policy);
    let app = app(ApiKeyLayer::new(Arc::new(verifier)));
    let (expired, revoked, orphaned) = (key(1), key(2), key(3));
    let keys =
        [FORGED, UNKNOWN, LEGACY, &expired, &revoked, &orphaned, "lxk_", "lxk_!", "a", "a,b"];
    let mut answers = Vec::new();
    for key in keys {
        let answer = get_from(&app, "/", &[("x-api-key", key)]).await;
        answer.denied(401, INVALID_TOKEN);
        answers.push((answer.status, format!("{:?}", answer.headers), answer.body));
    }
    // A bearer token that is no key of ours, where nobody else judges it.
    let answer = get_from(&app, "/", &[("authorization", "Bearer eyJhbGciOi.e30.c2ln")]).await;
    answers.push((answer.status, format!("{:?}", answer.headers), answer.body));
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

/// Fails the test when it is asked.
struct Untouchable;

impl KeyLookup for Untouchable {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        panic!("nothing is looked up")
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
}

#[tokio::test]
async fn an_ill_formed_request_is_denied_before_any_look_up() {
    let verifier = Verifier::new(Untouchable, ring(&SECRETS[..1]));
    let app = app(ApiKeyLayer::new(Arc::new(verifier)));
    let (key, bearer, other) = (("x-api-key", UNTAGGED), bearer(UNTAGGED), bearer(LEGACY));
    let spaced = format!("Bearer {UNTAGGED} {UNTAGGED}");
    let tabbed = UNTAGGED.replace('e', "\t");
    let umlaut = UNTAGGED.replace('e', "ä");
    for headers in [
        &[key, key][..],
        &[key, ("authorization", &other)],
        &[("authorization", &bearer), ("authorization", &bearer)],
        &[("authorization", "Basic dXNlcjpwYXNz"), ("authorization", &bearer)],
        &[("authorization", &bearer), ("authorization", "Basic dXNlcjpwYXNz")],
        &[key, ("authorization", &bearer), ("authorization", &bearer)],
        &[("x-api-key", "")],
        &[("x-api-key", &tabbed)],
        &[("x-api-key", &umlaut)],
        &[("authorization", &spaced)],
        &[("authorization", &format!("Bearer {umlaut}"))],
    ] {
        get_from(&app, "/", headers).await.denied(400, INVALID_REQUEST);
    }
}

#[tokio::test]
async fn a_route_asks_for_its_scope() {
    let app = app(layer());
    let (reader, writer) = ([("x-api-key", TAGGED)], [("x-api-key", UNTAGGED)]);
    get_from(&app, "/read", &reader).await.passed("reader");
    get_from(&app, "/write", &writer).await.passed("writer");
    get_from(&app, "/layer", &writer).await.passed("written");
    let lacks = |scope: &str| {
        format!("Bearer realm=\"api\", error=\"insufficient_scope\", scope=\"{scope}\"")
    };
    get_from(&app, "/write", &reader).await.denied(403, &lacks("write"));
    get_from(&app, "/layer", &reader).await.denied(403, &lacks("write"));
    get_from(&app, "/admin", &writer).await.denied(403, &lacks("admin"));
}

/// Cannot answer.
struct Down;

impl KeyLookup for Down {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Err(StoreError::Unavailable("the database said something secret".into()))
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
}

#[tokio::test]
async fn a_store_that_cannot_answer_is_no_refusal() {
    let verifier = Verifier::new(Down, ring(&SECRETS[..1]));
    let app = app(ApiKeyLayer::new(Arc::new(verifier)));
    let answer = get_from(&app, "/", &[("x-api-key", TAGGED)]).await;
    answer.denied(503, "");
    assert_eq!(answer.header("retry-after"), "1");
    assert!(!answer.body.contains("secret"));
}

#[tokio::test]
async fn bodies_of_denials_can_be_replaced_everywhere() {
    let layer = layer().respond_with(|denial, response| {
        response.map(|()| format!(r#"{{"detail":"{}"}}"#, denial.detail()).into())
    });
    let app = app(layer);
    for (path, headers, status, detail) in [
        ("/", &[][..], 401, "an API key is required"),
        ("/", &[("x-api-key", FORGED)], 401, "the API key was refused"),
        ("/write", &[("x-api-key", TAGGED)], 403, "the API key lacks the scope write"),
        ("/layer", &[("x-api-key", TAGGED)], 403, "the API key lacks the scope write"),
    ] {
        let answer = get_from(&app, path, headers).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.body, format!(r#"{{"detail":"{detail}"}}"#));
        assert!(answer.header("www-authenticate").starts_with("Bearer realm="));
        assert_eq!(answer.header("cache-control"), "no-store");
    }
}

#[tokio::test]
async fn without_the_layer_a_route_is_a_fault_and_open_to_nobody() {
    let app = Router::new()
        .route("/required", get(async |_: VerifiedKey| "open"))
        .route("/optional", get(async |_: Option<VerifiedKey>| "open"))
        .route("/read", get(async |_: Scoped<Read>| "open"))
        .route("/layer", get(async || "open").route_layer(RequireScope::<Read>::new()));
    for path in ["/required", "/optional", "/read", "/layer"] {
        get_from(&app, path, &[("x-api-key", TAGGED)]).await.denied(500, "");
    }
}
