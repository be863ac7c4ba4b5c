//! What keeps changes from being reported, and what the extension leaves alone.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_changes_from_being_reported_is_noticed_and_can_be_mended() {
    let faults = [
        "DROP TRIGGER lexikon_auth_owner_changed",
        "DROP TRIGGER lexikon_auth_key_replaced",
        "DROP INDEX lexikon_auth_key_changes",
        "DROP TRIGGER lexikon_auth_key_changed; \
         CREATE TRIGGER lexikon_auth_key_changed AFTER UPDATE ON users BEGIN SELECT 1; END",
        "ALTER TABLE api_keys RENAME TO old; CREATE TABLE api_keys AS SELECT * FROM old",
    ];
    let scene = Scene::service().await;
    let issued = scene.issue().await;
    for fault in faults {
        let instance = scene.follow().await;
        instance.eventually(&issued, "accepted", fault).await;
        scene.run(fault).await;
        instance.lost().await;
        let error = scene.database.changes().subscribe().await.err().expect(fault);
        let text = error.to_string();
        assert!(matches!(error, StoreError::Schema(_)), "{fault}: {error:?}");
        assert!(text.contains("extend_schema") && text.contains("lxk schema apply"), "{text}");
        // Nobody hears of this one, unless the trigger is there still.
        scene.run("UPDATE api_keys SET is_active = 0; UPDATE users SET is_active = 0").await;
        scene.extend().await;
        instance.connected().await;
        assert_ne!(
            instance.verify(&issued).await,
            "accepted",
            "what was read before is not trusted"
        );
        scene.run("UPDATE api_keys SET is_active = 1; UPDATE users SET is_active = 1").await;
        instance.eventually(&issued, "accepted", fault).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_a_migration_dropped_silently_are_noticed() {
    let scene = Scene::service().await;
    let issued = scene.issue().await;
    let instance = scene.follow().await;
    // With the column of the numbers too, as where the copy is of the table as it stands.
    for (table, all_columns) in [("api_keys", false), ("users", false), ("api_keys", true)] {
        instance.eventually(&issued, "accepted", table).await;
        scene.copy_table(table, all_columns).await;
        instance.lost().await;
        scene.extend().await;
        instance.connected().await;
        scene.run("UPDATE api_keys SET is_active = 0").await;
        instance.eventually(&issued, "revoked", table).await;
        scene.run("UPDATE api_keys SET is_active = 1").await;
    }
}

#[tokio::test]
async fn triggers_that_were_gone_for_a_moment_have_missed_anything() {
    let scene = Scene::own().await;
    scene.run(&insert(3)).await;
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    scene.run("DROP TRIGGER lexikon_auth_key_changed; UPDATE api_keys SET is_active = 0").await;
    scene.extend().await;
    assert_eq!(reported(&mut feed).await, [Change::All]);
}

/// The service at work.
struct Writer(std::process::Child);

impl Writer {
    fn start(database: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sqlalchemy/writer.py");
        let mut child = Command::new("/usr/bin/python3")
            .args([Path::new(script), database])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "writing\n", "python3-sqlalchemy is installed, and it writes");
        Self(child)
    }

    /// Panics where a write has failed.
    fn stop(mut self, after: &str) {
        drop(self.0.stdin.take());
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success() && text.ends_with("writes\n"), "a write failed: {after}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_of_the_service_fails_whatever_is_dropped_of_the_extension() {
    let drop_column = "ALTER TABLE api_keys DROP COLUMN lexikon_auth_change";
    let steps = [
        // What Alembic's autogenerate proposes, because its models do not know it.
        "DROP TABLE lexikon_auth_secrets; DROP TABLE lexikon_auth_policies; \
         DROP TABLE lexikon_auth_deprecations",
        "DROP INDEX lexikon_auth_key_changes; DROP INDEX lexikon_auth_owner_changes",
        "DROP TRIGGER lexikon_auth_key_changed",
    ];
    let scene = Scene::service().await;
    let instance = scene.follow().await;
    for step in steps {
        let writer = Writer::start(&scene.path);
        scene.run(step).await;
        sleep(Duration::from_millis(300)).await;
        writer.stop(step);
        Writer::start(&scene.path).stop(step);
    }
    // A column that a trigger needs cannot be dropped by itself. The migration says so; the service goes on.
    scene.extend().await;
    scene.run("DROP INDEX lexikon_auth_key_changes").await;
    let writer = Writer::start(&scene.path);
    let error = scene.try_run(drop_column).await.unwrap_err().to_string();
    assert!(error.contains("lexikon_auth_key_added"), "{error}");
    writer.stop(drop_column);
    // In batch mode it goes with the table.
    let writer = Writer::start(&scene.path);
    scene.copy_table("api_keys", false).await;
    scene.copy_table("users", false).await;
    sleep(Duration::from_millis(300)).await;
    writer.stop("batch mode");
    Writer::start(&scene.path).stop("batch mode");
    instance.lost().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_drops_a_column_once_the_triggers_that_name_it_are_gone() {
    let scene = Scene::service().await;
    let issued = scene.issue().await;
    let instance = scene.follow().await;
    instance.eventually(&issued, "accepted", "issued").await;
    scene.run("ALTER TABLE api_keys DROP COLUMN last_used_at").await;
    let drop_column = "ALTER TABLE api_keys DROP COLUMN expires_at";
    let error = scene.try_run(drop_column).await.unwrap_err().to_string();
    assert!(error.contains("error in trigger lexikon_auth_key_changed after drop"), "{error}");
    let triggers =
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'api_keys'";
    let triggers: Vec<String> = sqlx::query_scalar(triggers).fetch_all(&scene.pool).await.unwrap();
    for trigger in triggers {
        scene.run(&format!("DROP TRIGGER {trigger}")).await;
    }
    scene.run(drop_column).await;
    instance.lost().await;
    for column in ["expires_at", "last_used_at"] {
        scene.run(&format!("ALTER TABLE api_keys ADD COLUMN {column} DATETIME")).await;
    }
    scene.extend().await;
    instance.connected().await;
    scene.run("UPDATE api_keys SET is_active = 0").await;
    instance.eventually(&issued, "revoked", "migrated").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_takes_the_place_of_is_noticed() {
    let scene = Scene::own().await;
    let issued = scene.issue().await;
    let instance = scene.follow().await;
    instance.eventually(&issued, "accepted", "issued").await;
    let feed = scene.database.changes();
    std::fs::rename(&scene.path, scene.path.with_extension("old")).unwrap();
    SqliteStore::open_or_create(&scene.path).await.unwrap();
    instance.lost().await;
    let error = feed.subscribe().await.err().unwrap();
    assert!(error.to_string().contains("restart"), "{error}");
    // What this program has open, nobody changes any more.
    let error = lexikon_auth::store::KeyStore::find_by_id(&scene.database, &issued.record.id)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("restart"), "{error}");
}

#[tokio::test]
async fn a_database_that_cannot_report_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("service.db");
    std::fs::write(&path, data::SQLITE).unwrap();
    for read_only in [false, true] {
        let options = SqliteConnectOptions::new().filename(&path).read_only(read_only);
        let store = SqliteStore::connect(options).await.unwrap();
        let error = store.changes().subscribe().await.err().unwrap();
        assert!(matches!(error, StoreError::Schema(_)), "{error:?}");
        assert!(error.to_string().contains("lxk schema apply"), "{error}");
    }
    let pool =
        SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await.unwrap();
    let store = SqliteStore::from_pool(pool).await.unwrap();
    let error = store.changes().subscribe().await.err().unwrap();
    assert!(error.to_string().contains("in a file"), "{error}");
}

#[tokio::test]
async fn a_store_that_may_only_read_hears_of_changes() {
    for scene in [Scene::own().await, Scene::service().await] {
        let options = SqliteConnectOptions::new().filename(&scene.path).read_only(true);
        let store = SqliteStore::connect(options).await.unwrap();
        let mut feed = store.changes().subscribe().await.unwrap();
        let issued = scene.issue().await;
        assert!(!reported(&mut feed).await.is_empty());
        scene.manager.revoke(&issued.record.id, None).await.unwrap();
        assert_eq!(reported(&mut feed).await, [Change::Key(issued.record.id)]);
    }
}

#[tokio::test]
async fn a_key_for_a_known_owner_is_an_addition_and_no_more() {
    let scene = Scene::own().await;
    scene.issue().await;
    scene.manager.issue(NewKey::new("user-2", "name")).await.unwrap();
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    let issued = scene.issue().await;
    assert_eq!(reported(&mut feed).await, [Change::Key(issued.record.id), Change::Added]);
}

#[tokio::test]
async fn the_database_is_what_it_was_but_for_the_extension() {
    let scene = Scene::service().await;
    let count = "SELECT count(*) FROM api_keys WHERE lexikon_auth_change IS NOT NULL";
    let changed: i64 = sqlx::query_scalar(count).fetch_one(&scene.pool).await.unwrap();
    assert_eq!(changed, 0, "no row was rewritten");
    // Nor is one by what the service does with every request.
    scene.run("UPDATE api_keys SET last_used_at = '2026-01-01 00:00:00'").await;
    let changed: i64 = sqlx::query_scalar(count).fetch_one(&scene.pool).await.unwrap();
    assert_eq!(changed, 0);
    let check: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&scene.pool).await.unwrap();
    assert_eq!(check, "ok");
}
