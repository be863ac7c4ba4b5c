//! The command `lxk`: what each command answers, and above all what it refuses. The steps of a migration
//! are played in tests/programme.rs, and what is printed in tests/runbook.rs.
#![cfg(feature = "cli")]

mod common;
#[path = "common/postgres.rs"]
mod postgres;
#[path = "common/redis.rs"]
mod redis_server;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{SECRETS, UNTAGGED, assert_reveals_nothing, one_secret, ring};
use lexikon_auth::{RedisStore, SqliteStore, Verifier};
use redis_server::RedisServer;
use serde_json::Value;
use tempfile::TempDir;

/// A database of this crate's own, and the environment of an operator.
struct Desk {
    folder: TempDir,
    variables: BTreeMap<&'static str, String>,
}

/// What a command comes to.
struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Desk {
    /// With an empty database, whose tables are made.
    fn new() -> Self {
        let desk = Self::without_database();
        desk.lxk(&["schema", "apply", "--create"]).ends_with(0);
        desk
    }

    fn without_database() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("keys.db").display());
        let secret = SECRETS[0].to_owned();
        let variables = BTreeMap::from([("DATABASE_URL", url), ("API_KEY_SECRET", secret)]);
        Self { folder, variables }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.insert(name, value.into());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keys.db")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lxk"));
        command.args(arguments).env_clear().envs(&self.variables).stdin(Stdio::null());
        command
    }

    fn lxk(&self, arguments: &[&str]) -> Answer {
        Answer::of(self.command(arguments))
    }

    /// With this on standard input.
    fn reading(&self, arguments: &[&str], input: &[u8]) -> Answer {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut command = self.command(arguments);
        command.stdin(file);
        Answer::of(command)
    }

    /// Issues a key: its id, and the key.
    fn issue(&self, owner: &str, name: &str) -> (String, String) {
        let arguments = ["--json", "issue", "--owner", owner, "--name", name, "--scopes", "read"];
        let issued = self.lxk(&arguments).ends_with(0).object();
        let text = |field: &str| issued[field].as_str().unwrap().to_owned();
        (text("id"), text("key"))
    }

    /// All that the table says.
    fn exported(&self) -> String {
        self.lxk(&["export"]).ends_with(0).out
    }
}

impl Answer {
    fn of(mut command: Command) -> Self {
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        for secret in SECRETS {
            assert_reveals_nothing(&out, secret);
            assert_reveals_nothing(&err, secret);
        }
        assert!(!err.contains("panicked"), "{err}");
        Self { code: output.status.code(), out, err }
    }

    #[track_caller]
    fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self
    }

    /// Fails with this code, and an error that holds this text.
    #[track_caller]
    fn fails(self, code: i32, text: &str) -> Self {
        let answer = self.ends_with(code);
        assert!(answer.err.contains(text), "no {text:?} in: {}", answer.err);
        answer
    }

    /// Prints this among other things.
    #[track_caller]
    fn prints(self, text: &str) -> Self {
        assert!(self.out.contains(text), "no {text:?} in: {}", self.out);
        self
    }

    fn object(&self) -> Value {
        serde_json::from_str(&self.out).expect(&self.out)
    }

    fn objects(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

#[test]
fn a_database_that_cannot_be_used_is_named_with_what_to_do() {
    let desk = Desk::without_database().without("DATABASE_URL");
    desk.lxk(&["list"]).fails(2, "set DATABASE_URL");
    let list = |url: &str| desk.lxk(&["--database-url", url, "list"]);
    list("mysql://localhost/keys").fails(2, "neither sqlite: nor postgres:");
    list("postgres://operator:hidden-word@127.0.0.1:1/keys").fails(3, "127.0.0.1:1");
    list("sqlite:///no/such/folder/keys.db").fails(3, "lxk schema apply --create");
    let malformed = list("postgres://operator:hidden-word@[::/keys").fails(2, "cannot be read");
    let refused = list("postgres://operator:hidden-word@127.0.0.1:1/keys");
    for answer in [malformed, refused] {
        assert_reveals_nothing(&answer.err, "hidden-word@");
    }

    // Not a database, an empty one, and one with other tables.
    let path = desk.folder.path().join("text");
    let url = format!("sqlite://{}", path.display());
    std::fs::write(&path, "anything but a database, and long enough to be looked at".repeat(20))
        .unwrap();
    list(&url).fails(3, "cannot be read");
    std::fs::write(&path, "").unwrap();
    list(&url).fails(1, "no table api_keys");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "a look makes no tables");
    desk.run_sql_on(&path, "CREATE TABLE api_keys (id VARCHAR, colour VARCHAR)");
    list(&url).fails(3, "unknown schema");
}

impl Desk {
    /// Runs SQL behind the back of the command.
    fn run_sql_on(&self, path: &Path, statement: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = sqlx::sqlite::SqliteConnectOptions::new();
            let options = options.filename(path).create_if_missing(true);
            let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
            let statement = sqlx::AssertSqlSafe(statement.to_owned());
            sqlx::raw_sql(statement).execute(&pool).await.unwrap();
            pool.close().await;
        });
    }
}

