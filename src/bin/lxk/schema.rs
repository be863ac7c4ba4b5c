//! The additive changes to the schema.

use clap::Subcommand;
use serde_json::json;

use crate::database::Database;
use crate::failure::Failure;
use crate::output::Output;

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
}

pub async fn run(command: Command, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let is_dry = matches!(command, Command::Show | Command::Apply { dry_run: true, .. });
    let database = match command {
        Command::Apply { create: true, .. } => Database::open_or_create(url).await?,
        _ => Database::open(url).await?,
    };
    let missing = database.table.missing_schema().await?;
    if !is_dry && !missing.is_empty() {
        // What is printed is what was run.
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
