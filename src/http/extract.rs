//! Extractors for axum.

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::denial::{Answers, Denial};
use super::scope::{Scope, Scoped, scoped_key, verified_key};
use crate::verify::VerifiedKey;

/// The rejection of the extractors. It is answered as the [`ApiKeyLayer`](super::ApiKeyLayer) before the
/// route answers.
#[derive(Debug)]
pub struct Denied(Response);

impl Denied {
    fn new(parts: &Parts, denial: &Denial) -> Self {
        let answers = Answers::of(&parts.extensions).cloned().unwrap_or_default();
        Self(answers.deny(denial).map(Body::from))
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        self.0
    }
}

/// The verified key. Behind an optional layer, a request without one is denied here.
impl<State: Sync> FromRequestParts<State> for VerifiedKey {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Denied> {
        verified_key(&parts.extensions).map_err(|denial| Denied::new(parts, &denial))
    }
}

/// The verified key, if the request had one.
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

/// The verified key, if it holds the scope.
impl<S: Scope, State: Sync> FromRequestParts<State> for Scoped<S> {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Denied> {
        scoped_key(&parts.extensions).map_err(|denial| Denied::new(parts, &denial))
    }
}
