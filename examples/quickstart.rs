//! A tour on a copy of the lexikon service's own database: `cargo run --example quickstart --features
//! sqlite`. It needs no server and leaves nothing behind.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use lexikon_auth::store::SqliteStore;
use lexikon_auth::tasks::DEFAULT_FLUSH_INTERVAL;
use lexikon_auth::{
    KeyManager, LegacyPolicy, NewKey, Policy, Refusal, Rotation, SecretRing, ServerSecret,
    VerifiedKey, Verifier, VerifyError,
};
use serde_json::Value;

/// What the service wrote, and the plaintext of each key with the answer that the service gave.
const DATABASE: &[u8] = include_bytes!("../tests/data/lexikon.sqlite");
const CASES: &str = include_str!("../tests/data/lexikon_sqlite_cases.json");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("lexikon.sqlite");
    std::fs::write(&path, DATABASE)?;
    let cases: Value = serde_json::from_str(CASES)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();

    let secret = ServerSecret::new(&text(&cases["api_key_secret"]).into())?;
    println!("Server secret with fingerprint {}", secret.fingerprint());
    let ring = SecretRing::new(secret);
    let store = SqliteStore::open(&path).await?;
    let policy = Policy::default().legacy(LegacyPolicy::UpgradeOnUse);
    let verifier = Arc::new(Verifier::new(store.clone(), ring.clone()).with_policy(policy));
    let flusher = verifier.spawn_flush(DEFAULT_FLUSH_INTERVAL);

    println!("\nEvery key that the service wrote:\n");
    println!("{:32} {:9} {:12} {:14} scopes or reason", "key", "answer", "format", "owner");
    for case in cases["cases"].as_array().into_iter().flatten() {
        let answer = verifier.verify(&text(&case["key"])).await;
        println!("{:32} {}", text(&case["case"]), describe(&answer));
        let accepted = case["service_answer"] == "accepted";
        assert_eq!(answer.is_ok(), accepted, "the service answered otherwise");
    }

    let flushed = verifier.flush().await?;
    println!("\nWritten: {} last uses, {} legacy hashes upgraded.", flushed.used, flushed.upgraded);
    let legacy = text(&cases["cases"][0]["key"]);
    println!("{:32} {}", "the first key once more", describe(&verifier.verify(&legacy).await));

    let manager = KeyManager::new(store.clone(), &ring);
    let issued = manager.issue(NewKey::new("user-1", "deploy").scopes("read,write")).await?;
    let show = async |what: &str, key: &str| {
        println!("{what:32} {}", describe(&verifier.verify(key).await));
    };
    println!("\nA new key, shown once: {}", issued.key.expose_secret());
    show("issued", issued.key.expose_secret()).await;
    // The tag refuses it without a look-up. A key without a tag, as in the table, is unknown.
    show("its last character changed", &mistyped(issued.key.expose_secret())).await;
    let rotation = Rotation::default().overlap(Duration::ZERO);
    let successor = manager.rotate(&issued.record.id, rotation).await?;
    show("the old key after rotation", issued.key.expose_secret()).await;
    show("its successor", successor.key.expose_secret()).await;
    manager.revoke(&successor.record.id, Some("end of the tour")).await?;
    show("the successor after revocation", successor.key.expose_secret()).await;

    flusher.shutdown().await?;
    store.close().await;
    Ok(())
}

/// The key with another last character.
fn mistyped(key: &str) -> String {
    let (rest, last) = key.split_at(key.len() - 1);
    format!("{rest}{}", if last == "A" { "B" } else { "A" })
}

/// A line of the table.
fn describe(answer: &Result<VerifiedKey, VerifyError>) -> String {
    match answer {
        Ok(key) => {
            let (format, owner) = (key.format().as_str(), key.owner());
            format!("{:9} {format:12} {owner:14} {}", "accepted", key.scopes())
        }
        Err(error) => {
            let reason = error.refusal().map_or("unavailable", Refusal::as_str);
            format!("{:9} {:12} {:14} {reason}", "refused", "", "")
        }
    }
}
