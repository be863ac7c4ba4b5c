//! The entries in Redis: look-ups, fills, and removal.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, RedisError, RedisResult, Value};
use tracing::debug;

use super::counts::Counters;
use super::entry::{Entry, EntryName, Generation, ServerTime, Timestamp};
use super::error::unavailable;
use super::link::{Connected, Link};
use super::options::RedisOptions;
use crate::crypto::hash::{Candidates, KeyHash};
use crate::crypto::hmac::HmacKey;
use crate::error::StoreError;
use crate::id::OwnerId;
use crate::record::KeyRecord;
use crate::store::change::Change;
use crate::telemetry::{Stopwatch, security};

/// Names that one step of a removal looks at.
const BATCH: usize = 500;

pub(super) struct Tier {
    pub(super) client: Client,
    pub(super) link: Arc<Link>,
    /// Those of each secret in the ring, current first.
    pub(super) keys: Vec<HmacKey>,
    pub(super) counters: Counters,
}

/// The answer to a look-up.
pub(super) enum Lookup {
    Hit(Arc<KeyRecord>),
    Miss(Miss),
    /// Redis is not used.
    Bypassed,
}

/// A look-up without an entry that counts: what it takes to fill one.
pub(super) struct Miss {
    /// The time of the look-up: a read that begins now sees every change that was marked before it.
    read_at: Timestamp,
    /// The same by the clock of this process.
    asked_at: Instant,
    /// How much of the time limit of this look-up is left.
    time_left: Duration,
}

/// What Redis answers.
enum Response {
    Hit(Arc<KeyRecord>),
    Miss(Timestamp),
    /// Many rows are being changed.
    BulkChange,
}

impl Tier {
    pub(super) fn options(&self) -> &RedisOptions {
        &self.link.options
    }

    pub(super) async fn fetch(&self, candidates: &Candidates) -> Lookup {
        let bypassed = || {
            self.counters.bypassed.add(1);
            Lookup::Bypassed
        };
        let Some(mut connected) = self.link.trusted() else { return bypassed() };
        let started = Instant::now();
        let limit = self.options().timeout;
        match within(limit, self.query(&mut connected, candidates)).await {
            Ok(Response::Hit(record)) => {
                self.counters.hits.add(1);
                Lookup::Hit(record)
            }
            Ok(Response::Miss(read_at)) => {
                self.counters.misses.add(1);
                let time_left = limit.saturating_sub(started.elapsed());
                Lookup::Miss(Miss { read_at, asked_at: Instant::now(), time_left })
            }
            Ok(Response::BulkChange) => {
                self.link.on_bulk_change();
                bypassed()
            }
            Err(error) => {
                self.link.bypass(&error);
                bypassed()
            }
        }
    }

    pub(super) async fn fill(&self, record: &KeyRecord, miss: Miss) {
        let Miss { read_at, asked_at, time_left } = miss;
        let connected = self.link.trusted().filter(|connected| connected.run == read_at.run);
        let Some(Connected { mut connection, .. }) = connected else { return };
        let options = self.options();
        let left = record.expires_at.and_then(|date| date.duration_since(SystemTime::now()).ok());
        let ttl = options.ttl.min(left.unwrap_or(Duration::MAX));
        let valid_until = read_at.time.saturating_add(ttl.as_micros() as u64);
        let entry = Entry { record: record.clone(), read_at, valid_until };
        let entry = entry.encode(&options.prefix, &self.keys[0]);
        if entry.len() > options.max_value_bytes {
            self.counters.oversized.add(1);
            return;
        }
        let milliseconds = (ttl.as_millis() as u64).max(1);
        let scripts = &self.link.scripts;
        let entry = (read_at, entry);
        let elapsed = asked_at.elapsed();
        let fill =
            scripts.fill(&mut connection, options, &record.hash, entry, elapsed, milliseconds);
        if let Err(error) = within(time_left, fill).await {
            self.counters.unwritten.add(1);
            match error.kind() {
                // Full memory, for instance: reading goes on.
                ErrorKind::Server(_) | ErrorKind::Extension => {
                    debug!(%error, "Redis did not store an entry")
                }
                _ => self.link.bypass(&error),
            }
        }
    }

    /// Removes the entries of an owner, or all.
    pub(super) async fn clear(&self, owner: Option<&OwnerId>) -> Result<u64, StoreError> {
        let down = || StoreError::Unavailable("Redis is bypassed after a fault".into());
        let Connected { mut connection, .. } = self.link.trusted().ok_or_else(down)?;
        let pattern = self.options().entry_pattern();
        let (mut cursor, mut removed) = (0_u64, 0);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH);
            let started = Stopwatch::start();
            let (next, names): (u64, Vec<Vec<u8>>) =
                scan.query_async(&mut connection).await.map_err(unavailable)?;
            self.counters.scan_duration.record(started.elapsed());
            // A step can return more names than it was asked for.
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

