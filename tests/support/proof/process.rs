//! The real daemon as a process of its own, on a home directory that outlives it.

use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Connection, PATIENCE, executable};

/// A directory for a home and what belongs to it. It stays if the test fails, and says where.
pub(crate) struct Workspace {
    directory: Option<tempfile::TempDir>,
    label: String,
}

impl Workspace {
    /// A new one; `label` is what is printed with its place if the test fails.
    pub(crate) fn new(label: impl Into<String>) -> Self {
        // Short, because a socket's path must fit into 108 bytes.
        let directory = tempfile::Builder::new().prefix("ccod").tempdir_in("/tmp");
        Self {
            directory: Some(directory.expect("a temporary directory")),
            label: label.into(),
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        self.directory.as_ref().expect("until dropped").path()
    }

    /// The home in it.
    pub(crate) fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    /// Makes the home with this configuration.
    pub(crate) fn configure(&self, toml: &str) {
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).create(self.home()).expect("the home");
        std::fs::write(self.home().join("ccod.toml"), toml).expect("the configuration");
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            eprintln!("{}: everything is kept in {}", self.label, directory.keep().display());
        }
    }
}

/// A running daemon; killed when dropped.
pub(crate) struct Process {
    child: Child,
    home: PathBuf,
    /// Whether the child is another program with the daemon as its child.
    wrapped: bool,
}

impl Process {
    /// Starts it on `home` and waits until it answers. Its log is appended to `daemon.log` beside the home.
    pub(crate) fn start(home: &Path) -> Self {
        Self::start_as(home, Command::new(executable()), &[])
    }

    /// As [`Process::start`], under another program that runs the one it is given (`strace ...`), and with
    /// arguments for the daemon.
    pub(crate) fn start_as(home: &Path, mut command: Command, arguments: &[&str]) -> Self {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CCO_") {
                command.env_remove(name);
            }
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(home.with_file_name("daemon.log"))
            .expect("the log");
        if command.get_program() != executable() {
            command.arg(executable());
        }
        let child = command
            .args(["daemon", "run"])
            .args(arguments)
            .env("CCO_HOME", home)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let mut process = Self {
            child,
            home: home.to_owned(),
            wrapped: command.get_program() != executable(),
        };
        let begun = Instant::now();
        while UnixStream::connect(process.socket()).is_err() {
            if let Some(status) = process.child.try_wait().expect("a child") {
                panic!("the daemon ended with {status}: {}", process.log());
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "the daemon does not answer: {}",
                process.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        process
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.home.join("run/ccod.sock")
    }

    /// Its home.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// What it and those before it have logged, from the end.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.home.with_file_name("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id() as i32)
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub(crate) fn kill(mut self) {
        self.child.kill().ok();
        self.child.wait().expect("a child");
    }

    /// Asks it to stop and waits for its end.
    pub(crate) fn stop(mut self) {
        self.call("admin.shutdown", json!({}));
        let begun = Instant::now();
        while self.child.try_wait().expect("a child").is_none() {
            assert!(begun.elapsed() < PATIENCE, "the daemon does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.socket())
    }

    /// One call on a connection of its own; the result.
    pub(crate) fn call(&self, method: &str, params: Value) -> Value {
        self.connect().call(method, params)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.wrapped && matches!(self.child.try_wait(), Ok(None)) {
            // Passed on to the daemon, which SIGKILL would leave behind.
            nix::sys::signal::kill(self.pid(), nix::sys::signal::Signal::SIGTERM).ok();
        } else {
            self.child.kill().ok();
        }
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log, its end ---\n{}", self.log());
        }
    }
}
