//! The limit on refused keys for each client address.
#![cfg(all(feature = "throttle", feature = "axum"))]

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{HeaderName, Request, Response, StatusCode};
use lexikon_auth::crypto::Candidates;
use lexikon_auth::http::{ApiKeyLayer, Throttle};
use lexikon_auth::store::FeedEvent;
use lexikon_auth::store::{KeyLookup, KeyStore, MemoryStore};
use lexikon_auth::{KeyRecord, StoreError, Verifier};
use lexikon_auth_tests::gated::Gated;
use lexikon_auth_tests::{
    FORGED, SECRETS, TAGGED, UNTAGGED, hmac_hash, one_secret, record, store, verifier,
};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt;

const LIMIT: u32 = 3;
const WINDOW: Duration = Duration::from_secs(3600);
/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The tests say where a request comes from by an extension of this type, as a server does.
fn throttle(limit: u32, window: Duration) -> Throttle {
    let throttle = Throttle::new(|extensions| extensions.get::<IpAddr>().copied());
    throttle.refusals(NonZeroU32::new(limit).unwrap(), window)
}

fn app(throttle: Throttle) -> Router {
    let store = store(&[record("key", hmac_hash(SECRETS[0], TAGGED))]);
    let layer = ApiKeyLayer::new(Arc::new(verifier(store))).throttle(throttle);
    Router::new().route("/", get(async || "open")).layer(layer)
}

async fn send(app: &Router, address: &str, headers: &[(&str, &str)]) -> Response<Body> {
    let mut request = Request::builder().uri("/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    if !address.is_empty() {
        request.extensions_mut().insert(address.parse::<IpAddr>().unwrap());
    }
    app.clone().oneshot(request).await.unwrap()
}

async fn status(app: &Router, address: &str, key: &str) -> u16 {
    send(app, address, &[("x-api-key", key)]).await.status().as_u16()
}

