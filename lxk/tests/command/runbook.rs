//! The transcripts of docs/migration.md and of docs/lxk.md: every `lxk` command is run by a shell, on a
//! table of the lexikon service, and prints what the page says. What happens between the commands is
//! named in comments of the page, and done here. `UPDATE_TRANSCRIPTS=1` writes the pages anew.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use lexikon_auth::store::{PolicySource, SqliteStore};
use lexikon_auth::{KeyManager, KeyUpdate, NewKey, Policy, SecretRing, Verifier};
use lexikon_auth_tests::{SECRETS, data, hmac_hash, legacy_hash, secret};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;

/// Keys of the service: id, owner, name, plaintext, whether v0.9 issued it.
const KEYS: [(&str, &str, &str, &str, bool); 5] = [
    ("0d6f7c1e-2f0a-4a53-9a56-6f6a3c7e1d01", "acme", "deploy", DEPLOY, true),
    ("3a1de7c2-58c1-4d0b-b0e1-92c7f1a4be02", "acme", "backup", BACKUP, true),
    ("5b9cb8c4-5b6d-4b9e-8a3c-0d1f6d2f9a11", "globex", "nightly build", BUILD, true),
    ("8e44f0a5-91b7-4c5a-8d3e-7b20c9d5ef04", "initech", "web", WEB, false),
    ("c7f2a9d6-0b3e-4f61-9c88-1d5e6a7b8c05", "initech", "mobile", MOBILE, false),
];
const DEPLOY: &str = "lxk_AdeployAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const BACKUP: &str = "lxk_BbackupBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";
const BUILD: &str = "lxk_CnightlyCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC";
const WEB: &str = "lxk_DwebDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD";
const MOBILE: &str = "lxk_EmobileEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE";

/// The id of a key that the canary issues.
const CANARY: &str = "e1b2c3d4-5e6f-4a7b-8c9d-0e1f2a3b4c06";

/// A copy of the service's database, and the environment of whoever looks after it.
struct Scene {
    folder: TempDir,
    pool: SqlitePool,
    secret: &'static str,
    previous: Option<&'static str>,
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        std::fs::write(&path, data::SQLITE).unwrap();
        let keys = format!("{DEPLOY}\n{WEB}\n{}\n", WEB.replace("web", "Web"));
        std::fs::write(folder.path().join("keys.txt"), keys).unwrap();
        std::fs::write(folder.path().join("a-key-of-mine.txt"), MOBILE).unwrap();
        let pool = SqliteConnectOptions::new().filename(&path);
        let pool = SqlitePool::connect_with(pool).await.unwrap();
        let scene = Self { folder, pool, secret: SECRETS[0], previous: None };
        scene.run("DELETE FROM api_keys").await;
        scene.run("DELETE FROM users").await;
        for owner in ["acme", "globex", "initech"] {
            scene
                .run(&format!(
                    "INSERT INTO users (id, email, first_name, last_name, language, adoption_level, \
                     is_active) VALUES ('{owner}', 'ops@{owner}.example', '', '', 'en', '', 1)"
                ))
                .await;
        }
        for (id, owner, name, key, is_legacy) in KEYS {
            let hash = if is_legacy { legacy_hash(key) } else { hmac_hash(SECRETS[0], key) };
            let created = if is_legacy { "2026-06-01 09:30:00" } else { "2026-11-10 14:00:00" };
            let (hash, scopes) = (hash.to_hex(), "read,write");
            scene
                .run(&format!(
                    "INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at) \
                     VALUES ('{id}', '{owner}', '{hash}', '{name}', '{scopes}', 1, '{created}')"
                ))
                .await;
        }
        scene
    }

    async fn run(&self, statement: &str) {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement).execute(&self.pool).await.unwrap();
    }

    fn ring(&self) -> SecretRing {
        let ring = SecretRing::new(secret(self.secret));
        self.previous.map_or(ring.clone(), |previous| ring.with_retired(secret(previous)).unwrap())
    }

    /// The store of an instance that starts now.
    async fn store(&self) -> SqliteStore {
        SqliteStore::open(self.folder.path().join("keys.db")).await.unwrap()
    }

    /// A customer uses keys, on an instance that follows the stored policy.
    async fn use_keys(&self, keys: &[&str]) {
        let store = self.store().await;
        store.check_secrets(&self.ring()).await.unwrap();
        let policy = store.legacy_policy().await.unwrap().unwrap_or_default();
        let verifier = Verifier::new(store, self.ring());
        let verifier = verifier.with_policy(Policy::default().legacy(policy));
        for key in keys {
            let _ = verifier.verify(*key).await.unwrap();
        }
        verifier.flush().await.unwrap();
    }

    /// What a comment of the page says has happened.
    async fn happen(&mut self, comment: &str) {
        match comment {
            "the canary issues a key" => {
                let manager = KeyManager::new(self.store().await, &self.ring());
                let new = NewKey::new("initech", "canary").scopes("read");
                manager.issue(new.id(CANARY)).await.unwrap();
            }
            "customers use their keys" => self.use_keys(&[DEPLOY, BUILD, WEB]).await,
            "one customer uses a key" => self.use_keys(&[DEPLOY]).await,
            "the new secret is there" => self.previous = Some(SECRETS[1]),
            "the secrets are swapped" => {
                (self.secret, self.previous) = (SECRETS[1], Some(SECRETS[0]));
            }
            "the secret is wrong" => (self.secret, self.previous) = (SECRETS[2], None),
            "the secret is right" => (self.secret, self.previous) = (SECRETS[1], Some(SECRETS[0])),
            "no key needs the old secret" => {
                let store = self.store().await;
                let manager = KeyManager::new(store, &self.ring());
                let update = KeyUpdate::default().expires_at(SystemTime::UNIX_EPOCH);
                for id in [KEYS[0].0, KEYS[3].0, KEYS[4].0, CANARY] {
                    manager.update(&id.into(), update.clone()).await.unwrap();
                }
            }
            _ => {}
        }
    }

    /// What a command prints, in the form of the page.
    fn shell(&self, command: &str) -> String {
        let lxk = Path::new(env!("CARGO_BIN_EXE_lxk")).parent().unwrap();
        let path = format!("{}:{}", lxk.display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{command} 2>&1")]).current_dir(self.folder.path());
        shell.env_clear().env("PATH", path).env("USER", "alice");
        shell.env("DATABASE_URL", "sqlite://keys.db").env("API_KEY_SECRET", self.secret);
        if let Some(previous) = self.previous {
            shell.env("API_KEY_SECRET_PREVIOUS", previous);
        }
        let output = shell.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<_> = text.lines().map(|line| comparable(line.trim_end())).collect();
        match output.status.code() {
            Some(0) => {}
            code => lines.push(format!("(exit code {})", code.expect("not killed"))),
        }
        lines.join("\n")
    }
}

