//! The commands about the cache in Redis.

use lexikon_auth::Verifier;
use lexikon_auth::store::{RedisStore, SqliteStore};
use lexikon_auth_tests::one_secret;
use lexikon_auth_tests::redis_server::{self, RedisServer};

use crate::operator::Desk;

#[test]
fn the_cache_in_redis_is_looked_at_and_cleared() {
    let server = RedisServer::start();
    let url = format!("redis://127.0.0.1:{}", server.port);
    let desk = Desk::new();
    desk.lxk(&["cache", "stats"]).fails(2, "REDIS_URL is not set");
    let desk = desk.with("REDIS_URL", url);
    let (id, key) = desk.issue("user-1", "deploy");
    desk.issue("user-2", "web");
    // An instance, which puts into Redis what it has looked up.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let instance = runtime.block_on(async {
        let store = SqliteStore::open(desk.path()).await.unwrap();
        let options = redis_server::patient();
        let store = RedisStore::new(store, server.client(), &one_secret(), options).await;
        Verifier::new(store, one_secret())
    });
    let is_accepted = || runtime.block_on(instance.verify(&key)).is_ok();
    assert!(is_accepted());
    let entries =
        || desk.lxk(&["--json", "cache", "stats"]).ends_with(0).object()["entries"].clone();
    assert_eq!(entries(), 1);
    desk.lxk(&["cache", "clear"]).ends_with(2);
    desk.lxk(&["cache", "clear", "--owner", "user-2"]).ends_with(0).prints("0 removed");
    desk.lxk(&["cache", "clear", "--owner", "user-1"]).ends_with(0).prints("1 removed");
    assert_eq!(entries(), 0);
    assert!(is_accepted());
    desk.lxk(&["cache", "clear", "--all"]).ends_with(0).prints("1 removed");

    // Verification asks the database itself.
    assert!(is_accepted());
    let revoke = |active: &str| {
        let statement = format!("UPDATE api_keys SET is_active = {active} WHERE id = '{id}'");
        desk.run_sql(&statement);
    };
    revoke("0");
    assert!(is_accepted(), "Redis was not told");
    desk.reading(&["verify"], key.as_bytes()).fails(1, "refused");
    revoke("1");

    desk.lxk(&["preflight"]).fails(1, "check failed").prints("no memory limit");
    let config = |name: &str, value: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg(name).arg(value);
        set.exec(&mut server.client().get_connection().unwrap()).unwrap();
    };
    config("maxmemory", "64mb");
    config("maxmemory-policy", "allkeys-lru");
    desk.lxk(&["preflight"]).fails(1, "check failed").prints("volatile-ttl");
    config("maxmemory-policy", "volatile-lru");
    desk.lxk(&["preflight"]).ends_with(0);
    let mut connection = server.client().get_connection().unwrap();
    let marker = lexikon_auth::store::RedisOptions::default().bulk_change_marker();
    let () = redis::cmd("SET").arg(&marker).arg("left behind").query(&mut connection).unwrap();
    desk.lxk(&["preflight"]).ends_with(0).prints("bypassed");
    desk.lxk(&["cache", "stats"]).ends_with(0).prints("bypassed");
    desk.lxk(&["cache", "clear", "--all"]).ends_with(0);
    assert!(!redis::cmd("EXISTS").arg(&marker).query::<bool>(&mut connection).unwrap());
    let () = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query(&mut connection).unwrap();
    desk.lxk(&["preflight"]).fails(1, "check failed").prints("name its master");
    let () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query(&mut connection).unwrap();

    // What Redis holds is forgotten with a change, by one key and by many.
    assert!(is_accepted());
    let deprecate = ["migrate", "deprecate", "--revoke-in", "1s"];
    desk.run_sql("UPDATE api_keys SET hash_format = 'sha256'");
    desk.lxk(&deprecate).ends_with(0).prints("2 legacy keys");
    while is_accepted() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    desk.lxk(&["migrate", "deprecate", "--undo"]).ends_with(0).prints("2 keys restored");
    assert!(is_accepted());
    desk.lxk(&["revoke", &id]).ends_with(0);
    assert!(!is_accepted());

    // Without Redis nothing is lost, and whoever has changed something is told.
    drop(server);
    let (id, key) = desk.issue("user-1", "without Redis");
    desk.reading(&["verify"], key.as_bytes()).ends_with(0);
    desk.lxk(&["migrate", "policy"]).ends_with(0);
    desk.lxk(&["revoke", &id]).fails(3, "lxk cache clear --all").prints("revoked");
    desk.reading(&["verify"], key.as_bytes()).fails(1, "refused");
    desk.lxk(&["expire"]).ends_with(0).prints("0 keys marked");
    desk.run_sql("UPDATE api_keys SET is_active = 1, expires_at = '2001-01-01 00:00:00'");
    desk.lxk(&["expire"]).fails(3, "REDIS_URL");
    desk.lxk(&["cache", "clear", "--all"]).fails(3, "run this again");
    desk.lxk(&["cache", "stats"]).fails(3, "Redis does not answer");
    desk.lxk(&["preflight"]).fails(1, "check failed");
    let desk = desk.with("REDIS_URL", "redis:nonsense");
    desk.lxk(&["cache", "stats"]).fails(2, "REDIS_URL cannot be read");
}
