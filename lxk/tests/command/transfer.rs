//! Export and import.

use std::io::Write;
use std::process::Stdio;

use crate::operator::Desk;

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