    async fn query(
        &self,
        Connected { connection, run }: &mut Connected,
        candidates: &Candidates,
    ) -> RedisResult<Response> {
        let (options, hashes) = (self.options(), candidates.as_slice());
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        // First the clock, then the time, which is earlier only if it was set back.
        pipe.cmd("GETRANGE").arg(options.clock()).arg(0).arg(NUMBER);
        pipe.cmd("TIME");
        pipe.cmd("GETRANGE").arg(options.generation()).arg(0).arg(NUMBER);
        pipe.cmd("EXISTS").arg(options.bulk_change_marker());
        for hash in hashes {
            self.read_entry(pipe.cmd("GETRANGE").arg(options.entry(hash)));
        }
        let mut answers =
            pipe.query_async::<Vec<RedisResult<Value>>>(connection).await?.into_iter();
        let mut next = || answers.next().ok_or_else(incomplete);
        let clock = text(next()?).and_then(|clock| clock.parse::<ServerTime>().ok());
        let (seconds, microseconds): (u64, u64) = redis::from_redis_value(next()??)?;
        let time = seconds.saturating_mul(1_000_000).saturating_add(microseconds);
        let generation = text(next()?).and_then(|text| Generation::from_str_radix(&text, 16).ok());
        if redis::from_redis_value::<bool>(next()??)? {
            return Ok(Response::BulkChange);
        }
        let (Some(generation), true) = (generation, clock.is_some_and(|clock| clock <= time))
        else {
            let (generation, time) = self.link.scripts.touch(connection, options).await?;
            return Ok(Response::Miss(Timestamp { run: *run, generation, time }));
        };
        let now = Timestamp { run: *run, generation, time };

        let entries = hashes.iter().zip(answers).map(|(hash, answer)| self.decode(hash, answer));
        let found = entries.enumerate().find_map(|(candidate, entry)| Some((candidate, entry?)));
        let Some((candidate, entry)) = found else { return Ok(Response::Miss(now)) };
        if entry.valid_until <= time {
            return Ok(Response::Miss(now));
        }
        let is_of_now = (entry.read_at.run, entry.read_at.generation) == (*run, generation);
        if !is_of_now || !self.is_current(connection, candidate, &entry).await? {
            self.counters.stale.add(1);
            return Ok(Response::Miss(now));
        }
        Ok(Response::Hit(Arc::new(entry.record)))
    }

    /// Returns whether an entry of this generation is newer than every change of its key and owner.
    async fn is_current(
        &self,
        connection: &mut MultiplexedConnection,
        candidate: usize,
        Entry { record, read_at, .. }: &Entry,
    ) -> RedisResult<bool> {
        let changes = [
            Some(Change::Key(record.id.clone())),
            Some(Change::Owner(record.owner.clone())),
            // A row that was added since may be preferred to this one.
            (candidate > 0).then_some(Change::Added),
        ];
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for change in changes.iter().flatten() {
            pipe.cmd("GETRANGE").arg(self.options().mark(change)).arg(0).arg(MARK);
        }
        let marks = pipe.query_async::<Vec<RedisResult<Value>>>(connection).await?;
        let generation = format!("{:016x}", read_at.generation);
        // Whatever else stands in place of a mark, the entry does not count.
        Ok(marks.into_iter().map(text).all(|mark| match mark.as_deref() {
            Some("") => true,
            Some(mark) => mark.split_once(':').is_some_and(|(of, time)| {
                // The read of an entry began after every change of a generation before its own.
                of != generation && is_generation(of)
                    || time.parse().is_ok_and(|time: ServerTime| time < read_at.time)
            }),
            None => false,
        }))
    }

    fn decode(&self, hash: &KeyHash, answer: RedisResult<Value>) -> Option<Entry> {
        let bytes = answer.and_then(|value| Ok(redis::from_redis_value::<Vec<u8>>(value)?));
        if bytes.as_ref().is_ok_and(Vec::is_empty) {
            return None;
        }
        let name = EntryName { prefix: &self.options().prefix, hash };
        let entry = bytes.ok().and_then(|bytes| Entry::decode(&bytes, name, &self.keys));
        if entry.is_none() {
            self.counters.rejected.add(1);
            security::entry_tampered();
        }
        entry
    }

    /// Reads an entry, and never more than one byte over the limit, whatever stands there.
    fn read_entry(&self, getrange: &mut redis::Pipeline) {
        getrange.arg(0).arg(self.options().max_value_bytes);
    }

    /// Returns those of the names whose entry belongs to an owner.
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
}

/// The last byte of a number that is read: all numbers are shorter, and what is longer is none.
const NUMBER: usize = 20;
/// The same for a mark: a generation of 16 digits, a colon, and a time.
const MARK: usize = 16 + 1 + NUMBER;

/// Returns the text of an answer; `None` if it is anything else, which anybody can have written.
fn text(answer: RedisResult<Value>) -> Option<String> {
    redis::from_redis_value(answer.ok()?).ok()
}

fn is_generation(text: &str) -> bool {
    text.len() == 16 && Generation::from_str_radix(text, 16).is_ok()
}

/// Waits for an answer no longer than `limit`. Each command of a look-up has the limit of the connection; so
/// all of them together have no more.
async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
    tokio::time::timeout(limit, answer).await.unwrap_or_else(late)
}

fn incomplete() -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "an answer is missing"))
}
