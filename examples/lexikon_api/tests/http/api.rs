//! The reference service over real HTTP: every answer of its description, and nothing that gives a
//! secret away.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lexikon_auth::KeyId;
use lexikon_auth::store::{KeyStore, SqliteStore};
use lexikon_auth_tests::{FORGED, SECRETS, assert_reveals_nothing, postgres, redis_server};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::{Api, KEYS, UNKNOWN, described};
use crate::service::Service;

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

#[tokio::test]
async fn a_repeated_post_makes_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}/keys.db", folder.path().display());
    let variables = [("DATABASE_URL", &*database), ("FIRST_KEY_FOR", "user-1")];
    let api = Api::start(&variables).await;
    let admin = &*api.service.first_key();
    let post = async |name: &str, days: u32, idempotency_key: &str| {
        let body = json!({ "name": name, "scopes": "read", "expires_in_days": days });
        let request = api.request(Method::POST, KEYS, admin).json(&body);
        let answer = api.send(request.header("idempotency-key", idempotency_key)).await;
        let text = |name: &str| answer.body["data"][name].as_str().unwrap_or_default().to_owned();
        (answer.status, text("id"), text("key"), answer.body["error"]["code"].clone())
    };
    let is_good = async |key: &str| api.get("/api/entries/none", key).await.status == 404;

    let (status, id, lost, _) = post("deploy", 30, "a").await;
    assert_eq!(status, 201);
    let (status, revoked, ..) = post("deploy", 30, "b").await;
    assert!(status == 201 && revoked != id);
    let (_, _, used, _) = post("deploy", 30, "c").await;
    for (name, days) in [("other", 30), ("deploy", 31)] {
        let (status, _, _, code) = post(name, days, "a").await;
        assert_eq!((status, code), (422, json!("idempotency_mismatch")));
    }
    assert_eq!(post("deploy", 30, "").await.0, 400);
    assert_eq!(post("deploy", 30, &"x".repeat(256)).await.0, 400);
    assert!(is_good(&used).await);
    assert_eq!(api.delete(&revoked, admin).await.status, 200);

    // What was shown just now may not be lost; what is in use or revoked is not made anew at any time.
    let under_way = json!("idempotency_under_way");
    let used_up = json!("idempotency_used");
    for (idempotency_key, expected) in [("a", &under_way), ("b", &used_up), ("c", &used_up)] {
        let (status, _, _, code) = post("deploy", 30, idempotency_key).await;
        assert_eq!((status, &code), (409, expected));
    }
    // All at once: one is answered with the key.
    let all = futures_util::future::join_all((0..20).map(|_| post("deploy", 30, "d"))).await;
    let (made, others): (Vec<_>, Vec<_>) = all.iter().partition(|(status, ..)| *status == 201);
    assert_eq!(made.len(), 1, "{all:?}");
    let is_told = |(status, _, _, code): &(u16, _, _, Value)| *status == 409 && *code == under_way;
    assert!(others.into_iter().all(is_told), "{all:?}");
    assert!(is_good(&made[0].2).await);

    // Later, the key that was lost is made anew, and one in use is not taken from its owner.
    let options = SqliteConnectOptions::new().filename(folder.path().join("keys.db"));
    let mut connection = options.connect().await.unwrap();
    let later = sqlx::query("UPDATE lexikon_api_claims SET until = 0");
    later.execute(&mut connection).await.unwrap();
    let (status, same_id, key, _) = post("deploy", 30, "a").await;
    assert_eq!((status, &same_id), (201, &id));
    assert_ne!(key, lost);
    assert!(!is_good(&lost).await, "the lost one is refused");
    assert!(is_good(&key).await);
    for idempotency_key in ["b", "c"] {
        let (status, _, _, code) = post("deploy", 30, idempotency_key).await;
        assert_eq!((status, &code), (409, &used_up));
    }
    assert!(is_good(&used).await);
    // Two of one name are two keys without the header.
    assert_ne!(api.make(admin, "read").await.1, api.make(admin, "read").await.1);
    api.stop().await;
}

