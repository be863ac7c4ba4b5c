//! Whether all is well before a service starts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lexikon_auth::admin::{ImpossibleUse, KeyFilter, KeyTable};
use lexikon_auth::clock::ManualClock;
use lexikon_auth::{ManageError, SecretRing, StoreError};
use serde_json::json;

use crate::cache::{CHANGING, Stats};
use crate::database::{Database, described, is_sqlite, own_cache, variable};
use crate::failure::Failure;
use crate::output::{Mood, Output, counted};
use crate::secret::lacking;

/// How far clocks may be apart: dates of expiry and cut-off are as exact as this.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);
/// How far a zone is off at least, less the time that a last use may wait to be written, and clocks.
const LEAST_OFFSET: Duration = Duration::from_secs(14 * 60);
/// By how much an instant that was just noted may be later than it seems.
const ALLOWANCE: Duration = Duration::from_secs(60);
/// A date before which no clock that is set can be: 2026-01-01.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// What a check found.
enum Finding {
    Good(String),
    /// Nothing to check, or nothing that a service could not live with.
    Doubtful(String),
    Bad(String),
}

use Finding::{Bad, Doubtful, Good};

struct Report<'a> {
    output: &'a mut Output,
    failed: u64,
}

impl Report<'_> {
    fn line(&mut self, check: &str, finding: Finding) {
        let (mood, word, text) = match finding {
            Good(text) => (Mood::Good, "ok", text),
            Doubtful(text) => (Mood::Doubtful, "note", text),
            Bad(text) => (Mood::Bad, "failed", text),
        };
        self.failed += u64::from(mood == Mood::Bad);
        self.output.object(&json!({"check": check, "result": word, "detail": text}));
        self.output.judged(mood, word, &format!("{check:<10} {text}"));
        self.output.flush();
    }
}

pub async fn run(url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let mut report = Report { output, failed: 0 };
    let ring = SecretRing::from_env();
    report.line(
        "secret",
        match &ring {
            Ok(ring) => Good(format!("strong, fingerprint {}", ring.current().fingerprint())),
            Err(error) => Bad(error.to_string()),
        },
    );
    let database = Database::open(url).await;
    report.line(
        "database",
        match &database {
            Ok(_) => Good("reachable, and of a known shape".to_owned()),
            Err(error) => Bad(error.to_string()),
        },
    );
    let is_sqlite = is_sqlite(url);
    if let Ok(database) = &database {
        check_database(database, ring.as_ref().ok(), is_sqlite, &mut report).await?;
    }
    report.line("redis", check_redis(database.as_ref().ok()).await);
    let failed = report.failed;
    match failed {
        0 => Ok(()),
        1 => Err(Failure::Refused("1 check failed".to_owned())),
        _ => Err(Failure::Refused(format!("{failed} checks failed"))),
    }
}

