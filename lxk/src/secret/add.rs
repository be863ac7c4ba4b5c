//! `lxk secret rotate add`.

use clap::Args;
use serde_json::json;

use super::known::find;
use crate::database::Database;
use crate::environment::ring;
use crate::failure::Failure;
use crate::output::Output;

/// Let the database know every secret of the environment
#[derive(Args)]
pub struct Add {
    /// Only say what would be added
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(command: Add, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let table = Database::open(url).await?.table;
    let known = table.secrets().await?;
    for secret in ring.secrets() {
        let fingerprint = secret.fingerprint().to_string();
        let outcome = if find(&known, &fingerprint).is_some() {
            "known already"
        } else if command.dry_run {
            "would be added"
        } else {
            table.add_secret(secret).await?;
            "added"
        };
        output.object(&json!({"fingerprint": fingerprint, "outcome": outcome}));
        output.line(format!("{fingerprint}  {outcome}"));
    }
    Ok(())
}
