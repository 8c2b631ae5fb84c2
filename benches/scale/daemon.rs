//! The daemon as a process on a home that is kept, what it takes, and a client that reads no more than it has to.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// How long anything may take before the benchmark gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// A daemon that takes less time of a processor than this in [`QUIET_STEP`] does nothing.
const QUIET_CPU: Duration = Duration::from_millis(20);
const QUIET_STEP: Duration = Duration::from_millis(400);

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// Values of the configuration, as `section.key` and value.
    pub(crate) settings: Vec<(String, String)>,
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    home: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts it on this home, and waits until it serves.
    pub(crate) fn start(program: &Program, home: &Path) -> Self {
        let mut command = Command::new(&program.path);
        // Nothing of the caller's own configuration may change what is measured.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CCO_") {
                command.env_remove(name);
            }
        }
        for (key, value) in &program.settings {
            command.env(format!("CCO_{}", key.to_uppercase().replace('.', "__")), value);
        }
        let log = std::fs::File::create(home.join("daemon.log")).unwrap();
        let child = command
            .env("CCO_HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Self {
            home: home.to_owned(),
            child,
        };
        let begun = Instant::now();
        while UnixStream::connect(daemon.socket()).is_err() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}; its log is in {}", home.display());
            }
            assert!(begun.elapsed() < PATIENCE, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        daemon
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.join("run/ccod.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::open(&self.socket())
    }

    /// Ends it as a service manager does.
    pub(crate) fn stop(mut self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Waits until it computes nothing any more: what a first request has set going behind its answer is done then.
    pub(crate) fn wait_until_quiet(&self) {
        let begun = Instant::now();
        let mut quiet = 0;
        while quiet < 3 && begun.elapsed() < PATIENCE {
            let before = self.cpu();
            std::thread::sleep(QUIET_STEP);
            quiet = if self.cpu().saturating_sub(before) < QUIET_CPU {
                quiet + 1
            } else {
                0
            };
        }
    }

    /// Time of processors that its threads have taken.
    pub(crate) fn cpu(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let taken = threads.flatten().filter_map(|thread| {
            // A thread may end meanwhile.
            let stat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(taken.sum())
    }

    pub(crate) fn memory(&self) -> Memory {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let kib = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        Memory {
            anonymous_kib: kib("RssAnon:"),
            file_kib: kib("RssFile:"),
            peak_kib: kib("VmHWM:"),
        }
    }

    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Resident memory of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    anonymous_kib: u64,
    file_kib: u64,
    peak_kib: u64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} | {} | {} | {}",
            (self.anonymous_kib + self.file_kib) / 1_024,
            self.anonymous_kib / 1_024,
            self.file_kib / 1_024,
            self.peak_kib / 1_024
        )
    }
}

/// A connection. What it sends is made before the clock starts, and an answer is read as JSON after it has stopped.
pub(crate) struct Client {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Client {
    fn open(socket: &Path) -> Self {
        let writer = UnixStream::connect(socket).unwrap();
        writer.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            reader: BufReader::with_capacity(1 << 18, writer.try_clone().unwrap()),
            writer,
            line: Vec::new(),
        }
    }

    /// The answer, and how long it took, in milliseconds.
    pub(crate) fn timed(&mut self, method: &str, params: &Value) -> (Value, f64) {
        let request = request(1, method, params);
        let begun = Instant::now();
        self.writer.write_all(&request).unwrap();
        loop {
            self.line.clear();
            self.reader.read_until(b'\n', &mut self.line).unwrap();
            assert!(!self.line.is_empty(), "the daemon has closed the connection");
            let took = begun.elapsed().as_secs_f64() * 1e3;
            let mut answer: Value = serde_json::from_slice(&self.line).unwrap();
            // Progress may come first.
            if answer["id"] == 1 {
                assert!(answer.get("error").is_none(), "{method}: {answer:#}");
                return (answer["result"].take(), took);
            }
        }
    }

    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        self.timed(method, params).0
    }

    /// Has the daemon compute the vectors of these queries, in a project that is not the one that is measured. It keeps
    /// them by the text.
    pub(crate) fn embed(&mut self, queries: &[String]) {
        for query in queries {
            let params = json!({"query": query, "mode": "vector", "limit": 1, "project_id": crate::homes::SMALL});
            self.call("knowledge.search", &params);
        }
    }
}

/// A request as a line.
pub(crate) fn request(id: u64, method: &str, params: &Value) -> Vec<u8> {
    let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    format!("{request}\n").into_bytes()
}
