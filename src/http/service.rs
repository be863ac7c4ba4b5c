//! The service that a layer makes: from a request to a response.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::http::{HeaderMap, Request, Response};
use bytes::Bytes;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::authenticate::Authentication;
use super::body::ResponseBody;
use super::cache_control::forbid_shared_caching;
use super::denial::Denial;
use super::key_notice::NoticeHeaders;
use super::settings::{Decision, Settings};
use crate::telemetry::security;
use crate::verify::VerifiedKey;

/// The service that an [`ApiKeyLayer`](super::ApiKeyLayer) puts before another.
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
        let client = settings.client(&request);
        let credential = settings.headers.take(request.headers_mut());
        let decision = settings.decide(&request, credential, client);
        let extensions = request.extensions_mut();
        extensions.insert(settings.responder.clone());
        // What a layer further out has verified, this one has not.
        extensions.remove::<VerifiedKey>();
        let state = match decision {
            Decision::Pass => {
                settings.responder.count_passed();
                let (response, headers) = (self.inner.call(request), AddedHeaders::default());
                State::Inner { response, headers }
            }
            Decision::Deny(denial) => State::denied(settings, &denial, client),
            Decision::Verify(key) => {
                let (in_authorization, inner) = (key.in_authorization, &mut self.inner);
                if let Some(answer) = settings.verifier.authenticate_now(&key) {
                    State::verified(settings, inner, request, answer, in_authorization, client)
                } else {
                    // The service that was polled ready is called; the clone stays for the next request.
                    let clone = inner.clone();
                    let inner = std::mem::replace(inner, clone);
                    let verifier = settings.verifier.clone();
                    let authentication = verifier.authenticate(key, settings.limit(client));
                    let settings = settings.clone();
                    let pending = PendingRequest { inner, request, settings, in_authorization };
                    State::Authenticating { authentication, pending: Some(pending) }
                }
            }
        };
        ResponseFuture { state }
    }
}

pin_project! {
    /// The future of the response of an [`ApiKeyService`].
    pub struct ResponseFuture<S: Service<Request<B>>, B> {
        #[pin]
        state: State<S, B, S::Future>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, F> {
        Authenticating {
            authentication: Authentication,
            pending: Option<PendingRequest<S, B>>,
        },
        Inner { #[pin] response: F, headers: AddedHeaders },
        Denied { response: Option<Response<Bytes>> },
    }
}

impl<S: Service<Request<B>>, B> State<S, B, S::Future> {
    /// Calls the service if the key was accepted. A refusal counts for the client.
    fn verified(
        settings: &Settings,
        inner: &mut S,
        mut request: Request<B>,
        answer: Result<VerifiedKey, Denial>,
        in_authorization: bool,
        client: Option<IpAddr>,
    ) -> Self {
        let key = match answer {
            Ok(key) => key,
            Err(denial) => return Self::denied(settings, &denial, client),
        };
        let notice = settings.notice.as_ref();
        let notice = notice.map(|notice| settings.verifier.notice_headers(notice, &key));
        let headers = AddedHeaders {
            forbids_shared_caching: !in_authorization,
            notice: notice.unwrap_or_default(),
        };
        request.extensions_mut().insert(key);
        settings.responder.count_passed();
        Self::Inner { response: inner.call(request), headers }
    }

    fn denied(settings: &Settings, denial: &Denial, client: Option<IpAddr>) -> Self {
        if let Denial::BadCredential(problem) = denial {
            security::bad_credential(*problem);
        }
        if let Denial::Refused | Denial::BadCredential(_) = denial {
            settings.count_refusal(client);
        }
        Self::Denied { response: Some(settings.responder.deny(denial)) }
    }
}

impl<S, B, R> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<ResponseBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        const COMPLETED: &str = "not polled after completion";
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Authenticating { authentication, pending } => {
                    let answer = ready!(authentication.as_mut().poll(context));
                    let PendingRequest { mut inner, request, settings, in_authorization } =
                        pending.take().expect(COMPLETED);
                    // No client: the limit of the look-up has counted a refusal already.
                    State::verified(&settings, &mut inner, request, answer, in_authorization, None)
                }
                StateProjection::Inner { response, headers } => {
                    let mut response = ready!(response.poll(context))?;
                    headers.add_to(response.headers_mut());
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
                StateProjection::Denied { response } => {
                    let response = response.take().expect(COMPLETED);
                    return Poll::Ready(Ok(response.map(ResponseBody::denial)));
                }
            };
            this.state.set(next);
        }
    }
}

/// A request that waits for the look-up of its key.
struct PendingRequest<S, B> {
    inner: S,
    request: Request<B>,
    settings: Arc<Settings>,
    in_authorization: bool,
}

/// Headers that are added to the response of the inner service.
#[derive(Default)]
struct AddedHeaders {
    /// Whether the key stood in a header that shared caches do not know.
    forbids_shared_caching: bool,
    notice: NoticeHeaders,
}

impl AddedHeaders {
    fn add_to(&mut self, headers: &mut HeaderMap) {
        if self.forbids_shared_caching {
            forbid_shared_caching(headers);
        }
        self.notice.add_to(headers);
    }
}
