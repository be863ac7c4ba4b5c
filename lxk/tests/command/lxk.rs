//! The command `lxk`: what each command answers, and above all what it refuses. The steps of a migration
//! are played in programme.rs, and what is printed in runbook.rs.

use std::io::{Read, Write};
use std::process::Stdio;

use lexikon_auth::Verifier;
use lexikon_auth::store::{RedisStore, SqliteStore};
use lexikon_auth_tests::{
    SECRETS, UNTAGGED, assert_reveals_nothing, data, one_secret, postgres,
    redis_server::{self, RedisServer},
    ring,
};
use serde_json::Value;

use crate::operator::{COMMANDS, Desk, NOBODY};

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
    let page = include_str!("../../../docs/lxk.md");
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
    let spare = ring(&SECRETS[1..2]).current().fingerprint().to_string();
    let extra = desk.with("API_KEY_SECRET_PREVIOUS", SECRETS[1]);
    extra.lxk(&["secret", "rotate", "add"]).ends_with(0);
    let desk = extra.without("API_KEY_SECRET_PREVIOUS");
    for command in [
        "secret check",
        "secret rotate add",
        "secret rotate status",
        "secret rotate switch --dry-run",
        "secret rotate switch",
        "secret rotate status",
        "secret rotate remove FINGERPRINT",
        "list",
        "expire --dry-run",
        "expire",
        "migrate status",
        "migrate policy",
        "migrate policy shadow --dry-run",
        "migrate policy shadow",
        "migrate owners",
        "migrate deprecate --revoke-in 7d",
        "migrate deprecate --undo",
        "migrate rollback-check --to v1.0",
        "migrate revoke --force",
        "preflight",
        "cache stats",
        "cache clear --all",
        "schema show",
        "schema apply",
        "schema time-zone",
        "completions bash",
        "manual",
    ] {
        let typed = command.replace("FINGERPRINT", &format!("{spare} --force"));
        let arguments: Vec<_> = ["--json"].into_iter().chain(typed.split(' ')).collect();
        let objects = desk.lxk(&arguments).objects();
        assert!(!objects.is_empty(), "{command} answers nothing");
        for object in objects {
            documented(command, &object);
        }
    }
    let folder = desk.folder.path().to_str().unwrap();
    let made = desk.lxk(&["--json", "manual", "--folder", folder]).object();
    documented("manual --folder PATH", &made);
    let checked = desk.lxk(&["--json", "rotate", second, "--dry-run"]).object();
    documented("rotate ID --dry-run", &checked);
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
fn scopes_are_written_without_the_spaces_around_them_and_refused_with_one_inside() {
    let desk = Desk::new();
    let issue = |scopes| {
        desk.lxk(&["--json", "issue", "--owner", "user-1", "--name", "x", "--scopes", scopes])
    };
    let issued = issue(" read, write ").object();
    assert_eq!(issued["scopes"], serde_json::json!(["read", "write"]));
    issue("read write").fails(2, "separate names by commas");
    assert_eq!(desk.lxk(&["--json", "list", "--owner", "user-1"]).objects().len(), 1);
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
    // A line that is longer than any key, also one that begins like a key, is one that is refused.
    let long = [b"x".repeat(100_000), [key.as_bytes(), &b" ".repeat(5000)].concat()];
    let input = [&long[0], &b"\n"[..], &long[1], b"\n", key.as_bytes(), b"\n", &long[0]].concat();
    let answer = desk.reading(&["verify"], &input).fails(1, "3 keys refused");
    let reasons: Vec<_> = answer.objects().iter().map(|line| line["reason"].clone()).collect();
    assert_eq!(reasons, ["malformed".into(), "malformed".into(), Value::Null, "malformed".into()]);
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
    desk.run_sql(&used);
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
    desk.issue("user-1", "semicolon;=HYPERLINK(2)");
    // A C1 control, one that turns the direction of what follows, and a separator of lines.
    let unseen = "\u{9b}31m\u{202e}evil\u{2028}";
    desk.issue("user-1", unseen);
    desk.run_sql("UPDATE api_keys SET hash_format = 'sha256'");
    let csv = desk.lxk(&["migrate", "owners", "--csv"]).ends_with(0);
    let csv = csv.prints("'=HYPERLINK(1)").prints("semicolon;'=HYPERLINK(2)").out;
    let listed = desk.lxk(&["list"]).ends_with(0).out;
    let objects = desk.lxk(&["--json", "list"]).ends_with(0);
    assert!(objects.objects().iter().any(|key| key["name"] == unseen), "the same to a parser");
    for text in [csv, listed, objects.out, desk.exported()] {
        for character in unseen.chars().filter(|character| !character.is_ascii()) {
            assert!(!text.contains(character), "{character:?} in {text:?}");
        }
    }
    let other = Desk::new();
    other.reading(&["import"], desk.exported().as_bytes()).ends_with(0);
    assert_eq!(other.exported(), desk.exported());
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

    third.run_sql("UPDATE api_keys SET scopes = 'admin'");
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
    desk.run_sql(&rows);
    let exported = desk.exported();

    let other = Desk::new();
    let mut command = other.command(&["import"]);
    let mut killed = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // It waits for the rest when it is killed.
    let half = &exported.as_bytes()[..exported.len() / 2];
    killed.stdin.as_mut().unwrap().write_all(half).unwrap();
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
    desk.run_sql(sql);
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
    std::fs::write(desk.path(), data::SQLITE).unwrap();
    for arguments in [
        &["migrate", "policy", "refuse"][..],
        &["migrate", "deprecate", "--revoke-in", "7d"],
        &["migrate", "deprecate", "--undo"],
        &["secret", "rotate", "add"],
    ] {
        desk.lxk(arguments).fails(1, "lxk schema apply");
    }
    desk.lxk(&["schema", "show"]).ends_with(0).prints("ADD COLUMN hash_format").prints("22 to run");
    desk.lxk(&["schema", "apply"]).ends_with(0).prints("22 applied");
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
    desk.run_sql("UPDATE api_keys SET hash_format = 'sha256'");
    desk.lxk(&["migrate", "deprecate", "--revoke-in", "7d"]).ends_with(0).prints("2 legacy keys");
    let successor = |id: &str| desk.lxk(&["--json", "rotate", id, "--overlap", "1d"]).object();
    assert_eq!(successor(&forever)["expires_at"], Value::Null);
    assert_eq!(successor(limited["id"].as_str().unwrap())["expires_at"], limited["expires_at"]);
    // A dry run counts what the undoing would do: not those that have another expiry by now.
    let undo = ["--json", "migrate", "deprecate", "--undo"];
    assert_eq!(desk.lxk(&[&undo[..], &["--dry-run"]].concat()).object()["restored"], 0);
    // By now the old ones have an expiry of their own.
    let again = successor(&forever)["expires_at"].as_str().unwrap().to_owned();
    assert_eq!(desk.lxk(&["--json", "show", &forever]).object()["expires_at"], *again);
}

