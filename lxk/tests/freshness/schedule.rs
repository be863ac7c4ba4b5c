//! Which faults there are, whom each concerns, and in which order they are played.

use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::instances::{Feed, Instance};

/// What goes wrong. Each is played by the function of the same name in `faults`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    RedisPressure,
    RedisAllkeys,
    RedisFlush,
    RedisStop,
    RedisKill,
    RedisFailover,
    RedisFull,
    RedisNetwork,
    TriggersDisabled,
    TriggersBlink,
    TableReplaced,
    ReplicaRole,
    ListenerTerminated,
    PostgresKill,
    PostgresNetwork,
    DroppedCaller,
    StatementTimeout,
    SlowReads,
    LxkKilled,
    FollowerReplaced,
}

/// Faults of one deck are played one after another, the decks side by side.
pub const DECKS: [(&str, &[Fault]); 3] = [
    (
        "redis",
        &[
            Fault::RedisPressure,
            Fault::RedisAllkeys,
            Fault::RedisFlush,
            Fault::RedisStop,
            Fault::RedisKill,
            Fault::RedisFailover,
            Fault::RedisFull,
            Fault::RedisNetwork,
        ],
    ),
    (
        "postgres",
        &[
            Fault::TriggersDisabled,
            Fault::TriggersBlink,
            Fault::TableReplaced,
            Fault::ReplicaRole,
            Fault::ListenerTerminated,
            Fault::PostgresKill,
            Fault::PostgresNetwork,
        ],
    ),
    (
        "callers",
        &[
            Fault::DroppedCaller,
            Fault::StatementTimeout,
            Fault::SlowReads,
            Fault::LxkKilled,
            Fault::FollowerReplaced,
        ],
    ),
];

impl Fault {
    /// As in `FRESHNESS_FAULTS`: `redis-pressure`.
    pub fn name(self) -> String {
        let mut name = String::new();
        for character in format!("{self:?}").chars() {
            if character.is_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.extend(character.to_lowercase());
        }
        name
    }

    /// Whether an instance may notice a change later than at once while this is in play. By what
    /// docs/caching.md promises, not by what the code does: faults of Redis are none where PostgreSQL reports
    /// the changes, and neither are callers who give up.
    pub fn delays(self, instance: &Instance) -> bool {
        match self {
            Self::RedisPressure
            | Self::RedisFlush
            | Self::RedisStop
            | Self::RedisKill
            | Self::RedisFailover
            | Self::RedisFull
            | Self::RedisNetwork => instance.feed == Feed::Redis,
            // A policy under which the tier is not to be used, noticed as late as a lost feed is.
            Self::RedisAllkeys => instance.tier.is_some(),
            Self::TriggersDisabled
            | Self::TriggersBlink
            | Self::TableReplaced
            | Self::ReplicaRole
            | Self::ListenerTerminated => instance.feed == Feed::Database,
            Self::PostgresKill
            | Self::PostgresNetwork
            | Self::LxkKilled
            | Self::FollowerReplaced => true,
            Self::DroppedCaller | Self::StatementTimeout | Self::SlowReads => false,
        }
    }

    /// Whether PostgreSQL cannot be reached, or not in time.
    pub fn is_outage(self) -> bool {
        matches!(self, Self::PostgresKill | Self::PostgresNetwork | Self::TableReplaced)
    }
}

/// What is played, for how long, and by which seed.
pub struct Plan {
    pub seed: u64,
    pub time: Duration,
    /// Those asked for; all unless told otherwise.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// Reads `FRESHNESS_SEED`, `FRESHNESS_SECONDS` and `FRESHNESS_FAULTS`.
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let number = |name: &str| variable(name).map(|text| text.parse().expect(name));
        let all = DECKS.iter().flat_map(|(_, faults)| faults.iter().copied());
        let faults = match variable("FRESHNESS_FAULTS") {
            None => all.collect(),
            Some(names) => {
                let named = |name: &str| all.clone().find(|fault| fault.name() == name);
                let unknown = |name| format!("FRESHNESS_FAULTS names no fault {name}");
                names
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(|name| named(name).unwrap_or_else(|| panic!("{}", unknown(name))))
                    .collect()
            }
        };
        Self {
            seed: number("FRESHNESS_SEED").unwrap_or_else(|| fastrand::u64(..)),
            time: Duration::from_secs(number("FRESHNESS_SECONDS").unwrap_or(60)),
            faults,
        }
    }

    /// What plays the same again.
    pub fn command(&self) -> String {
        let names: Vec<_> = self.faults.iter().map(|fault| fault.name()).collect();
        format!(
            "FRESHNESS_SEED={} FRESHNESS_SECONDS={} FRESHNESS_FAULTS={} \
             cargo test -p lxk --test freshness -- --nocapture",
            self.seed,
            self.time.as_secs(),
            names.join(",")
        )
    }

    /// Chance for one player, who draws the same whatever the others do meanwhile.
    pub fn chance(&self, player: &str) -> Rng {
        let mut seed = self.seed;
        for byte in player.bytes() {
            seed = seed.wrapping_mul(31).wrapping_add(byte.into());
        }
        Rng::with_seed(seed)
    }

    pub fn begin(&self) -> Instant {
        println!("seed {}; to play it again: {}", self.seed, self.command());
        Instant::now()
    }
}

/// All cards once in random order, then all again: none is left out by chance.
pub struct Deck {
    cards: Vec<Fault>,
    left: Vec<Fault>,
    rounds: usize,
}

impl Deck {
    pub fn new(cards: Vec<Fault>) -> Self {
        Self { left: Vec::new(), cards, rounds: 0 }
    }

    pub fn draw(&mut self, chance: &mut Rng) -> Option<Fault> {
        if self.left.is_empty() {
            self.left = self.cards.clone();
            chance.shuffle(&mut self.left);
            self.rounds += 1;
        }
        self.left.pop()
    }

    /// Whether every card has been drawn.
    pub fn is_through(&self) -> bool {
        self.rounds > 1 || (self.rounds == 1 && self.left.is_empty()) || self.cards.is_empty()
    }
}
