//! The tower layer and the extractors, on an axum router: what passes, and every answer to what does not.
#![cfg(feature = "axum")]

mod common;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::{any, get};
use axum::{Extension, Router};
use common::{
    FORGED, SECRETS, TAGGED, UNTAGGED, clock_at_noon, hmac_hash, legacy_hash, noon, ready, record,
    ring, store,
};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use lexikon_auth::http::{
    Admin, ApiKeyLayer, InvalidRealm, Notices, Read, RequireScope, Scoped, Write,
};
use lexikon_auth::{
    Candidates, KeyLookup, KeyRecord, LegacyPolicy, MemoryStore, OwnerId, Policy, Revocation,
    StoreError, VerifiedKey, Verifier,
};
use tower::{Layer, Service, ServiceExt};

/// A key that is stored as plain SHA-256.
const LEGACY: &str = "lxk_legacyBFF8ucL0GHS745Bd44XqHMsFz86GM9hgsvj67plc";
/// A key of the right form that nobody has issued.
const UNKNOWN: &str = "lxk_unknownFF8ucL0GHS745Bd44XqHMsFz86GM9hgsvj67plc";

fn records() -> [KeyRecord; 3] {
    let mut writer = record("writer", hmac_hash(SECRETS[0], UNTAGGED));
    writer.scopes = "read,write".into();
    let legacy = record("legacy", legacy_hash(LEGACY));
    [record("reader", hmac_hash(SECRETS[0], TAGGED)), writer, legacy]
}

fn verifier(records: &[KeyRecord]) -> Verifier<MemoryStore> {
    Verifier::new(store(records), ring(&SECRETS[..1])).with_clock(clock_at_noon())
}

fn layer() -> ApiKeyLayer {
    ApiKeyLayer::new(Arc::new(verifier(&records())))
}

/// Says which key there is, and which headers of a request arrived.
async fn show(key: Option<VerifiedKey>, headers: HeaderMap) -> String {
    let key = key.map_or("nobody".to_owned(), |key| key.id().to_string());
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    format!("{key} {}", names.join(","))
}

fn app(layer: ApiKeyLayer) -> Router {
    Router::new()
        .route("/", any(show))
        .route("/required", get(async |key: VerifiedKey| key.id().to_string()))
        .route("/read", get(async |key: Scoped<Read>| key.id().to_string()))
        .route("/write", get(async |key: Scoped<Write>| key.into_inner().id().to_string()))
        .route("/admin", get(async || "admin").route_layer(RequireScope::<Admin>::new()))
        .route("/layer", get(async || "written").route_layer(RequireScope::<Write>::new()))
        .route(
            "/extension",
            get(async |Extension(key): Extension<VerifiedKey>| key.id().to_string()),
        )
        .layer(layer)
}

/// An answer: status, headers, body.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: impl header::AsHeaderName) -> &str {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map_or("", |value| value.to_str().unwrap());
        assert!(values.next().is_none(), "one header of a kind");
        value
    }

    #[track_caller]
    fn passed(&self, body: &str) {
        assert_eq!((self.status, self.body.as_str()), (StatusCode::OK, body));
    }

    #[track_caller]
    fn denied(&self, status: u16, challenge: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("www-authenticate"), challenge);
        assert_eq!(self.header("cache-control"), "no-store");
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["title"], self.status.canonical_reason().unwrap());
        assert!(problem["detail"].as_str().unwrap().len() > 10);
    }
}

async fn answer_to(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.into()).unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

fn request(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request.body(Body::empty()).unwrap()
}

async fn get_from(app: &Router, path: &str, headers: &[(&str, &str)]) -> Answer {
    answer_to(app.clone().oneshot(request(path, headers)).await.unwrap()).await
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

const NO_KEY: &str = "Bearer realm=\"api\"";
const INVALID_REQUEST: &str = "Bearer realm=\"api\", error=\"invalid_request\"";
const INVALID_TOKEN: &str = "Bearer realm=\"api\", error=\"invalid_token\"";

#[tokio::test]
async fn a_good_key_passes_and_its_header_does_not() {
    let app = app(layer());
    let other = ("x-other", "1");
    get_from(&app, "/", &[("x-api-key", TAGGED), other]).await.passed("reader x-other");
    for scheme in ["Bearer ", "bearer ", "BEARER   "] {
        let authorization = format!("{scheme}{TAGGED}");
        let answer = get_from(&app, "/", &[("authorization", &authorization), other]).await;
        answer.passed("reader x-other");
    }
    let same_twice = [("x-api-key", TAGGED), ("authorization", &*bearer(TAGGED))];
    get_from(&app, "/", &same_twice).await.passed("reader ");
    get_from(&app, "/extension", &[("x-api-key", LEGACY)]).await.passed("legacy");
    get_from(&app, "/required", &[("x-api-key", TAGGED)]).await.passed("reader");
}

#[tokio::test]
async fn headers_stay_where_the_service_asked_for_them_and_are_marked_as_sensitive() {
    let see = async |request: Request<Body>| {
        let log = format!("{request:?}");
        assert!(!log.contains(TAGGED) && !log.contains("eyJ"), "{log}");
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        Ok::<_, Infallible>(Response::new(Body::from(names.join(","))))
    };
    let service = layer().keep_key_headers().allow_other_schemes().layer(tower::service_fn(see));
    for headers in [
        [("x-api-key", TAGGED), ("authorization", &*bearer(TAGGED))],
        [("x-api-key", TAGGED), ("authorization", "Bearer eyJhbGciOi.e30.c2ln")],
    ] {
        let response = service.clone().oneshot(request("/", &headers)).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "authorization,x-api-key");
    }
}

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
        assert_eq!(layer().realm(realm).unwrap_err(), InvalidRealm);
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

