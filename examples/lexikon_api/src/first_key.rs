//! The first key of an owner, in a file that nobody else can read.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use lexikon_auth::store::Page;
use lexikon_auth::{ApiKeys, ManageError, NewKey, OwnerId, StoreError};
use tempfile::NamedTempFile;

use crate::keys::id_of;

/// Makes the key, unless the owner has keys, and writes it to `path` in the form of the header that it
/// travels in. Of several instances that start at once, one makes it.
pub async fn make(keys: &ApiKeys, owner: &str, path: &Path) -> Result<(), Box<dyn Error>> {
    let owner = OwnerId::from(owner);
    // In this order: a file that another instance writes right now belongs to a key that shows.
    let exists = path.try_exists()?;
    if !keys.manager().list(&owner, &Page::first(1)).await?.is_empty() {
        return Ok(());
    }
    if exists {
        let path = path.display();
        return Err(format!("{path} exists; move it, or set FIRST_KEY_FILE to another").into());
    }
    // Before the key: no key is made that could not be written. Its mode is 0600.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))
        .map_err(|error| format!("FIRST_KEY_FILE: {}: {error}", path.display()))?;
    // No value of a header is like this, so no Idempotency-Key makes this id.
    let id = id_of(&owner, b"\0first key");
    let new = NewKey::new(owner, "the first key").scopes("admin").id(id.clone());
    let issued = match keys.issue(new).await {
        // Another instance was faster.
        Err(ManageError::Store(StoreError::Conflict)) => return Ok(()),
        issued => issued?,
    };
    if let Err(error) = keep(file, issued.key.expose_secret(), path) {
        keys.revoke(&id, Some("it could not be written to its file")).await?;
        let path = path.display();
        return Err(format!("{path}: {error}; make a key with lxk issue --scopes admin").into());
    }
    println!("A first key, with the scope admin, is in {}", path.display());
    Ok(())
}

/// Has the file appear with the whole key in it, or not at all.
fn keep(mut file: NamedTempFile, key: &str, path: &Path) -> Result<(), Box<dyn Error>> {
    writeln!(file, "X-API-Key: {key}")?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    Ok(())
}
