//! What this crate writes, the service's own library reads; and the other way round.
//!
//! Needs `python3-sqlalchemy`, which `tests/run` installs.
#![cfg(feature = "sqlite")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::HashFormat;
use lexikon_auth::store::SqliteStore;
use lexikon_auth::{
    KeyManager, LegacyPolicy, NewKey, Policy, Refusal, Rotation, SecretRing, ServerSecret, Verifier,
};
use lexikon_auth_tests::data;
use serde_json::{Value, json};

const SECRET: &str = "5f1d7a9c3be84e60a2c4f7d8190b6e3d4c8a51f02e9b7d36a1f4c0e8d2b59673";

fn ring() -> SecretRing {
    SecretRing::new(ServerSecret::new(&SECRET.into()).unwrap())
}

/// Asks the service's library, one command after the other, where it is UTC.
fn ask(database: &Path, commands: &[Value]) -> Vec<Value> {
    ask_in("UTC0", database, commands)
}

/// The same in another time zone, as POSIX names them: the machine may know no others.
fn ask_in(zone: &str, database: &Path, commands: &[Value]) -> Vec<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sqlalchemy/service.py");
    // Debian's Python, where the package of Debian goes, whatever else is first on the path.
    let mut service = Command::new("/usr/bin/python3")
        .args([Path::new(script), database])
        .env("TZ", zone)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut input = service.stdin.take().unwrap();
    for command in commands {
        writeln!(input, "{command}").unwrap();
    }
    drop(input);
    let output = service.wait_with_output().unwrap();
    assert!(output.status.success(), "python3-sqlalchemy is installed, and the script runs");
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> =
        answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), commands.len());
    answers
}

#[tokio::test]
async fn sqlalchemy_reads_every_row_that_the_store_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lexikon.sqlite");
    std::fs::write(&path, data::SQLITE).unwrap();
    let store = SqliteStore::open(&path).await.unwrap().extend_schema().await.unwrap();
    let manager = KeyManager::new(store.clone(), &ring());
    let verifier = Verifier::new(store.clone(), ring());

    // 2099-01-01 12:30:15.123456, and a nanosecond part that no column holds.
    let expiry = SystemTime::UNIX_EPOCH + Duration::new(4_070_953_815, 123_456_789);
    let new = |name| NewKey::new("user-1", name).scopes("read, write");
    let dated = manager.issue(new("dated").expires_at(expiry)).await.unwrap();
    let plain = manager.issue(new("plain")).await.unwrap();
    let revoked = manager.issue(new("revoked")).await.unwrap();
    manager.revoke(&revoked.record.id, Some("test")).await.unwrap();
    let rotated = manager.issue(new("rotated")).await.unwrap();
    let successor = manager.rotate(&rotated.record.id, Rotation::default()).await.unwrap();
    _ = verifier.verify(dated.key.expose_secret()).await.unwrap();
    verifier.flush().await.unwrap();
    store.close().await;

    let read = |id: &lexikon_auth::KeyId| json!({"read": id.to_string()});
    let rows = ask(&path, &[&dated, &plain, &revoked].map(|issued| read(&issued.record.id)));
    assert_eq!(rows[0]["expires_at"], json!(["datetime", "2099-01-01 12:30:15.123456"]));
    assert_eq!(rows[0]["created_at"][0], "datetime");
    assert_eq!(rows[0]["last_used_at"][0], "datetime");
    assert_eq!(rows[0]["is_active"], json!(["bool", "True"]));
    assert_eq!(rows[0]["id"], json!(["str", dated.record.id.to_string()]));
    assert_eq!(rows[0]["key_hash"], json!(["str", dated.record.hash.to_hex()]));
    assert_eq!(rows[0]["scopes"], json!(["str", "read,write"]));
    assert_eq!(rows[1]["expires_at"], json!(["NoneType", "None"]));
    assert_eq!(rows[1]["last_used_at"], json!(["NoneType", "None"]));
    assert_eq!(rows[2]["is_active"], json!(["bool", "False"]));

    let keys = [&dated, &plain, &revoked, &rotated, &successor].map(|issued| &issued.key);
    let verify =
        |key: &lexikon_auth::ApiKey| json!({"verify": key.expose_secret(), "secret": SECRET});
    let answers = ask(&path, &keys.map(verify));
    let accepted = json!("user-1");
    assert_eq!(answers, [accepted.clone(), accepted.clone(), Value::Null, Value::Null, accepted]);
}

