//! The steps of the migration from SHA-256.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use lexikon_auth::LegacyPolicy;
use lexikon_auth::admin::{
    DeprecatedKeys, KeyFilter, KeyTable, KnownFormat, LastUses, ListedKey, StoredPolicy,
};
use serde_json::{Value, json};

use crate::arguments::{ago, ahead, date as parse_date, past_date, span};
use crate::bulk::{self, Bulk, RUN_AGAIN};
use crate::database::{Database, variable};
use crate::escape::cell;
use crate::failure::Failure;
use crate::keys;
use crate::output::{Mood, Output, columns, counted, date, json_time, say, waiting};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Subcommand)]
pub enum Command {
    Status(Status),
    /// Show the policy that instances follow, or set it
    Policy(Policy),
    Owners(Owners),
    Deprecate(Deprecate),
    Revoke(Revoke),
    RollbackCheck(RollbackCheck),
}

/// What tells legacy keys that no row marks.
#[derive(Args)]
struct Legacy {
    /// When HMAC-SHA-256 was first deployed: keys made before are legacy, unless their row says otherwise
    ///
    /// Where you are not sure, take an earlier date. With a later one, good keys would count as legacy.
    #[arg(long, value_parser = past_date, value_name = "DATE")]
    before: Option<SystemTime>,
}

impl Legacy {
    fn keys(&self) -> KeyFilter {
        KeyFilter::legacy(self.before)
    }
}

pub async fn run(command: Command, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let is_change = match &command {
        Command::Deprecate(command) => !command.dry_run,
        Command::Revoke(command) => !command.dry_run,
        _ => false,
    };
    let database = match is_change {
        true => Database::open_to_change(url).await?,
        false => Database::open(url).await?,
    };
    match command {
        Command::Status(command) => status(command, &database.table, output).await,
        Command::Policy(command) => policy(command, &database.table, output).await,
        Command::Owners(command) => owners(command, &database.table, output).await,
        Command::Deprecate(command) => deprecate(command, &database, output).await,
        Command::Revoke(command) => revoke(command, &database, output).await,
        Command::RollbackCheck(command) => rollback_check(command, &database.table, output).await,
    }
}

/// Show how far the migration is
///
/// The format of a key is known from its row, where issuing, use or an upgrade has marked it, and from
/// --before. Otherwise it is unknown: both formats look alike.
#[derive(Args)]
#[command(after_help = "Example:\n  lxk migrate status --before 2026-11-01")]
pub struct Status {
    #[command(flatten)]
    legacy: Legacy,
}

async fn status(
    Status { legacy }: Status,
    table: &KeyTable,
    output: &mut Output,
) -> Result<(), Failure> {
    let status = waiting(table.migration_status(legacy.before)).await?;
    output.line(columns(&[
        ("format", 11),
        ("known from", 10),
        ("keys", 8),
        ("in force", 8),
        ("used 24 h", 9),
        ("used 7 d", 8),
        ("owners", 8),
    ]));
    for class in &status.classes {
        let known_from = match (class.format, class.by_date) {
            (KnownFormat::Unknown, _) => "-",
            (_, true) => "date",
            (_, false) => "row",
        };
        output.object(&json!({
            "format": class.format.as_str(),
            "known_from": (class.format != KnownFormat::Unknown).then_some(known_from),
            "keys": class.keys,
            "in_force": class.in_force,
            "used_in_day": class.used_in_day,
            "used_in_week": class.used_in_week,
            "owners": class.owners,
        }));
        output.line(columns(&[
            (class.format.as_str(), 11),
            (known_from, 10),
            (&class.keys.to_string(), 8),
            (&class.in_force.to_string(), 8),
            (&class.used_in_day.to_string(), 9),
            (&class.used_in_week.to_string(), 8),
            (&class.owners.to_string(), 8),
        ]));
    }
    let policies = table.policies(1).await?;
    let impact = status.impact;
    output.object(&json!({
        "policy": policies.first().map(policy_object),
        "would_break": impact.keys,
        "would_break_used_in_week": impact.used_in_week,
        "would_break_owners": impact.owners,
        "may_break": impact.unknown,
    }));
    output.line("");
    output.line(format!("policy   {}", policy_line(policies.first())));
    output.line(format!(
        "refusing legacy keys now would break {} of {}, {} of them used in the last 7 days",
        counted(impact.keys, "key"),
        counted(impact.owners, "owner"),
        impact.used_in_week
    ));
    if impact.unknown > 0 {
        let more = if legacy.before.is_none() { "; --before DATE tells more" } else { "" };
        let unknown = counted(impact.unknown, "key");
        output.line(format!("and perhaps some of {unknown} of unknown format{more}"));
    }
    let used = legacy.keys().used_since(ago(30 * DAY));
    chart(&waiting(table.last_uses_by_day(&used)).await?, output);
    Ok(())
}

