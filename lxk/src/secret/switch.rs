//! `lxk secret rotate switch`.

use clap::Args;
use serde_json::json;

use super::known::{current_since, find, unknown};
use crate::database::Database;
use crate::environment::ring;
use crate::failure::Failure;
use crate::output::Output;
use crate::times::{format_date, json_time};

/// Say that every instance has API_KEY_SECRET as its current secret, from now on
#[derive(Args)]
pub struct Switch {
    /// Only check that it can be said
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(command: Switch, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let table = Database::open(url).await?.table;
    let fingerprint = ring.current().fingerprint().to_string();
    let known = table.secrets().await?;
    let Some(current) = find(&known, &fingerprint) else { return Err(unknown(&ring)) };
    let is_newer = |retired: &String| {
        find(&known, retired).and_then(|secret| secret.added_at) > current.added_at
    };
    let mut retired = ring.fingerprints().skip(1).map(|fingerprint| fingerprint.to_string());
    if let Some(newer) = retired.find(is_newer) {
        return Err(Failure::Refused(format!(
            "API_KEY_SECRET_PREVIOUS holds {newer}, which is newer; swap the two on every instance first"
        )));
    }
    if command.dry_run {
        output.object(&json!({"fingerprint": fingerprint, "outcome": "would be noted"}));
        output.line(format!("{fingerprint} would be noted as the current secret"));
        return Ok(());
    }
    table.switch_to_secret(ring.current()).await?;
    // It stays what it was where a switch to it was noted before.
    let since = current_since(&table.secrets().await?, &fingerprint);
    output.object(&json!({"fingerprint": fingerprint, "current_since": json_time(since)}));
    output
        .line(format!("{fingerprint}  is the current secret since {}", format_date(since, "now")));
    Ok(())
}
