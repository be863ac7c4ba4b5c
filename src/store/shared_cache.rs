//! Caches outside of the database that instances share, and how the database knows of them.

#[cfg(feature = "redis")]
use sha2::{Digest, Sha256};

/// A cache outside of the database that instances share: where it is, and what its names begin with.
///
/// Instances note in the database which one they use, so that who changes rows behind their back knows
/// whom to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedCache {
    /// What its names begin with.
    pub prefix: String,
    /// A fingerprint of its address: 16 hexadecimal digits. `127.0.0.1` and `localhost` are two addresses.
    pub address: String,
}

impl SharedCache {
    /// The cache with an address as instances have it. What lets them in, user and password, is no part
    /// of it.
    #[cfg(feature = "redis")]
    pub(crate) fn new(prefix: &str, address: &str) -> Self {
        let digest =
            Sha256::new().chain_update("lexikon-auth shared cache\0").chain_update(address);
        let mut start = [0; 8];
        start.copy_from_slice(&digest.finalize()[..8]);
        Self { prefix: prefix.to_owned(), address: format!("{:016x}", u64::from_be_bytes(start)) }
    }

    /// The cache that a database or a test names.
    #[cfg(any(feature = "conformance", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn stored(prefix: String, address: String) -> Self {
        Self { prefix, address }
    }
}
