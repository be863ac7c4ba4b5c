//! What the environment says: variables, secrets, and the cache in Redis.

use lexikon_auth::SecretRing;
use lexikon_auth::store::{RedisOptions, SharedCache};

use crate::failure::Failure;

/// Reads a variable of the environment that is set to something.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Reads the secrets of the environment.
pub fn ring() -> Result<SecretRing, Failure> {
    Ok(SecretRing::from_env()?)
}

/// Returns the cache that the environment names.
pub fn configured_cache(redis_url: &str) -> Result<SharedCache, Failure> {
    Ok(redis_options().shared_cache(&redis_client(redis_url)?))
}

/// Describes a cache in the words of `lxk cache stats`.
pub fn describe(cache: &SharedCache) -> String {
    format!("prefix {} at {}", cache.prefix, cache.address)
}

/// Makes a client of Redis, without connecting.
pub fn redis_client(url: &str) -> Result<redis::Client, Failure> {
    redis::Client::open(url).map_err(|_| {
        Failure::Usage("REDIS_URL cannot be read; write it as redis://host:port/number".to_owned())
    })
}

/// Returns the options of the services, as far as their environment sets them.
pub fn redis_options() -> RedisOptions {
    match variable("REDIS_PREFIX") {
        Some(prefix) => RedisOptions::default().prefix(&prefix),
        None => RedisOptions::default(),
    }
}