/// When legacy keys were last used, a bar a day.
fn chart(days: &[LastUses], output: &mut Output) {
    const WIDTH: u64 = 40;
    let Some(most) = days.iter().map(|uses| uses.keys).max() else { return };
    output.line("");
    output.line("legacy keys by the day of their last use, as far as it has been recorded");
    for LastUses { day, keys: count, .. } in days {
        output.object(&json!({"day": day, "last_used": count}));
        let bar = "█".repeat((count * WIDTH).div_ceil(most) as usize);
        output.line(format!("{day}  {bar} {count}"));
    }
}

#[derive(Args)]
#[command(after_help = "Examples:
  lxk migrate policy
  lxk migrate policy shadow
  lxk migrate policy accept-until 2026-12-01

Instances that follow the stored policy do so within 2 seconds, without a restart:
  accept        legacy keys are accepted
  accept-until  until the date
  upgrade       accepted, and their hash is replaced when they are used: v0.9 refuses them then
  shadow        accepted, and what refuse would refuse is counted and logged
  refuse        refused")]
pub struct Policy {
    /// The policy; without one, the latest are shown
    policy: Option<PolicyName>,
    /// The date of accept-until
    #[arg(value_parser = parse_date, value_name = "DATE")]
    date: Option<SystemTime>,
    /// Who sets it; the user of this command unless given
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PolicyName {
    Accept,
    AcceptUntil,
    Upgrade,
    Shadow,
    Refuse,
}

async fn policy(command: Policy, table: &KeyTable, output: &mut Output) -> Result<(), Failure> {
    let Some(name) = command.policy else {
        let policies = table.policies(10).await?;
        for stored in &policies {
            output.object(&policy_object(stored));
            output.line(policy_line(Some(stored)));
        }
        if policies.is_empty() {
            output.object(&json!({
                "policy": null,
                "accept_until": null,
                "changed_at": null,
                "changed_by": null,
            }));
            output.line(policy_line(None));
        }
        return Ok(());
    };
    let policy = match (name, command.date) {
        (PolicyName::AcceptUntil, Some(date)) if date <= SystemTime::now() => {
            let problem = "that date has passed; say refuse, which is the same";
            return Err(Failure::Usage(problem.to_owned()));
        }
        (PolicyName::AcceptUntil, Some(date)) => LegacyPolicy::AcceptUntil(date),
        (PolicyName::AcceptUntil, None) => {
            return Err(Failure::Usage("accept-until needs a date, such as 2026-12-01".to_owned()));
        }
        (_, Some(_)) => {
            return Err(Failure::Usage("only accept-until takes a date".to_owned()));
        }
        (PolicyName::Accept, None) => LegacyPolicy::Accept,
        (PolicyName::Upgrade, None) => LegacyPolicy::UpgradeOnUse,
        (PolicyName::Shadow, None) => LegacyPolicy::Shadow,
        (PolicyName::Refuse, None) => LegacyPolicy::Refuse,
    };
    let by = command.by.or_else(|| variable("SUDO_USER")).or_else(|| variable("USER"));
    let by = by.unwrap_or_else(|| "unknown".to_owned());
    if by.len() > 1024 || by.contains('\0') {
        return Err(Failure::Usage(
            "--by is longer than 1024 bytes, or has a NUL in it".to_owned(),
        ));
    }
    if command.dry_run {
        let before = table.policies(1).await?;
        let until = command.date.filter(|_| matches!(policy, LegacyPolicy::AcceptUntil(_)));
        output.object(&json!({
            "dry_run": true,
            "policy": policy.as_str(),
            "accept_until": json_time(until),
            "replaces": before.first().map(policy_object),
        }));
        output.line(format!("now      {}", policy_line(before.first())));
        output.line(format!("would be {}", words(policy)));
        return Ok(());
    }
    table.set_policy(policy, &by).await?;
    let stored = table.policies(1).await?;
    output.object(&stored.first().map_or(Value::Null, policy_object));
    output.line(policy_line(stored.first()));
    output.line("Instances that follow it have it within 2 seconds.");
    Ok(())
}

fn words(policy: LegacyPolicy) -> String {
    match policy {
        LegacyPolicy::AcceptUntil(until) => format!("accept-until {}", date(Some(until), "")),
        policy => policy.as_str().to_owned(),
    }
}

fn policy_line(stored: Option<&StoredPolicy>) -> String {
    match stored {
        Some(stored) => format!(
            "{}, since {} by {}",
            words(stored.policy),
            date(Some(stored.changed_at), ""),
            stored.changed_by
        ),
        None => "none stored: instances go by what their code says, accept unless told".to_owned(),
    }
}

fn policy_object(stored: &StoredPolicy) -> Value {
    let until = match stored.policy {
        LegacyPolicy::AcceptUntil(date) => Some(date),
        _ => None,
    };
    json!({
        "policy": stored.policy.as_str(),
        "accept_until": json_time(until),
        "changed_at": json_time(Some(stored.changed_at)),
        "changed_by": stored.changed_by,
    })
}

/// List the owners who have to be told, with their legacy keys in force
#[derive(Args)]
#[command(after_help = "Example:\n  lxk migrate owners --csv > owners.csv")]
pub struct Owners {
    /// Print comma-separated values, with a header
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    legacy: Legacy,
}

async fn owners(command: Owners, table: &KeyTable, output: &mut Output) -> Result<(), Failure> {
    let filter = command.legacy.keys().in_force().by_owner();
    if command.csv {
        let mut csv = csv::Writer::from_writer(output);
        csv.write_record(["owner", "email", "key_id", "key_name", "last_used_at", "expires_at"])?;
        let listed = table.each_key(&filter, |ListedKey { record, email, .. }| {
            let time = |time: Option<SystemTime>| {
                time.and_then(crate::output::timestamp).unwrap_or_default()
            };
            csv.write_record([
                cell(record.owner.as_str()),
                cell(email.as_deref().unwrap_or_default()),
                cell(&record.id.to_string()),
                cell(&record.name),
                time(record.last_used_at),
                time(record.expires_at),
            ])?;
            csv.get_ref().wanted()
        });
        waiting(listed).await?;
        return Ok(csv.flush()?);
    }
    let mut owner = None;
    let (mut owners, mut keys) = (0, 0);
    let listed = table.each_key(&filter, |ListedKey { record, email, .. }| {
        output.object(&json!({
            "owner": record.owner.as_str(),
            "email": email,
            "key_id": record.id.to_string(),
            "key_name": record.name,
            "last_used_at": json_time(record.last_used_at),
            "expires_at": json_time(record.expires_at),
        }));
        if owner.as_ref() != Some(&record.owner) {
            output.line(format!("{}  {}", record.owner, email.unwrap_or_default()));
            owners += 1;
        }
        keys += 1;
        output.line(format!(
            "  {}  {}, last used {}, expires {}",
            record.id,
            record.name,
            date(record.last_used_at, "never"),
            date(record.expires_at, "never")
        ));
        owner = Some(record.owner);
        output.wanted()
    });
    listed.await?;
    output.line(format!("{} of {}", counted(keys, "key"), counted(owners, "owner")));
    Ok(())
}

/// Have legacy keys expire, in instances of every version, or take that back
///
/// Sets their expiry to the date, never later than they had, and remembers what it was.
#[derive(Args)]
#[command(after_help = "Examples:
  lxk migrate deprecate --revoke-in 7d --dry-run
  lxk migrate deprecate --revoke-in 7d
  lxk migrate deprecate --undo")]
pub struct Deprecate {
    /// When they expire, such as 7d
    #[arg(long, value_parser = span, value_name = "TIME", required_unless_present_any = ["undo", "revoke_at"])]
    revoke_in: Option<Duration>,
    /// The same as a date: to go on with what was interrupted
    #[arg(long, value_parser = parse_date, value_name = "DATE", conflicts_with = "revoke_in")]
    revoke_at: Option<SystemTime>,
    /// Give keys back the expiry that they had
    #[arg(long, conflicts_with_all = ["revoke_in", "revoke_at", "before"])]
    undo: bool,
    /// With --undo: only keys whose hash has been upgraded since
    #[arg(long, requires = "undo")]
    upgraded: bool,
    /// Only say how many keys would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    legacy: Legacy,
}

async fn deprecate(
    command: Deprecate,
    database: &Database,
    output: &mut Output,
) -> Result<(), Failure> {
    let table = &database.table;
    let now = SystemTime::now();
    let expires_at = match (command.revoke_in, command.revoke_at) {
        (Some(span), _) => to_whole_minutes(ahead(span)?, span),
        (None, Some(date)) if date <= now => {
            return Err(Failure::Usage("that date has passed; choose a later one".to_owned()));
        }
        (None, Some(date)) => date,
        (None, None) => return undo(&command, database, output).await,
    };
    let filter = command.legacy.keys();
    let total = waiting(table.count_deprecatable(&filter, expires_at)).await?;
    let word = if command.dry_run { "would be set" } else { "set" };
    say_by_date(table, &command.legacy).await?;
    let again = crate::output::timestamp(expires_at).unwrap_or_default();
    if !command.dry_run {
        // Before anything can be interrupted.
        say(format_args!("note: to go on after an interruption, say --revoke-at {again}"));
    }
    let changed = match command.dry_run {
        true => total,
        false => {
            let go_on = format!("say --revoke-at {again}");
            let change = async |bulk: &mut Bulk| table.deprecate(&filter, expires_at, bulk).await;
            bulk::change(database, total, &go_on, change).await?
        }
    };
    output.object(&json!({
        "dry_run": command.dry_run,
        "deprecated": changed,
        "expires_at": json_time(Some(expires_at)),
    }));
    output.line(format!(
        "the expiry of {} {word} to {}; take it back with: lxk migrate deprecate --undo",
        counted(changed, "legacy key"),
        date(Some(expires_at), "")
    ));
    if let Some(dates) = table.deprecation_dates().await?
        && dates.earliest < to_microseconds(expires_at)
    {
        let earliest = date(Some(dates.earliest), "");
        output.line(format!("others were given an earlier date before, from {earliest} on"));
    }
    say_passed_over(table, &command.legacy, output).await?;
    database.told().await
}

/// A date that is easily said again, where a minute more does not matter.
fn to_whole_minutes(time: SystemTime, span: Duration) -> SystemTime {
    const HOUR: Duration = Duration::from_secs(3600);
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    match span >= HOUR {
        true => SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs().div_ceil(60) * 60),
        false => time,
    }
}

