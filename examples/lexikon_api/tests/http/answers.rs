//! Every answer of the description, over real HTTP, and nothing that gives a secret away.

use std::collections::BTreeSet;
use std::time::Duration;

use lexikon_auth_tests::{FORGED, postgres, redis_server};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::{Api, KEYS, UNKNOWN, described};

#[tokio::test]
async fn every_answer_is_as_the_description_says_and_reveals_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}/keys.db", folder.path().display());
    let api = Api::start(&[
        ("DATABASE_URL", &database),
        ("FIRST_KEY_FOR", "user-1"),
        ("TRUSTED_PROXIES", "127.0.0.0/8"),
    ])
    .await;
    let admin = &*api.service.first_key();
    for path in ["/api/health", "/api/ready", "/api/status", "/api/metrics", "/api/openapi.json"] {
        assert_eq!(api.get(path, "").await.status, 200);
    }

    // Keys are made, listed and revoked.
    let (reader, reader_id) = api.make(admin, "read").await;
    let (writer, writer_id) = api.make(admin, "read,write").await;
    let expiring = json!({ "name": "ä".repeat(100), "scopes": "read", "expires_in_days": 7 });
    let answer = api.post(admin, expiring).await;
    assert_eq!((answer.status, answer.header("cache-control")), (201, "no-store"));
    let made = &answer.body["data"];
    let date = |name: &str| OffsetDateTime::parse(made[name].as_str().unwrap(), &Rfc3339).unwrap();
    let lifetime = date("expires_at") - date("created_at");
    assert_eq!(lifetime.as_seconds_f64().round(), 7.0 * 24.0 * 3600.0);
    assert_eq!(made["is_active"], true);
    // Told that it expires soon.
    let soon = api.get("/api/entries/none", made["key"].as_str().unwrap()).await;
    assert!(soon.header("api-key-notice").starts_with("expires;until=@"));
    let listed = api.get(KEYS, admin).await;
    let keys = listed.body["data"]["keys"].as_array().unwrap();
    assert_eq!((listed.status, keys.len()), (200, 4));
    assert_eq!(keys[0]["name"], "ä".repeat(100), "newest first");
    assert_eq!(listed.body["data"]["next"], Value::Null);

    // What the keys open.
    let definition = json!({ "definition": "a book of words" });
    assert_eq!(api.get("/api/entries/lexikon", &reader).await.status, 404);
    assert_eq!(api.write("lexikon", &writer, definition.clone()).await.body["data"], definition);
    assert_eq!(api.get("/api/entries/lexikon", &reader).await.body["data"], definition);
    let forbidden = api.write("lexikon", &reader, definition.clone()).await;
    let challenge = "Bearer realm=\"lexikon\", error=\"insufficient_scope\", scope=\"write\"";
    assert_eq!(forbidden.header("www-authenticate"), challenge);
    for key in [&reader, &writer] {
        assert_eq!(api.get(KEYS, key).await.status, 403);
        assert_eq!(api.post(key, json!({ "name": "n", "scopes": "admin" })).await.status, 403);
        assert_eq!(api.delete(&reader_id, key).await.status, 403);
    }
    let (useless, _) = api.make(admin, "write").await;
    assert_eq!(api.get("/api/entries/lexikon", &useless).await.status, 403);

    // Revoked at once, though it was in the cache.
    assert_eq!(api.delete(&reader_id, admin).await.body["data"]["is_active"], false);
    assert_eq!(api.get("/api/entries/lexikon", &reader).await.status, 401);
    assert_eq!(api.delete(&reader_id, admin).await.status, 200, "again changes nothing");
    assert_eq!(api.delete("unknown", admin).await.status, 404);

    // Bodies that are not taken.
    for (body, status) in [
        (json!({ "name": "", "scopes": "read" }), 422),
        (json!({ "name": "n".repeat(101), "scopes": "read" }), 422),
        (json!({ "name": "n", "scopes": "write,read" }), 422),
        (json!({ "name": "n", "scopes": "" }), 422),
        (json!({ "name": "n", "scopes": "read", "expires_in_days": 0 }), 422),
        (json!({ "name": "n", "scopes": "read", "expires_in_days": 366 }), 422),
        (json!({ "name": "n", "scopes": "read", "expires_in_days": -1 }), 422),
        (json!({ "name": "n", "scopes": "read", "owner": "user-2" }), 422),
        (json!({ "name": "n" }), 422),
        (json!({ "name": "n\0", "scopes": "read" }), 422),
        (json!({ "name": "n".repeat(20_000), "scopes": "read" }), 413),
    ] {
        assert_eq!(api.post(admin, body.clone()).await.status, status, "{body}");
    }
    let word = format!("/api/entries/{}", "w".repeat(101));
    for (path, method, key) in
        [(KEYS, Method::POST, admin), ("/api/entries/lexikon", Method::PUT, &writer)]
    {
        let request = || api.request(method.clone(), path, key);
        let json = ("content-type", "application/json");
        let broken = request().header(json.0, json.1).body("{\"name\": \"lxk_");
        assert_eq!(api.send(broken).await.status, 400);
        assert_eq!(api.send(request().body("{}")).await.status, 415);
        assert_eq!(api.send(request().header(json.0, json.1).body("{}")).await.status, 422);
        let long = json!({ "definition": "d".repeat(20_000) });
        assert_eq!(api.send(request().json(&long)).await.status, 413);
    }
    let long = api.request(Method::PUT, &word, &writer).json(&definition);
    assert_eq!(api.send(long).await.status, 422);
    assert_eq!(api.get(&format!("{KEYS}?after=1&after=2"), admin).await.status, 400);

    // Keys that are not taken, at every route.
    let requests = || {
        [
            (Method::GET, KEYS.to_owned()),
            (Method::POST, KEYS.to_owned()),
            (Method::DELETE, format!("{KEYS}/{writer_id}")),
            (Method::GET, "/api/entries/lexikon".to_owned()),
            (Method::PUT, "/api/entries/lexikon".to_owned()),
        ]
    };
    let mut refusals = BTreeSet::new();
    for (number, (method, path)) in requests().into_iter().enumerate() {
        // Each route from an address of its own, with an allowance of its own.
        let address = format!("192.0.2.{}", 10 + number);
        let request = |key: &str| {
            let request = api.request(method.clone(), &path, key);
            request.header("x-forwarded-for", &address)
        };
        let none = api.send(request("")).await;
        assert_eq!(none.header("www-authenticate"), "Bearer realm=\"lexikon\"");
        for key in [FORGED, UNKNOWN, &reader, "lxk_"] {
            let refused = api.send(request(key)).await;
            assert_eq!(refused.header("cache-control"), "no-store");
            refusals.insert(refused.body.to_string());
        }
        let twice = request(admin).bearer_auth(&writer);
        assert_eq!(api.send(twice).await.status, 400);
        let bearer = request("").bearer_auth(FORGED);
        assert_eq!(api.send(bearer).await.status, 401);
    }
    assert_eq!(refusals.len(), 1, "{refusals:?}");

    // Too many of them from one address, behind a proxy that is trusted.
    let from = |address| move |request: RequestBuilder| request.header("x-forwarded-for", address);
    let bad = from("192.0.2.1");
    while api.send(bad(api.request(Method::GET, KEYS, FORGED))).await.status != 429 {}
    for (method, path) in requests() {
        let denied = api.send(bad(api.request(method.clone(), &path, admin))).await;
        assert_eq!(denied.status, 429);
        assert!(denied.header("retry-after").parse::<u64>().unwrap() > 0);
        assert!(denied.header("ratelimit").starts_with("\"refusals\";r=0;t="));
    }
    let good = api.send(from("192.0.2.2")(api.request(Method::GET, KEYS, admin))).await;
    assert_eq!(good.status, 200);

    // A repeated POST is the business of another test, but part of the description.
    let repeated = |name: &str| {
        let body = json!({ "name": name, "scopes": "read" });
        api.request(Method::POST, KEYS, admin).header("idempotency-key", "one").json(&body)
    };
    let first = api.send(repeated("name")).await;
    api.get("/api/entries/lexikon", first.body["data"]["key"].as_str().unwrap()).await;
    assert_eq!(api.send(repeated("name")).await.status, 409);

    // What the description has, and needs a database that is down, or a client that is slow.
    let described = described(&api.description);
    let seen = api.seen.lock().unwrap().clone();
    let elsewhere = |answer: &str| answer.ends_with(" 503") || answer.ends_with(" 408");
    let missing: BTreeSet<_> =
        described.difference(&seen).filter(|answer| !elsewhere(answer)).collect();
    assert!(missing.is_empty(), "never seen: {missing:?}");
    api.stop().await;
}

