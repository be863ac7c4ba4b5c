//! Redis: memory that runs out, a server that stops, dies or is demoted, and the way to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lexikon_auth::store::{Change, MemoryStore, RedisStore};
use lexikon_auth_tests::{one_secret, proxy::Mode, redis_server};
use redis::{AsyncConnectionConfig, FromRedisValue, RedisResult};
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::{change_all, milliseconds};
use crate::changes::{Author, Kind};
use crate::instances::{Feed, PREFIXES, Place};
use crate::oracle::{self, Key};
use crate::world::{TOLD_BY_REDIS, World};

/// How long it may take until the loss of a server is noticed.
const NOTICED: Duration = Duration::from_secs(3);

/// Memory runs short under a policy that only takes what has a date.
pub async fn pressure(world: &Arc<World>, chance: &mut Rng) {
    let policy = *chance.choice(&["volatile-ttl", "volatile-lru"]).unwrap();
    world.say(format!("    {policy}"));
    set(world, "maxmemory-policy", policy).await;
    squeeze(world).await;
    restore(world).await;
}

/// Memory runs short under a policy that takes anything.
pub async fn allkeys(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(3).await;
    set(world, "maxmemory-policy", "allkeys-lru").await;
    // Those who must not go on with it have the time in which a loss is noticed.
    sleep(NOTICED).await;
    let author = Author::Instance(chance.usize(TOLD_BY_REDIS));
    for key in &keys {
        world.change(key, Kind::Revoke, author).await;
    }
    // Longer than any bound, so that nobody is saved by its end.
    tokio::join!(squeeze(world), sleep(Duration::from_millis(6500)));
    restore(world).await;
}

/// Revokes keys that are in Redis, and asks for them when half of them have been evicted.
async fn squeeze(world: &Arc<World>) {
    const KEYS: usize = 100;
    let mut keys = Vec::new();
    for _ in 0..KEYS {
        let key = world.issue(Place::Postgres).await;
        world.verify(&world.instances[0], &key).await;
        keys.push(key);
    }
    let ids: Vec<_> = keys.iter().map(|key| format!("'{}'", key.id)).collect();
    keys.iter().for_each(|key| key.begin(oracle::Change::new(false, None, false)));
    let revoke = format!("UPDATE api_keys SET is_active = FALSE WHERE id IN ({})", ids.join(", "));
    world.sql(Place::Postgres, &revoke).await;
    keys.iter().for_each(|key| key.committed(false));
    let revoked = Instant::now();
    // Until everybody has heard of it, and remembered it in Redis.
    sleep(Duration::from_millis(700)).await;
    let master = world.master.load(Ordering::SeqCst);
    revoke_others(world, master).await;
    evict(world, master).await;
    // Late enough for the promise, whatever is in play.
    sleep(Duration::from_millis(2500).saturating_sub(revoked.elapsed())).await;
    for index in [1, 0] {
        for key in &keys {
            world.verify(&world.instances[index], key).await;
        }
    }
}

async fn set(world: &World, name: &str, value: &str) {
    let master = world.master.load(Ordering::SeqCst);
    ask::<()>(world, master, &["CONFIG", "SET", name, value]).await.unwrap();
}

/// Takes the limits and the junk away.
async fn restore(world: &World) {
    set(world, "maxmemory", "0").await;
    set(world, "maxmemory-policy", "noeviction").await;
    let master = world.master.load(Ordering::SeqCst);
    let junk: Vec<String> = ask(world, master, &["KEYS", "junk:*"]).await.unwrap();
    let unlink: Vec<_> = ["UNLINK"].into_iter().chain(junk.iter().map(String::as_str)).collect();
    if unlink.len() > 1 {
        ask::<()>(world, master, &unlink).await.unwrap();
    }
}

