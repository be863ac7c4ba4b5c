//! The command `lxk` where a key or a secret was typed in a place that is not for it: nothing of it is
//! printed back.

use lexikon_auth_tests::{SECRETS, UNTAGGED, assert_reveals_nothing, data};

use crate::operator::{Answer, Desk, NOBODY};

/// What else has to be there for a command to begin: options, and what stands alone.
const NEEDED: [(&str, &str, &str); 11] = [
    ("secret rotate remove", "", "0123456789abcdef"),
    ("issue", "--owner=user-1 --name=x", ""),
    ("show", "", NOBODY),
    ("revoke", "", NOBODY),
    ("rotate", "", NOBODY),
    ("schema time-zone", "", "UTC"),
    ("migrate policy", "", "accept"),
    ("migrate deprecate", "--revoke-in=7d", ""),
    ("migrate rollback-check", "--to=v0.9", ""),
    ("cache clear", "--owner=user-1", ""),
    ("completions", "", "bash"),
];

/// Adds every place of a command and of those below it where something may be typed: the path of the
/// command, and the option, or `None` where the value stands alone.
fn add_places(desk: &Desk, path: &str, places: &mut Vec<(String, Option<String>)>) {
    let words: Vec<_> = path.split_whitespace().chain(["--help"]).collect();
    let help = desk.lxk(&words).ends_with(0).out;
    let mut section = "";
    for line in help.lines() {
        let word = line.split_whitespace().next().unwrap_or_default();
        match section {
            _ if line.is_empty() => {}
            _ if !line.starts_with(' ') => section = line,
            "Commands:" if word != "help" => add_places(desk, &format!("{path} {word}"), places),
            "Arguments:" if word.starts_with(['<', '[']) && line.starts_with("  ") => {
                places.push((path.to_owned(), None));
            }
            "Options:" if word.starts_with("--") && line.contains('<') => {
                places.push((path.to_owned(), Some(word.to_owned())));
            }
            _ => {}
        }
    }
}

#[test]
fn what_is_typed_in_a_wrong_place_is_not_shown_again() {
    let desk = Desk::new();
    let (_, key) = desk.issue("user-1", "deploy");
    let service = Desk::without_database();
    std::fs::write(service.path(), data::SQLITE).unwrap();
    let mut places = vec![(String::new(), None), ("help".to_owned(), None)];
    add_places(&desk, "", &mut places);
    for known in ["issue --scopes", "schema time-zone --replace", "completions"] {
        let names = |(path, option): &(String, Option<String>)| {
            format!("{path} {}", option.as_deref().unwrap_or_default()).trim() == known
        };
        assert!(places.iter().any(names), "{known} is not in the help");
    }
    // A name that is there to be shown.
    places.retain(|(_, option)| option.as_deref() != Some("--by"));
    for (path, option) in &places {
        // What was issued with it is listed with it.
        desk.run_sql("DELETE FROM api_keys");
        let needed = NEEDED.iter().find(|(command, ..)| *command == path.trim());
        let (_, options, alone) = needed.copied().unwrap_or_default();
        for canary in [SECRETS[1], &key] {
            let mut words: Vec<_> = path.split_whitespace().collect();
            let others = options
                .split_whitespace()
                .filter(|other| option.as_deref().is_none_or(|option| !other.starts_with(option)));
            words.extend(others);
            match option {
                Some(option) => {
                    words.extend([option, canary]);
                    words.extend(alone.split_whitespace());
                }
                None => words.push(canary),
            }
            for desk in [&desk, &service] {
                let mut command = desk.command(&words);
                let Answer { out, err, .. } = Answer::of({
                    command.current_dir(desk.folder.path());
                    command
                });
                assert_reveals_nothing(&(out + &err), canary);
            }
        }
    }
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