async fn check_database(
    database: &Database,
    ring: Option<&SecretRing>,
    is_sqlite: bool,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let table = &database.table;
    let finding = match table.missing_schema().await {
        Ok(missing) if missing.is_empty() => Good("extension applied".to_owned()),
        Ok(missing) if missing.iter().all(|statement| statement.contains("TRIGGER")) => Bad(
            "triggers that report changes are missing or of another version: caches hear of nothing \
             that others change, and keep answers for 5 seconds; lxk schema apply"
                .to_owned(),
        ),
        Ok(_) => {
            Doubtful("extension not applied: formats stay unknown; lxk schema apply".to_owned())
        }
        Err(error) => Bad(error.to_string()),
    };
    report.line("schema", finding);
    let finding = match table.has_hash_index().await {
        Ok(true) => Good("on key_hash".to_owned()),
        Ok(false) => Bad(
            "none on key_hash: every verification reads the whole table; run: CREATE UNIQUE INDEX \
             ix_api_keys_key_hash ON api_keys (key_hash)"
                .to_owned(),
        ),
        Err(error) => Bad(error.to_string()),
    };
    report.line("index", finding);
    let finding = match table.count(&KeyFilter::default()).await {
        Ok(0) => Doubtful("none: is this the right database?".to_owned()),
        Ok(keys) => Good(counted(keys, "key")),
        Err(error) => Bad(error.to_string()),
    };
    report.line("keys", finding);
    let finding = match (ring, table.secrets().await) {
        (None, _) => Bad("no secret to compare with".to_owned()),
        (_, Err(error)) => Bad(error.to_string()),
        (Some(_), Ok(known)) if known.is_empty() => Doubtful(
            "the database knows no secret yet, so a wrong one would go unnoticed: see with lxk verify \
             that a key is accepted, and then run: lxk secret rotate add"
                .to_owned(),
        ),
        (Some(ring), Ok(known)) => {
            let current = ring.current().fingerprint().to_string();
            let lacking = lacking(table, ring, &known).await?;
            match (known.iter().any(|secret| secret.fingerprint == current), lacking.first()) {
                (true, None) => Good("the database was written under it".to_owned()),
                (true, Some((fingerprint, keys))) => Bad(format!(
                    "{} may need {fingerprint}, which the environment lacks; set it as \
                     API_KEY_SECRET_PREVIOUS",
                    counted(*keys, "key")
                )),
                (false, _) => Bad(format!(
                    "{current} is not known to the database, which was written under {}; set the right \
                     API_KEY_SECRET, or run `lxk secret rotate add` when this one is new",
                    known.iter().map(|secret| &*secret.fingerprint).collect::<Vec<_>>().join(", ")
                )),
            }
        }
    };
    report.line("match", finding);
    let now = SystemTime::now();
    let latest = table.latest_time().await;
    // Ahead of this machine's clock and ahead of the database's are two things.
    let database_now = latest.as_ref().map_or(now, |latest| latest.unwrap_or(now).max(now));
    let table_then = table.clone().with_clock(Arc::new(ManualClock::new(database_now)));
    let impossible = table_then.impossible_use().await;
    report.line("clock", check_clock(now, &latest, &impossible));
    report.line("zone", check_zone(table, now, impossible, is_sqlite).await);
    if let Some(ring) = ring {
        let finding = match table.try_round_trip(ring).await {
            Ok(()) => Good("issued, verified, revoked, rolled back".to_owned()),
            Err(ManageError::Store(StoreError::UnknownOwner(_))) => {
                Doubtful("not tried: there is no active user to issue a key to".to_owned())
            }
            Err(error) => Bad(error.to_string()),
        };
        report.line("round trip", finding);
    }
    Ok(())
}

fn check_clock(
    now: SystemTime,
    latest: &Result<Option<SystemTime>, StoreError>,
    impossible: &Result<Option<ImpossibleUse>, StoreError>,
) -> Finding {
    if now < SystemTime::UNIX_EPOCH + EPOCH {
        return Bad("this machine's clock is not set".to_owned());
    }
    let is_behind = |lead: &Duration| (CLOCK_TOLERANCE..LEAST_OFFSET).contains(lead);
    match (latest, impossible) {
        (Ok(Some(latest)), _) if *latest > now + CLOCK_TOLERANCE => {
            Bad("this machine's clock is behind the database; set both by NTP".to_owned())
        }
        (Ok(_), Ok(Some(ImpossibleUse::Ahead(lead)))) if is_behind(lead) => Bad(
            "this machine's clock is behind that of an instance, which has just used a key; set both \
             by NTP"
                .to_owned(),
        ),
        (Ok(_), _) => Good("not behind the database".to_owned()),
        (Err(error), _) => Bad(error.to_string()),
    }
}

