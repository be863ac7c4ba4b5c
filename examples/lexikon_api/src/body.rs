//! Bodies of requests: JSON, and in time.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::answer::Failure;

/// How long a body may take, from its first byte to its last: or somebody who sends a byte now and then
/// would hold a connection for as long as they like.
const LONGEST: Duration = Duration::from_secs(10);

/// A body that was read whole.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let read = timeout(LONGEST, Json::from_request(request, state)).await;
        let Json(body) = read.map_err(|_| Failure::too_slow())??;
        Ok(Self(body))
    }
}
