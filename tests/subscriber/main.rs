//! What is logged. In a process of its own: `tracing` has one listener for all threads of a process.

mod log;
mod redis_trust;
