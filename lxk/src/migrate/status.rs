//! `lxk migrate status`.

use std::time::Duration;

use clap::Args;
use lexikon_auth::admin::{KnownFormat, LastUses};
use serde_json::json;

use super::legacy::Legacy;
use super::policy::{policy_line, policy_object};
use crate::database::Database;
use crate::failure::Failure;
use crate::output::{Output, columns, pluralize};
use crate::progress::with_spinner;
use crate::times::ago;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Show how far the migration is
///
/// The format of a key is known from its row, where issuing, use or an upgrade has marked it, and from
/// --before. Otherwise it is unknown: both formats look alike.
#[derive(Args)]
#[command(after_help = "Example:\n  lxk migrate status --before 2026-11-01")]
pub struct Status {
    #[command(flatten)]
    legacy: Legacy,
}

pub async fn run(
    Status { legacy }: Status,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let table = Database::open(url).await?.table;
    let status = with_spinner(table.migration_status(legacy.before)).await?;
    const WIDTHS: [usize; 7] = [11, 10, 8, 8, 9, 8, 8];
    let names = ["format", "known from", "keys", "in force", "used 24 h", "used 7 d", "owners"];
    output.line(columns(names, WIDTHS));
    for class in &status.classes {
        let known_from = match (class.format, class.by_date) {
            (KnownFormat::Unknown, _) => "-",
            (_, true) => "date",
            (_, false) => "row",
        };
        output.object(&json!({
            "format": class.format.as_str(),
            "known_from": (class.format != KnownFormat::Unknown).then_some(known_from),
            "keys": class.keys,
            "in_force": class.in_force,
            "used_in_day": class.used_in_day,
            "used_in_week": class.used_in_week,
            "owners": class.owners,
        }));
        let cells = [
            class.format.as_str(),
            known_from,
            &class.keys.to_string(),
            &class.in_force.to_string(),
            &class.used_in_day.to_string(),
            &class.used_in_week.to_string(),
            &class.owners.to_string(),
        ];
        output.line(columns(cells, WIDTHS));
    }
    let policies = table.policies(1).await?;
    let impact = status.impact;
    output.object(&json!({
        "policy": policies.first().map(policy_object),
        "would_break": impact.keys,
        "would_break_used_in_week": impact.used_in_week,
        "would_break_owners": impact.owners,
        "may_break": impact.unknown,
    }));
    output.line("");
    output.line(format!("policy   {}", policy_line(policies.first())));
    output.line(format!(
        "refusing legacy keys now would break {} of {}, {} of them used in the last 7 days",
        pluralize(impact.keys, "key"),
        pluralize(impact.owners, "owner"),
        impact.used_in_week
    ));
    if impact.unknown > 0 {
        let more = if legacy.before.is_none() { "; --before DATE tells more" } else { "" };
        let unknown = pluralize(impact.unknown, "key");
        output.line(format!("and perhaps some of {unknown} of unknown format{more}"));
    }
    let used = legacy.keys().used_since(ago(30 * DAY));
    print_chart(&with_spinner(table.last_uses_by_day(&used)).await?, output);
    Ok(())
}

/// Prints when legacy keys were last used, a bar a day.
fn print_chart(days: &[LastUses], output: &mut Output) {
    const WIDTH: u64 = 40;
    let Some(most) = days.iter().map(|uses| uses.keys).max() else { return };
    output.line("");
    output.line("legacy keys by the day of their last use, as far as it has been recorded");
    for LastUses { day, keys: count, .. } in days {
        output.object(&json!({"day": day, "last_used": count}));
        let bar = "█".repeat((count * WIDTH).div_ceil(most) as usize);
        output.line(format!("{day}  {bar} {count}"));
    }
}
