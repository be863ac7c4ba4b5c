//! The layer: from the headers of a request to a verified key, or a denial.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::http::header::{self, HeaderName};
use ::http::{Method, Request, Response};
use bytes::Bytes;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::{Span, debug_span};

use super::body::ResponseBody;
use super::credential::{Credential, KeyHeaders, Presented};
use super::denial::{Answers, Denial};
use super::notice::{NoticeHeaders, Notices};
use super::throttle::Client;
#[cfg(feature = "throttle")]
use super::throttle::Throttle;
use crate::error::VerifyError;
use crate::store::KeyLookup;
use crate::verify::{VerifiedKey, Verifier};

/// Lets pass requests with a key that the verifier accepts, and denies all others.
///
/// Without further settings every request needs a key, in `X-API-Key` or `Authorization: Bearer`. The
/// service behind it finds the [`VerifiedKey`] in the extensions of the request, or takes it as an
/// argument (feature `axum`).
///
/// ```
/// # use std::sync::Arc;
/// # use lexikon_auth::{MemoryStore, SecretRing, ServerSecret, Verifier};
/// # use lexikon_auth::http::{ApiKeyLayer, Notices};
/// # fn layer() -> Result<ApiKeyLayer, Box<dyn std::error::Error>> {
/// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
/// # let verifier = Arc::new(Verifier::new(MemoryStore::new(), ring));
/// let layer = ApiKeyLayer::new(verifier)
///     .realm("lexikon")?
///     .allow_other_schemes() // Authorization: Bearer <JWT> is for the service to judge
///     .pass_cors_preflight()
///     .notices(Notices::default());
/// # Ok(layer) }
/// # layer().unwrap();
/// ```
#[derive(Clone)]
pub struct ApiKeyLayer {
    settings: Arc<Settings>,
}

#[derive(Clone)]
struct Settings {
    verifier: Arc<dyn Verify>,
    headers: KeyHeaders,
    keeps_headers: bool,
    is_optional: bool,
    allows_other_schemes: bool,
    passes_preflight: bool,
    notices: Option<Notices>,
    answers: Answers,
    #[cfg(feature = "throttle")]
    throttle: Option<Throttle>,
}

impl ApiKeyLayer {
    /// A layer that asks every request for a key.
    pub fn new<S: KeyLookup + 'static>(verifier: Arc<Verifier<S>>) -> Self {
        let settings = Settings {
            verifier,
            headers: KeyHeaders::default(),
            keeps_headers: false,
            is_optional: false,
            allows_other_schemes: false,
            passes_preflight: false,
            notices: None,
            answers: Answers::default(),
            #[cfg(feature = "throttle")]
            throttle: None,
        };
        Self { settings: Arc::new(settings) }
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }

    /// Lets requests without a key pass, with no [`VerifiedKey`] in their extensions. A key that is
    /// presented has to be good.
    pub fn optional(self) -> Self {
        self.with(|settings| settings.is_optional = true)
    }

    /// Lets an `Authorization` that holds no `lxk_` key pass untouched, with no [`VerifiedKey`] in the
    /// extensions: somebody behind this layer judges it. Without this, a bearer token that is no key is
    /// refused, and another scheme counts as no key.
    pub fn allow_other_schemes(self) -> Self {
        self.with(|settings| settings.allows_other_schemes = true)
    }

    /// Lets the preflight of CORS pass, which browsers send without a key: `OPTIONS` with `Origin` and
    /// `Access-Control-Request-Method`. Not needed where the layer that answers it stands outside.
    pub fn pass_cors_preflight(self) -> Self {
        self.with(|settings| settings.passes_preflight = true)
    }

    /// The headers that hold a key and nothing else. Default `X-API-Key`.
    pub fn key_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.with(|settings| settings.headers.names = names.into_iter().collect())
    }

    /// Does not look at `Authorization`.
    pub fn without_bearer(self) -> Self {
        self.with(|settings| settings.headers.bearer = false)
    }

    /// Leaves the headers that hold the key in the request, marked as sensitive.
    pub fn keep_key_headers(self) -> Self {
        self.with(|settings| settings.keeps_headers = true)
    }

    /// What the challenge of a 401 calls the service. Default `api`.
    ///
    /// # Errors
    /// [`InvalidRealm`] for quotation marks, backslashes and what is not printable ASCII.
    pub fn realm(self, realm: &str) -> Result<Self, InvalidRealm> {
        let is_plain = |byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if !realm.bytes().all(is_plain) {
            return Err(InvalidRealm);
        }
        Ok(self.with(|settings| settings.answers.realm = realm.into()))
    }

    /// Writes the bodies of denials, in place of [`problem_json`](super::problem_json). The answer
    /// comes with its status and headers; `answer` adds a body and its type.
    ///
    /// ```
    /// # use lexikon_auth::http::ApiKeyLayer;
    /// # fn example(layer: ApiKeyLayer) -> ApiKeyLayer {
    /// layer.answer_with(|denial, mut response| {
    ///     let json = http::HeaderValue::from_static("application/json");
    ///     response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    ///     response.map(|()| format!(r#"{{"detail":"{}"}}"#, denial.detail()).into())
    /// })
    /// # }
    /// ```
    pub fn answer_with(
        self,
        answer: impl Fn(&Denial, Response<()>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.answers.answer = Arc::new(answer))
    }

    /// Tells callers whose keys are on their way out, by headers of the response.
    pub fn notices(self, notices: Notices) -> Self {
        self.with(|settings| settings.notices = Some(notices))
    }

    /// Limits refused keys for each client address.
    #[cfg(feature = "throttle")]
    pub fn throttle(self, throttle: Throttle) -> Self {
        self.with(|settings| settings.throttle = Some(throttle))
    }
}

