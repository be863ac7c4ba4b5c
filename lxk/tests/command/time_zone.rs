//! What `lxk` does where the service did not run in UTC.

use std::process::Command;
use std::time::{Duration, SystemTime};

use lexikon_auth_tests::data;
use serde_json::Value;
use sqlx::SqlitePool;
use tempfile::TempDir;

const SECRET: &str = "122b598615dcbe810beacd557705a54b5edbbbe5ce7f8fbeebef7a58f99d96fb";
/// Zones without changes of the clocks: `lxk` goes by the machine's clock, on whatever day this runs.
const KATHMANDU: &str = "Asia/Kathmandu";
const BOGOTA: &str = "America/Bogota";

/// A copy of the service's database without keys, and an operator.
struct Desk {
    folder: TempDir,
    zone: Option<&'static str>,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let service = data::SQLITE;
        std::fs::write(folder.path().join("keys.db"), service).unwrap();
        let desk = Self { folder, zone: None };
        desk.run("DELETE FROM api_keys");
        desk
    }

    /// An operator with `LEXIKON_TIME_ZONE`.
    fn with_zone(self, zone: &'static str) -> Self {
        Self { zone: Some(zone), ..self }
    }

    /// Runs `lxk`, expects this exit code, and returns what it prints, errors at the end.
    #[track_caller]
    fn lxk(&self, code: i32, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lxk"));
        command.args(arguments).env_clear().env("API_KEY_SECRET", SECRET);
        command.env("DATABASE_URL", "sqlite://keys.db").current_dir(self.folder.path());
        if let Some(zone) = self.zone {
            command.env("LEXIKON_TIME_ZONE", zone);
        }
        let output = command.output().unwrap();
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{err}");
        out + &err
    }

    #[track_caller]
    fn object(&self, arguments: &[&str]) -> Value {
        let printed = self.lxk(0, &[&["--json"], arguments].concat());
        serde_json::from_str(printed.lines().next().unwrap()).expect(&printed)
    }

    /// Issues a key that expires in an hour, and returns its id.
    fn issue(&self) -> String {
        let issue = ["issue", "--owner", "user-1", "--name", "x", "--expires-in", "1h"];
        self.object(&issue)["id"].as_str().unwrap().to_owned()
    }

    fn run(&self, statement: &str) {
        self.rows(statement);
    }

    /// The first column of the first row, behind the back of the command.
    fn rows(&self, statement: &str) -> Option<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let url = format!("sqlite://{}", self.folder.path().join("keys.db").display());
            let pool = SqlitePool::connect(&url).await.unwrap();
            let statement = sqlx::AssertSqlSafe(statement.to_owned());
            let row = sqlx::query_scalar(statement).fetch_optional(&pool).await.unwrap();
            pool.close().await;
            row
        })
    }
}

/// A time as `lxk` prints it for machines, read by hand.
fn time(value: &Value) -> SystemTime {
    humantime::parse_rfc3339(value.as_str().unwrap()).unwrap()
}

/// What SQLite says the time was, moved by this many minutes, as an expression.
fn moved(minutes: i32) -> String {
    format!("datetime('now', '{minutes:+} minutes')")
}

#[test]
fn dates_are_shown_in_utc_and_written_in_the_zone() {
    let desk = Desk::new().with_zone(KATHMANDU);
    let id = desk.issue();
    let shown = time(&desk.object(&["show", &id])["expires_at"]);
    let lead = shown.duration_since(SystemTime::now()).unwrap();
    assert!(lead > Duration::from_secs(50 * 60) && lead <= Duration::from_secs(3600), "{lead:?}");
    // 5:45 and an hour ahead of UTC.
    let written = format!(
        "SELECT id FROM api_keys WHERE expires_at BETWEEN {} AND {}",
        moved(395),
        moved(406)
    );
    assert_eq!(desk.rows(&written), Some(id));

    desk.lxk(0, &["schema", "apply"]);
    desk.run("UPDATE api_keys SET hash_format = 'sha256'");
    let deprecate = ["migrate", "deprecate", "--revoke-at", "2999-01-01T12:00:00Z"];
    desk.run("UPDATE api_keys SET expires_at = NULL");
    assert!(desk.lxk(0, &deprecate).contains("2999-01-01 12:00Z"));
    let written = "SELECT substr(expires_at, 1, 19) FROM api_keys";
    assert_eq!(desk.rows(written).as_deref(), Some("2999-01-01 17:45:00"));
    assert!(desk.lxk(0, &["list"]).contains("2999-01-01 12:00Z"));
    desk.lxk(0, &["migrate", "deprecate", "--undo"]);
    assert_eq!(desk.rows("SELECT expires_at FROM api_keys WHERE expires_at IS NOT NULL"), None);
}

