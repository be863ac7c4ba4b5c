//! Which keys are legacy, and notes about those of which that is in doubt.

use std::time::SystemTime;

use clap::Args;
use lexikon_auth::admin::{KeyFilter, KeyTable, KnownFormat};

use crate::failure::Failure;
use crate::output::{Output, pluralize, stderr_line};
use crate::progress::with_spinner;
use crate::times::parse_past_date;

/// What tells legacy keys that no row marks.
#[derive(Args)]
pub struct Legacy {
    /// When HMAC-SHA-256 was first deployed: keys made before are legacy, unless their row says otherwise
    ///
    /// Where you are not sure, take an earlier date. With a later one, good keys would count as legacy.
    #[arg(long, value_parser = parse_past_date, value_name = "DATE")]
    pub before: Option<SystemTime>,
}

impl Legacy {
    /// Selects the legacy keys.
    pub fn keys(&self) -> KeyFilter {
        KeyFilter::legacy(self.before)
    }
}

/// Notes how many keys a step left as they are because nothing tells their format.
pub async fn note_unknown_formats(
    table: &KeyTable,
    legacy: &Legacy,
    output: &mut Output,
) -> Result<(), Failure> {
    output.flush();
    let unknown = KeyFilter::default().format(KnownFormat::Unknown).first_deployed(legacy.before);
    let unknown = with_spinner(table.count(&unknown.in_force())).await?;
    if unknown > 0 {
        let more = if legacy.before.is_none() { "; --before DATE tells more" } else { "" };
        let unknown = pluralize(unknown, "key");
        stderr_line(format_args!("note: left as is: {unknown} of unknown format in force{more}"));
    }
    Ok(())
}

/// Notes how many keys count as legacy because of their date alone, and whether that date is in doubt.
pub async fn note_legacy_by_date(table: &KeyTable, legacy: &Legacy) -> Result<(), Failure> {
    let Some(before) = legacy.before else { return Ok(()) };
    let status = with_spinner(table.migration_status(legacy.before)).await?;
    let by_date = status.classes.iter().find(|class| class.by_date).map_or(0, |class| class.keys);
    if by_date > 0 {
        let modern = KeyFilter::default().format(KnownFormat::HmacSha256).made_before(before);
        let modern = with_spinner(table.count(&modern)).await?;
        stderr_line(format_args!(
            "note: legacy by the date alone: {}; HMAC-SHA-256 though made before it: {}. If fewer were \
             upgraded, the date is too late",
            pluralize(by_date, "key"),
            pluralize(modern, "key")
        ));
    }
    Ok(())
}