impl fmt::Debug for ApiKeyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers = &self.settings.headers;
        f.debug_struct("ApiKeyLayer").field("headers", headers).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for ApiKeyLayer {
    type Service = ApiKeyService<S>;

    fn layer(&self, inner: S) -> ApiKeyService<S> {
        ApiKeyService { inner, settings: self.settings.clone() }
    }
}

/// The realm of a challenge holds a quotation mark, a backslash, or something that is not printable
/// ASCII; choose another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a realm is printable ASCII without quotation marks and backslashes; choose another")]
pub struct InvalidRealm;

/// A verifier over any store.
trait Verify: Send + Sync {
    fn verify(self: Arc<Self>, key: Presented) -> Verification;

    fn notices(&self, notices: &Notices, key: &VerifiedKey) -> NoticeHeaders;
}

type Verification = Pin<Box<dyn Future<Output = Result<VerifiedKey, VerifyError>> + Send>>;

impl<S: KeyLookup + 'static> Verify for Verifier<S> {
    fn verify(self: Arc<Self>, key: Presented) -> Verification {
        Box::pin(async move { Verifier::verify(&*self, key.as_bytes()).await })
    }

    fn notices(&self, notices: &Notices, key: &VerifiedKey) -> NoticeHeaders {
        notices.headers(key, self.legacy_policy(), self.now())
    }
}

/// What is done with a request.
enum Admission {
    /// It needs no key.
    Pass,
    Verify(Presented),
    Deny(Denial),
}

impl Settings {
    /// Who sends a request, where refusals are limited.
    fn client<B>(&self, request: &Request<B>) -> Option<Client> {
        cfg_select! {
            feature = "throttle" => self.throttle.as_ref()?.client(request),
            _ => {
                let _ = request;
                None
            }
        }
    }

    fn admission<B>(&self, request: &Request<B>) -> Admission {
        if self.passes_preflight && is_cors_preflight(request) {
            return Admission::Pass;
        }
        match self.headers.find(request.headers()) {
            Ok(Credential::Key(key)) => Admission::Verify(key),
            Ok(Credential::OtherToken(_) | Credential::OtherScheme)
                if self.allows_other_schemes =>
            {
                Admission::Pass
            }
            // No key of ours, but presented as one: the verifier refuses it, with the reason.
            Ok(Credential::OtherToken(token)) => Admission::Verify(token),
            Ok(Credential::Nothing | Credential::OtherScheme) if self.is_optional => {
                Admission::Pass
            }
            Ok(Credential::Nothing | Credential::OtherScheme) => {
                Admission::Deny(Denial::NoCredential)
            }
            Err(problem) => Admission::Deny(Denial::BadCredential(problem)),
        }
    }
}

