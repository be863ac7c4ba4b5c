//! `lxk secret rotate remove`.

use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::known::{Legacy, current_since, find};
use crate::database::Database;
use crate::environment::ring;
use crate::escape::MASKED;
use crate::failure::Failure;
use crate::listing::print_some;
use crate::output::{Output, Severity, pluralize};
use crate::progress::with_spinner;

/// Forget an old secret, once no key needs it
#[derive(Args)]
pub struct Remove {
    /// Its fingerprint, as status shows it
    fingerprint: String,
    #[command(flatten)]
    legacy: Legacy,
    /// Forget it even so: no key was issued under it, as when it was added by mistake
    #[arg(long)]
    force: bool,
    /// Only check that it can go
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(command: Remove, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let Remove { fingerprint, legacy, force, dry_run } = command;
    let ring = ring()?;
    let table = Database::open(url).await?.table;
    let known = table.secrets().await?;
    let current = ring.current().fingerprint().to_string();
    if find(&known, &fingerprint).is_none() {
        // The secret itself may have been typed in its place.
        let is_fingerprint = fingerprint.len() == 16 && hex::decode(&fingerprint).is_ok();
        let fingerprint = if is_fingerprint { &fingerprint } else { MASKED };
        return Err(Failure::Refused(format!(
            "the database does not know {fingerprint}; lxk secret rotate status lists what it knows"
        )));
    }
    if fingerprint == current {
        let problem =
            "this is the current secret; swap API_KEY_SECRET and API_KEY_SECRET_PREVIOUS first";
        return Err(Failure::Refused(problem.to_owned()));
    }
    let since = current_since(&known, &current).or(force.then_some(SystemTime::UNIX_EPOCH));
    let Some(since) = since else {
        let problem = "it is not noted since when every instance has the current secret; run first: \
             lxk secret rotate switch";
        return Err(Failure::Refused(problem.to_owned()));
    };
    let bound = legacy.keys_of_older_secrets(since);
    let needing = with_spinner(table.count(&bound)).await?;
    if needing > 0 && !force {
        print_some(&table, &bound, output).await?;
        return Err(Failure::Refused(format!(
            "{} may still need it; rotate or revoke them first, or wait for their expiry",
            pluralize(needing, "key")
        )));
    }
    if !dry_run {
        table.forget_secret(&fingerprint).await?;
    }
    let outcome = if dry_run { "could be removed" } else { "removed" };
    output.object(&json!({"fingerprint": fingerprint, "outcome": outcome}));
    output.status(Severity::Ok, outcome, &fingerprint);
    output.line("Take it from API_KEY_SECRET_PREVIOUS of every instance.");
    Ok(())
}
