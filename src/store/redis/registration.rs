//! The registration of the cache with the database, so that others who change rows know of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{Client, ConnectionAddr};
use tokio::time::sleep;
use tracing::warn;

use super::options::RedisOptions;
use crate::store::KeyLookup;
use crate::store::shared_cache::SharedCache;

/// How often the registration of a store that is used is renewed.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(600);
/// How soon it is tried again after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(60);

/// Registers the cache once it holds entries.
pub(super) struct Registration {
    cache: SharedCache,
    has_begun: AtomicBool,
}

impl RedisOptions {
    /// Returns the cache on this server, as it is registered with the database.
    pub fn shared_cache(&self, client: &Client) -> SharedCache {
        SharedCache::new(&self.prefix, &address(client))
    }
}

impl Registration {
    pub(super) fn new(cache: SharedCache) -> Self {
        Self { cache, has_begun: AtomicBool::new(false) }
    }

    /// Registers the cache and keeps renewing that, unless it has begun.
    pub(super) fn begin(&self, store: &Arc<impl KeyLookup + 'static>) {
        if !self.has_begun.load(Ordering::Relaxed) && !self.has_begun.swap(true, Ordering::Relaxed)
        {
            tokio::spawn(renew(Arc::downgrade(store), self.cache.clone()));
        }
    }
}

async fn renew(store: Weak<impl KeyLookup>, cache: SharedCache) {
    let mut has_failed = false;
    while let Some(store) = store.upgrade() {
        let registered = store.register_cache(&cache).await;
        drop(store);
        if let Err(error) = &registered
            && !has_failed
        {
            warn!(%error, "the database was not told that Redis holds copies: lxk cannot know of them");
        }
        has_failed = registered.is_err();
        sleep(if has_failed { RETRY_DELAY } else { RENEWAL_INTERVAL }).await;
    }
}

/// Returns where Redis is, without user and password.
fn address(client: &Client) -> String {
    let info = client.get_connection_info();
    let database = info.redis_settings().db();
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            format!("{}:{port}/{database}", host.to_lowercase())
        }
        other => format!("{other}/{database}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_port_and_number_alone() {
        let cache =
            |url: &str| RedisOptions::default().shared_cache(&Client::open(url).unwrap()).address;
        let plain = cache("redis://cache.example.org");
        assert_eq!(plain.len(), 16);
        for same in ["redis://alice:pass@cache.example.org:6379/0", "redis://CACHE.example.org/"] {
            assert_eq!(cache(same), plain, "{same}");
        }
        for other in ["redis://cache.example.org/1", "redis://cache.example.org:6380", "redis://h"]
        {
            assert_ne!(cache(other), plain, "{other}");
        }
    }
}
