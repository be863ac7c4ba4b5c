//! How long this machine kept everybody waiting: a bound that is met on an idle one must not fail on a
//! busy one.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::time::sleep;

const TICK: Duration = Duration::from_millis(20);
/// What a timer may be late without being worth a note.
const USUAL: Duration = Duration::from_millis(10);

/// When timers came late, and by how much.
#[derive(Clone, Default)]
pub struct Stalls(Arc<Mutex<Vec<(Instant, Duration)>>>);

impl Stalls {
    /// Measures for as long as the runtime lives.
    pub fn measure() -> Self {
        let stalls = Self::default();
        let measured = stalls.clone();
        tokio::spawn(async move {
            loop {
                let due = Instant::now() + TICK;
                sleep(TICK).await;
                let late = due.elapsed();
                if late > USUAL {
                    measured.0.lock().unwrap().push((due, late));
                }
            }
        });
        stalls
    }

    /// How long timers were late altogether since then.
    pub fn since(&self, from: Instant) -> Duration {
        let stalls = self.0.lock().unwrap();
        stalls
            .iter()
            .rev()
            .take_while(|(due, late)| *due + *late >= from)
            .map(|(_, late)| *late)
            .sum()
    }
}
