//! Everything that can be counted happens once, on real servers; then docs/telemetry.md is compared with
//! what an exporter shows.
//!
//! In a process of its own: the recorder and the log are those of the whole process.
#![cfg(all(
    feature = "metrics",
    feature = "sqlite",
    feature = "postgres",
    feature = "cache",
    feature = "redis",
    feature = "axum",
    feature = "throttle"
))]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::{Candidates, HashFormat, KeyHash, PresentedKey};
use lexikon_auth::http::{Admin, ApiKeyLayer, RequireScope, Throttle};
use lexikon_auth::store::{
    CacheOptions, CachedStore, Change, HashChange, KeyLookup, KeyStore, MemoryStore, Page,
    PostgresStore, RedisOptions, RedisStore, SqliteStore, Succession, Usage,
};
use lexikon_auth::store::{FeedEvent, FeedEventKind};
use lexikon_auth::tasks::Follower;
use lexikon_auth::telemetry::{LATENCY_BUCKETS, SECURITY_TARGET};
use lexikon_auth::{
    ApiKey, KeyId, KeyRecord, KeyUpdate, LegacyPolicy, OwnerId, Policy, StoreError, UntaggedPolicy,
    Verifier,
};
use lexikon_auth_tests::redis_server::RedisServer;
use lexikon_auth_tests::{
    FORGED, Log, SECRETS, UNTAGGED, assert_reveals_nothing, hmac_hash, legacy_hash, postgres, ring,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use redis::Commands;
use tokio::time::sleep;
use tracing_subscriber::filter::LevelFilter;

const OWNER: &str = "the-owner-of-every-key";
const DISABLED: &str = "the-owner-who-is-disabled";

fn numbered(number: usize) -> String {
    format!("lxk_{number:0>43}")
}

fn candidates(key: &str) -> Candidates {
    Candidates::compute(&PresentedKey::parse(key).unwrap(), &ring(&SECRETS[..2])).unwrap()
}

/// A record whose id tells it from everything else in a text.
fn stored(name: &str, owner: &str, hash: KeyHash) -> KeyRecord {
    KeyRecord::new(KeyId::from(format!("id-of-{name}")), OwnerId::from(owner), hash)
}

fn verifier<S: KeyLookup>(store: S, policy: Policy) -> Verifier<S> {
    Verifier::new(store, ring(&SECRETS[..2])).with_policy(policy)
}

/// What a verification comes to, as a word.
async fn outcome<S: KeyLookup>(verifier: &Verifier<S>, key: &str) -> &'static str {
    match verifier.verify(key).await {
        Ok(verified) => verified.format().as_str(),
        Err(error) => error.refusal().map_or("unavailable", |refusal| refusal.as_str()),
    }
}

/// Calls every method of a store, which leaves one key of `OWNER` in it.
async fn every_call(store: &impl KeyStore) -> Result<(), StoreError> {
    let (first, second) = (numbered(1), numbered(2));
    let [old, new] = [&first, &second].map(|key| hmac_hash(SECRETS[0], key));
    let now = SystemTime::now();
    let record = stored("called", OWNER, old);
    let (id, owner) = (&record.id, &record.owner);
    let calls = [
        store.insert(&record).await,
        store.find(&candidates(&first)).await.map(drop),
        store.find_by_id(id).await.map(drop),
        store.list(owner, &Page::first(1)).await.map(drop),
        store.update(id, &KeyUpdate::default().name("renamed")).await,
        store
            .rotate(&Succession {
                old: record.clone(),
                old_expires_at: now + Duration::from_secs(60),
                successor: stored("next", OWNER, new),
                now,
            })
            .await,
        store
            .record_usage(&[Usage { id: id.clone(), at: now, format: HashFormat::HmacSha256 }])
            .await,
        store
            .replace_hash(&HashChange {
                id: id.clone(),
                expected: old,
                replacement: legacy_hash(&first),
            })
            .await
            .map(drop),
        store.revoke(id, now, None).await,
        store.expire(now).await.map(drop),
        store.count_by_format().await.map(drop),
    ];
    calls.into_iter().collect()
}