/// Every command that works on the database, with arguments that are in order.
const COMMANDS: [&[&str]; 25] = [
    &["secret", "check"],
    &["secret", "rotate", "add"],
    &["secret", "rotate", "switch"],
    &["secret", "rotate", "status"],
    &["secret", "rotate", "remove", "0123456789abcdef"],
    &["issue", "--owner", "user-1", "--name", "x"],
    &["verify"],
    &["list"],
    &["show", NOBODY],
    &["revoke", NOBODY],
    &["rotate", NOBODY],
    &["expire"],
    &["schema", "show"],
    &["schema", "apply", "--dry-run"],
    &["migrate", "status"],
    &["migrate", "policy"],
    &["migrate", "policy", "refuse"],
    &["migrate", "owners"],
    &["migrate", "owners", "--csv"],
    &["migrate", "deprecate", "--revoke-in", "7d"],
    &["migrate", "deprecate", "--undo"],
    &["migrate", "revoke", "--force"],
    &["migrate", "rollback-check", "--to", "v0.9"],
    &["export"],
    &["cache", "clear", "--all"],
];

#[test]
fn every_command_says_what_is_wrong_with_its_database() {
    let desk = Desk::without_database();
    let empty = format!("sqlite://{}", desk.folder.path().join("empty").display());
    std::fs::write(desk.folder.path().join("empty"), "").unwrap();
    let other = desk.folder.path().join("other");
    desk.run_sql_on(&other, "CREATE TABLE api_keys (id VARCHAR, colour VARCHAR)");
    let other = format!("sqlite://{}", other.display());
    let gone = "postgres://operator@127.0.0.1:1/keys";
    // The cache is looked for last.
    let desk = desk.with("REDIS_URL", "redis://127.0.0.1:1");
    for command in COMMANDS {
        for (url, code, problem) in [
            ("mysql://localhost", 2, "neither sqlite: nor postgres:"),
            (gone, 3, "127.0.0.1:1"),
            ("sqlite:///no/such/folder/keys.db", 3, "cannot be opened"),
            (&empty, 1, "no table api_keys"),
            (&other, 3, "unknown schema"),
        ] {
            let answer = desk.lxk(&[&["--database-url", url], command].concat());
            assert!(
                answer.code == Some(code) && answer.err.contains(problem),
                "{command:?} on {url}: {}",
                answer.err
            );
            assert!(answer.out.is_empty(), "{command:?} on {url}: {}", answer.out);
        }
    }
    assert_eq!(std::fs::metadata(desk.folder.path().join("empty")).unwrap().len(), 0);
}

#[test]
fn what_is_printed_for_machines_is_what_the_page_says() {
    let page = include_str!("../docs/lxk.md");
    // The row of a table that begins with the command names the fields of its objects.
    let documented = |command: &str, object: &Value| {
        let fields: Vec<_> =
            object.as_object().unwrap().keys().map(|key| format!("`{key}`")).collect();
        let fields = fields.join(", ");
        let row = format!("| `{command}` | {fields} |");
        assert!(page.contains(&row), "docs/lxk.md has no row {row}");
    };
    let desk = Desk::new();
    let (id, key) = desk.issue("user-1", "deploy");
    desk.run_sql_on(
        &desk.path(),
        "UPDATE api_keys SET hash_format = 'sha256', last_used_at = datetime('now')",
    );
    let server = RedisServer::start();
    let desk = desk.with("REDIS_URL", format!("redis://127.0.0.1:{}", server.port));
    let issued = desk.lxk(&["--json", "issue", "--owner", "user-1", "--name", "second"]).object();
    documented("issue", &issued);
    let second = issued["id"].as_str().unwrap();
    for command in [
        "secret check",
        "secret rotate add",
        "secret rotate switch",
        "secret rotate status",
        "list",
        "expire",
        "migrate status",
        "migrate policy shadow",
        "migrate owners",
        "migrate deprecate --revoke-in 7d",
        "migrate deprecate --undo",
        "migrate rollback-check --to v1.0",
        "migrate revoke --force",
        "preflight",
        "cache stats",
        "cache clear --all",
        "schema apply",
        "schema time-zone",
    ] {
        let arguments: Vec<_> = ["--json"].into_iter().chain(command.split(' ')).collect();
        for object in desk.lxk(&arguments).objects() {
            documented(command, &object);
        }
    }
    documented("show ID", &desk.lxk(&["--json", "show", &id]).object());
    documented("verify", &desk.reading(&["verify"], key.as_bytes()).object());
    documented("rotate ID", &desk.lxk(&["--json", "rotate", second]).object());
    documented("revoke ID", &desk.lxk(&["--json", "revoke", second]).object());
    documented("secret generate", &desk.lxk(&["--json", "secret", "generate"]).object());
    let exported = desk.exported();
    for object in exported.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let (kind, inner) = object.as_object().unwrap().iter().next().unwrap();
        documented(&format!("export: {kind}"), inner);
    }
    documented("import", &desk.reading(&["--json", "import"], exported.as_bytes()).object());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rights_nothing_is_changed_and_the_database_says_why() {
    let options = postgres::database().await;
    let name = options.get_database().unwrap().to_owned();
    let url = |user: &str| format!("postgres://{user}@127.0.0.1:{}/{name}", options.get_port());
    let owner = Desk::without_database().with("DATABASE_URL", url("postgres"));
    owner.lxk(&["schema", "apply", "--create"]).ends_with(0);
    let (id, _) = owner.issue("user-1", "deploy");
    let pool = sqlx::PgPool::connect_with(options.clone()).await.unwrap();
    let role = "DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN END $$; \
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader";
    sqlx::raw_sql(role).execute(&pool).await.unwrap();

    let reader = Desk::without_database().with("DATABASE_URL", url("reader"));
    reader.lxk(&["show", &id]).ends_with(0).prints("deploy");
    for arguments in [
        &["revoke", &id][..],
        &["rotate", &id],
        &["issue", "--owner", "user-1", "--name", "x"],
        &["migrate", "policy", "refuse"],
    ] {
        reader.lxk(arguments).fails(3, "permission denied");
    }
    owner.lxk(&["show", &id]).prints("in force");
    owner.lxk(&["migrate", "policy"]).prints("none stored");
}