#[test]
fn what_owners_were_promised_is_kept() {
    let desk = Desk::new();
    desk.issue("user-1", "deploy");
    desk.run_sql("UPDATE api_keys SET hash_format = 'sha256'");
    let migrate = |arguments: &[&str]| desk.lxk(&[&["migrate"], arguments].concat());
    migrate(&["deprecate", "--revoke-at", "2999-01-01"]).ends_with(0).prints("2999-01-01 00:00Z");
    migrate(&["deprecate", "--revoke-at", "2020-01-01"]).fails(2, "has passed");
    migrate(&["revoke"]).fails(1, "owners were given time until 2999-01-01");
    migrate(&["revoke", "--before", "2999-01-01"]).fails(2, "in the future");
    desk.issue("user-1", "another");
    desk.run_sql("UPDATE api_keys SET hash_format = 'sha256'");
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
        // That a secret is not shown is asserted of every answer.
        desk.lxk(&[command, SECRETS[1]]).fails(1, "no key has the id [not shown]");
        desk.lxk(&[command, NOBODY]).fails(1, NOBODY);
    }
}

#[test]
fn what_is_typed_in_the_wrong_place_is_not_shown_again() {
    let desk = Desk::new();
    for hidden in [UNTAGGED, SECRETS[1]] {
        let (option, value) = (format!("--{hidden}"), format!("--json={hidden}"));
        for arguments in [
            &["verify", hidden][..],
            &[hidden],
            &["help", hidden],
            &["list", hidden],
            &["list", "--format", hidden],
            &["list", "--unused-since", hidden],
            &["list", &option],
            &[&option],
            &[&value, "list"],
            &["secret", hidden],
            &["secret", "rotate", hidden],
            &["secret", "rotate", "remove", SECRETS[0], hidden],
            &["secret", "rotate", "status", "--before", hidden],
            &["migrate", "policy", hidden],
            &["migrate", "policy", "accept-until", hidden],
            &["completions", hidden],
            &["expire", "--", hidden],
        ] {
            let answer = desk.lxk(arguments).ends_with(2);
            assert_reveals_nothing(&(answer.out + &answer.err), hidden);
        }
        let removed = desk.lxk(&["secret", "rotate", "remove", hidden]).fails(1, "does not know");
        assert_reveals_nothing(&removed.err, hidden);
    }
    // What the command knows itself is said.
    desk.lxk(&["list", "--formt", "sha256"]).fails(2, "'--format'");
    desk.lxk(&["lsit"]).fails(2, "'list'");
    desk.lxk(&["list", "--format", "md5"]).fails(2, "hmac-sha256");
    desk.lxk(&["migrate", "policy", "accept-until", "soon"]).fails(2, "write it as 2026-12-01");
}

