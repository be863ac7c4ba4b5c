//! The commands about the server secret, and what others refuse without the right one.

use lexikon_auth_tests::{SECRETS, ring};

use crate::operator::{Desk, NOBODY};

#[test]
fn a_secret_is_made_and_checked() {
    let desk = Desk::without_database().without("DATABASE_URL");
    let made = desk.lxk(&["secret", "generate"]).ends_with(0);
    let desk = desk.with("API_KEY_SECRET", made.out.trim_end());
    let fingerprint = made.err.trim_end().strip_prefix("fingerprint ").unwrap().to_owned();
    desk.lxk(&["secret", "check"]).ends_with(0).prints(&fingerprint);
}

#[test]
fn a_secret_that_is_missing_weak_or_wrong_is_refused() {
    let issue = ["issue", "--owner", "user-1", "--name", "x"];
    let desk = Desk::new();
    desk.issue("user-1", "deploy");
    let desk = desk.without("API_KEY_SECRET");
    for arguments in [&issue[..], &["verify"], &["rotate", NOBODY], &["secret", "check"]] {
        desk.lxk(arguments).fails(2, "API_KEY_SECRET is not set");
    }
    desk.lxk(&["list"]).ends_with(0).prints("deploy");

    let desk = desk.with("API_KEY_SECRET", "changeme");
    desk.lxk(&["secret", "check"]).fails(2, "placeholder");
    let desk = desk.with("API_KEY_SECRET", SECRETS[1]);
    for arguments in [&issue[..], &["secret", "check"]] {
        desk.lxk(arguments).fails(1, "lxk secret rotate add");
    }
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("not known to the database");
    assert_eq!(desk.exported().lines().count(), 2, "nothing was issued");
}

#[test]
fn a_secret_that_keys_need_is_not_dropped() {
    let desk = Desk::new();
    let (id, key) = desk.issue("user-1", "deploy");
    let old = ring(&SECRETS[..1]).current().fingerprint().to_string();
    let rotate =
        |desk: &Desk, arguments: &[&str]| desk.lxk(&[&["secret", "rotate"], arguments].concat());
    rotate(&desk, &["remove", &old]).fails(1, "current secret");
    rotate(&desk, &["remove", "0123456789abcdef"]).fails(1, "does not know");

    let desk = desk.with("API_KEY_SECRET", SECRETS[1]).with("API_KEY_SECRET_PREVIOUS", SECRETS[0]);
    rotate(&desk, &["switch"]).fails(1, "lxk secret rotate add");
    rotate(&desk, &["add"]).ends_with(0).prints("known already").prints("added");
    rotate(&desk, &["remove", &old]).fails(1, "lxk secret rotate switch");
    rotate(&desk, &["switch"]).ends_with(0);
    rotate(&desk, &["status"]).ends_with(0).prints("1 key may need an older secret");
    rotate(&desk, &["remove", &old]).fails(1, "may still need it").prints(&id);
    desk.reading(&["verify"], key.as_bytes()).ends_with(0);

    let successor = desk.lxk(&["--json", "rotate", &id]).ends_with(0).object();
    rotate(&desk, &["remove", &old, "--dry-run"]).ends_with(0).prints("could be removed");
    rotate(&desk, &["remove", &old]).ends_with(0).prints("removed");
    let desk = desk.without("API_KEY_SECRET_PREVIOUS");
    desk.lxk(&["secret", "check"]).ends_with(0);
    desk.reading(&["verify"], successor["key"].as_str().unwrap().as_bytes()).ends_with(0);
    let desk = desk.with("API_KEY_SECRET", SECRETS[0]);
    desk.lxk(&["secret", "check"]).fails(1, "does not know");
}

#[test]
fn a_secret_that_the_environment_lacks_is_missed() {
    let desk = Desk::new();
    desk.issue("user-1", "deploy");
    let desk = desk.with("API_KEY_SECRET_PREVIOUS", SECRETS[1]);
    desk.lxk(&["secret", "rotate", "add"]).ends_with(0);
    // The next one is not needed before it was current.
    let desk = desk.without("API_KEY_SECRET_PREVIOUS");
    desk.lxk(&["secret", "check"]).ends_with(0);
    let desk = desk.with("API_KEY_SECRET", SECRETS[1]);
    desk.lxk(&["secret", "check"]).fails(1, "set it as API_KEY_SECRET_PREVIOUS");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("1 key may need");
    let desk = desk.with("API_KEY_SECRET_PREVIOUS", SECRETS[0]);
    desk.lxk(&["preflight"]).ends_with(0);
    // The wrong way round, the switch is refused.
    let desk = desk.with("API_KEY_SECRET", SECRETS[0]).with("API_KEY_SECRET_PREVIOUS", SECRETS[1]);
    desk.lxk(&["secret", "rotate", "switch"]).fails(1, "swap the two");
    // One that was added by mistake can go.
    let mistaken = ring(&SECRETS[1..2]).current().fingerprint().to_string();
    desk.lxk(&["secret", "rotate", "remove", &mistaken, "--force"]).ends_with(0);
    desk.lxk(&["preflight"]).ends_with(0);
}
