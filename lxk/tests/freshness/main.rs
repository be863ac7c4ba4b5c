//! Revocations under a random schedule of faults of real servers, held against the table of
//! docs/caching.md with a clock.
//!
//! `FRESHNESS_SEED` plays a schedule again, `FRESHNESS_SECONDS` says how long (60 unless told),
//! `FRESHNESS_FAULTS` plays some kinds alone. `tests/soak MINUTES` plays new schedules for longer.

mod changes;
mod faults;
mod instances;
mod oracle;
mod schedule;
mod slow;
mod stalls;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use instances::Place;
use schedule::{DECKS, Deck, Fault, Plan};
use tokio::task::JoinSet;
use tokio::time::sleep;
use world::World;

/// Of the verifications of one instance that are under way at a time.
const WATCHERS: usize = 4;
/// Between two verifications of one watcher: some 200 a second altogether.
const PACE: Duration = Duration::from_millis(150);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_accepted_longer_than_promised_whatever_fails() {
    let plan = Plan::from_environment();
    let start = plan.begin();
    let world = Arc::new(World::new(start).await);
    let over = Arc::new(AtomicBool::new(false));
    let mut watchers = JoinSet::new();
    for index in 0..world.instances.len() {
        let turn = Arc::new(AtomicUsize::new(0));
        for _ in 0..WATCHERS {
            watchers.spawn(watch(world.clone(), index, turn.clone(), over.clone()));
        }
    }
    // Nobody touches these: they are good to the end.
    for place in [Place::Postgres, Place::Postgres, Place::Sqlite] {
        let key = world.issue(place).await;
        world.watch(&key);
    }

    let end = Instant::now() + plan.time;
    let mut players = JoinSet::new();
    for (name, faults) in DECKS {
        let cards = faults.iter().copied().filter(|fault| plan.faults.contains(fault)).collect();
        players.spawn(deal(world.clone(), Deck::new(cards), plan.chance(name), end));
    }
    let changing = tokio::spawn(change(world.clone(), plan.chance("changes"), end));
    let mut played = BTreeSet::new();
    while let Some(dealt) = players.join_next().await {
        played.extend(dealt.expect("every fault can be played"));
    }
    changing.await.unwrap();
    world.say("the last changes are watched");
    sleep(oracle::WATCHED).await;
    over.store(true, Ordering::SeqCst);
    while let Some(watched) = watchers.join_next().await {
        watched.unwrap();
    }

    println!("{}", world.oracle.summary());
    let violations = world.oracle.violations();
    assert!(
        violations.is_empty(),
        "{} violations, the first:\n{}\nto play it again: {}",
        violations.len(),
        violations[0],
        plan.command()
    );
    let missing: Vec<_> = plan.faults.iter().filter(|fault| !played.contains(fault)).collect();
    assert!(missing.is_empty() || plan.time < Duration::from_secs(60), "never played: {missing:?}");
    let counts = &world.oracle.counts;
    for count in [&counts.accepted, &counts.refused, &counts.refused_undisturbed] {
        assert_ne!(count.load(Ordering::SeqCst), 0, "{}", world.oracle.summary());
    }
}

/// Verifies what is watched, in turns.
async fn watch(world: Arc<World>, index: usize, turn: Arc<AtomicUsize>, over: Arc<AtomicBool>) {
    let instance = &world.instances[index];
    while !over.load(Ordering::SeqCst) {
        if let Some(key) = world.next(instance, &turn) {
            world.verify(instance, &key).await;
        }
        sleep(PACE).await;
    }
}

/// Plays faults, one after another, until the time is over and none is left out.
async fn deal(world: Arc<World>, mut deck: Deck, mut chance: Rng, end: Instant) -> Vec<Fault> {
    let mut played = Vec::new();
    // Undisturbed at first.
    sleep(Duration::from_millis(chance.u64(1000..3000))).await;
    while Instant::now() < end || !deck.is_through() {
        let Some(fault) = deck.draw(&mut chance) else { break };
        faults::play(&world, fault, &mut chance).await;
        played.push(fault);
        // Now and then long enough for everything to recover.
        let pause = if chance.u8(..3) == 0 { 3000..6000 } else { 200..1500 };
        sleep(Duration::from_millis(chance.u64(pause))).await;
    }
    played
}

/// Issues keys and changes them, whatever else goes on.
async fn change(world: Arc<World>, mut chance: Rng, end: Instant) {
    let mut under_way = JoinSet::new();
    while Instant::now() < end {
        let place = if chance.u8(..5) == 0 { Place::Sqlite } else { Place::Postgres };
        let (kind, author) = changes::any(&world, place, &mut chance);
        let rest = (chance.u8(..4) == 0).then(|| Duration::from_millis(chance.u64(500..6000)));
        let world = world.clone();
        under_way.spawn(async move {
            let key = world.issue(place).await;
            world.watch(&key);
            world.verify_everywhere(&key).await;
            sleep(Duration::from_millis(1000)).await;
            world.say(format!("{kind:?} {} by {author:?}", key.id));
            if let Some(rest) = rest {
                key.rest(Instant::now() + rest);
            }
            world.change(&key, kind, author).await;
        });
        sleep(Duration::from_millis(chance.u64(200..800))).await;
    }
    while let Some(changed) = under_way.join_next().await {
        changed.unwrap();
    }
}
