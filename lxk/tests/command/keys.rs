//! The commands about single keys.

use std::process::Stdio;

use lexikon_auth_tests::{UNTAGGED, assert_reveals_nothing};
use serde_json::Value;

use crate::operator::{Desk, NOBODY};

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
