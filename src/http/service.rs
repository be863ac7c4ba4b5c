//! The service behind the layer: from a request to a response.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::http::{Request, Response};
use bytes::Bytes;
use pin_project_lite::pin_project;
use tower_service::Service;
use tracing::{Instrument, Span, debug_span};

use super::body::ResponseBody;
use super::cache_control::keep_private;
use super::credential::Presented;
use super::denial::Denial;
use super::key_notice::{NoticeHeaders, Notices};
use super::layer::{Admission, Settings};
use crate::error::VerifyError;
use crate::store::KeyLookup;
use crate::telemetry::security;
use crate::verify::{VerifiedKey, Verifier};

/// A verifier over any store.
pub(crate) trait Verify: Send + Sync {
    fn verify_now(&self, key: &Presented) -> Option<Result<VerifiedKey, Denial>>;

    /// Verifies a key that has to be looked up, and counts its refusal.
    fn verify(
        self: Arc<Self>,
        key: Presented,
        settings: Arc<Settings>,
        address: Option<IpAddr>,
    ) -> Verification;

    fn notices(&self, notices: &Notices, key: &VerifiedKey) -> NoticeHeaders;
}

type Verification = Pin<Box<dyn Future<Output = Result<VerifiedKey, Denial>> + Send>>;

impl<S: KeyLookup + 'static> Verify for Verifier<S> {
    fn verify_now(&self, key: &Presented) -> Option<Result<VerifiedKey, Denial>> {
        Some(Verifier::verify_now(self, key.as_bytes())?.map_err(Denial::from))
    }

    fn verify(
        self: Arc<Self>,
        key: Presented,
        settings: Arc<Settings>,
        address: Option<IpAddr>,
    ) -> Verification {
        let verify =
            async move { Verifier::verify(&*self, key.as_bytes()).await.map_err(Denial::from) };
        Box::pin(async move { settings.look_up(address, verify.instrument(span())).await })
    }

    fn notices(&self, notices: &Notices, key: &VerifiedKey) -> NoticeHeaders {
        notices.headers(key, self.legacy_policy(), self.now())
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

/// Has events of a verification tell that it was one of a request.
fn span() -> Span {
    debug_span!(target: "lexikon_auth", "authenticate")
}

/// A service behind an [`ApiKeyLayer`](super::ApiKeyLayer).
#[derive(Clone)]
pub struct ApiKeyService<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> ApiKeyService<S> {
    pub(crate) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }
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
        let settings = &self.settings;
        let address = settings.address(&request);
        let credential = settings.headers.take(request.headers_mut(), settings.keeps_headers);
        let admission = settings.admission(&request, credential, address);
        let extensions = request.extensions_mut();
        extensions.insert(settings.answers.clone());
        // What another layer further out has verified is no key of this one.
        extensions.remove::<VerifiedKey>();
        let state = match admission {
            Admission::Pass => {
                settings.answers.passed();
                let (response, additions) = (self.inner.call(request), Additions::default());
                State::Inner { response, additions }
            }
            Admission::Deny(denial) => settings.denied(&denial, address),
            Admission::Verify(key) => {
                match span().in_scope(|| settings.verifier.verify_now(&key)) {
                    Some(answer) => settings.answered(
                        &mut self.inner,
                        request,
                        answer,
                        key.in_authorization,
                        address,
                    ),
                    None => {
                        // The one that was found ready is the one that is called.
                        let next = self.inner.clone();
                        let inner = std::mem::replace(&mut self.inner, next);
                        let in_authorization = key.in_authorization;
                        let verifier = settings.verifier.clone();
                        let verification = verifier.verify(key, settings.clone(), address);
                        let settings = settings.clone();
                        let waiting = Some(Waiting { inner, request, settings, in_authorization });
                        State::Verifying { verification, waiting }
                    }
                }
            }
        };
        ResponseFuture { state }
    }
}

impl Settings {
    /// Goes on with the answer of the verifier. A refusal counts for the address.
    fn answered<S: Service<Request<B>>, B>(
        &self,
        inner: &mut S,
        mut request: Request<B>,
        answer: Result<VerifiedKey, Denial>,
        in_authorization: bool,
        address: Option<IpAddr>,
    ) -> State<S, B, S::Future> {
        match answer {
            Ok(key) => {
                let notices = self.notices.as_ref();
                let notices = notices.map(|notices| self.verifier.notices(notices, &key));
                request.extensions_mut().insert(key);
                self.answers.passed();
                let notices = notices.unwrap_or_default();
                let additions = Additions { is_private: !in_authorization, notices };
                State::Inner { response: inner.call(request), additions }
            }
            Err(denial) => self.denied(&denial, address),
        }
    }

    fn denied<S, B, F>(&self, denial: &Denial, address: Option<IpAddr>) -> State<S, B, F> {
        if let Denial::BadCredential(problem) = denial {
            security::bad_credential(*problem);
        }
        if let Denial::Refused | Denial::BadCredential(_) = denial {
            self.count_refusal(address);
        }
        State::Denied { answer: Some(self.answers.deny(denial)) }
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
        if self.is_private {
            keep_private(headers);
        }
        self.notices.add_to(headers);
    }
}

/// A request that waits for the store.
struct Waiting<S, B> {
    inner: S,
    request: Request<B>,
    settings: Arc<Settings>,
    in_authorization: bool,
}

pin_project! {
    /// The response of an [`ApiKeyService`].
    pub struct ResponseFuture<S: Service<Request<B>>, B> {
        #[pin]
        state: State<S, B, S::Future>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, F> {
        Verifying { verification: Verification, waiting: Option<Waiting<S, B>> },
        Inner { #[pin] response: F, additions: Additions },
        Denied { answer: Option<Response<Bytes>> },
    }
}

impl<S, B, R> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<ResponseBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        const ONCE: &str = "a future is not polled after its end";
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Verifying { verification, waiting } => {
                    let answer = ready!(verification.as_mut().poll(context));
                    let Waiting { mut inner, request, settings, in_authorization } =
                        waiting.take().expect(ONCE);
                    // What was looked up is counted already.
                    settings.answered(&mut inner, request, answer, in_authorization, None)
                }
                StateProjection::Inner { response, additions } => {
                    let mut response = ready!(response.poll(context))?;
                    additions.add_to(&mut response);
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
                StateProjection::Denied { answer } => {
                    let answer = answer.take().expect(ONCE);
                    return Poll::Ready(Ok(answer.map(ResponseBody::denial)));
                }
            };
            this.state.set(next);
        }
    }
}
