//! What holds for every command: its fields for programs, its dry run, its help.

use lexikon_auth_tests::redis_server::RedisServer;
use lexikon_auth_tests::{SECRETS, ring};
use serde_json::Value;

use crate::operator::Desk;

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
