//! The transcripts of docs/http.md: every command is run by a shell, with curl, and prints what the page
//! says. `UPDATE_TRANSCRIPTS=1` writes the page anew.

use std::path::Path;
use std::process::Command;

use crate::service::Service;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/http.md");

/// Headers that every server has, or that change with each answer.
const LEFT_OUT: [&str; 3] = ["date:", "content-length:", "vary:"];

#[test]
fn the_page_shows_what_is_printed() {
    let service = Service::start(&[("TRUSTED_PROXIES", "127.0.0.0/8")]);
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell { folder: folder.path(), url: service.url.clone(), id: String::new() };
    shell.keep("admin", &service.first_key());
    let page = std::fs::read_to_string(PAGE).unwrap();
    let mut printed = String::new();
    let mut in_transcript = false;
    for line in page.lines() {
        in_transcript = line == "```console" || (in_transcript && line != "```");
        let command = line.strip_prefix("$ ");
        if !in_transcript || line == "```console" {
            printed += &format!("{line}\n");
        } else if let Some(command) = command {
            printed += &format!("$ {command}\n{}\n", shell.run(command));
        }
    }
    if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
        std::fs::write(PAGE, &printed).unwrap();
    }
    assert_eq!(page, printed, "docs/http.md does not show what is printed");
}

struct Shell<'a> {
    folder: &'a Path,
    url: String,
    /// Of the first key that was made.
    id: String,
}

impl Shell<'_> {
    fn keep(&self, name: &str, key: &str) {
        let file = self.folder.join(format!("{name}.header"));
        std::fs::write(file, format!("X-API-Key: {key}\n")).unwrap();
    }

    /// What a command prints, in the form of the page.
    fn run(&mut self, command: &str) -> String {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(self.folder);
        let output = shell.env("URL", &self.url).env("ID", &self.id).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?} (tests/run installs curl)");
        let text = String::from_utf8(output.stdout).unwrap();
        let answer = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
        if let Some(key) = answer["data"]["key"].as_str() {
            let name = answer["data"]["name"].as_str().unwrap();
            self.keep(if name == "deploy" { "reader" } else { "writer" }, key);
            if self.id.is_empty() {
                self.id = answer["data"]["id"].as_str().unwrap().to_owned();
            }
        }
        let lines = text.lines().map(str::trim_end);
        let kept = lines.filter(|line| !LEFT_OUT.iter().any(|name| line.starts_with(name)));
        kept.map(comparable).collect::<Vec<_>>().join("\n")
    }
}

/// A line without what is new each time.
fn comparable(line: &str) -> String {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "_-:.".contains(character);
    let words = line.split_inclusive(|character| !is_part(character)).flat_map(|word| {
        let (word, end) = word.split_at(word.trim_end_matches(|end| !is_part(end)).len());
        [replaced(word), end]
    });
    ["until=@", "retry-after: ", ";t="].iter().fold(words.collect(), |line: String, before| {
        let Some((start, rest)) = line.split_once(before) else { return line };
        let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
        format!("{start}{before}<seconds>{rest}")
    })
}

fn replaced(word: &str) -> &str {
    let is_id = word.len() == 36 && word.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let is_time = word.len() > 19 && word.as_bytes()[10] == b'T' && word.ends_with('Z');
    match word {
        key if key.starts_with("lxk_") => "lxk_...",
        _ if is_id => "<id>",
        _ if is_time => "<time>",
        _ => word,
    }
}
