//! What belongs to no subject of this crate.

pub(crate) mod lock;
pub(crate) mod random;
#[cfg(feature = "tokio")]
pub(crate) mod run_to_end;
pub(crate) mod time;
#[cfg(all(feature = "tls-rustls", any(feature = "postgres", feature = "redis")))]
pub(crate) mod tls;
