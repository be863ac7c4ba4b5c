//! What the checks found.

use serde_json::json;

use crate::output::{Output, Severity};

/// What a check found.
pub enum Finding {
    Passed(String),
    /// Nothing to check, or nothing that a service could not live with.
    Note(String),
    Failed(String),
}

/// Prints what the checks find, one a line.
pub struct Report<'a> {
    output: &'a mut Output,
    failed: u64,
}

impl<'a> Report<'a> {
    pub fn new(output: &'a mut Output) -> Self {
        Self { output, failed: 0 }
    }

    /// Prints what a check found.
    pub fn line(&mut self, check: &str, finding: Finding) {
        let (severity, word, text) = match finding {
            Finding::Passed(text) => (Severity::Ok, "ok", text),
            Finding::Note(text) => (Severity::Warning, "note", text),
            Finding::Failed(text) => (Severity::Error, "failed", text),
        };
        self.failed += u64::from(severity == Severity::Error);
        self.output.object(&json!({"check": check, "result": word, "detail": text}));
        self.output.status(severity, word, &format!("{check:<10} {text}"));
        self.output.flush();
    }

    /// Returns how many checks failed.
    pub fn failed(&self) -> u64 {
        self.failed
    }
}