/// Has Redis remember far more changes than it holds entries, all later than those of the keys here: among
/// few names, or with the latest change, those that are evicted are never the interesting ones.
async fn revoke_others(world: &World, master: usize) {
    let client = redis_server::client(world.redis_port(master));
    let options = redis_server::patient().prefix(PREFIXES[0]);
    let other = RedisStore::new(MemoryStore::new(), client, &one_secret(), options).await;
    let changes = (0..6000)
        .map(|number| other.invalidate(Change::Key(format!("other-{number}").as_str().into())));
    futures_util::future::join_all(changes).await;
}

/// Fills the memory until half of the entries are gone.
async fn evict(world: &World, master: usize) {
    let entries = format!("{}auth:key:*", PREFIXES[0]);
    let count =
        async || ask::<Vec<String>>(world, master, &["KEYS", &entries]).await.unwrap().len();
    let before = count().await;
    let memory = info(world, master, "memory").await;
    let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    set(world, "maxmemory", used.trim()).await;
    let text = "x".repeat(500);
    for junk in 0..10_000 {
        let name = format!("junk:{junk}");
        // It lasts, so that it is not the first to go; full is full.
        let is_full = ask::<()>(world, master, &["SET", &name, &text]).await.is_err();
        if is_full || count().await <= before / 2 {
            break;
        }
    }
    world.say(format!("    {} of {before} entries are left", count().await));
}

/// Everything is gone from Redis between a revocation and a slow reader's fill.
pub async fn flush(world: &Arc<World>, chance: &mut Rng) {
    let keys = fresh(world, 4).await;
    let readers: Vec<_> = world.instances.iter().filter(|one| one.tier.is_some()).collect();
    readers.iter().for_each(|reader| reader.slow.delay(Duration::from_millis(500)));
    let mut reads = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let (world, key) = (world.clone(), key.clone());
        let reader = readers[number % readers.len()].index;
        reads.push(tokio::spawn(async move {
            world.verify(&world.instances[reader], &key).await;
        }));
    }
    sleep(Duration::from_millis(150)).await;
    for key in &keys {
        // By those whom everybody hears.
        let (world, key, author) =
            (world.clone(), key.clone(), Author::Instance(chance.usize(TOLD_BY_REDIS)));
        reads.push(tokio::spawn(async move { world.change(&key, Kind::Revoke, author).await }));
    }
    sleep(Duration::from_millis(150)).await;
    ask::<()>(world, world.master.load(Ordering::SeqCst), &["FLUSHALL"]).await.unwrap();
    for read in reads {
        read.await.unwrap();
    }
    readers.iter().for_each(|reader| reader.slow.delay(Duration::ZERO));
    keys.iter().for_each(|key| world.watch(key));
}

/// Keys that nobody has looked up.
async fn fresh(world: &World, count: usize) -> Vec<Arc<Key>> {
    let mut keys = Vec::new();
    for _ in 0..count {
        keys.push(world.issue(Place::Postgres).await);
    }
    keys
}

pub async fn stop(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(5).await;
    let master = world.master.load(Ordering::SeqCst);
    world.redis.lock().unwrap()[master].signal("STOP");
    change_all(world, &keys, milliseconds(chance, 300..1500), chance).await;
    sleep(milliseconds(chance, 0..1500)).await;
    world.redis.lock().unwrap()[master].signal("CONT");
}

/// And started again, empty.
pub async fn kill(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(5).await;
    let master = world.master.load(Ordering::SeqCst);
    world.redis.lock().unwrap()[master].signal("KILL");
    change_all(world, &keys, milliseconds(chance, 100..1500), chance).await;
    block_in_place(|| world.redis.lock().unwrap()[master].start_again());
}

