//! Changes to many rows: batch by batch, with caches that are told of each before the next begins, and an
//! end between two of them where a signal asks for it.

use lexikon_auth::store::BulkChange;
use lexikon_auth::table::BatchObserver;

use crate::database::Database;
use crate::failure::Failure;
use crate::interruption::Interruption;
use crate::output::Progress;

/// How to go on with most changes after an interruption.
pub const RUN_AGAIN: &str = "run it again";

const NOT_BEGUN: &str = "Redis cannot be told, so nothing was changed: instances would go on by what it \
     holds. Once it is back, run this again; or unset REDIS_URL, and once it is back run: lxk cache \
     clear --all";
const NOT_TOLD: &str = "the database has changed, but Redis cannot be told of all of it. Instances that \
     reach it do without until it has been: once it is back, run this again, or: lxk cache clear --all";

/// A change to many rows that is under way.
pub struct Bulk {
    redis: Option<BulkChange>,
    interruption: Option<Interruption>,
    progress: Progress,
}

/// Changes up to `total` rows, and returns what it came to. A signal ends it between two batches; `go_on`
/// says how to go on afterwards.
pub async fn change<T>(
    database: &Database,
    total: u64,
    go_on: &str,
    work: impl AsyncFnOnce(&mut Bulk) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let interruption = Some(Interruption::listen()?);
    change_until(interruption, database, total, go_on, work).await
}

/// Adds rows that are read from standard input. A signal ends it at once: it may be waiting for input,
/// and what is added makes nothing old.
pub async fn add<T>(
    database: &Database,
    go_on: &str,
    work: impl AsyncFnOnce(&mut Bulk) -> Result<T, Failure>,
) -> Result<T, Failure> {
    change_until(None, database, 0, go_on, work).await
}

async fn change_until<T>(
    interruption: Option<Interruption>,
    database: &Database,
    total: u64,
    go_on: &str,
    work: impl AsyncFnOnce(&mut Bulk) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let redis = match database.redis() {
        None => None,
        Some(redis) => match redis.begin_bulk_change().await {
            Ok(change) => Some(change),
            Err(error) => return Err(Failure::Unavailable(format!("{NOT_BEGUN} ({error})"))),
        },
    };
    let mut bulk = Bulk { redis, interruption, progress: Progress::new(total) };
    let done = work(&mut bulk).await;
    let Bulk { redis, interruption, progress } = bulk;
    drop(progress);
    let untold = match redis {
        Some(redis) => redis.finish().await.err(),
        None => None,
    };
    drop(interruption);
    match (done, untold) {
        (Ok(done), Some(error)) => {
            database.note_untold(format!("{NOT_TOLD} ({error})"));
            Ok(done)
        }
        (Err(_), Some(error)) => Err(Failure::Unavailable(format!("{NOT_TOLD} ({error})"))),
        (Ok(done), None) => Ok(done),
        (Err(failure), None) => {
            let rest = |text| format!("{text}; what was done stays done, {go_on} for the rest");
            let failure = match failure {
                Failure::Interrupted(signal, text) => Failure::Interrupted(signal, rest(text)),
                Failure::Unavailable(text) => Failure::Unavailable(rest(text)),
                failure => failure,
            };
            Err(failure.with(database.told().await))
        }
    }
}

impl BatchObserver for Bulk {
    type Error = Failure;

    async fn before_batch(&mut self) -> Result<(), Failure> {
        if let Some(interruption) = &self.interruption {
            interruption.check()?;
        }
        match &self.redis {
            Some(redis) => Ok(redis.mark().await?),
            None => Ok(()),
        }
    }

    async fn after_batch(&mut self, changed: u64) -> Result<(), Failure> {
        self.progress.set(changed);
        match &self.redis {
            Some(redis) => Ok(redis.forget().await?),
            None => Ok(()),
        }
    }
}
