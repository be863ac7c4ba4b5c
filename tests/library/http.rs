//! The tower layer and the extractors, on an axum router: what passes, and in which form.
#![cfg(feature = "axum")]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{AppendHeaders, IntoResponse};
use axum::routing::get;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use lexikon_auth::crypto::Candidates;
use lexikon_auth::http::{ApiKeyLayer, ApiKeyNotice};
use lexikon_auth::store::{KeyLookup, MemoryStore};
use lexikon_auth::{KeyRecord, LegacyPolicy, Policy, StoreError, Verifier};
use lexikon_auth_tests::{
    FORGED, SECRETS, TAGGED, UNTAGGED, clock_at_noon, hmac_hash, legacy_hash, noon, ready, record,
    ring, store,
};
use tower::{Layer, Service, ServiceExt};

use crate::web::{
    INVALID_REQUEST, INVALID_TOKEN, LEGACY, NO_KEY, UNKNOWN, answer_to, app, bearer, get_from, key,
    layer, records, request, verifier,
};

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
async fn a_key_behind_a_tab_is_a_key_and_one_without_a_scheme_is_ill_formed() {
    for layer in [layer(), layer().optional(), layer().allow_other_schemes()] {
        let app = app(layer);
        let behind_tab = format!("Bearer\t{TAGGED}");
        get_from(&app, "/", &[("authorization", &behind_tab)]).await.passed("reader ");
        let forged = format!("bearer\t {FORGED}");
        get_from(&app, "/", &[("authorization", &forged)]).await.denied(401, INVALID_TOKEN);
        let bare = get_from(&app, "/", &[("authorization", TAGGED)]).await;
        assert_eq!(bare.status, 400);
    }
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
async fn shared_caches_keep_off_what_was_answered_to_a_key() {
    let answered = async |headers: &[(&str, &str)], lines: &[&'static str]| {
        let lines: Vec<_> = lines
            .iter()
            .map(|&line| (header::CACHE_CONTROL, HeaderValue::from_static(line)))
            .collect();
        let answer = async || (AppendHeaders(lines), "answer").into_response();
        let app = Router::new().route("/", get(answer)).layer(layer());
        let answer = get_from(&app, "/", headers).await;
        let lines = answer.headers.get_all(header::CACHE_CONTROL).iter();
        lines.map(|line| line.to_str().unwrap()).collect::<Vec<_>>().join(", ")
    };
    let key = [("x-api-key", TAGGED)];
    assert_eq!(answered(&key, &[]).await, "private");
    for silent in [
        &["no-transform"][..],
        &["max-age=60"],
        &["must-revalidate"],
        &["no-cache"],
        &["max-age=60", "no-transform"],
        // What only looks like a word for shared caches.
        &["private=\"set-cookie\""],
        &["extension=\"public, s-maxage=1, private\""],
        &["extension=\"\\\", public\""],
        &["s-maxage"],
        &["republic, privately"],
    ] {
        let expected = [silent, &["private"]].concat().join(", ");
        assert_eq!(answered(&key, silent).await, expected, "the service said nothing of it");
        // Caches know what Authorization means.
        let bearer = [("authorization", &*bearer(TAGGED))];
        assert_eq!(answered(&bearer, silent).await, silent.join(", "));
    }
    for decided in [
        &["public, max-age=60"][..],
        &["max-age=60", "Private"],
        &["no-store"],
        &["S-MaxAge=60 ,max-age=1"],
        &["extension=\"\\\"\",public"],
    ] {
        assert_eq!(answered(&key, decided).await, decided.join(", "), "the service decides");
    }
}

#[tokio::test]
async fn a_layer_passes_on_no_key_but_its_own() {
    let nested = |inner: ApiKeyLayer| app(inner).layer(layer());
    let key = [("x-api-key", TAGGED)];
    let preflight =
        [key[0], ("origin", "https://example.com"), ("access-control-request-method", "GET")];
    // Beside a key, the outer layer lets it pass.
    let jwt = [key[0], ("authorization", "Bearer eyJhbGciOi.e30.c2ln")];
    for (inner, method, headers) in [
        (layer().optional(), Method::GET, &key[..]),
        (layer().pass_cors_preflight(), Method::OPTIONS, &preflight),
        (layer().allow_other_schemes(), Method::GET, &jwt),
    ] {
        let mut request = request("/", headers);
        *request.method_mut() = method;
        let answer = answer_to(nested(inner).oneshot(request).await.unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.body.starts_with("nobody "), "{}", answer.body);
    }
    get_from(&nested(layer().optional()), "/required", &key).await.denied(401, NO_KEY);
    // Which of several keys arrives is that of the layer next to the service.
    let inner = layer().optional().key_headers([HeaderName::from_static("x-inner")]);
    let both = [key[0], ("x-inner", UNTAGGED)];
    get_from(&nested(inner), "/", &both).await.passed("writer ");
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
        let app = app(ApiKeyLayer::new(Arc::new(verifier)).notice(notices));
        get_from(&app, "/", &[("x-api-key", key)]).await
    };
    let notice = async |policy, key: &str| {
        let answer = answer(policy, ApiKeyNotice::default(), key).await;
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

    let standard = ApiKeyNotice::default().deprecated_since(noon() - day);
    let answered = answer(until, standard.clone(), LEGACY).await;
    assert_eq!(answered.header("deprecation"), "@1799913600");
    assert_eq!(answered.header("sunset"), "Fri, 22 Jan 2027 08:00:00 GMT");
    let answered = answer(until, standard.clone(), &key(1)).await;
    assert_eq!(answered.header("deprecation"), "", "not a legacy key");
    // Dates that HTTP cannot say.
    let far = LegacyPolicy::AcceptUntil(noon() + 20_000 * 366 * day);
    let answered = answer(far, standard.clone().expires_within(Duration::MAX), LEGACY).await;
    assert_eq!(answered.header("sunset"), "Fri, 31 Dec 9999 23:59:59 GMT");
    let never = ApiKeyNotice::default().expires_within(Duration::ZERO);
    assert_eq!(answer(until, never, &key(1)).await.header("api-key-notice"), "");
}

/// Answers after a while, as a database does.
struct Distant(MemoryStore);

impl KeyLookup for Distant {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        tokio::task::yield_now().await;
        self.0.find(candidates).await
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
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
