//! What is done to keys, and by whom.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use lexikon_auth::{KeyUpdate, ManageError};
use lexikon_auth_tests::SECRETS;

use crate::instances::{Feed, Instance, PREFIXES, Place};
use crate::oracle::{Change, Key};
use crate::world::World;

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Revoke,
    Expire,
    Narrow,
    DisableOwner,
}

#[derive(Debug, Clone, Copy)]
pub enum Author {
    /// Through the caches of this instance.
    Instance(usize),
    /// With plain SQL.
    Sql,
    /// Another process, which tells the instances with this prefix in Redis.
    Lxk(usize),
}

impl Kind {
    /// What can be done through the caches of an instance.
    pub fn of_a_key(chance: &mut Rng) -> Self {
        *chance.choice(&[Self::Revoke, Self::Expire, Self::Narrow]).unwrap()
    }

    fn statement(self, key: &Key) -> String {
        let (id, owner) = (&key.id, &key.owner);
        match self {
            Self::Revoke => format!("UPDATE api_keys SET is_active = FALSE WHERE id = '{id}'"),
            Self::Expire => {
                format!("UPDATE api_keys SET expires_at = '2001-01-01 00:00:00' WHERE id = '{id}'")
            }
            Self::Narrow => format!("UPDATE api_keys SET scopes = 'read' WHERE id = '{id}'"),
            Self::DisableOwner => {
                format!("UPDATE users SET is_active = FALSE WHERE id = '{owner}'")
            }
        }
    }
}

/// What is done to a key, and by whom.
pub fn any(world: &World, place: Place, chance: &mut Rng) -> (Kind, Author) {
    match chance.u8(..10) {
        0..=5 => {
            let instances: Vec<_> = world.at(place).map(|instance| instance.index).collect();
            let instance = *chance.choice(&instances).expect("there are instances");
            (Kind::of_a_key(chance), Author::Instance(instance))
        }
        6 | 7 => (Kind::of_a_key(chance), Author::Sql),
        8 => (Kind::DisableOwner, Author::Sql),
        _ => (Kind::Revoke, Author::Lxk(chance.usize(..PREFIXES.len()))),
    }
}

impl Author {
    fn tells_redis(self, world: &World) -> bool {
        match self {
            Self::Instance(index) => world.instances[index].feed == Feed::Redis,
            Self::Sql => false,
            Self::Lxk(prefix) => prefix == 1,
        }
    }
}

impl World {
    /// Makes a change, and waits until it is committed.
    pub async fn change(&self, key: &Arc<Key>, kind: Kind, author: Author) {
        let instance = match author {
            Author::Instance(index) => Some(index),
            Author::Sql | Author::Lxk(_) => None,
        };
        key.begin(Change::new(matches!(kind, Kind::Narrow), instance, author.tells_redis(self)));
        match author {
            Author::Instance(index) => {
                let instance = &self.instances[index];
                if call(instance, key, kind).await.is_ok() {
                    key.committed(true);
                    // Not at all: the very next one has to know.
                    return self.verify(instance, key).await;
                }
            }
            Author::Sql => {
                self.sql(key.place, &kind.statement(key)).await;
                key.committed(false);
            }
            Author::Lxk(prefix) => {
                let mut command = self.lxk(key.place, prefix);
                command.args(["revoke", &key.id.to_string()]);
                let status = tokio::task::spawn_blocking(move || command.status().unwrap());
                if !status.await.unwrap().success() {
                    key.redis_was_not_told();
                }
            }
        }
        self.settle(key).await;
    }

    /// Waits for a change whose outcome nobody has told.
    pub async fn settle(&self, key: &Key) {
        if self.is_committed(key).await {
            key.committed(false);
        }
    }

    /// The command, with nothing on its output.
    pub fn lxk(&self, place: Place, prefix: usize) -> Command {
        let redis = self.redis_port(self.master.load(Ordering::SeqCst));
        let mut command = Command::new(env!("CARGO_BIN_EXE_lxk"));
        command
            .env_clear()
            .env("DATABASE_URL", self.url(place))
            .env("API_KEY_SECRET", SECRETS[0])
            .env("REDIS_URL", format!("redis://127.0.0.1:{redis}"))
            .env("REDIS_PREFIX", PREFIXES[prefix])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

/// Makes a change through the caches of an instance.
pub async fn call(instance: &Instance, key: &Key, kind: Kind) -> Result<(), ManageError> {
    let update = match kind {
        Kind::Revoke | Kind::DisableOwner => {
            return instance.manager.revoke(&key.id, None).await;
        }
        Kind::Expire => {
            KeyUpdate::default().expires_at(SystemTime::now() - Duration::from_secs(60))
        }
        Kind::Narrow => KeyUpdate::default().scopes("read"),
    };
    instance.manager.update(&key.id, update).await
}

/// Ends a process as a machine that loses power does.
pub fn kill(mut process: Child) {
    process.kill().unwrap();
    process.wait().unwrap();
}
