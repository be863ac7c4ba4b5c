//! Keys on HTTP requests: a tower layer, and extractors for axum.
//!
//! [`ApiKeyLayer`] wraps a service, reads the key of each request, and passes on what the
//! [`Verifier`](crate::Verifier) accepts, with the [`VerifiedKey`](crate::VerifiedKey) in the request's
//! extensions. It works wherever tower does: axum, hyper, tonic.
//!
//! ```
//! use std::sync::Arc;
//! use axum::{Router, routing::{get, post}};
//! use lexikon_auth::http::{ApiKeyLayer, Scoped, Write};
//! use lexikon_auth::{SecretRing, ServerSecret, VerifiedKey, Verifier};
//! use lexikon_auth::store::MemoryStore;
//!
//! async fn read(key: VerifiedKey) -> String {
//!     format!("hello {}", key.owner())
//! }
//!
//! async fn write(key: Scoped<Write>) -> String {
//!     format!("{} may write", key.owner())
//! }
//!
//! # fn app() -> Result<Router, Box<dyn std::error::Error>> {
//! # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
//! # let store = MemoryStore::new();
//! let verifier = Arc::new(Verifier::new(store, ring));
//! let app = Router::new().route("/", get(read)).route("/", post(write));
//! let app = app.layer(ApiKeyLayer::new(verifier));
//! # Ok(app) }
//! # app().unwrap();
//! ```
//!
//! # What a request may carry
//!
//! The key stands in `X-API-Key`, or in `Authorization: Bearer` if the token begins with `lxk_`. It is
//! marked as sensitive on arrival, so that a `Debug` of the request does not show it, and removed before the
//! service sees the request.
//!
//! # Responses
//!
//! | request | status | challenge |
//! | --- | --- | --- |
//! | no key | 401 | `Bearer realm="…"` |
//! | a header twice, two different keys, white space or non-ASCII in one | 400 | `error="invalid_request"` |
//! | a key that is refused, whatever the reason: the same bytes | 401 | `error="invalid_token"` |
//! | a key without the scope that a route needs | 403 | `error="insufficient_scope"`, `scope="…"` |
//! | too many refused keys from one address (feature `throttle`) | 429 | none; `Retry-After`, `RateLimit` |
//! | the store cannot answer | 503 | none; `Retry-After` |
//!
//! The challenges are those of [RFC 6750](https://www.rfc-editor.org/rfc/rfc6750#section-3). Bodies are
//! `application/problem+json` ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)) unless
//! [`respond_with`](ApiKeyLayer::respond_with) says otherwise. They carry `Cache-Control: no-store`. The
//! reason of a refusal is only in the log and the metrics.
//!
//! Shared caches do not know that `X-API-Key` authorizes. The response of the service to a key in that header
//! gets `Cache-Control: private`, unless it has `private`, `no-store`, `public` or `s-maxage` itself.
//!
//! # Several layers
//!
//! Each layer passes on the key that it has verified itself, or none. What an optional layer lets pass without
//! a key has no [`VerifiedKey`](crate::VerifiedKey), even if a layer further out has verified one.

mod authenticate;
mod body;
mod cache_control;
mod credential;
mod denial;
#[cfg(feature = "axum")]
mod extract;
mod key_notice;
mod layer;
mod responder;
mod scope;
mod service;
mod settings;
#[cfg_attr(not(feature = "throttle"), path = "http/no_throttle.rs")]
mod throttle;

pub use body::ResponseBody;
pub use credential::BadCredential;
pub use denial::{Denial, grpc_status, problem_json};
#[cfg(feature = "axum")]
pub use extract::Denied;
pub use key_notice::ApiKeyNotice;
pub use layer::{ApiKeyLayer, InvalidRealm};
pub use scope::{Admin, Read, RequireScope, RequireScopeFuture, Scope, Scoped, Write};
pub use service::{ApiKeyService, ResponseFuture};
#[cfg(feature = "throttle")]
pub use throttle::Throttle;