/// Every outcome of a verification but `unavailable`.
async fn every_refusal() {
    let store = MemoryStore::new();
    let good = ApiKey::generate(ring(&SECRETS[..1]).current()).unwrap();
    let mut rows = vec![
        stored("good", OWNER, hmac_hash(SECRETS[0], good.expose_secret())),
        stored("retired", OWNER, hmac_hash(SECRETS[1], &numbered(10))),
        stored("disabled", DISABLED, hmac_hash(SECRETS[0], &numbered(13))),
        stored("legacy", OWNER, legacy_hash(UNTAGGED)),
    ];
    rows.push(stored("expired", OWNER, hmac_hash(SECRETS[0], &numbered(11))));
    rows.last_mut().unwrap().expires_at = Some(SystemTime::UNIX_EPOCH);
    rows.push(stored("revoked", OWNER, hmac_hash(SECRETS[0], &numbered(12))));
    rows.last_mut().unwrap().revocation = Some(Box::default());
    for row in &rows {
        store.insert(row).await.unwrap();
    }
    store.set_owner_active(&DISABLED.into(), false);

    let upgrading = verifier(store.clone(), Policy::default().legacy(LegacyPolicy::UpgradeOnUse));
    let closed = verifier(store.clone(), Policy::default().legacy(LegacyPolicy::Refuse));
    let shadow = verifier(store.clone(), Policy::default().legacy(LegacyPolicy::Shadow));
    let tagged_only = verifier(store.clone(), Policy::default().untagged(UntaggedPolicy::Refuse));
    assert_eq!(outcome(&upgrading, good.expose_secret()).await, "hmac-sha256");
    assert_eq!(outcome(&upgrading, &numbered(10)).await, "hmac-sha256");
    assert_eq!(outcome(&closed, UNTAGGED).await, "legacy_closed");
    assert_eq!(outcome(&shadow, UNTAGGED).await, "sha256");
    assert_eq!(outcome(&tagged_only, UNTAGGED).await, "untagged_closed");
    assert_eq!(outcome(&upgrading, UNTAGGED).await, "sha256");
    assert_eq!(outcome(&upgrading, "lxk_").await, "malformed");
    assert_eq!(outcome(&upgrading, FORGED).await, "forged_tag");
    assert_eq!(outcome(&upgrading, &numbered(9)).await, "unknown");
    assert_eq!(outcome(&upgrading, &numbered(11)).await, "expired");
    assert_eq!(outcome(&upgrading, &numbered(12)).await, "revoked");
    assert_eq!(outcome(&upgrading, &numbered(13)).await, "owner_disabled");
    let flushed = upgrading.flush().await.unwrap();
    assert_eq!((flushed.used, flushed.upgraded), (3, 1));
}

/// Every answer of the web layer.
async fn every_http_answer() {
    let store = MemoryStore::new();
    store.insert(&stored("web", OWNER, hmac_hash(SECRETS[0], UNTAGGED))).await.unwrap();
    let throttle = Throttle::new(|_| Some(IpAddr::from([192, 0, 2, 1])));
    let throttle = throttle.refusals(NonZeroU32::new(2).unwrap(), Duration::from_secs(3600));
    let layer = ApiKeyLayer::new(Arc::new(verifier(store, Policy::default()))).throttle(throttle);
    let gone = Verifier::new(Gone, ring(&SECRETS[..1]));
    let ok = || axum::routing::get(async || "ok");
    let scoped = || ok().route_layer(RequireScope::<Admin>::new());
    let app = axum::Router::new().route("/", ok()).route("/admin", scoped()).layer(layer);
    let app =
        app.merge(axum::Router::new().route("/gone", ok()).layer(ApiKeyLayer::new(Arc::new(gone))));
    let app = app.route("/unprotected", scoped());
    for (path, key, status) in [
        ("/", UNTAGGED, 200),
        ("/admin", UNTAGGED, 403),
        ("/", "", 401),
        ("/", "two words", 400),
        ("/", FORGED, 401),
        ("/", FORGED, 429),
        ("/gone", UNTAGGED, 503),
        ("/unprotected", UNTAGGED, 500),
    ] {
        let mut request = http::Request::builder().uri(path);
        if !key.is_empty() {
            request = request.header("x-api-key", key);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(app.clone(), request).await.unwrap();
        assert_eq!(response.status(), status, "{path} {key}");
    }
}

/// Answers nothing.
struct Gone;

impl KeyLookup for Gone {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Err(StoreError::Unavailable("gone".into()))
    }

    async fn on_feed_event(&self, _: &FeedEvent) {}
}

/// Knows every key, each by an id of its own.
struct Endless;

impl KeyLookup for Endless {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let hash = candidates.as_slice()[0];
        Ok(Some(Arc::new(stored(&hash.to_hex(), OWNER, hash))))
    }

    async fn on_feed_event(&self, _: &FeedEvent) {}
}

async fn more_uses_than_there_is_room_for() {
    let verifier = verifier(Endless, Policy::default());
    for number in 0..120_000 {
        _ = verifier.verify(&numbered(number)).await.unwrap();
    }
    assert!(verifier.dropped_uses() > 0);
}