#[test]
fn a_file_that_may_not_be_written_is_read() {
    let desk = Desk::new();
    let (id, key) = desk.issue("user-1", "deploy");
    let url = format!("{}?mode=ro", desk.variables["DATABASE_URL"]);
    let desk = desk.with("DATABASE_URL", url);
    desk.lxk(&["show", &id]).ends_with(0);
    desk.reading(&["verify"], key.as_bytes()).ends_with(0);
    desk.lxk(&["revoke", &id]).fails(3, "read-only");
}

#[test]
fn a_secret_that_is_missing_weak_or_wrong_is_refused() {
    let issue = ["issue", "--owner", "user-1", "--name", "x"];
    let desk = Desk::new();
    desk.issue("user-1", "deploy");
    let desk = desk.without("API_KEY_SECRET");
    for arguments in [&issue[..], &["verify"], &["rotate", NOBODY], &["secret", "check"]] {
        desk.lxk(arguments).fails(2, "API_KEY_SECRET is not set");
    }
    desk.lxk(&["list"]).ends_with(0).prints("deploy");

    let desk = desk.with("API_KEY_SECRET", "changeme");
    desk.lxk(&["secret", "check"]).fails(2, "placeholder");
    let desk = desk.with("API_KEY_SECRET", SECRETS[1]);
    for arguments in [&issue[..], &["secret", "check"]] {
        desk.lxk(arguments).fails(1, "lxk secret rotate add");
    }
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("not known to the database");
    assert_eq!(desk.exported().lines().count(), 2, "nothing was issued");
}

#[test]
fn a_secret_is_made_and_checked() {
    let desk = Desk::without_database().without("DATABASE_URL");
    let made = desk.lxk(&["secret", "generate"]).ends_with(0);
    let desk = desk.with("API_KEY_SECRET", made.out.trim_end());
    let fingerprint = made.err.trim_end().strip_prefix("fingerprint ").unwrap().to_owned();
    desk.lxk(&["secret", "check"]).ends_with(0).prints(&fingerprint);
}

#[test]
fn a_key_is_issued_shown_used_and_revoked() {
    let desk = Desk::new();
    let (id, key) = desk.issue("user-1", "deploy");
    let verify = || desk.reading(&["verify"], format!("{key}\n").as_bytes());
    let answer = verify().ends_with(0);
    assert_reveals_nothing(&answer.out, &key);
    let expected = serde_json::json!({
        "outcome": "accepted", "reason": null, "id": id, "owner": "user-1", "scopes": ["read"],
        "format": "hmac-sha256",
    });
    assert_eq!(answer.object(), expected);
    desk.lxk(&["show", &id]).ends_with(0).prints("in force");
    assert_eq!(desk.lxk(&["--json", "show", &id]).object()["state"], "in force");

    desk.lxk(&["revoke", &id, NOBODY, "--dry-run"]).fails(1, NOBODY).prints("would be revoked");
    verify().ends_with(0);
    desk.lxk(&["revoke", &id, NOBODY, "--reason", "laptop lost"])
        .fails(1, NOBODY)
        .prints("revoked");
    let refused = verify().fails(1, "1 key refused");
    assert_eq!(refused.object()["reason"], "revoked");
    assert_eq!(refused.object()["id"], *id);
    desk.lxk(&["show", &id]).prints("laptop lost");
    for arguments in [["show", NOBODY], ["rotate", NOBODY]] {
        desk.lxk(&arguments).fails(1, "no key has the id");
    }
    desk.lxk(&["rotate", &id]).fails(1, "is revoked or has expired");
}

