//! The layer and its settings: what is asked of a request.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ::http::header::{self, HeaderName};
use ::http::{Method, Request, Response};
use bytes::Bytes;
use tower_layer::Layer;

use super::credential::{BadCredential, Credential, KeyHeaders, Presented};
use super::denial::{Answers, Denial};
use super::key_notice::Notices;
use super::service::{ApiKeyService, Verify};
#[cfg(feature = "throttle")]
use super::throttle::Throttle;
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
/// # use lexikon_auth::{SecretRing, ServerSecret, Verifier};
/// # use lexikon_auth::store::MemoryStore;
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
pub(crate) struct Settings {
    pub(crate) verifier: Arc<dyn Verify>,
    pub(crate) headers: KeyHeaders,
    pub(crate) keeps_headers: bool,
    is_optional: bool,
    allows_other_schemes: bool,
    passes_preflight: bool,
    pub(crate) notices: Option<Notices>,
    pub(crate) answers: Arc<Answers>,
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
            answers: Arc::default(),
            #[cfg(feature = "throttle")]
            throttle: None,
        };
        Self { settings: Arc::new(settings) }
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }

    /// Lets requests without a key pass, with no [`VerifiedKey`] in their extensions,
    /// not even that of a layer further out. A key that is presented has to be good.
    pub fn optional(self) -> Self {
        self.with(|settings| settings.is_optional = true)
    }

    /// Lets an `Authorization` that holds no `lxk_` key pass, marked as sensitive, with no
    /// [`VerifiedKey`] in the extensions: **somebody behind this layer has to judge it**,
    /// or anything in that header opens the route. Without this, a request with no key but a bearer token
    /// is refused, and with another scheme it counts as one without a key. Beside a good key in another
    /// header, `Authorization` passes in any case.
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
        Ok(self.with(|settings| Arc::make_mut(&mut settings.answers).realm = realm.into()))
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
        self.with(|settings| Arc::make_mut(&mut settings.answers).answer = Arc::new(answer))
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
        ApiKeyService::new(inner, self.settings.clone())
    }
}

/// The realm of a challenge holds a quotation mark, a backslash, or something that is not printable
/// ASCII; choose another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a realm is printable ASCII without quotation marks and backslashes; choose another")]
pub struct InvalidRealm;

/// What is done with a request.
pub(crate) enum Admission {
    /// It needs no key.
    Pass,
    Verify(Presented),
    Deny(Denial),
}

impl Settings {
    /// Where a request comes from, if refusals are limited for that address.
    pub(crate) fn address<B>(&self, request: &Request<B>) -> Option<IpAddr> {
        cfg_select! {
            feature = "throttle" => {
                self.throttle.as_ref()?.address(request.extensions(), request.headers())
            }
            _ => {
                let _ = request;
                None
            }
        }
    }

    /// The denial, when too many keys from this address were refused.
    fn limit(&self, address: Option<IpAddr>) -> Option<Denial> {
        cfg_select! {
            feature = "throttle" => self.throttle.as_ref()?.denial(address?),
            _ => {
                let _ = address;
                None
            }
        }
    }

    /// Has a key looked up, and its refusal counted, as soon as one of this address may be refused.
    pub(crate) async fn look_up(
        &self,
        address: Option<IpAddr>,
        verify: impl Future<Output = Result<VerifiedKey, Denial>> + Send + 'static,
    ) -> Result<VerifiedKey, Denial> {
        cfg_select! {
            feature = "throttle" => match (&self.throttle, address) {
                (Some(throttle), Some(address)) => throttle.look_up(address, verify).await,
                _ => verify.await,
            },
            _ => {
                let _ = address;
                verify.await
            }
        }
    }

    pub(crate) fn count_refusal(&self, address: Option<IpAddr>) {
        #[cfg(feature = "throttle")]
        if let (Some(throttle), Some(address)) = (&self.throttle, address) {
            throttle.count_refusal(address);
        }
        #[cfg(not(feature = "throttle"))]
        let _ = address;
    }

    /// What is done with a request from this address.
    pub(crate) fn admission<B>(
        &self,
        request: &Request<B>,
        credential: Result<Credential, BadCredential>,
        address: Option<IpAddr>,
    ) -> Admission {
        if self.passes_preflight && is_cors_preflight(request) {
            return Admission::Pass;
        }
        let admission = match credential {
            Ok(Credential::Key(key)) => Admission::Verify(key),
            Ok(Credential::OtherToken(_) | Credential::OtherScheme)
                if self.allows_other_schemes =>
            {
                return Admission::Pass;
            }
            // No key of ours, but presented as one: the verifier refuses it, with the reason.
            Ok(Credential::OtherToken(token)) => Admission::Verify(token),
            Ok(Credential::Nothing | Credential::OtherScheme) if self.is_optional => {
                return Admission::Pass;
            }
            Ok(Credential::Nothing | Credential::OtherScheme) => {
                return Admission::Deny(Denial::NoCredential);
            }
            Err(problem) => {
                let denial = self.limit(address).unwrap_or(Denial::BadCredential(problem));
                return Admission::Deny(denial);
            }
        };
        self.limit(address).map_or(admission, Admission::Deny)
    }
}

fn is_cors_preflight<B>(request: &Request<B>) -> bool {
    let has = |name: HeaderName| request.headers().contains_key(name);
    request.method() == Method::OPTIONS
        && has(header::ORIGIN)
        && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}