async fn sqlite_and_a_store_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_or_create(folder.path().join("keys.db")).await.unwrap();
    every_call(&store).await.unwrap();
    let verifier = verifier(store.clone(), Policy::default());
    assert_eq!(outcome(&verifier, &numbered(2)).await, "hmac-sha256");
    store.close().await;
    every_call(&store).await.unwrap_err();
    assert_eq!(outcome(&verifier, &numbered(2)).await, "unavailable");
    verifier.flush().await.unwrap_err();
}

/// PostgreSQL beneath Redis beneath a cache, and a follower that tells both.
async fn servers() {
    let database = PostgresStore::connect(postgres::database().await).await.unwrap();
    every_call(&database).await.unwrap();
    let redis = RedisServer::start();
    let options = RedisOptions::default().timeout(Duration::from_secs(60)).max_value_bytes(1000);
    let secrets = ring(&SECRETS[..2]);
    let shared = RedisStore::new(database.clone(), redis.client(), &secrets, options).await;
    let cached = CachedStore::new(shared.clone(), CacheOptions::default());
    let follower = Follower::spawn(cached.clone(), database.changes());
    follower.connected().await;

    let verifier = verifier(cached.clone(), Policy::default());
    for _ in 0..2 {
        assert_eq!(outcome(&verifier, &numbered(2)).await, "hmac-sha256");
        assert_eq!(outcome(&verifier, &numbered(3)).await, "unknown");
    }
    assert_eq!((cached.counts().hits, cached.counts().unknown_hits), (1, 1));
    cached.invalidate(Change::All);
    assert_eq!(outcome(&verifier, &numbered(2)).await, "hmac-sha256");
    assert_eq!(shared.counts().hits, 1);

    // Another instance disables the owner; this one hears of it.
    database.set_owner_active(&OWNER.into(), false).await.unwrap();
    while outcome(&verifier, &numbered(2)).await != "owner_disabled" {
        sleep(Duration::from_millis(5)).await;
    }
    cached.update(&"id-of-next".into(), &KeyUpdate::default().name("x")).await.unwrap();
    shared.find(&candidates(&numbered(2))).await.unwrap();
    redis_rejects(&redis, &shared).await;
    // Not at once, where the follower heard of a change while Redis was full and could not remember it.
    while !shared.is_used() {
        sleep(Duration::from_millis(5)).await;
    }
    shared.on_feed_event(&FeedEvent::of_database(FeedEventKind::Lost)).await;
    assert!(!shared.is_used());
    shared.find(&candidates(&numbered(2))).await.unwrap();
    shared.on_feed_event(&FeedEvent::of_database(FeedEventKind::Connected)).await;
    assert!(shared.is_used());
    shared.clear().await.unwrap();

    // A sign of life is asked for every second.
    sleep(Duration::from_millis(1500)).await;
    follower.shutdown().await;
    cached.insert(&stored("added", OWNER, hmac_hash(SECRETS[0], &numbered(5)))).await.unwrap();
    database.close().await;
    every_call(&database).await.unwrap_err();
}

/// Entries that are tampered with, stale, too long, and not taken.
async fn redis_rejects(redis: &RedisServer, store: &RedisStore<PostgresStore>) {
    let mut connection = redis.client().get_connection().unwrap();
    let key = candidates(&numbered(2));
    let name = format!("lexikon:auth:key:{}", key.as_slice()[0].to_hex());
    let _: () = redis::cmd("SET").arg(&name).arg("?").query(&mut connection).unwrap();
    store.find(&key).await.unwrap();
    store.invalidate(Change::Key("id-of-next".into())).await;
    store.find(&key).await.unwrap();

    let mut long = stored("long", OWNER, hmac_hash(SECRETS[0], &numbered(4)));
    long.name = "x".repeat(2000).into();
    store.inner().insert(&long).await.unwrap();
    store.find(&candidates(&numbered(4))).await.unwrap();

    let _: usize = connection.del(&name).unwrap();
    let mut memory = |limit: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(limit).exec(&mut connection).unwrap();
    };
    memory("1");
    store.find(&key).await.unwrap();
    memory("0");
    let counts = store.counts();
    assert!(counts.rejected > 0 && counts.stale > 0, "{counts:?}");
    assert!(counts.oversized > 0 && counts.unwritten > 0, "{counts:?}");
}

