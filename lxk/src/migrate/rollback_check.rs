//! `lxk migrate rollback-check`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use lexikon_auth::LegacyPolicy;
use lexikon_auth::admin::{KeyFilter, KnownFormat};
use serde_json::json;

use super::legacy::Legacy;
use crate::database::Database;
use crate::failure::Failure;
use crate::listing::print_some;
use crate::output::{Output, Severity, pluralize};
use crate::progress::with_spinner;
use crate::times::json_time;

/// Show what a rollback to older code would do; exit code 1 when that is anything
///
/// v0.9 knows SHA-256 alone, v1.0 HMAC-SHA-256 under API_KEY_SECRET alone.
#[derive(Args)]
#[command(after_help = "Example:\n  lxk migrate rollback-check --to v0.9")]
pub struct RollbackCheck {
    /// The version
    #[arg(long, value_enum)]
    to: Version,
    #[command(flatten)]
    legacy: Legacy,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Version {
    #[value(name = "v0.9")]
    V0_9,
    #[value(name = "v1.0")]
    V1_0,
}

pub async fn run(
    command: RollbackCheck,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let table = Database::open(url).await?.table;
    let refuses_legacy = match table.policies(1).await?.first().map(|stored| stored.policy) {
        Some(LegacyPolicy::Refuse) => true,
        Some(LegacyPolicy::AcceptUntil(date)) => date <= SystemTime::now(),
        _ => false,
    };
    let of = |format| {
        KeyFilter::default().format(format).first_deployed(command.legacy.before).in_force()
    };
    let (stops, kept) = match command.to {
        Version::V0_9 => (KnownFormat::HmacSha256, KnownFormat::Sha256),
        Version::V1_0 => (KnownFormat::Sha256, KnownFormat::HmacSha256),
    };
    let mut effects = vec![
        ("stops", "would no longer be accepted", of(stops)),
        ("may_stop", "of unknown format may no longer be accepted", of(KnownFormat::Unknown)),
    ];
    if refuses_legacy && kept == KnownFormat::Sha256 {
        effects.push(("reopens", "are refused now, and would be accepted again", of(kept)));
    }
    if refuses_legacy && stops == KnownFormat::Sha256 {
        // The policy refuses them already: nothing changes for them.
        effects.remove(0);
    }
    let mut counts = BTreeMap::new();
    for (effect, meaning, filter) in &effects {
        let count = with_spinner(table.count(filter)).await?;
        counts.insert(*effect, count);
        let severity = if count == 0 { Severity::Ok } else { Severity::Error };
        output.status(
            severity,
            &effect.replace('_', " "),
            &format!("{} {meaning}", pluralize(count, "key")),
        );
        if count > 0 {
            if output.is_json() {
                let listed = table.each_key(filter, |key| {
                    output.object(&json!({
                        "effect": effect,
                        "id": key.record.id.to_string(),
                        "owner": key.record.owner.as_str(),
                        "last_used_at": json_time(key.record.last_used_at),
                    }));
                    Ok::<_, Failure>(())
                });
                listed.await?;
            } else {
                print_some(&table, filter, output).await?;
            }
        }
    }
    output.object(&json!({"counts": counts}));
    match counts.values().sum() {
        0 => Ok(()),
        count => Err(Failure::Refused(format!("{} concerned", pluralize(count, "key")))),
    }
}
