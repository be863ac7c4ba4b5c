//! What commands print: lines for people, objects for machines, progress for whoever waits.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::escape::{json_line, printable};
use crate::failure::Failure;

/// Where results go. Whoever reads them may go away: no work depends on it, so nothing here fails. What
/// could not be written is remembered, and asked for by the few who have to know.
pub struct Output {
    is_json: bool,
    is_coloured: bool,
    sink: Sink,
}

/// Standard output, up to the first write that failed.
struct Sink {
    out: io::BufWriter<io::Stdout>,
    lost: Option<io::Error>,
}

impl Sink {
    fn attempt(&mut self, write: impl FnOnce(&mut io::BufWriter<io::Stdout>) -> io::Result<()>) {
        if self.lost.is_none() {
            self.lost = write(&mut self.out).err();
        }
    }
}

/// How a line is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Good,
    Bad,
    Doubtful,
}

impl Output {
    pub fn new(is_json: bool) -> Self {
        let out = io::stdout();
        // https://no-color.org
        let is_coloured =
            out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { is_json, is_coloured, sink: Sink { out: io::BufWriter::new(out), lost: None } }
    }

    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// A line for people; nothing where machines read.
    pub fn line(&mut self, line: impl Display) {
        if !self.is_json {
            self.write(&(printable(&line.to_string()) + "\n"));
        }
    }

    /// A line that begins with a word in colour.
    pub fn judged(&mut self, mood: Mood, word: &str, line: &str) {
        let colour = match mood {
            Mood::Good => 32,
            Mood::Bad => 31,
            Mood::Doubtful => 33,
        };
        let line = printable(line);
        match (self.is_json, self.is_coloured) {
            (true, _) => {}
            (_, true) => self.write(&format!("\x1b[{colour}m{word:<9}\x1b[0m {line}\n")),
            (_, false) => self.write(&format!("{word:<9} {line}\n")),
        }
    }

    /// An object for machines, on a line of its own; nothing where people read.
    pub fn object(&mut self, object: &Value) {
        if self.is_json {
            self.record(object);
        }
    }

    /// An object on a line of its own, whoever reads.
    pub fn record(&mut self, object: &Value) {
        self.write(&json_line(object));
    }

    /// Text as it is.
    pub fn write(&mut self, text: &str) {
        self.sink.attempt(|out| out.write_all(text.as_bytes()));
    }

    /// Sees everything to where it goes.
    pub fn flush(&mut self) {
        self.sink.attempt(Write::flush);
    }

    /// Ends a list once nobody reads it: for commands that do nothing else.
    pub fn wanted(&self) -> Result<(), Failure> {
        if self.sink.lost.is_some() { Err(Failure::Unread) } else { Ok(()) }
    }

    /// Whether all that was printed went somewhere: for commands that have to take back what nobody has
    /// read.
    pub fn delivered(&mut self) -> Result<(), String> {
        self.flush();
        match &self.sink.lost {
            Some(error) => Err(error.to_string()),
            // Also where standard output was closed when this began: Rust opens the device in its place.
            None if is_null_device(io::stdout()) => Err("nobody reads the output".to_owned()),
            None => Ok(()),
        }
    }

    /// Ends the output. Fails where it went wrong otherwise than by a reader who had enough.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.flush();
        match self.sink.lost {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::Unavailable(format!("what was to be printed is lost: {error}")))
            }
            _ => Ok(()),
        }
    }
}

/// For those who write bytes.
impl Write for &mut Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.attempt(|out| out.write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Output::flush(self);
        Ok(())
    }
}

#[cfg(unix)]
fn is_null_device(out: io::Stdout) -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let out = out.as_fd().try_clone_to_owned().and_then(|out| std::fs::File::from(out).metadata());
    let null = std::fs::metadata("/dev/null");
    out.is_ok_and(|out| null.is_ok_and(|null| out.rdev() != 0 && out.rdev() == null.rdev()))
}

#[cfg(not(unix))]
fn is_null_device(_: io::Stdout) -> bool {
    false
}

/// Says something on standard error to whoever looks there. Nothing depends on it.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "{}", printable(&text.to_string()));
}

/// Cells side by side, each as wide as told; the last is as wide as it is.
pub fn columns(cells: &[(&str, usize)]) -> String {
    let mut line = String::new();
    for (text, width) in cells {
        line += &format!("{:<width$}  ", printable(text));
    }
    line.truncate(line.trim_end().len());
    line
}

/// A time as RFC 3339 has it, in UTC, to the second; `None` where that has no such time, as for
/// `infinity` of PostgreSQL.
pub fn timestamp(time: SystemTime) -> Option<String> {
    let nanoseconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).ok()?,
        Err(before) => -i128::try_from(before.duration().as_nanos()).ok()?,
    };
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()?;
    time.format(&Rfc3339).ok()
}

/// The same for people: to the minute, Z for UTC, or a word where there is none.
pub fn date(time: Option<SystemTime>, none: &str) -> String {
    let text = time.map(|time| timestamp(time).unwrap_or_else(|| "far away".to_owned()));
    match text {
        Some(text) if text.len() >= 16 => text[..16].replace('T', " ") + "Z",
        Some(text) => text,
        None => none.to_owned(),
    }
}

/// A time for machines: RFC 3339, or null.
pub fn json_time(time: Option<SystemTime>) -> Value {
    time.and_then(timestamp).map_or(Value::Null, |text| json!(text))
}

/// `1 key`, `2 keys`.
pub fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// How soon somebody who waits wants to see that something happens.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bar on the terminal, from the second second on.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    is_shown: bool,
}

impl Progress {
    /// `total` is 0 where it is not known.
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
        if !self.is_shown && self.started.elapsed() > PATIENCE {
            // Hidden by the library itself where it is no terminal.
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
pub async fn waiting<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match tokio::time::timeout(PATIENCE, &mut work).await {
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