#[tokio::test]
async fn a_key_that_expires_makes_none_that_lives_longer() {
    let folder = tempfile::tempdir().unwrap();
    let api = Api::on(&folder, "user-1").await;
    let first = api.service.first_key();
    let wanted = |days: Option<u32>| {
        let mut body = json!({ "name": "n", "scopes": "admin" });
        if let Some(days) = days {
            body["expires_in_days"] = days.into();
        }
        body
    };
    let made = api.post(&first, wanted(Some(7))).await;
    let expiring = made.body["data"]["key"].as_str().unwrap().to_owned();
    for (days, status) in [(None, 422), (Some(8), 422), (Some(6), 201)] {
        assert_eq!(api.post(&expiring, wanted(days)).await.status, status, "{days:?}");
    }
}

#[tokio::test]
async fn another_owner_s_keys_are_out_of_reach() {
    let folder = tempfile::tempdir().unwrap();
    let one = Api::on(&folder, "user-1").await;
    let (_, id) = one.make(&one.service.first_key(), "read").await;
    let page = format!("{KEYS}?after={id}");
    one.stop().await;

    let two = Api::on(&folder, "user-2").await;
    let admin = &*two.service.first_key();
    assert_eq!(two.delete(&id, admin).await.status, 404);
    for path in [KEYS, &page] {
        let listed = two.get(path, admin).await.body;
        let ids = listed["data"]["keys"].as_array().unwrap().iter().map(|key| &key["id"]);
        assert!(!ids.clone().any(|listed| *listed == *id), "{listed}");
    }
    // The same Idempotency-Key of two owners is two.
    let store = SqliteStore::open(folder.path().join("keys.db")).await.unwrap();
    assert!(!store.find_by_id(&KeyId::from(id)).await.unwrap().unwrap().is_revoked());
    two.make(admin, "read").await;
    two.make(admin, "write").await;
    two.stop().await;
    // Started again, it makes no other first key.
    let again = Api::on(&folder, "user-2").await.service;
    again.terminate();
    assert!(!again.wait().1.contains("A first key"));
}