/// A date as databases keep it.
fn to_microseconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_micros(since.as_micros() as u64)
}

async fn undo(
    command: &Deprecate,
    database: &Database,
    output: &mut Output,
) -> Result<(), Failure> {
    let table = &database.table;
    let keys = if command.upgraded { DeprecatedKeys::Upgraded } else { DeprecatedKeys::All };
    let total = waiting(table.count_deprecated(keys)).await?;
    if command.dry_run {
        output.object(&json!({"dry_run": true, "restored": total}));
        output.line(format!("the expiry of {} would be restored", counted(total, "key")));
        return Ok(());
    }
    let change = async |bulk: &mut Bulk| table.undo_deprecation(keys, bulk).await;
    let restored = bulk::change(database, total, RUN_AGAIN, change).await?;
    output.object(&json!({"dry_run": false, "restored": restored}));
    output.line(format!("the expiry of {} restored", counted(restored, "key")));
    database.told().await
}

/// Says how many keys a step passed over because nothing tells their format.
async fn say_passed_over(
    table: &KeyTable,
    legacy: &Legacy,
    output: &mut Output,
) -> Result<(), Failure> {
    output.flush();
    let unknown = KeyFilter::default().format(KnownFormat::Unknown).first_deployed(legacy.before);
    let unknown = waiting(table.count(&unknown.in_force())).await?;
    if unknown > 0 {
        let more = if legacy.before.is_none() { "; --before DATE tells more" } else { "" };
        let unknown = counted(unknown, "key");
        say(format_args!("note: left as is: {unknown} of unknown format in force{more}"));
    }
    Ok(())
}

