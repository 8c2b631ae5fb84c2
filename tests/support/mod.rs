//! A daemon of its own for each test, and a client that speaks raw lines.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take before the test gives up. Not a measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn executable() -> &'static str {
    env!("CARGO_BIN_EXE_ccoctl")
}

/// The daemon's program, which `executable` starts.
pub(crate) fn engine() -> &'static str {
    env!("CARGO_BIN_EXE_ccod")
}

/// A running daemon with a home of its own; killed when dropped.
pub(crate) struct Daemon {
    pub(crate) home: Home,
    child: Child,
}

/// A `$CCO_HOME`.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        // Short, because a socket's path must fit into 108 bytes.
        Self(tempfile::Builder::new().prefix("cco").tempdir_in("/tmp").unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("home")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("run/ccod.sock")
    }

    /// `ccoctl`, for this home, with nothing of the caller's environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(executable());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CCO_") {
                command.env_remove(name);
            }
        }
        command
            .env("CCO_HOME", self.path())
            .current_dir("/")
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_in(Home::new(), &[])
    }

    pub(crate) fn start_in(home: Home, environment: &[(&str, &str)]) -> Self {
        let mut command = home.command(&["daemon", "run"]);
        command.envs(environment.iter().copied());
        Self::spawn(home, command)
    }

    /// Starts the daemon of `home` by this command, and waits until it serves.
    pub(crate) fn spawn(home: Home, mut command: Command) -> Self {
        // Kept out of the test's own output, and there when it fails.
        let log = std::fs::File::create(home.0.path().join("daemon.log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut daemon = Self { home, child };
        let begun = Instant::now();
        while UnixStream::connect(daemon.home.socket()).is_err() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {}", daemon.log());
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "the daemon does not answer: {}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.home.0.path().join("daemon.log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for the end of the process; its exit code, none after a signal.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < PATIENCE, "the daemon does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the process (kill -9) and starts another one in the same home.
    pub(crate) fn kill_and_restart(self) -> Self {
        self.kill_and_restart_with(&[])
    }

    pub(crate) fn kill_and_restart_with(mut self, environment: &[(&str, &str)]) -> Self {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        self.wait();
        Self::start_in(self.into_home(), environment)
    }

    pub(crate) fn restart_after_end(self) -> Self {
        Self::start_in(self.into_home(), &[])
    }

    /// The home of a daemon that has ended.
    pub(crate) fn into_home(mut self) -> Home {
        std::mem::replace(&mut self.home, Home::new())
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.home.socket())
    }

    /// One call on a connection of its own; the result.
    pub(crate) fn call(&self, method: &str, params: Value) -> Value {
        self.connect().call(method, params)
    }

    /// One call on a connection of its own; the error.
    pub(crate) fn call_error(&self, method: &str, params: Value) -> Value {
        self.connect().call_error(method, params)
    }

    pub(crate) fn store(&self, text: &str) -> String {
        let stored = self.call("knowledge.store", json!({"text": text}));
        stored["id"].as_str().unwrap().to_owned()
    }

    /// Ids of the results, best first.
    pub(crate) fn search_ids(&self, params: Value) -> Vec<String> {
        ids(&self.call("knowledge.search", params))
    }

    /// A number of `admin.status`, such as `/actors/embedder/counters/forward_passes`.
    pub(crate) fn status_number(&self, pointer: &str) -> u64 {
        let status = self.call("admin.status", json!({}));
        status
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no {pointer} in {status:#}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log());
        }
    }
}

#[allow(dead_code)]
pub(crate) fn ids(result: &Value) -> Vec<String> {
    let results = result["results"].as_array().unwrap();
    results
        .iter()
        .map(|hit| hit["id"].as_str().unwrap().to_owned())
        .collect()
}

/// A connection that speaks lines.
pub(crate) struct Connection {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    next_id: u64,
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> Self {
        let writer = UnixStream::connect(socket).unwrap();
        writer.set_read_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(writer.try_clone().unwrap());
        Self {
            writer,
            reader,
            next_id: 1,
        }
    }

    /// As [`Connection::open`], for a daemon that may be gone.
    #[allow(dead_code)]
    pub(crate) fn try_open(socket: &Path) -> Option<Self> {
        let writer = UnixStream::connect(socket).ok()?;
        writer.set_read_timeout(Some(PATIENCE)).ok()?;
        let reader = BufReader::new(writer.try_clone().ok()?);
        Some(Self {
            writer,
            reader,
            next_id: 1,
        })
    }

    /// As [`Connection::finish_writing`], for a daemon that may be gone.
    #[allow(dead_code)]
    pub(crate) fn finish_writing_if_open(&self) {
        self.writer.shutdown(std::net::Shutdown::Write).ok();
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.writer.write_all(bytes.as_ref()).unwrap();
    }

    /// As [`Connection::send`], for a daemon that may be gone.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.writer.write_all(bytes)
    }

    /// As [`Connection::receive`], for a daemon that may be gone: none then, too.
    pub(crate) fn try_receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(length) if length > 0 && line.ends_with('\n') => serde_json::from_str(&line).ok(),
            _ => None,
        }
    }

    pub(crate) fn finish_writing(&self) {
        self.writer.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// The next line as JSON; none at the end.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).unwrap();
        (length > 0).then(|| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
    }

    pub(crate) fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send(format!("{request}\n"));
        let response = loop {
            let message = self.receive().expect("an answer");
            // Progress of this very call may come first.
            if message["method"] != "rpc.progress" {
                break message;
            }
            assert_eq!(message["params"]["request_id"], id, "{message}");
        };
        assert_eq!(response["id"], id, "{response}");
        assert_eq!(response["jsonrpc"], "2.0");
        response
    }

    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let mut response = self.request(method, params);
        assert!(response.get("error").is_none(), "{method}: {response:#}");
        response["result"].take()
    }

    pub(crate) fn call_error(&mut self, method: &str, params: Value) -> Value {
        let mut response = self.request(method, params);
        assert!(response.get("result").is_none(), "{method}: {response:#}");
        response["error"].take()
    }
}

/// Every file and directory below `root`, with its mode's permission bits.
pub(crate) fn modes(root: &Path) -> Vec<(PathBuf, bool, u32)> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().flatten() {
            let metadata = std::fs::symlink_metadata(entry.path()).unwrap();
            let mode = metadata.permissions().mode() & 0o777;
            found.push((entry.path(), metadata.is_dir(), mode));
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    found
}

/// Copies a directory with everything in it.
#[allow(dead_code)]
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The files under `root` that hold these bytes. Those that are removed meanwhile hold nothing.
pub(crate) fn files_with(root: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if std::fs::read(&path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle)) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The output, after a check of the exit code.
pub(crate) fn exits(output: Output, code: i32) -> Output {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        stdout(&output),
        stderr(&output)
    );
    output
}
