//! Commands about single keys, and lists of them.

use std::io::{BufRead, Read};
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use lexikon_auth::admin::{KeyFilter, KnownFormat};
use lexikon_auth::clock::{Clock, SystemClock};
use lexikon_auth::crypto::KEY_PREFIX;
use lexikon_auth::store::{DynKeyStore, KeyStore};
use lexikon_auth::{
    IssuedKey, KeyId, KeyManager, KeyRecord, KeyUpdate, ManageError, NewKey, Policy, Rotation,
    StoreError, Verifier, VerifyError,
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::arguments::{MASKED, ago, ahead, span};
use crate::bulk::{self, Bulk, RUN_AGAIN};
use crate::database::{Database, ring};
use crate::failure::Failure;
use crate::interruption::Interruption;
use crate::output::{Output, columns, counted, date, json_time};

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
    #[arg(long, value_parser = span, value_name = "TIME")]
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
        // Not with what was typed in its place.
        ManageError::Store(StoreError::UnknownOwner(_)) => {
            Failure::Refused("there is no such owner; create the user first".to_owned())
        }
        error => error.into(),
    })?;
    hand_over(&issued, None, &manager, output).await?;
    interruption.check().map_err(|failure| and_done(failure, "after the key was issued"))
}

/// A signal that came too late to change anything.
fn and_done(failure: Failure, what: &str) -> Failure {
    match failure {
        Failure::Interrupted(signal, text) => {
            Failure::Interrupted(signal, format!("{text} {what}"))
        }
        failure => failure,
    }
}

/// Prints a new key; where it cannot be printed, nobody has it, and it is revoked.
async fn hand_over(
    issued: &IssuedKey,
    old_until: Option<SystemTime>,
    manager: &KeyManager<DynKeyStore>,
    output: &mut Output,
) -> Result<(), Failure> {
    let IssuedKey { key, record, .. } = issued;
    let id = record.id.to_string();
    let print = |output: &mut Output| {
        output.object(&json!({
            "id": id,
            "key": key.expose_secret(),
            "owner": record.owner.as_str(),
            "name": record.name,
            "scopes": record.scopes.iter().collect::<Vec<_>>(),
            "expires_at": json_time(record.expires_at),
        }));
        output.line(format!("id       {id}"));
        output.line(format!("key      {}", key.expose_secret()));
        output.line(format!("expires  {}", date(record.expires_at, "never")));
        if let Some(until) = old_until {
            output.line(format!("old key  refused from {} on", date(Some(until), "")));
        }
        output.line("The key is shown here, and nowhere else again.");
        output.delivered()
    };
    let Err(problem) = print(output) else { return Ok(()) };
    manager.revoke(&record.id, Some("could not be printed")).await?;
    Err(Failure::Unavailable(format!("key {id} could not be printed ({problem}), and was revoked")))
}

/// Longest line that is read, in bytes: no key is longer, and a file without lines is not held in memory.
const LONGEST_LINE: usize = 4096;

pub async fn verify(url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let database = Database::open(url).await?;
    let policy = match database.table.policies(1).await?.first() {
        Some(stored) => Policy::default().legacy(stored.policy),
        None => Policy::default(),
    };
    let verifier = Verifier::new(database.store.clone(), ring).with_policy(policy);
    let (mut refused, mut unavailable) = (0_u64, 0_u64);
    let mut input = std::io::stdin().lock();
    // Taken at once: a buffer that grows would leave copies of keys in freed memory.
    let mut line = Zeroizing::new(Vec::with_capacity(LONGEST_LINE + 1));
    while input.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut line)? > 0 {
        let is_cut = line.len() == LONGEST_LINE && !line.ends_with(b"\n");
        if is_cut {
            input.skip_until(b'\n')?;
        }
        // What was cut is longer than any key, and stays so: a key and spaces are no key.
        let presented = if is_cut { &line } else { line.trim_ascii() };
        let answer = verifier.verify(presented).await;
        match &answer {
            Ok(_) => {}
            Err(VerifyError::Refused(_)) => refused += 1,
            Err(VerifyError::Unavailable(_)) => unavailable += 1,
        }
        output.record(&described(&answer));
        output.flush();
        line.clear();
    }
    match (unavailable, refused) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::Refused(format!("{} refused", counted(refused, "key")))),
        _ => Err(Failure::Unavailable(format!(
            "{} could not be verified; check the database",
            counted(unavailable, "key")
        ))),
    }
}