/// Says how many keys count as legacy because of their date alone, and whether that date is in doubt.
async fn say_by_date(table: &KeyTable, legacy: &Legacy) -> Result<(), Failure> {
    let Some(before) = legacy.before else { return Ok(()) };
    let status = waiting(table.migration_status(legacy.before)).await?;
    let by_date = status.classes.iter().find(|class| class.by_date).map_or(0, |class| class.keys);
    if by_date > 0 {
        let modern = KeyFilter::default().format(KnownFormat::HmacSha256).made_before(before);
        let modern = waiting(table.count(&modern)).await?;
        say(format_args!(
            "note: legacy by the date alone: {}; HMAC-SHA-256 though made before it: {}. If fewer were \
             upgraded, the date is too late",
            counted(by_date, "key"),
            counted(modern, "key")
        ));
    }
    Ok(())
}

/// Revoke legacy keys, for good
///
/// Refused while any has been used lately, with a list of those.
#[derive(Args)]
#[command(after_help = "Examples:
  lxk migrate revoke --dry-run
  lxk migrate revoke --unused-for 48h")]
pub struct Revoke {
    /// How long none of them may have been used
    #[arg(long, value_parser = span, value_name = "TIME", default_value = "24h")]
    unused_for: Duration,
    /// Revoke them even so
    #[arg(long)]
    force: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    legacy: Legacy,
}