/// A line without what is new each time.
fn comparable(line: &str) -> String {
    // Dates of this year that are not in the scene: those of today and of what follows from it.
    let today = SystemTime::now();
    let mut line = line.to_owned();
    for days in [0, 7, 90] {
        let day = humantime::format_rfc3339(today + Duration::from_secs(days * 24 * 3600));
        let day = &day.to_string()[..10];
        let name = if days == 0 { "<today>".to_owned() } else { format!("<in {days} days>") };
        while let Some(at) = line.find(day) {
            let rest = &line[at + 10..];
            // A time goes with its date.
            let time = match rest.as_bytes() {
                [b' ' | b'T', a, b, b':', ..] if a.is_ascii_digit() && b.is_ascii_digit() => {
                    let end = rest[1..].find(|c: char| !c.is_ascii_digit() && !":.Z".contains(c));
                    end.map_or(rest.len(), |end| end + 1)
                }
                _ => 0,
            };
            line.replace_range(at..at + 10 + time, &name);
        }
    }
    let mut words: Vec<_> = line.split(' ').map(str::to_owned).collect();
    for word in &mut words {
        let is_id = word.len() == 36 && word.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
        if word.starts_with("lxk_") {
            *word = "lxk_...".to_owned();
        } else if is_id && *word != CANARY && KEYS.iter().all(|key| key.0 != word) {
            *word = "<id>".to_owned();
        }
    }
    words.join(" ")
}

/// Runs the transcripts of a page from `start` on, and compares.
async fn check(page_path: &str, start: &str) {
    let mut scene = Scene::new().await;
    let path = format!("{}/../{page_path}", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(&path).unwrap();
    let begins = page.find(start).expect(start);
    let mut printed = page[..begins].to_owned();
    let mut in_transcript = false;
    for line in page[begins..].lines() {
        if let Some(comment) = line.strip_prefix("<!-- ") {
            scene.happen(comment.trim_end_matches(" -->")).await;
        }
        in_transcript = line == "```console" || (in_transcript && line != "```");
        match line.strip_prefix("$ ") {
            Some(command) if in_transcript => {
                printed += &format!("$ {command}\n");
                let answer = scene.shell(command);
                if !answer.is_empty() {
                    printed += &format!("{answer}\n");
                }
            }
            _ if in_transcript && line != "```console" => {}
            _ => printed += &format!("{line}\n"),
        }
    }
    if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
        std::fs::write(&path, &printed).unwrap();
    }
    assert_eq!(page, printed, "{page_path} does not show what is printed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runbook_shows_what_is_printed() {
    check("docs/migration.md", "# Migration runbook").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_lxk_shows_what_it_prints() {
    check("docs/lxk.md", "## A first look").await;
}