/// A key without a tag.
fn key(number: u8) -> String {
    format!("lxk_number-{number}{}", "A".repeat(30))
}

/// Fails the test when it is asked.
struct Untouchable;

impl KeyLookup for Untouchable {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        panic!("nothing is looked up")
    }
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
async fn other_schemes_pass_untouched_where_they_may_follow() {
    let app = app(layer().allow_other_schemes());
    for authorization in ["Bearer eyJhbGciOi.e30.c2ln", "Basic dXNlcjpwYXNz", "Bearer "] {
        let headers = [("authorization", authorization)];
        get_from(&app, "/", &headers).await.passed("nobody authorization");
        // Whoever needs a key denies.
        get_from(&app, "/required", &headers).await.denied(401, NO_KEY);
        // Beside a key, it is for others to judge.
        let both = [("authorization", authorization), ("x-api-key", TAGGED)];
        get_from(&app, "/", &both).await.passed("reader authorization");
    }
    get_from(&app, "/", &[]).await.denied(401, NO_KEY);
    get_from(&app, "/", &[("authorization", &bearer(FORGED))]).await.denied(401, INVALID_TOKEN);
}

#[tokio::test]
async fn an_optional_key_has_to_be_good_when_it_is_there() {
    let app = app(layer().optional());
    get_from(&app, "/", &[]).await.passed("nobody ");
    get_from(&app, "/", &[("x-api-key", TAGGED)]).await.passed("reader ");
    get_from(&app, "/", &[("x-api-key", FORGED)]).await.denied(401, INVALID_TOKEN);
    for path in ["/required", "/read", "/layer", "/admin"] {
        get_from(&app, path, &[]).await.denied(401, NO_KEY);
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
async fn a_preflight_passes_when_asked() {
    let preflight = |layer| async {
        let mut request = request("/", &[("origin", "https://example.com"), ("x-api-key", FORGED)]);
        *request.method_mut() = Method::OPTIONS;
        let name = header::ACCESS_CONTROL_REQUEST_METHOD;
        request.headers_mut().insert(name, HeaderValue::from_static("GET"));
        answer_to(app(layer).oneshot(request).await.unwrap()).await
    };
    preflight(layer()).await.denied(401, INVALID_TOKEN);
    // Nothing is verified, and the key does not get through.
    let passed = preflight(layer().pass_cors_preflight()).await;
    passed.passed("nobody access-control-request-method,origin");
    // Any other OPTIONS needs a key.
    let mut options = request("/", &[("origin", "https://example.com")]);
    *options.method_mut() = Method::OPTIONS;
    let answer = app(layer().pass_cors_preflight()).oneshot(options).await.unwrap();
    answer_to(answer).await.denied(401, NO_KEY);
}

#[tokio::test]
async fn headers_can_be_named() {
    let name = HeaderName::from_static;
    let app = app(layer().key_headers([name("api-key"), name("x-key")]).without_bearer());
    get_from(&app, "/", &[("api-key", TAGGED)]).await.passed("reader ");
    get_from(&app, "/", &[("x-key", UNTAGGED)]).await.passed("writer ");
    let both = [("api-key", TAGGED), ("x-key", UNTAGGED)];
    get_from(&app, "/", &both).await.denied(400, INVALID_REQUEST);
    for unknown in [("x-api-key", TAGGED), ("authorization", &*bearer(TAGGED))] {
        get_from(&app, "/", &[unknown]).await.denied(401, NO_KEY);
    }
}

#[tokio::test]
async fn bodies_of_denials_can_be_replaced_everywhere() {
    let layer = layer().answer_with(|denial, response| {
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

#[tokio::test]
async fn shared_caches_keep_off_what_was_answered_to_a_key() {
    let app = Router::new()
        .route("/", get(async || "silent"))
        .route("/public", get(async || [("cache-control", "public, max-age=60")].into_response()))
        .layer(layer());
    let key = [("x-api-key", TAGGED)];
    assert_eq!(get_from(&app, "/", &key).await.header("cache-control"), "private");
    let public = get_from(&app, "/public", &key).await;
    assert_eq!(public.header("cache-control"), "public, max-age=60", "the service decides");
    // Caches know what Authorization means.
    let bearer = [("authorization", &*bearer(TAGGED))];
    assert_eq!(get_from(&app, "/", &bearer).await.header("cache-control"), "");
}

#[tokio::test]
async fn keys_on_their_way_out_are_said_to_be() {
    let day = Duration::from_secs(24 * 3600);
    let mut soon = record("soon", hmac_hash(SECRETS[0], &key(1)));
    soon.expires_at = Some(noon() + 13 * day);
    let mut late = record("late", hmac_hash(SECRETS[0], &key(2)));
    late.expires_at = Some(noon() + 15 * day);
    let mut both = record("both", legacy_hash(&key(3)));
    both.expires_at = Some(noon() + day);
    let records = [soon, late, both, record("legacy", legacy_hash(LEGACY))];
    let answer = async |policy, notices, key: &str| {
        let verifier = verifier(&records).with_policy(Policy::default().legacy(policy));
        let app = app(ApiKeyLayer::new(Arc::new(verifier)).notices(notices));
        get_from(&app, "/", &[("x-api-key", key)]).await
    };
    let notice = async |policy, key: &str| {
        let answer = answer(policy, Notices::default(), key).await;
        assert_eq!((answer.header("deprecation"), answer.header("sunset")), ("", ""));
        answer.header("api-key-notice").to_owned()
    };
    let until = LegacyPolicy::AcceptUntil(noon() + 7 * day);
    assert_eq!(notice(LegacyPolicy::Accept, &key(1)).await, "expires;until=@1801123200");
    assert_eq!(notice(LegacyPolicy::Accept, &key(2)).await, "");
    assert_eq!(notice(LegacyPolicy::Accept, LEGACY).await, "legacy");
    assert_eq!(notice(until, LEGACY).await, "legacy;until=@1800604800");
    assert_eq!(notice(LegacyPolicy::UpgradeOnUse, LEGACY).await, "");
    let both = "legacy;until=@1800086400, expires;until=@1800086400";
    assert_eq!(notice(until, &key(3)).await, both);

    let standard = Notices::default().deprecated_since(noon() - day);
    let answered = answer(until, standard.clone(), LEGACY).await;
    assert_eq!(answered.header("deprecation"), "@1799913600");
    assert_eq!(answered.header("sunset"), "Fri, 22 Jan 2027 08:00:00 GMT");
    let answered = answer(until, standard.clone(), &key(1)).await;
    assert_eq!(answered.header("deprecation"), "", "not a legacy key");
    // Dates that HTTP cannot say.
    let far = LegacyPolicy::AcceptUntil(noon() + 20_000 * 366 * day);
    let answered = answer(far, standard.clone().expires_within(Duration::MAX), LEGACY).await;
    assert_eq!(answered.header("sunset"), "Fri, 31 Dec 9999 23:59:59 GMT");
    let never = Notices::default().expires_within(Duration::ZERO);
    assert_eq!(answer(until, never, &key(1)).await.header("api-key-notice"), "");
}

/// Answers after a while, as a database does.
struct Distant(MemoryStore);

impl KeyLookup for Distant {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        tokio::task::yield_now().await;
        self.0.find(candidates).await
    }
}

fn distant_layer() -> ApiKeyLayer {
    let verifier = Verifier::new(Distant(store(&records())), ring(&SECRETS[..1]));
    ApiKeyLayer::new(Arc::new(verifier.with_clock(clock_at_noon())))
}

#[tokio::test]
async fn a_store_that_has_to_be_waited_for_makes_no_difference() {
    let (near, far) = (app(layer()), app(distant_layer()));
    for key in [TAGGED, UNTAGGED, LEGACY, UNKNOWN, FORGED, "lxk_", "not a key"] {
        for path in ["/", "/required", "/write", "/layer", "/extension", "/nowhere"] {
            let headers = [("x-api-key", key)];
            let (near, far) =
                (get_from(&near, path, &headers).await, get_from(&far, path, &headers).await);
            assert_eq!((near.status, &near.body), (far.status, &far.body), "{key} {path}");
            assert_eq!(near.headers, far.headers, "{key} {path}");
        }
    }
}

#[test]
fn the_service_that_was_ready_is_the_one_that_is_called() {
    /// Panics when it is called without having been ready; a clone has not been.
    struct Strict(bool);

    impl Clone for Strict {
        fn clone(&self) -> Self {
            Self(false)
        }
    }

    impl Service<Request<()>> for Strict {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), Infallible>> {
            self.0 = true;
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            assert!(self.0, "it was not ready");
            std::future::ready(Ok(Response::new(Body::empty())))
        }
    }

    for layer in [layer(), distant_layer()] {
        let mut service = layer.layer(Strict(false));
        let mut request = Request::new(());
        request.headers_mut().insert("x-api-key", HeaderValue::from_static(TAGGED));
        ready(std::future::poll_fn(|context| service.poll_ready(context))).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let response = runtime.block_on(service.call(request)).unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}
