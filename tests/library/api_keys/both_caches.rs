//! Both caches over a store that reports nothing.

use lexikon_auth::store::CacheOptions;
use lexikon_auth_tests::redis_server;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// An instance over a store that reports nothing, which shares a Redis with others.
async fn instance(store: &MemoryStore, prefix: &str, max_age: Duration, ttl: Duration) -> ApiKeys {
    let keys = ApiKeys::options(one_secret())
        .cache(CacheOptions::default().max_age(max_age).max_age_unfollowed(HOUR))
        .redis(&redis_server::shared_url())
        .redis_options(redis_server::patient().prefix(prefix).ttl(ttl))
        .over(store.clone())
        .await
        .unwrap();
    wait_until("the other instances are followed", async || keys.is_following()).await;
    keys
}

#[tokio::test]
async fn a_change_by_another_instance_reaches_them() {
    let (store, prefix) = (MemoryStore::new(), redis_server::prefix());
    let keys = instance(&store, &prefix, HOUR, HOUR).await;
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
    let other = instance(&store, &prefix, HOUR, HOUR).await;
    other.revoke(&issued.record.id, None).await.unwrap();
    wait_until("the key is refused", async || {
        keys.verify(issued.key.expose_secret()).await.is_err()
    })
    .await;
    other.shutdown().await.unwrap();
    keys.shutdown().await.unwrap();
    assert!(!keys.is_following());
}

#[tokio::test]
async fn a_change_past_them_shows_after_the_life_of_an_entry() {
    let (store, prefix) = (MemoryStore::new(), redis_server::prefix());
    let short = Duration::from_secs(1);
    let keys = instance(&store, &prefix, HOUR, HOUR).await;
    let quick = instance(&store, &redis_server::prefix(), short, short).await;
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    for keys in [&keys, &quick, &keys, &keys] {
        assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
    }
    store.revoke(&issued.record.id, std::time::SystemTime::now(), None).await.unwrap();
    wait_until("the key is refused", async || {
        quick.verify(issued.key.expose_secret()).await.is_err()
    })
    .await;
    assert!(keys.verify(issued.key.expose_secret()).await.is_ok(), "nobody has reported it");
    quick.shutdown().await.unwrap();
    keys.shutdown().await.unwrap();
}