#[tokio::test]
async fn the_store_reads_every_row_that_sqlalchemy_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let store = SqliteStore::open_or_create(&path).await.unwrap();
    store.set_owner_active(&"user-1".into(), true).await.unwrap();
    let upgrade = Policy::default().legacy(LegacyPolicy::UpgradeOnUse);
    let verifier = Verifier::new(store, ring()).with_policy(upgrade);

    let key = |last: char| format!("lxk_{last:_>43}");
    let hashes = |key: &str| {
        let presented = lexikon_auth::crypto::PresentedKey::parse(key).unwrap();
        let candidates = lexikon_auth::crypto::Candidates::compute(&presented, &ring()).unwrap();
        [candidates.as_slice()[0].to_hex(), candidates.as_slice()[1].to_hex()]
    };
    let row = |id: char, hash: &str, times: [&str; 2]| {
        json!({"write": {
            "id": id.to_string(), "user_id": "user-1", "key_hash": hash, "name": "n", "scopes": "read",
            "is_active": true, "created_at": times[0], "expires_at": times[1],
        }})
    };
    let fraction = ["2026-01-02T03:04:05.678901", "2098-01-01T00:00:00.000001"];
    let whole = ["2026-01-02T03:04:05", "2098-01-01T00:00:00"];
    let past = ["2026-01-02T03:04:05", "2026-01-02T03:04:06"];
    ask(
        &path,
        &[
            row('a', &hashes(&key('a'))[0], fraction),
            row('b', &hashes(&key('b'))[1], whole),
            row('c', &hashes(&key('c'))[0], past),
        ],
    );

    let verified = verifier.verify(&key('a')).await.unwrap();
    assert_eq!(verified.format(), HashFormat::HmacSha256);
    let expiry = SystemTime::UNIX_EPOCH + Duration::from_micros(4_039_372_800_000_001);
    assert_eq!(verified.expires_at(), Some(expiry));
    assert_eq!(verifier.verify(&key('b')).await.unwrap().format(), HashFormat::Sha256);
    let error = verifier.verify(&key('c')).await.unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Expired("c".into())));

    assert_eq!(verifier.flush().await.unwrap().upgraded, 1);
    let verify = |key: String| json!({"verify": key, "secret": SECRET});
    let answers = ask(&path, &[verify(key('a')), verify(key('b')), verify(key('c'))]);
    assert_eq!(answers, [json!("user-1"), json!("user-1"), Value::Null]);
}

#[tokio::test]
async fn a_service_in_a_time_zone_obeys_what_is_written_and_is_obeyed() {
    const HOUR: Duration = Duration::from_secs(3600);
    // Without changes of the clocks: Python's is that of the machine, on whatever day this runs.
    for (zone, posix) in [("Asia/Kathmandu", "<+0545>-5:45"), ("America/Bogota", "<-05>5")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lexikon.sqlite");
        std::fs::write(&path, data::SQLITE).unwrap();
        let store = SqliteStore::open(&path).await.unwrap();
        let store = store.with_time_zone(zone.parse().unwrap()).await.unwrap();
        let manager = KeyManager::new(store.clone(), &ring());
        let verifier = Verifier::new(store.clone(), ring());
        let new = || NewKey::new("user-1", "dated").scopes("read");
        // Closer to now than the zones are to UTC.
        let now = SystemTime::now();
        let past = manager.issue(new()).await.unwrap();
        let ahead = manager.issue(new().expires_at(now + HOUR / 2)).await.unwrap();
        let update = lexikon_auth::KeyUpdate::default().expires_at(now - HOUR / 2);
        manager.update(&past.record.id, update).await.unwrap();

        let verify = |issued: &lexikon_auth::IssuedKey| json!({"verify": issued.key.expose_secret(), "secret": SECRET});
        let answers = ask_in(posix, &path, &[verify(&past), verify(&ahead)]);
        assert_eq!(answers, [Value::Null, json!("user-1")], "{zone}");
        let answer = verifier.verify(ahead.key.expose_secret()).await;
        assert!(answer.is_ok(), "{zone}: {answer:?}");
        let error = verifier.verify(past.key.expose_secret()).await.unwrap_err();
        assert_eq!(error.refusal(), Some(&Refusal::Expired(past.record.id)), "{zone}");
    }
}
