//! Ids of keys as they are typed. A key or a secret may have been typed in the place of one.

use lexikon_auth::KeyId;
use lexikon_auth::crypto::KEY_PREFIX;

use crate::escape::MASKED;
use crate::failure::Failure;

/// Reads an id. A key in its place is refused, and not repeated.
pub fn parse_id(text: &str) -> Result<KeyId, Failure> {
    if text.starts_with(KEY_PREFIX) {
        return Err(Failure::Usage(
            "that is a key, not an id: it stands in the history of the shell now, so replace it; \
             lxk verify tells its id"
                .to_owned(),
        ));
    }
    Ok(text.into())
}

/// Says that no key has this id.
pub fn not_found(id: &KeyId) -> Failure {
    none_found(&mask(id))
}

/// Says that no key has any of these ids.
pub fn none_found(ids: &str) -> Failure {
    Failure::Refused(format!("no key has the id {ids}; look it up with: lxk list"))
}

/// Returns an id that no key has, masked unless it is a UUID: it may be a secret that was put in its place.
pub fn mask(id: &KeyId) -> String {
    let id = id.to_string();
    if uuid::Uuid::try_parse(&id).is_ok() { id } else { MASKED.to_owned() }
}
