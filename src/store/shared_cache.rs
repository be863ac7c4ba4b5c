//! Caches that instances share, as they are registered with the database.

#[cfg(feature = "redis")]
use sha2::{Digest, Sha256};

/// A cache outside of the database that instances share: where it is, and the prefix of its names.
///
/// Instances register with the database which one they use, so that another program that changes rows
/// knows which caches to invalidate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedCache {
    /// The prefix of its names.
    pub prefix: String,
    /// A fingerprint of its address: 16 hexadecimal digits. `127.0.0.1` and `localhost` are two addresses.
    pub address: String,
}

impl SharedCache {
    /// Makes one from the address that instances use, without user and password.
    #[cfg(feature = "redis")]
    pub(crate) fn new(prefix: &str, address: &str) -> Self {
        let digest =
            Sha256::new().chain_update("lexikon-auth shared cache\0").chain_update(address);
        let mut start = [0; 8];
        start.copy_from_slice(&digest.finalize()[..8]);
        Self { prefix: prefix.to_owned(), address: format!("{:016x}", u64::from_be_bytes(start)) }
    }

    /// Makes one as a database has registered it.
    #[cfg(any(feature = "conformance", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn stored(prefix: String, address: String) -> Self {
        Self { prefix, address }
    }
}
