//! `lxk`: manages the API keys of a service, and carries the migration from SHA-256 through.
// The macros panic where nobody reads any more; [`output`] does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod arguments;
mod bulk;
mod cache;
mod database;
mod environment;
mod escape;
mod failure;
mod interruption;
mod keys;
mod listing;
mod manual;
mod migrate;
mod output;
mod preflight;
mod progress;
mod schema;
mod secret;
mod times;
mod transfer;

use std::process::ExitCode;

use self::arguments::{Arguments, Command};
use self::failure::Failure;
use self::output::Output;

fn main() -> ExitCode {
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::stderr_line(format_args!("error: {failure}"));
            failure.exit_code()
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.json);
    let url = arguments.database_url.as_deref();
    let done = match arguments.command {
        Command::Secret(command) => secret::run(command, url, &mut output).await,
        Command::Issue(command) => keys::issue(command, url, &mut output).await,
        Command::Verify => keys::verify(url, &mut output).await,
        Command::List(command) => keys::list(command, url, &mut output).await,
        Command::Show(command) => keys::show(command, url, &mut output).await,
        Command::Revoke(command) => keys::revoke(command, url, &mut output).await,
        Command::Rotate(command) => keys::rotate(command, url, &mut output).await,
        Command::Expire(command) => keys::expire(command, url, &mut output).await,
        Command::Preflight => preflight::run(url, &mut output).await,
        Command::Schema(command) => schema::run(command, url, &mut output).await,
        Command::Migrate(command) => migrate::run(command, url, &mut output).await,
        Command::Export => transfer::export(url, &mut output).await,
        Command::Import(command) => transfer::import(command, url, &mut output).await,
        Command::Cache(command) => cache::run(command, url, &mut output).await,
        Command::Completions { shell } => manual::completions(shell, &mut output),
        Command::Manual { folder } => manual::manual(folder.as_deref(), &mut output),
    };
    // Written out here, so that it stands before the failure that `main` prints.
    let printed = output.finish();
    match done {
        Err(Failure::OutputClosed) => printed,
        done => done.and(printed),
    }
}