#[test]
fn keys_are_read_one_a_line_and_none_is_printed() {
    let desk = Desk::new();
    let (_, key) = desk.issue("user-1", "deploy");
    // Windows line ends, an empty line, bytes that are no text, no newline at the end.
    let input = [key.as_bytes(), b"\r\n\n\xff\xfe\n", UNTAGGED.as_bytes()].concat();
    let answer = desk.reading(&["verify"], &input).fails(1, "3 keys refused");
    let reasons: Vec<_> = answer.objects().iter().map(|line| line["reason"].clone()).collect();
    assert_eq!(reasons, [Value::Null, "malformed".into(), "malformed".into(), "unknown".into()]);
    assert_reveals_nothing(&(answer.out + &answer.err), UNTAGGED);
    desk.reading(&["verify"], &[b'x'; 10_000]).fails(2, "one key on each");
    desk.lxk(&["verify"]).ends_with(0);
    // A key is no argument.
    let answer = desk.lxk(&["verify", UNTAGGED]).ends_with(2);
    assert!(answer.out.is_empty());
}

#[test]
fn a_rotated_key_has_a_successor() {
    let desk = Desk::new();
    let (id, key) = desk.issue("user-1", "deploy");
    let successor = desk.lxk(&["--json", "rotate", &id, "--overlap", "1h"]).ends_with(0).object();
    let both = format!("{key}\n{}\n", successor["key"].as_str().unwrap());
    desk.reading(&["verify"], both.as_bytes()).ends_with(0);
    let second = desk.lxk(&["--json", "rotate", &id]).ends_with(0).object();
    assert_eq!(second["name"], "deploy");
    desk.reading(&["verify"], key.as_bytes()).fails(1, "refused").prints("expired");
    desk.lxk(&["rotate", &id, "--overlap", "1 fortnight"]).fails(2, "write it as 30d");
}

#[test]
fn lists_are_filtered() {
    let desk = Desk::new();
    let (id, _) = desk.issue("user-1", "deploy");
    desk.issue("user-2", "web");
    desk.lxk(&["issue", "--owner", "user-1", "--name", "soon", "--expires-in", "2d"]).ends_with(0);
    let names = |arguments: &[&str]| -> Vec<String> {
        let answer = desk.lxk(&[&["--json", "list"], arguments].concat()).ends_with(0);
        let mut names: Vec<_> =
            answer.objects().iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&[]), ["deploy", "soon", "web"]);
    assert_eq!(names(&["--owner", "user-1"]), ["deploy", "soon"]);
    assert_eq!(names(&["--expiring-in", "7d"]), ["soon"]);
    assert_eq!(names(&["--expiring-in", "1d"]), [""; 0]);
    assert_eq!(names(&["--format", "hmac-sha256"]).len(), 3);
    assert_eq!(names(&["--format", "sha256"]).len(), 0);
    assert_eq!(names(&["--unused-since", "30d"]).len(), 0);
    let used = format!("UPDATE api_keys SET created_at = '2020-01-01 00:00:00' WHERE id = '{id}'");
    desk.run_sql_on(&desk.path(), &used);
    assert_eq!(names(&["--unused-since", "30d"]), ["deploy"]);
    desk.lxk(&["list", "--format", "md5"]).ends_with(2);
    desk.lxk(&["list", "--unused-since", "ages"]).fails(2, "write it as 30d");
}

#[test]
fn names_do_nothing_to_a_terminal_or_a_spreadsheet() {
    let desk = Desk::new();
    desk.issue("user-1", "\u{1b}]0;owned\u{7}\n=HYPERLINK(1)");
    let answer = desk.lxk(&["list"]).ends_with(0);
    assert!(!answer.out.contains('\u{1b}') && !answer.out.contains('\u{7}'), "{:?}", answer.out);
    assert_eq!(answer.out.lines().count(), 3);
    desk.issue("user-1", "=HYPERLINK(1)");
    desk.run_sql_on(&desk.path(), "UPDATE api_keys SET hash_format = 'sha256'");
    desk.lxk(&["migrate", "owners", "--csv"]).ends_with(0).prints("'=HYPERLINK(1)");
}

