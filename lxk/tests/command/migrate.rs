//! The steps of a migration: what each refuses. The whole of it is gone through in rollout.rs.

use lexikon_auth_tests::data;
use serde_json::Value;

use crate::operator::Desk;

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
