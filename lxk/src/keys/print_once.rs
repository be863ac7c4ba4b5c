//! What ends the commands that make a key: it is printed, once.

use std::time::SystemTime;

use lexikon_auth::store::DynKeyStore;
use lexikon_auth::{IssuedKey, KeyManager};
use serde_json::json;

use crate::failure::Failure;
use crate::output::Output;
use crate::times::{format_date, json_time};

/// Prints a new key. Where it cannot be printed, nobody has it, and it is revoked.
pub async fn print_or_revoke(
    issued: &IssuedKey,
    old_until: Option<SystemTime>,
    manager: &KeyManager<DynKeyStore>,
    output: &mut Output,
) -> Result<(), Failure> {
    let IssuedKey { key, record, .. } = issued;
    let id = record.id.to_string();
    let print = |output: &mut Output| {
        output.object(&json!({
            "id": id,
            "key": key.expose_secret(),
            "owner": record.owner.as_str(),
            "name": record.name,
            "scopes": record.scopes.iter().collect::<Vec<_>>(),
            "expires_at": json_time(record.expires_at),
        }));
        output.line(format!("id       {id}"));
        output.line(format!("key      {}", key.expose_secret()));
        output.line(format!("expires  {}", format_date(record.expires_at, "never")));
        if let Some(until) = old_until {
            output.line(format!("old key  refused from {} on", format_date(Some(until), "")));
        }
        output.line("The key is shown here, and nowhere else again.");
        output.deliver()
    };
    let Err(problem) = print(output) else { return Ok(()) };
    manager.revoke(&record.id, Some("could not be printed")).await?;
    Err(Failure::Unavailable(format!("key {id} could not be printed ({problem}), and was revoked")))
}

/// Says of a signal that it came too late to change anything.
pub fn interrupted_after(failure: Failure, what: &str) -> Failure {
    match failure {
        Failure::Interrupted(signal, text) => {
            Failure::Interrupted(signal, format!("{text} after {what}"))
        }
        failure => failure,
    }
}
