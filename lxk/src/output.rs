//! What commands print: lines for people, objects for programs.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde_json::Value;

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
    error: Option<io::Error>,
}

impl Sink {
    fn attempt(&mut self, write: impl FnOnce(&mut io::BufWriter<io::Stdout>) -> io::Result<()>) {
        if self.error.is_none() {
            self.error = write(&mut self.out).err();
        }
    }
}

/// How serious a line is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Ok,
    Warning,
    Error,
}

impl Output {
    pub fn new(is_json: bool) -> Self {
        let out = io::stdout();
        // https://no-color.org
        let is_coloured =
            out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { is_json, is_coloured, sink: Sink { out: io::BufWriter::new(out), error: None } }
    }

    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// Prints a line for people; nothing where programs read.
    pub fn line(&mut self, line: impl Display) {
        if !self.is_json {
            self.write(&(printable(&line.to_string()) + "\n"));
        }
    }

    /// Prints a line that begins with a word in the colour of its severity; nothing where programs read.
    pub fn status(&mut self, severity: Severity, word: &str, line: &str) {
        let colour = match severity {
            Severity::Ok => 32,
            Severity::Warning => 33,
            Severity::Error => 31,
        };
        let word = format!("{word:<9}");
        let word = if self.is_coloured { format!("\x1b[{colour}m{word}\x1b[0m") } else { word };
        if !self.is_json {
            self.write(&format!("{word} {}\n", printable(line)));
        }
    }

    /// Prints an object for programs, on a line of its own; nothing where people read.
    pub fn object(&mut self, object: &Value) {
        if self.is_json {
            self.record(object);
        }
    }

    /// Prints an object on a line of its own, whoever reads.
    pub fn record(&mut self, object: &Value) {
        self.write(&json_line(object));
    }

    /// Prints text as it is.
    pub fn write(&mut self, text: &str) {
        self.sink.attempt(|out| out.write_all(text.as_bytes()));
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) {
        self.sink.attempt(Write::flush);
    }

    /// Fails once nobody reads any more: ends a list of a command that does nothing else.
    pub fn check_reader(&self) -> Result<(), Failure> {
        if self.sink.error.is_some() { Err(Failure::OutputClosed) } else { Ok(()) }
    }

    /// Flushes, and fails where anything that was printed went nowhere: for commands that have to take back
    /// what nobody has read.
    pub fn deliver(&mut self) -> Result<(), String> {
        self.flush();
        match &self.sink.error {
            Some(error) => Err(error.to_string()),
            // Rust opens /dev/null in the place of a standard output that is closed at the start.
            None if is_null_device(io::stdout()) => Err("nobody reads the output".to_owned()),
            None => Ok(()),
        }
    }

    /// Ends the output. Fails where it went wrong otherwise than by a reader who had enough.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.flush();
        match self.sink.error {
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

/// Prints a line on standard error. Nothing depends on whether anybody reads it.
pub fn stderr_line(text: impl Display) {
    let _ = writeln!(io::stderr(), "{}", printable(&text.to_string()));
}

/// Puts cells side by side, each as wide as its column at least.
pub fn columns<const N: usize>(cells: [&str; N], widths: [usize; N]) -> String {
    let mut line = String::new();
    for (text, width) in cells.into_iter().zip(widths) {
        line += &format!("{:<width$}  ", printable(text));
    }
    line.truncate(line.trim_end().len());
    line
}

/// Returns `1 key`, `2 keys`.
pub fn pluralize(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