/// Whether last uses can have been where they are read: a wrong zone is off by whole quarters of an hour,
/// less the time since a key was used.
async fn check_zone(
    table: &KeyTable,
    now: SystemTime,
    impossible: Result<Option<ImpossibleUse>, StoreError>,
    is_sqlite: bool,
) -> Finding {
    let (impossible, kept) = match (impossible, table.kept_time_zone().await) {
        (Ok(impossible), Ok(kept)) => (impossible, kept),
        (Err(error), _) | (_, Err(error)) => return Bad(error.to_string()),
    };
    let zone = table.time_zone();
    let remedy = match (&kept, table.can_keep_time_zone()) {
        (Some(kept), _) => format!("lxk schema time-zone ZONE --replace {kept}"),
        (None, true) => "lxk schema time-zone ZONE".to_owned(),
        (None, false) => {
            "set LEXIKON_TIME_ZONE to it here, and call with_time_zone in every instance".to_owned()
        }
    };
    let remedy = format!("find out where it ran; {remedy}");
    let offset = |seconds: i64| {
        let (sign, seconds) = (if seconds < 0 { '-' } else { '+' }, seconds.abs());
        format!("UTC{sign}{:02}:{:02}", seconds / 3600, seconds / 60 % 60)
    };
    let ahead = i64::from(zone.seconds_ahead(now));
    match impossible {
        Some(ImpossibleUse::Ahead(lead)) if lead >= LEAST_OFFSET => Bad(format!(
            "a key was used {} ahead of the clock: the service ran in a zone at {} or further ahead, \
             not in {zone}; {remedy}",
            minutes(lead),
            offset(ahead + quarters(lead)),
        )),
        Some(ImpossibleUse::BeforeCreation(lead)) if lead >= LEAST_OFFSET => {
            let seen = format!(
                "a key was used {} before it was made: the service ran in a zone at {} or further \
                 behind, not in {zone}",
                minutes(lead),
                offset(ahead - quarters(lead)),
            );
            match is_sqlite {
                true => Bad(format!("{seen}; {remedy}")),
                false => Doubtful(format!(
                    "{seen}, or its sessions in PostgreSQL are not in UTC; {remedy}"
                )),
            }
        }
        _ => match (kept, table.can_keep_time_zone()) {
            (Some(_), _) => Good(format!("{zone}, kept by the database")),
            (None, true) => Doubtful(format!(
                "{zone}; the database keeps none, so instances may differ: lxk schema time-zone {zone}"
            )),
            (None, false) => Doubtful(format!(
                "{zone}; the database keeps none, and has no table for it: lxk schema apply"
            )),
        },
    }
}

/// In seconds, rounded up to quarters of an hour.
fn quarters(lead: Duration) -> i64 {
    const QUARTER: u64 = 15 * 60;
    let seconds = lead.saturating_sub(ALLOWANCE).as_secs().div_ceil(QUARTER) * QUARTER;
    seconds.cast_signed()
}

fn minutes(lead: Duration) -> String {
    format!("{}h {}min", lead.as_secs() / 3600, lead.as_secs() / 60 % 60)
}

async fn check_redis(database: Option<&Database>) -> Finding {
    let others = match database {
        Some(database) => database.shared_caches().await.unwrap_or_default(),
        None => Vec::new(),
    };
    let Some(url) = variable("REDIS_URL") else {
        return match others.first() {
            None => Doubtful("not checked: REDIS_URL is not set".to_owned()),
            Some(cache) => Bad(format!(
                "REDIS_URL is not set, but instances keep copies with {}; set it as they have it",
                described(cache)
            )),
        };
    };
    if let (Ok(own), Some(cache)) = (own_cache(&url), others.first())
        && !others.contains(&own)
    {
        return Bad(format!(
            "instances keep copies with {}, and this is {}; set REDIS_URL and REDIS_PREFIX as they \
             have them",
            described(cache),
            described(&own)
        ));
    }
    match Stats::read(&url).await {
        Err(failure) => Bad(failure.to_string()),
        Ok(stats) if stats.limit == 0 => {
            Bad("has no memory limit; set maxmemory, and maxmemory-policy to volatile-ttl"
                .to_owned())
        }
        Ok(stats) if stats.policy != "noeviction" && !stats.policy.starts_with("volatile-") => {
            Bad(format!(
                "maxmemory-policy is {}, which evicts marks of changes, so instances bypass Redis; set \
                 it to volatile-ttl or noeviction",
                stats.policy
            ))
        }
        Ok(stats) if stats.role != "master" => Bad(format!(
            "is a {}, which takes no changes, so instances bypass it; name its master",
            stats.role
        )),
        Ok(stats) if stats.is_changing => Doubtful(format!("bypassed: {CHANGING}")),
        Ok(stats) => Good(format!("{} bytes at most, {}", stats.limit, stats.policy)),
    }
}
