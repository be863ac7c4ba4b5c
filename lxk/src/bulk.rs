//! Changes to many rows: batch by batch, with caches that are told of each before the next begins, and an
//! end between two of them where a signal asks for it.

use lexikon_auth::admin::BatchObserver;
use lexikon_auth::store::BulkChange;

use crate::database::Database;
use crate::failure::Failure;
use crate::interruption::Interruption;
use crate::progress::Progress;

/// How to resume most changes after an interruption.
pub const RUN_AGAIN: &str = "run it again";

const NOTHING_CHANGED: &str = "Redis cannot be told, so nothing was changed: instances would go on by what it \
     holds. Once it is back, run this again; or unset REDIS_URL, and once it is back run: lxk cache \
     clear --all";
const END_NOT_TOLD: &str = "the database has changed, but Redis could not be told that the change is over. \
     Instances do without Redis until it has been: once both answer, run this again, or: lxk cache clear --all";

/// Accompanies a change to many rows.
pub struct Bulk {
    redis: Option<BulkChange>,
    interruption: Interruption,
    progress: Progress,
}

/// Runs a change of up to `total` rows, and returns its result. A signal ends it between two batches;
/// `resume` says how to do the rest afterwards.
pub async fn run<T>(
    database: &Database,
    total: u64,
    resume: &str,
    work: impl AsyncFnOnce(&mut Bulk) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let interruption = Interruption::listen()?;
    let redis = match database.redis() {
        None => None,
        Some(redis) => match redis.begin_bulk_change().await {
            Ok(change) => Some(change),
            Err(error) => return Err(Failure::Unavailable(format!("{NOTHING_CHANGED} ({error})"))),
        },
    };
    let mut bulk = Bulk { redis, interruption, progress: Progress::new(total) };
    let done = work(&mut bulk).await;
    let Bulk { redis, interruption, progress } = bulk;
    drop(progress);
    let end = match redis {
        Some(redis) => database.table.in_turn(redis.finish()).await,
        None => Ok(()),
    };
    drop(interruption);
    match (done, end) {
        (Ok(done), Err(error)) => {
            database.note_invalidation_failure(format!("{END_NOT_TOLD} ({error})"));
            Ok(done)
        }
        (Err(_), Err(error)) => Err(Failure::Unavailable(format!("{END_NOT_TOLD} ({error})"))),
        (Ok(done), Ok(())) => Ok(done),
        (Err(failure), Ok(())) => {
            let rest = |text| format!("{text}; what was done stays done, {resume} for the rest");
            let failure = match failure {
                Failure::Interrupted(signal, text) => Failure::Interrupted(signal, rest(text)),
                Failure::Unavailable(text) => Failure::Unavailable(rest(text)),
                failure => failure,
            };
            Err(failure.and(database.check_invalidation().await))
        }
    }
}

impl BatchObserver for Bulk {
    type Error = Failure;

    async fn before_batch(&mut self) -> Result<(), Failure> {
        self.interruption.check()?;
        match &self.redis {
            Some(redis) => Ok(redis.set_marker().await?),
            None => Ok(()),
        }
    }

    async fn after_batch(&mut self, changed: u64) -> Result<(), Failure> {
        self.progress.set(changed);
        match &self.redis {
            Some(redis) => Ok(redis.invalidate().await?),
            None => Ok(()),
        }
    }
}
