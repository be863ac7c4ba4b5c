//! The reference service of examples/lexikon_api, as a process of its own.
#![allow(dead_code)] // every test file is a crate of its own, and uses its part of this

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
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
        let mut command = Command::new(program());
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

    pub fn process_id(&self) -> u32 {
        self.process.id()
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

/// The example, built as it is now: a test that is run alone does not build it.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let options = ["build", "--quiet", "--all-features", "--example", "lexikon_api"];
        let build = Command::new(env!("CARGO"))
            .args(options)
            .arg("--message-format=json")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
        let messages = String::from_utf8(build.stdout).unwrap();
        let messages = messages.lines().map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("a message of cargo")
        });
        let mut programs = messages.filter_map(|message| {
            let is_ours = message["target"]["name"] == "lexikon_api";
            message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
        });
        programs.next().expect("cargo says where the example is")
    };
    PROGRAM.get_or_init(build).clone()
}
