//! PostgreSQL: triggers that do not report, connections that break, a server that dies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lexikon_auth::store::PostgresStore;
use lexikon_auth_tests::proxy::Mode;
use sqlx::{AssertSqlSafe, Connection};
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::{change_all, milliseconds};
use crate::instances::Place;
use crate::oracle::{Change, Key};
use crate::world::World;

const DISABLE: &str =
    "ALTER TABLE api_keys DISABLE TRIGGER USER; ALTER TABLE users DISABLE TRIGGER USER";
const ENABLE: &str =
    "ALTER TABLE api_keys ENABLE TRIGGER USER; ALTER TABLE users ENABLE TRIGGER USER";

/// As `pg_restore --disable-triggers` does.
pub async fn triggers_disabled(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(5).await;
    alter(world, DISABLE).await;
    change_all(world, &keys, Duration::from_secs(1), chance).await;
    sleep(milliseconds(chance, 500..3000)).await;
    alter(world, ENABLE).await;
    repair(world).await;
}

/// Off and on again between two signs of life.
pub async fn triggers_blink(world: &Arc<World>) {
    let keys = world.warm(3).await;
    let revoke = begin_revoking(&keys);
    alter(world, &format!("{DISABLE}; {revoke}; {ENABLE}")).await;
    keys.iter().for_each(|key| key.committed(false));
    sleep(Duration::from_secs(2)).await;
    repair(world).await;
}

/// Copied, dropped and renamed: the triggers are gone with the old table.
pub async fn table_replaced(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(5).await;
    let replace = "CREATE TABLE copy (LIKE api_keys INCLUDING ALL); INSERT INTO copy TABLE api_keys; \
                   DROP TABLE api_keys; ALTER TABLE copy RENAME TO api_keys";
    alter(world, replace).await;
    change_all(world, &keys, Duration::from_secs(1), chance).await;
    sleep(milliseconds(chance, 500..3000)).await;
    repair(world).await;
}

/// As whoever applies what another server replicates.
pub async fn replica_role(world: &Arc<World>) {
    let keys = world.warm(3).await;
    let revoke = begin_revoking(&keys);
    world.sql(Place::Postgres, &format!("SET session_replication_role = replica; {revoke}")).await;
    keys.iter().for_each(|key| key.committed(false));
}

pub async fn listener_terminated(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(4).await;
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE (query LIKE 'LISTEN%' OR query LIKE '%pg_notify%' OR query LIKE '%pg_trigger%') \
                     AND pid <> pg_backend_pid()";
    world.sql(Place::Postgres, terminate).await;
    change_all(world, &keys, Duration::from_secs(1), chance).await;
}

/// And started again, with all that was committed.
pub async fn kill(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(5).await;
    let (before, after) = keys.split_at(2);
    change_all(world, before, Duration::from_millis(20), chance).await;
    block_in_place(|| world.postgres.lock().unwrap().kill());
    change_all(world, after, milliseconds(chance, 200..2000), chance).await;
    block_in_place(|| world.postgres.lock().unwrap().start_again());
}

/// Between the server and those who are far from it.
pub async fn network(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(5).await;
    let delay = milliseconds(chance, 50..700);
    let mode = *chance.choice(&[Mode::Reset, Mode::Blackhole, Mode::Delay(delay)]).unwrap();
    world.say(format!("    {mode:?}"));
    world.postgres_proxy.set(mode);
    change_all(world, &keys, Duration::from_secs(1), chance).await;
    sleep(milliseconds(chance, 500..3000)).await;
    world.postgres_proxy.set(Mode::Forward);
}

/// Says that these are about to be revoked, and how.
fn begin_revoking(keys: &[Arc<Key>]) -> String {
    keys.iter().for_each(|key| key.begin(Change::new(false, None, false)));
    let ids: Vec<_> = keys.iter().map(|key| format!("'{}'", key.id)).collect();
    format!("UPDATE api_keys SET is_active = FALSE WHERE id IN ({})", ids.join(", "))
}

/// Changes tables as soon as nobody holds them: whoever waits for their lock holds up all behind.
async fn alter(world: &World, statements: &str) {
    let begun = Instant::now();
    let statements = format!(
        "BEGIN; LOCK TABLE api_keys, users IN ACCESS EXCLUSIVE MODE NOWAIT; {statements}; COMMIT"
    );
    loop {
        if let Ok(mut connection) = world.connect().await {
            let statements = sqlx::raw_sql(AssertSqlSafe(statements.clone()));
            match statements.execute(&mut connection).await {
                Ok(_) => return,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
            }
            let _ = connection.close().await;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// What the message of the lost feed says to run.
async fn repair(world: &World) {
    let begun = Instant::now();
    loop {
        let store = PostgresStore::connect(world.options()).await;
        let repaired = match store {
            Ok(store) => store.extend_schema().await.map(drop),
            Err(error) => Err(error),
        };
        match repaired {
            Ok(()) => return,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}
