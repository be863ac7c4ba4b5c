//! The background tasks of a service: each goes on until its handle is dropped.

#[cfg(feature = "tokio")]
mod flusher;
#[cfg(feature = "tokio")]
mod follower;
#[cfg(feature = "tokio")]
mod policy_follower;

#[cfg(feature = "tokio")]
pub use self::flusher::{DEFAULT_FLUSH_INTERVAL, Flusher};
#[cfg(feature = "tokio")]
pub use self::follower::Follower;
#[cfg(feature = "tokio")]
pub use self::policy_follower::PolicyFollower;
pub use crate::write_behind::Flushed;
