//! The database: its schema, its keys, its secrets, and a key's way through it.

use std::sync::Arc;
use std::time::SystemTime;

use lexikon_auth::admin::{KeyFilter, KeyTable};
use lexikon_auth::clock::ManualClock;
use lexikon_auth::{ManageError, SecretRing, StoreError};

use super::clock::{check_clock, check_zone};
use super::report::Finding::{self, Failed, Note, Passed};
use super::report::Report;
use crate::failure::Failure;
use crate::output::pluralize;
use crate::secret::{find, missing_secret};

pub async fn check_database(
    table: &KeyTable,
    ring: Option<&SecretRing>,
    is_sqlite: bool,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    report.line("schema", check_schema(table).await);
    report.line("index", check_index(table).await);
    report.line("keys", check_keys(table).await);
    report.line("match", check_secret(table, ring).await?);
    let now = SystemTime::now();
    let latest = table.latest_time().await;
    // As of the later of two clocks: a use that is ahead of this machine's alone tells of no wrong zone.
    let latest_now = latest.as_ref().map_or(now, |latest| latest.unwrap_or(now).max(now));
    let table_then = table.clone().with_clock(Arc::new(ManualClock::new(latest_now)));
    let impossible = table_then.impossible_use().await;
    report.line("clock", check_clock(now, &latest, &impossible));
    report.line("zone", check_zone(table, now, impossible, is_sqlite).await);
    if let Some(ring) = ring {
        report.line("round trip", check_round_trip(table, ring).await);
    }
    Ok(())
}

async fn check_schema(table: &KeyTable) -> Finding {
    match table.missing_schema().await {
        Ok(missing) if missing.is_empty() => Passed("extension applied".to_owned()),
        Ok(missing) if missing.iter().all(|statement| statement.contains("TRIGGER")) => Failed(
            "triggers that report changes are missing or of another version: caches hear of nothing \
             that others change, and keep answers for 5 seconds; lxk schema apply"
                .to_owned(),
        ),
        Ok(_) => Note("extension not applied: formats stay unknown; lxk schema apply".to_owned()),
        Err(error) => Failed(error.to_string()),
    }
}

async fn check_index(table: &KeyTable) -> Finding {
    match table.has_hash_index().await {
        Ok(true) => Passed("on key_hash".to_owned()),
        Ok(false) => Failed(
            "none on key_hash: every verification reads the whole table; run: CREATE UNIQUE INDEX \
             ix_api_keys_key_hash ON api_keys (key_hash)"
                .to_owned(),
        ),
        Err(error) => Failed(error.to_string()),
    }
}

async fn check_keys(table: &KeyTable) -> Finding {
    match table.count(&KeyFilter::default()).await {
        Ok(0) => Note("none: is this the right database?".to_owned()),
        Ok(keys) => Passed(pluralize(keys, "key")),
        Err(error) => Failed(error.to_string()),
    }
}

async fn check_secret(table: &KeyTable, ring: Option<&SecretRing>) -> Result<Finding, Failure> {
    let (ring, known) = match (ring, table.secrets().await) {
        (None, _) => return Ok(Failed("no secret to compare with".to_owned())),
        (_, Err(error)) => return Ok(Failed(error.to_string())),
        (Some(ring), Ok(known)) => (ring, known),
    };
    if known.is_empty() {
        return Ok(Note(
            "the database knows no secret yet, so a wrong one would go unnoticed: see with lxk verify \
             that a key is accepted, and then run: lxk secret rotate add"
                .to_owned(),
        ));
    }
    let current = ring.current().fingerprint().to_string();
    if find(&known, &current).is_none() {
        return Ok(Failed(format!(
            "{current} is not known to the database, which was written under {}; set the right \
             API_KEY_SECRET, or run `lxk secret rotate add` when this one is new",
            known.iter().map(|secret| &*secret.fingerprint).collect::<Vec<_>>().join(", ")
        )));
    }
    Ok(match missing_secret(table, ring, &known).await? {
        None => Passed("the database was written under it".to_owned()),
        Some((fingerprint, keys)) => Failed(format!(
            "{} may need {fingerprint}, which the environment lacks; set it as \
             API_KEY_SECRET_PREVIOUS",
            pluralize(keys, "key")
        )),
    })
}

async fn check_round_trip(table: &KeyTable, ring: &SecretRing) -> Finding {
    match table.try_round_trip(ring).await {
        Ok(()) => Passed("issued, verified, revoked, rolled back".to_owned()),
        Err(ManageError::Store(StoreError::UnknownOwner(_))) => {
            Note("not tried: there is no active user to issue a key to".to_owned())
        }
        Err(error) => Failed(error.to_string()),
    }
}
