//! The additive changes to the schema.

use clap::{Args, Subcommand};
use lexikon_auth::admin::ZoneReplacement;
use lexikon_auth::store::TimeZone;
use serde_json::json;

use crate::database::Database;
use crate::environment::variable;
use crate::failure::Failure;
use crate::output::Output;
use crate::times::parse_zone;

#[derive(Subcommand)]
pub enum Command {
    /// Print the statements that would be run; none where all is there
    Show,
    /// Run them, also on a live table: no row is rewritten
    Apply {
        /// Only print them
        #[arg(long)]
        dry_run: bool,
        /// Make a new database, which its owner alone may read, or the tables in an empty one
        #[arg(long, conflicts_with = "dry_run")]
        create: bool,
    },
    TimeZone(ZoneCommand),
}

/// Show the time zone of dates that do not say theirs, or have the database keep it
///
/// The zone that the service ran in: expires_at and last_used_at are its local time.
#[derive(Args)]
#[command(after_help = "Examples:
  lxk schema time-zone
  lxk schema time-zone Europe/Paris
  lxk schema time-zone America/New_York --replace Europe/Paris")]
pub struct ZoneCommand {
    /// Its name in the IANA database
    #[arg(value_parser = parse_zone)]
    zone: Option<TimeZone>,
    /// The zone that the database keeps, and that is wrong; stop all instances first
    #[arg(long, value_parser = parse_zone, value_name = "ZONE", requires = "zone")]
    replace: Option<TimeZone>,
}

pub async fn run(command: Command, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Show => apply(Database::open(url).await?, true, output).await,
        Command::Apply { create: true, .. } => {
            apply(Database::open_or_create(url).await?, false, output).await
        }
        Command::Apply { dry_run, .. } => apply(Database::open(url).await?, dry_run, output).await,
        Command::TimeZone(command) => time_zone(command, url, output).await,
    }
}

/// Prints the statements that are missing, and runs them unless it is a dry run.
async fn apply(database: Database, is_dry: bool, output: &mut Output) -> Result<(), Failure> {
    let missing = database.table.missing_schema().await?;
    let mut missing: Vec<_> = missing.into_iter().map(str::to_owned).collect();
    if variable("LEXIKON_TIME_ZONE").is_some() && database.table.kept_time_zone().await?.is_none() {
        missing.push(format!(
            "INSERT INTO lexikon_auth_settings (name, value) VALUES ('time_zone', '{}')",
            database.table.time_zone()
        ));
    }
    if !is_dry && !missing.is_empty() {
        // Before anything is printed, so that what is printed has been run.
        database.table.extend_schema().await.map_err(|error| match Failure::from(error) {
            Failure::Unavailable(text) => Failure::Unavailable(format!(
                "{text}; perhaps another transaction holds the table, so run it again: what was added \
                 stays"
            )),
            failure => failure,
        })?;
    }
    for statement in &missing {
        let lines = statement.lines().map(str::trim_end).filter(|line| !line.trim().is_empty());
        let statement = lines.collect::<Vec<_>>().join("\n");
        let statement = format!("{};", statement.trim_end_matches(';'));
        output.object(&json!({"statement": statement}));
        for line in statement.lines() {
            output.line(line);
        }
    }
    if missing.is_empty() {
        output.line("All is there.");
    } else if is_dry {
        output.line(format!("{} to run", missing.len()));
    } else {
        output.line(format!("{} applied.", missing.len()));
    }
    let counted = if is_dry { "missing" } else { "applied" };
    output.object(&json!({counted: missing.len()}));
    Ok(())
}

async fn time_zone(
    command: ZoneCommand,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let table = Database::open(url).await?.table;
    let before = table.kept_time_zone().await?;
    match (&command.zone, &command.replace) {
        (None, _) => {}
        (Some(zone), None) => table.keep_time_zone(zone).await?,
        (Some(right), Some(wrong)) => {
            table.replace_time_zone(ZoneReplacement { wrong, right }).await?;
        }
    }
    let kept = table.kept_time_zone().await?;
    let zone = kept.as_ref().unwrap_or(table.time_zone());
    output.object(&json!({"time_zone": zone.name(), "kept": kept.is_some()}));
    match &kept {
        Some(zone) => output.line(format!("{zone}, kept by the database")),
        None => output.line(format!("{zone}; the database keeps none")),
    }
    if kept == before {
        return Ok(());
    }
    output.line("Start every instance again, and have Redis forget: lxk cache clear --all");
    Ok(())
}