fn described(answer: &Result<lexikon_auth::VerifiedKey, VerifyError>) -> Value {
    match answer {
        Ok(key) => json!({
            "outcome": "accepted",
            "reason": null,
            "id": key.id().to_string(),
            "owner": key.owner().as_str(),
            "scopes": key.scopes().iter().collect::<Vec<_>>(),
            "format": key.format().as_str(),
        }),
        Err(error) => {
            let (outcome, reason) = match error.refusal() {
                Some(refusal) => ("refused", refusal.as_str()),
                None => ("unavailable", "store"),
            };
            let id = error.refusal().and_then(|refusal| refusal.key_id());
            json!({
                "outcome": outcome,
                "reason": reason,
                "id": id.map(ToString::to_string),
                "owner": null,
                "scopes": [],
                "format": null,
            })
        }
    }
}

/// List keys
#[derive(Args)]
#[command(after_help = "Examples:
  lxk list --owner user-1
  lxk list --format sha256 --unused-since 90d
  lxk --json list --expiring-in 7d")]
pub struct List {
    /// Of this owner alone
    #[arg(long)]
    owner: Option<String>,
    /// Whose hash is known to have this format
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// That have not been used for so long, such as 30d
    #[arg(long, value_parser = span, value_name = "TIME")]
    unused_since: Option<Duration>,
    /// That are in force and expire within so long, such as 7d
    #[arg(long, value_parser = span, value_name = "TIME")]
    expiring_in: Option<Duration>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    #[value(name = "hmac-sha256")]
    HmacSha256,
    Sha256,
    Unknown,
}

pub async fn list(command: List, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let database = Database::open(url).await?;
    let mut filter = KeyFilter::default();
    if let Some(owner) = command.owner {
        filter = filter.owner(owner);
    }
    if let Some(format) = command.format {
        filter = filter.format(match format {
            Format::HmacSha256 => KnownFormat::HmacSha256,
            Format::Sha256 => KnownFormat::Sha256,
            Format::Unknown => KnownFormat::Unknown,
        });
    }
    if let Some(span) = command.unused_since {
        filter = filter.unused_since(ago(span));
    }
    if let Some(span) = command.expiring_in {
        filter = filter.in_force().expiring_before(ahead(span)?);
    }
    let mut count = 0;
    database
        .table
        .each_key(&filter, |key| {
            if count == 0 {
                output.line(HEADER());
            }
            count += 1;
            print(&key.record, output);
            output.wanted()
        })
        .await?;
    output.line(counted(count, "key"));
    Ok(())
}

const HEADER: fn() -> String = || {
    columns(&[
        ("id", 36),
        ("owner", 16),
        ("name", 20),
        ("scopes", 12),
        ("format", 11),
        ("state", 8),
        ("last used", 17),
        ("expires", 17),
    ])
};

pub fn print(record: &KeyRecord, output: &mut Output) {
    if output.is_json() {
        return output.object(&object(record));
    }
    output.line(columns(&[
        (&record.id.to_string(), 36),
        (record.owner.as_str(), 16),
        (&record.name, 20),
        (record.scopes.as_str(), 12),
        (record.format.map_or("unknown", |format| format.as_str()), 11),
        (state(record), 8),
        (&date(record.last_used_at, "never"), 17),
        (&date(record.expires_at, "never"), 17),
    ]));
}

fn state(record: &KeyRecord) -> &'static str {
    if record.is_revoked() {
        "revoked"
    } else if record.is_expired(SystemClock.now()) {
        "expired"
    } else if !record.owner_active {
        "disabled"
    } else {
        "in force"
    }
}

/// A record for machines. Not its hash: that is what stands between a table and its keys.
fn object(record: &KeyRecord) -> Value {
    let revocation = record.revocation.as_deref();
    json!({
        "id": record.id.to_string(),
        "owner": record.owner.as_str(),
        "owner_active": record.owner_active,
        "name": record.name,
        "scopes": record.scopes.iter().collect::<Vec<_>>(),
        "format": record.format.map(|format| format.as_str()),
        "state": state(record),
        "created_at": json_time(record.created_at),
        "last_used_at": json_time(record.last_used_at),
        "expires_at": json_time(record.expires_at),
        "revoked_at": json_time(revocation.and_then(|revocation| revocation.at)),
        "revoked_reason": revocation.and_then(|revocation| revocation.reason.as_deref()),
    })
}

