//! The reference service, as a process of its own.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tempfile::TempDir;

/// A running service; it is killed with the value.
pub struct Service {
    pub url: String,
    process: Child,
    output: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    /// Holds the first key, where the variables name no other file.
    _folder: TempDir,
}

impl Service {
    /// Starts it with these variables and no others that it knows, and waits until it listens.
    pub fn start(variables: &[(&str, &str)]) -> Self {
        Self::launch(variables).unwrap_or_else(|service| {
            panic!("the service does not start: {}", service.wait().1);
        })
    }

    /// Starts it with variables that it cannot run with.
    pub fn fails(variables: &[(&str, &str)]) -> (ExitStatus, String) {
        Self::launch(variables).expect_err("it starts").wait()
    }

    fn launch(variables: &[(&str, &str)]) -> Result<Self, Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lexikon_api"));
        KNOWN.iter().for_each(|name| _ = command.env_remove(name));
        let folder = tempfile::tempdir().unwrap();
        command.env("ADDRESS", "127.0.0.1:0").env("RUST_LOG", "trace");
        command.env("FIRST_KEY_FILE", folder.path().join("first_key.header"));
        command.envs(variables.to_vec());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the service starts");
        let output = Arc::new(Mutex::new(String::new()));
        let (stdout, stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let (said, listening) = std::sync::mpsc::channel();
        let tell = move |line: &str| {
            if let Some(url) = line.strip_prefix("Listening on ") {
                said.send(url.to_owned()).unwrap();
            }
        };
        let readers =
            vec![keep(stdout, output.clone(), tell), keep(stderr, output.clone(), |_| {})];
        let url = String::new();
        let mut service = Self { url, process, output, readers, _folder: folder };
        match listening.recv() {
            Ok(url) => {
                service.url = url;
                Ok(service)
            }
            Err(_) => Err(service),
        }
    }

    /// All that it has printed and logged so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// The file with the key that it made at its start, if it made one.
    pub fn first_key_file(&self) -> Option<PathBuf> {
        let output = self.output();
        let (_, rest) = output.split_once("A first key, with the scope admin, is in ")?;
        rest.lines().next().map(PathBuf::from)
    }

    /// The key that it made at its start.
    pub fn first_key(&self) -> String {
        let header = std::fs::read_to_string(self.first_key_file().expect("a first key")).unwrap();
        header.strip_prefix("X-API-Key: ").expect("a header").trim_end().to_owned()
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for its end, and returns all that it has printed.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.process.wait().unwrap();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (status, self.output())
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.output())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const KNOWN: [&str; 10] = [
    "API_KEY_SECRET",
    "API_KEY_SECRET_FILE",
    "API_KEY_SECRET_PREVIOUS",
    "API_KEY_SECRET_PREVIOUS_FILE",
    "DATABASE_URL",
    "REDIS_URL",
    "TRUSTED_PROXIES",
    "FIRST_KEY_FOR",
    "FIRST_KEY_FILE",
    "RUST_LOG",
];

fn keep(
    stream: impl Read + Send + 'static,
    output: Arc<Mutex<String>>,
    tell: impl Fn(&str) + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let line = line.expect("a line of UTF-8");
            {
                let mut output = output.lock().unwrap();
                output.push_str(&line);
                output.push('\n');
            }
            tell(&line);
        }
    })
}
