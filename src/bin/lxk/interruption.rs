//! Signals that ask for an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::failure::Failure;
use crate::output::say;

/// No signal has come.
const NONE: u8 = 0;
/// There is nothing under way that would have to be finished.
const OVER: u8 = u8::MAX;

/// While it lives, the first SIGINT or SIGTERM asks for an end once what is under way is done; the second
/// ends the command at once, and so does the first one afterwards.
pub struct Interruption {
    signal: Arc<AtomicU8>,
}

impl Interruption {
    pub fn listen() -> Result<Self, Failure> {
        let signal = Arc::new(AtomicU8::new(NONE));
        let interruption = Self { signal: signal.clone() };
        let mut signals = Signals::new()?;
        tokio::spawn(async move {
            loop {
                let next = signals.next().await;
                if signal.swap(next, Ordering::AcqRel) != NONE {
                    std::process::exit(exit_code(next).into());
                }
                say("note: what is under way is finished first; the same again ends at once");
            }
        });
        Ok(interruption)
    }

    /// Fails once an end has been asked for.
    pub fn check(&self) -> Result<(), Failure> {
        match self.signal.load(Ordering::Acquire) {
            NONE => Ok(()),
            signal => Err(Failure::Interrupted(signal, "interrupted".to_owned())),
        }
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        self.signal.store(OVER, Ordering::Release);
    }
}

/// What shells say of a command that a signal has ended.
pub fn exit_code(signal: u8) -> u8 {
    128 + signal
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { interrupt, terminate })
    }

    /// The number of the next one.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> u8 {
        match tokio::signal::ctrl_c().await {
            Ok(()) => 2,
            Err(_) => std::future::pending().await,
        }
    }
}
