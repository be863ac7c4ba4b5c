//! The whole migration, on one table with instances of three generations at work side by side: v0.9,
//! which knows SHA-256 alone, v1.0, which knows HMAC-SHA-256 alone, and this crate. The operator works
//! with `lxk`, and after every step each key gets the answer that docs/migration.md promises.

mod old_service;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lexikon_auth::store::{
    CacheOptions, CachedStore, DynKeyStore, KeyStore, PolicySource, PostgresStore, SqliteStore,
};
use lexikon_auth::tasks::{Follower, PolicyFollower};
use lexikon_auth::{KeyManager, NewKey, Verifier};
use lexikon_auth_tests::{SECRETS, data, one_secret, postgres};
use serde_json::Value;
use sqlx::{PgPool, SqlitePool};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::old_service::{Database, Old, key};

/// Instances of three generations on one table, and traffic.
struct Scene {
    url: String,
    database: Database,
    /// An instance with a cache, and one without.
    cached: Arc<Verifier<CachedStore<DynKeyStore>>>,
    bare: Arc<Verifier<DynKeyStore>>,
    store: DynKeyStore,
    /// All keys by name.
    keys: Vec<(&'static str, String)>,
    traffic: JoinHandle<()>,
    _kept: (Vec<PolicyFollower>, Option<Follower>, Option<TempDir>),
}

impl Scene {
    async fn on_sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        std::fs::write(&path, data::SQLITE).unwrap();
        let url = format!("sqlite://{}", path.display());
        let database = Database::Sqlite(SqlitePool::connect(&url).await.unwrap());
        prepare(&database, &url).await;
        let store = SqliteStore::open(&path).await.unwrap();
        let cached = CachedStore::new(DynKeyStore::new(store.clone()), CacheOptions::default());
        Self::with(url, database, store, cached, None, Some(folder)).await
    }

    async fn on_postgres() -> Self {
        let options = postgres::database().await;
        let name = options.get_database().unwrap();
        let url = format!("postgres://postgres@127.0.0.1:{}/{name}", options.get_port());
        // In a session of its own: the dump empties the search path.
        let load = Database::Postgres(PgPool::connect(&url).await.unwrap());
        load.run(data::POSTGRES.to_owned()).await;
        let database = Database::Postgres(PgPool::connect(&url).await.unwrap());
        prepare(&database, &url).await;
        let store = PostgresStore::connect(options).await.unwrap();
        let cached = CachedStore::new(DynKeyStore::new(store.clone()), CacheOptions::default());
        let follower = Follower::spawn(cached.clone(), store.changes());
        follower.connected().await;
        Self::with(url, database, store, cached, Some(follower), None).await
    }

    async fn with<S>(
        url: String,
        database: Database,
        store: S,
        cached: CachedStore<DynKeyStore>,
        follower: Option<Follower>,
        folder: Option<TempDir>,
    ) -> Self
    where
        S: KeyStore + PolicySource + Clone,
    {
        let shared = DynKeyStore::new(store.clone());
        let bare = Arc::new(Verifier::new(shared.clone(), one_secret()));
        let cached = Arc::new(Verifier::new(cached, one_secret()));
        let following = vec![
            bare.follow_policy(store.clone()).await.unwrap(),
            cached.follow_policy(store).await.unwrap(),
        ];
        let names = ["old-1", "old-2", "old-3", "modern"];
        let keys: Vec<_> = names.map(|name| (name, key(name))).into();
        let traffic = tokio::spawn(traffic(database.clone(), bare.clone(), keys.clone()));
        let _kept = (following, follower, folder);
        Self { url, database, cached, bare, store: shared, keys, traffic, _kept }
    }

    /// Runs a command of the operator.
    fn lxk(&self, arguments: &[&str]) -> Answer {
        lxk(&self.url, arguments)
    }

