//! `lxk migrate revoke`.

use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::json;

use super::legacy::{Legacy, note_legacy_by_date, note_unknown_formats};
use crate::bulk::{self, Bulk, RUN_AGAIN};
use crate::database::Database;
use crate::failure::Failure;
use crate::listing::print_some;
use crate::output::{Output, pluralize};
use crate::progress::with_spinner;
use crate::times::{ago, format_date, parse_span};

/// Revoke legacy keys, for good
///
/// Refused while any has been used lately, with a list of those.
#[derive(Args)]
#[command(after_help = "Examples:
  lxk migrate revoke --dry-run
  lxk migrate revoke --unused-for 48h")]
pub struct Revoke {
    /// How long none of them may have been used
    #[arg(long, value_parser = parse_span, value_name = "TIME", default_value = "24h")]
    unused_for: Duration,
    /// Revoke them even so
    #[arg(long)]
    force: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    legacy: Legacy,
}

pub async fn run(command: Revoke, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let database = Database::open_to_change_unless(command.dry_run, url).await?;
    let table = &database.table;
    let legacy = command.legacy.keys();
    let in_use = legacy.clone().in_force().used_since(ago(command.unused_for));
    let used = with_spinner(table.count(&in_use)).await?;
    if used > 0 && !command.force {
        print_some(table, &in_use, output).await?;
        return Err(Failure::Refused(format!(
            "{} used in the last {}; tell their owners, or say --force",
            pluralize(used, "legacy key"),
            format_span(command.unused_for)
        )));
    }
    if let Some(dates) = table.deprecation_dates().await?
        && dates.latest > SystemTime::now()
        && !command.force
    {
        return Err(Failure::Refused(format!(
            "owners were given time until {}; wait, or say --force",
            format_date(Some(dates.latest), "")
        )));
    }
    let unrevoked = legacy.clone().unrevoked();
    let total = with_spinner(table.count(&unrevoked)).await?;
    note_legacy_by_date(table, &command.legacy).await?;
    if command.dry_run && !output.is_json() {
        print_some(table, &unrevoked, output).await?;
    }
    let revoked = if command.dry_run {
        total
    } else {
        let change = async |bulk: &mut Bulk| {
            table.revoke_all(&legacy, "stored as plain SHA-256", bulk).await
        };
        bulk::run(&database, total, RUN_AGAIN, change).await?
    };
    output.object(&json!({"dry_run": command.dry_run, "revoked": revoked}));
    let word = if command.dry_run { "would be revoked" } else { "revoked" };
    output.line(format!("{} {word}", pluralize(revoked, "legacy key")));
    note_unknown_formats(table, &command.legacy, output).await?;
    database.check_invalidation().await
}

/// Writes a span of time as it was probably typed.
fn format_span(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds % 3600 == 0 => pluralize(seconds / 3600, "hour"),
        _ => humantime::format_duration(span).to_string(),
    }
}
