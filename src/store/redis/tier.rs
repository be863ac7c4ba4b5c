//! What is asked of Redis, and what is written there.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, RedisError, RedisResult, Value};
use tracing::debug;

use super::counts::Counters;
use super::entry::{Entry, Name, Run, ServerTime};
use super::feed::unavailable;
use super::link::{Connected, Link, Unfinished};
use super::options::RedisOptions;
use crate::error::StoreError;
use crate::hash::{Candidates, KeyHash};
use crate::hmac::HmacKey;
use crate::record::{KeyRecord, OwnerId};
use crate::store::Change;
use crate::telemetry::{Stopwatch, security};

/// Keys that one step of a clearing looks at.
const BATCH: usize = 500;

pub(super) struct Tier {
    pub(super) options: RedisOptions,
    pub(super) client: Client,
    pub(super) link: Arc<Link>,
    /// Of each secret in the ring, current first.
    pub(super) keys: Vec<HmacKey>,
    pub(super) counters: Counters,
}

/// What Redis has to say to a question.
pub(super) enum Fetched {
    Found(Arc<KeyRecord>),
    Missing(Missing),
    Bypassed,
}

/// Nothing that counts.
pub(super) struct Missing {
    /// When a read began that begins now, and in which run of the server: another one may not remember
    /// what is changed meanwhile.
    read_at: ServerTime,
    run: Run,
    /// How long Redis may be waited for until this look-up has its answer.
    left: Duration,
}

impl Tier {
    pub(super) async fn fetch(&self, candidates: &Candidates) -> Fetched {
        let Some(mut connected) = self.link.trusted() else {
            self.counters.bypassed.add(1);
            return Fetched::Bypassed;
        };
        let started = Instant::now();
        let limit = self.options.timeout;
        match in_time(limit, self.ask(&mut connected, candidates)).await {
            Ok(Ok(record)) => {
                self.counters.hits.add(1);
                Fetched::Found(record)
            }
            Ok(Err(read_at)) => {
                self.counters.misses.add(1);
                let left = limit.saturating_sub(started.elapsed());
                Fetched::Missing(Missing { read_at, run: connected.run, left })
            }
            Err(error) => {
                self.counters.bypassed.add(1);
                self.link.fail(&error);
                Fetched::Bypassed
            }
        }
    }

    /// The record, or the time of the server when there is none that counts.
    async fn ask(
        &self,
        Connected { connection, run }: &mut Connected,
        candidates: &Candidates,
    ) -> RedisResult<Result<Arc<KeyRecord>, ServerTime>> {
        let hashes = candidates.as_slice();
        let mut pipe = redis::pipe();
        pipe.ignore_errors().cmd("TIME");
        for hash in hashes {
            self.read_entry(pipe.cmd("GETRANGE").arg(self.options.entry(hash)));
        }
        let mut answers =
            pipe.query_async::<Vec<RedisResult<Value>>>(connection).await?.into_iter();
        let time = answers.next().ok_or_else(incomplete)??;
        let (seconds, microseconds): (u64, u64) = redis::from_redis_value(time)?;
        let now = seconds.saturating_mul(1_000_000).saturating_add(microseconds);

        let entries = hashes.iter().zip(answers).map(|(hash, answer)| self.decode(hash, answer));
        let found = entries.enumerate().find_map(|(candidate, entry)| Some((candidate, entry?)));
        let Some((candidate, entry)) = found else { return Ok(Err(now)) };
        if entry.valid_until <= now {
            return Ok(Err(now));
        }

        let record = entry.record;
        let changes = [
            Some(Change::All),
            Some(Change::Key(record.id.clone())),
            Some(Change::Owner(record.owner.clone())),
            // A row that was added since might be preferred to this one.
            (candidate > 0).then_some(Change::Added),
        ];
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for change in changes.iter().flatten() {
            // A mark is a number of 16 digits; what is longer is none, and need not be read.
            pipe.cmd("GETRANGE").arg(self.options.mark(change)).arg(0).arg(20);
        }
        let marks = pipe.query_async::<Vec<RedisResult<Value>>>(connection).await?;
        // A mark that is no number says nothing: the entry does not count.
        let is_older = |mark: RedisResult<Value>| {
            let mark = mark.and_then(|mark| Ok(redis::from_redis_value::<String>(mark)?));
            mark.is_ok_and(|mark| {
                mark.is_empty() || mark.parse().is_ok_and(|mark: u64| mark < entry.read_at)
            })
        };
        if entry.run != *run || !marks.into_iter().all(is_older) {
            self.counters.stale.add(1);
            return Ok(Err(now));
        }
        Ok(Ok(Arc::new(record)))
    }

    /// Never more than one byte over the limit, whatever stands there.
    fn read_entry(&self, getrange: &mut redis::Pipeline) {
        getrange.arg(0).arg(self.options.max_value_bytes);
    }

