//! The settings of a layer, and how they decide on a request.

use std::net::IpAddr;
use std::sync::Arc;

use ::http::header::{self, HeaderName};
use ::http::{Method, Request};

use super::authenticate::Authenticate;
use super::credential::{BadCredential, Credential, KeyHeaders, RawKey};
use super::denial::Denial;
use super::key_notice::ApiKeyNotice;
use super::responder::Responder;
use super::throttle::{ClientLimit, Throttle};

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) verifier: Arc<dyn Authenticate>,
    pub(crate) headers: KeyHeaders,
    pub(crate) is_optional: bool,
    pub(crate) allows_other_schemes: bool,
    pub(crate) passes_preflight: bool,
    pub(crate) notice: Option<ApiKeyNotice>,
    pub(crate) responder: Arc<Responder>,
    pub(crate) throttle: Option<Throttle>,
    /// Not dropped as long as the layer is in use.
    #[cfg(feature = "tokio")]
    pub(crate) kept: Option<Arc<dyn Send + Sync>>,
}

/// What to do with a request.
pub(crate) enum Decision {
    /// Call the service: the request needs no key.
    Pass,
    Verify(RawKey),
    Deny(Denial),
}

impl Settings {
    pub(crate) fn new(verifier: Arc<dyn Authenticate>) -> Self {
        Self {
            verifier,
            headers: KeyHeaders::default(),
            is_optional: false,
            allows_other_schemes: false,
            passes_preflight: false,
            notice: None,
            responder: Arc::default(),
            throttle: None,
            #[cfg(feature = "tokio")]
            kept: None,
        }
    }

    /// Decides on a request, of which `credential` was taken.
    pub(crate) fn decide<B>(
        &self,
        request: &Request<B>,
        credential: Result<Credential, BadCredential>,
        client: Option<IpAddr>,
    ) -> Decision {
        if self.passes_preflight && is_cors_preflight(request) {
            return Decision::Pass;
        }
        let decision = match credential {
            Ok(Credential::Key(key)) => Decision::Verify(key),
            Ok(Credential::OtherToken(_) | Credential::OtherScheme)
                if self.allows_other_schemes =>
            {
                return Decision::Pass;
            }
            // It is not a key, but was presented as one: the verifier refuses it and reports why.
            Ok(Credential::OtherToken(token)) => Decision::Verify(token),
            Ok(Credential::Missing | Credential::OtherScheme) if self.is_optional => {
                return Decision::Pass;
            }
            Ok(Credential::Missing | Credential::OtherScheme) => {
                return Decision::Deny(Denial::NoCredential);
            }
            Err(problem) => Decision::Deny(Denial::BadCredential(problem)),
        };
        // Only what may count as a refusal is limited.
        self.too_many_refusals(client).map_or(decision, Decision::Deny)
    }

    /// Returns the address that a request counts for, if refused keys are limited.
    pub(crate) fn client<B>(&self, request: &Request<B>) -> Option<IpAddr> {
        self.throttle.as_ref()?.client(request.extensions(), request.headers())
    }

    /// Returns the limit for keys of this client that have to be looked up.
    pub(crate) fn limit(&self, client: Option<IpAddr>) -> Option<ClientLimit> {
        self.throttle.as_ref().zip(client).map(|(throttle, client)| throttle.limit(client))
    }

    pub(crate) fn count_refusal(&self, client: Option<IpAddr>) {
        if let Some((throttle, client)) = self.throttle.as_ref().zip(client) {
            throttle.count_refusal(client);
        }
    }

    fn too_many_refusals(&self, client: Option<IpAddr>) -> Option<Denial> {
        self.throttle.as_ref()?.denial(client?)
    }
}

fn is_cors_preflight<B>(request: &Request<B>) -> bool {
    let has = |name: HeaderName| request.headers().contains_key(name);
    request.method() == Method::OPTIONS
        && has(header::ORIGIN)
        && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}
