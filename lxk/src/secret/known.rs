//! What the database knows of secrets, and which keys need them.

use std::time::SystemTime;

use clap::Args;
use lexikon_auth::SecretRing;
use lexikon_auth::admin::{KeyFilter, KeyTable, KnownSecret};

use crate::failure::Failure;
use crate::times::parse_past_date;

/// What tells legacy keys, which need no secret.
#[derive(Args)]
pub struct Legacy {
    /// When HMAC-SHA-256 was first deployed: keys made before are legacy, and need no secret
    #[arg(long, value_parser = parse_past_date, value_name = "DATE")]
    before: Option<SystemTime>,
}

impl Legacy {
    /// Selects the keys that may have been issued under a secret before the one that is current since
    /// then.
    pub fn keys_of_older_secrets(&self, current_since: SystemTime) -> KeyFilter {
        KeyFilter::default()
            .usable()
            .first_deployed(self.before)
            .bound_to_secret_before(current_since)
    }
}

/// Finds a secret among those that the database knows.
pub fn find<'a>(known: &'a [KnownSecret], fingerprint: &str) -> Option<&'a KnownSecret> {
    known.iter().find(|secret| secret.fingerprint == fingerprint)
}

/// Returns since when a secret is the current one, where that is noted.
pub fn current_since(known: &[KnownSecret], fingerprint: &str) -> Option<SystemTime> {
    find(known, fingerprint)?.current_since
}

/// Says that the database does not know the current secret.
pub fn unknown(ring: &SecretRing) -> Failure {
    Failure::Refused(format!(
        "the database does not know the current secret {}; set the right API_KEY_SECRET, or run \
         `lxk secret rotate add` when this one is new",
        ring.current().fingerprint()
    ))
}

/// Returns a secret that the environment lacks and keys may need, with how many those are. One that has
/// never been current signs none.
pub async fn missing_secret<'a>(
    table: &KeyTable,
    ring: &SecretRing,
    known: &'a [KnownSecret],
) -> Result<Option<(&'a str, u64)>, Failure> {
    let is_in_ring =
        |fingerprint: &str| ring.fingerprints().any(|here| here.to_string() == fingerprint);
    let missing = known.iter().enumerate().find(|(index, secret)| {
        let was_current = *index == 0 || secret.current_since.is_some();
        was_current && !is_in_ring(&secret.fingerprint)
    });
    let Some((_, missing)) = missing else { return Ok(None) };
    let current = ring.current().fingerprint().to_string();
    let since = current_since(known, &current).unwrap_or_else(SystemTime::now);
    let keys = table.count(&Legacy { before: None }.keys_of_older_secrets(since)).await?;
    Ok((keys > 0).then_some((&missing.fingerprint, keys)))
}
