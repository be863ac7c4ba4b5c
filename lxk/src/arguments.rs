//! The command line, and what is made from it: help, completions, manual pages.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use lexikon_auth::store::TimeZone;
use serde_json::json;

use crate::failure::Failure;
use crate::output::Output;
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

/// What stands in the place of something that was typed.
pub const MASKED: &str = "[not shown]";

impl Arguments {
    /// Reads the command line, or says what is wrong with it, or what was asked about it.
    pub fn read() -> Result<Self, ExitCode> {
        Self::try_parse().map_err(|error| {
            let error = masked(error);
            // There is nothing else to be done where nobody reads it.
            let _ = error.print();
            ExitCode::from(error.exit_code() as u8)
        })
    }
}

/// The error without anything that was typed: a key or a secret may have been, where none belongs. What
/// stays is what the command knows itself.
fn masked(mut error: clap::Error) -> clap::Error {
    use ContextKind::{InvalidArg, InvalidSubcommand, InvalidValue, Suggested, TrailingArg};
    let masked = || ContextValue::String(MASKED.to_owned());
    // Only there is it what was typed. Elsewhere it is the option that something is wrong with.
    let is_unknown = error.kind() == ErrorKind::UnknownArgument;
    for kind in [InvalidSubcommand, InvalidValue, TrailingArg, InvalidArg] {
        if (kind != InvalidArg || is_unknown) && error.get(kind).is_some() {
            error.insert(kind, masked());
        }
    }
    // Says how to give the same as a value.
    error.remove(Suggested);
    error
}

/// Prints completions.
pub fn completions(shell: clap_complete::Shell, output: &mut Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "lxk", &mut script);
    let script = String::from_utf8_lossy(&script);
    output.object(&json!({"shell": shell.to_string(), "script": script}));
    if !output.is_json() {
        output.write(&script);
    }
    Ok(())
}

/// Prints the manual page of the command, or writes those of all.
pub fn manual(folder: Option<&Path>, output: &mut Output) -> Result<(), Failure> {
    match folder {
        Some(folder) => {
            clap_mangen::generate_to(Arguments::command(), folder)?;
            output.object(&json!({"folder": folder.display().to_string()}));
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
            let page = String::from_utf8_lossy(&page);
            output.object(&json!({"page": page}));
            if !output.is_json() {
                output.write(&page);
            }
        }
    }
    Ok(())
}

/// Reads the name of a time zone. What reads a value does not repeat it in its error, which clap prints.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    name.parse()
        .map_err(|_| "write it as in the IANA database, such as Europe/Paris, or UTC".into())
}

/// Reads a span of time such as `30d`, `24h` or `90s`.
pub fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write it as 30d, 24h or 15min".to_owned())
}

/// Reads a date in UTC: `2026-12-01`, or `2026-12-01T12:00:00Z`.
pub fn date(text: &str) -> Result<SystemTime, String> {
    let time = match text.len() {
        10 => humantime::parse_rfc3339(&format!("{text}T00:00:00Z")),
        _ => humantime::parse_rfc3339_weak(text),
    };
    time.map_err(|_| "write it as 2026-12-01 or 2026-12-01T12:00:00Z".to_owned())
}

/// Reads a date that has been.
pub fn past_date(text: &str) -> Result<SystemTime, String> {
    match date(text)? {
        date if date > SystemTime::now() => Err("is in the future; write when it was".to_owned()),
        date => Ok(date),
    }
}

/// The time that lies so far back.
pub fn ago(span: Duration) -> SystemTime {
    SystemTime::now().checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The time that lies so far ahead, within what databases keep.
pub fn ahead(span: Duration) -> Result<SystemTime, Failure> {
    /// A thousand years, in seconds.
    const LONGEST: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);
    match span <= LONGEST {
        true => Ok(SystemTime::now() + span),
        false => Err(Failure::Usage("the time is longer than 1000 years; shorten it".to_owned())),
    }
}