    /// Waits until each key gets these answers from v0.9, v1.0 and this crate. Notifications take their
    /// time, and a cache without any is out of date for 5 seconds at most.
    #[track_caller]
    fn expect<'a>(
        &'a self,
        step: &'a str,
        expected: &'a [(&'a str, [bool; 3])],
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let started = Instant::now();
            loop {
                let mut answers = Vec::new();
                for (name, key) in &self.keys {
                    let bare = self.bare.verify(key).await.is_ok();
                    let cached = self.cached.verify(key).await.is_ok();
                    let old = [
                        Old::V0_9.accepts(&self.database, key).await,
                        Old::V1_0.accepts(&self.database, key).await,
                    ];
                    answers.push((*name, [old[0], old[1], bare], cached));
                }
                let is_met =
                    answers.iter().zip(expected).all(|((name, answers, cached), expected)| {
                        (*name, *answers) == *expected && *cached == answers[2]
                    });
                if is_met && answers.len() == expected.len() {
                    return;
                }
                assert!(
                    started.elapsed() < Duration::from_secs(20),
                    "{caller}: {step}: expected {expected:?}, got {answers:?}"
                );
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn flush(&self) {
        self.bare.flush().await.unwrap();
        self.cached.flush().await.unwrap();
    }

    /// The names of keys that this crate accepts and an older version refuses, as that version decides.
    async fn stopped_by(&self, old: Old) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (name, key) in &self.keys {
            if self.bare.verify(key).await.is_ok() && !old.accepts(&self.database, key).await {
                names.insert((*name).to_owned());
            }
        }
        names
    }

    /// The ids that a rollback check lists under an effect.
    fn listed(&self, version: &str, effect: &str) -> BTreeSet<String> {
        let before = "2026-11-01";
        let check = ["--json", "migrate", "rollback-check", "--to", version, "--before", before];
        let answer = self.lxk(&check);
        let lines = answer.text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let listed = lines.filter(|line| line["effect"] == effect);
        listed.map(|line| line["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// Empties the service's table, issues keys as its versions did, and has an operator prepare it.
async fn prepare(database: &Database, url: &str) {
    database.run("DELETE FROM api_keys".to_owned()).await;
    Old::V0_9.issue(database, "old-1", "user-1").await;
    Old::V0_9.issue(database, "old-2", "user-1").await;
    Old::V0_9.issue(database, "old-3", "user-2").await;
    Old::V1_0.issue(database, "modern", "user-2").await;
    lxk(url, &["preflight"]).ends_with_code(0);
    lxk(url, &["schema", "apply"]).ends_with_code(0);
    lxk(url, &["secret", "rotate", "add"]).ends_with_code(0);
    lxk(url, &["migrate", "policy", "accept"]).ends_with_code(0);
}

/// Requests to all generations, without a break. What they answer is looked at elsewhere.
async fn traffic(
    database: Database,
    verifier: Arc<Verifier<DynKeyStore>>,
    keys: Vec<(&'static str, String)>,
) {
    loop {
        for (_, key) in &keys {
            Old::V0_9.accepts(&database, key).await;
            Old::V1_0.accepts(&database, key).await;
            let _ = verifier.verify(key).await;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// What a command comes to.
struct Answer {
    command: String,
    code: Option<i32>,
    text: String,
}

impl Answer {
    #[track_caller]
    fn ends_with_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}: {}", self.command, self.text);
        self
    }

    #[track_caller]
    fn says(self, text: &str) -> Self {
        assert!(self.text.contains(text), "{} does not say {text:?}: {}", self.command, self.text);
        self
    }
}

fn lxk(url: &str, arguments: &[&str]) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lxk"));
    command.args(arguments).env_clear().env("DATABASE_URL", url).env("API_KEY_SECRET", SECRETS[0]);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    Answer { command: arguments.join(" "), code: output.status.code(), text }
}

const BOTH_OLD: [bool; 3] = [true, false, true];
const MODERN: [bool; 3] = [false, true, true];
const NOBODY: [bool; 3] = [false; 3];

async fn migrate(mut scene: Scene) {
    let before = ["--before", "2026-11-01"];
    let with_date = |arguments: &[&'static str]| [arguments, &before].concat();

    let first = [("old-1", BOTH_OLD), ("old-2", BOTH_OLD), ("old-3", BOTH_OLD), ("modern", MODERN)];
    scene.expect("all generations at work", &first).await;

    // Canary: a new instance issues a key, which v0.9 cannot verify. v1.0 can.
    let manager = KeyManager::new(scene.store.clone(), &one_secret());
    let issued =
        manager.issue(NewKey::new("user-1", "new").scopes("read").id("new")).await.unwrap();
    scene.keys.push(("new", issued.key.expose_secret().to_owned()));
    let canary = [&first[..], &[("new", MODERN)]].concat();
    scene.expect("canary", &canary).await;
    scene.lxk(&with_date(&["migrate", "rollback-check", "--to", "v0.9"])).ends_with_code(1);
    assert!(scene.listed("v0.9", "stops").contains("new"));

    // A day of use: formats become known, and the check foretells exactly what older code does.
    scene.flush().await;
    scene.lxk(&["migrate", "status"]).ends_with_code(0).says("would break 3 keys of 2 owners");
    for (version, old) in [("v0.9", Old::V0_9), ("v1.0", Old::V1_0)] {
        assert_eq!(scene.listed(version, "stops"), scene.stopped_by(old).await, "{version}");
        assert!(scene.listed(version, "may_stop").is_empty(), "{version}");
    }

    scene.lxk(&["migrate", "policy", "shadow"]).ends_with_code(0);
    scene.expect("shadow refuses nobody", &canary).await;

    // Upgrade on use: one key is used, and moves where v0.9 does not find it.
    scene.flush().await;
    scene.set_policy("upgrade").await;
    let _ = scene.cached.verify(&key("old-1")).await.unwrap();
    scene.cached.flush().await.unwrap();
    scene.set_policy("accept").await;
    let [_, two, three, modern] = first;
    let upgraded = [("old-1", MODERN), two, three, modern, ("new", MODERN)];
    scene.expect("one key is upgraded", &upgraded).await;

    // Deprecation: instances of every generation obey it, and it can be taken back.
    let now_closed =
        [("old-1", MODERN), ("old-2", NOBODY), ("old-3", NOBODY), modern, ("new", MODERN)];
    let deprecate = |span| with_date(&["migrate", "deprecate", "--revoke-in", span]);
    scene.lxk(&[&deprecate("7d")[..], &["--dry-run"]].concat()).says("2 legacy keys would be set");
    scene.lxk(&deprecate("7d")).ends_with_code(0).says("2 legacy keys set");
    scene.lxk(&deprecate("7d")).ends_with_code(0);
    scene.expect("seven days of grace", &upgraded).await;
    scene.lxk(&deprecate("1s")).ends_with_code(0).says("2 legacy keys set");
    scene.expect("the date has come", &now_closed).await;
    scene.lxk(&["migrate", "deprecate", "--undo"]).ends_with_code(0).says("2 keys restored");
    scene.expect("taken back", &upgraded).await;

    // Refused by policy alone: old instances go on, and a rollback would open again.
    scene.set_policy("refuse").await;
    let refused =
        [("old-1", MODERN), ("old-2", [true, false, false]), ("old-3", [true, false, false])];
    let refused = [&refused[..], &[modern, ("new", MODERN)]].concat();
    scene.expect("refused", &refused).await;
    let reopened = BTreeSet::from(["old-2".to_owned(), "old-3".to_owned()]);
    assert_eq!(scene.listed("v0.9", "reopens"), reopened);
    scene.set_policy("accept").await;
    scene.expect("accepted again", &upgraded).await;

    // Revocation: refused while keys are in use, unless forced; then for good, everywhere.
    let revoke = with_date(&["migrate", "revoke"]);
    scene.lxk(&revoke).ends_with_code(1).says("old-2").says("say --force");
    scene.expect("nothing was revoked", &upgraded).await;
    scene
        .lxk(&[&revoke[..], &["--force"]].concat())
        .ends_with_code(0)
        .says("2 legacy keys revoked");
    scene.expect("revoked", &now_closed).await;
    scene.lxk(&revoke).ends_with_code(0).says("0 legacy keys revoked");

    // Rollback: to v1.0 nothing stops, to v0.9 exactly what is foretold.
    scene.lxk(&with_date(&["migrate", "rollback-check", "--to", "v1.0"])).ends_with_code(0);
    assert!(scene.stopped_by(Old::V1_0).await.is_empty());
    assert_eq!(scene.listed("v0.9", "stops"), scene.stopped_by(Old::V0_9).await);
    scene.traffic.abort();
}

impl Scene {
    /// Sets the policy, and waits until both instances have it.
    async fn set_policy(&self, policy: &str) {
        self.lxk(&["migrate", "policy", policy]).ends_with_code(0);
        let started = Instant::now();
        let has_it = |is: &str| is == policy;
        while !has_it(self.bare.legacy_policy().as_str())
            || !has_it(self.cached.legacy_policy().as_str())
        {
            assert!(started.elapsed() < Duration::from_secs(10), "instances do not follow");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_migration_on_sqlite() {
    migrate(Scene::on_sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_migration_on_postgres() {
    migrate(Scene::on_postgres().await).await;
}
