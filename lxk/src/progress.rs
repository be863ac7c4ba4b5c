//! Signs of life on the terminal for whoever waits.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long a command may take without a sign of life.
const DELAY: Duration = Duration::from_secs(1);

/// A bar on the terminal, from the second second on.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    is_shown: bool,
}

impl Progress {
    /// Makes a bar that is hidden; `total` is 0 where it is not known.
    pub fn new(total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let style = match total {
            0 => "{pos} in {elapsed}",
            _ => "{bar:30} {pos}/{len}, {eta} left",
        };
        bar.set_style(ProgressStyle::with_template(style).expect("a template without faults"));
        Self { bar, started: Instant::now(), is_shown: false }
    }

    pub fn set(&mut self, position: u64) {
        if !self.is_shown && self.started.elapsed() > DELAY {
            // Draws nothing where standard error is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.is_shown = true;
        }
        self.bar.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Waits for one long answer, with a sign of life on the terminal from the second second on.
pub async fn with_spinner<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match tokio::time::timeout(DELAY, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            let spinner = ProgressBar::new_spinner();
            spinner.set_message("the database is at work");
            spinner.enable_steady_tick(Duration::from_millis(100));
            let done = work.await;
            spinner.finish_and_clear();
            done
        }
    }
}