    fn decode(&self, hash: &KeyHash, answer: RedisResult<Value>) -> Option<Entry> {
        let bytes = answer.and_then(|value| Ok(redis::from_redis_value::<Vec<u8>>(value)?));
        if bytes.as_ref().is_ok_and(Vec::is_empty) {
            return None;
        }
        let name = Name { prefix: &self.options.prefix, hash };
        let entry = bytes.ok().and_then(|bytes| Entry::decode(&bytes, name, &self.keys));
        if entry.is_none() {
            self.counters.rejected.add(1);
            security::entry_tampered();
        }
        entry
    }

    pub(super) async fn fill(&self, record: &KeyRecord, missing: Missing) {
        let Missing { read_at, run, left: limit } = missing;
        let connected = self.link.trusted().filter(|connected| connected.run == run);
        let Some(Connected { mut connection, .. }) = connected else { return };
        let left = record.expires_at.and_then(|date| date.duration_since(SystemTime::now()).ok());
        let ttl = self.options.ttl.min(left.unwrap_or(Duration::MAX));
        let valid_until = read_at.saturating_add(ttl.as_micros() as u64);
        let entry = Entry { record: record.clone(), run, read_at, valid_until };
        let entry = entry.encode(&self.options.prefix, &self.keys[0]);
        if entry.len() > self.options.max_value_bytes {
            self.counters.oversized.add(1);
            return;
        }
        let mut set = redis::cmd("SET");
        set.arg(self.options.entry(&record.hash)).arg(entry);
        set.arg("PX").arg((ttl.as_millis() as u64).max(1));
        if let Err(error) = in_time(limit, set.exec_async(&mut connection)).await {
            self.counters.unwritten.add(1);
            match error.kind() {
                // Full memory, for instance: reading goes on.
                ErrorKind::Server(_) | ErrorKind::Extension => {
                    debug!(%error, "Redis did not store an entry")
                }
                _ => self.link.fail(&error),
            }
        }
    }

    /// Removes the entries of an owner, or all.
    pub(super) async fn clear(&self, owner: Option<&OwnerId>) -> Result<u64, StoreError> {
        let down = || StoreError::Unavailable("Redis is bypassed after a fault".into());
        let Connected { mut connection, .. } = self.link.trusted().ok_or_else(down)?;
        let pattern = self.options.entry_pattern();
        let (mut cursor, mut removed) = (0_u64, 0);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH);
            let started = Stopwatch::start();
            let (next, names): (u64, Vec<Vec<u8>>) =
                scan.query_async(&mut connection).await.map_err(unavailable)?;
            self.counters.scan_duration.record(started.elapsed());
            // A step can return more than it was asked for.
            for names in names.chunks(BATCH) {
                let batch = match owner {
                    Some(owner) => self.of_owner(&mut connection, names, owner).await?,
                    None => names.to_vec(),
                };
                if !batch.is_empty() {
                    let mut unlink = redis::cmd("UNLINK");
                    let count = unlink.arg(batch).query_async::<u64>(&mut connection).await;
                    removed += count.map_err(unavailable)?;
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(removed);
            }
        }
    }

    /// Those of the names whose entry belongs to an owner.
    async fn of_owner(
        &self,
        connection: &mut MultiplexedConnection,
        names: &[Vec<u8>],
        owner: &OwnerId,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for name in names {
            self.read_entry(pipe.cmd("GETRANGE").arg(name));
        }
        let answers = pipe.query_async::<Vec<RedisResult<Value>>>(connection).await;
        let answers = names.iter().zip(answers.map_err(unavailable)?);
        let is_of = |(name, answer): &(&Vec<u8>, RedisResult<Value>)| {
            let hex = name.rsplit(|&byte| byte == b':').next().unwrap_or_default();
            let hash = str::from_utf8(hex).ok().and_then(KeyHash::from_hex);
            let entry = hash.and_then(|hash| self.decode(&hash, answer.clone()));
            entry.is_some_and(|entry| entry.record.owner == *owner)
        };
        Ok(answers.filter(is_of).map(|(name, _)| name.clone()).collect())
    }

    /// Remembers changes before a write, and again when it is [finished](After::finish): an instance that
    /// dies in between leaves no entry in trust that was read before the write began.
    pub(super) async fn remember_around(&self, changes: Vec<Change>) -> After<'_> {
        let after = self.remember_after(changes);
        for change in &after.changes {
            self.link.remember(change, false).await;
        }
        after
    }

    /// Remembers changes when it is [finished](After::finish): after a write, whether it succeeded or
    /// failed with the outcome unknown.
    pub(super) fn remember_after(&self, changes: Vec<Change>) -> After<'_> {
        After { link: &self.link, unfinished: self.link.unfinished(), changes }
    }
}

/// Dropped because the write was given up half-way, it leaves Redis distrusted.
pub(super) struct After<'a> {
    link: &'a Arc<Link>,
    unfinished: Unfinished<'a>,
    pub(super) changes: Vec<Change>,
}

impl After<'_> {
    pub(super) async fn finish(self) {
        for change in &self.changes {
            self.link.remember(change, true).await;
        }
        std::mem::forget(self.unfinished);
    }
}

/// The answer of Redis, if it comes in time: each command of a look-up has the link's limit, and all
/// together have no more.
async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
    tokio::time::timeout(limit, answer).await.unwrap_or_else(late)
}

fn incomplete() -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "an answer is missing"))
}
