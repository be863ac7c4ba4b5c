//! Responses to denied requests, and counts of what was let pass and denied.

use std::sync::Arc;

use ::http::{Extensions, Response};
use bytes::Bytes;

use super::denial::{Denial, problem_json};
use crate::telemetry::{Counter, metric};

/// Responds to denials in the way that a layer is set to. It stands in the extensions of each request, so
/// that what denies further inside responds in the same way.
#[derive(Clone)]
pub(crate) struct Responder {
    pub(crate) realm: Arc<str>,
    pub(crate) respond: Arc<Respond>,
    counters: Counters,
}

/// Adds a body to the response to a denial.
type Respond = dyn Fn(&Denial, Response<()>) -> Response<Bytes> + Send + Sync;

impl Default for Responder {
    fn default() -> Self {
        Self { realm: "api".into(), respond: Arc::new(problem_json), counters: Counters::new() }
    }
}

impl Responder {
    /// Counts a denial, and returns the response to it.
    pub(crate) fn deny(&self, denial: &Denial) -> Response<Bytes> {
        self.counters.denied(denial).add(1);
        (self.respond)(denial, denial.response_head(&self.realm))
    }

    /// Does so for whoever denies behind a layer. Without a layer, the default responds.
    pub(crate) fn deny_inside(extensions: &Extensions, denial: &Denial) -> Response<Bytes> {
        match extensions.get::<Arc<Self>>() {
            Some(responder) => responder.deny(denial),
            None => Self::default().deny(denial),
        }
    }

    /// Returns whether a layer stands before the service.
    pub(crate) fn is_in(extensions: &Extensions) -> bool {
        extensions.get::<Arc<Self>>().is_some()
    }

    pub(crate) fn count_passed(&self) {
        self.counters.passed.add(1);
    }
}

#[derive(Clone)]
struct Counters {
    passed: Counter,
    no_credential: Counter,
    bad_credential: Counter,
    refused: Counter,
    insufficient_scope: Counter,
    too_many_refusals: Counter,
    unavailable: Counter,
    no_layer: Counter,
}

impl Counters {
    fn new() -> Self {
        let counter = |answer| Counter::new(&metric::HTTP_ANSWERS, &[("answer", answer)]);
        Self {
            passed: counter("passed"),
            no_credential: counter("no_credential"),
            bad_credential: counter("bad_credential"),
            refused: counter("refused"),
            insufficient_scope: counter("insufficient_scope"),
            too_many_refusals: counter("too_many_refusals"),
            unavailable: counter("unavailable"),
            no_layer: counter("no_layer"),
        }
    }

    fn denied(&self, denial: &Denial) -> &Counter {
        match denial {
            Denial::NoCredential => &self.no_credential,
            Denial::BadCredential(_) => &self.bad_credential,
            Denial::Refused => &self.refused,
            Denial::InsufficientScope(_) => &self.insufficient_scope,
            Denial::TooManyRefusals { .. } => &self.too_many_refusals,
            Denial::Unavailable => &self.unavailable,
            Denial::NoLayer => &self.no_layer,
        }
    }
}