#[tokio::test]
async fn without_its_database_the_service_is_alive_not_ready_and_refuses_nobody() {
    let mut server = postgres::Server::start();
    let api = Api::start(&[
        ("DATABASE_URL", &server.url()),
        ("REDIS_URL", &redis_server::shared_url()),
        ("FIRST_KEY_FOR", "user-1"),
    ])
    .await;
    let admin = &*api.service.first_key();
    let (_, id) = api.make(admin, "read").await;
    let (fresh, _) = api.make(admin, "read").await;
    let status = api.get("/api/status", "").await.body;
    assert_eq!(status["database"]["kind"], "postgres");
    assert_eq!(status["database"]["is_up"], true);
    assert_eq!(status["migration"]["hmac_sha256"], 3);

    server.kill();
    assert_eq!(api.get("/api/health", "").await.status, 200);
    assert_eq!(api.get("/api/ready", "").await.status, 503);
    let status = api.get("/api/status", "").await.body;
    assert_eq!((&status["database"]["is_up"], &status["migration"]), (&json!(false), &Value::Null));
    // A key that no cache knows: not refused.
    for (method, path) in [
        (Method::GET, KEYS.to_owned()),
        (Method::POST, KEYS.to_owned()),
        (Method::DELETE, format!("{KEYS}/{id}")),
        (Method::GET, "/api/entries/lexikon".to_owned()),
        (Method::PUT, "/api/entries/lexikon".to_owned()),
    ] {
        let answer = api.send(api.request(method, &path, &fresh)).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    }
    let seen = api.seen.lock().unwrap().clone();
    for answer in described(&api.description).iter().filter(|answer| answer.ends_with(" 503")) {
        assert!(seen.contains(answer), "never seen: {answer}");
    }

    server.start_again();
    let mut is_ready = false;
    for _ in 0..100 {
        is_ready = api.get("/api/ready", "").await.status == 200;
        if is_ready {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(is_ready, "it does not come back");
    assert_eq!(api.get(KEYS, admin).await.status, 200);
    assert_eq!(api.get(KEYS, &fresh).await.status, 403);
    api.stop().await;
}