#[test]
fn a_reader_who_has_enough_is_no_error() {
    let desk = Desk::new();
    for number in 0..50 {
        desk.issue("user-1", &number.to_string());
    }
    for arguments in [&["list"][..], &["export"], &["--json", "migrate", "owners"]] {
        let mut command = desk.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert!(!err.contains("panicked") && !err.contains("error"), "{arguments:?}: {err}");
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn a_key_that_cannot_be_printed_is_revoked() {
    let desk = Desk::new();
    let (id, key) = desk.issue("user-1", "deploy");
    let rotate = ["rotate", &*id];
    for arguments in [&["issue", "--owner", "user-1", "--name", "lost"][..], &rotate] {
        let mut command = desk.command(arguments);
        command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{err}");
        assert!(err.contains("could not be printed"), "{err}");
    }
    let keys = desk.lxk(&["--json", "list"]).objects();
    let states: Vec<_> = keys.iter().filter(|key| key["state"] == "revoked").collect();
    assert_eq!((keys.len(), states.len()), (3, 2));
    // The key that was to be replaced goes on.
    desk.reading(&["verify"], key.as_bytes()).ends_with(0);
}

#[test]
fn an_export_is_imported_once_and_whole() {
    let desk = Desk::new();
    for number in 0..3 {
        desk.issue("user-1", &number.to_string());
    }
    let (id, _) = desk.issue("user-2", "revoked");
    desk.lxk(&["revoke", &id, "--reason", "why"]).ends_with(0);
    let exported = desk.exported();
    assert!(!exported.contains("lxk_"));

    let other = Desk::new();
    let import = |input: &str| other.reading(&["--json", "import"], input.as_bytes());
    other.reading(&["import", "--dry-run"], exported.as_bytes()).ends_with(0).prints("4 records");
    assert_eq!(other.exported().lines().count(), 1, "nothing was added");

    // What was altered, cut, lengthened or reordered is refused, and nothing of the batch is added.
    let lines: Vec<_> = exported.lines().collect();
    let swapped = [lines[1], lines[0], lines[2], lines[3], lines[4], ""].join("\n");
    for (altered, problem) in [
        (exported.replace("\"read\"", "\"admin\""), "another digest"),
        (exported.replace("user-1", "user-9"), "another digest"),
        (lines[..4].join("\n") + "\n", "ends before its end line"),
        (exported[..exported.len() - 30].to_owned(), "line 5"),
        (lines[1..].join("\n") + "\n", "counts other records"),
        (swapped, "another digest"),
        ("{}\n".to_owned(), "line 1 is not what export prints"),
        ("not JSON\n".to_owned(), "line 1 is not what export prints"),
        (String::new(), "ends before its end line"),
        (exported.clone() + lines[0], "after the end"),
    ] {
        import(&altered).fails(1, problem);
        if problem != "after the end" {
            assert_eq!(other.exported().lines().count(), 1, "{problem}");
        }
    }

    let answer = import(&exported).ends_with(0).object();
    assert_eq!((&answer["added"], &answer["unchanged"]), (&0.into(), &4.into()), "added above");
    assert_eq!(other.exported(), exported);
    let third = Desk::new();
    let first = third.reading(&["--json", "import"], exported.as_bytes()).ends_with(0).object();
    assert_eq!((&first["added"], &first["unchanged"]), (&4.into(), &0.into()));

    third.run_sql_on(&third.path(), "UPDATE api_keys SET scopes = 'admin'");
    let conflict = third.reading(&["import"], exported.as_bytes()).fails(1, "differ");
    assert!(conflict.err.contains("4 records"), "{}", conflict.err);
}

#[test]
fn an_import_that_is_killed_is_run_again() {
    let desk = Desk::new();
    let (id, _) = desk.issue("user-1", "deploy");
    let rows = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) \
         INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at) \
         SELECT 'key-' || i, 'user-1', substr('{}' || printf('%08x', i), 9), 'x', 'read', 1, \
         '2026-01-01 00:00:00' FROM n; DELETE FROM api_keys WHERE id = '{id}'",
        "0".repeat(64)
    );
    desk.run_sql_on(&desk.path(), &rows);
    let exported = desk.exported();

    let other = Desk::new();
    let file = other.folder.path().join("exported");
    std::fs::write(&file, &exported).unwrap();
    let mut command = other.command(&["import"]);
    command.stdin(std::fs::File::open(&file).unwrap()).stderr(Stdio::null());
    let mut killed = command.spawn().unwrap();
    let count = || other.exported().lines().filter(|line| line.starts_with("{\"record")).count();
    while count() < 2000 {
        assert!(killed.try_wait().unwrap().is_none(), "it ended before it could be killed");
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let there = count();
    assert!(there < 20_000 && there.is_multiple_of(1000), "whole batches: {there}");
    let answer = other.reading(&["--json", "import"], exported.as_bytes()).ends_with(0).object();
    assert_eq!(answer["unchanged"], there);
    assert_eq!(answer["added"], 20_000 - there);
    assert_eq!(other.exported(), exported);
}

#[test]
fn a_dry_run_changes_nothing() {
    let desk = Desk::new();
    let (id, _) = desk.issue("user-1", "deploy");
    let sql = "UPDATE api_keys SET hash_format = 'sha256', expires_at = '2020-01-01 00:00:00'";
    desk.run_sql_on(&desk.path(), sql);
    let (other, _) = desk.issue("user-1", "other");
    desk.lxk(&["rotate", &id, "--dry-run"]).fails(1, "is revoked or has expired");
    let state = || {
        let secrets = desk.lxk(&["secret", "rotate", "status"]).ends_with(0).out;
        desk.exported() + &secrets + &desk.lxk(&["migrate", "policy"]).ends_with(0).out
    };
    let before = state();
    for arguments in [
        &["revoke", &id, "--dry-run"][..],
        &["rotate", &other, "--dry-run"],
        &["expire", "--dry-run"],
        &["schema", "apply", "--dry-run"],
        &["migrate", "policy", "refuse", "--dry-run"],
        &["migrate", "deprecate", "--revoke-in", "7d", "--before", "2026-01-01", "--dry-run"],
        &["migrate", "deprecate", "--undo", "--dry-run"],
        &["migrate", "revoke", "--force", "--dry-run"],
        &["secret", "rotate", "add", "--dry-run"],
        &["secret", "rotate", "switch", "--dry-run"],
    ] {
        desk.lxk(arguments).ends_with(0);
    }
    assert_eq!(state(), before);
    desk.lxk(&["expire"]).ends_with(0).prints("1 key marked");
    desk.lxk(&["expire"]).ends_with(0).prints("0 keys marked");
}

