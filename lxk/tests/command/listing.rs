//! Lists of keys: what they hold, what names in them can do, and who reads them.

use std::io::Read;
use std::process::Stdio;

use crate::operator::Desk;

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
