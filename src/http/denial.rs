//! What a caller is told who is not let in.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{self, HeaderValue};
use ::http::{Extensions, Response, StatusCode};
use bytes::Bytes;

use super::credential::BadCredential;
use super::responder::HttpAnswers;

/// How long a caller should wait when the store could not answer.
const RETRY_UNAVAILABLE: Duration = Duration::from_secs(1);

/// Why a request is not let in, as far as the caller may know. The reason of a refusal is not part of
/// it, so that no answer can give it away.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denial {
    /// The request holds no key.
    NoCredential,
    /// The request does not say which key is meant.
    BadCredential(BadCredential),
    /// The key is refused.
    Refused,
    /// The key is good, and may not do this. Holds the scope that is needed.
    InsufficientScope(&'static str),
    /// Too many keys from this address have been refused.
    TooManyRefusals {
        /// How long to wait before the next attempt.
        retry_after: Duration,
        /// How many refusals are allowed.
        limit: u32,
        /// In which time they are allowed.
        window: Duration,
    },
    /// The store could not answer; the key may be good.
    Unavailable,
    /// The route asks for a verified key, and no [`ApiKeyLayer`](super::ApiKeyLayer) stands before it:
    /// a fault of the service.
    NoLayer,
}

impl Denial {
    /// The status of the answer.
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

    /// A sentence for the caller.
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

    /// Status and headers of the answer.
    pub(crate) fn to_response(&self, realm: &str) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let mut set = |name: &'static str, value: String| {
            let value = HeaderValue::try_from(value).expect("printable, checked where it came in");
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
            Self::Unavailable => set("retry-after", whole_seconds(RETRY_UNAVAILABLE).to_string()),
            Self::NoLayer => {}
        }
        response
    }
}

/// Rounded up: a caller that waits so long does not come too early.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// How denials are answered. Part of every request's extensions, for those who deny further inside.
#[derive(Clone)]
pub(crate) struct Answers {
    pub(crate) realm: Arc<str>,
    pub(crate) answer: Arc<Answer>,
    counts: HttpAnswers,
}

type Answer = dyn Fn(&Denial, Response<()>) -> Response<Bytes> + Send + Sync;

impl Default for Answers {
    fn default() -> Self {
        Self { realm: "api".into(), answer: Arc::new(problem_json), counts: HttpAnswers::new() }
    }
}

impl Answers {
    /// Those of the layer before a service.
    pub(crate) fn of(extensions: &Extensions) -> Option<&Arc<Self>> {
        extensions.get()
    }

    /// The answer to a denial, whoever denies.
    pub(crate) fn deny(&self, denial: &Denial) -> Response<Bytes> {
        self.counts.denied(denial);
        (self.answer)(denial, denial.to_response(&self.realm))
    }

    pub(crate) fn passed(&self) {
        self.counts.passed();
    }
}

/// Answers with a problem of [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457). The default.
///
/// ```
/// use lexikon_auth::http::{Denial, problem_json};
/// let answer = problem_json(&Denial::Refused, http::Response::new(()));
/// let body = r#"{"title":"Unauthorized","status":401,"detail":"the API key was refused"}"#;
/// assert_eq!(answer.body(), body);
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

/// Answers a gRPC call: status 200 with a `grpc-status` and a `grpc-message`, and no body, as
/// [the protocol](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) has it. For
/// [`answer_with`](super::ApiKeyLayer::answer_with) before a tonic server.
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
