//! Commands about the server secret.

use std::time::{Duration, SystemTime};

use clap::Subcommand;
use lexikon_auth::admin::{KeyFilter, KeyTable, KnownSecret};
use lexikon_auth::{SecretRing, ServerSecret};
use secrecy::ExposeSecret;
use serde_json::json;

use crate::arguments::{MASKED, ago, past_date};
use crate::database::{Database, ring, variable};
use crate::failure::Failure;
use crate::migrate::list_some;
use crate::output::{Mood, Output, columns, counted, date, json_time, say, waiting};

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
    /// Let the database know every secret of the environment
    Add {
        /// Only say what would be added
        #[arg(long)]
        dry_run: bool,
    },
    /// Say that every instance has API_KEY_SECRET as its current secret, from now on
    Switch {
        /// Only check that it can be said
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the secrets, and which keys still need an old one
    Status(Legacy),
    /// Forget an old secret, once no key needs it
    Remove {
        /// Its fingerprint, as status shows it
        fingerprint: String,
        #[command(flatten)]
        legacy: Legacy,
        /// Forget it even so: no key was issued under it, as when it was added by mistake
        #[arg(long)]
        force: bool,
        /// Only check that it can go
        #[arg(long)]
        dry_run: bool,
    },
}

/// What tells legacy keys, which need no secret.
#[derive(clap::Args)]
pub struct Legacy {
    /// When HMAC-SHA-256 was first deployed: keys made before are legacy, and need no secret
    #[arg(long, value_parser = past_date, value_name = "DATE")]
    before: Option<SystemTime>,
}

pub async fn run(command: Command, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Generate => generate(output),
        Command::Check => check(url, output).await,
        Command::Rotate(Rotate::Add { dry_run }) => add(dry_run, url, output).await,
        Command::Rotate(Rotate::Switch { dry_run }) => switch(dry_run, url, output).await,
        Command::Rotate(Rotate::Status(legacy)) => status(legacy, url, output).await,
        Command::Rotate(Rotate::Remove { fingerprint, legacy, force, dry_run }) => {
            let how = Removal { legacy, force, dry_run };
            remove(&fingerprint, how, url, output).await
        }
    }
}

fn generate(output: &mut Output) -> Result<(), Failure> {
    let secret = ServerSecret::generate()?;
    let fingerprint = ServerSecret::new(&secret)?.fingerprint().to_string();
    output.object(&json!({"secret": secret.expose_secret(), "fingerprint": fingerprint}));
    // Alone on its line, so that the output can be a secret file.
    output.line(secret.expose_secret());
    say(format_args!("fingerprint {fingerprint}"));
    Ok(())
}

async fn check(url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let is_named = url.is_some() || variable("DATABASE_URL").is_some();
    let database = match is_named {
        true => Some(Database::open(url).await?),
        false => None,
    };
    let known = match &database {
        Some(database) => Some(database.table.secrets().await?),
        None => None,
    };
    let mut is_unknown = false;
    for (index, fingerprint) in ring.fingerprints().enumerate() {
        let fingerprint = fingerprint.to_string();
        let role = if index == 0 { "current" } else { "retired" };
        let knowledge = match known.as_deref() {
            None => "not asked",
            Some([]) => "knows none yet",
            Some(known) if knows(known, &fingerprint) => "known",
            Some(_) => "unknown",
        };
        is_unknown |= knowledge == "unknown" && index == 0;
        output.object(&json!({
            "fingerprint": fingerprint,
            "role": role,
            "strong": true,
            "database": knowledge,
        }));
        output.line(format!("{fingerprint}  {role}, strong; database: {knowledge}"));
    }
    if is_unknown {
        return Err(unknown(&ring));
    }
    if let (Some(database), Some(known)) = (&database, &known)
        && let Some((fingerprint, keys)) = lacking(&database.table, &ring, known).await?.first()
    {
        return Err(Failure::Refused(format!(
            "{} may need {fingerprint}, which the environment lacks; set it as API_KEY_SECRET_PREVIOUS",
            counted(*keys, "key")
        )));
    }
    Ok(())
}

/// The secrets that the environment lacks and keys may need, with how many those are. A secret that has
/// never been current signs none.
pub async fn lacking(
    table: &KeyTable,
    ring: &SecretRing,
    known: &[KnownSecret],
) -> Result<Vec<(String, u64)>, Failure> {
    let is_here =
        |fingerprint: &str| ring.fingerprints().any(|here| here.to_string() == fingerprint);
    let now = SystemTime::now();
    let current = ring.current().fingerprint().to_string();
    let since = known.iter().find(|secret| secret.fingerprint == current);
    let since = since.and_then(|secret| secret.current_since).unwrap_or(now);
    let mut lacking = Vec::new();
    for (index, secret) in known.iter().enumerate() {
        let was_current = index == 0 || secret.current_since.is_some();
        if was_current && !is_here(&secret.fingerprint) {
            let keys = table.count(&bound(since, &Legacy { before: None })).await?;
            if keys > 0 {
                lacking.push((secret.fingerprint.clone(), keys));
            }
        }
    }
    Ok(lacking)
}

fn knows(known: &[KnownSecret], fingerprint: &str) -> bool {
    known.iter().any(|secret| secret.fingerprint == fingerprint)
}

fn unknown(ring: &SecretRing) -> Failure {
    Failure::Refused(format!(
        "the database does not know the current secret {}; set the right API_KEY_SECRET, or run \
         `lxk secret rotate add` when this one is new",
        ring.current().fingerprint()
    ))
}

