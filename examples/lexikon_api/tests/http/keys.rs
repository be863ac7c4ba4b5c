//! Keys made, listed and revoked over HTTP: once, by their owner, also at two instances at once.

use std::collections::BTreeSet;
use std::time::Duration;

use lexikon_auth::KeyId;
use lexikon_auth::store::{KeyStore, SqliteStore};
use lexikon_auth_tests::postgres;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use crate::client::{Api, KEYS};

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