#[test]
fn steps_of_a_migration_refuse_what_makes_no_sense() {
    let desk = Desk::new();
    let migrate = |arguments: &[&str]| desk.lxk(&[&["migrate"], arguments].concat());
    migrate(&["policy", "accept-until"]).fails(2, "needs a date");
    migrate(&["policy", "refuse", "2026-12-01"]).fails(2, "only accept-until takes a date");
    migrate(&["policy", "accept-until", "soon"]).fails(2, "write it as 2026-12-01");
    migrate(&["policy", "accept-until", "2020-01-01"]).fails(2, "say refuse");
    migrate(&["policy", "maybe"]).ends_with(2);
    migrate(&["deprecate"]).fails(2, "--revoke-in");
    migrate(&["deprecate", "--revoke-in", "7d", "--undo"]).ends_with(2);
    migrate(&["deprecate", "--revoke-in", "2000years"]).fails(2, "shorten it");
    migrate(&["deprecate", "--upgraded"]).ends_with(2);
    migrate(&["rollback-check", "--to", "v2.0"]).ends_with(2);
    migrate(&["owners", "--csv", "--json"]).ends_with(2);
    migrate(&["policy"]).prints("none stored");
    migrate(&["policy", "accept-until", "2999-12-01T12:00:00Z", "--by", "alice"]).ends_with(0);
    let stored = desk.lxk(&["--json", "migrate", "policy"]).object();
    assert_eq!(stored["policy"], "accept-until");
    assert_eq!(stored["accept_until"], "2999-12-01T12:00:00Z");
    assert_eq!(stored["changed_by"], "alice");
}

#[test]
fn steps_that_need_the_extension_say_so() {
    let desk = Desk::without_database();
    std::fs::copy("tests/data/lexikon.sqlite", desk.path()).unwrap();
    for arguments in [
        &["migrate", "policy", "refuse"][..],
        &["migrate", "deprecate", "--revoke-in", "7d"],
        &["migrate", "deprecate", "--undo"],
        &["secret", "rotate", "add"],
    ] {
        desk.lxk(arguments).fails(1, "lxk schema apply");
    }
    desk.lxk(&["schema", "show"]).ends_with(0).prints("ADD COLUMN hash_format").prints("7 to run");
    desk.lxk(&["schema", "apply"]).ends_with(0).prints("7 applied");
    desk.lxk(&["schema", "apply"]).ends_with(0).prints("All is there");
    let issue = || desk.lxk(&["issue", "--owner", "nobody", "--name", "x"]);
    issue().fails(1, "lxk secret rotate add");
    desk.lxk(&["secret", "rotate", "add"]).ends_with(0);
    issue().fails(1, "create the user first");
}

#[test]
fn a_secret_that_keys_need_is_not_dropped() {
    let desk = Desk::new();
    let (id, key) = desk.issue("user-1", "deploy");
    let old = ring(&SECRETS[..1]).current().fingerprint().to_string();
    let rotate =
        |desk: &Desk, arguments: &[&str]| desk.lxk(&[&["secret", "rotate"], arguments].concat());
    rotate(&desk, &["remove", &old]).fails(1, "current secret");
    rotate(&desk, &["remove", "0123456789abcdef"]).fails(1, "does not know");

    let desk = desk.with("API_KEY_SECRET", SECRETS[1]).with("API_KEY_SECRET_PREVIOUS", SECRETS[0]);
    rotate(&desk, &["switch"]).fails(1, "lxk secret rotate add");
    rotate(&desk, &["add"]).ends_with(0).prints("known already").prints("added");
    rotate(&desk, &["remove", &old]).fails(1, "lxk secret rotate switch");
    rotate(&desk, &["switch"]).ends_with(0);
    rotate(&desk, &["status"]).ends_with(0).prints("1 key may need an older secret");
    rotate(&desk, &["remove", &old]).fails(1, "may still need it").prints(&id);
    desk.reading(&["verify"], key.as_bytes()).ends_with(0);

    let successor = desk.lxk(&["--json", "rotate", &id]).ends_with(0).object();
    rotate(&desk, &["remove", &old, "--dry-run"]).ends_with(0).prints("could be removed");
    rotate(&desk, &["remove", &old]).ends_with(0).prints("removed");
    let desk = desk.without("API_KEY_SECRET_PREVIOUS");
    desk.lxk(&["secret", "check"]).ends_with(0);
    desk.reading(&["verify"], successor["key"].as_str().unwrap().as_bytes()).ends_with(0);
    let desk = desk.with("API_KEY_SECRET", SECRETS[0]);
    desk.lxk(&["secret", "check"]).fails(1, "does not know");
}