async fn revoke(command: Revoke, database: &Database, output: &mut Output) -> Result<(), Failure> {
    let table = &database.table;
    let legacy = command.legacy.keys();
    let in_use = legacy.clone().in_force().used_since(ago(command.unused_for));
    let used = waiting(table.count(&in_use)).await?;
    if used > 0 && !command.force {
        list_some(table, &in_use, output).await?;
        return Err(Failure::Refused(format!(
            "{} used in the last {}; tell their owners, or say --force",
            counted(used, "legacy key"),
            hours(command.unused_for)
        )));
    }
    if let Some(dates) = table.deprecation_dates().await?
        && dates.latest > SystemTime::now()
        && !command.force
    {
        return Err(Failure::Refused(format!(
            "owners were given time until {}; wait, or say --force",
            date(Some(dates.latest), "")
        )));
    }
    let unrevoked = legacy.clone().unrevoked();
    let total = waiting(table.count(&unrevoked)).await?;
    say_by_date(table, &command.legacy).await?;
    if command.dry_run && !output.is_json() {
        list_some(table, &unrevoked, output).await?;
    }
    let revoked = match command.dry_run {
        true => total,
        false => {
            let change = async |bulk: &mut Bulk| {
                table.revoke_all(&legacy, "stored as plain SHA-256", bulk).await
            };
            bulk::change(database, total, RUN_AGAIN, change).await?
        }
    };
    output.object(&json!({"dry_run": command.dry_run, "revoked": revoked}));
    let word = if command.dry_run { "would be revoked" } else { "revoked" };
    output.line(format!("{} {word}", counted(revoked, "legacy key")));
    say_passed_over(table, &command.legacy, output).await?;
    database.told().await
}

