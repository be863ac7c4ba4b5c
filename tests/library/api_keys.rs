//! The one handle for the usual: what it puts together, what it says where it cannot, and how it ends.
#![cfg(feature = "tokio")]

#[cfg(all(feature = "cache", feature = "redis"))]
mod both_caches;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::Duration;

use futures_util::FutureExt;
use lexikon_auth::store::{KeyStore, MemoryStore};
use lexikon_auth::{ApiKeys, NewKey};
use lexikon_auth_tests::one_secret;
use tokio::time::{sleep, timeout};

/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
async fn wait_until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test]
async fn a_store_in_memory_needs_no_more_than_its_handle() {
    let store = MemoryStore::new();
    let keys = ApiKeys::options(one_secret()).over(store.clone()).await.unwrap();
    assert!(keys.is_following(), "nothing is cached");
    let issued = keys.issue(NewKey::new("user-1", "deploy").scopes("read")).await.unwrap();
    assert!(keys.verify(issued.key.expose_secret()).await.unwrap().allows("read"));

    keys.clone().shutdown().await.unwrap();
    let kept = store.find_by_id(&issued.record.id).await.unwrap().unwrap();
    assert!(kept.last_used_at.is_some());
    // The store is the application's own, and goes on; nobody writes last uses any more.
    assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
    keys.shutdown().await.unwrap();

    keys.revoke(&issued.record.id, None).await.unwrap();
    assert!(keys.verify(issued.key.expose_secret()).await.is_err(), "nothing is cached");
}

#[tokio::test]
async fn a_handle_that_is_dropped_writes_what_is_waiting() {
    let store = MemoryStore::new();
    let keys = ApiKeys::options(one_secret()).over(store.clone()).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    drop(keys.verify(issued.key.expose_secret()).await.unwrap());
    drop(keys.clone());
    assert!(store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at.is_none());
    drop(keys);
    wait_until("the last use is written", async || {
        store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at.is_some()
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_that_is_given_up_half_way_goes_on() {
    let store = MemoryStore::new();
    let keys = ApiKeys::options(one_secret()).over(store.clone()).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    drop(keys.verify(issued.key.expose_secret()).await.unwrap());
    // It begins, and has to wait for the end of a task.
    assert!(keys.shutdown().now_or_never().is_none());
    keys.shutdown().await.unwrap();
    assert!(store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at.is_some());
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_layer_keeps_the_tasks_running() {
    use axum::body::Body;
    use http::{Request, StatusCode};
    use tower::ServiceExt;

    let store = MemoryStore::new();
    let options = ApiKeys::options(one_secret()).flush_interval(Duration::from_millis(10));
    let keys = options.over(store.clone()).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    let app = crate::web::app(keys.layer());
    drop(keys);
    let mut written = None;
    // The first use could be written by a last flush, and not the second.
    for _ in 0..2 {
        let request = Request::get("/required").header("X-API-Key", issued.key.expose_secret());
        let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let earlier = written;
        wait_until("the use is written", async || {
            written = store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at;
            written > earlier
        })
        .await;
    }
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn a_cache_over_a_store_that_reports_nothing_is_not_up_to_date() {
    use lexikon_auth::store::CacheOptions;
    let options = ApiKeys::options(one_secret()).cache(CacheOptions::default());
    let keys = options.over(MemoryStore::new()).await.unwrap();
    assert!(!keys.is_following());
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_url_of_redis_that_cannot_be_read_is_not_repeated() {
    use lexikon_auth::StoreError;
    use lexikon_auth_tests::{assert_reveals_nothing, debugged, printed};
    let password = "a-password-of-redis";
    let options = ApiKeys::options(one_secret()).redis(&format!("rediss://:{password}@host:port/"));
    assert_reveals_nothing(&debugged(&options), password);
    let error = options.over(MemoryStore::new()).await.unwrap_err();
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    assert!(error.to_string().contains("URL of Redis"), "{error}");
    assert_reveals_nothing(&printed(&error), password);
}

#[cfg(all(feature = "redis", feature = "tls-native-tls", feature = "tls-rustls"))]
#[tokio::test]
async fn redis_by_tls_that_would_trust_no_authority_is_refused() {
    use lexikon_auth::StoreError;
    let options = ApiKeys::options(one_secret());
    let error = options.redis("rediss://localhost/").over(MemoryStore::new()).await.unwrap_err();
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    assert!(error.to_string().contains("both features"), "{error}");
}