#[test]
fn a_secret_that_the_environment_lacks_is_missed() {
    let desk = Desk::new();
    desk.issue("user-1", "deploy");
    let desk = desk.with("API_KEY_SECRET_PREVIOUS", SECRETS[1]);
    desk.lxk(&["secret", "rotate", "add"]).ends_with(0);
    // The next one is not needed before it was current.
    let desk = desk.without("API_KEY_SECRET_PREVIOUS");
    desk.lxk(&["secret", "check"]).ends_with(0);
    let desk = desk.with("API_KEY_SECRET", SECRETS[1]);
    desk.lxk(&["secret", "check"]).fails(1, "set it as API_KEY_SECRET_PREVIOUS");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("1 key may need");
    let desk = desk.with("API_KEY_SECRET_PREVIOUS", SECRETS[0]);
    desk.lxk(&["preflight"]).ends_with(0);
    // The wrong way round, the switch is refused.
    let desk = desk.with("API_KEY_SECRET", SECRETS[0]).with("API_KEY_SECRET_PREVIOUS", SECRETS[1]);
    desk.lxk(&["secret", "rotate", "switch"]).fails(1, "swap the two");
    // One that was added by mistake can go.
    let mistaken = ring(&SECRETS[1..2]).current().fingerprint().to_string();
    desk.lxk(&["secret", "rotate", "remove", &mistaken, "--force"]).ends_with(0);
    desk.lxk(&["preflight"]).ends_with(0);
}

#[test]
fn a_successor_does_not_inherit_a_deprecation() {
    let desk = Desk::new();
    let (forever, _) = desk.issue("user-1", "forever");
    let issue = ["--json", "issue", "--owner", "user-1", "--name", "x", "--expires-in", "90d"];
    let limited = desk.lxk(&issue).ends_with(0).object();
    desk.run_sql_on(&desk.path(), "UPDATE api_keys SET hash_format = 'sha256'");
    desk.lxk(&["migrate", "deprecate", "--revoke-in", "7d"]).ends_with(0).prints("2 legacy keys");
    let successor = |id: &str| desk.lxk(&["--json", "rotate", id, "--overlap", "1d"]).object();
    assert_eq!(successor(&forever)["expires_at"], Value::Null);
    assert_eq!(successor(limited["id"].as_str().unwrap())["expires_at"], limited["expires_at"]);
    // By now the old ones have an expiry of their own.
    let again = successor(&forever)["expires_at"].as_str().unwrap().to_owned();
    assert_eq!(desk.lxk(&["--json", "show", &forever]).object()["expires_at"], *again);
}

#[test]
fn what_owners_were_promised_is_kept() {
    let desk = Desk::new();
    desk.issue("user-1", "deploy");
    desk.run_sql_on(&desk.path(), "UPDATE api_keys SET hash_format = 'sha256'");
    let migrate = |arguments: &[&str]| desk.lxk(&[&["migrate"], arguments].concat());
    migrate(&["deprecate", "--revoke-at", "2999-01-01"]).ends_with(0).prints("2999-01-01 00:00Z");
    migrate(&["deprecate", "--revoke-at", "2020-01-01"]).fails(2, "has passed");
    migrate(&["revoke"]).fails(1, "owners were given time until 2999-01-01");
    migrate(&["revoke", "--before", "2999-01-01"]).fails(2, "in the future");
    desk.issue("user-1", "another");
    desk.run_sql_on(&desk.path(), "UPDATE api_keys SET hash_format = 'sha256'");
    let later = migrate(&["deprecate", "--revoke-at", "2999-02-01"]).ends_with(0);
    later
        .prints("1 legacy key set to 2999-02-01")
        .prints("an earlier date before, from 2999-01-01");
    migrate(&["revoke", "--force"]).ends_with(0).prints("2 legacy keys revoked");
    migrate(&["revoke"]).ends_with(0).prints("0 legacy keys revoked");
}

#[test]
fn a_key_in_the_place_of_an_id_is_not_shown_again() {
    let desk = Desk::new();
    for command in ["show", "revoke", "rotate"] {
        let answer = desk.lxk(&[command, UNTAGGED]).fails(2, "that is a key");
        assert_reveals_nothing(&(answer.out + &answer.err), UNTAGGED);
    }
}

#[test]
fn preflight_finds_what_is_wrong() {
    let desk = Desk::new();
    desk.lxk(&["preflight"]).ends_with(0).prints("issued, verified, revoked, rolled back");
    assert_eq!(desk.exported().lines().count(), 1, "nothing is left");
    desk.run_sql_on(&desk.path(), "DROP INDEX ix_api_keys_key_hash");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("CREATE UNIQUE INDEX");
    let lines = desk.lxk(&["--json", "preflight"]).objects();
    assert!(lines.iter().any(|line| line["check"] == "index" && line["result"] == "failed"));

    let desk = Desk::new();
    desk.issue("user-1", "deploy");
    desk.run_sql_on(&desk.path(), "UPDATE api_keys SET created_at = '2999-01-01 00:00:00'");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("clock is behind");
    let desk = Desk::without_database();
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("cannot be opened");
    let desk = desk.without("API_KEY_SECRET").without("DATABASE_URL");
    desk.lxk(&["preflight"]).fails(1, "2 checks failed");
}

