//! Why a request is denied, and the response that says so.

use std::time::Duration;

use ::http::header::{self, HeaderValue};
use ::http::{Response, StatusCode};
use bytes::Bytes;

use super::credential::BadCredential;
use crate::error::VerifyError;

/// How long a caller should wait after the store could not answer.
const RETRY_AFTER_UNAVAILABLE: Duration = Duration::from_secs(1);

/// Why a request is denied, as far as the caller may know. It does not hold the reason of a refusal, so that
/// no response can reveal it.
#[doc(alias = "rejection")]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denial {
    /// The request holds no key.
    NoCredential,
    /// The headers do not say which key is meant.
    BadCredential(BadCredential),
    /// The key is refused.
    Refused,
    /// The key is accepted, but lacks this scope.
    InsufficientScope(&'static str),
    /// Too many keys from this address have been refused.
    #[non_exhaustive]
    TooManyRefusals {
        /// How long to wait before the next attempt.
        retry_after: Duration,
        /// How many refusals are allowed in a window.
        limit: u32,
        /// The length of a window.
        window: Duration,
    },
    /// The store could not answer; the key may be good.
    Unavailable,
    /// The route needs a verified key, but has no [`ApiKeyLayer`](super::ApiKeyLayer): a fault of the service.
    NoLayer,
}

impl Denial {
    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoCredential | Self::Refused => StatusCode::UNAUTHORIZED,
            Self::BadCredential(_) => StatusCode::BAD_REQUEST,
            Self::InsufficientScope(_) => StatusCode::FORBIDDEN,
            Self::TooManyRefusals { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoLayer => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns a sentence for the caller.
    pub fn detail(&self) -> String {
        match self {
            Self::NoCredential => "an API key is required".into(),
            Self::BadCredential(problem) => problem.to_string(),
            Self::Refused => "the API key was refused".into(),
            Self::InsufficientScope(scope) => format!("the API key lacks the scope {scope}"),
            Self::TooManyRefusals { .. } => {
                "too many API keys were refused; try again later".into()
            }
            Self::Unavailable => "API keys cannot be verified right now; try again".into(),
            Self::NoLayer => "this route is not set up".into(),
        }
    }

    /// Returns the response without its body.
    pub(crate) fn response_head(&self, realm: &str) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let mut set = |name: &'static str, value: String| {
            let value =
                HeaderValue::try_from(value).expect("printable ASCII, checked where it was set");
            headers.insert(name, value);
        };
        let challenge = |error: &str| format!("Bearer realm=\"{realm}\"{error}");
        match self {
            Self::NoCredential => set("www-authenticate", challenge("")),
            Self::BadCredential(_) => {
                set("www-authenticate", challenge(", error=\"invalid_request\""));
            }
            Self::Refused => set("www-authenticate", challenge(", error=\"invalid_token\"")),
            Self::InsufficientScope(scope) => {
                let error = format!(", error=\"insufficient_scope\", scope=\"{scope}\"");
                set("www-authenticate", challenge(&error));
            }
            Self::TooManyRefusals { retry_after, limit, window } => {
                let (wait, window) = (whole_seconds(*retry_after), whole_seconds(*window));
                set("retry-after", wait.to_string());
                // draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4.
                set("ratelimit-policy", format!("\"refusals\";q={limit};w={window}"));
                set("ratelimit", format!("\"refusals\";r=0;t={wait}"));
            }
            Self::Unavailable => {
                set("retry-after", whole_seconds(RETRY_AFTER_UNAVAILABLE).to_string())
            }
            Self::NoLayer => {}
        }
        response
    }
}

impl From<VerifyError> for Denial {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Refused(_) => Self::Refused,
            VerifyError::Unavailable(_) => Self::Unavailable,
        }
    }
}

/// Adds a body of problem details, [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457). The default of
/// [`respond_with`](super::ApiKeyLayer::respond_with).
///
/// ```
/// use lexikon_auth::http::{Denial, problem_json};
/// let response = problem_json(&Denial::Refused, http::Response::new(()));
/// let body = r#"{"title":"Unauthorized","status":401,"detail":"the API key was refused"}"#;
/// assert_eq!(response.body(), body);
/// ```
pub fn problem_json(denial: &Denial, response: Response<()>) -> Response<Bytes> {
    let (status, detail) = (denial.status(), denial.detail());
    let title = status.canonical_reason().expect("a status that has a name");
    // No text here has a character that JSON would escape.
    let body = format!(r#"{{"title":"{title}","status":{},"detail":"{detail}"}}"#, status.as_u16());
    let mut response = response.map(|()| body.into());
    let content_type = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// Responds to a gRPC call: status 200 with `grpc-status` and `grpc-message`, and no body, as
/// [the protocol](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) has it. For
/// [`respond_with`](super::ApiKeyLayer::respond_with) before a tonic server.
pub fn grpc_status(denial: &Denial, response: Response<()>) -> Response<Bytes> {
    /// The numbers of gRPC's status codes.
    const INVALID_ARGUMENT: &str = "3";
    const PERMISSION_DENIED: &str = "7";
    const RESOURCE_EXHAUSTED: &str = "8";
    const INTERNAL: &str = "13";
    const UNAVAILABLE: &str = "14";
    const UNAUTHENTICATED: &str = "16";
    let code = match denial {
        Denial::NoCredential | Denial::Refused => UNAUTHENTICATED,
        Denial::BadCredential(_) => INVALID_ARGUMENT,
        Denial::InsufficientScope(_) => PERMISSION_DENIED,
        Denial::TooManyRefusals { .. } => RESOURCE_EXHAUSTED,
        Denial::Unavailable => UNAVAILABLE,
        Denial::NoLayer => INTERNAL,
    };
    let mut response = response.map(|()| Bytes::new());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(code));
    let message = HeaderValue::try_from(denial.detail()).expect("printable ASCII");
    headers.insert("grpc-message", message);
    response
}

/// Rounds up, so that a caller that waits so long does not come too early.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
