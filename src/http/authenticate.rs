//! Verification of the keys of requests, over any store.

use std::pin::Pin;
use std::sync::Arc;

use tracing::{Instrument, Span, debug_span};

use super::credential::RawKey;
use super::denial::Denial;
use super::key_notice::{ApiKeyNotice, NoticeHeaders};
use super::throttle::ClientLimit;
use crate::store::KeyLookup;
use crate::verify::{VerifiedKey, Verifier};

/// A [`Verifier`] that can be used behind `dyn`, so that no type of the layer names a store.
pub(crate) trait Authenticate: Send + Sync {
    /// Verifies a key without waiting. `None`: it has to be looked up by
    /// [`authenticate`](Self::authenticate).
    fn authenticate_now(&self, key: &RawKey) -> Option<Result<VerifiedKey, Denial>>;

    /// Looks a key up within the limit of its client, which counts a refusal.
    fn authenticate(self: Arc<Self>, key: RawKey, limit: Option<ClientLimit>) -> Authentication;

    /// Returns what a notice says of a key that was verified just now.
    fn notice_headers(&self, notice: &ApiKeyNotice, key: &VerifiedKey) -> NoticeHeaders;
}

pub(crate) type Authentication = Pin<Box<dyn Future<Output = Result<VerifiedKey, Denial>> + Send>>;

impl<S: KeyLookup + 'static> Authenticate for Verifier<S> {
    fn authenticate_now(&self, key: &RawKey) -> Option<Result<VerifiedKey, Denial>> {
        let answer = span().in_scope(|| self.verify_now(key.as_bytes()))?;
        Some(answer.map_err(Denial::from))
    }

    fn authenticate(self: Arc<Self>, key: RawKey, limit: Option<ClientLimit>) -> Authentication {
        let verify = async move { self.verify(key.as_bytes()).await.map_err(Denial::from) };
        let verify = verify.instrument(span());
        match limit {
            Some(limit) => Box::pin(limit.look_up(verify)),
            None => Box::pin(verify),
        }
    }

    fn notice_headers(&self, notice: &ApiKeyNotice, key: &VerifiedKey) -> NoticeHeaders {
        notice.headers(key, self.legacy_policy(), self.now())
    }
}

/// Marks the events of a verification as those of a request.
fn span() -> Span {
    debug_span!(target: "lexikon_auth", "authenticate")
}
