//! What pages and tables say of features, versions and files is so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// Returns every second part of a text, from the one after the first mark on.
fn between(text: &str, mark: char) -> BTreeSet<String> {
    text.split(mark).skip(1).step_by(2).map(String::from).collect()
}

/// Returns what a file shows between the first of two texts and the next of the other.
fn section<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split(from).nth(1).and_then(|rest| rest.split(to).next()).unwrap()
}

#[test]
fn the_table_of_features_is_that_of_the_manifest() {
    let manifest = read("Cargo.toml");
    let mut expected: BTreeMap<_, _> = section(&manifest, "\n[features]\n", "\n[")
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, enabled)| (name.to_owned(), between(enabled, '"')))
        .collect();
    assert_eq!(expected.remove("default"), Some(BTreeSet::new()));
    let names: BTreeSet<_> = expected.keys().cloned().collect();
    expected.values_mut().for_each(|enabled| enabled.retain(|name| names.contains(name)));

    let docs = read("src/lib.rs");
    let rows = section(&docs, "//! | none |", "//!\n").lines().skip(1);
    let shown: BTreeMap<_, _> = rows
        .flat_map(|row| {
            let implied = row.split_once("implies ").map_or("", |(_, implied)| implied);
            let features = row.split('|').nth(1).unwrap();
            between(features, '`').into_iter().map(|name| (name, between(implied, '`')))
        })
        .collect();
    assert_eq!(shown, expected);
}

#[test]
fn readme_says_which_rust_the_manifests_ask_for() {
    let rust = |from| {
        let manifest = read("Cargo.toml");
        section(section(&manifest, from, "\n\n"), "rust-version = \"", "\"").to_owned()
    };
    let (library, with_sqlx) = (rust("\n[package]\n"), rust("\n[workspace.package]\n"));
    let expected = format!("It needs Rust {library}, with SQLite or PostgreSQL {with_sqlx}");
    assert!(read("README.md").contains(&expected), "README.md does not say: {expected}");
}

#[test]
fn no_link_of_a_page_leads_nowhere() {
    let mut pages: Vec<String> =
        ["", "benches/", "examples/", "lxk/"].map(|folder| format!("{folder}README.md")).into();
    pages.extend(["CHANGELOG", "CONTRIBUTING", "SECURITY"].map(|page| format!("{page}.md")));
    let docs = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    pages.extend(docs.map(|page| format!("docs/{}", page.unwrap().file_name().display())));

    let mut links = 0;
    for page in &pages {
        let text = read(page);
        let targets = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for target in targets.filter(|target| !target.starts_with("https://")) {
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let page_path = Path::new(ROOT).join(page);
            let path = if file.is_empty() { page_path } else { page_path.with_file_name(file) };
            assert!(path.exists(), "{page} links to {target}");
            let found =
                anchor.is_empty() || anchors(&fs::read_to_string(&path).unwrap()).contains(anchor);
            assert!(found, "{page} links to {target}");
        }
    }
    assert!(links > 20, "{links}");
}

/// Returns the names that links can give to headings, as GitHub and crates.io make them.
fn anchors(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter(|line| line.starts_with('#'))
        .map(|heading| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            heading.chars().filter(|char| char.is_alphanumeric() || "-_".contains(*char)).collect()
        })
        .collect()
}
