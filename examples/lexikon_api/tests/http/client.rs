//! A client of the reference service, which holds every answer against the service's description.

use std::collections::BTreeSet;
use std::sync::Mutex;

use lexikon_auth_tests::{
    FORGED, SECRETS, UNTAGGED, assert_reveals_nothing, hmac_hash, legacy_hash,
};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::service::Service;

/// A key of the right form that nobody has issued.
pub const UNKNOWN: &str = UNTAGGED;
pub const KEYS: &str = "/api/auth/api-keys";

/// A client that holds every answer against the service's description, and keeps what it has seen.
pub struct Api {
    pub service: Service,
    pub client: Client,
    pub description: Value,
    /// Method, path and status of each answer.
    pub seen: Mutex<BTreeSet<String>>,
    /// Every header and body of an answer, but for those of new keys.
    answers: Mutex<String>,
    /// What must not be printed anywhere.
    secrets: Mutex<BTreeSet<String>>,
}

pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Api {
    pub async fn start(variables: &[(&str, &str)]) -> Self {
        let variables = [&[("API_KEY_SECRET", SECRETS[0])], variables].concat();
        Self::over(Service::start(&variables)).await
    }

    /// On the database in this folder, with a first key for this owner.
    pub async fn on(folder: &TempDir, owner: &str) -> Self {
        let database = format!("sqlite://{}/keys.db", folder.path().display());
        Self::start(&[("DATABASE_URL", &database), ("FIRST_KEY_FOR", owner)]).await
    }

    pub async fn over(service: Service) -> Self {
        // Without idle connections: the service closes those that it has waited for long enough, and a request
        // that is just then sent on one fails.
        let client = Client::builder().pool_max_idle_per_host(0).build().unwrap();
        let url = format!("{}/api/openapi.json", service.url);
        let description = client.get(url).send().await.unwrap().json().await.unwrap();
        let mut secrets: BTreeSet<_> = [SECRETS[0], FORGED, UNKNOWN].map(str::to_owned).into();
        secrets.extend(service.first_key_file().map(|_| service.first_key()));
        let (seen, answers) = (Mutex::default(), Mutex::default());
        Self { service, client, description, seen, answers, secrets: Mutex::new(secrets) }
    }

    pub fn request(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.service.url));
        if key.is_empty() { request } else { request.header("x-api-key", key) }
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let request = request.build().unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let response = self.client.execute(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        self.answers.lock().unwrap().push_str(&format!("{headers:?}\n"));
        let is_json = headers["content-type"].to_str().unwrap().starts_with("application/json");
        let body = if is_json { serde_json::from_str(&text).unwrap() } else { json!(text) };
        match body["data"]["key"].as_str() {
            Some(key) => _ = self.secrets.lock().unwrap().insert(key.to_owned()),
            None => self.answers.lock().unwrap().push_str(&text),
        }
        self.check(&method, &path, status, &body);
        Answer { status, headers, body }
    }

    /// Whether the description has this answer.
    fn check(&self, method: &Method, path: &str, status: u16, body: &Value) {
        let route = match path.strip_prefix("/api/entries/") {
            Some(_) => "/api/entries/{word}",
            None if path.starts_with(&format!("{KEYS}/")) => "/api/auth/api-keys/{id}",
            None => path,
        };
        let method = method.as_str().to_lowercase();
        let answer = format!("{method} {route} {status}");
        let mut response =
            &self.description["paths"][route][&method]["responses"][status.to_string()];
        assert!(response.is_object(), "the description has no {answer}: {body}");
        if let Some(name) = response["$ref"].as_str() {
            let pointer = name.strip_prefix('#').unwrap();
            response = self.description.pointer(pointer).expect("a response of this name");
        }
        let (_, content) = response["content"].as_object().unwrap().iter().next().unwrap();
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "components": self.description["components"],
            "allOf": [content["schema"]],
        });
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        if let Err(error) = validator.validate(body) {
            panic!("{answer} is not as described: {error}: {body}");
        }
        self.seen.lock().unwrap().insert(answer);
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        self.send(self.request(Method::GET, path, key)).await
    }

    pub async fn post(&self, key: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, KEYS, key).json(&body)).await
    }

    pub async fn delete(&self, id: &str, key: &str) -> Answer {
        self.send(self.request(Method::DELETE, &format!("{KEYS}/{id}"), key)).await
    }

    pub async fn write(&self, word: &str, key: &str, body: Value) -> Answer {
        let path = format!("/api/entries/{word}");
        self.send(self.request(Method::PUT, &path, key).json(&body)).await
    }

    /// Makes a key, and returns it with its id.
    pub async fn make(&self, admin: &str, scopes: &str) -> (String, String) {
        let answer = self.post(admin, json!({ "name": scopes, "scopes": scopes })).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        let text = |name: &str| answer.body["data"][name].as_str().unwrap().to_owned();
        (text("key"), text("id"))
    }

    /// Stops the service, and asserts that no secret stands in what it has answered, counted and logged.
    pub async fn stop(self) {
        for path in ["/api/metrics", "/api/status"] {
            self.get(path, "").await;
        }
        let Self { service, answers, secrets, .. } = self;
        service.terminate();
        let (status, output) = service.wait();
        assert!(status.success(), "{output}");
        assert!(output.contains("all last uses are written"), "{output}");
        let all = format!("{output}\n{}", answers.into_inner().unwrap());
        let secrets = secrets.into_inner().unwrap();
        assert!(secrets.len() > 3);
        for secret in secrets {
            assert_reveals_nothing(&all, &secret);
            for hash in [hmac_hash(SECRETS[0], &secret), legacy_hash(&secret)] {
                assert_reveals_nothing(&all, &hash.to_hex());
            }
        }
    }
}

/// Every answer of a description: method, path and status.
pub fn described(description: &Value) -> BTreeSet<String> {
    let mut answers = BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "delete"] {
            for status in
                item[method]["responses"].as_object().into_iter().flat_map(|all| all.keys())
            {
                answers.insert(format!("{method} {path} {status}"));
            }
        }
    }
    answers
}