#[test]
fn the_first_key_is_in_a_file_for_its_owner_alone_and_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let database = format!("sqlite://{}/keys-{round}.db", folder.path().display());
        let start = || {
            let variables = [
                ("API_KEY_SECRET", SECRETS[0]),
                ("DATABASE_URL", &*database),
                ("FIRST_KEY_FOR", "user-1"),
            ];
            Service::start(&variables)
        };
        let both = std::thread::scope(|scope| {
            let both = [scope.spawn(start), scope.spawn(start)];
            both.map(|instance| instance.join().unwrap())
        });
        let files: Vec<_> = both.iter().filter_map(Service::first_key_file).collect();
        assert_eq!(files.len(), 1, "{both:?}");
        let mode = std::fs::metadata(&files[0]).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = both.iter().find(|instance| instance.first_key_file().is_some()).unwrap();
        let key = key.first_key();
        for instance in both {
            instance.terminate();
            let (status, output) = instance.wait();
            assert!(status.success(), "{output}");
            assert_reveals_nothing(&output, &key);
        }
    }
    // A file that is there already is not written over, and no key is made that would be lost.
    let database = format!("sqlite://{}/other.db", folder.path().display());
    let file = folder.path().join("file");
    std::fs::write(&file, "something else").unwrap();
    let missing = folder.path().join("nowhere/file");
    for path in [&file, &missing] {
        let variables = [
            ("API_KEY_SECRET", SECRETS[0]),
            ("DATABASE_URL", &*database),
            ("FIRST_KEY_FOR", "user-1"),
            ("FIRST_KEY_FILE", path.to_str().unwrap()),
        ];
        let (status, output) = Service::fails(&variables);
        assert!(!status.success() && output.contains("FIRST_KEY_FILE"), "{output}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "something else");
    let service = Service::start(&[
        ("API_KEY_SECRET", SECRETS[0]),
        ("DATABASE_URL", &database),
        ("FIRST_KEY_FOR", "user-1"),
    ]);
    assert!(service.first_key_file().is_some());
}

#[tokio::test]
async fn of_requests_at_once_at_two_instances_one_shows_the_key() {
    let server = postgres::Server::start();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite://{}/keys.db", folder.path().display());
    for database in [server.url(), file] {
        let first = [("DATABASE_URL", &*database), ("FIRST_KEY_FOR", "user-1")];
        let (one, two) = (Api::start(&first).await, Api::start(&first[..1]).await);
        let admin = &*one.service.first_key();
        for round in 0..20 {
            let idempotency_key = round.to_string();
            let post = async |api: &Api| {
                let body = json!({ "name": "deploy", "scopes": "read" });
                let request = api.request(Method::POST, KEYS, admin).json(&body);
                api.send(request.header("idempotency-key", &idempotency_key)).await
            };
            let answers = tokio::join!(post(&one), post(&two), post(&one), post(&two));
            let answers: [_; 4] = answers.into();
            let (made, others): (Vec<_>, Vec<_>) =
                answers.iter().partition(|answer| answer.status == 201);
            assert_eq!(made.len(), 1, "one of them makes the key");
            for other in others {
                assert_eq!((other.status, other.header("retry-after")), (409, "20"));
            }
            let key = made[0].body["data"]["key"].as_str().unwrap();
            for instance in [&one, &two] {
                assert_eq!(instance.get("/api/entries/none", key).await.status, 404, "accepted");
            }
        }
        one.stop().await;
        two.stop().await;
    }
}

#[tokio::test]
async fn a_key_that_another_instance_accepts_is_not_ended_by_a_repeated_request() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}/keys.db", folder.path().display());
    let first = [("DATABASE_URL", &*database), ("FIRST_KEY_FOR", "user-1")];
    let one = Api::start(&first).await;
    let two = Api::start(&first[..1]).await;
    let admin = &*one.service.first_key();
    let post = async || {
        let body = json!({ "name": "deploy", "scopes": "read" });
        let request = one.request(Method::POST, KEYS, admin).json(&body);
        one.send(request.header("idempotency-key", "a")).await
    };
    let made = post().await;
    assert_eq!(made.status, 201);
    // The other instance writes uses every 5 seconds from its start on: it has not written this one yet.
    tokio::time::sleep(Duration::from_millis(10_300)).await;
    let key = made.body["data"]["key"].as_str().unwrap();
    assert_eq!(two.get("/api/entries/none", key).await.status, 404, "accepted");
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(post().await.status, 409);
    assert_eq!(two.get("/api/entries/none", key).await.status, 404, "accepted still");
}