/// A cache so small that entries make room for others.
async fn evictions() -> CachedStore<MemoryStore> {
    let store = MemoryStore::new();
    for number in 0..200 {
        let row = stored(&number.to_string(), OWNER, hmac_hash(SECRETS[0], &numbered(number)));
        store.insert(&row).await.unwrap();
    }
    let options = CacheOptions::default().max_bytes(100_000).max_unknown_bytes(20_000);
    let cached = CachedStore::new(store, options);
    for number in 0..400 {
        cached.find(&candidates(&numbered(number))).await.unwrap();
    }
    let counts = cached.counts();
    assert!(counts.evictions > 0 && counts.unknown_evictions > 0, "{counts:?}");
    assert!(counts.entries > 0 && counts.unknown_entries > 0, "{counts:?}");
    cached
}

/// A metric: its type, its unit, and the values of each label.
#[derive(Debug, Default, PartialEq)]
struct Metric {
    kind: String,
    unit: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

fn unit(name: &str) -> &'static str {
    ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit)).unwrap_or_default()
}

/// The samples of an exported page: a name, labels and a value.
fn samples(page: &str) -> impl Iterator<Item = (&str, Vec<(&str, &str)>, f64)> {
    page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| label.split_once('=').unwrap());
        let labels = labels.map(|(label, value)| (label, value.trim_matches('"'))).collect();
        (name, labels, value.parse().unwrap())
    })
}

fn exported(page: &str) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(page.contains(&format!("# HELP {name} ")), "{name} is not described");
        let metric = Metric { kind: kind.into(), unit: unit(name).into(), ..Metric::default() };
        metrics.insert(name.to_owned(), metric);
    }
    for (name, labels, _) in samples(page) {
        let suffixes = ["_bucket", "_sum", "_count"];
        let base = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        let base = base.filter(|base| metrics.contains_key(*base)).unwrap_or(name);
        let metric = metrics.get_mut(base).expect("a type before the sample");
        for (label, value) in labels.into_iter().filter(|(label, _)| *label != "le") {
            metric.labels.entry(label.into()).or_default().insert(value.into());
        }
    }
    metrics
}

/// The tables of the page.
fn documented() -> BTreeMap<String, Metric> {
    let page = include_str!("../docs/telemetry.md");
    let rows = page.lines().filter(|line| line.starts_with("| `lexikon_auth_"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, name, kind, unit_cell, labels, ..] = cells[..] else { panic!("{row}") };
        let words = |text: &str| -> BTreeSet<String> {
            text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let labels = labels.split(';').filter_map(|label| {
            let (label, values) = label.split_once(": ")?;
            Some((label.trim().trim_matches('`').to_owned(), words(values)))
        });
        let name = name.trim_matches('`');
        // What is counted has a word for it there, and none in the name.
        let unit = if unit(name).is_empty() { "" } else { unit_cell };
        let metric = Metric { kind: kind.into(), unit: unit.into(), labels: labels.collect() };
        (name.to_owned(), metric)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_what_is_exported_and_nothing_exported_names_a_key() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::INFO)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .init();
    let times = Matcher::Prefix("lexikon_auth_".to_owned());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(times, LATENCY_BUCKETS).unwrap();
    let metrics = builder.install_recorder().unwrap();

    every_refusal().await;
    every_http_answer().await;
    more_uses_than_there_is_room_for().await;
    sqlite_and_a_store_that_is_gone().await;
    servers().await;
    let cached = evictions().await;

    let page = metrics.render();
    let (exported, documented) = (exported(&page), documented());
    for name in exported.keys().chain(documented.keys()) {
        assert_eq!(exported.get(name), documented.get(name), "{name}: exported, documented");
    }
    // Every series has moved, and shows what happened.
    for (name, labels, value) in samples(&page).filter(|(name, ..)| !name.ends_with("_bucket")) {
        // The follower has ended, and Redis is bypassed without one.
        let is_over = ["lexikon_auth_follower_connected", "lexikon_auth_redis_state"];
        let is_over = is_over.contains(&name);
        assert_eq!(value > 0.0, !is_over, "{name} {labels:?} {value}");
    }
    let entries = samples(&page).find(|(name, labels, _)| {
        *name == "lexikon_auth_cache_entries" && labels[..] == [("kind", "known")]
    });
    assert_eq!(entries.unwrap().2, cached.counts().entries as f64);

    let log = log.text();
    assert!(log.contains(&format!("{SECURITY_TARGET}: an entry in Redis was not written by")));
    for text in [&page, &log] {
        for key in [UNTAGGED, FORGED, "lxk_", SECRETS[0], SECRETS[1]] {
            assert!(!text.contains(key), "{key} in {text}");
        }
        for hash in candidates(UNTAGGED).as_slice() {
            assert_reveals_nothing(text, &hash.to_hex());
        }
    }
    for word in ["id-of", OWNER, DISABLED] {
        assert!(!page.contains(word), "{word} in {page}");
    }
}
