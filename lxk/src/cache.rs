//! The cache in Redis.

use clap::{Args, Subcommand};
use lexikon_auth::StoreError;
use lexikon_auth::admin::KeyTable;
use lexikon_auth::store::{DynKeyStore, RedisStore, SharedCache};
use serde_json::json;

use crate::database::Database;
use crate::environment::{configured_cache, describe, redis_client, redis_options, variable};
use crate::failure::Failure;
use crate::output::Output;

#[derive(Subcommand)]
pub enum Command {
    /// Remove entries, and have every instance forget what they said
    Clear(Clear),
    /// Show what Redis holds
    Stats,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Clear {
    /// The entries of this owner
    #[arg(long)]
    owner: Option<String>,
    /// All entries
    #[arg(long)]
    all: bool,
}

pub async fn run(command: Command, url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let redis_url = variable("REDIS_URL").ok_or_else(|| {
        Failure::Usage("REDIS_URL is not set; set it to redis://host:port/number".to_owned())
    })?;
    match command {
        Command::Clear(clear) => {
            let database = Database::open_to_change(url).await?;
            let redis = database.redis().expect("REDIS_URL is set");
            let removed = clear_entries(&database.table, redis, &clear).await?;
            output.object(&json!({"removed": removed}));
            output.line(format!("{removed} removed"));
        }
        Command::Stats => {
            let cache = configured_cache(&redis_url)?;
            let stats = Stats::read(&redis_url).await?;
            output.object(&stats.object(&cache));
            output.line(format!("tier       {}", describe(&cache)));
            output.line(format!("server     Redis {}", stats.version));
            output.line(format!("entries    {}", stats.entries));
            output.line(format!("memory     {} bytes of {}", stats.used, stats.limit_text()));
            output.line(format!("policy     {}", stats.policy));
            output.line(format!("role       {}", stats.role));
            if stats.is_changing {
                output.line(format!("bypassed   {CHANGING}"));
            }
            output.line(format!("evictions  {}", stats.evicted));
            output.line(format!("clients    {}", stats.clients));
        }
    }
    Ok(())
}

async fn clear_entries(
    table: &KeyTable,
    redis: &RedisStore<DynKeyStore>,
    clear: &Clear,
) -> Result<u64, Failure> {
    let removed = async {
        match &clear.owner {
            Some(owner) => redis.clear_owner(&owner.as_str().into()).await,
            None => {
                // Removes the marker that a killed change left behind, but none in the middle of a batch.
                table.in_turn(async { redis.begin_bulk_change().await?.finish().await }).await?;
                redis.clear().await
            }
        }
    };
    removed.await.map_err(|error: StoreError| {
        Failure::Unavailable(format!("{error}; once that is mended, run this again"))
    })
}

/// Why Redis is bypassed while its marker is there.
pub const CHANGING: &str = "many keys are being changed; where that was interrupted, run it again, or: \
     lxk cache clear --all";

/// What Redis says of itself.
pub struct Stats {
    version: String,
    pub entries: u64,
    used: u64,
    pub limit: u64,
    pub policy: String,
    pub role: String,
    /// Whether many keys are being changed, or that was interrupted.
    pub is_changing: bool,
    evicted: u64,
    clients: u64,
}

impl Stats {
    /// Asks Redis, and counts the entries.
    pub async fn read(url: &str) -> Result<Self, Failure> {
        let unavailable = |error: redis::RedisError| {
            Failure::Unavailable(format!("Redis does not answer: {error}; check that it runs"))
        };
        let client = redis_client(url)?;
        let options = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(std::time::Duration::from_secs(2)))
            .set_response_timeout(Some(std::time::Duration::from_secs(10)));
        let connection = client.get_multiplexed_async_connection_with_config(&options);
        let mut connection = connection.await.map_err(unavailable)?;
        let info: String =
            redis::cmd("INFO").query_async(&mut connection).await.map_err(unavailable)?;
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        let number = |name| field(name).parse().unwrap_or_default();
        let (mut entries, mut cursor) = (0, 0_u64);
        loop {
            let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(redis_options().entry_pattern())
                .arg("COUNT")
                .arg(1000)
                .query_async(&mut connection)
                .await
                .map_err(unavailable)?;
            entries += keys.len() as u64;
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        let marker = redis_options().bulk_change_marker();
        let is_changing = redis::cmd("EXISTS")
            .arg(marker)
            .query_async(&mut connection)
            .await
            .map_err(unavailable)?;
        Ok(Self {
            version: field("redis_version"),
            entries,
            used: number("used_memory"),
            limit: number("maxmemory"),
            policy: field("maxmemory_policy"),
            role: field("role"),
            is_changing,
            evicted: number("evicted_keys"),
            clients: number("connected_clients"),
        })
    }

    fn limit_text(&self) -> String {
        if self.limit == 0 { "no limit".to_owned() } else { self.limit.to_string() }
    }

    fn object(&self, cache: &SharedCache) -> serde_json::Value {
        json!({
            "prefix": cache.prefix,
            "address": cache.address,
            "version": self.version,
            "entries": self.entries,
            "used_bytes": self.used,
            "limit_bytes": (self.limit > 0).then_some(self.limit),
            "policy": self.policy,
            "role": self.role,
            "changing": self.is_changing,
            "evicted": self.evicted,
            "clients": self.clients,
        })
    }
}
