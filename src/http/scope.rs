//! Scopes as types: what a route needs is part of its signature.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::{Extensions, Request, Response};
use bytes::Bytes;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::error;

use super::body::ResponseBody;
use super::denial::Denial;
use super::responder::Responder;
use crate::verify::VerifiedKey;

/// A scope as a type. A name that a challenge could not carry does not compile.
///
/// ```
/// use lexikon_auth::http::Scope;
/// struct Billing;
/// impl Scope for Billing {
///     const NAME: &str = "billing";
/// }
/// ```
///
/// ```compile_fail
/// # use lexikon_auth::http::{RequireScope, Scope};
/// # struct Several;
/// impl Scope for Several {
///     const NAME: &str = "read,write"; // one name, not a list
/// }
/// RequireScope::<Several>::new();
/// ```
pub trait Scope: 'static {
    /// The name, as a key's [`Scopes`](crate::Scopes) hold it.
    const NAME: &str;
}

/// Returns whether a name is a scope token (RFC 6749, section 3.3) without a comma, which separates scopes.
const fn is_scope_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        if !bytes[index].is_ascii_graphic() || matches!(bytes[index], b'"' | b'\\' | b',') {
            return false;
        }
        index += 1;
    }
    !bytes.is_empty()
}

/// Returns the name, checked when the program is compiled.
const fn checked_name<S: Scope>() -> &'static str {
    const {
        assert!(
            is_scope_name(S::NAME),
            "a scope is printable ASCII, without space \" \\ and comma"
        );
        S::NAME
    }
}

macro_rules! scopes {
    ($($(#[$doc:meta])+ $scope:ident $name:literal;)+) => {$(
        $(#[$doc])+
        #[derive(Debug, Clone, Copy)]
        pub struct $scope;

        impl Scope for $scope {
            const NAME: &str = $name;
        }
    )+};
}

scopes! {
    /// The scope `read`.
    Read "read";
    /// The scope `write`.
    Write "write";
    /// The scope `admin`, which grants every other.
    Admin "admin";
}

/// A verified key that holds a scope: the type is the proof.
///
/// With the feature `axum` it is an extractor: a handler that takes one cannot be reached without the scope.
/// Elsewhere, convert a [`VerifiedKey`] into it.
///
/// ```
/// use lexikon_auth::VerifiedKey;
/// use lexikon_auth::http::{Scoped, Write};
/// fn publish(key: &Scoped<Write>) {
///     println!("published by {}", key.owner());
/// }
/// fn handle(key: VerifiedKey) -> Result<(), VerifiedKey> {
///     publish(&Scoped::try_from(key)?);
///     Ok(())
/// }
/// ```
pub struct Scoped<S> {
    key: VerifiedKey,
    scope: PhantomData<fn() -> S>,
}

impl<S> Scoped<S> {
    /// Returns the key.
    pub fn into_inner(self) -> VerifiedKey {
        self.key
    }
}

/// Returns the key as the error if it does not hold the scope.
impl<S: Scope> TryFrom<VerifiedKey> for Scoped<S> {
    type Error = VerifiedKey;

    fn try_from(key: VerifiedKey) -> Result<Self, VerifiedKey> {
        if key.allows(checked_name::<S>()) {
            Ok(Self { key, scope: PhantomData })
        } else {
            Err(key)
        }
    }
}

impl<S> Deref for Scoped<S> {
    type Target = VerifiedKey;

    fn deref(&self) -> &VerifiedKey {
        &self.key
    }
}

impl<S> Clone for Scoped<S> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), scope: PhantomData }
    }
}

impl<S> fmt::Debug for Scoped<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scoped").field(&self.key).finish()
    }
}

/// Returns the verified key of a request, or why there is none.
pub(crate) fn verified_key(extensions: &Extensions) -> Result<VerifiedKey, Denial> {
    if let Some(key) = extensions.get::<VerifiedKey>() {
        return Ok(key.clone());
    }
    if !Responder::is_in(extensions) {
        error!("a route asks for a verified key, and no ApiKeyLayer stands before it; add one");
        return Err(Denial::NoLayer);
    }
    Err(Denial::NoCredential)
}

/// Returns the verified key of a request if it holds a scope.
pub(crate) fn scoped_key<S: Scope>(extensions: &Extensions) -> Result<Scoped<S>, Denial> {
    let key = verified_key(extensions)?;
    Scoped::try_from(key).map_err(|_| Denial::InsufficientScope(checked_name::<S>()))
}

/// Requires that the key of a request holds a scope. A layer for routes behind an
/// [`ApiKeyLayer`](super::ApiKeyLayer), and the service that it makes.
///
/// ```
/// use axum::{Router, routing::post};
/// use lexikon_auth::http::{RequireScope, Write};
/// let writing: Router = Router::new()
///     .route("/entries", post(|| async { "written" }))
///     .route_layer(RequireScope::<Write>::new());
/// ```
#[doc(alias = "authorization")]
#[doc(alias = "permission")]
pub struct RequireScope<S, Inner = ()> {
    inner: Inner,
    scope: PhantomData<fn() -> S>,
}

impl<S: Scope> RequireScope<S> {
    /// Makes the layer.
    #[expect(clippy::new_without_default, reason = "a layer is not a value with a default")]
    pub fn new() -> Self {
        let _checked = checked_name::<S>();
        Self { inner: (), scope: PhantomData }
    }
}

impl<S, Inner: Clone> Clone for RequireScope<S, Inner> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), scope: PhantomData }
    }
}

impl<S: Scope, Inner> fmt::Debug for RequireScope<S, Inner> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequireScope").field(&S::NAME).finish()
    }
}

impl<S, Inner> Layer<Inner> for RequireScope<S> {
    type Service = RequireScope<S, Inner>;

    fn layer(&self, inner: Inner) -> Self::Service {
        RequireScope { inner, scope: PhantomData }
    }
}

impl<S, Inner, B, R> Service<Request<B>> for RequireScope<S, Inner>
where
    S: Scope,
    Inner: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = Inner::Error;
    type Future = RequireScopeFuture<Inner::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Inner::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let outcome = match scoped_key::<S>(request.extensions()) {
            Ok(_) => Outcome::Inner { response: self.inner.call(request) },
            Err(denial) => {
                let response = Responder::deny_inside(request.extensions(), &denial);
                Outcome::Denied { response: Some(response) }
            }
        };
        RequireScopeFuture { outcome }
    }
}

pin_project! {
    /// The future of the response of a [`RequireScope`].
    pub struct RequireScopeFuture<F> {
        #[pin]
        outcome: Outcome<F>,
    }
}

pin_project! {
    #[project = OutcomeProjection]
    enum Outcome<F> {
        Inner { #[pin] response: F },
        Denied { response: Option<Response<Bytes>> },
    }
}

impl<F, R, E> Future for RequireScopeFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().outcome.project() {
            OutcomeProjection::Inner { response } => {
                Ok(ready!(response.poll(context))?.map(ResponseBody::inner))
            }
            OutcomeProjection::Denied { response } => {
                let response = response.take().expect("not polled after completion");
                Ok(response.map(ResponseBody::denial))
            }
        })
    }
}
