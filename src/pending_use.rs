//! The latest use of a key, held in its record until it is written.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::SystemTime;

use crate::crypto::hash::HashFormat;
use crate::util::time::{from_microseconds, to_microseconds};

/// The latest use of a key, held in its record, and whether it is queued to be written.
#[derive(Default)]
pub(crate) struct PendingUse {
    /// Microseconds since 1970, doubled, plus one for the legacy format.
    latest: AtomicU64,
    /// The generation of the queue that the record was added to last.
    pub(crate) generation: AtomicU32,
}

impl PendingUse {
    pub(crate) fn record(&self, at: SystemTime, format: HashFormat) {
        let microseconds = to_microseconds(at).max(0).cast_unsigned();
        let encoded = microseconds << 1 | u64::from(format == HashFormat::Sha256);
        self.latest.fetch_max(encoded, Ordering::SeqCst);
    }

    pub(crate) fn latest(&self) -> (SystemTime, HashFormat) {
        let encoded = self.latest.load(Ordering::SeqCst);
        let format = if encoded & 1 == 1 { HashFormat::Sha256 } else { HashFormat::HmacSha256 };
        (from_microseconds((encoded >> 1).cast_signed()), format)
    }
}

/// A copy of a record is another record: the use stays with the original.
impl Clone for PendingUse {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Not part of what a record says.
impl PartialEq for PendingUse {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for PendingUse {}

impl fmt::Debug for PendingUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingUse")
    }
}
