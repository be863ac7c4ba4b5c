//! The tests of the library that need no process of their own. Each module says which features it needs.

mod api_keys;
mod architecture;
mod cache;
mod cancellation;
mod changes;
mod conformance;
mod connections;
mod counts;
mod faults;
mod flusher;
mod follower;
mod http;
mod http_denials;
mod http_properties;
mod interop;
mod keys;
mod manage;
mod pages;
mod policy;
mod postgres;
mod promises;
mod properties;
mod redis;
mod redis_faults;
mod reissue;
mod rotation;
mod secrets;
mod servers;
mod sqlalchemy;
mod sqlite;
mod sqlite_feed;
mod table;
mod throttle;
mod time_zone;
mod tls;
mod usage;
mod verify;

// What several of them share.
mod desk;
mod probe;
#[cfg(feature = "axum")]
mod web;
