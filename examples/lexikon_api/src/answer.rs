//! The forms of answers: `{"success": …}` for what is managed, `{"detail": …}` for keys that are denied.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{Response, StatusCode};
use axum::response::{AppendHeaders, IntoResponse};
use lexikon_auth::http::Denial;
use lexikon_auth::{ManageError, StoreError};
use serde::Serialize;

/// `{"success": true, "data": …}`
#[derive(Serialize)]
pub struct Success<T> {
    success: bool,
    data: T,
}

pub fn success<T>(data: T) -> Json<Success<T>> {
    Json(Success { success: true, data })
}

/// `{"success": false, "error": {"code", "message"}}`
#[derive(Serialize)]
pub struct Failure {
    success: bool,
    error: Problem,
    #[serde(skip)]
    status: StatusCode,
    #[serde(skip)]
    header: Option<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct Problem {
    code: &'static str,
    message: String,
}

impl Failure {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let error = Problem { code, message: message.into() };
        Self { success: false, error, status, header: None }
    }

    /// A body that took too long. What is left of it stands in the way of another request, so the connection
    /// ends (RFC 9110, section 15.5.9).
    pub fn too_slow() -> Self {
        let failure = Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took too long");
        let close = HeaderValue::from_static("close");
        Self { header: Some((header::CONNECTION, close)), ..failure }
    }

    /// Another request with the same Idempotency-Key is being answered, or was a moment ago.
    pub fn under_way(held: Duration) -> Self {
        let message = "a request with this Idempotency-Key is under way, or was answered just now";
        let failure = Self::new(StatusCode::CONFLICT, "idempotency_under_way", message);
        Self { header: Some((header::RETRY_AFTER, held.as_secs().into())), ..failure }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        let header = self.header.clone().map(|header| AppendHeaders([header]));
        (self.status, no_store, header, Json(self)).into_response()
    }
}

/// What the caller did wrong is told; what the store did wrong is logged.
impl From<ManageError> for Failure {
    fn from(error: ManageError) -> Self {
        match error {
            ManageError::Invalid { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", error.to_string())
            }
            ManageError::Store(StoreError::NotFound(_)) => no_such_key(),
            ManageError::Store(
                StoreError::Changed(_) | StoreError::Conflict | StoreError::NotInForce(_),
            ) => Self::new(StatusCode::CONFLICT, "conflict", "the key was changed; try again"),
            error => {
                tracing::error!(%error, "a key could not be managed");
                let message = "keys cannot be managed right now; try again";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
            }
        }
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        // Not the text of the rejection, which may quote the body.
        let status = rejection.status();
        let message = match status {
            StatusCode::PAYLOAD_TOO_LARGE => "the body is too long",
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "the body has to be application/json",
            _ => "the body is not what this route takes; see /api/openapi.json",
        };
        Self::new(status, "invalid_body", message)
    }
}

pub fn no_such_key() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "not_found", "you have no such key")
}

pub async fn no_such_route() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "not_found", "there is no such route")
}

pub async fn no_such_method() -> Failure {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method")
}

/// `{"detail": …}`, as the lexikon service answers where a key is denied.
pub fn detail(denial: &Denial, mut response: Response<()>) -> Response<Bytes> {
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    let body = serde_json::json!({ "detail": denial.detail() }).to_string();
    response.map(|()| body.into())
}
