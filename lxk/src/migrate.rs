//! The steps of the migration from SHA-256.

mod deprecate;
mod legacy;
mod owners;
mod policy;
mod revoke;
mod rollback_check;
mod status;

use clap::Subcommand;

use crate::failure::Failure;
use crate::output::Output;

#[derive(Subcommand)]
pub enum Command {
    Status(status::Status),
    /// Show the policy that instances follow, or set it
    Policy(policy::Policy),
    Owners(owners::Owners),
    Deprecate(deprecate::Deprecate),
    Revoke(revoke::Revoke),
    RollbackCheck(rollback_check::RollbackCheck),
}

pub async fn run(command: Command, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Status(command) => status::run(command, url, output).await,
        Command::Policy(command) => policy::run(command, url, output).await,
        Command::Owners(command) => owners::run(command, url, output).await,
        Command::Deprecate(command) => deprecate::run(command, url, output).await,
        Command::Revoke(command) => revoke::run(command, url, output).await,
        Command::RollbackCheck(command) => rollback_check::run(command, url, output).await,
    }
}
