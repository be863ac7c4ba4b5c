//! What is done to servers, to the network between, and by callers who give up.

mod callers;
mod postgres;
mod redis;

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;

use crate::changes;
use crate::instances::Place;
use crate::oracle::Key;
use crate::schedule::Fault;
use crate::world::World;

/// Plays a fault from its beginning to its end.
pub async fn play(world: &Arc<World>, fault: Fault, chance: &mut Rng) {
    let number = match fault {
        // It says itself when it begins, at one instance.
        Fault::FollowerReplaced => None,
        _ => Some(world.oracle.begin(fault, None)),
    };
    world.say(format!("{} begins", fault.name()));
    match fault {
        Fault::RedisPressure => redis::pressure(world, chance).await,
        Fault::RedisAllkeys => redis::allkeys(world, chance).await,
        Fault::RedisFlush => redis::flush(world, chance).await,
        Fault::RedisStop => redis::stop(world, chance).await,
        Fault::RedisKill => redis::kill(world, chance).await,
        Fault::RedisFailover => redis::failover(world, chance).await,
        Fault::RedisFull => redis::full(world, chance).await,
        Fault::RedisNetwork => redis::network(world, chance).await,
        Fault::TriggersDisabled => postgres::triggers_disabled(world, chance).await,
        Fault::TriggersBlink => postgres::triggers_blink(world).await,
        Fault::TableReplaced => postgres::table_replaced(world, chance).await,
        Fault::ReplicaRole => postgres::replica_role(world).await,
        Fault::ListenerTerminated => postgres::listener_terminated(world, chance).await,
        Fault::PostgresKill => postgres::kill(world, chance).await,
        Fault::PostgresNetwork => postgres::network(world, chance).await,
        Fault::DroppedCaller => callers::dropped(world, chance).await,
        Fault::StatementTimeout => callers::timed_out(world, chance).await,
        Fault::SlowReads => callers::slow_reads(world, chance).await,
        Fault::LxkKilled => callers::lxk_killed(world, chance).await,
        Fault::FollowerReplaced => callers::follower_replaced(world, chance).await,
    }
    if let Some(number) = number {
        world.oracle.end(number);
    }
    world.say(format!("{} ends", fault.name()));
}

/// Changes keys in all sorts of ways, one after the other, within about this time.
async fn change_all(world: &Arc<World>, keys: &[Arc<Key>], within: Duration, chance: &mut Rng) {
    for key in keys {
        let (kind, author) = changes::any(world, Place::Postgres, chance);
        let (world, key) = (world.clone(), key.clone());
        tokio::spawn(async move { world.change(&key, kind, author).await });
        sleep(within / keys.len() as u32).await;
    }
}

fn milliseconds(chance: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(chance.u64(range))
}
