//! The figures as Markdown.

use std::fmt::Write;

use lexikon_auth_benches::UNIT;

use crate::run::Run;

/// A function, and the most that it may take, as a multiple of the unit, where that is set.
type Work = (&'static str, Option<f64>);

/// Groups in the order of the table, each with its heading.
const GROUPS: [(&str, &str, &[Work]); 11] = [
    (
        "limit",
        "The limit: bare SHA-256 compressions",
        &[("one compression", None), ("two compressions in series", None), (UNIT, None)],
    ),
    (
        "digest, secrets: 1",
        "All digests of a key, 1 secret",
        &[("untagged", Some(1.15)), ("tagged", None)],
    ),
    (
        "digest, secrets: 2",
        "All digests of a key, 2 secrets",
        &[("untagged", None), ("tagged", None)],
    ),
    (
        "digest, secrets: 3",
        "All digests of a key, 3 secrets",
        &[("untagged", None), ("tagged", None)],
    ),
    ("verify, keys: 1000", "Verification, 1 000 keys in memory", &SMALL),
    ("verify, keys: 100000", "Verification, 100 000 keys in memory", &MEDIUM),
    ("verify, keys: 1000000", "Verification, 1 000 000 keys in memory", &LARGE),
    (
        "sqlite",
        "Verification, 100 000 keys in a SQLite file",
        &[("bare SELECT", None), ("verify", None)],
    ),
    ("issue", "Issuing into memory", &[("issue", None)]),
    (
        "alternatives, digest",
        "HMAC and SHA-256 of an untagged key, by others",
        &[("lexikon-auth", None), ("hmac and sha2", None), ("ring", None), ("aws-lc-rs", None)],
    ),
    (
        "alternatives, verify",
        "Verification, 100 000 keys in memory, by others",
        &[
            ("lexikon-auth, HMAC", None),
            ("plain code, HMAC", None),
            ("lexikon-auth, legacy", None),
            ("plain code, legacy", None),
            ("lexikon-auth, tagged", None),
            ("prefixed-api-key", None),
            ("api-keys-simplified", None),
        ],
    ),
];

const SMALL: [Work; 11] = verify(None, None);
const MEDIUM: [Work; 11] = verify(Some(2.0), Some(1.1));
/// More keys than are noted between two flushes: each use is the first since one.
const LARGE: [Work; 8] = {
    let [_, tagged, _, untagged, _, legacy, rest @ ..] = verify(None, None);
    let [unknown, forged, malformed, expired, revoked] = rest;
    [tagged, untagged, legacy, unknown, forged, malformed, expired, revoked]
};

const fn verify(hit: Option<f64>, forged: Option<f64>) -> [Work; 11] {
    [
        ("hit, HMAC, tagged", hit),
        ("hit, HMAC, tagged, first use since a flush", None),
        ("hit, HMAC, untagged", hit),
        ("hit, HMAC, untagged, first use since a flush", None),
        ("hit, legacy", hit),
        ("hit, legacy, first use since a flush", None),
        ("unknown", None),
        ("forged tag", forged),
        ("malformed", None),
        ("expired", None),
        ("revoked", None),
    ]
}

pub fn markdown(run: &Run) -> Result<String, Box<dyn std::error::Error>> {
    let mut text = String::new();
    writeln!(text, "Measured on: {}.\n", run.machine)?;
    writeln!(
        text,
        "The unit is three bare compressions of SHA-256, what an untagged key takes at least: {}. \
         Every group is divided by the unit measured in that group. Medians.\n",
        duration(run.time("limit", UNIT)?),
    )?;
    writeln!(text, "| work | time | x unit | goal |\n| --- | ---: | ---: | --- |")?;
    for (group, heading, functions) in GROUPS {
        writeln!(text, "| **{heading}** | | | |")?;
        for &(function, most) in functions {
            let ratio = run.ratio(group, function)?;
            let goal = most.map_or_else(String::new, |most| goal(ratio, "at most", most, "x"));
            let time = duration(run.time(group, function)?);
            writeln!(text, "| {function} | {time} | {} | {goal} |", significant(ratio))?;
        }
    }
    writeln!(text, "\n| | | goal |\n| --- | ---: | --- |")?;
    let keys = 1e9 / run.time("issue", "issue")?;
    writeln!(text, "| keys issued a second, one thread | {} | |", thousands(keys))?;
    let two = 2.0 * run.time("threads", "threads: 1")? / run.time("threads", "threads: 2")?;
    writeln!(text, "| throughput of two threads on one store, against one | {two:.2} x | |")?;
    let sqlite = run.time("sqlite", "bare SELECT")? / run.time("sqlite", "verify")?;
    writeln!(
        text,
        "| throughput through SQLite, against the bare SELECT | {sqlite:.2} x | {} |",
        goal(sqlite, "at least", 0.8, "x"),
    )?;
    writeln!(
        text,
        "| bytes a key, 1 000 000 keys in memory | {:.0} | {} |",
        run.bytes_a_key,
        goal(run.bytes_a_key, "at most", 400.0, ""),
    )?;
    writeln!(
        text,
        "| allocations a verification | {} | {} |",
        run.allocations_a_verification,
        goal(run.allocations_a_verification, "at most", 0.0, ""),
    )?;
    Ok(text)
}

fn goal(value: f64, direction: &str, bound: f64, unit: &str) -> String {
    let reached = if direction == "at least" { value >= bound } else { value <= bound };
    let answer = if reached { "reached" } else { "**missed**" };
    let bound = format!("{direction} {bound} {unit}");
    format!("{}: {answer}", bound.trim_end())
}

/// Three digits and a unit of time.
pub fn duration(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        ..1e3 => (nanoseconds, "ns"),
        ..1e6 => (nanoseconds / 1e3, "µs"),
        _ => (nanoseconds / 1e6, "ms"),
    };
    format!("{} {unit}", significant(value))
}

/// Three digits, or all of a larger number.
pub fn significant(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => thousands(value),
    }
}

/// A whole number with a space before each three digits.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