async fn add(dry_run: bool, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let table = Database::open(url).await?.table;
    let known = table.secrets().await?;
    for secret in ring.secrets() {
        let fingerprint = secret.fingerprint().to_string();
        let outcome = match (knows(&known, &fingerprint), dry_run) {
            (true, _) => "known already",
            (false, true) => "would be added",
            (false, false) => {
                table.add_secret(secret).await?;
                "added"
            }
        };
        output.object(&json!({"fingerprint": fingerprint, "outcome": outcome}));
        output.line(format!("{fingerprint}  {outcome}"));
    }
    Ok(())
}

async fn switch(dry_run: bool, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let table = Database::open(url).await?.table;
    let fingerprint = ring.current().fingerprint().to_string();
    if !knows(&table.secrets().await?, &fingerprint) {
        return Err(unknown(&ring));
    }
    let known = table.secrets().await?;
    let added =
        |fingerprint: &str| known.iter().find(|secret| secret.fingerprint == fingerprint)?.added_at;
    let mut retired = ring.fingerprints().skip(1).map(|fingerprint| fingerprint.to_string());
    if let Some(newer) = retired.find(|retired| added(retired) > added(&fingerprint)) {
        return Err(Failure::Refused(format!(
            "API_KEY_SECRET_PREVIOUS holds {newer}, which is newer; swap the two on every instance first"
        )));
    }
    if dry_run {
        output.object(&json!({"fingerprint": fingerprint, "outcome": "would be noted"}));
        output.line(format!("{fingerprint} would be noted as the current secret"));
        return Ok(());
    }
    table.switch_to_secret(ring.current()).await?;
    let known = table.secrets().await?;
    let since = known.into_iter().find(|secret| secret.fingerprint == fingerprint);
    let since = since.and_then(|secret| secret.current_since);
    output.object(&json!({"fingerprint": fingerprint, "current_since": json_time(since)}));
    output.line(format!("{fingerprint}  is the current secret since {}", date(since, "now")));
    Ok(())
}

async fn status(legacy: Legacy, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let table = Database::open(url).await?.table;
    let current = ring.current().fingerprint().to_string();
    let known = table.secrets().await?;
    output.line(columns(&[("fingerprint", 16), ("added", 17), ("current since", 17)]));
    for KnownSecret { fingerprint, added_at, current_since, .. } in &known {
        let role = match *fingerprint == current {
            true => "  <- API_KEY_SECRET",
            false => "",
        };
        output.object(&json!({
            "fingerprint": fingerprint,
            "added_at": json_time(*added_at),
            "current_since": json_time(*current_since),
            "current": *fingerprint == current,
        }));
        output.line(columns(&[
            (fingerprint, 16),
            (&date(*added_at, "unknown"), 17),
            (&(date(*current_since, "-") + role), 17),
        ]));
    }
    let since = known.iter().find(|secret| secret.fingerprint == current);
    let Some(since) = since.and_then(|secret| secret.current_since) else {
        output.object(&json!({"needing_older": null, "needing_older_used_in_week": null}));
        output.line(
            "It is not noted since when every instance has the current secret; once it does, run: \
             lxk secret rotate switch",
        );
        return Ok(());
    };
    let bound = bound(since, &legacy);
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
    let keys = waiting(table.count(&bound)).await?;
    let used = waiting(table.count(&bound.used_since(ago(WEEK)))).await?;
    output.object(&json!({"needing_older": keys, "needing_older_used_in_week": used}));
    output.line(format!(
        "{} may need an older secret, {used} of them used in the last 7 days",
        counted(keys, "key")
    ));
    Ok(())
}

/// The keys that may have been issued under a secret before the one that is current since then.
fn bound(since: SystemTime, legacy: &Legacy) -> KeyFilter {
    KeyFilter::default().usable().first_deployed(legacy.before).bound_to_secret_before(since)
}

/// How a secret is removed.
struct Removal {
    legacy: Legacy,
    force: bool,
    dry_run: bool,
}

async fn remove(
    fingerprint: &str,
    Removal { legacy, force, dry_run }: Removal,
    url: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let ring = ring()?;
    let table = Database::open(url).await?.table;
    let known = table.secrets().await?;
    let current = ring.current().fingerprint().to_string();
    if !knows(&known, fingerprint) {
        // It may be the secret itself.
        let is_fingerprint = fingerprint.len() == 16 && hex::decode(fingerprint).is_ok();
        let fingerprint = if is_fingerprint { fingerprint } else { MASKED };
        let problem = format!(
            "the database does not know {fingerprint}; lxk secret rotate status lists what it knows"
        );
        return Err(Failure::Refused(problem));
    }
    if fingerprint == current {
        let problem =
            "this is the current secret; swap API_KEY_SECRET and API_KEY_SECRET_PREVIOUS first";
        return Err(Failure::Refused(problem.to_owned()));
    }
    let since = known.iter().find(|secret| secret.fingerprint == current);
    let since = since.and_then(|secret| secret.current_since);
    let since = since.or(force.then_some(SystemTime::UNIX_EPOCH));
    let Some(since) = since else {
        let problem = "it is not noted since when every instance has the current secret; run first: lxk secret rotate switch";
        return Err(Failure::Refused(problem.to_owned()));
    };
    let bound = bound(since, &legacy);
    let needing = waiting(table.count(&bound)).await?;
    if needing > 0 && !force {
        list_some(&table, &bound, output).await?;
        return Err(Failure::Refused(format!(
            "{} may still need it; rotate or revoke them first, or wait for their expiry",
            counted(needing, "key")
        )));
    }
    if !dry_run {
        table.forget_secret(fingerprint).await?;
    }
    let outcome = if dry_run { "could be removed" } else { "removed" };
    output.object(&json!({"fingerprint": fingerprint, "outcome": outcome}));
    output.judged(Mood::Good, outcome, fingerprint);
    output.line("Take it from API_KEY_SECRET_PREVIOUS of every instance.");
    Ok(())
}