#[tokio::test]
async fn a_claim_counts_from_the_answer_and_goes_when_it_has_ended() {
    let server = postgres::Server::start();
    let api = Api::start(&[("DATABASE_URL", &server.url()), ("FIRST_KEY_FOR", "user-1")]).await;
    let admin = &*api.service.first_key();
    let pool = sqlx::PgPool::connect(&server.url()).await.unwrap();
    let ended = "INSERT INTO lexikon_api_claims VALUES ('ended', 1)";
    sqlx::query(ended).execute(&pool).await.unwrap();
    let claims = async || {
        let claims = sqlx::query_as::<_, (String, i64)>("SELECT * FROM lexikon_api_claims");
        claims.fetch_all(&pool).await.unwrap()
    };

    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
                'BEGIN PERFORM pg_sleep(1.5); RETURN NEW; END'; \
                CREATE TRIGGER slow BEFORE INSERT ON api_keys FOR EACH ROW EXECUTE FUNCTION slow()";
    sqlx::raw_sql(slow).execute(&pool).await.unwrap();
    let request = api.request(Method::POST, KEYS, admin).header("idempotency-key", "a");
    let post = api.send(request.json(&json!({ "name": "deploy", "scopes": "read" })));
    let look = async {
        loop {
            if let Some(claim) = claims().await.into_iter().find(|(id, _)| id != "ended") {
                break claim;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (made, (id, until)) = tokio::join!(post, look);
    assert_eq!(made.status, 201, "{}", made.body);
    let left = claims().await;
    assert_eq!(left.len(), 1, "those that have ended are gone: {left:?}");
    assert!(left[0].0 == id && left[0].1 > until, "{left:?} was until {until} before the answer");
}

#[tokio::test]
async fn pages_of_keys_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let api = Api::on(&folder, "user-1").await;
    let admin = &*api.service.first_key();
    for _ in 0..150 {
        api.make(admin, "read").await;
    }
    let (mut ids, mut path, mut pages) = (BTreeSet::new(), KEYS.to_owned(), 0);
    loop {
        let page = api.get(&path, admin).await.body;
        let keys = page["data"]["keys"].as_array().unwrap();
        ids.extend(keys.iter().map(|key| key["id"].as_str().unwrap().to_owned()));
        pages += 1;
        let Some(next) = page["data"]["next"].as_str() else { break };
        path = format!("{KEYS}?after={next}");
    }
    assert_eq!((ids.len(), pages), (151, 2));
    api.stop().await;
}

#[tokio::test]
async fn what_is_under_way_is_finished_and_uses_are_written_when_the_service_stops() {
    let folder = tempfile::tempdir().unwrap();
    let api = Api::on(&folder, "user-1").await;
    let (key, id) = api.make(&api.service.first_key(), "read").await;
    api.make(&api.service.first_key(), "read").await;
    // A body that comes in two parts, with the stop between them.
    let (part, rest) = tokio::sync::mpsc::channel::<Result<&str, std::io::Error>>(2);
    let url = format!("{}{KEYS}", api.service.url);
    let body = reqwest::Body::wrap_stream(futures_util::stream::unfold(rest, async |mut rest| {
        Some((rest.recv().await?, rest))
    }));
    let request = api.client.post(url).header("x-api-key", api.service.first_key());
    let request = request.header("content-type", "application/json").body(body);
    let answer = tokio::spawn(request.send());
    part.send(Ok("{\"name\": \"slow\", ")).await.unwrap();
    assert_eq!(api.get("/api/entries/none", &key).await.status, 404);
    tokio::time::sleep(Duration::from_millis(200)).await;
    api.service.terminate();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        reqwest::get(format!("{}/api/health", api.service.url)).await.is_err(),
        "it takes no more"
    );
    part.send(Ok("\"scopes\": \"read\"}")).await.unwrap();
    drop(part);
    assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::CREATED);
    let (status, output) = api.service.wait();
    assert!(status.success(), "{output}");
    let store = SqliteStore::open(folder.path().join("keys.db")).await.unwrap();
    let record = store.find_by_id(&KeyId::from(id)).await.unwrap().unwrap();
    assert!(record.last_used_at.is_some());
}

