//! What verification logs: every event with its level and fields, and never a key, a hash or a secret.
//!
//! In a process where all threads that verify also listen: `tracing` remembers for each place whether
//! anybody listens, and may miss a listener that comes while the place is first used.

use std::sync::Arc;
use std::time::Duration;

use lexikon_auth::crypto::{Candidates, HashFormat};
use lexikon_auth::store::{KeyLookup, MemoryStore};
use lexikon_auth::telemetry::SECURITY_TARGET;
use lexikon_auth::{KeyRecord, LegacyPolicy, Policy, StoreError, UntaggedPolicy, Verifier};
use lexikon_auth_tests::{
    FORGED, Log, SECRETS, TAGGED, UNTAGGED, WrongRow, assert_reveals_nothing, hmac_hash,
    legacy_hash, noon, ready, record, store, untagged_record, verifier,
};
use tracing_subscriber::filter::LevelFilter;

/// The lines that `work` logs, down to `level`.
fn logged_to(level: LevelFilter, work: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(move || writer.clone())
        .without_time()
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let log = log.text();
    for secret in [UNTAGGED, TAGGED, FORGED, SECRETS[0]] {
        assert_reveals_nothing(&log, secret);
    }
    for hash in [legacy_hash(UNTAGGED), hmac_hash(SECRETS[0], UNTAGGED)] {
        assert_reveals_nothing(&log, &hash.to_hex());
    }
    log.lines().map(|line| line.trim().to_owned()).collect()
}

/// Asserts that one verification logs this one line, and that the documentation knows it.
#[track_caller]
fn assert_logs<S: KeyLookup>(
    verifier: &Verifier<S>,
    key: &str,
    level: &str,
    message: &str,
    fields: &str,
) {
    let lines = logged_to(LevelFilter::TRACE, || _ = ready(verifier.verify(key)));
    assert_eq!(lines, [documented(SECURITY_TARGET, level, message, fields)]);
}

/// The line of an event that the documentation has.
#[track_caller]
fn documented(target: &str, level: &str, message: &str, fields: &str) -> String {
    let row = format!("| `{target}` | {} | {message} |", level.to_lowercase());
    assert!(
        include_str!("../../docs/telemetry.md").contains(&row),
        "docs/telemetry.md has no {row}"
    );
    format!("{level} {target}: {message} {fields}").trim_end().to_owned()
}

/// A store that holds [`UNTAGGED`] in a changed record.
fn stored(format: HashFormat, change: impl FnOnce(&mut KeyRecord)) -> MemoryStore {
    let mut record = untagged_record(format);
    change(&mut record);
    store(&[record])
}

#[test]
fn an_accepted_key_is_not_logged() {
    let verifier = verifier(store(&[record("key-1", hmac_hash(SECRETS[0], TAGGED))]));
    let lines = logged_to(LevelFilter::TRACE, || _ = ready(verifier.verify(TAGGED)).unwrap());
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn an_accepted_legacy_key_is_a_warning_with_its_age() {
    let day = Duration::from_secs(24 * 3600);
    let message = "a key stored as plain SHA-256 was accepted";
    let ages = [
        (None, ""),
        (Some(noon() - 3 * day + Duration::from_secs(1)), " age_days=2"),
        (Some(noon() - 3 * day), " age_days=3"),
        (Some(noon() + day), ""),
    ];
    for (created_at, age) in ages {
        let store = stored(HashFormat::Sha256, |record| record.created_at = created_at);
        let fields = format!("key_id=legacy owner=user-1{age}");
        let verifier = verifier(store);
        assert_logs(&verifier, UNTAGGED, "WARN", message, &fields);
        verifier.set_legacy_policy(LegacyPolicy::Shadow);
        let message = format!("{message} that would be refused");
        assert_logs(&verifier, UNTAGGED, "WARN", &message, &fields);
    }
}

#[test]
fn no_owner_and_no_id_makes_a_line_of_its_own() {
    let store = stored(HashFormat::Sha256, |record| {
        record.id = "id\nWARN".into();
        record.owner = "owner\r\nINFO \u{1b}[2J ä".into();
    });
    let fields = "key_id=id\\nWARN owner=owner\\r\\nINFO \\u{1b}[2J ä";
    let message = "a key stored as plain SHA-256 was accepted";
    let verifier = verifier(store);
    assert_logs(&verifier, UNTAGGED, "WARN", message, fields);
    verifier.set_legacy_policy(LegacyPolicy::Refuse);
    let fields = "key_id=id\\nWARN reason=\"legacy_closed\"";
    assert_logs(&verifier, UNTAGGED, "INFO", "a key was refused", fields);
}

#[test]
fn a_refusal_of_a_known_key_is_logged_with_its_id() {
    let modern = |change: fn(&mut KeyRecord)| verifier(stored(HashFormat::HmacSha256, change));
    let refused = |verifier: Verifier<MemoryStore>, id, reason| {
        let fields = format!("key_id={id} reason=\"{reason}\"");
        assert_logs(&verifier, UNTAGGED, "INFO", "a key was refused", &fields);
    };
    let expired = modern(|record| record.expires_at = Some(noon()));
    refused(expired, "modern", "expired");
    let revoked = modern(|record| record.revocation = Some(Box::default()));
    refused(revoked, "modern", "revoked");
    let store = stored(HashFormat::HmacSha256, |_| {});
    store.set_owner_active(&"user-1".into(), false);
    refused(verifier(store), "modern", "owner_disabled");
    let legacy = verifier(stored(HashFormat::Sha256, |_| {}));
    let closed = legacy.with_policy(Policy::default().legacy(LegacyPolicy::Refuse));
    refused(closed, "legacy", "legacy_closed");
}

#[test]
fn garbage_is_logged_for_debugging_alone() {
    let open = verifier(MemoryStore::new());
    let policy = Policy::default().untagged(UntaggedPolicy::Refuse);
    let tagged_only = verifier(MemoryStore::new()).with_policy(policy);
    let cases = [
        (&open, "lxk_", "malformed"),
        (&open, FORGED, "forged_tag"),
        (&open, UNTAGGED, "unknown"),
        (&tagged_only, UNTAGGED, "untagged_closed"),
    ];
    for (verifier, key, reason) in cases {
        let fields = format!("reason=\"{reason}\"");
        assert_logs(verifier, key, "DEBUG", "a key was refused", &fields);
        let lines = logged_to(LevelFilter::INFO, || _ = ready(verifier.verify(key)).unwrap_err());
        assert!(lines.is_empty(), "{lines:?}");
    }
}

#[test]
fn a_store_that_fails_is_logged_once() {
    struct Broken;
    impl KeyLookup for Broken {
        async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
            Err(StoreError::Unavailable("no route".into()))
        }

        async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
    }
    let (message, fields) =
        ("a key could not be verified", "error=the store is unavailable: no route");
    assert_logs(&verifier(Broken), UNTAGGED, "WARN", message, fields);
}

