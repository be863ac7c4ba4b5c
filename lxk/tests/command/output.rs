//! The command `lxk` where nobody reads what it prints: its work and its exit code do not depend on it.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Who reads standard output and standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Here,
    /// A pipe whose reader has gone.
    Gone,
    /// Closed before the command began.
    Closed,
}

use Reader::{Closed, Gone, Here};

use crate::operator::{COMMANDS, Desk, NOBODY};

/// All but the pair that other tests have.
const UNREAD: [(Reader, Reader); 8] = [
    (Gone, Here),
    (Here, Gone),
    (Gone, Gone),
    (Closed, Here),
    (Here, Closed),
    (Closed, Closed),
    (Gone, Closed),
    (Closed, Gone),
];

/// The exit code of a command, with input, in front of these readers.
fn code(desk: &Desk, (out, err): (Reader, Reader), arguments: &[&str], input: &str) -> i32 {
    let closed = |reader, redirection| if reader == Closed { redirection } else { "" };
    let script = format!("exec \"$0\" \"$@\" {} {}", closed(out, ">&-"), closed(err, "2>&-"));
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_lxk")]).args(arguments);
    command.env_clear().envs(&desk.variables);
    let file = desk.folder.path().join("input");
    std::fs::write(&file, input).unwrap();
    command.stdin(std::fs::File::open(file).unwrap());
    let stream = |reader| match reader {
        Gone => Stdio::from(std::io::pipe().unwrap().1),
        Here | Closed => Stdio::piped(),
    };
    let output = command.stdout(stream(out)).stderr(stream(err)).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    output.status.code().unwrap_or_else(|| panic!("{arguments:?} in front of {out:?}, {err:?}"))
}

/// As many legacy keys of one owner, used just now.
fn add_keys(desk: &Desk, count: u32) -> Vec<String> {
    let rows = format!(
        "INSERT OR IGNORE INTO users (id, is_active) VALUES ('user-1', 1); \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
         INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at, \
         last_used_at, hash_format) SELECT printf('key-%036d', i), 'user-1', printf('%064x', i), 'x', \
         'read', 1, '2026-01-01 00:00:00', datetime('now'), 'sha256' FROM n"
    );
    desk.run_sql(&rows);
    (1..=count).map(|number| format!("key-{number:036}")).collect()
}

