//! The examination of a server: what it says of itself, and whether a cache can rely on it.

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, RedisResult};

use super::entry::Run;

/// Checks what has to hold for as long as a server is used, and returns which run of which server it is.
pub(super) async fn examine(connection: &mut MultiplexedConnection) -> RedisResult<Run> {
    let mut pipe = redis::pipe();
    for section in ["server", "replication", "memory"] {
        pipe.cmd("INFO").arg(section);
    }
    let sections: [String; 3] = pipe.query_async(connection).await?;
    let field = |name: &str| {
        let mut lines = sections.iter().flat_map(|section| section.lines());
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
    };
    match field("role") {
        "master" => {}
        "slave" => return Err(unfit("this server is a replica, which takes no changes", "")),
        _ => return Err(unfit("the server does not say by INFO whether it is a master", "")),
    }
    // Only `allkeys-*` evicts what never expires: marks of changes would go, and the entries that they
    // outdate would stay. https://redis.io/docs/latest/develop/reference/eviction/
    match field("maxmemory_policy") {
        "noeviction" => {}
        policy if policy.starts_with("volatile-") => {}
        "" => {
            let problem = "the server does not say by INFO what it evicts; allow the command";
            return Err(unfit(problem, ""));
        }
        policy => {
            let problem = "the server may evict marks of changes; set its maxmemory-policy to \
                 noeviction or volatile-ttl";
            return Err(unfit(problem, policy));
        }
    }
    let start_of = |name| field(name).get(..16).and_then(|id| Run::from_str_radix(id, 16).ok());
    match (start_of("run_id"), start_of("master_replid")) {
        // Another replication id is another history of writes, also in the same process.
        (Some(process), Some(history)) => Ok(process ^ history),
        _ => Err(unfit("the server does not say by INFO which one it is", "")),
    }
}

fn unfit(problem: &'static str, detail: &str) -> RedisError {
    (ErrorKind::Client, problem, detail.to_owned()).into()
}
