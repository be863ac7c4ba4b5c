//! Replays the corpus without a fuzzer, so that every ordinary test run holds what fuzzing found.

use lexikon_auth_fuzz as targets;

fn replay(name: &str, target: fn(&[u8])) {
    let folder = format!("{}/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for file in std::fs::read_dir(folder).expect("a folder of seeds") {
        let path = file.expect("an entry").path();
        println!("{}", path.display());
        target(&std::fs::read(path).expect("a seed"));
        count += 1;
    }
    assert!(count > 0, "no seeds for {name}");
}

#[test]
fn key() {
    replay("key", targets::key);
}

#[test]
fn verify() {
    replay("verify", targets::verify);
}

#[test]
fn secret() {
    replay("secret", targets::secret);
}

#[test]
fn scopes() {
    replay("scopes", targets::scopes);
}

#[test]
fn stored_hash() {
    replay("stored_hash", targets::stored_hash);
}

#[test]
fn sqlite_row() {
    replay("sqlite_row", targets::sqlite_row);
}

#[test]
fn redis_entry() {
    replay("redis_entry", targets::redis_entry);
}

#[test]
fn http_headers() {
    replay("http_headers", targets::http_headers);
}