#[test]
fn the_cache_in_redis_is_looked_at_and_cleared() {
    let server = RedisServer::start();
    let url = format!("redis://127.0.0.1:{}", server.port);
    let desk = Desk::new();
    desk.lxk(&["cache", "stats"]).fails(2, "REDIS_URL is not set");
    let desk = desk.with("REDIS_URL", url);
    let (id, key) = desk.issue("user-1", "deploy");
    desk.issue("user-2", "web");
    // An instance, which puts into Redis what it has looked up.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let instance = runtime.block_on(async {
        let store = SqliteStore::open(desk.path()).await.unwrap();
        let options = redis_server::patient();
        let store = RedisStore::new(store, server.client(), &one_secret(), options).await;
        Verifier::new(store, one_secret())
    });
    let is_accepted = || runtime.block_on(instance.verify(&key)).is_ok();
    assert!(is_accepted());
    let entries =
        || desk.lxk(&["--json", "cache", "stats"]).ends_with(0).object()["entries"].clone();
    assert_eq!(entries(), 1);
    desk.lxk(&["cache", "clear"]).ends_with(2);
    desk.lxk(&["cache", "clear", "--owner", "user-2"]).ends_with(0).prints("0 removed");
    desk.lxk(&["cache", "clear", "--owner", "user-1"]).ends_with(0).prints("1 removed");
    assert_eq!(entries(), 0);
    assert!(is_accepted());
    desk.lxk(&["cache", "clear", "--all"]).ends_with(0).prints("1 removed");

    // Verification asks the database itself.
    assert!(is_accepted());
    let revoke = |active: &str| {
        let statement = format!("UPDATE api_keys SET is_active = {active} WHERE id = '{id}'");
        desk.run_sql_on(&desk.path(), &statement);
    };
    revoke("0");
    assert!(is_accepted(), "Redis was not told");
    desk.reading(&["verify"], key.as_bytes()).fails(1, "refused");
    revoke("1");

    desk.lxk(&["preflight"]).fails(1, "check failed").prints("no memory limit");
    let config = |name: &str, value: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg(name).arg(value);
        set.exec(&mut server.client().get_connection().unwrap()).unwrap();
    };
    config("maxmemory", "64mb");
    config("maxmemory-policy", "allkeys-lru");
    desk.lxk(&["preflight"]).fails(1, "check failed").prints("volatile-ttl");
    config("maxmemory-policy", "volatile-ttl");
    desk.lxk(&["preflight"]).ends_with(0);

    // What Redis holds is forgotten with a change, by one key and by many.
    assert!(is_accepted());
    let deprecate = ["migrate", "deprecate", "--revoke-in", "1s"];
    desk.run_sql_on(&desk.path(), "UPDATE api_keys SET hash_format = 'sha256'");
    desk.lxk(&deprecate).ends_with(0).prints("2 legacy keys");
    while is_accepted() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    desk.lxk(&["migrate", "deprecate", "--undo"]).ends_with(0).prints("2 keys restored");
    assert!(is_accepted());
    desk.lxk(&["revoke", &id]).ends_with(0);
    assert!(!is_accepted());

    // Without Redis nothing is lost, and whoever has changed something is told.
    drop(server);
    let (id, key) = desk.issue("user-1", "without Redis");
    desk.reading(&["verify"], key.as_bytes()).ends_with(0);
    desk.lxk(&["migrate", "policy"]).ends_with(0);
    desk.lxk(&["revoke", &id]).fails(3, "lxk cache clear --all").prints("revoked");
    desk.reading(&["verify"], key.as_bytes()).fails(1, "refused");
    desk.lxk(&["expire"]).fails(3, "lxk cache clear --all");
    desk.lxk(&["cache", "clear", "--all"]).fails(3, "run this again");
    desk.lxk(&["cache", "stats"]).fails(3, "Redis does not answer");
    desk.lxk(&["preflight"]).fails(1, "check failed");
    let desk = desk.with("REDIS_URL", "redis:nonsense");
    desk.lxk(&["cache", "stats"]).fails(2, "REDIS_URL cannot be read");
}

#[test]
fn help_completions_and_manual_are_there() {
    let desk = Desk::without_database();
    let help = desk.lxk(&["--help"]).ends_with(0);
    for (text, part) in [(&help.out, "Exit codes"), (&help.out, "API_KEY_SECRET")] {
        assert!(text.contains(part), "{text}");
    }
    for command in ["issue", "verify", "list", "revoke", "rotate", "export", "import"] {
        desk.lxk(&[command, "--help"]).ends_with(0).prints("Example");
    }
    for command in ["status", "policy", "owners", "deprecate", "revoke", "rollback-check"] {
        desk.lxk(&["migrate", command, "--help"]).ends_with(0).prints("Example");
    }
    desk.lxk(&["secret", "rotate", "--help"]).ends_with(0).prints("The sequence");
    for shell in ["bash", "zsh", "fish"] {
        desk.lxk(&["completions", shell]).ends_with(0).prints("deprecate");
    }
    desk.lxk(&["manual"]).ends_with(0).prints(".TH");
    let folder = desk.folder.path().to_str().unwrap();
    desk.lxk(&["manual", "--folder", folder]).ends_with(0);
    assert!(desk.folder.path().join("lxk-migrate-deprecate.1").exists());
    desk.lxk(&["manual", "--folder", "/no/such/folder"]).ends_with(3);
    desk.lxk(&[]).ends_with(2);
    desk.lxk(&["no-such-command"]).ends_with(2);
}
