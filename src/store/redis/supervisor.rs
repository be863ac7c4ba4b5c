//! The background task that examines Redis while it is used, and looks for it after a fault.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};
use tokio::time::timeout;

use super::link::{Connected, Link};
use super::options::RedisOptions;

/// How often the server is examined, and how long to wait after a fault before it is tried again; twice as
/// long after each attempt that fails,
const INTERVAL: Duration = Duration::from_secs(1);
/// and no longer than this,
const MAX_DELAY: Duration = Duration::from_secs(8);
/// or this while changes are pending.
const MAX_DELAY_PENDING: Duration = Duration::from_secs(2);

/// Connects, and starts the task. It ends when nobody uses the link any more.
pub(super) async fn start(client: Client, options: RedisOptions) -> Arc<Link> {
    let link = Arc::new(Link::new(options));
    if let Err(error) = connect(&link, &client).await {
        link.log_fault(&error);
    }
    tokio::spawn(supervise(Arc::downgrade(&link), client));
    link
}

async fn supervise(link: Weak<Link>, client: Client) {
    let mut delay = INTERVAL;
    loop {
        let Some(first_pending) = link.upgrade().map(|link| link.first_pending.clone()) else {
            return;
        };
        let _ = timeout(delay, first_pending.notified()).await;
        let Some(link) = link.upgrade() else { return };
        delay = match check(&link, &client).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                link.bypass(&error);
                link.log_fault(&error);
                let longest = if link.has_pending() { MAX_DELAY_PENDING } else { MAX_DELAY };
                longest.min(2 * delay)
            }
        };
    }
}

/// Examines the server that is used, or looks for one.
async fn check(link: &Arc<Link>, client: &Client) -> RedisResult<()> {
    let Some(Connected { mut connection, run }) = link.connected() else {
        return connect(link, client).await;
    };
    if link.examine(&mut connection).await? != run {
        let problem = "another server answers in place of the one before";
        return Err(RedisError::from((ErrorKind::Client, problem)));
    }
    link.check_bulk_change(&mut connection).await?;
    link.report();
    Ok(())
}

/// Looks for a server that can be relied on, and uses it once the pending changes were sent to it.
async fn connect(link: &Arc<Link>, client: &Client) -> RedisResult<()> {
    let timeout = Some(link.options.timeout);
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(timeout).set_response_timeout(timeout);
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    let mut connection = connection.await?;
    let run = link.examine(&mut connection).await?;
    link.replay_to(run);
    let mut connected = Connected { connection, run };
    while !link.set_connected(&connected) {
        let mut unsent = link.take_pending();
        while let Some(change) = unsent.changes.last() {
            // Published too: other instances may have read entries that the change had outdated.
            let connection = &mut connected.connection;
            link.scripts.mark(connection, &link.options, change, true).await?;
            link.add_sent(run, change);
            unsent.changes.pop();
        }
    }
    Ok(())
}