#[test]
fn what_is_expired_in_the_zone_is_marked() {
    for (zone, minutes) in [(KATHMANDU, 345), (BOGOTA, -300)] {
        let desk = Desk::new().with_zone(zone);
        desk.issue();
        for (since, marked) in [(-10, "1 key marked"), (10, "0 keys marked")] {
            desk.run(&format!(
                "UPDATE api_keys SET is_active = 1, expires_at = {}",
                moved(minutes + since)
            ));
            assert!(desk.lxk(0, &["expire"]).contains(marked), "{zone} {since}");
        }
    }
}

#[test]
fn exports_are_in_utc_and_can_be_brought_into_another_zone() {
    let desk = Desk::new().with_zone(KATHMANDU);
    desk.issue();
    let exported = desk.lxk(0, &["export"]);
    let lines = exported.rsplit_once("1 record").unwrap().0;
    std::fs::write(desk.folder.path().join("keys.jsonl"), lines).unwrap();
    let expiry = || desk.object(&["list"])["expires_at"].clone();
    let before = expiry();
    let import = || {
        let input = std::fs::File::open(desk.folder.path().join("keys.jsonl")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lxk"));
        command.arg("import").env_clear().env("DATABASE_URL", "sqlite://keys.db");
        command.env("LEXIKON_TIME_ZONE", BOGOTA).current_dir(desk.folder.path()).stdin(input);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    desk.run("DELETE FROM api_keys");
    assert!(import().contains("1 added"));
    assert!(import().contains("1 there already"), "what is there is recognised");
    let desk = desk.with_zone(BOGOTA);
    assert_eq!(desk.object(&["list"])["expires_at"], before);
}

#[test]
fn the_zone_is_kept_used_and_replaced_by_name() {
    let desk = Desk::new();
    assert!(desk.lxk(0, &["--help"]).contains("LEXIKON_TIME_ZONE"));
    assert!(desk.lxk(0, &["schema", "time-zone", "--help"]).contains("Example"));
    let zone = |desk: &Desk| desk.object(&["schema", "time-zone"])["time_zone"].clone();
    assert!(desk.lxk(0, &["schema", "time-zone"]).contains("UTC; the database keeps none"));
    assert!(desk.lxk(1, &["schema", "time-zone", KATHMANDU]).contains("lxk schema apply"));
    assert!(desk.lxk(2, &["schema", "time-zone", "Kathmandu"]).contains("such as Europe/Paris"));

    // Nobody else would know what the environment of this operator says.
    desk.lxk(0, &["schema", "apply"]);
    let desk = desk.with_zone(KATHMANDU);
    assert_eq!(zone(&desk), KATHMANDU);
    let issue = ["issue", "--owner", "user-1", "--name", "x"];
    assert!(desk.lxk(1, &issue).contains("lxk schema time-zone Asia/Kathmandu"));
    assert!(desk.lxk(0, &["schema", "show"]).contains("VALUES ('time_zone', 'Asia/Kathmandu')"));
    desk.lxk(0, &["schema", "apply"]);
    assert!(desk.lxk(0, &["schema", "apply"]).contains("All is there."));
    let desk = Desk { zone: None, ..desk };
    assert!(desk.lxk(0, &["schema", "time-zone"]).contains("Asia/Kathmandu, kept by the database"));

    let desk = desk.with_zone(BOGOTA);
    let advice = "lxk schema time-zone America/Bogota --replace Asia/Kathmandu";
    for command in [&["list"][..], &["verify"], &issue, &["migrate", "status"], &["schema", "show"]]
    {
        assert!(desk.lxk(1, command).contains(advice), "{command:?}");
    }
    let desk = Desk { zone: None, ..desk };
    assert!(desk.lxk(1, &["schema", "time-zone", BOGOTA]).contains(advice));
    assert!(desk.lxk(1, &["schema", "time-zone", BOGOTA, "--replace", "UTC"]).contains(advice));
    let replaced = desk.lxk(0, &["schema", "time-zone", BOGOTA, "--replace", KATHMANDU]);
    assert!(replaced.contains("Start every instance again"));
    assert_eq!(zone(&desk), BOGOTA);
    let unknown = desk.with_zone("Mars/Olympus").lxk(2, &["list"]);
    assert!(unknown.contains("LEXIKON_TIME_ZONE is no time zone"));
    assert!(!unknown.contains("Mars"), "it may hold a secret by mistake");
}

#[test]
fn preflight_says_that_the_zone_is_wrong_and_blames_no_clock() {
    let desk = Desk::new();
    desk.issue();
    desk.run(&format!("UPDATE api_keys SET last_used_at = {}", moved(345 - 2)));
    let said = desk.lxk(1, &["preflight"]);
    assert!(said.contains("failed    zone") && said.contains("5h 4"), "{said}");
    assert!(said.contains("UTC+05:45 or further ahead, not in UTC"), "{said}");
    assert!(said.contains("set LEXIKON_TIME_ZONE") && !said.contains("NTP"), "{said}");
    desk.lxk(0, &["schema", "apply"]);
    assert!(desk.lxk(1, &["preflight"]).contains("; lxk schema time-zone ZONE\n"));
    desk.lxk(0, &["schema", "time-zone", BOGOTA]);
    let said = desk.lxk(1, &["preflight"]);
    assert!(said.contains("UTC+05:45 or further ahead, not in America/Bogota"), "{said}");
    assert!(said.contains("lxk schema time-zone ZONE --replace America/Bogota"), "{said}");
    desk.lxk(0, &["schema", "time-zone", KATHMANDU, "--replace", BOGOTA]);
    assert!(desk.lxk(0, &["preflight"]).contains("ok        zone       Asia/Kathmandu, kept"));

    // West of Greenwich a key seems to have been used before it was made.
    let desk = Desk::new();
    desk.issue();
    desk.run(&format!("UPDATE api_keys SET last_used_at = {}", moved(-300)));
    let said = desk.lxk(1, &["preflight"]);
    assert!(
        said.contains("before it was made") && said.contains("UTC-05:00 or further behind"),
        "{said}"
    );
    let desk = desk.with_zone(BOGOTA);
    assert!(desk.lxk(0, &["preflight"]).contains("note      zone       America/Bogota"));

    // Minutes are no zone.
    let desk = Desk::new();
    desk.issue();
    desk.run(&format!("UPDATE api_keys SET last_used_at = {}", moved(7)));
    let said = desk.lxk(1, &["preflight"]);
    assert!(said.contains("failed    clock") && said.contains("NTP"), "{said}");
    assert!(said.contains("note      zone"), "{said}");
}

#[test]
fn preflight_notes_that_the_database_keeps_no_zone() {
    let desk = Desk::new();
    let noted = |remedy: &str| {
        let printed = desk.lxk(0, &["preflight"]);
        let line = printed.lines().find(|line| line.contains(" zone ")).unwrap();
        assert!(line.starts_with("note      zone       UTC; the database keeps none"), "{line}");
        assert!(line.ends_with(remedy), "{line}");
    };
    noted("lxk schema apply");
    desk.lxk(0, &["schema", "apply"]);
    noted("lxk schema time-zone UTC");
    desk.lxk(0, &["schema", "time-zone", "UTC"]);
    let kept = desk.lxk(0, &["preflight"]);
    assert!(kept.contains("ok        zone       UTC, kept by the database"), "{kept}");
    desk.run("DROP TABLE lexikon_auth_settings");
    noted("lxk schema apply");
}
