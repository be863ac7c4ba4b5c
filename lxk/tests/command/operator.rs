//! The command `lxk`, and the environment of whoever runs it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lexikon_auth_tests::{SECRETS, assert_reveals_nothing};
use serde_json::Value;
use tempfile::TempDir;

/// A database of this crate's own, and the environment of an operator.
pub struct Desk {
    pub folder: TempDir,
    pub variables: BTreeMap<&'static str, String>,
}

/// What a command comes to.
pub struct Answer {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Desk {
    /// With an empty database, whose tables are made.
    pub fn new() -> Self {
        let desk = Self::without_database();
        desk.lxk(&["schema", "apply", "--create"]).ends_with(0);
        desk
    }

    pub fn without_database() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("keys.db").display());
        let secret = SECRETS[0].to_owned();
        let variables = BTreeMap::from([("DATABASE_URL", url), ("API_KEY_SECRET", secret)]);
        Self { folder, variables }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.insert(name, value.into());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("keys.db")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lxk"));
        command.args(arguments).env_clear().envs(&self.variables).stdin(Stdio::null());
        command
    }

    pub fn lxk(&self, arguments: &[&str]) -> Answer {
        Answer::of(self.command(arguments))
    }

    /// With this on standard input.
    pub fn reading(&self, arguments: &[&str], input: &[u8]) -> Answer {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut command = self.command(arguments);
        command.stdin(file);
        Answer::of(command)
    }

    /// Issues a key: its id, and the key.
    pub fn issue(&self, owner: &str, name: &str) -> (String, String) {
        let arguments = ["--json", "issue", "--owner", owner, "--name", name, "--scopes", "read"];
        let issued = self.lxk(&arguments).ends_with(0).object();
        let text = |field: &str| issued[field].as_str().unwrap().to_owned();
        (text("id"), text("key"))
    }

    /// Runs SQL on the database behind the back of the command.
    pub fn run_sql(&self, statement: &str) {
        self.run_sql_on(&self.path(), statement);
    }

    /// Runs SQL on any file.
    pub fn run_sql_on(&self, path: &Path, statement: &str) {
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

    /// All that the table says.
    pub fn exported(&self) -> String {
        self.lxk(&["export"]).ends_with(0).out
    }
}

impl Answer {
    pub fn of(mut command: Command) -> Self {
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
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self
    }

    /// Fails with this code, and an error that holds this text.
    #[track_caller]
    pub fn fails(self, code: i32, text: &str) -> Self {
        let answer = self.ends_with(code);
        assert!(answer.err.contains(text), "no {text:?} in: {}", answer.err);
        answer
    }

    /// Prints this among other things.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert!(self.out.contains(text), "no {text:?} in: {}", self.out);
        self
    }

    pub fn object(&self) -> Value {
        serde_json::from_str(&self.out).expect(&self.out)
    }

    pub fn objects(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

pub const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// Every command that works on the database, with arguments that are in order.
pub const COMMANDS: [&[&str]; 25] = [
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
