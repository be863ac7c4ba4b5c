//! What commands print: lines for people, objects for machines, progress for whoever waits.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::Failure;

/// Where results go.
pub struct Output {
    is_json: bool,
    is_coloured: bool,
    out: io::BufWriter<io::Stdout>,
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
        Self { is_json, is_coloured, out: io::BufWriter::new(out) }
    }

    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// The bare output.
    pub fn writer(&mut self) -> &mut impl Write {
        &mut self.out
    }

    /// A line for people; nothing where machines read.
    pub fn line(&mut self, line: impl Display) -> Result<(), Failure> {
        if !self.is_json {
            writeln!(self.out, "{}", printable(&line.to_string()))?;
        }
        Ok(())
    }

    /// A line that begins with a word in colour.
    pub fn judged(&mut self, mood: Mood, word: &str, line: &str) -> Result<(), Failure> {
        let colour = match mood {
            Mood::Good => 32,
            Mood::Bad => 31,
            Mood::Doubtful => 33,
        };
        let line = printable(line);
        match (self.is_json, self.is_coloured) {
            (true, _) => {}
            (_, true) => writeln!(self.out, "\x1b[{colour}m{word:<9}\x1b[0m {line}")?,
            (_, false) => writeln!(self.out, "{word:<9} {line}")?,
        }
        Ok(())
    }

    /// An object for machines, on a line of its own; nothing where people read.
    pub fn object(&mut self, object: &Value) -> Result<(), Failure> {
        if self.is_json {
            writeln!(self.out, "{object}")?;
        }
        Ok(())
    }

    /// Sees everything to where it goes.
    pub fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }
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

/// A text without what would make a terminal do things: names of keys are their owners' choice.
pub fn printable(text: &str) -> String {
    let visible = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    text.chars().map(visible).collect()
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
