//! `lxk migrate owners`.

use std::time::SystemTime;

use clap::Args;
use lexikon_auth::admin::{KeyFilter, KeyTable, ListedKey};
use serde_json::json;

use super::legacy::Legacy;
use crate::database::Database;
use crate::escape::cell;
use crate::failure::Failure;
use crate::output::{Output, pluralize};
use crate::progress::with_spinner;
use crate::times::{format_date, json_time, timestamp};

/// List the owners who have to be told, with their legacy keys in force
#[derive(Args)]
#[command(after_help = "Example:\n  lxk migrate owners --csv > owners.csv")]
pub struct Owners {
    /// Print comma-separated values, with a header
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    legacy: Legacy,
}

pub async fn run(command: Owners, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let table = Database::open(url).await?.table;
    let filter = command.legacy.keys().in_force().by_owner();
    if command.csv {
        write_csv(&table, &filter, output).await
    } else {
        list(&table, &filter, output).await
    }
}

async fn write_csv(
    table: &KeyTable,
    filter: &KeyFilter,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut csv = csv::Writer::from_writer(output);
    csv.write_record(["owner", "email", "key_id", "key_name", "last_used_at", "expires_at"])?;
    let listed = table.each_key(filter, |ListedKey { record, email, .. }| {
        let time = |time: Option<SystemTime>| time.and_then(timestamp).unwrap_or_default();
        csv.write_record([
            cell(record.owner.as_str()),
            cell(email.as_deref().unwrap_or_default()),
            cell(&record.id.to_string()),
            cell(&record.name),
            time(record.last_used_at),
            time(record.expires_at),
        ])?;
        csv.get_ref().check_reader()
    });
    with_spinner(listed).await?;
    Ok(csv.flush()?)
}

async fn list(table: &KeyTable, filter: &KeyFilter, output: &mut Output) -> Result<(), Failure> {
    let mut owner = None;
    let (mut owners, mut keys) = (0, 0);
    let listed = table.each_key(filter, |ListedKey { record, email, .. }| {
        output.object(&json!({
            "owner": record.owner.as_str(),
            "email": email,
            "key_id": record.id.to_string(),
            "key_name": record.name,
            "last_used_at": json_time(record.last_used_at),
            "expires_at": json_time(record.expires_at),
        }));
        if owner.as_ref() != Some(&record.owner) {
            output.line(format!("{}  {}", record.owner, email.unwrap_or_default()));
            owners += 1;
        }
        keys += 1;
        output.line(format!(
            "  {}  {}, last used {}, expires {}",
            record.id,
            record.name,
            format_date(record.last_used_at, "never"),
            format_date(record.expires_at, "never")
        ));
        owner = Some(record.owner);
        output.check_reader()
    });
    listed.await?;
    output.line(format!("{} of {}", pluralize(keys, "key"), pluralize(owners, "owner")));
    Ok(())
}
