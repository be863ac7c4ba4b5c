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
const SETTLE_TIME: Duration = Duration::from_secs(1);

const NO_FILE: &str = "changes are reported by a database in a file alone; for keys in memory, change \
    them through the cache";
const OTHER_FILE: &str = "the database file has been replaced or removed since this program opened it; \
    restart the program, so that it reads the new one";

/// The file that a store has opened. Clones share what is known of it.
#[derive(Clone)]
pub(super) struct OpenedFile {
    path: Arc<Path>,
    id: Option<Id>,
    is_replaced: Arc<AtomicBool>,
}

impl OpenedFile {
    pub(super) fn at(path: &Path) -> Self {
        // The folder of the process may change.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { id: Id::of(&path).ok(), path: path.into(), is_replaced: Arc::default() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails where the path leads to another file by now, and has the store answer nothing from then on:
    /// what it has open is what nobody changes any more.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let id = self.id.ok_or_else(|| StoreError::CannotOpen(NO_FILE.into()))?;
        match Id::of(&self.path) {
            Ok(now) if now == id => {}
            Ok(_) => self.is_replaced.store(true, Ordering::Release),
            // It may be back in a moment, where somebody only renamed it for a while.
            Err(_) => return Err(StoreError::CannotOpen(OTHER_FILE.into())),
        }
        self.require_current()
    }

    /// Fails where a check has found another file.
    pub(super) fn require_current(&self) -> Result<(), StoreError> {
        if self.is_replaced.load(Ordering::Acquire) {
            return Err(StoreError::CannotOpen(OTHER_FILE.into()));
        }
        Ok(())
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

/// Creates an empty file for its owner alone, where there is none: SQLite would leave it to the umask.
pub(super) fn create_private(path: &Path) -> Result<(), StoreError> {
    // Where the path is a link, what counts is what it leads to.
    if path.exists() {
        return Ok(());
    }
    let mut options = fs::File::options();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop).map_err(|error| StoreError::CannotOpen(error.into()))
}

/// Keeps all others out of a file that is about to become a database and that everybody may open: its mode
/// is that of a umask. One that only a group may open as well was given to it.
pub(super) fn make_private(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = fs::metadata(path) {
        use std::os::unix::fs::PermissionsExt;
        let mut permissions = metadata.permissions();
        if metadata.is_file() && permissions.mode() & 0o007 != 0 {
            permissions.set_mode(permissions.mode() & 0o700);
            // Some file systems have no modes, and some files are another user's to protect.
            let _ = fs::set_permissions(path, permissions);
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// Says when the database should be asked whether somebody has written, without asking it, which would
/// wake its thread: each commit goes to the database file or to its write-ahead log.
pub(super) struct Watch {
    paths: [PathBuf; 2],
    /// What the files were like when the database was asked.
    stamp: Stamp,
    /// Until when what was written may come to be seen; `None` once the database has been asked after that.
    settles_at: Option<Instant>,
}

/// The sizes of the files and the times of their last changes; `None` where there is no file.
type Stamp = [Option<(u64, SystemTime)>; 2];

/// What the files are like, and when.
pub(super) struct Snapshot {
    stamp: Stamp,
    at: Instant,
}

impl Watch {
    /// Begins with a database that is asked from here on.
    pub(super) fn new(path: &Path) -> Self {
        // SQLite puts its files beside the one that a link leads to.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut log = path.clone().into_os_string();
        log.push("-wal");
        let mut watch = Self { paths: [path, log.into()], stamp: [None; 2], settles_at: None };
        let snapshot = watch.snapshot();
        watch.mark_read(snapshot);
        watch
    }

    /// Returns what tells of writes, where the system can.
    pub(super) fn notices(&self) -> Option<Notices> {
        Notices::of(&self.paths[0])
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let of = |metadata: Metadata| Some((metadata.len(), metadata.modified().ok()?));
        let [file, log] = &self.paths;
        let stamp = [file, log].map(|path| fs::metadata(path).ok().and_then(of));
        Snapshot { stamp, at: Instant::now() }
    }

    /// Returns whether somebody may have written since the database was asked.
    pub(super) fn may_have_changed(&self, snapshot: &Snapshot) -> bool {
        snapshot.stamp != self.stamp || self.settles_at.is_some()
    }

    /// Notes that the database has been asked after this.
    pub(super) fn mark_read(&mut self, snapshot: Snapshot) {
        if snapshot.stamp != self.stamp {
            self.stamp = snapshot.stamp;
            self.settles_at = Some(snapshot.at + SETTLE_TIME);
        } else if self.settles_at.is_some_and(|end| end <= snapshot.at) {
            self.settles_at = None;
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
