//! Callers who give up, statements that run out of time, slow reads, and processes that are killed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lexikon_auth::KeyId;
use lexikon_auth_tests::{
    legacy_hash,
    proxy::{Mode, Proxy},
};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::time::sleep;

use super::milliseconds;
use crate::changes::{self, Kind, call};
use crate::instances::{Feed, Place};
use crate::oracle::{Change, Key};
use crate::schedule::Fault;
use crate::world::{OTHERS, STATEMENT_TIMEOUT, TOLD_BY_REDIS, World};

/// Drops the futures of changes while a lock holds their statements up, and lets the lock go before the
/// statements' own time is over.
pub async fn dropped(world: &Arc<World>, chance: &mut Rng) {
    held_up(world, chance, true, Duration::ZERO).await;
}

/// Lets the lock go about when the statements' time is over.
pub async fn timed_out(world: &Arc<World>, chance: &mut Rng) {
    held_up(world, chance, false, Duration::from_millis(150)).await;
}

/// Has changes wait for a lock, up to almost the time that their statements may take, and `longer`.
async fn held_up(world: &Arc<World>, chance: &mut Rng, gives_up: bool, longer: Duration) {
    let keys = world.warm(4).await;
    let (told_by_redis, others) = keys.split_at(2);
    let default = Duration::from_secs(2);
    let mut changes = Vec::new();
    for (keys, instances, time) in
        [(told_by_redis, TOLD_BY_REDIS, STATEMENT_TIMEOUT), (others, OTHERS, default)]
    {
        let ids: Vec<_> = keys.iter().map(|key| key.id.to_string()).collect();
        let Some(lock) = Lock::hold(world, &ids).await else { return };
        for key in keys {
            let (index, kind) = (chance.usize(instances.clone()), Kind::of_a_key(chance));
            let tells_redis = world.instances[index].feed == Feed::Redis;
            key.begin(Change::new(matches!(kind, Kind::Narrow), Some(index), tells_redis));
            let (caller, key) = (world.clone(), key.clone());
            let calling = tokio::spawn(async move {
                let _ = call(&caller.instances[index], &key, kind).await;
            });
            if gives_up {
                sleep(milliseconds(chance, 20..60)).await;
                calling.abort();
            }
        }
        let until = Instant::now() + time - milliseconds(chance, 100..700) + longer;
        let (world, keys) = (world.clone(), keys.to_vec());
        changes.push(tokio::spawn(async move { release_at(&world, until, lock, &keys).await }));
    }
    for change in changes {
        change.await.unwrap();
    }
}

/// Verifies until the lock goes: what is read again meanwhile is the old row.
async fn release_at(world: &World, until: Instant, lock: Lock, keys: &[Arc<Key>]) {
    while Instant::now() < until {
        for key in keys {
            world.verify_everywhere(key).await;
        }
        sleep(Duration::from_millis(100)).await;
    }
    lock.release().await;
    futures_util::future::join_all(keys.iter().map(|key| world.settle(key))).await;
}

/// Rows that nobody else may change.
struct Lock(PgConnection);

impl Lock {
    async fn hold(world: &World, ids: &[String]) -> Option<Self> {
        let mut connection = world.connect().await.ok()?;
        let ids: Vec<_> = ids.iter().map(|id| format!("'{id}'")).collect();
        let lock =
            format!("BEGIN; SELECT 1 FROM api_keys WHERE id IN ({}) FOR UPDATE", ids.join(", "));
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut connection).await.ok()?;
        Some(Self(connection))
    }

    async fn release(self) {
        // Gone already where the server was killed.
        let _ = self.0.close().await;
    }
}

/// The database answers late, and the change comes between the read and its answer.
pub async fn slow_reads(world: &Arc<World>, chance: &mut Rng) {
    for instance in world.at(Place::Postgres) {
        instance.slow.delay(milliseconds(chance, 0..500));
    }
    let mut reads = Vec::new();
    for _ in 0..6 {
        let key = world.issue(Place::Postgres).await;
        world.watch(&key);
        for index in 0..world.at(Place::Postgres).count() {
            let (world, key) = (world.clone(), key.clone());
            let wait = milliseconds(chance, 0..300);
            reads.push(tokio::spawn(async move {
                sleep(wait).await;
                world.verify(&world.instances[index], &key).await;
            }));
        }
        let (kind, author) = changes::any(world, Place::Postgres, chance);
        let (world, wait) = (world.clone(), milliseconds(chance, 0..400));
        reads.push(tokio::spawn(async move {
            sleep(wait).await;
            world.change(&key, kind, author).await;
        }));
        sleep(Duration::from_millis(50)).await;
    }
    for read in reads {
        read.await.unwrap();
    }
    for instance in world.at(Place::Postgres) {
        instance.slow.delay(Duration::ZERO);
    }
}

