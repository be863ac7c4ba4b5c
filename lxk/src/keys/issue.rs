//! `lxk issue`.

use std::time::Duration;

use clap::Args;
use lexikon_auth::{KeyManager, ManageError, NewKey, StoreError};

use super::print_once::{interrupted_after, print_or_revoke};
use crate::database::Database;
use crate::environment::ring;
use crate::failure::Failure;
use crate::interruption::Interruption;
use crate::output::Output;
use crate::times::{ahead, parse_span};

/// Issue a key, and print it: once, here
#[derive(Args)]
#[command(after_help = "Examples:
  lxk issue --owner user-1 --name deploy --scopes read,write --expires-in 90d
  lxk --json issue --owner user-1 --name deploy --scopes read")]
pub struct Issue {
    /// Who the key belongs to: the id of a user
    #[arg(long)]
    owner: String,
    /// What the owner calls it
    #[arg(long)]
    name: String,
    /// What it may do, such as read,write; without any, nothing
    #[arg(long, default_value = "")]
    scopes: String,
    /// When it expires, such as 30d; never unless given
    #[arg(long, value_parser = parse_span, value_name = "TIME")]
    expires_in: Option<Duration>,
}

pub async fn issue(command: Issue, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let database = Database::open_to_change(url).await?;
    database.check_secret(&ring).await?;
    let manager = KeyManager::new(database.store.clone(), &ring);
    let mut new = NewKey::new(command.owner, &command.name).scopes(command.scopes);
    if let Some(span) = command.expires_in {
        new = new.expires_at(ahead(span)?);
    }
    let interruption = Interruption::listen()?;
    let issued = manager.issue(new).await.map_err(|error| match error {
        // Without the id, in whose place a key or a secret may have been typed.
        ManageError::Store(StoreError::UnknownOwner(_)) => {
            Failure::Refused("there is no such owner; create the user first".to_owned())
        }
        error => error.into(),
    })?;
    print_or_revoke(&issued, None, &manager, output).await?;
    interruption.check().map_err(|failure| interrupted_after(failure, "the key was issued"))
}
