//! Connections of the store in PostgreSQL: those that break, and those that callers leave behind.
#![cfg(feature = "postgres")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use lexikon_auth::store::PostgresStore;
use lexikon_auth::{
    ApiKey, IssuedKey, KeyManager, KeyUpdate, ManageError, NewKey, SecretRing, ServerSecret,
    StoreError, Verifier,
};
use lexikon_auth_tests::postgres::{self, Server};
use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const SECRET: &str = "122b598615dcbe810beacd557705a54b5edbbbe5ce7f8fbeebef7a58f99d96fb";
/// How many connections a store opens.
const MOST: usize = 10;

fn ring() -> SecretRing {
    SecretRing::new(ServerSecret::new(&SECRET.into()).unwrap())
}

/// A store whose connections are all open, and a key.
struct Scene {
    verifier: Arc<Verifier<PostgresStore>>,
    manager: KeyManager<PostgresStore>,
    issued: IssuedKey,
}

impl Scene {
    async fn new(options: PgConnectOptions) -> Self {
        let store = PostgresStore::connect(options.application_name("store")).await.unwrap();
        let manager = KeyManager::new(store.clone(), &ring());
        let issued = manager.issue(NewKey::new("user-1", "name")).await.unwrap();
        let scene = Self { verifier: Arc::new(Verifier::new(store, ring())), manager, issued };
        scene.verify_at_once().await;
        scene
    }

    /// As many verifications at once as there are connections, and more.
    async fn verify_at_once(&self) {
        let mut tasks = JoinSet::new();
        for _ in 0..4 * MOST {
            let (verifier, key) = (self.verifier.clone(), self.issued.key.expose_secret());
            let key = key.to_owned();
            tasks.spawn(async move { verifier.verify(&key).await.map(drop) });
        }
        for answer in tasks.join_all().await {
            answer.expect("the key is good");
        }
    }
}

/// Ends all sessions but one's own, and returns when they are over.
async fn end_sessions(pool: &PgPool) {
    let end = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity \
               WHERE application_name = 'store' AND datname = current_database()";
    sqlx::query_scalar::<_, i64>(end).fetch_one(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_ended_cost_no_look_up() {
    let options = postgres::database().await;
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    let scene = Scene::new(options).await;
    for _ in 0..5 {
        end_sessions(&pool).await;
        scene.verify_at_once().await;
        end_sessions(&pool).await;
        _ = scene.verifier.verify(scene.issued.key.expose_secret()).await.expect("on a new one");
        scene.manager.count_by_format().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_back_is_found_by_the_first_look_up() {
    let mut server = Server::start();
    let scene = Scene::new(server.options()).await;
    server.kill();
    server.start_again();
    scene.verify_at_once().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_fails_once_on_each_broken_connection() {
    let options = postgres::database().await;
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    let scene = Scene::new(options).await;
    // On a connection that is kept for the next statement.
    _ = scene.verifier.verify(scene.issued.key.expose_secret()).await.unwrap();
    end_sessions(&pool).await;
    let (start, mut failed) = (Instant::now(), 0_u64);
    let update = KeyUpdate::default().name("another");
    while let Err(error) = scene.manager.update(&scene.issued.record.id, update.clone()).await {
        failed += 1;
        assert!(start.elapsed() < Duration::from_secs(60), "{error:?}");
    }
    assert!(failed <= MOST as u64, "{failed} writes failed");
}

/// What the database itself refuses leaves the connection as it was.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_statement_costs_no_connection() {
    let options = postgres::database().await;
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    let scene = Scene::new(options).await;
    let sessions = async || -> Vec<i32> {
        let pids = "SELECT pid FROM pg_stat_activity \
                    WHERE application_name = 'store' AND datname = current_database() ORDER BY pid";
        sqlx::query_scalar(pids).fetch_all(&pool).await.unwrap()
    };
    let before = sessions().await;
    let forbid = "CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS \
                  $$ BEGIN RAISE EXCEPTION 'not now'; END $$; CREATE TRIGGER forbid BEFORE UPDATE \
                  ON api_keys FOR EACH ROW EXECUTE FUNCTION forbid()";
    sqlx::raw_sql(forbid).execute(&pool).await.unwrap();
    for _ in 0..20 {
        let error = scene.manager.revoke(&scene.issued.record.id, None).await.unwrap_err();
        assert!(matches!(error, ManageError::Store(StoreError::Unavailable(_))), "{error:?}");
    }
    assert_eq!(sessions().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_that_are_given_up_hold_no_more_sessions_than_the_pool_has() {
    let options = postgres::database().await;
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    let scene = Scene::new(options).await;
    let mut lock = pool.begin().await.unwrap();
    let statement = "LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(statement).execute(&mut *lock).await.unwrap();
    let (start, mut most) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(3) {
        for _ in 0..MOST {
            let (verifier, key) = (scene.verifier.clone(), ApiKey::generate(ring().current()));
            let key = key.unwrap().expose_secret().to_owned();
            tokio::spawn(async move {
                timeout(Duration::from_millis(20), verifier.verify(&key)).await.map(drop)
            });
        }
        sleep(Duration::from_millis(25)).await;
        let sessions = "SELECT count(*) FROM pg_stat_activity \
                        WHERE application_name = 'store' AND datname = current_database()";
        most = most.max(sqlx::query_scalar::<_, i64>(sessions).fetch_one(&pool).await.unwrap());
    }
    assert!(most <= MOST as i64, "{most} sessions");
    lock.rollback().await.unwrap();
    scene.verify_at_once().await;
}
