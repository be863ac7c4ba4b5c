//! `lxk list` and `lxk show`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use lexikon_auth::admin::{KeyFilter, KnownFormat};
use lexikon_auth::store::KeyStore;

use super::id::{not_found, parse_id};
use crate::database::Database;
use crate::failure::Failure;
use crate::listing::{format_name, print_header, print_record, record_object, state};
use crate::output::{Output, pluralize};
use crate::times::{ago, ahead, format_date, parse_span};

/// List keys
#[derive(Args)]
#[command(after_help = "Examples:
  lxk list --owner user-1
  lxk list --format sha256 --unused-since 90d
  lxk --json list --expiring-in 7d")]
pub struct List {
    /// Of this owner alone
    #[arg(long)]
    owner: Option<String>,
    /// Whose hash is known to have this format
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// That have not been used for so long, such as 30d
    #[arg(long, value_parser = parse_span, value_name = "TIME")]
    unused_since: Option<Duration>,
    /// That are in force and expire within so long, such as 7d
    #[arg(long, value_parser = parse_span, value_name = "TIME")]
    expiring_in: Option<Duration>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    #[value(name = "hmac-sha256")]
    HmacSha256,
    Sha256,
    Unknown,
}

pub async fn list(command: List, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let database = Database::open(url).await?;
    let mut filter = KeyFilter::default();
    if let Some(owner) = command.owner {
        filter = filter.owner(owner);
    }
    if let Some(format) = command.format {
        filter = filter.format(match format {
            Format::HmacSha256 => KnownFormat::HmacSha256,
            Format::Sha256 => KnownFormat::Sha256,
            Format::Unknown => KnownFormat::Unknown,
        });
    }
    if let Some(span) = command.unused_since {
        filter = filter.unused_since(ago(span));
    }
    if let Some(span) = command.expiring_in {
        filter = filter.in_force().expiring_before(ahead(span)?);
    }
    let mut count = 0;
    database
        .table
        .each_key(&filter, |key| {
            if count == 0 {
                print_header(output);
            }
            count += 1;
            print_record(&key.record, output);
            output.check_reader()
        })
        .await?;
    output.line(pluralize(count, "key"));
    Ok(())
}

/// Show one key
#[derive(Args)]
pub struct Show {
    /// The id of the key
    id: String,
}

pub async fn show(command: Show, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let database = Database::open(url).await?;
    let id = parse_id(&command.id)?;
    let record = database.store.find_by_id(&id).await?.ok_or_else(|| not_found(&id))?;
    output.object(&record_object(&record));
    if output.is_json() {
        return Ok(());
    }
    let owner = if record.owner_active { "" } else { " (missing or not active)" };
    output.line(format!("id         {}", record.id));
    output.line(format!("owner      {}{owner}", record.owner));
    output.line(format!("name       {}", record.name));
    output.line(format!("scopes     {}", record.scopes));
    output.line(format!("format     {}", format_name(&record)));
    output.line(format!("state      {}", state(&record)));
    output.line(format!("created    {}", format_date(record.created_at, "unknown")));
    output.line(format!("last used  {}", format_date(record.last_used_at, "never")));
    output.line(format!("expires    {}", format_date(record.expires_at, "never")));
    if let Some(revocation) = &record.revocation {
        output.line(format!("revoked    {}", format_date(revocation.at, "at an unknown time")));
        output.line(format!("reason     {}", revocation.reason.as_deref().unwrap_or("unknown")));
    }
    Ok(())
}
