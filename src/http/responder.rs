//! What the web layer reports.

use super::denial::Denial;
use crate::telemetry::{Counter, metric};

#[derive(Clone)]
pub(crate) struct HttpAnswers {
    passed: Counter,
    no_credential: Counter,
    bad_credential: Counter,
    refused: Counter,
    insufficient_scope: Counter,
    too_many_refusals: Counter,
    unavailable: Counter,
    no_layer: Counter,
}

impl HttpAnswers {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn passed(&self) {
        self.passed.add(1);
    }

    pub(crate) fn denied(&self, denial: &Denial) {
        let counter = match denial {
            Denial::NoCredential => &self.no_credential,
            Denial::BadCredential(_) => &self.bad_credential,
            Denial::Refused => &self.refused,
            Denial::InsufficientScope(_) => &self.insufficient_scope,
            Denial::TooManyRefusals { .. } => &self.too_many_refusals,
            Denial::Unavailable => &self.unavailable,
            Denial::NoLayer => &self.no_layer,
        };
        counter.add(1);
    }
}