#[cfg(unix)]
#[test]
fn a_new_database_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::without_database();
    let modes = || {
        let files = std::fs::read_dir(desk.folder.path()).unwrap().map(Result::unwrap);
        let mode = |file: std::fs::DirEntry| {
            (file.file_name().into_string().unwrap(), file.metadata().unwrap().permissions().mode())
        };
        files.map(mode).map(|(name, mode)| (name, mode & 0o777)).collect::<Vec<_>>()
    };
    // Under the umask that most have.
    let mut create = std::process::Command::new("sh");
    create.args(["-c", "umask 022; exec \"$0\" schema apply --create"]);
    create.arg(env!("CARGO_BIN_EXE_lxk")).env_clear().envs(&desk.variables);
    assert!(create.output().unwrap().status.success());
    let is_private = || modes().iter().all(|(_, mode)| *mode == 0o600);
    assert!(is_private(), "{:?}", modes());
    // The files beside it, while somebody works on it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(desk.path()).await.unwrap();
        store.set_owner_active(&"user-1".into(), true).await.unwrap();
        assert!(modes().len() == 3 && is_private(), "{:?}", modes());
        store.close().await;
        // One that is there keeps its mode.
        std::fs::set_permissions(desk.path(), PermissionsExt::from_mode(0o660)).unwrap();
        SqliteStore::open_or_create(desk.path()).await.unwrap().close().await;
    });
    desk.lxk(&["schema", "apply", "--create"]).ends_with(0);
    assert!(modes().contains(&("keys.db".to_owned(), 0o660)), "{:?}", modes());
}

#[cfg(unix)]
#[test]
fn no_database_comes_to_be_that_everybody_may_read() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let mode = |desk: &Desk| std::fs::metadata(desk.path()).unwrap().permissions().mode() & 0o777;
    let create = ["schema", "apply", "--create"];

    let desk = Desk::without_database();
    symlink(desk.folder.path().join("elsewhere.db"), desk.path()).unwrap();
    desk.lxk(&create).ends_with(0);
    assert_eq!(mode(&desk), 0o600, "where a link leads to");

    for (before, after) in [(0o644, 0o600), (0o664, 0o600), (0o660, 0o660)] {
        let desk = Desk::without_database();
        std::fs::write(desk.path(), "").unwrap();
        std::fs::set_permissions(desk.path(), PermissionsExt::from_mode(before)).unwrap();
        desk.lxk(&create).ends_with(0);
        assert_eq!(mode(&desk), after, "{before:o}");
    }

    let desk = Desk::without_database();
    let url = desk.variables["DATABASE_URL"].clone() + "?mode=rwc";
    let desk = desk.with("DATABASE_URL", url);
    desk.lxk(&["list"]).fails(3, "lxk schema apply --create");
    assert!(!desk.path().exists());
    desk.lxk(&create).ends_with(0);
    assert_eq!(mode(&desk), 0o600);
}

#[test]
fn preflight_finds_what_is_wrong() {
    let desk = Desk::new();
    desk.lxk(&["preflight"]).ends_with(0).prints("issued, verified, revoked, rolled back");
    assert_eq!(desk.exported().lines().count(), 1, "nothing is left");
    desk.run_sql("DROP INDEX ix_api_keys_key_hash");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("CREATE UNIQUE INDEX");
    let lines = desk.lxk(&["--json", "preflight"]).objects();
    assert!(lines.iter().any(|line| line["check"] == "index" && line["result"] == "failed"));

    let desk = Desk::new();
    desk.run_sql("DROP TRIGGER lexikon_auth_key_deleted");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("caches hear of nothing");
    desk.lxk(&["schema", "apply"]).ends_with(0);
    desk.lxk(&["preflight"]).ends_with(0);

    let desk = Desk::new();
    desk.issue("user-1", "deploy");
    desk.run_sql("UPDATE api_keys SET created_at = '2999-01-01 00:00:00'");
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
        desk.run_sql(&statement);
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
    config("maxmemory-policy", "volatile-lru");
    desk.lxk(&["preflight"]).ends_with(0);
    let mut connection = server.client().get_connection().unwrap();
    let marker = lexikon_auth::store::RedisOptions::default().bulk_change_marker();
    let () = redis::cmd("SET").arg(&marker).arg("left behind").query(&mut connection).unwrap();
    desk.lxk(&["preflight"]).ends_with(0).prints("bypassed");
    desk.lxk(&["cache", "stats"]).ends_with(0).prints("bypassed");
    desk.lxk(&["cache", "clear", "--all"]).ends_with(0);
    assert!(!redis::cmd("EXISTS").arg(&marker).query::<bool>(&mut connection).unwrap());
    let () = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query(&mut connection).unwrap();
    desk.lxk(&["preflight"]).fails(1, "check failed").prints("name its master");
    let () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query(&mut connection).unwrap();

    // What Redis holds is forgotten with a change, by one key and by many.
    assert!(is_accepted());
    let deprecate = ["migrate", "deprecate", "--revoke-in", "1s"];
    desk.run_sql("UPDATE api_keys SET hash_format = 'sha256'");
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
    desk.lxk(&["expire"]).ends_with(0).prints("0 keys marked");
    desk.run_sql("UPDATE api_keys SET is_active = 1, expires_at = '2001-01-01 00:00:00'");
    desk.lxk(&["expire"]).fails(3, "REDIS_URL");
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
