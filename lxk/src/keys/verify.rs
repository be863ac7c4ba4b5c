//! `lxk verify`.

use std::io::{BufRead, Read};

use lexikon_auth::{Policy, VerifiedKey, Verifier, VerifyError};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::database::Database;
use crate::environment::ring;
use crate::failure::Failure;
use crate::output::{Output, pluralize};

/// Longest line that is read, in bytes: no key is longer, and a file without lines is not held in memory.
const LONGEST_LINE: usize = 4096;

/// Verifies keys from standard input, one a line.
pub async fn verify(url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let database = Database::open(url).await?;
    let policy = match database.table.policies(1).await?.first() {
        Some(stored) => Policy::default().legacy(stored.policy),
        None => Policy::default(),
    };
    let verifier = Verifier::new(database.store.clone(), ring).with_policy(policy);
    let (mut refused, mut unavailable) = (0_u64, 0_u64);
    let mut input = std::io::stdin().lock();
    // Allocated at its full size: a buffer that grows leaves copies of keys in freed memory.
    let mut line = Zeroizing::new(Vec::with_capacity(LONGEST_LINE + 1));
    while input.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut line)? > 0 {
        let is_cut = line.len() == LONGEST_LINE && !line.ends_with(b"\n");
        if is_cut {
            input.skip_until(b'\n')?;
        }
        // A line that was cut is not trimmed: spaces after a key may have made it so long, and it is refused.
        let presented = if is_cut { &line } else { line.trim_ascii() };
        let answer = verifier.verify(presented).await;
        match &answer {
            Ok(_) => {}
            Err(VerifyError::Refused(_)) => refused += 1,
            Err(VerifyError::Unavailable(_)) => unavailable += 1,
        }
        output.record(&verdict_object(&answer));
        output.flush();
        line.clear();
    }
    match (unavailable, refused) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::Refused(format!("{} refused", pluralize(refused, "key")))),
        _ => Err(Failure::Unavailable(format!(
            "{} could not be verified; check the database",
            pluralize(unavailable, "key")
        ))),
    }
}

/// Makes an object of what was decided.
fn verdict_object(answer: &Result<VerifiedKey, VerifyError>) -> Value {
    match answer {
        Ok(key) => json!({
            "outcome": "accepted",
            "reason": null,
            "id": key.id().to_string(),
            "owner": key.owner().as_str(),
            "scopes": key.scopes().iter().collect::<Vec<_>>(),
            "format": key.format().as_str(),
        }),
        Err(error) => {
            let (outcome, reason) = match error.refusal() {
                Some(refusal) => ("refused", refusal.as_str()),
                None => ("unavailable", "store"),
            };
            let id = error.refusal().and_then(|refusal| refusal.key_id());
            json!({
                "outcome": outcome,
                "reason": reason,
                "id": id.map(ToString::to_string),
                "owner": null,
                "scopes": [],
                "format": null,
            })
        }
    }
}