fn is_cors_preflight<B>(request: &Request<B>) -> bool {
    let has = |name: HeaderName| request.headers().contains_key(name);
    request.method() == Method::OPTIONS
        && has(header::ORIGIN)
        && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// A service behind an [`ApiKeyLayer`].
#[derive(Clone)]
pub struct ApiKeyService<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S: fmt::Debug> fmt::Debug for ApiKeyService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for ApiKeyService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The one that was found ready is the one that is called.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let settings = self.settings.clone();

        settings.headers.mark_sensitive(request.headers_mut());
        let client = settings.client(&request);
        let mut admission = settings.admission(&request);
        if let Admission::Verify(_) | Admission::Deny(Denial::BadCredential(_)) = admission
            && let Some(denial) = client.as_ref().and_then(Client::denial)
        {
            admission = Admission::Deny(denial);
        }
        if !settings.keeps_headers {
            settings.headers.remove(request.headers_mut());
        }
        request.extensions_mut().insert(settings.answers.clone());

        let state = match admission {
            Admission::Pass => State::inner(inner.call(request), Additions::default()),
            Admission::Deny(denial) => State::Denied { denial },
            Admission::Verify(key) => {
                let is_private = !key.in_authorization;
                let verification = settings.verifier.clone().verify(key);
                let span = debug_span!(target: "lexikon_auth", "authenticate");
                let waiting = Some((inner, request));
                State::Verifying { verification, span, waiting, is_private }
            }
        };
        ResponseFuture { state, settings, client }
    }
}

/// What is added to the response of the inner service.
#[derive(Default)]
struct Additions {
    /// The key came in a header that shared caches do not know for one that authorizes.
    is_private: bool,
    notices: NoticeHeaders,
}

impl Additions {
    fn add_to<R>(&mut self, response: &mut Response<R>) {
        let headers = response.headers_mut();
        if self.is_private && !headers.contains_key(header::CACHE_CONTROL) {
            // What Authorization implies: RFC 9111, section 3.5.
            let private = header::HeaderValue::from_static("private");
            headers.insert(header::CACHE_CONTROL, private);
        }
        self.notices.add_to(headers);
    }
}

pin_project! {
    /// The response of an [`ApiKeyService`].
    pub struct ResponseFuture<S: Service<Request<B>>, B> {
        #[pin]
        state: State<S, B, S::Future>,
        settings: Arc<Settings>,
        client: Option<Client>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, F> {
        Verifying {
            verification: Verification,
            span: Span,
            waiting: Option<(S, Request<B>)>,
            is_private: bool,
        },
        Inner { #[pin] response: F, additions: Additions },
        Denied { denial: Denial },
    }
}

impl<S, B, F> State<S, B, F> {
    fn inner(response: F, additions: Additions) -> Self {
        Self::Inner { response, additions }
    }
}

impl<S, B, R> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<ResponseBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Verifying { verification, span, waiting, is_private } => {
                    let answer = {
                        let _entered = span.enter();
                        ready!(verification.as_mut().poll(context))
                    };
                    match answer {
                        Ok(key) => {
                            let (mut inner, mut request) =
                                waiting.take().expect("a verification completes once");
                            let notices = this.settings.notices.as_ref();
                            let notices = notices
                                .map(|notices| this.settings.verifier.notices(notices, &key))
                                .unwrap_or_default();
                            request.extensions_mut().insert(key);
                            let additions = Additions { is_private: *is_private, notices };
                            State::inner(inner.call(request), additions)
                        }
                        Err(VerifyError::Unavailable(_)) => {
                            State::Denied { denial: Denial::Unavailable }
                        }
                        Err(VerifyError::Refused(_)) => State::Denied { denial: Denial::Refused },
                    }
                }
                StateProjection::Inner { response, additions } => {
                    let mut response = ready!(response.poll(context))?;
                    additions.add_to(&mut response);
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
                StateProjection::Denied { denial } => {
                    if let (Some(client), Denial::Refused | Denial::BadCredential(_)) =
                        (this.client.as_ref(), &*denial)
                    {
                        client.count_refusal();
                    }
                    let answers = Some(&this.settings.answers);
                    return Poll::Ready(Ok(Answers::deny(answers, denial)));
                }
            };
            this.state.set(next);
        }
    }
}
