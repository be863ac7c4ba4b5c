//! The layer, as an application builds it.

use std::fmt;
use std::sync::Arc;

use ::http::Response;
use ::http::header::HeaderName;
use bytes::Bytes;
use tower_layer::Layer;

use super::denial::Denial;
use super::key_notice::ApiKeyNotice;
use super::service::ApiKeyService;
use super::settings::Settings;
#[cfg(feature = "throttle")]
use super::throttle::Throttle;
use crate::store::KeyLookup;
use crate::verify::Verifier;

/// Passes on requests with a key that the verifier accepts, and denies all others.
///
/// By default every request needs a key, in `X-API-Key` or `Authorization: Bearer`. The service behind the
/// layer finds the [`VerifiedKey`] in the extensions of the request; with the feature `axum`, it is also an
/// extractor.
///
/// ```
/// # use std::sync::Arc;
/// # use lexikon_auth::{SecretRing, ServerSecret, Verifier};
/// # use lexikon_auth::store::MemoryStore;
/// # use lexikon_auth::http::{ApiKeyLayer, ApiKeyNotice};
/// # fn layer() -> Result<ApiKeyLayer, Box<dyn std::error::Error>> {
/// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
/// # let verifier = Arc::new(Verifier::new(MemoryStore::new(), ring));
/// let layer = ApiKeyLayer::new(verifier)
///     .realm("lexikon")?
///     .allow_other_schemes() // Authorization: Bearer <JWT> is for the service to judge
///     .pass_cors_preflight()
///     .notice(ApiKeyNotice::default());
/// # Ok(layer) }
/// # layer().unwrap();
/// ```
///
/// [`VerifiedKey`]: crate::VerifiedKey
#[doc(alias = "auth")]
#[doc(alias = "authentication")]
#[doc(alias = "bearer")]
#[doc(alias = "middleware")]
#[derive(Clone)]
pub struct ApiKeyLayer {
    settings: Arc<Settings>,
}

impl ApiKeyLayer {
    /// Makes a layer that requires a key of every request.
    pub fn new<S: KeyLookup + 'static>(verifier: Arc<Verifier<S>>) -> Self {
        Self { settings: Arc::new(Settings::new(verifier)) }
    }

    /// Lets requests without a key pass, with no [`VerifiedKey`](crate::VerifiedKey) in their extensions, not
    /// even that of a layer further out. A key that is presented must still be accepted.
    pub fn optional(self) -> Self {
        self.with(|settings| settings.is_optional = true)
    }

    /// Lets an `Authorization` that holds no `lxk_` key pass, marked as sensitive, with no
    /// [`VerifiedKey`](crate::VerifiedKey) in the extensions. **The service behind this layer must verify it
    /// itself**, or anything in that header opens the route.
    ///
    /// Without this, a bearer token that is not a key is refused, and a request with another scheme counts as
    /// one without a key. Beside a key in another header, `Authorization` passes in any case.
    #[doc(alias = "jwt")]
    pub fn allow_other_schemes(self) -> Self {
        self.with(|settings| settings.allows_other_schemes = true)
    }

    /// Lets preflight requests of CORS pass, which browsers send without a key: `OPTIONS` with `Origin` and
    /// `Access-Control-Request-Method`. Not needed if the layer that responds to them stands outside this one.
    pub fn pass_cors_preflight(self) -> Self {
        self.with(|settings| settings.passes_preflight = true)
    }

    /// Sets the headers that hold a key and nothing else. Default `X-API-Key`.
    #[doc(alias = "x-api-key")]
    pub fn key_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.with(|settings| settings.headers.names = names.into_iter().collect())
    }

    /// Ignores `Authorization`.
    pub fn without_bearer(self) -> Self {
        self.with(|settings| settings.headers.bearer = false)
    }

    /// Leaves the headers that hold the key in the request, marked as sensitive.
    pub fn keep_key_headers(self) -> Self {
        self.with(|settings| settings.headers.keep = true)
    }

    /// Sets the realm of the challenge in `WWW-Authenticate`. Default `api`.
    ///
    /// # Errors
    /// [`InvalidRealm`] if it holds a quotation mark, a backslash or anything but printable ASCII.
    pub fn realm(self, realm: &str) -> Result<Self, InvalidRealm> {
        let is_plain = |byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if !realm.bytes().all(is_plain) {
            return Err(InvalidRealm);
        }
        Ok(self.with(|settings| Arc::make_mut(&mut settings.responder).realm = realm.into()))
    }

    /// Sets what responds to denials. Default [`problem_json`](super::problem_json). The response comes with
    /// its status and headers; `respond` adds a body and its type.
    ///
    /// ```
    /// # use lexikon_auth::http::ApiKeyLayer;
    /// # fn example(layer: ApiKeyLayer) -> ApiKeyLayer {
    /// layer.respond_with(|denial, mut response| {
    ///     let json = http::HeaderValue::from_static("application/json");
    ///     response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    ///     response.map(|()| format!(r#"{{"detail":"{}"}}"#, denial.detail()).into())
    /// })
    /// # }
    /// ```
    pub fn respond_with(
        self,
        respond: impl Fn(&Denial, Response<()>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| Arc::make_mut(&mut settings.responder).respond = Arc::new(respond))
    }

    /// Warns callers, by headers of the response, whose keys will stop being accepted.
    pub fn notice(self, notice: ApiKeyNotice) -> Self {
        self.with(|settings| settings.notice = Some(notice))
    }

    /// Limits refused keys for each client address.
    #[doc(alias = "rate limit")]
    #[cfg(feature = "throttle")]
    pub fn throttle(self, throttle: Throttle) -> Self {
        self.with(|settings| settings.throttle = Some(throttle))
    }

    /// Keeps `value` from being dropped for as long as the layer is in use.
    #[cfg(feature = "tokio")]
    pub(crate) fn keep(self, value: Arc<dyn Send + Sync>) -> Self {
        self.with(|settings| settings.kept = Some(value))
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
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
        ApiKeyService::new(inner, self.settings.clone())
    }
}

/// The realm of a challenge holds a quotation mark, a backslash, or something that is not printable
/// ASCII; choose another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a realm is printable ASCII without quotation marks and backslashes; choose another")]
#[non_exhaustive]
pub struct InvalidRealm;
