//! The tests that docs/caching.md names for its promises are there.

use std::fs;
use std::path::Path;

#[test]
fn every_promise_of_the_page_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/caching.md")).unwrap();
    let mut code = String::new();
    for folder in ["src", "tests/library", "tests/subscriber", "lxk/tests"] {
        add_code(&root.join(folder), &mut code);
    }
    // Names of tests are sentences: three underscores at least, and small letters alone.
    let names: Vec<_> = page
        .split('`')
        .filter(|word| word.matches('_').count() >= 3)
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        .collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(code.contains(&format!("fn {name}(")), "there is no test {name}");
    }
    let rows = page.lines().skip_while(|line| !line.starts_with("| who made the change"));
    for row in rows.skip(2).take_while(|line| line.starts_with('|')) {
        let tests = row.rsplit('|').nth(1).unwrap_or_default();
        assert!(tests.contains('`'), "no test is named for: {row}");
    }
}

/// Adds all Rust code in a folder and in the folders inside it.
fn add_code(folder: &Path, code: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_code(&path, code);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *code += &fs::read_to_string(path).unwrap();
        }
    }
}