/// Uses up what an address is allowed.
async fn exhaust(app: &Router, address: &str, headers: &[(&str, &str)]) {
    for _ in 0..LIMIT {
        let headers = [&[("x-api-key", FORGED)], headers].concat();
        assert_eq!(send(app, address, &headers).await.status(), StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn an_address_is_denied_after_its_refusals_and_others_are_not() {
    let app = app(throttle(LIMIT, WINDOW));
    exhaust(&app, "192.0.2.1", &[]).await;
    // Whatever key: what is denied here says nothing of it.
    for key in [FORGED, UNTAGGED, TAGGED, "lxk_", "not a key"] {
        let response = send(&app, "192.0.2.1", &[("x-api-key", key)]).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let wait: u64 = header("retry-after").parse().unwrap();
        assert!((1..=WINDOW.as_secs() / u64::from(LIMIT)).contains(&wait), "{wait}");
        assert_eq!(header("ratelimit-policy"), "\"refusals\";q=3;w=3600");
        assert_eq!(header("ratelimit"), format!("\"refusals\";r=0;t={wait}"));
        assert_eq!(header("cache-control"), "no-store");
        assert!(!response.headers().contains_key("www-authenticate"));
    }
    assert_eq!(status(&app, "192.0.2.2", TAGGED).await, 200);
    assert_eq!(status(&app, "192.0.2.2", FORGED).await, 401);
    // Who presents no key has none refused.
    assert_eq!(send(&app, "192.0.2.1", &[]).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn only_what_is_refused_counts() {
    let app = app(throttle(LIMIT, WINDOW));
    for _ in 0..10 * LIMIT {
        assert_eq!(status(&app, "192.0.2.1", TAGGED).await, 200);
        assert_eq!(send(&app, "192.0.2.1", &[]).await.status(), StatusCode::UNAUTHORIZED);
    }
    // An ill-formed request counts like a refusal.
    for expected in [400, 400, 400, 429] {
        assert_eq!(status(&app, "192.0.2.1", "not a key").await, expected);
    }
}

#[tokio::test]
async fn after_the_time_that_it_was_told_an_address_may_try_again() {
    let app = app(throttle(1, Duration::from_secs(1)));
    // On a busy machine a second may pass between two requests: then the next is refused as well.
    let mut tries = 0;
    let denied = loop {
        let response = send(&app, "192.0.2.1", &[("x-api-key", FORGED)]).await;
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            break response;
        }
        tries += 1;
        assert!(tries < 100, "it is never denied");
    };
    let wait: u64 = denied.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert_eq!(wait, 1);
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(status(&app, "192.0.2.1", TAGGED).await, 200);
}

#[tokio::test]
async fn addresses_of_one_client_count_together() {
    let app = app(throttle(LIMIT, WINDOW));
    for (one, same, other) in [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"),
        ("192.0.2.7", "::ffff:192.0.2.7", "::ffff:192.0.2.8"),
    ] {
        exhaust(&app, one, &[]).await;
        assert_eq!(status(&app, same, TAGGED).await, 429);
        assert_eq!(status(&app, other, TAGGED).await, 200);
    }
}

#[tokio::test]
async fn a_proxy_is_believed_only_where_it_is_trusted() {
    let trusting = throttle(LIMIT, WINDOW).trusted_proxies(["10.0.0.0/8".parse().unwrap()]);
    let app = app(trusting);
    let from = |value| [("x-forwarded-for", value)];
    // Of a list, the last that no trusted proxy wrote of another.
    exhaust(&app, "10.0.0.1", &from("203.0.113.1, 192.0.2.1, 10.0.0.2")).await;
    let status_from = async |peer, value| {
        let headers = [("x-api-key", TAGGED), ("x-forwarded-for", value)];
        send(&app, peer, &headers).await.status().as_u16()
    };
    assert_eq!(status_from("10.9.9.9", "192.0.2.1").await, 429);
    assert_eq!(status_from("10.9.9.9", "192.0.2.1:4711").await, 429);
    assert_eq!(status_from("10.9.9.9", "garbage, 192.0.2.1").await, 429);
    assert_eq!(status_from("192.0.2.1", "203.0.113.9").await, 429, "its own word is not taken");
    assert_eq!(status_from("10.9.9.9", "192.0.2.1, 203.0.113.9").await, 200);
    assert_eq!(status_from("203.0.113.9", "192.0.2.1").await, 200);
    // Brackets are how some write them.
    exhaust(&app, "10.0.0.1", &from("[2001:db8::1]")).await;
    assert_eq!(status_from("10.9.9.9", "[2001:db8::1]:4711").await, 429);
    assert_eq!(status_from("10.9.9.9", "[2001:db8:1::1]").await, 200);
    // Two lines are one list.
    let lines = [("x-api-key", TAGGED), from("192.0.2.9")[0], from("192.0.2.1")[0]];
    assert_eq!(send(&app, "10.0.0.1", &lines).await.status(), StatusCode::TOO_MANY_REQUESTS);
    // No header, or nothing that can be read: the proxy itself is all that is known.
    exhaust(&app, "10.0.0.3", &[]).await;
    assert_eq!(status_from("10.0.0.3", "unknown").await, 429);
    assert_eq!(status_from("10.0.0.3", "192.0.2.77").await, 200);
}

#[tokio::test]
async fn a_network_of_mapped_addresses_is_that_of_the_addresses() {
    let mapped = "::ffff:10.0.0.0/104".parse().unwrap();
    let app = app(throttle(LIMIT, WINDOW).trusted_proxies([mapped]));
    let client = [("x-forwarded-for", "192.0.2.1")];
    exhaust(&app, "10.0.0.1", &client).await;
    assert_eq!(status(&app, "10.0.0.1", TAGGED).await, 200, "that is the proxy");
    exhaust(&app, "::ffff:10.0.0.2", &[("x-forwarded-for", "192.0.2.2")]).await;
    exhaust(&app, "11.0.0.1", &client).await;
}

/// An app over a store that makes every look-up wait.
fn held_up(limit: u32) -> (Router, Gated) {
    let gated = Gated::default();
    gated.closed.send_replace(true);
    let layer = ApiKeyLayer::new(Arc::new(Verifier::new(gated.clone(), one_secret())));
    let layer = layer.throttle(throttle(limit, WINDOW));
    (Router::new().route("/", get(async || "open")).layer(layer), gated)
}

/// The answers to these keys, all sent by one address at once, while the store is held up.
async fn at_once(app: &Router, gated: &Gated, keys: Vec<String>) -> Vec<u16> {
    let app = app.clone();
    let requests = keys.into_iter().map(|key| {
        let app = app.clone();
        tokio::spawn(async move { status(&app, "192.0.2.1", &key).await })
    });
    let requests: Vec<_> = requests.collect();
    gated.reach(1).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    gated.closed.send_replace(false);
    let mut answers = Vec::new();
    for request in requests {
        answers.push(request.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn keys_that_come_at_once_are_refused_no_more_often_than_one_by_one() {
    let (app, gated) = held_up(LIMIT);
    let unknown = (0..100).map(|number| format!("lxk_{number:A>43}")).collect();
    let answers = at_once(&app, &gated, unknown).await;
    let count = |status| answers.iter().filter(|&&answer| answer == status).count();
    assert_eq!((count(401), count(429)), (LIMIT as usize, 100 - LIMIT as usize), "{answers:?}");
    assert_eq!(gated.reads(), u64::from(LIMIT), "what is denied is not looked up");
}

#[tokio::test]
async fn good_keys_that_come_at_once_are_all_accepted() {
    let (app, gated) = held_up(1);
    gated.keys.insert(&record("key", hmac_hash(SECRETS[0], TAGGED))).await.unwrap();
    assert_eq!(at_once(&app, &gated, vec![TAGGED.to_owned(); 100]).await, [200; 100]);
}

/// Has a request look a key up in a store that is held up, and hangs up then.
async fn hang_up(app: &Router, gated: &Gated, key: &str) {
    let (app, key, reads) = (app.clone(), key.to_owned(), gated.reads());
    let request = tokio::spawn(async move { status(&app, "192.0.2.1", &key).await });
    timeout(PATIENCE, gated.reach(reads + 1)).await.expect("it is looked up");
    request.abort();
    assert!(request.await.is_err());
}

#[tokio::test]
async fn a_key_is_refused_also_when_nobody_waits_for_the_answer() {
    let (app, gated) = held_up(LIMIT);
    gated.keys.insert(&record("key", hmac_hash(SECRETS[0], TAGGED))).await.unwrap();
    for number in 0..LIMIT {
        hang_up(&app, &gated, &format!("lxk_{number:A>43}")).await;
    }
    // As many as may be refused are under way still.
    let next = tokio::spawn({
        let app = app.clone();
        async move { status(&app, "192.0.2.1", TAGGED).await }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(gated.reads(), u64::from(LIMIT), "the next one waits for the end of one");
    gated.closed.send_replace(false);
    assert_eq!(timeout(PATIENCE, next).await.unwrap().unwrap(), 429);
    assert_eq!(gated.reads(), u64::from(LIMIT));
}

#[tokio::test]
async fn whoever_often_hangs_up_with_a_good_key_is_not_limited() {
    let (app, gated) = held_up(1);
    gated.keys.insert(&record("key", hmac_hash(SECRETS[0], TAGGED))).await.unwrap();
    for _ in 0..10 {
        gated.closed.send_replace(true);
        hang_up(&app, &gated, TAGGED).await;
        gated.closed.send_replace(false);
        let next = timeout(PATIENCE, status(&app, "192.0.2.1", TAGGED)).await;
        assert_eq!(next.expect("the place is free again"), 200);
    }
}

/// Answers when it is asked again, as a database does.
struct Distant(MemoryStore);

impl KeyLookup for Distant {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        tokio::task::yield_now().await;
        self.0.find(candidates).await
    }

    async fn on_feed_event(&self, _: &FeedEvent) {}
}

#[tokio::test]
async fn each_of_many_look_ups_is_woken_a_few_times_and_in_its_turn() {
    const REQUESTS: usize = 400;
    let store = Distant(store(&[record("key", hmac_hash(SECRETS[0], TAGGED))]));
    let layer = ApiKeyLayer::new(Arc::new(Verifier::new(store, one_secret())));
    let layer = layer.throttle(throttle(1, WINDOW));
    let app = Router::new().route("/", get(async || "open")).layer(layer);
    let polls = Arc::new(AtomicUsize::new(0));
    let answered = Arc::new(Mutex::new(Vec::new()));
    let requests: JoinSet<_> = (0..REQUESTS)
        .map(|number| {
            let (app, polls, answered) = (app.clone(), polls.clone(), answered.clone());
            let answer = async move {
                let answer = status(&app, "192.0.2.1", TAGGED).await;
                answered.lock().unwrap().push(number);
                answer
            };
            let mut answer = Box::pin(answer);
            poll_fn(move |context| {
                polls.fetch_add(1, Ordering::Relaxed);
                answer.as_mut().poll(context)
            })
        })
        .collect();
    assert_eq!(requests.join_all().await, [200; REQUESTS]);
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls <= 8 * REQUESTS, "{polls} polls of {REQUESTS} requests");
    assert!(answered.lock().unwrap().is_sorted(), "first come, first served");
}

#[tokio::test]
async fn whoever_gives_up_waiting_passes_the_turn_on() {
    let (app, gated) = held_up(1);
    gated.keys.insert(&record("key", hmac_hash(SECRETS[0], TAGGED))).await.unwrap();
    let mut requests: Vec<_> = (0..10)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move { status(&app, "192.0.2.1", TAGGED).await })
        })
        .collect();
    let let_all_run = async || {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    let_all_run().await;
    assert_eq!(gated.reads(), 1, "the others wait");
    // The one that looks a key up, the next in turn, one in the middle, and the last.
    for number in [9, 5, 1, 0] {
        requests.remove(number).abort();
    }
    gated.closed.send_replace(false);
    // Before it has run, so that it gives up what it was just given.
    requests.remove(0).abort();
    let_all_run().await;
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn the_header_of_proxies_can_be_named() {
    let trusting = throttle(LIMIT, WINDOW)
        .trusted_proxies(["10.0.0.0/8".parse().unwrap()])
        .forwarded_header(HeaderName::from_static("x-real-ip"));
    let app = app(trusting);
    exhaust(&app, "10.0.0.1", &[("x-real-ip", "192.0.2.1"), ("x-forwarded-for", "1.1.1.1")]).await;
    let headers = [("x-api-key", TAGGED), ("x-real-ip", "192.0.2.1")];
    assert_eq!(send(&app, "10.0.0.1", &headers).await.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn no_more_addresses_are_remembered_than_allowed() {
    let app = app(throttle(LIMIT, WINDOW).max_clients(100));
    let addresses = || (0..2000).map(|number| Ipv4Addr::from(0x0a00_0000 + number).to_string());
    for address in addresses() {
        exhaust(&app, &address, &[]).await;
    }
    let mut denied = 0;
    for address in addresses() {
        denied += u32::from(status(&app, &address, TAGGED).await == 429);
    }
    assert!((50..=100).contains(&denied), "{denied} of 2000 are remembered");
}

#[tokio::test]
async fn a_request_from_nowhere_is_not_limited() {
    let app = app(throttle(LIMIT, WINDOW));
    for _ in 0..2 * LIMIT {
        assert_eq!(status(&app, "", FORGED).await, 401);
    }
}
