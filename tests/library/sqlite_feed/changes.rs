//! What is reported, and for what.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_anybody_changes_is_seen() {
    for scene in [Scene::own().await, Scene::service().await] {
        let issued = scene.issue().await;
        let id = &issued.record.id;
        let turn = "UPDATE api_keys SET key_hash = substr(key_hash, 33) || substr(key_hash, 1, 32)";
        let keep = "CREATE TABLE kept AS SELECT * FROM api_keys";
        let bring_back = "INSERT INTO api_keys SELECT * FROM kept";
        let steps = [
            (format!("UPDATE api_keys SET is_active = 0 WHERE id = '{id}'"), "revoked"),
            (format!("UPDATE api_keys SET is_active = 1 WHERE id = '{id}'"), "accepted"),
            ("UPDATE users SET is_active = 0".into(), "owner_disabled"),
            (
                "UPDATE users SET is_active = NULL; UPDATE users SET is_active = 1".into(),
                "accepted",
            ),
            (
                format!("UPDATE api_keys SET expires_at = '2001-01-01 00:00:00' WHERE id = '{id}'"),
                "expired",
            ),
            (format!("UPDATE api_keys SET expires_at = NULL WHERE id = '{id}'"), "accepted"),
            (turn.into(), "unknown"),
            (turn.into(), "accepted"),
            (format!("{keep}; DELETE FROM api_keys"), "unknown"),
            (bring_back.into(), "accepted"),
            (
                "INSERT OR REPLACE INTO api_keys (id, user_id, key_hash, name, scopes, is_active) \
                 SELECT id, user_id, key_hash, name, scopes, 0 FROM kept"
                    .into(),
                "revoked",
            ),
            ("INSERT OR REPLACE INTO api_keys SELECT * FROM kept".into(), "accepted"),
            ("DELETE FROM users".into(), "owner_disabled"),
        ];
        let instance = scene.follow().await;
        assert_eq!(instance.verify(&issued).await, "accepted");
        for (statement, answer) in &steps {
            scene.run(statement).await;
            instance.eventually(&issued, answer, statement).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_decision_depends_on_is_not_reported() {
    let scene = Scene::service().await;
    let (one, other, last) = (scene.issue().await, scene.issue().await, scene.issue().await);
    let instance = scene.follow().await;
    // When this change has arrived, all before it have.
    assert_eq!(instance.verify(&last).await, "accepted");
    scene.manager.revoke(&last.record.id, None).await.unwrap();
    instance.eventually(&last, "revoked", "revoke").await;
    assert_eq!(instance.verify(&one).await, "accepted");
    assert_eq!(instance.verify(&other).await, "accepted");
    let loads = instance.store.loads();
    // The service does this with every request.
    scene.run("UPDATE api_keys SET last_used_at = '2026-01-01 00:00:00'").await;
    scene.run("UPDATE api_keys SET hash_format = 'sha256'").await;
    scene.run("UPDATE users SET is_active = is_active, updated_at = '2026-01-01 00:00:00'").await;
    scene.manager.revoke(&one.record.id, None).await.unwrap();
    instance.eventually(&one, "revoked", "revoke").await;
    assert_eq!(instance.verify(&other).await, "accepted");
    assert_eq!(instance.store.loads(), loads + 1, "one key was read again");
}

#[tokio::test]
async fn each_change_is_reported_for_what_it_is() {
    let scene = Scene::own().await;
    scene.run(&insert(9)).await;
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    let added = |id| vec![key(id), Change::Added];
    let cases = [
        ("SELECT 1", vec![]),
        ("UPDATE api_keys SET is_active = 0 WHERE id = '1'", vec![key("1")]),
        ("UPDATE api_keys SET is_active = 0 WHERE id = '1'", vec![]),
        ("UPDATE api_keys SET name = 'other' WHERE id = '2'", vec![key("2")]),
        ("UPDATE api_keys SET is_active = NULL WHERE id IN ('1', '2')", vec![key("1"), key("2")]),
        ("UPDATE api_keys SET key_hash = 'h' WHERE id = '3'", added("3")),
        ("UPDATE api_keys SET user_id = 'user-2' WHERE id = '3'", vec![key("3")]),
        ("UPDATE users SET is_active = 0", vec![owner("user-1")]),
        ("INSERT INTO users (id, is_active) VALUES ('user-2', 1)", vec![owner("user-2")]),
        ("UPDATE users SET is_active = 0 WHERE id = 'nobody'", vec![]),
        (
            "INSERT INTO api_keys (id, user_id, key_hash, name, scopes) VALUES ('x', 'y', 'z', '', '')",
            added("x"),
        ),
        ("BEGIN; UPDATE api_keys SET is_active = 0; DELETE FROM users; ROLLBACK", vec![]),
        // Which of two changes came last is all that a row says.
        ("UPDATE api_keys SET name = id; UPDATE api_keys SET name = 'n'", vec![Change::All]),
        ("DELETE FROM api_keys WHERE id = '4'", vec![Change::All]),
        ("DELETE FROM users WHERE id = 'user-2'", vec![Change::All]),
        ("UPDATE api_keys SET id = 'new' WHERE id = '5'", vec![Change::All]),
        ("UPDATE users SET id = 'new' WHERE id = 'user-1'", vec![Change::All]),
        ("UPDATE api_keys SET is_active = 0 WHERE id = '6'", vec![key("6")]),
        ("CREATE TABLE other (id)", vec![Change::All]),
        ("UPDATE users SET is_active = 1", vec![owner("new")]),
        ("DELETE FROM api_keys", vec![Change::All]),
        // What may have come and gone in an empty table, nobody knows.
        ("UPDATE users SET is_active = 0", vec![Change::All]),
    ];
    for (statement, changes) in cases {
        scene.run(statement).await;
        assert_eq!(reported(&mut feed).await, changes, "{statement}");
    }
}

#[tokio::test]
async fn no_number_comes_twice() {
    // Whatever is done to the row with the latest number between two looks, anything may have changed.
    let statements = [
        "DELETE FROM api_keys WHERE id = '3'",
        "DELETE FROM api_keys WHERE id = '3'; INSERT INTO api_keys SELECT * FROM kept WHERE id = '3'",
        "DELETE FROM api_keys; INSERT INTO api_keys SELECT * FROM kept",
        "DELETE FROM api_keys; UPDATE kept SET lexikon_auth_change = NULL; \
         INSERT INTO api_keys SELECT * FROM kept",
        "INSERT OR REPLACE INTO api_keys SELECT * FROM kept",
        "UPDATE kept SET lexikon_auth_change = NULL; \
         INSERT OR REPLACE INTO api_keys SELECT * FROM kept WHERE id = '3'",
        // The hash of another row, which goes.
        "UPDATE kept SET lexikon_auth_change = NULL, id = 'x'; \
         INSERT OR REPLACE INTO api_keys SELECT * FROM kept WHERE key_hash = '3'",
        "UPDATE kept SET lexikon_auth_change = NULL, id = 'x'; \
         INSERT OR REPLACE INTO api_keys SELECT * FROM kept WHERE key_hash = '1'",
        "INSERT OR REPLACE INTO users (id, is_active) VALUES ('user-1', 0)",
        "DELETE FROM users; INSERT INTO users (id, is_active) VALUES ('user-1', 0)",
    ];
    for rows in [1, 2, 3] {
        for statement in statements {
            let statement = statement.replace("'3'", &format!("'{rows}'"));
            let scene = Scene::own().await;
            scene.run(&insert(rows)).await;
            scene.run("CREATE TABLE kept AS SELECT * FROM api_keys").await;
            let mut feed = scene.database.changes().subscribe().await.unwrap();
            scene.run(&statement).await;
            assert_eq!(reported(&mut feed).await, [Change::All], "{rows} rows: {statement}");
            scene.run("UPDATE api_keys SET name = 'other' WHERE id = '1'").await;
            let _ = reported(&mut feed).await;
            assert_eq!(reported(&mut feed).await, [], "{rows} rows: {statement}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_an_update_takes_the_place_of_is_reported() {
    let statements = [
        "UPDATE OR REPLACE api_keys SET key_hash = '1' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET key_hash = '3' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET id = '1' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET id = '3' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET id = '1', key_hash = '3' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET key_hash = '1'",
        "UPDATE OR REPLACE users SET id = 'user-1' WHERE id = 'user-2'",
    ];
    let owners = "INSERT INTO users (id) VALUES ('user-2'), ('user-3')";
    for statement in statements {
        let scene = Scene::own().await;
        scene.run(&format!("{}; {owners}", insert(4))).await;
        let mut feed = scene.database.changes().subscribe().await.unwrap();
        scene.run(statement).await;
        assert_eq!(reported(&mut feed).await, [Change::All], "{statement}");
        scene.run("UPDATE api_keys SET name = 'other'").await;
        let _ = reported(&mut feed).await;
        assert_eq!(reported(&mut feed).await, [], "{statement}");
    }
    // One that fails changes nothing.
    let scene = Scene::own().await;
    scene.run(&insert(4)).await;
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    scene.try_run("UPDATE api_keys SET key_hash = '1' WHERE id = '2'").await.unwrap_err();
    assert_eq!(reported(&mut feed).await, []);
}

#[tokio::test]
async fn rows_that_had_no_number_before_the_extension_are_reported() {
    let removed = [
        "DELETE FROM api_keys WHERE id = (SELECT id FROM api_keys LIMIT 1)",
        "UPDATE api_keys SET is_active = 0 WHERE is_active",
        "DELETE FROM api_keys",
        "DELETE FROM users",
    ];
    for statement in removed {
        let scene = Scene::service().await;
        let mut feed = scene.database.changes().subscribe().await.unwrap();
        scene.run(statement).await;
        assert_eq!(reported(&mut feed).await, [Change::All], "{statement}");
    }
}

#[tokio::test]
async fn many_changes_at_once_are_a_change_of_anything() {
    let scene = Scene::own().await;
    scene.run(&insert(1000)).await;
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    scene.run("UPDATE api_keys SET is_active = 0").await;
    let changes = reported(&mut feed).await;
    let ids: BTreeSet<String> = changes
        .iter()
        .map(|change| match change {
            Change::Key(id) => id.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((changes.len(), ids.len()), (1000, 1000));
    scene.issue().await;
    reported(&mut feed).await;
    scene.run("UPDATE api_keys SET name = 'other'").await;
    assert_eq!(reported(&mut feed).await, [Change::All]);
}

#[tokio::test]
async fn a_receiver_that_is_dropped_loses_nothing() {
    let scene = Scene::own().await;
    scene.run(&insert(100)).await;
    let feed = scene.database.changes().interval(Duration::from_millis(1));
    let mut feed = feed.subscribe().await.unwrap();
    let writer = async {
        for id in 1..=100 {
            scene.run(&format!("UPDATE api_keys SET is_active = 0 WHERE id = '{id}'")).await;
        }
    };
    let reader = async {
        let mut missing: BTreeSet<String> = (1..=100).map(|id| id.to_string()).collect();
        let start = Instant::now();
        let mut patience = 0;
        while !missing.is_empty() {
            assert!(start.elapsed() < PATIENCE, "lost: {missing:?}");
            patience = (patience + 37) % 3000;
            match timeout(Duration::from_micros(patience), feed.receive()).await {
                Ok(Ok(Message::Changed(Change::Key(id)))) => drop(missing.remove(&*id.to_string())),
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        }
    };
    tokio::join!(writer, reader);
}
