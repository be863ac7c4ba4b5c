//! Work that cancellation does not split.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

/// Runs `work` to its end once it has begun. If the caller gives up waiting for it, the rest goes on as a
/// task of the runtime that it began on.
pub(crate) fn run_to_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> RunToEnd<T> {
    RunToEnd { work: Some(Box::pin(work)), runtime: None }
}

pub(crate) struct RunToEnd<T: Send + 'static> {
    /// `None` while it is being polled, and once it is done.
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    /// Set by the first poll: work that never began is merely dropped.
    runtime: Option<Handle>,
}

impl<T: Send + 'static> Future for RunToEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if self.runtime.is_none() {
            self.runtime = Handle::try_current().ok();
        }
        let mut work =
            self.work.take().expect("it is polled by one caller, who stops when it is done");
        let answer = work.as_mut().poll(context);
        if answer.is_pending() {
            self.work = Some(work);
        }
        answer
    }
}

impl<T: Send + 'static> Drop for RunToEnd<T> {
    fn drop(&mut self) {
        if let (Some(work), Some(runtime)) = (self.work.take(), &self.runtime) {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::{Notify, oneshot};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_is_given_up_half_way_goes_on() {
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (done, is_done) = oneshot::channel();
        let work = {
            let (begun, go_on) = (begun.clone(), go_on.clone());
            run_to_end(async move {
                begun.notify_one();
                go_on.notified().await;
                done.send(()).unwrap();
            })
        };
        let caller = tokio::spawn(work);
        begun.notified().await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        go_on.notify_one();
        timeout(Duration::from_secs(60), is_done).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_never_began_does_not() {
        let (done, is_done) = oneshot::channel();
        drop(run_to_end(async move { done.send(()).unwrap() }));
        assert!(is_done.await.is_err());
    }

    #[tokio::test]
    async fn what_panics_is_not_polled_again() {
        let caller = tokio::spawn(run_to_end(async {
            tokio::task::yield_now().await;
            panic!("as a store may");
        }));
        assert!(caller.await.unwrap_err().is_panic());
    }
}