#[tokio::test]
async fn a_client_that_falls_silent_is_hung_up_on() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().unwrap();
    let api = Api::on(&folder, "user-1").await;
    let address = api.service.url.strip_prefix("http://").unwrap();
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    silent.write_all(b"GET /api/health HTTP/1.1\r\nHost: a\r\nX-").await.unwrap();
    let mut answer = Vec::new();
    let hung_up = tokio::time::timeout(Duration::from_secs(60), silent.read_to_end(&mut answer));
    let _ = hung_up.await.expect("the connection is closed");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_body_that_takes_too_long_is_given_up_on() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().unwrap();
    let api = Api::on(&folder, "user-1").await;
    let admin = &*api.service.first_key();
    // A byte now and then, so that the connection is never idle.
    let slow = async |method: Method, path: &str| {
        let bytes = futures_util::stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Some((Ok::<_, std::io::Error>(" "), ()))
        });
        let request = api.request(method, path, admin).header("content-type", "application/json");
        api.send(request.body(reqwest::Body::wrap_stream(bytes))).await
    };
    let raw = async {
        let address = api.service.url.strip_prefix("http://").unwrap();
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "PUT /api/entries/slow HTTP/1.1\r\nHost: a\r\nX-API-Key: {admin}\r\n\
             Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let end = connection.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(60), end).await.expect("it is closed").unwrap();
        answer
    };
    let (post, put, raw) =
        tokio::join!(slow(Method::POST, KEYS), slow(Method::PUT, "/api/entries/slow"), raw);
    for answer in [post, put] {
        assert_eq!((answer.status, answer.header("connection")), (408, "close"));
    }
    assert!(raw.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{raw}");
    let seen = api.seen.lock().unwrap().clone();
    for answer in described(&api.description).iter().filter(|answer| answer.ends_with(" 408")) {
        assert!(seen.contains(answer), "never seen: {answer}");
    }
    // Other requests are answered.
    assert_eq!(api.get(KEYS, admin).await.status, 200);
}

#[tokio::test]
async fn a_demo_needs_no_configuration_and_leaves_nothing_behind() {
    let api = Api::over(Service::start(&[])).await;
    let admin = &*api.service.first_key();
    let (writer, _) = api.make(admin, "write").await;
    let (reader, _) = api.make(admin, "read").await;
    let definition = json!({ "definition": "a book of words" });
    assert_eq!(api.write("lexikon", &writer, definition.clone()).await.status, 200);
    assert_eq!(api.get("/api/entries/lexikon", &reader).await.body["data"], definition);
    api.stop().await;
}

#[tokio::test]
async fn a_key_revoked_at_one_instance_is_refused_at_the_other() {
    let server = postgres::Server::start();
    let (database, redis) = (server.url(), redis_server::shared_url());
    let variables = [("DATABASE_URL", &*database), ("REDIS_URL", &redis)];
    let first = [&variables[..], &[("FIRST_KEY_FOR", "user-1")]].concat();
    let (one, two) = (Api::start(&first).await, Api::start(&variables).await);
    let admin = &*one.service.first_key();
    let (key, id) = one.make(admin, "read").await;
    for instance in [&one, &two] {
        assert_eq!(instance.get("/api/entries/none", &key).await.status, 404, "accepted");
        assert_eq!(instance.get(KEYS, admin).await.status, 200);
    }
    assert_eq!(one.delete(&id, admin).await.status, 200);
    assert_eq!(one.get("/api/entries/none", &key).await.status, 401);
    let mut status = 0;
    for _ in 0..600 {
        status = two.get("/api/entries/none", &key).await.status;
        if status == 401 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(status, 401, "refused within the time of docs/caching.md's table");
    for instance in [one, two] {
        for scopes in ["read", "write"] {
            instance.make(admin, scopes).await;
        }
        instance.stop().await;
    }
}

#[test]
fn a_wrong_configuration_is_said_to_be() {
    for (variables, message) in [
        (&[("DATABASE_URL", "sqlite:///nowhere/keys.db")][..], "API_KEY_SECRET"),
        (&[("API_KEY_SECRET", "short")], "API_KEY_SECRET"),
        (&[("TRUSTED_PROXIES", "10.0.0.0/8, home")], "TRUSTED_PROXIES: home"),
        (
            &[("API_KEY_SECRET", SECRETS[0]), ("DATABASE_URL", "sqlite:///nowhere/keys.db")],
            "cannot be opened",
        ),
    ] {
        let (status, output) = Service::fails(variables);
        assert!(!status.success() && output.contains(message), "{output}");
        assert!(!output.contains(SECRETS[0]) && !output.contains("panicked"), "{output}");
    }
}
