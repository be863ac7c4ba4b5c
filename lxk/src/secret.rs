//! Commands about the server secret.

mod add;
mod check;
mod generate;
mod known;
mod remove;
mod status;
mod switch;

use clap::Subcommand;

pub use self::known::{find, missing_secret};
use crate::failure::Failure;
use crate::output::Output;

#[derive(Subcommand)]
pub enum Command {
    /// Draw a new secret and print it
    #[command(after_help = "Example:\n  (umask 077; lxk secret generate > secret.txt)")]
    Generate,
    /// Check the strength of the secret, and whether the database knows it
    Check,
    /// Change the secret: add, switch, watch, remove
    #[command(
        subcommand,
        after_help = "\
The sequence:
  1  lxk secret generate, and give it to every instance as API_KEY_SECRET_PREVIOUS
  2  lxk secret rotate add      the database learns the new secret
  3  swap the two on every instance, and restart it
  4  lxk secret rotate switch   once every instance runs with the new one
  5  lxk secret rotate status   until no key needs the old one: rotate those that do
  6  lxk secret rotate remove FINGERPRINT, and take the old one from every instance"
    )]
    Rotate(#[command(subcommand)] Rotate),
}

#[derive(Subcommand)]
pub enum Rotate {
    Add(add::Add),
    Switch(switch::Switch),
    Status(status::Status),
    Remove(remove::Remove),
}

pub async fn run(command: Command, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Generate => generate::run(output),
        Command::Check => check::run(url, output).await,
        Command::Rotate(Rotate::Add(command)) => add::run(command, url, output).await,
        Command::Rotate(Rotate::Switch(command)) => switch::run(command, url, output).await,
        Command::Rotate(Rotate::Status(command)) => status::run(command, url, output).await,
        Command::Rotate(Rotate::Remove(command)) => remove::run(command, url, output).await,
    }
}
