//! Records out and in, as JSON lines with digests.
//!
//! ```text
//! {"record":{"id":…,"owner":…,"hash":…,…}}     one for each key, in the order of ids
//! {"checkpoint":{"records":1000,"sha256":…}}   after every thousand
//! {"end":{"records":1234,"sha256":…}}          at the end
//! ```
//!
//! A digest is that of all lines with records before it, with their newlines.

use std::io::{BufRead, Read};
use std::time::SystemTime;

use clap::Args;
use lexikon_auth::KeyRecord;
use lexikon_auth::admin::KeyFilter;
use lexikon_auth::crypto::{HashFormat, KeyHash};
use lexikon_auth::store::{Change, Revocation};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::database::Database;
use crate::escape::json_line;
use crate::failure::Failure;
use crate::interruption::{self, Interruption};
use crate::output::{Output, pluralize, stderr_line};
use crate::progress::Progress;
use crate::times::{json_time, timestamp};

/// Records between two checkpoints, and in one transaction.
const BATCH: usize = 1000;
/// Longest line, in bytes: a record's texts are of 1024 bytes where this crate wrote them.
const LONGEST_LINE: u64 = 1 << 20;

pub async fn export(url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let table = Database::open(url).await?.table;
    let all = KeyFilter::default();
    let mut progress = Progress::new(table.count(&all).await?);
    let mut digest = Sha256::new();
    let mut count = 0;
    let listed = table.each_key(&all, |key| {
        let line = json_line(&json!({"record": record_object(&key.record)}));
        digest.update(&line);
        count += 1;
        output.write(&line);
        if count % BATCH == 0 {
            progress.set(count as u64);
            output.record(&json!({"checkpoint": checkpoint(count, &digest)}));
        }
        output.check_reader()
    });
    listed.await?;
    output.record(&json!({"end": checkpoint(count, &digest)}));
    output.flush();
    drop(progress);
    stderr_line(format_args!("{} exported", pluralize(count as u64, "record")));
    Ok(())
}

/// Makes an object of how many records came before, and of their digest.
fn checkpoint(count: usize, digest: &Sha256) -> Value {
    json!({"records": count, "sha256": hex::encode(digest.clone().finalize())})
}

/// Makes an object of all that is known of a key.
fn record_object(record: &KeyRecord) -> Value {
    let revocation = record
        .revocation
        .as_deref()
        .map(|revocation| json!({"at": json_time(revocation.at), "reason": revocation.reason}));
    json!({
        "id": record.id.to_string(),
        "owner": record.owner.as_str(),
        "owner_active": record.owner_active,
        "hash": record.hash.to_hex(),
        "format": record.format.map(|format| format.as_str()),
        "name": record.name,
        "scopes": record.scopes.as_str(),
        "created_at": json_time(record.created_at),
        "last_used_at": json_time(record.last_used_at),
        "expires_at": json_time(record.expires_at),
        "revoked": revocation,
    })
}

/// Read records that export printed, from standard input
///
/// Every thousand are checked and written at a time. What is there already is passed over, so an import
/// that was interrupted is run again with the whole file.
#[derive(Args)]
#[command(
    after_help = "Example, into a new database:\n  lxk schema apply --create\n  lxk import < keys.jsonl"
)]
pub struct Import {
    /// Only check the input
    #[arg(long)]
    dry_run: bool,
}

pub async fn import(
    command: Import,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let database = if command.dry_run { None } else { Some(Database::open_to_change(url).await?) };
    let mut import = Importer {
        database: database.as_ref(),
        digest: Sha256::new(),
        count: 0,
        batch: Vec::with_capacity(BATCH),
        added: 0,
        unchanged: 0,
        progress: Progress::new(0),
    };
    let mut input = std::io::stdin().lock();
    interruption::listen()?;
    let done = import.read(&mut input).await;
    let Importer { count, added, unchanged, .. } = import;
    if let Err(failure) = done {
        let so_far = format!("{} added so far", pluralize(added, "record"));
        let again = "run it again with the whole input for the rest";
        let failure = match failure {
            Failure::Refused(text) => Failure::Refused(format!("{text}; {so_far}")),
            Failure::Unavailable(text) => {
                Failure::Unavailable(format!("{text}; {so_far}, {again}"))
            }
            Failure::Interrupted(signal, text) => {
                Failure::Interrupted(signal, format!("{text}; {so_far}, {again}"))
            }
            failure => failure,
        };
        return Err(match &database {
            Some(database) => failure.and(database.check_invalidation().await),
            None => failure,
        });
    }
    output.object(&json!({
        "dry_run": command.dry_run,
        "records": count,
        "added": added,
        "unchanged": unchanged,
    }));
    let count = pluralize(count as u64, "record");
    if command.dry_run {
        output.line(format!("{count} well-formed, digests right"));
    } else {
        output.line(format!("{count}: {added} added, {unchanged} there already"));
    }
    match database {
        Some(database) => database.check_invalidation().await,
        None => Ok(()),
    }
}

