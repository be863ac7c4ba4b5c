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
    },
}

pub async fn run(command: Command, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let is_dry = matches!(command, Command::Show | Command::Apply { dry_run: true });
    let database = match is_dry {
        true => Database::open(url).await?,
        false => Database::open_or_create(url).await?,
    };
    let missing = database.table.missing_schema().await?;
    for statement in &missing {
        let lines = statement.lines().map(str::trim_end).filter(|line| !line.trim().is_empty());
        let statement = lines.collect::<Vec<_>>().join("\n");
        let statement = format!("{};", statement.trim_end_matches(';'));
        output.object(&json!({"statement": statement}))?;
        for line in statement.lines() {
            output.line(line)?;
        }
    }
    if missing.is_empty() {
        return output.line("All is there.");
    }
    if is_dry {
        return output.line(format!("{} to run", missing.len()));
    }
    output.flush()?;
    database.table.extend_schema().await?;
    output.object(&json!({"applied": missing.len()}))?;
    output.line(format!("{} applied.", missing.len()))
}