/// Show one key
#[derive(Args)]
pub struct Show {
    /// The id of the key
    id: String,
}

pub async fn show(command: Show, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let database = Database::open(url).await?;
    let id = key_id(&command.id)?;
    let record = database.store.find_by_id(&id).await?.ok_or_else(|| not_found(&id))?;
    output.object(&object(&record));
    if output.is_json() {
        return Ok(());
    }
    let owner = if record.owner_active { "" } else { " (missing or not active)" };
    output.line(format!("id         {}", record.id));
    output.line(format!("owner      {}{owner}", record.owner));
    output.line(format!("name       {}", record.name));
    output.line(format!("scopes     {}", record.scopes));
    output
        .line(format!("format     {}", record.format.map_or("unknown", |format| format.as_str())));
    output.line(format!("state      {}", state(&record)));
    output.line(format!("created    {}", date(record.created_at, "unknown")));
    output.line(format!("last used  {}", date(record.last_used_at, "never")));
    output.line(format!("expires    {}", date(record.expires_at, "never")));
    if let Some(revocation) = &record.revocation {
        output.line(format!("revoked    {}", date(revocation.at, "at an unknown time")));
        output.line(format!("reason     {}", revocation.reason.as_deref().unwrap_or("unknown")));
    }
    Ok(())
}

/// Revoke keys, for good and at once
#[derive(Args)]
#[command(after_help = "Example:
  lxk revoke 3f0d0c5e-6f0b-4e0e-9d2b-0a4c3f1b7e55 --reason \"laptop lost\"")]
