//! The options of a cache in Redis, and the names that it uses there.

use std::time::Duration;

use tracing::warn;

use crate::crypto::hash::KeyHash;
use crate::store::change::Change;

/// Shortest and longest life of an entry.
const TTL_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

/// How a [`RedisStore`](crate::store::RedisStore) names its entries, how long it keeps them, and how long it
/// waits for Redis.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    pub(super) prefix: String,
    pub(super) ttl: Duration,
    pub(super) max_value_bytes: usize,
    pub(super) timeout: Duration,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            prefix: "lexikon:".to_owned(),
            ttl: Duration::from_secs(3600),
            max_value_bytes: 64 << 10,
            timeout: Duration::from_millis(100),
        }
    }
}

impl RedisOptions {
    /// What every name in Redis begins with. Default `lexikon:`.
    pub fn prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// How long an entry lives, from 1 second to 24 hours; what is outside becomes the nearer of the
    /// two, with a warning in the log. Default 1 hour.
    pub fn ttl(self, ttl: Duration) -> Self {
        let clamped = ttl.clamp(TTL_BOUNDS.0, TTL_BOUNDS.1);
        if clamped != ttl {
            warn!(?ttl, ?clamped, "the life of entries in Redis is from 1 second to 24 hours");
        }
        Self { ttl: clamped, ..self }
    }

    /// Longest entry that is stored, in bytes. Default 65,536.
    pub fn max_value_bytes(self, max_value_bytes: usize) -> Self {
        Self { max_value_bytes, ..self }
    }

    /// How long to wait for a connection, and for an answer. Default 100 ms.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Returns the name of the entry of a hash.
    pub(super) fn entry(&self, hash: &KeyHash) -> String {
        format!("{}auth:key:{}", self.prefix, hash.to_hex())
    }

    /// Returns the name of the mark of such a change: it holds the time of the latest one.
    ///
    /// Keys and owners share 65,536 names: somebody who can make changes, or notifications of some, cannot
    /// fill Redis with their ids. Two that share one cost a look-up that was not needed.
    pub(super) fn mark(&self, change: &Change) -> String {
        let name = match change {
            Change::Key(_) | Change::Owner(_) => format!("{:04x}", checksum(&change.to_text())),
            Change::Added | Change::All => change.to_text(),
        };
        format!("{}auth:changed:{name}", self.prefix)
    }

    /// Returns the name of the present generation: with another value, no entry counts any more.
    pub(super) fn generation(&self) -> String {
        format!("{}auth:generation", self.prefix)
    }

    /// Returns the name of the latest time that a mark or an entry has.
    pub(super) fn clock(&self) -> String {
        format!("{}auth:clock", self.prefix)
    }

    /// Returns the name that exists while many rows are being changed, and stays where that was
    /// interrupted: Redis is bypassed for as long. See
    /// [`RedisStore::begin_bulk_change`](crate::store::RedisStore::begin_bulk_change).
    pub fn bulk_change_marker(&self) -> String {
        format!("{}auth:changing", self.prefix)
    }

    /// Returns the channel on which changes are published.
    pub(super) fn channel(&self) -> String {
        format!("{}auth:changes", self.prefix)
    }

    /// Returns a pattern for `SCAN` that all entries match, and nothing with another prefix.
    pub fn entry_pattern(&self) -> String {
        let mut pattern = String::new();
        for character in self.prefix.chars() {
            if r"*?[]^\".contains(character) {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern + "auth:key:*"
    }
}

/// FNV-1a of 32 bits, folded to 16: the same in all instances, whatever their secrets.
fn checksum(text: &str) -> u16 {
    let hash = text
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)) as u16
}