/// A time in the words of whoever gave it.
fn hours(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds % 3600 == 0 => counted(seconds / 3600, "hour"),
        _ => humantime::format_duration(span).to_string(),
    }
}

/// How many keys are shown to people where there may be very many.
const SHOWN: usize = 20;

/// Lists keys: all for machines, some for people.
pub async fn list_some(
    table: &KeyTable,
    filter: &KeyFilter,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut shown = 0;
    let listed = table.each_key(filter, |key| {
        if shown == SHOWN && !output.is_json() {
            output.line("...");
            return Err(Failure::Unread);
        }
        shown += 1;
        keys::print(&key.record, output);
        output.wanted()
    });
    match listed.await {
        // What comes after the list is said by the exit code.
        Ok(()) | Err(Failure::Unread) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Show what a rollback to older code would do; exit code 1 when that is anything
///
/// v0.9 knows SHA-256 alone, v1.0 HMAC-SHA-256 under API_KEY_SECRET alone.
#[derive(Args)]
#[command(after_help = "Example:\n  lxk migrate rollback-check --to v0.9")]
pub struct RollbackCheck {
    /// The version
    #[arg(long, value_enum)]
    to: Version,
    #[command(flatten)]
    legacy: Legacy,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Version {
    #[value(name = "v0.9")]
    V0_9,
    #[value(name = "v1.0")]
    V1_0,
}

async fn rollback_check(
    command: RollbackCheck,
    table: &KeyTable,
    output: &mut Output,
) -> Result<(), Failure> {
    let refuses_legacy = match table.policies(1).await?.first().map(|stored| stored.policy) {
        Some(LegacyPolicy::Refuse) => true,
        Some(LegacyPolicy::AcceptUntil(date)) => date <= SystemTime::now(),
        _ => false,
    };
    let of = |format| {
        KeyFilter::default().format(format).first_deployed(command.legacy.before).in_force()
    };
    let (stops, kept) = match command.to {
        Version::V0_9 => (KnownFormat::HmacSha256, KnownFormat::Sha256),
        Version::V1_0 => (KnownFormat::Sha256, KnownFormat::HmacSha256),
    };
    let mut effects = vec![
        ("stops", "would no longer be accepted", of(stops)),
        ("may_stop", "of unknown format may no longer be accepted", of(KnownFormat::Unknown)),
    ];
    if refuses_legacy && kept == KnownFormat::Sha256 {
        effects.push(("reopens", "are refused now, and would be accepted again", of(kept)));
    }
    if refuses_legacy && stops == KnownFormat::Sha256 {
        // The policy refuses them already: nothing changes for them.
        effects.remove(0);
    }
    let mut counts = BTreeMap::new();
    for (effect, meaning, filter) in &effects {
        let count = waiting(table.count(filter)).await?;
        counts.insert(*effect, count);
        let mood = if count == 0 { Mood::Good } else { Mood::Bad };
        output.judged(
            mood,
            &effect.replace('_', " "),
            &format!("{} {meaning}", counted(count, "key")),
        );
        if count > 0 {
            if output.is_json() {
                let listed = table.each_key(filter, |key| {
                    output.object(&json!({
                        "effect": effect,
                        "id": key.record.id.to_string(),
                        "owner": key.record.owner.as_str(),
                        "last_used_at": json_time(key.record.last_used_at),
                    }));
                    Ok::<_, Failure>(())
                });
                listed.await?;
            } else {
                list_some(table, filter, output).await?;
            }
        }
    }
    output.object(&json!({"counts": counts}));
    match counts.values().sum() {
        0 => Ok(()),
        count => Err(Failure::Refused(format!("{} concerned", counted(count, "key")))),
    }
}
