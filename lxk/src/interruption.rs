//! Signals that ask for an end.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::failure::{Failure, signal_exit_code};
use crate::output::stderr_line;

/// There is nothing under way that would have to be finished.
const IDLE: u8 = 0;
/// Something is under way, and no signal has come.
const BUSY: u8 = u8::MAX;

/// One of these, or the signal that has come meanwhile.
static STATE: AtomicU8 = AtomicU8::new(IDLE);
/// Whether signals are listened to.
static IS_LISTENING: Mutex<bool> = Mutex::new(false);

/// While it lives, the first SIGINT or SIGTERM asks for an end once what is under way is done, and the second
/// ends the command at once. Before and afterwards, the first one does.
pub struct Interruption(());

impl Interruption {
    pub fn listen() -> Result<Self, Failure> {
        listen()?;
        STATE.store(BUSY, Ordering::Release);
        Ok(Self(()))
    }

    /// Fails once an end has been asked for.
    pub fn check(&self) -> Result<(), Failure> {
        match STATE.load(Ordering::Acquire) {
            IDLE | BUSY => Ok(()),
            signal => Err(Failure::Interrupted(signal, "interrupted".to_owned())),
        }
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::Release);
    }
}

/// Has a signal end the command at once with a line on standard error, unless there is an [`Interruption`].
pub fn listen() -> Result<(), Failure> {
    let mut is_listening = IS_LISTENING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if *is_listening {
        return Ok(());
    }
    let (started, has_started) = mpsc::channel();
    // On a thread of its own, because the others may block on input, or on whoever reads the output.
    thread::Builder::new().spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(obey_signals(&started)),
            Err(error) => drop(started.send(Err(error))),
        }
    })?;
    has_started.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
    *is_listening = true;
    Ok(())
}

async fn obey_signals(started: &mpsc::Sender<io::Result<()>>) {
    let (listening, mut signals) = match Signals::new() {
        Ok(signals) => (Ok(()), Some(signals)),
        Err(error) => (Err(error), None),
    };
    let _ = started.send(listening);
    while let Some(signals) = &mut signals {
        let next = signals.next().await;
        let asked = STATE.compare_exchange(BUSY, next, Ordering::AcqRel, Ordering::Acquire);
        match asked {
            Ok(_) => stderr_line_within(
                Duration::ZERO,
                "note: what is under way is finished first; the same again ends at once",
            ),
            Err(_) => {
                stderr_line_within(
                    Duration::from_secs(1),
                    "error: interrupted; what was done stays done",
                );
                std::process::exit(signal_exit_code(next).into());
            }
        }
    }
}

/// Prints a line on standard error on a thread of its own, and waits so long at most until it is out:
/// standard error may be blocked.
fn stderr_line_within(timeout: Duration, text: &'static str) {
    let (printed, is_printed) = mpsc::channel();
    thread::spawn(move || {
        stderr_line(text);
        printed.send(())
    });
    let _ = is_printed.recv_timeout(timeout);
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { interrupt, terminate })
    }

    /// Waits for a signal, and returns its number.
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
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> u8 {
        match tokio::signal::ctrl_c().await {
            Ok(()) => 2,
            Err(_) => std::future::pending().await,
        }
    }
}
