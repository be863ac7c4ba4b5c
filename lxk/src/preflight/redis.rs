//! Redis, where instances share a cache there.

use super::report::Finding::{self, Failed, Note, Passed};
use crate::cache::{CHANGING, Stats};
use crate::database::Database;
use crate::environment::{configured_cache, describe, variable};

pub async fn check_redis(database: Option<&Database>) -> Finding {
    let others = match database {
        Some(database) => database.shared_caches().await.unwrap_or_default(),
        None => Vec::new(),
    };
    let Some(url) = variable("REDIS_URL") else {
        return match others.first() {
            None => Note("not checked: REDIS_URL is not set".to_owned()),
            Some(cache) => Failed(format!(
                "REDIS_URL is not set, but instances keep copies with {}; set it as they have it",
                describe(cache)
            )),
        };
    };
    if let (Ok(own), Some(cache)) = (configured_cache(&url), others.first())
        && !others.contains(&own)
    {
        return Failed(format!(
            "instances keep copies with {}, and this is {}; set REDIS_URL and REDIS_PREFIX as they \
             have them",
            describe(cache),
            describe(&own)
        ));
    }
    match Stats::read(&url).await {
        Err(failure) => Failed(failure.to_string()),
        Ok(stats) if stats.limit == 0 => Failed(
            "has no memory limit; set maxmemory, and maxmemory-policy to volatile-ttl".to_owned(),
        ),
        Ok(stats) if stats.policy != "noeviction" && !stats.policy.starts_with("volatile-") => {
            Failed(format!(
                "maxmemory-policy is {}, which evicts marks of changes, so instances bypass Redis; set \
                 it to volatile-ttl or noeviction",
                stats.policy
            ))
        }
        Ok(stats) if stats.role != "master" => Failed(format!(
            "is a {}, which takes no changes, so instances bypass it; name its master",
            stats.role
        )),
        Ok(stats) if stats.is_changing => Note(format!("bypassed: {CHANGING}")),
        Ok(stats) => Passed(format!("{} bytes at most, {}", stats.limit, stats.policy)),
    }
}
