//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

use crate::escape::MASKED;
use crate::{cache, keys, migrate, schema, secret, transfer};

const ENVIRONMENT: &str = "\
Environment:
  DATABASE_URL             sqlite:///path/to/keys.db or postgres://user:password@host/database
  API_KEY_SECRET           the server secret, or API_KEY_SECRET_FILE, a file that holds it
  API_KEY_SECRET_PREVIOUS  the secret before it, or API_KEY_SECRET_PREVIOUS_FILE
  LEXIKON_TIME_ZONE        the zone that the service ran in, such as Europe/Paris, where the database
                           keeps none; UTC unless set
  REDIS_URL                redis://host:port/number, where instances share a cache there
  REDIS_PREFIX             what its names begin with, lexikon: unless set
  NO_COLOR                 no colours, when set

Exit codes:
  0  done, or accepted
  1  refused, or a check failed
  2  the command, its environment or its input is wrong
  3  the database or another service is unavailable, or caches could not be told
  130, 143  interrupted (SIGINT, SIGTERM): what was done stays done";

/// Manages the API keys of a service, and carries the migration from SHA-256 through.
#[derive(Parser)]
#[command(name = "lxk", version, after_help = ENVIRONMENT, arg_required_else_help = true)]
pub struct Arguments {
    /// The database; DATABASE_URL unless given
    #[arg(long, global = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// Print objects, one a line, for programs to read
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make, check and change the server secret
    #[command(subcommand)]
    Secret(secret::Command),
    Issue(keys::Issue),
    /// Verify keys, one a line on standard input
    ///
    /// Prints an object for each, as it would be decided by an instance that follows the stored policy.
    /// Nothing is written, and no key is printed.
    #[command(after_help = "Example:\n  lxk verify < keys.txt")]
    Verify,
    List(keys::List),
    Show(keys::Show),
    Revoke(keys::Revoke),
    Rotate(keys::Rotate),
    Expire(keys::Expire),
    /// Check whether all is well before a service starts; exit code 1 when anything is not
    ///
    /// Secret, database, schema, index, Redis and clock, and a key issued, verified and revoked in a
    /// transaction that is rolled back.
    Preflight,
    /// Show or make the additive changes to the schema
    #[command(subcommand)]
    Schema(schema::Command),
    /// Carry the migration from SHA-256 through
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Print all records, without any key, as lines that import checks
    #[command(after_help = "Example:\n  lxk export > keys.jsonl")]
    Export,
    Import(transfer::Import),
    /// Look at and clear the cache in Redis
    #[command(subcommand)]
    Cache(cache::Command),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  lxk completions bash > /etc/bash_completion.d/lxk")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands to a folder
    Manual {
        /// The folder
        #[arg(long, value_name = "PATH")]
        folder: Option<PathBuf>,
    },
}

impl Arguments {
    /// Reads the command line, or says what is wrong with it, or what was asked about it.
    pub fn read() -> Result<Self, ExitCode> {
        Self::try_parse().map_err(|error| {
            let error = mask(error);
            // Nothing else can be done where it cannot be printed.
            let _ = error.print();
            ExitCode::from(error.exit_code() as u8)
        })
    }
}

/// Takes everything that was typed out of an error: a key or a secret may have been, where none belongs.
/// What stays is what the command knows itself.
fn mask(mut error: clap::Error) -> clap::Error {
    use ContextKind::{InvalidArg, InvalidSubcommand, InvalidValue, Suggested, TrailingArg};
    let masked = || ContextValue::String(MASKED.to_owned());
    // Only an unknown argument is what was typed. Elsewhere it is the option that something is wrong with.
    let is_unknown = error.kind() == ErrorKind::UnknownArgument;
    for kind in [InvalidSubcommand, InvalidValue, TrailingArg, InvalidArg] {
        if (kind != InvalidArg || is_unknown) && error.get(kind).is_some() {
            error.insert(kind, masked());
        }
    }
    // The suggestion repeats what was typed, as a value.
    error.remove(Suggested);
    error
}
