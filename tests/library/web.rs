//! An axum router behind the layer, and what it answers.

use std::sync::Arc;

use axum::body::Body;
use axum::routing::{any, get};
use axum::{Extension, Router};
use http::header::{AsHeaderName, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use lexikon_auth::http::{Admin, ApiKeyLayer, Read, RequireScope, Scoped, Write};
use lexikon_auth::store::MemoryStore;
use lexikon_auth::{KeyRecord, VerifiedKey, Verifier};
use lexikon_auth_tests::{
    SECRETS, TAGGED, UNTAGGED, clock_at_noon, hmac_hash, legacy_hash, record, ring, store,
};
use tower::ServiceExt;

/// A key that is stored as plain SHA-256.
pub const LEGACY: &str = "lxk_legacyBFF8ucL0GHS745Bd44XqHMsFz86GM9hgsvj67plc";
/// A key of the right form that nobody has issued.
pub const UNKNOWN: &str = "lxk_unknownFF8ucL0GHS745Bd44XqHMsFz86GM9hgsvj67plc";

pub fn records() -> [KeyRecord; 3] {
    let mut writer = record("writer", hmac_hash(SECRETS[0], UNTAGGED));
    writer.scopes = "read,write".into();
    let legacy = record("legacy", legacy_hash(LEGACY));
    [record("reader", hmac_hash(SECRETS[0], TAGGED)), writer, legacy]
}

pub fn verifier(records: &[KeyRecord]) -> Verifier<MemoryStore> {
    Verifier::new(store(records), ring(&SECRETS[..1])).with_clock(clock_at_noon())
}

pub fn layer() -> ApiKeyLayer {
    ApiKeyLayer::new(Arc::new(verifier(&records())))
}

/// Says which key there is, and which headers of a request arrived.
pub async fn show(key: Option<VerifiedKey>, headers: HeaderMap) -> String {
    let key = key.map_or("nobody".to_owned(), |key| key.id().to_string());
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    format!("{key} {}", names.join(","))
}

pub fn app(layer: ApiKeyLayer) -> Router {
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
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: impl AsHeaderName) -> &str {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map_or("", |value| value.to_str().unwrap());
        assert!(values.next().is_none(), "one header of a kind");
        value
    }

    #[track_caller]
    pub fn passed(&self, body: &str) {
        assert_eq!((self.status, self.body.as_str()), (StatusCode::OK, body));
    }

    #[track_caller]
    pub fn denied(&self, status: u16, challenge: &str) {
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

pub async fn answer_to(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.into()).unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

pub fn request(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request.body(Body::empty()).unwrap()
}

pub async fn get_from(app: &Router, path: &str, headers: &[(&str, &str)]) -> Answer {
    answer_to(app.clone().oneshot(request(path, headers)).await.unwrap()).await
}

pub fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

pub const NO_KEY: &str = "Bearer realm=\"api\"";
pub const INVALID_REQUEST: &str = "Bearer realm=\"api\", error=\"invalid_request\"";
pub const INVALID_TOKEN: &str = "Bearer realm=\"api\", error=\"invalid_token\"";

/// A key without a tag.
pub fn key(number: u8) -> String {
    format!("lxk_number-{number}{}", "A".repeat(30))
}
