//! The files of a database from outside: which one it is, and whether somebody may have written to it.
//!
//! They are never opened: to close a file drops the locks that SQLite holds on it in this process
//! (<https://www.sqlite.org/howtocorrupt.html>, section 2.2).

#[cfg(target_os = "linux")]
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

#[cfg(target_os = "linux")]
use futures_util::StreamExt;

use crate::error::StoreError;

/// How long a commit takes at most from its last write to a file, after which it is synchronised to the
/// disk, until readers see it; and a file system to tell two changes apart. A commit that takes longer waits
/// for the next heartbeat.
const SETTLES: Duration = Duration::from_secs(1);

const NO_FILE: &str = "changes are reported by a database in a file alone; for keys in memory, change \
    them through the cache";
const OTHER_FILE: &str = "the database file has been replaced or removed since this program opened it; \
    restart the program, so that it reads the new one";

/// The file that a store has opened. Clones share what is known of it.
#[derive(Clone)]
pub(super) struct OpenedFile {
    path: Arc<Path>,
    id: Option<Id>,
    is_gone: Arc<AtomicBool>,
}

impl OpenedFile {
    pub(super) fn at(path: &Path) -> Self {
        // The folder of the process may change.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { id: Id::of(&path).ok(), path: path.into(), is_gone: Arc::default() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails where the path leads to another file by now, and has the store answer nothing from then on:
    /// what it has open is what nobody changes any more.
    pub(super) fn look(&self) -> Result<(), StoreError> {
        let id = self.id.ok_or_else(|| StoreError::CannotOpen(NO_FILE.into()))?;
        match Id::of(&self.path) {
            Ok(now) if now == id => {}
            Ok(_) => self.is_gone.store(true, Ordering::Release),
            // It may be back in a moment, where somebody only renamed it for a while.
            Err(_) => return Err(StoreError::CannotOpen(OTHER_FILE.into())),
        }
        self.require()
    }

    /// Fails where a look has found another file.
    pub(super) fn require(&self) -> Result<(), StoreError> {
        match self.is_gone.load(Ordering::Acquire) {
            true => Err(StoreError::CannotOpen(OTHER_FILE.into())),
            false => Ok(()),
        }
    }
}

/// Which file a path leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Id {
    #[cfg(unix)]
    device: u64,
    #[cfg(unix)]
    number: u64,
}

impl Id {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        #[cfg(unix)]
        return Ok(Self {
            device: std::os::unix::fs::MetadataExt::dev(&metadata),
            number: std::os::unix::fs::MetadataExt::ino(&metadata),
        });
        // Elsewhere a file that is open cannot be removed.
        #[cfg(not(unix))]
        return Ok(Self {});
    }
}

/// Says when the database should be asked whether somebody has written, without asking it, which would
/// wake its thread: each commit goes to the database file or to its write-ahead log.
pub(super) struct Watch {
    paths: [PathBuf; 2],
    /// What the files were like when the database was asked.
    stamp: Stamp,
    /// Until when what was written may come to be seen; `None` once the database has been asked after that.
    settles: Option<Instant>,
}

/// The sizes of the files and the times of their last changes; `None` where there is no file.
type Stamp = [Option<(u64, SystemTime)>; 2];

/// What the files are like, and when.
pub(super) struct Glance {
    stamp: Stamp,
    at: Instant,
}

impl Watch {
    /// For a database that is asked from here on.
    pub(super) fn new(path: &Path) -> Self {
        // SQLite puts its files beside the one that a link leads to.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut log = path.clone().into_os_string();
        log.push("-wal");
        let mut watch = Self { paths: [path, log.into()], stamp: [None; 2], settles: None };
        let glance = watch.look();
        watch.asked(glance);
        watch
    }

    /// What tells of writes, where the system can.
    pub(super) fn notices(&self) -> Option<Notices> {
        Notices::of(&self.paths[0])
    }

    pub(super) fn look(&self) -> Glance {
        let of = |metadata: Metadata| Some((metadata.len(), metadata.modified().ok()?));
        let [file, log] = &self.paths;
        let stamp = [file, log].map(|path| fs::metadata(path).ok().and_then(of));
        Glance { stamp, at: Instant::now() }
    }

    /// Whether somebody may have written since the database was asked.
    pub(super) fn is_news(&self, glance: &Glance) -> bool {
        glance.stamp != self.stamp || self.settles.is_some()
    }

    /// The database has been asked after this.
    pub(super) fn asked(&mut self, glance: Glance) {
        if glance.stamp != self.stamp {
            self.stamp = glance.stamp;
            self.settles = Some(glance.at + SETTLES);
        } else if self.settles.is_some_and(|end| end <= glance.at) {
            self.settles = None;
        }
    }
}

/// Tells that somebody writes to the files of a database, so that nobody has to look in vain. It may be
/// before the commit, and on a file system of another machine not at all.
#[cfg(target_os = "linux")]
pub(super) struct Notices {
    events: inotify::EventStream<[u8; 1024]>,
    /// What the names of the files begin with.
    name: OsString,
}

#[cfg(target_os = "linux")]
impl Notices {
    fn of(path: &Path) -> Option<Self> {
        let inotify = inotify::Inotify::init().ok()?;
        // The folder, because the log comes and goes.
        inotify.watches().add(path.parent()?, inotify::WatchMask::MODIFY).ok()?;
        let events = inotify.into_event_stream([0; 1024]).ok()?;
        Some(Self { events, name: path.file_name()?.to_owned() })
    }

    /// Waits until somebody writes.
    pub(super) async fn written(&mut self) {
        while let Some(Ok(event)) = self.events.next().await {
            // One without a name says that some have been left out.
            let is_ours =
                |name: OsString| name.as_encoded_bytes().starts_with(self.name.as_encoded_bytes());
            if event.name.is_none_or(is_ours) {
                return;
            }
        }
        std::future::pending().await
    }
}

/// Other systems are looked at.
#[cfg(not(target_os = "linux"))]
pub(super) enum Notices {}

#[cfg(not(target_os = "linux"))]
impl Notices {
    fn of(_: &Path) -> Option<Self> {
        None
    }

    pub(super) async fn written(&mut self) {
        match *self {}
    }
}