#[test]
fn a_wrong_row_is_an_error_with_its_id() {
    let row = record("wrong", hmac_hash(SECRETS[1], UNTAGGED));
    let message = "the store returned a row that was not asked for";
    assert_logs(&verifier(WrongRow(row.into())), UNTAGGED, "ERROR", message, "key_id=wrong");
}

#[cfg(all(feature = "axum", feature = "throttle"))]
#[test]
fn the_web_layer_logs_what_it_denies_and_the_span_of_a_request() {
    use std::net::IpAddr;

    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use lexikon_auth::http::{ApiKeyLayer, Read, RequireScope, Throttle};
    use tower::ServiceExt;

    let layer = || ApiKeyLayer::new(Arc::new(verifier(MemoryStore::new())));
    let app = |layer| Router::new().route("/", get(async || "open")).layer(layer);
    let lines = |app: Router, keys: &[&'static str]| {
        let mut request = http::Request::builder().uri("/");
        for key in keys {
            request = request.header("x-api-key", *key);
        }
        let request = request.body(Body::empty()).unwrap();
        logged_to(LevelFilter::TRACE, || {
            assert!(!ready(app.oneshot(request)).unwrap().status().is_success())
        })
    };
    let event = |message, fields: &str| documented(SECURITY_TARGET, "DEBUG", message, fields);

    assert!(lines(app(layer()), &[]).is_empty());
    let problem = "problem=a header that holds an API key is repeated; send it once";
    let ill_formed = event("a request does not say which key is meant", problem);
    assert_eq!(lines(app(layer()), &[UNTAGGED, UNTAGGED]), [ill_formed]);

    let refused = event("a key was refused", "reason=\"forged_tag\"");
    let refused = refused.replace("DEBUG ", "DEBUG authenticate: ");
    assert_eq!(lines(app(layer()), &[FORGED]), *std::slice::from_ref(&refused));
    let throttle = Throttle::new(|_| Some(IpAddr::from([192, 0, 2, 1])));
    let throttled = app(layer().throttle(throttle.refusals(1.try_into().unwrap(), Duration::MAX)));
    let message = "too many keys from one address were refused";
    let limit = documented(SECURITY_TARGET, "INFO", message, "address=192.0.2.1");
    assert_eq!(lines(throttled.clone(), &[FORGED]), [refused, limit]);
    assert!(lines(throttled, &[FORGED]).is_empty());

    let blind = app(layer().throttle(Throttle::new(|_| None)));
    let message = "the address of a request is not known, so refused keys are not limited";
    let warning = documented(SECURITY_TARGET, "WARN", message, "");
    assert_eq!(lines(blind.clone(), &[]), [warning]);
    assert!(lines(blind, &[]).is_empty(), "once");

    let unprotected = app_without_layer();
    let message = "a route asks for a verified key, and no ApiKeyLayer stands before it; add one";
    let fault = documented("lexikon_auth::http::scope", "ERROR", message, "");
    assert_eq!(lines(unprotected, &[UNTAGGED]), [fault]);

    fn app_without_layer() -> Router {
        Router::new().route("/", get(async || "open").route_layer(RequireScope::<Read>::new()))
    }
}
