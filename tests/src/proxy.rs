//! A TCP proxy that can refuse, reset, delay, or swallow what goes through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Everything goes through.
    Forward,
    /// New connections are reset; old ones go on.
    Refuse,
    /// All connections are reset, new ones as well.
    Reset,
    /// Everything goes through later.
    Delay(Duration),
    /// Connections are taken and nothing goes through.
    Blackhole,
    /// What comes back is not what was sent.
    Garbage,
}

/// Forwards a port of its own to another port of this machine, for as long as it lives.
pub struct Proxy {
    pub port: u16,
    target: Arc<AtomicU16>,
    mode: watch::Sender<Mode>,
}

impl Proxy {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = watch::Sender::new(Mode::Forward);
        let modes = mode.subscribe();
        let target = Arc::new(AtomicU16::new(target));
        let current = target.clone();
        tokio::spawn(async move {
            let mut closed = modes.clone();
            loop {
                tokio::select! {
                    client = listener.accept() => {
                        let Ok((client, _)) = client else { return };
                        let target = current.load(Ordering::SeqCst);
                        tokio::spawn(forward(client, target, modes.clone()));
                    }
                    gone = closed.wait_for(|_| false) => {
                        let _ = gone;
                        return;
                    }
                }
            }
        });
        Self { port, target, mode }
    }

    /// Leads new connections to another port. Old ones go on.
    pub fn lead_to(&self, target: u16) {
        self.target.store(target, Ordering::SeqCst);
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

fn reset(stream: &TcpStream) {
    stream.set_zero_linger().unwrap();
}

async fn forward(client: TcpStream, target: u16, modes: watch::Receiver<Mode>) {
    let now = *modes.borrow();
    if matches!(now, Mode::Refuse | Mode::Reset) {
        return reset(&client);
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return reset(&client);
    };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let is_over = {
        let mut modes = modes.clone();
        async move {
            let _ = modes.wait_for(|mode| *mode == Mode::Reset).await;
        }
    };
    let (mut to_client, mut to_server) = (to_client, to_server);
    tokio::select! {
        () = copy(from_client, &mut to_server, modes.clone(), false) => {}
        () = copy(from_server, &mut to_client, modes, true) => {}
        () = is_over => reset(to_client.as_ref()),
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
    is_answer: bool,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if modes.wait_for(|mode| *mode != Mode::Blackhole).await.is_err() {
            return;
        }
        let mode = *modes.borrow();
        match mode {
            Mode::Delay(duration) => sleep(duration).await,
            Mode::Garbage if is_answer => buffer[..count].fill(b'?'),
            _ => {}
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
