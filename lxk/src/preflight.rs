//! Whether all is well before a service starts.

mod clock;
mod database;
mod redis;
mod report;

use lexikon_auth::SecretRing;

use self::database::check_database;
use self::redis::check_redis;
use self::report::Finding::{Failed, Passed};
use self::report::Report;
use crate::database::{Database, is_sqlite};
use crate::failure::Failure;
use crate::output::{Output, pluralize};

pub async fn run(url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let mut report = Report::new(output);
    let ring = SecretRing::from_env();
    report.line(
        "secret",
        match &ring {
            Ok(ring) => Passed(format!("strong, fingerprint {}", ring.current().fingerprint())),
            Err(error) => Failed(error.to_string()),
        },
    );
    let database = Database::open(url).await;
    report.line(
        "database",
        match &database {
            Ok(_) => Passed("reachable, and of a known shape".to_owned()),
            Err(error) => Failed(error.to_string()),
        },
    );
    if let Ok(database) = &database {
        let ring = ring.as_ref().ok();
        check_database(&database.table, ring, is_sqlite(url), &mut report).await?;
    }
    report.line("redis", check_redis(database.as_ref().ok()).await);
    match report.failed() {
        0 => Ok(()),
        failed => Err(Failure::Refused(format!("{} failed", pluralize(failed, "check")))),
    }
}
