//! The service as a program: its start, its configuration, its time limits, its end.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lexikon_auth::KeyId;
use lexikon_auth::store::{KeyStore, SqliteStore};
use lexikon_auth_tests::{SECRETS, assert_reveals_nothing, postgres, redis_server};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::client::{Api, KEYS, described};
use crate::service::Service;

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
