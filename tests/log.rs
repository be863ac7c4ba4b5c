//! What verification logs: a legacy match and a wrong row, each with the key's id and never the key.
//!
//! In a process of its own, where all threads that verify also listen: `tracing` remembers for each
//! place whether anybody listens, and may miss a listener that comes while the place is first used.

mod common;

use std::io;
use std::sync::{Arc, Mutex};

use common::{
    FORGED, SECRETS, TAGGED, UNTAGGED, WrongRow, assert_reveals_nothing, hmac_hash, legacy_hash,
    ready, record, store, untagged_record, verifier,
};
use lexikon_auth::{HashFormat, LegacyPolicy, Policy};
use tracing_subscriber::filter::LevelFilter;

/// A log that the tests can read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `work` logs, down to the finest level.
fn logged(work: impl FnOnce()) -> String {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(log.0.lock().unwrap().clone()).expect("a UTF-8 log")
}

#[test]
fn a_legacy_match_is_logged_as_a_warning_with_the_id_and_never_the_key() {
    let verifier = verifier(store(&[untagged_record(HashFormat::Sha256)]));
    let log = logged(|| _ = ready(verifier.verify(UNTAGGED)).unwrap());
    assert!(log.contains("WARN") && log.contains("key_id=legacy"), "{log}");
    assert_reveals_nothing(&log, UNTAGGED);
    assert_reveals_nothing(&log, SECRETS[0]);
    assert_reveals_nothing(&log, &legacy_hash(UNTAGGED).to_hex());
}

#[test]
fn a_wrong_row_is_logged_as_an_error_with_the_id_and_never_the_key() {
    let row = record("wrong", hmac_hash(SECRETS[1], UNTAGGED));
    let verifier = verifier(WrongRow(row.into()));
    let log = logged(|| _ = ready(verifier.verify(UNTAGGED)).unwrap_err());
    assert!(log.contains("ERROR") && log.contains("key_id=wrong"), "{log}");
    assert_reveals_nothing(&log, UNTAGGED);
}

#[test]
fn nothing_else_is_logged() {
    let stored =
        [record("key-1", hmac_hash(SECRETS[0], TAGGED)), untagged_record(HashFormat::Sha256)];
    let closed = Policy::default().legacy(LegacyPolicy::Refuse);
    let verifier = verifier(store(&stored)).with_policy(closed);
    let log = logged(|| {
        _ = ready(verifier.verify(TAGGED)).unwrap();
        for key in ["lxk_", FORGED, UNTAGGED] {
            ready(verifier.verify(key)).unwrap_err();
        }
    });
    assert_eq!(log, "");
}
