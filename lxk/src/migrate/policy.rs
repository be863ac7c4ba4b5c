//! `lxk migrate policy`.

use std::time::SystemTime;

use clap::{Args, ValueEnum};
use lexikon_auth::LegacyPolicy;
use lexikon_auth::admin::{KeyTable, StoredPolicy};
use serde_json::{Value, json};

use crate::database::Database;
use crate::environment::variable;
use crate::failure::Failure;
use crate::output::Output;
use crate::times::{format_date, json_time, parse_date};

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

pub async fn run(command: Policy, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let table = Database::open(url).await?.table;
    match command.policy {
        None => show(&table, output).await,
        Some(name) => set(policy(name, command.date)?, command, &table, output).await,
    }
}

async fn show(table: &KeyTable, output: &mut Output) -> Result<(), Failure> {
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
    Ok(())
}

async fn set(
    policy: LegacyPolicy,
    command: Policy,
    table: &KeyTable,
    output: &mut Output,
) -> Result<(), Failure> {
    let by = command.by.or_else(|| variable("SUDO_USER")).or_else(|| variable("USER"));
    let by = by.unwrap_or_else(|| "unknown".to_owned());
    if by.len() > 1024 || by.contains('\0') {
        return Err(Failure::Usage(
            "--by is longer than 1024 bytes, or has a NUL in it".to_owned(),
        ));
    }
    if command.dry_run {
        let before = table.policies(1).await?;
        output.object(&json!({
            "dry_run": true,
            "policy": policy.as_str(),
            "accept_until": json_time(accept_until(policy)),
            "replaces": before.first().map(policy_object),
        }));
        output.line(format!("now      {}", policy_line(before.first())));
        output.line(format!("would be {}", policy_text(policy)));
        return Ok(());
    }
    table.set_policy(policy, &by).await?;
    let stored = table.policies(1).await?;
    output.object(&stored.first().map_or(Value::Null, policy_object));
    output.line(policy_line(stored.first()));
    output.line("Instances that follow it have it within 2 seconds.");
    Ok(())
}

/// Makes a policy of a name, with the date that one of them needs.
fn policy(name: PolicyName, date: Option<SystemTime>) -> Result<LegacyPolicy, Failure> {
    let wrong = |problem: &str| Err(Failure::Usage(problem.to_owned()));
    match (name, date) {
        (PolicyName::AcceptUntil, Some(date)) if date <= SystemTime::now() => {
            wrong("that date has passed; say refuse, which is the same")
        }
        (PolicyName::AcceptUntil, Some(date)) => Ok(LegacyPolicy::AcceptUntil(date)),
        (PolicyName::AcceptUntil, None) => wrong("accept-until needs a date, such as 2026-12-01"),
        (_, Some(_)) => wrong("only accept-until takes a date"),
        (PolicyName::Accept, None) => Ok(LegacyPolicy::Accept),
        (PolicyName::Upgrade, None) => Ok(LegacyPolicy::UpgradeOnUse),
        (PolicyName::Shadow, None) => Ok(LegacyPolicy::Shadow),
        (PolicyName::Refuse, None) => Ok(LegacyPolicy::Refuse),
    }
}

/// Writes the stored policy on a line for people.
pub fn policy_line(stored: Option<&StoredPolicy>) -> String {
    match stored {
        Some(stored) => format!(
            "{}, since {} by {}",
            policy_text(stored.policy),
            format_date(Some(stored.changed_at), ""),
            stored.changed_by
        ),
        None => "none stored: instances go by what their code says, accept unless told".to_owned(),
    }
}

/// Makes an object of a stored policy, for programs.
pub fn policy_object(stored: &StoredPolicy) -> Value {
    json!({
        "policy": stored.policy.as_str(),
        "accept_until": json_time(accept_until(stored.policy)),
        "changed_at": json_time(Some(stored.changed_at)),
        "changed_by": stored.changed_by,
    })
}

fn policy_text(policy: LegacyPolicy) -> String {
    match policy {
        LegacyPolicy::AcceptUntil(date) => format!("accept-until {}", format_date(Some(date), "")),
        policy => policy.as_str().to_owned(),
    }
}

fn accept_until(policy: LegacyPolicy) -> Option<SystemTime> {
    match policy {
        LegacyPolicy::AcceptUntil(date) => Some(date),
        _ => None,
    }
}