/// Another server becomes the master, and the old one hears nothing from it. Some instances are led to
/// the new one, the others go on with the old one for a while.
pub async fn failover(world: &Arc<World>, chance: &mut Rng) {
    let old = world.master.load(Ordering::SeqCst);
    let new = 1 - old;
    let ports = [world.redis_port(0), world.redis_port(1)];
    let (old_port, new_port) = (ports[old].to_string(), ports[new]);
    ask::<()>(world, new, &["REPLICAOF", "127.0.0.1", &old_port]).await.unwrap();
    until(world, new, "master_link_status:up").await;
    let keys = world.warm(6).await;
    ask::<()>(world, old, &["FAILOVER"]).await.unwrap();
    until(world, old, "role:slave").await;
    until(world, new, "role:master").await;
    ask::<()>(world, old, &["REPLICAOF", "127.0.0.1", "1"]).await.unwrap();
    let led = chance.usize(..2);
    let tiers: Vec<_> = world.instances.iter().filter(|one| one.tier.is_some()).collect();
    tiers.iter().for_each(|one| world.oracle.cut_off(one));
    let lead = |number: usize| {
        let proxy = tiers[number].tier.as_ref().expect("they have one");
        proxy.lead_to(new_port);
        proxy.set(Mode::Reset);
        proxy.set(Mode::Forward);
    };
    lead(led);
    lead(2 + led);
    world.master.store(new, Ordering::SeqCst);
    // They are connected again.
    sleep(Duration::from_millis(2500)).await;
    world.oracle.reached(tiers[led]);
    world.oracle.reached(tiers[2 + led]);
    let (told, others) = keys.split_at(4);
    for key in told {
        world.change(key, Kind::Revoke, Author::Instance(TOLD_BY_REDIS.start + led)).await;
    }
    change_all(world, others, Duration::from_millis(200), chance).await;
    // Longer than any bound.
    sleep(Duration::from_secs(7)).await;
    lead(1 - led);
    lead(3 - led);
    tiers.iter().for_each(|one| world.oracle.reached(one));
    ask::<()>(world, old, &["REPLICAOF", "127.0.0.1", &new_port.to_string()]).await.unwrap();
}

/// There is no room for anything, and nothing is evicted.
pub async fn full(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(5).await;
    set(world, "maxmemory", "1").await;
    change_all(world, &keys, Duration::from_secs(1), chance).await;
    sleep(milliseconds(chance, 500..2500)).await;
    set(world, "maxmemory", "0").await;
}

/// Between the server and some of the instances.
pub async fn network(world: &Arc<World>, chance: &mut Rng) {
    let keys = world.warm(5).await;
    let delay = milliseconds(chance, 20..300);
    let modes = [Mode::Reset, Mode::Blackhole, Mode::Delay(delay), Mode::Garbage];
    let mut cut = Vec::new();
    for instance in world.instances.iter().filter(|one| one.tier.is_some()) {
        if chance.bool() || instance.feed == Feed::Redis && cut.is_empty() {
            let mode = *chance.choice(&modes).unwrap();
            world.say(format!("    {mode:?} at {}", instance.name));
            let proxy = instance.tier.as_ref().expect("it has one");
            world.oracle.cut_off(instance);
            proxy.set(mode);
            cut.push((instance, proxy));
        }
    }
    change_all(world, &keys, Duration::from_secs(1), chance).await;
    sleep(milliseconds(chance, 300..2000)).await;
    for (instance, proxy) in cut {
        proxy.set(Mode::Forward);
        world.oracle.reached(instance);
    }
}

/// Asks one of the two servers itself.
async fn ask<T: FromRedisValue>(world: &World, server: usize, words: &[&str]) -> RedisResult<T> {
    let client = redis_server::client(world.redis_port(server));
    let patience = Some(Duration::from_secs(10));
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(patience)
        .set_response_timeout(patience);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut connection).await
}

async fn info(world: &World, server: usize, section: &str) -> String {
    ask(world, server, &["INFO", section]).await.unwrap()
}

/// Waits for a line of what a server says of its replication.
async fn until(world: &World, server: usize, line: &str) {
    let begun = Instant::now();
    while !info(world, server, "replication").await.contains(line) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no {line}");
        sleep(Duration::from_millis(50)).await;
    }
}
