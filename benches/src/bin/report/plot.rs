//! The figures as a drawing: one bar for each, in multiples of the unit.

use std::error::Error;
use std::fmt::Write;

use lexikon_auth_benches::UNIT;

use crate::run::Run;
use crate::table::significant;

/// Who did the work.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Limit,
    Us,
    Others,
}

/// The blocks of the drawing: heading, group, and the bars with their labels.
type Bar = (By, &'static str, &'static str);
const BLOCKS: [(&str, &str, &[Bar]); 3] = [
    (
        "HMAC-SHA-256 and SHA-256 of one untagged key",
        "alternatives, digest",
        &[
            (By::Limit, UNIT, "three bare compressions"),
            (By::Us, "lexikon-auth", "lexikon-auth"),
            (By::Others, "hmac and sha2", "hmac and sha2 crates"),
            (By::Others, "ring", "ring"),
            (By::Others, "aws-lc-rs", "aws-lc-rs"),
        ],
    ),
    (
        "One verification, 100 000 keys in memory, in random order",
        "alternatives, verify",
        &[
            (By::Us, "lexikon-auth, HMAC", "lexikon-auth, untagged key"),
            (By::Us, "lexikon-auth, legacy", "lexikon-auth, legacy key"),
            (By::Us, "lexikon-auth, tagged", "lexikon-auth, tagged key"),
            (By::Others, "plain code, HMAC", "plain code, HMAC key"),
            (By::Others, "plain code, legacy", "plain code, legacy key"),
            (By::Others, "prefixed-api-key", "prefixed-api-key"),
            (By::Others, "api-keys-simplified", "api-keys-simplified (Argon2id)"),
        ],
    ),
    (
        "One refusal, 100 000 keys in memory",
        "verify, keys: 100000",
        &[
            (By::Us, "malformed", "lexikon-auth, malformed key"),
            (By::Us, "forged tag", "lexikon-auth, forged tag"),
            (By::Us, "unknown", "lexikon-auth, unknown untagged key"),
        ],
    ),
];

const WIDTH: f64 = 900.0;
/// Where the bars begin.
const LEFT: f64 = 270.0;
/// Where the longest ends, with room for its figure.
const RIGHT: f64 = 790.0;
const LINE: f64 = 24.0;
const HEADING: f64 = 34.0;
const TOP: f64 = 84.0;
/// A bar of more multiples than this is cut: it would leave no room for the differences of the rest.
const CUT: f64 = 20.0;

pub fn svg(run: &Run) -> Result<String, Box<dyn Error>> {
    let mut longest = 0.0_f64;
    for (_, group, bars) in BLOCKS {
        for (_, function, _) in bars {
            longest = longest.max(run.ratio(group, function)?.min(CUT));
        }
    }
    let step = if longest > 10.0 { 2.0 } else { 1.0 };
    let end = (longest / step).ceil() * step;
    let x = |ratio: f64| LEFT + (RIGHT - LEFT) * ratio / end;

    let bars: usize = BLOCKS.iter().map(|(_, _, bars)| bars.len()).sum();
    let bottom = TOP + HEADING * BLOCKS.len() as f64 + LINE * bars as f64;
    let height = bottom + 70.0;
    let mut out = String::new();
    writeln!(out, "{}", head(height))?;
    legend(&mut out)?;

    let mut tick = 0.0;
    while tick <= end {
        let (x, y) = (x(tick), bottom + 18.0);
        writeln!(out, r#"<line class="grid" x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}"/>"#)?;
        writeln!(
            out,
            r#"<text class="small" text-anchor="middle" x="{x:.1}" y="{y}">{tick}</text>"#
        )?;
        tick += step;
    }
    let (middle, y) = ((LEFT + RIGHT) / 2.0, bottom + 38.0);
    writeln!(
        out,
        r#"<text class="small" text-anchor="middle" x="{middle}" y="{y}">time, in multiples of three bare SHA-256 compressions; shorter is better</text>"#
    )?;
    let y = bottom + 58.0;
    writeln!(out, r#"<text class="small" x="16" y="{y}">{}</text>"#, run.machine)?;

    let mut y = TOP;
    for (heading, group, bars) in BLOCKS {
        writeln!(out, r#"<text class="bold" x="16" y="{}">{heading}</text>"#, y + HEADING - 10.0)?;
        y += HEADING;
        for &(by, function, label) in bars {
            bar(&mut out, by, label, run.ratio(group, function)?, y, x)?;
            y += LINE;
        }
    }
    out.push_str("</svg>\n");
    Ok(out)
}

fn head(height: f64) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif" font-size="13">
<title>What verifying an API key costs</title>
<style>
.grid {{ stroke: #d0d0d0 }} .small {{ font-size: 12px; fill: #333 }} .bold {{ font-weight: bold }}
.limit {{ fill: #fff; stroke: #111; stroke-dasharray: 3 2 }} .us {{ fill: #0b4f8a; stroke: #0b4f8a }}
.others {{ fill: url(#hatch); stroke: #8a5a00 }}
</style>
<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" fill="#fdeccb"/><line x1="0" y1="0" x2="0" y2="6" stroke="#c98a1b" stroke-width="3"/></pattern></defs>
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
<text x="16" y="28" font-size="18" font-weight="bold">What verifying an API key costs</text>"##
    )
}

fn legend(out: &mut String) -> Result<(), Box<dyn Error>> {
    for (x, by, label) in [
        (16, By::Limit, "the limit"),
        (126, By::Us, "lexikon-auth"),
        (256, By::Others, "what one would use instead"),
    ] {
        let class = class(by);
        writeln!(out, r#"<rect class="{class}" x="{x}" y="46" width="22" height="13"/>"#)?;
        writeln!(out, r#"<text x="{}" y="57">{label}</text>"#, x + 29)?;
    }
    Ok(())
}

fn bar(
    out: &mut String,
    by: By,
    label: &str,
    ratio: f64,
    y: f64,
    x: impl Fn(f64) -> f64,
) -> Result<(), Box<dyn Error>> {
    let end = x(ratio.min(CUT));
    let (class, width, baseline) = (class(by), end - LEFT, y + 13.0);
    writeln!(out, r#"<text text-anchor="end" x="{}" y="{baseline}">{label}</text>"#, LEFT - 8.0)?;
    writeln!(
        out,
        r#"<rect class="{class}" x="{LEFT}" y="{y:.1}" width="{width:.1}" height="17"/>"#
    )?;
    if ratio > CUT {
        let points = format!(
            "{:.1},{:.1} {:.1},{:.1} {:.1},{:.1} {:.1},{:.1}",
            end - 30.0,
            y + 20.0,
            end - 22.0,
            y - 3.0,
            end - 14.0,
            y - 3.0,
            end - 22.0,
            y + 20.0
        );
        writeln!(out, r##"<polygon fill="#fff" points="{points}"/>"##)?;
    }
    let figure = significant(ratio);
    writeln!(out, r#"<text x="{:.1}" y="{baseline}">{figure} ×</text>"#, end + 6.0)?;
    Ok(())
}

fn class(by: By) -> &'static str {
    match by {
        By::Limit => "limit",
        By::Us => "us",
        By::Others => "others",
    }
}