pub struct Revoke {
    /// The ids of the keys
    #[arg(required = true)]
    ids: Vec<String>,
    /// Why, for those who look at the key later
    #[arg(long)]
    reason: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub async fn revoke(
    command: Revoke,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let database = Database::open_to_change(url).await?;
    let reason = command.reason.as_deref();
    if reason.is_some_and(|reason| reason.len() > 1024 || reason.contains('\0')) {
        return Err(Failure::Usage(
            "the reason is longer than 1024 bytes, or has a NUL in it".into(),
        ));
    }
    let ids = command.ids.iter().map(|id| key_id(id)).collect::<Result<Vec<_>, _>>()?;
    let (outcomes, done) = revoke_each(&ids, reason, command.dry_run, &database).await?;
    let told = if command.dry_run { Ok(()) } else { database.told().await };
    // Afterwards: it may be blocked by whoever reads it.
    let mut missing = Vec::new();
    for (id, outcome) in ids.iter().zip(outcomes) {
        let id = match outcome {
            "not found" => shown(id),
            _ => id.to_string(),
        };
        output.object(&json!({"id": id, "outcome": outcome}));
        output.line(format!("{id}  {outcome}"));
        if outcome == "not found" {
            missing.push(id);
        }
    }
    match done {
        Ok(()) if missing.is_empty() => told,
        Ok(()) => {
            told?;
            Err(no_key(&missing.join(", ")))
        }
        Err(failure) => Err(failure.with(told)),
    }
}

/// Returns what became of the first ones, and why not of all.
async fn revoke_each(
    ids: &[KeyId],
    reason: Option<&str>,
    is_dry: bool,
    database: &Database,
) -> Result<(Vec<&'static str>, Result<(), Failure>), Failure> {
    let mut outcomes = Vec::with_capacity(ids.len());
    let interruption = Interruption::listen()?;
    let revoke_all = async {
        for id in ids {
            if let Err(Failure::Interrupted(signal, text)) = interruption.check() {
                let text = format!("{text} before {}: run it again for the rest", shown(id));
                return Err(Failure::Interrupted(signal, text));
            }
            outcomes.push(match database.store.find_by_id(id).await? {
                None => "not found",
                Some(record) if is_dry && record.is_revoked() => "revoked already",
                Some(_) if is_dry => "would be revoked",
                Some(record) => {
                    // Also one that is revoked: whoever did it may have told no cache.
                    database.store.revoke(id, SystemTime::now(), reason).await?;
                    if record.is_revoked() { "revoked already" } else { "revoked" }
                }
            });
        }
        Ok(())
    };
    let done = revoke_all.await;
    Ok((outcomes, done))
}

/// An id, which nobody who pastes a key in its place sees again.
fn key_id(text: &str) -> Result<KeyId, Failure> {
    match text.starts_with(KEY_PREFIX) {
        true => Err(Failure::Usage(
            "that is a key, not an id: it stands in the history of the shell now, so replace it; \
             lxk verify tells its id"
                .to_owned(),
        )),
        false => Ok(text.into()),
    }
}

fn not_found(id: &KeyId) -> Failure {
    no_key(&shown(id))
}

fn no_key(ids: &str) -> Failure {
    Failure::Refused(format!("no key has the id {ids}; look it up with: lxk list"))
}

/// An id that no key has, unless it may be something else that was put in its place, such as a secret.
fn shown(id: &KeyId) -> String {
    let id = id.to_string();
    if uuid::Uuid::try_parse(&id).is_ok() { id } else { MASKED.to_owned() }
}

/// Replace a key: issue a successor, and let the old one expire
#[derive(Args)]
#[command(after_help = "Example:
  lxk rotate 3f0d0c5e-6f0b-4e0e-9d2b-0a4c3f1b7e55 --overlap 24h")]
pub struct Rotate {
    /// The id of the key
    id: String,
    /// How long the old key stays valid, such as 24h; not at all unless given
    #[arg(long, value_parser = span, value_name = "TIME", default_value = "0s")]
    overlap: Duration,
    /// Only say whether it can be done
    #[arg(long)]
    dry_run: bool,
}

pub async fn rotate(
    command: Rotate,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let ring = ring()?;
    let id = key_id(&command.id)?;
    let database = Database::open_to_change(url).await?;
    database.check_secret(&ring).await?;
    let manager = KeyManager::new(database.store.clone(), &ring);
    let old_until = ahead(command.overlap)?;
    let rotation = Rotation::default().overlap(command.overlap);
    let old = manager.find(&id).await?.ok_or_else(|| not_found(&id))?;
    if command.dry_run {
        if old.is_revoked() || old.is_expired(SystemTime::now()) {
            return Err(StoreError::NotInForce(old.id.clone()).into());
        }
        output.object(&json!({"id": old.id.to_string(), "outcome": "would be rotated"}));
        output.line(format!("{}  would be rotated", old.id));
        return Ok(());
    }
    // Whatever is cut off here costs both keys.
    let interruption = Interruption::listen()?;
    let issued = manager.rotate(&old.id, rotation).await?;
    let old_until = old.expires_at.map_or(old_until, |date| date.min(old_until));
    if let Err(failure) = hand_over(&issued, Some(old_until), &manager, output).await {
        // Nobody has the successor, so the old key has to go on.
        let restored = KeyUpdate::default();
        let restored = match old.expires_at {
            Some(date) => restored.expires_at(date),
            None => restored.never_expires(),
        };
        manager.update(&old.id, restored).await?;
        return Err(failure.with(database.told().await));
    }
    let told = database.told().await;
    match interruption.check() {
        Ok(()) => told,
        Err(failure) => Err(and_done(failure, "after the key was rotated").with(told)),
    }
}

/// Mark every key past its expiry as revoked, for readers that look at that alone
#[derive(Args)]
pub struct Expire {
    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,
}

pub async fn expire(
    command: Expire,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let database = Database::open_to_change(url).await?;
    let total = database.table.count_expired().await?;
    if command.dry_run {
        output.object(&json!({"would_expire": total}));
        output.line(format!("{} would be marked", counted(total, "key")));
        return Ok(());
    }
    // Nothing has to be told: no key loses its life by being marked.
    if total == 0 {
        output.object(&json!({"expired": 0}));
        output.line("0 keys marked");
        return Ok(());
    }
    let change = async |bulk: &mut Bulk| database.table.expire(bulk).await;
    let expired = bulk::change(&database, total, RUN_AGAIN, change).await?;
    output.object(&json!({"expired": expired}));
    output.line(format!("{} marked", counted(expired, "key")));
    database.told().await
}