/// Rows that `lxk` changes in one transaction.
const BATCH: usize = 1000;

/// Kills a bulk change after its first batch, and runs it again.
pub async fn lxk_killed(world: &Arc<World>, chance: &mut Rng) {
    let keys = legacy_keys(world, chance).await;
    for key in &keys {
        world.watch(key);
        world.verify_everywhere(key).await;
    }
    // The first batch waits until caches that were told to forget have read again; the second for ever.
    let row = |number: usize| id_of(&keys[0], number).to_string();
    let Some(first) = Lock::hold(world, &[row(BATCH / 2)]).await else { return };
    let Some(second) = Lock::hold(world, &[row(BATCH + 2)]).await else { return };
    keys.iter().for_each(|key| key.begin(Change::new(false, None, true)));
    let proxy = Proxy::to(world.redis_port(world.master.load(Ordering::SeqCst))).await;
    let run = |port: u16| {
        let mut command = world.lxk(Place::Postgres, 1);
        command.env("REDIS_URL", format!("redis://127.0.0.1:{port}"));
        command.args(["migrate", "revoke", "--force"]);
        command.spawn().unwrap()
    };
    let process = run(proxy.port);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        for key in &keys {
            world.verify_everywhere(key).await;
        }
        sleep(Duration::from_millis(20)).await;
    }
    // Killed between the commit and what it has to tell.
    proxy.set(Mode::Blackhole);
    first.release().await;
    futures_util::future::join_all(keys.iter().map(|key| world.settle(key))).await;
    world.say("    the first batch is committed");
    changes::kill(process);
    second.release().await;
    // Longer than any bound, so that nobody is saved by the second run.
    sleep(milliseconds(chance, 6500..7000)).await;
    let mut process = run(world.redis_port(world.master.load(Ordering::SeqCst)));
    let finished = tokio::task::spawn_blocking(move || process.wait().unwrap());
    world.say(format!("    run again: {}", finished.await.unwrap()));
}

/// Keys stored as plain SHA-256, the first of more than a batch of rows.
async fn legacy_keys(world: &World, chance: &mut Rng) -> Vec<Arc<Key>> {
    let bulk = chance.u32(..);
    let mut statements =
        String::from("INSERT INTO users VALUES ('bulk', TRUE) ON CONFLICT DO NOTHING;");
    let columns =
        "INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, hash_format)";
    let mut keys = Vec::new();
    for number in 0..4 {
        let (id, text) =
            (format!("bulk-{bulk:08x}-{number:04}"), format!("lxk_{bulk:08x}{number:035}"));
        let hash = legacy_hash(&text).to_hex();
        statements += &format!(
            "{columns} VALUES ('{id}', 'bulk', '{hash}', 'name', 'read,write', TRUE, 'sha256') \
             ON CONFLICT DO NOTHING;"
        );
        keys.push(Arc::new(Key::new((&*id).into(), text, "bulk".to_owned(), Place::Postgres)));
    }
    statements += &format!(
        "{columns} SELECT 'bulk-{bulk:08x}-' || lpad(g::text, 4, '0'), 'bulk', \
         md5('{bulk}' || g) || md5(g || '{bulk}'), 'name', 'read', TRUE, 'sha256' \
         FROM generate_series(4, {}) g ON CONFLICT DO NOTHING",
        BATCH + 5
    );
    world.sql(Place::Postgres, &statements).await;
    keys
}

/// The id of another row of the same bulk.
fn id_of(key: &Key, number: usize) -> KeyId {
    let id = key.id.to_string();
    let bulk = &id[..id.len() - 4];
    (&*format!("{bulk}{number:04}")).into()
}

/// One follower goes and another comes, after a while or before.
pub async fn follower_replaced(world: &Arc<World>, chance: &mut Rng) {
    let followed: Vec<_> =
        world.instances.iter().filter(|instance| instance.feed != Feed::None).collect();
    let instance = chance.choice(&followed).unwrap();
    let overlap = chance.bool();
    world.say(format!("    at {}, overlapping: {overlap}", instance.name));
    let number = world.oracle.begin(Fault::FollowerReplaced, Some(instance.index));
    let keys = world.warm(3).await;
    let replaced = instance.replace_follower(overlap);
    let changed = super::change_all(world, &keys, Duration::from_millis(300), chance);
    tokio::join!(replaced, changed);
    world.oracle.end(number);
}
