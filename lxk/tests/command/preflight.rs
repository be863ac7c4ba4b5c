//! The checks before a service starts.

use crate::operator::Desk;

#[test]
fn preflight_finds_what_is_wrong() {
    let desk = Desk::new();
    desk.lxk(&["preflight"]).ends_with(0).prints("issued, verified, revoked, rolled back");
    assert_eq!(desk.exported().lines().count(), 1, "nothing is left");
    desk.run_sql("DROP INDEX ix_api_keys_key_hash");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("CREATE UNIQUE INDEX");
    let lines = desk.lxk(&["--json", "preflight"]).objects();
    assert!(lines.iter().any(|line| line["check"] == "index" && line["result"] == "failed"));

    let desk = Desk::new();
    desk.run_sql("DROP TRIGGER lexikon_auth_key_deleted");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("caches hear of nothing");
    desk.lxk(&["schema", "apply"]).ends_with(0);
    desk.lxk(&["preflight"]).ends_with(0);

    let desk = Desk::new();
    desk.issue("user-1", "deploy");
    desk.run_sql("UPDATE api_keys SET created_at = '2999-01-01 00:00:00'");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("clock is behind");
    let desk = Desk::without_database();
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("cannot be opened");
    let desk = desk.without("API_KEY_SECRET").without("DATABASE_URL");
    desk.lxk(&["preflight"]).fails(1, "2 checks failed");
}
