//! The scripts that write to Redis, each atomically.

use std::time::Duration;

use redis::Script;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};

use super::entry::{Generation, ServerTime, Timestamp};
use super::options::RedisOptions;
use crate::crypto::hash::KeyHash;
use crate::store::change::Change;
use crate::util::random::fill_random;

/// Marks a change, and returns the generation and the time of the server.
///
/// A new generation invalidates everything, since an entry counts in its own alone. It begins where that is
/// wanted; where the name is missing or holds anything else, since after `FLUSHALL` nothing is known of
/// earlier changes; and where the clock of the server was set back, since the mark of a change would then be
/// earlier than entries that are older. The clock is the latest time that any mark or entry has. None of the
/// names ever expires, so `volatile-*` policies do not evict them.
const MARK: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local text = string.format('%d', now)
    local generation = redis.pcall('GET', KEYS[1])
    local clock = redis.pcall('GET', KEYS[2])
    clock = type(clock) == 'string' and tonumber(clock)
    local is_known = type(generation) == 'string' and #generation == 16
        and not string.find(generation, '[^0-9a-f]')
    if not is_known or not clock or clock > now or ARGV[2] == 'all' then
        generation = ARGV[1]
        redis.call('SET', KEYS[1], generation)
    end
    redis.call('SET', KEYS[2], text)
    if KEYS[3] then redis.call('SET', KEYS[3], generation .. ':' .. text) end
    if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
    return {generation, text}
";

/// Stores an entry, unless another generation has begun since it was read, or the clock was set back: less
/// time has passed on it than in the client.
const FILL: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local clock = tonumber(redis.call('GET', KEYS[2]))
    if redis.call('GET', KEYS[1]) ~= ARGV[1] or not clock then return 0 end
    if now < ARGV[2] + ARGV[5] then return 0 end
    if clock < tonumber(ARGV[2]) then redis.call('SET', KEYS[2], ARGV[2]) end
    redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
    return 1
";

/// Removes a marker, unless somebody else has set it anew.
const COMPARE_AND_DELETE: &str = "
    if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
    return 1
";

pub(super) struct Scripts {
    mark: Script,
    fill: Script,
    compare_and_delete: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            mark: Script::new(MARK),
            fill: Script::new(FILL),
            compare_and_delete: Script::new(COMPARE_AND_DELETE),
        }
    }

    /// Proves that Redis can be written to, and returns the present generation and time.
    pub(super) async fn touch(
        &self,
        connection: &mut MultiplexedConnection,
        options: &RedisOptions,
    ) -> RedisResult<(Generation, ServerTime)> {
        self.run_mark(connection, options, None, "").await
    }

    /// Sends a message on the channel, in a step that a replica refuses: publishing alone it would not.
    pub(super) async fn publish(
        &self,
        connection: &mut MultiplexedConnection,
        options: &RedisOptions,
        message: &str,
    ) -> RedisResult<()> {
        self.run_mark(connection, options, None, message).await.map(drop)
    }

    /// Marks a change, and publishes it if the other instances have to know.
    pub(super) async fn mark(
        &self,
        connection: &mut MultiplexedConnection,
        options: &RedisOptions,
        change: &Change,
        publish: bool,
    ) -> RedisResult<()> {
        let message = if publish { change.to_text() } else { String::new() };
        self.run_mark(connection, options, Some(change), &message).await.map(drop)
    }

    async fn run_mark(
        &self,
        connection: &mut MultiplexedConnection,
        options: &RedisOptions,
        change: Option<&Change>,
        message: &str,
    ) -> RedisResult<(Generation, ServerTime)> {
        let mut mark = self.mark.key(options.generation());
        mark.key(options.clock());
        let extent = match change {
            Some(Change::All) => "all",
            Some(change) => {
                mark.key(options.mark(change));
                ""
            }
            None => "",
        };
        let channel = if message.is_empty() { String::new() } else { options.channel() };
        mark.arg(format!("{:016x}", random()?)).arg(extent).arg(channel).arg(message);
        let (generation, time): (String, ServerTime) = mark.invoke_async(connection).await?;
        let generation = Generation::from_str_radix(&generation, 16);
        Ok((generation.map_err(|_| RedisError::from(NO_GENERATION))?, time))
    }

    /// Stores an entry for `milliseconds`. `elapsed` is the time in this process since it was read.
    pub(super) async fn fill(
        &self,
        connection: &mut MultiplexedConnection,
        options: &RedisOptions,
        hash: &KeyHash,
        (read_at, entry): (Timestamp, Vec<u8>),
        elapsed: Duration,
        milliseconds: u64,
    ) -> RedisResult<()> {
        let mut fill = self.fill.key(options.generation());
        fill.key(options.clock()).key(options.entry(hash));
        fill.arg(format!("{:016x}", read_at.generation))
            .arg(read_at.time)
            .arg(entry)
            .arg(milliseconds)
            .arg(elapsed_at_least(elapsed));
        fill.invoke_async(connection).await
    }

    pub(super) async fn compare_and_delete(
        &self,
        connection: &mut MultiplexedConnection,
        name: &str,
        value: &str,
    ) -> RedisResult<()> {
        self.compare_and_delete.key(name).arg(value).invoke_async(connection).await
    }
}

/// Returns the least time that has passed on the clock of the server, in microseconds: two clocks drift.
fn elapsed_at_least(elapsed: Duration) -> u64 {
    (elapsed - elapsed / 100).as_micros() as u64
}

const NO_GENERATION: (redis::ErrorKind, &str) =
    (redis::ErrorKind::UnexpectedReturnType, "the generation in Redis is no number");

pub(super) fn random() -> RedisResult<u64> {
    let mut random = [0; size_of::<u64>()];
    fill_random(&mut random).map_err(|error| RedisError::from(std::io::Error::other(error)))?;
    Ok(u64::from_le_bytes(random))
}
