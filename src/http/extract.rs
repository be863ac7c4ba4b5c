//! Extractors for axum.

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::denial::Denial;
use super::responder::Responder;
use super::scope::{Scope, Scoped, scoped_key, verified_key};
use crate::verify::VerifiedKey;

/// The rejection of the extractors. Its response is that of the [`ApiKeyLayer`](super::ApiKeyLayer) before the
/// route.
#[derive(Debug)]
pub struct Denied(Response);

impl Denied {
    fn new(parts: &Parts, denial: &Denial) -> Self {
        Self(Responder::deny_inside(&parts.extensions, denial).map(Body::from))
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        self.0
    }
}

/// Extracts the verified key. Behind an optional layer, a request without one is denied here.
impl<State: Sync> FromRequestParts<State> for VerifiedKey {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Denied> {
        verified_key(&parts.extensions).map_err(|denial| Denied::new(parts, &denial))
    }
}

/// Extracts the verified key, if the request had one.
impl<State: Sync> OptionalFromRequestParts<State> for VerifiedKey {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Option<Self>, Denied> {
        match verified_key(&parts.extensions) {
            Ok(key) => Ok(Some(key)),
            Err(Denial::NoCredential) => Ok(None),
            Err(denial) => Err(Denied::new(parts, &denial)),
        }
    }
}

/// Extracts the verified key, and denies it without the scope.
impl<S: Scope, State: Sync> FromRequestParts<State> for Scoped<S> {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Denied> {
        scoped_key(&parts.extensions).map_err(|denial| Denied::new(parts, &denial))
    }
}
