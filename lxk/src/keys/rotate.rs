//! `lxk rotate`.

use std::time::{Duration, SystemTime};

use clap::Args;
use lexikon_auth::{KeyManager, KeyUpdate, Rotation, StoreError};
use serde_json::json;

use super::id::{not_found, parse_id};
use super::print_once::{interrupted_after, print_or_revoke};
use crate::database::Database;
use crate::environment::ring;
use crate::failure::Failure;
use crate::interruption::Interruption;
use crate::output::Output;
use crate::times::{ahead, parse_span};

/// Replace a key: issue a successor, and let the old one expire
#[derive(Args)]
#[command(after_help = "Example:
  lxk rotate 3f0d0c5e-6f0b-4e0e-9d2b-0a4c3f1b7e55 --overlap 24h")]
pub struct Rotate {
    /// The id of the key
    id: String,
    /// How long the old key stays valid, such as 24h; not at all unless given
    #[arg(long, value_parser = parse_span, value_name = "TIME", default_value = "0s")]
    overlap: Duration,
    /// Only say whether it can be done
    #[arg(long)]
    dry_run: bool,
}

pub async fn rotate(
    command: Rotate,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let ring = ring()?;
    let id = parse_id(&command.id)?;
    let database = Database::open_to_change(url).await?;
    database.check_secret(&ring).await?;
    let manager = KeyManager::new(database.store.clone(), &ring);
    let old_until = ahead(command.overlap)?;
    let rotation = Rotation::default().overlap(command.overlap);
    let old = manager.find(&id).await?.ok_or_else(|| not_found(&id))?;
    if command.dry_run {
        if old.is_revoked() || old.is_expired(SystemTime::now()) {
            return Err(StoreError::NotInForce(old.id.clone()).into());
        }
        output.object(&json!({"id": old.id.to_string(), "outcome": "would be rotated"}));
        output.line(format!("{}  would be rotated", old.id));
        return Ok(());
    }
    // Ended between the write and the print, the command would lose both keys.
    let interruption = Interruption::listen()?;
    let issued = manager.rotate(&old.id, rotation).await?;
    let old_until = old.expires_at.map_or(old_until, |date| date.min(old_until));
    if let Err(failure) = print_or_revoke(&issued, Some(old_until), &manager, output).await {
        // Nobody has the successor, so the old key gets its expiry back.
        let restored = KeyUpdate::default();
        let restored = match old.expires_at {
            Some(date) => restored.expires_at(date),
            None => restored.never_expires(),
        };
        manager.update(&old.id, restored).await?;
        return Err(failure.and(database.check_invalidation().await));
    }
    let invalidated = database.check_invalidation().await;
    match interruption.check() {
        Ok(()) => invalidated,
        Err(failure) => Err(interrupted_after(failure, "the key was rotated").and(invalidated)),
    }
}