struct Importer<'a> {
    /// Without one, it is only checked.
    database: Option<&'a Database>,
    digest: Sha256,
    count: usize,
    batch: Vec<KeyRecord>,
    added: u64,
    unchanged: u64,
    progress: Progress,
}

impl Importer<'_> {
    /// Reads to the end, and writes batch by batch.
    async fn read(&mut self, input: &mut impl BufRead) -> Result<(), Failure> {
        let mut line = String::new();
        let mut number = 0_u64;
        loop {
            line.clear();
            number += 1;
            let wrong = |problem: &str| Failure::Refused(format!("line {number} {problem}"));
            let length = input.by_ref().take(LONGEST_LINE).read_line(&mut line);
            let length = length.map_err(|_| wrong("is not UTF-8 text"))?;
            if length == 0 {
                return Err(Failure::Refused("the input ends before its end line".to_owned()));
            }
            let not_json = || wrong("is not what export prints");
            let object: Value = serde_json::from_str(&line).map_err(|_| not_json())?;
            if let Some(record) = object.get("record") {
                if self.batch.len() == BATCH {
                    return Err(wrong("comes where a checkpoint is due"));
                }
                self.digest.update(&line);
                self.count += 1;
                self.batch.push(
                    parse_record(record)
                        .map_err(|field| wrong(&format!("has no readable {field}")))?,
                );
            } else if let Some(claimed) = object.get("checkpoint") {
                self.check(claimed).map_err(wrong)?;
                self.write().await?;
            } else if let Some(claimed) = object.get("end") {
                self.check(claimed).map_err(wrong)?;
                self.write().await?;
                line.clear();
                return match input.by_ref().take(1).read_line(&mut line) {
                    Ok(0) => Ok(()),
                    _ => Err(Failure::Refused(format!("more comes after the end, line {number}"))),
                };
            } else {
                return Err(not_json());
            }
        }
    }

    fn check(&self, claimed: &Value) -> Result<(), &'static str> {
        let actual = checkpoint(self.count, &self.digest);
        if claimed["records"] != actual["records"] {
            return Err("counts other records than came before it");
        }
        if claimed["sha256"] != actual["sha256"] {
            return Err("has another digest than the records before it, which were altered");
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.batch);
        let Some(database) = self.database else { return Ok(()) };
        let interruption = Interruption::listen()?;
        let imported = database.table.import(&batch).await;
        if let Some(redis) = database.redis() {
            // What Redis holds stays true: an import changes no row that was there.
            redis.invalidate(Change::Added).await;
        }
        let imported = imported?;
        self.progress.set(self.count as u64);
        if let Some(first) = imported.conflicts.first() {
            return Err(Failure::Refused(format!(
                "{} differ from what is there under the same id or hash, {first} the first; nothing \
                 from here on was added",
                pluralize(imported.conflicts.len() as u64, "record")
            )));
        }
        self.added += imported.added;
        self.unchanged += imported.unchanged;
        interruption.check()
    }
}

/// Reads what [`record_object`] made, or names the field that is wrong.
fn parse_record(object: &Value) -> Result<KeyRecord, &'static str> {
    let text = |name| object.get(name).and_then(Value::as_str).ok_or(name);
    let hash = KeyHash::from_hex(text("hash")?).ok_or("hash")?;
    let mut record = KeyRecord::new(text("id")?.into(), text("owner")?.into(), hash);
    record.owner_active =
        object.get("owner_active").and_then(Value::as_bool).ok_or("owner_active")?;
    record.name = text("name")?.into();
    record.scopes = text("scopes")?.into();
    record.format = match &object["format"] {
        Value::Null => None,
        format => Some(format.as_str().and_then(HashFormat::from_name).ok_or("format")?),
    };
    record.created_at = parse_time(object, "created_at")?;
    record.last_used_at = parse_time(object, "last_used_at")?;
    record.expires_at = parse_time(object, "expires_at")?;
    record.revocation = match &object["revoked"] {
        Value::Null => None,
        revoked => Some(Box::new(Revocation {
            at: parse_time(revoked, "at")?,
            reason: revoked["reason"].as_str().map(Into::into),
        })),
    };
    Ok(record)
}

fn parse_time(object: &Value, name: &'static str) -> Result<Option<SystemTime>, &'static str> {
    match &object[name] {
        Value::Null => Ok(None),
        Value::String(text) => {
            let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| name)?.into();
            // Only the form that export writes is accepted.
            (timestamp(time).as_ref() == Some(text)).then_some(Some(time)).ok_or(name)
        }
        _ => Err(name),
    }
}
