//! `lxk revoke` and `lxk expire`.

use std::time::SystemTime;

use clap::Args;
use lexikon_auth::KeyId;
use lexikon_auth::store::KeyStore;
use serde_json::json;

use super::id::{mask, none_found, parse_id};
use crate::bulk::{self, Bulk, RUN_AGAIN};
use crate::database::Database;
use crate::failure::Failure;
use crate::interruption::Interruption;
use crate::output::{Output, pluralize};

/// Revoke keys, for good and at once
#[derive(Args)]
#[command(after_help = "Example:
  lxk revoke 3f0d0c5e-6f0b-4e0e-9d2b-0a4c3f1b7e55 --reason \"laptop lost\"")]
pub struct Revoke {
    /// The ids of the keys
    #[arg(required = true)]
    ids: Vec<String>,
    /// Why, for those who look at the key later
    #[arg(long)]
    reason: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub async fn revoke(
    command: Revoke,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let database = Database::open_to_change(url).await?;
    let reason = command.reason.as_deref();
    if reason.is_some_and(|reason| reason.len() > 1024 || reason.contains('\0')) {
        return Err(Failure::Usage(
            "the reason is longer than 1024 bytes, or has a NUL in it".into(),
        ));
    }
    let ids = command.ids.iter().map(|id| parse_id(id)).collect::<Result<Vec<_>, _>>()?;
    let (outcomes, done) = revoke_each(&ids, reason, command.dry_run, &database).await?;
    let invalidated = if command.dry_run { Ok(()) } else { database.check_invalidation().await };
    // Printed at the end: a slow reader must hold up no revocation.
    let mut missing = Vec::new();
    for (id, outcome) in ids.iter().zip(outcomes) {
        let is_missing = outcome == "not found";
        let id = if is_missing { mask(id) } else { id.to_string() };
        output.object(&json!({"id": id, "outcome": outcome}));
        output.line(format!("{id}  {outcome}"));
        if is_missing {
            missing.push(id);
        }
    }
    match done {
        Ok(()) if missing.is_empty() => invalidated,
        Ok(()) => {
            invalidated?;
            Err(none_found(&missing.join(", ")))
        }
        Err(failure) => Err(failure.and(invalidated)),
    }
}

/// Returns what became of the first ones, and why not of all.
async fn revoke_each(
    ids: &[KeyId],
    reason: Option<&str>,
    is_dry: bool,
    database: &Database,
) -> Result<(Vec<&'static str>, Result<(), Failure>), Failure> {
    let mut outcomes = Vec::with_capacity(ids.len());
    let interruption = Interruption::listen()?;
    let revoke_all = async {
        for id in ids {
            if let Err(Failure::Interrupted(signal, text)) = interruption.check() {
                let text = format!("{text} before {}: run it again for the rest", mask(id));
                return Err(Failure::Interrupted(signal, text));
            }
            outcomes.push(match database.store.find_by_id(id).await? {
                None => "not found",
                Some(record) if is_dry && record.is_revoked() => "revoked already",
                Some(_) if is_dry => "would be revoked",
                Some(record) => {
                    // Again where it is revoked: whoever revoked it may have told no cache.
                    database.store.revoke(id, SystemTime::now(), reason).await?;
                    if record.is_revoked() { "revoked already" } else { "revoked" }
                }
            });
        }
        Ok(())
    };
    let done = revoke_all.await;
    Ok((outcomes, done))
}

/// Mark every key past its expiry as revoked, for readers that look at that alone
#[derive(Args)]
pub struct Expire {
    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,
}

pub async fn expire(
    command: Expire,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let database = Database::open_to_change(url).await?;
    let total = database.table.count_expired().await?;
    if command.dry_run {
        output.object(&json!({"would_expire": total}));
        output.line(format!("{} would be marked", pluralize(total, "key")));
        return Ok(());
    }
    // Nothing changes, so no cache has to be told.
    if total == 0 {
        output.object(&json!({"expired": 0}));
        output.line("0 keys marked");
        return Ok(());
    }
    let change = async |bulk: &mut Bulk| database.table.expire(bulk).await;
    let expired = bulk::run(&database, total, RUN_AGAIN, change).await?;
    output.object(&json!({"expired": expired}));
    output.line(format!("{} marked", pluralize(expired, "key")));
    database.check_invalidation().await
}
