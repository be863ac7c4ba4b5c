//! Lists of keys.

use lexikon_auth::KeyRecord;
use lexikon_auth::admin::{KeyFilter, KeyTable};
use lexikon_auth::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Output, columns};
use crate::times::{format_date, json_time};

/// The widths of the columns.
const WIDTHS: [usize; 8] = [36, 16, 20, 12, 11, 8, 17, 17];

/// How many keys are shown to people where there may be very many.
const MOST_SHOWN: usize = 20;

/// Prints the names of the columns, for people.
pub fn print_header(output: &mut Output) {
    let names = ["id", "owner", "name", "scopes", "format", "state", "last used", "expires"];
    output.line(columns(names, WIDTHS));
}

/// Prints one key: a line for people, an object for programs.
pub fn print_record(record: &KeyRecord, output: &mut Output) {
    if output.is_json() {
        return output.object(&record_object(record));
    }
    let cells = [
        &record.id.to_string(),
        record.owner.as_str(),
        &record.name,
        record.scopes.as_str(),
        format_name(record),
        state(record),
        &format_date(record.last_used_at, "never"),
        &format_date(record.expires_at, "never"),
    ];
    output.line(columns(cells, WIDTHS));
}

/// Prints keys: all for programs, the first ones for people.
pub async fn print_some(
    table: &KeyTable,
    filter: &KeyFilter,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut shown = 0;
    let listed = table.each_key(filter, |key| {
        if shown == MOST_SHOWN && !output.is_json() {
            output.line("...");
            // Ends the list, as a reader who goes away does.
            return Err(Failure::OutputClosed);
        }
        shown += 1;
        print_record(&key.record, output);
        output.check_reader()
    });
    match listed.await {
        // The command goes on: its exit code counts also for those who do not read the list.
        Ok(()) | Err(Failure::OutputClosed) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Returns the state of a key in a word or two.
pub fn state(record: &KeyRecord) -> &'static str {
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

/// Returns the name of the format of a key's hash.
pub fn format_name(record: &KeyRecord) -> &'static str {
    record.format.map_or("unknown", |format| format.as_str())
}

/// Makes an object of a record, for programs. Without its hash, which is what stands between a table and
/// its keys.
pub fn record_object(record: &KeyRecord) -> Value {
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
