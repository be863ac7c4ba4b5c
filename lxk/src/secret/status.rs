//! `lxk secret rotate status`.

use std::time::Duration;

use clap::Args;
use lexikon_auth::admin::KnownSecret;
use serde_json::json;

use super::known::{Legacy, current_since};
use crate::database::Database;
use crate::environment::ring;
use crate::failure::Failure;
use crate::output::{Output, columns, pluralize};
use crate::progress::with_spinner;
use crate::times::{ago, format_date, json_time};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Show the secrets, and which keys still need an old one
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    legacy: Legacy,
}

pub async fn run(
    Status { legacy }: Status,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let ring = ring()?;
    let table = Database::open(url).await?.table;
    let current = ring.current().fingerprint().to_string();
    let known = table.secrets().await?;
    print(&known, &current, output);
    let Some(since) = current_since(&known, &current) else {
        output.object(&json!({"needing_older": null, "needing_older_used_in_week": null}));
        output.line(
            "It is not noted since when every instance has the current secret; once it does, run: \
             lxk secret rotate switch",
        );
        return Ok(());
    };
    let bound = legacy.keys_of_older_secrets(since);
    let keys = with_spinner(table.count(&bound)).await?;
    let used = with_spinner(table.count(&bound.used_since(ago(WEEK)))).await?;
    output.object(&json!({"needing_older": keys, "needing_older_used_in_week": used}));
    output.line(format!(
        "{} may need an older secret, {used} of them used in the last 7 days",
        pluralize(keys, "key")
    ));
    Ok(())
}

fn print(known: &[KnownSecret], current: &str, output: &mut Output) {
    const WIDTHS: [usize; 3] = [16, 17, 17];
    output.line(columns(["fingerprint", "added", "current since"], WIDTHS));
    for KnownSecret { fingerprint, added_at, current_since, .. } in known {
        let role = if fingerprint == current { "  <- API_KEY_SECRET" } else { "" };
        output.object(&json!({
            "fingerprint": fingerprint,
            "added_at": json_time(*added_at),
            "current_since": json_time(*current_since),
            "current": fingerprint == current,
        }));
        let (added, since) = (format_date(*added_at, "unknown"), format_date(*current_since, "-"));
        output.line(columns([fingerprint, &added, &(since + role)], WIDTHS));
    }
}
