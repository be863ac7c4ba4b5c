//! `lxk migrate deprecate`.

use std::time::{Duration, SystemTime};

use clap::Args;
use lexikon_auth::admin::DeprecatedKeys;
use serde_json::json;

use super::legacy::{Legacy, note_legacy_by_date, note_unknown_formats};
use crate::bulk::{self, Bulk, RUN_AGAIN};
use crate::database::Database;
use crate::failure::Failure;
use crate::output::{Output, pluralize, stderr_line};
use crate::progress::with_spinner;
use crate::times::{ahead, format_date, json_time, parse_date, parse_span, timestamp};

/// Have legacy keys expire, in instances of every version, or take that back
///
/// Sets their expiry to the date, never later than they had, and remembers what it was.
#[derive(Args)]
#[command(after_help = "Examples:
  lxk migrate deprecate --revoke-in 7d --dry-run
  lxk migrate deprecate --revoke-in 7d
  lxk migrate deprecate --undo")]
pub struct Deprecate {
    /// When they expire, such as 7d
    #[arg(long, value_parser = parse_span, value_name = "TIME", required_unless_present_any = ["undo", "revoke_at"])]
    revoke_in: Option<Duration>,
    /// The same as a date: to go on with what was interrupted
    #[arg(long, value_parser = parse_date, value_name = "DATE", conflicts_with = "revoke_in")]
    revoke_at: Option<SystemTime>,
    /// Give keys back the expiry that they had
    #[arg(long, conflicts_with_all = ["revoke_in", "revoke_at", "before"])]
    undo: bool,
    /// With --undo: only keys whose hash has been upgraded since
    #[arg(long, requires = "undo")]
    upgraded: bool,
    /// Only say how many keys would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    legacy: Legacy,
}

pub async fn run(
    command: Deprecate,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let database = Database::open_to_change_unless(command.dry_run, url).await?;
    let table = &database.table;
    let now = SystemTime::now();
    let expires_at = match (command.revoke_in, command.revoke_at) {
        (Some(span), _) => to_whole_minutes(ahead(span)?, span),
        (None, Some(date)) if date <= now => {
            return Err(Failure::Usage("that date has passed; choose a later one".to_owned()));
        }
        (None, Some(date)) => date,
        (None, None) => return undo(&command, &database, output).await,
    };
    let filter = command.legacy.keys();
    let total = with_spinner(table.count_deprecatable(&filter, expires_at)).await?;
    let word = if command.dry_run { "would be set" } else { "set" };
    note_legacy_by_date(table, &command.legacy).await?;
    let changed = if command.dry_run {
        total
    } else {
        let again = timestamp(expires_at).unwrap_or_default();
        // Printed before anything can be interrupted.
        stderr_line(format_args!("note: to go on after an interruption, say --revoke-at {again}"));
        let resume = format!("say --revoke-at {again}");
        let change = async |bulk: &mut Bulk| table.deprecate(&filter, expires_at, bulk).await;
        bulk::run(&database, total, &resume, change).await?
    };
    output.object(&json!({
        "dry_run": command.dry_run,
        "deprecated": changed,
        "expires_at": json_time(Some(expires_at)),
    }));
    output.line(format!(
        "the expiry of {} {word} to {}; take it back with: lxk migrate deprecate --undo",
        pluralize(changed, "legacy key"),
        format_date(Some(expires_at), "")
    ));
    if let Some(dates) = table.deprecation_dates().await?
        && dates.earliest < to_microseconds(expires_at)
    {
        let earliest = format_date(Some(dates.earliest), "");
        output.line(format!("others were given an earlier date before, from {earliest} on"));
    }
    note_unknown_formats(table, &command.legacy, output).await?;
    database.check_invalidation().await
}

/// Rounds a date up to a minute, where a minute more does not matter, so that it is easily typed again.
fn to_whole_minutes(time: SystemTime, span: Duration) -> SystemTime {
    const HOUR: Duration = Duration::from_secs(3600);
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if span < HOUR {
        return time;
    }
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs().div_ceil(60) * 60)
}

/// Returns a date as databases keep it.
fn to_microseconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_micros(since.as_micros() as u64)
}

async fn undo(
    command: &Deprecate,
    database: &Database,
    output: &mut Output,
) -> Result<(), Failure> {
    let table = &database.table;
    let keys = if command.upgraded { DeprecatedKeys::Upgraded } else { DeprecatedKeys::All };
    let total = with_spinner(table.count_deprecated(keys)).await?;
    if command.dry_run {
        output.object(&json!({"dry_run": true, "restored": total}));
        output.line(format!("the expiry of {} would be restored", pluralize(total, "key")));
        return Ok(());
    }
    let change = async |bulk: &mut Bulk| table.undo_deprecation(keys, bulk).await;
    let restored = bulk::run(database, total, RUN_AGAIN, change).await?;
    output.object(&json!({"dry_run": false, "restored": restored}));
    output.line(format!("the expiry of {} restored", pluralize(restored, "key")));
    database.check_invalidation().await
}
