//! The log of requests: what was asked by which key, and never a key, a query or a body.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use lexikon_auth::{KeyId, VerifiedKey};

/// One line for each request.
pub async fn request(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    // The pattern of the route: what somebody wrote into a path may be anything, a key as well.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    // Escaped: an id is whatever stands in the table.
    let key_id = response.extensions().get::<KeyId>();
    let key_id = key_id.map(|id| id.to_string().escape_debug().to_string());
    tracing::info!(
        %method,
        route = route.as_ref().map_or("", MatchedPath::as_str),
        status = response.status().as_u16(),
        microseconds = started.elapsed().as_micros() as u64,
        key_id,
        "request"
    );
    response
}

/// Leaves the id of the verified key for the log.
pub async fn note_key(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<VerifiedKey>().map(|key| key.id().clone());
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.extensions_mut().insert(id);
    }
    response
}