#[test]
fn work_is_finished_whatever_becomes_of_the_output() {
    const KEYS: u32 = 400;
    let desk = Desk::new();
    let ids = add_keys(&desk, KEYS);
    let revoke: Vec<_> = ["revoke"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    let revoked = || {
        let keys = desk.lxk(&["--json", "list"]).ends_with(0).objects();
        keys.iter().filter(|key| key["state"] == "revoked").count()
    };
    for readers in UNREAD {
        assert_eq!(code(&desk, readers, &revoke, ""), 0, "{readers:?}");
        assert_eq!(revoked(), KEYS as usize, "{readers:?}");
        desk.run_sql("UPDATE api_keys SET is_active = 1");
    }
    // A full disk is no reader who had enough.
    let mut command = desk.command(&revoke);
    command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(command.stderr(Stdio::null()).status().unwrap().code(), Some(3));
    assert_eq!(revoked(), KEYS as usize);
}

#[test]
fn the_exit_code_is_that_of_the_work() {
    for readers in UNREAD {
        let desk = Desk::new();
        add_keys(&desk, 400);
        let ends = |arguments: &[&str], input: &str, expected: i32| {
            let code = code(&desk, readers, arguments, input);
            assert_eq!(code, expected, "{arguments:?} in front of {readers:?}");
        };
        ends(&["migrate", "revoke"], "", 1);
        ends(&["--json", "migrate", "revoke"], "", 1);
        ends(&["migrate", "rollback-check", "--to", "v1.0"], "", 1);
        ends(&["--json", "migrate", "rollback-check", "--to", "v1.0"], "", 1);
        ends(&["verify"], &"no key\n".repeat(400), 1);
        ends(&["show", NOBODY], "", 1);
        ends(&["no-such-command"], "", 2);
        ends(&["--help"], "", 0);
        ends(&["list"], "", 0);
        ends(&["export"], "", 0);
        ends(&["migrate", "deprecate", "--revoke-in", "7d"], "", 0);
        ends(&["migrate", "deprecate", "--undo"], "", 0);
        ends(&["migrate", "revoke", "--force"], "", 0);
    }
}

#[test]
fn a_key_that_nobody_reads_is_revoked() {
    for readers in UNREAD.into_iter().filter(|(out, _)| *out != Here) {
        let desk = Desk::new();
        let (id, key) = desk.issue("user-1", "deploy");
        let issue = ["issue", "--owner", "user-1", "--name", "lost"];
        assert_eq!(code(&desk, readers, &issue, ""), 3, "{readers:?}");
        assert_eq!(code(&desk, readers, &["rotate", &id], ""), 3, "{readers:?}");
        let keys = desk.lxk(&["--json", "list"]).objects();
        let revoked = keys.iter().filter(|key| key["state"] == "revoked").count();
        assert_eq!((keys.len(), revoked), (3, 2), "{readers:?}");
        desk.reading(&["verify"], key.as_bytes()).ends_with(0);
    }
}

#[test]
fn every_command_ends_as_it_does_in_front_of_a_reader() {
    let codes = |readers| {
        let desk = Desk::new();
        add_keys(&desk, 300);
        // A key that nobody reads is another matter.
        let commands = COMMANDS.iter().filter(|command| command[0] != "issue");
        let others: [&[&str]; 4] =
            [&["preflight"], &["secret", "generate"], &["manual"], &["completions", "zsh"]];
        let all = commands.chain(&others);
        all.map(|command| (*command, code(&desk, readers, command, ""))).collect::<Vec<_>>()
    };
    let read = codes((Here, Here));
    for readers in UNREAD {
        assert_eq!(codes(readers), read, "{readers:?}");
    }
}

fn send_term(child: &Child) {
    let kill = Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status();
    assert!(kill.unwrap().success());
}

#[track_caller]
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing comes of it");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_reader_that_stalls_holds_up_no_revocation_and_no_signal() {
    let desk = Desk::new();
    // More than a pipe holds.
    let ids = add_keys(&desk, 200).into_iter().map(|id| id.repeat(25)).collect::<Vec<_>>();
    desk.run_sql(&format!("UPDATE api_keys SET id = {}", ["id"; 25].join(" || ")));
    let revoke: Vec<_> = ["revoke"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    let mut command = desk.command(&revoke);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let revoked = || {
        let keys = desk.lxk(&["--json", "list"]).ends_with(0).objects();
        keys.iter().filter(|key| key["state"] == "revoked").count()
    };
    wait_until(|| revoked() == ids.len());
    // It takes a moment until it prints; from then on, one signal is enough.
    wait_until(|| {
        send_term(&child);
        child.try_wait().unwrap().is_some()
    });
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_signal_loses_no_new_key() {
    let desk = Desk::new();
    let (old, _) = desk.issue("user-1", "old");
    let count = || desk.lxk(&["--json", "list"]).ends_with(0).objects().len();
    for command in [&["issue", "--owner", "user-1", "--name", "x"][..], &["rotate", &old]] {
        let before = count();
        // As much as a pipe holds: the reader has to make room first.
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&[b'\n'; 1 << 16]).unwrap();
        let child = desk.command(command).stdout(writer).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        wait_until(|| count() > before);
        send_term(&child);
        let mut err = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut err).unwrap();
        assert!(err.contains("finished first"), "{command:?}: {err:?}");
        let mut out = String::new();
        reader.read_to_string(&mut out).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(143), "{command:?}");
        let key = out.lines().find_map(|line| line.strip_prefix("key      ")).unwrap();
        desk.reading(&["verify"], key.as_bytes()).ends_with(0);
        stderr.read_line(&mut err).unwrap();
        assert!(err.contains("interrupted after the key was"), "{command:?}: {err:?}");
    }
}
