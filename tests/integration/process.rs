//! The daemon as a process: one of it for each home, what it takes along from whoever started it, signals, its log,
//! and its end.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getegid, mkfifo};
use serde_json::{Value, json};

use crate::support::{Connection, Daemon, Home, PATIENCE};

/// Looks at the run directory often, so that the tests need not wait.
const LOOK_OFTEN: (&str, &str) = ("CCO_LIMITS__SOCKET_CHECK_MS", "20");

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Waits for a process, but not for ever.
fn ended(child: &mut Child) -> Option<i32> {
    let mut status = None;
    until("the process ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Removes a directory into which the daemon may be writing.
fn remove(directory: &Path) {
    until("the directory is removed", || {
        match std::fs::remove_dir_all(directory) {
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            Ok(()) => true,
        }
    });
}

/// A hundred times the run directory, or the lock in it, goes missing, and at once a command and a daemon come. There
/// is one writer always: the first.
#[test]
fn a_removed_run_directory_never_makes_a_second_daemon() {
    let daemon = Daemon::start_in(Home::new(), &[LOOK_OFTEN]);
    let pid = daemon.call("admin.status", json!({}))["pid"].clone();
    let run = daemon.home.path().join("run");
    let lock = run.join("ccod.lock");
    let mut version = 0;
    for round in 0..100 {
        match round % 4 {
            0 => remove(&run),
            1 => std::fs::remove_file(&lock).unwrap_or_default(),
            2 => {
                std::fs::remove_file(&lock).unwrap_or_default();
                // The daemon may have been quicker.
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(&lock)
                    .unwrap();
            }
            _ => {
                remove(&run);
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&run)
                    .unwrap();
            }
        }
        let second = daemon
            .home
            .command(&["daemon", "run"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Different texts of one id in each round: two writers would both take one.
        let id = format!("note-{}", round / 2);
        let text = format!("text {round}");
        let stored = daemon
            .home
            .run(&["--json", "store", &text, "--id", &id, "--project", "p"]);
        let second = second.wait_with_output().unwrap();
        assert_eq!(second.status.code(), Some(75), "round {round}: {}", said(&second));
        assert!(said(&second).contains("another daemon"), "{}", said(&second));
        if round % 2 == 0 {
            assert!(stored.status.success(), "round {round}: {}", said(&stored));
            let stored: Value = serde_json::from_slice(&stored.stdout).unwrap();
            assert!(stored["version"].as_i64().unwrap() > version, "round {round}: {stored}");
            version = stored["version"].as_i64().unwrap();
        } else {
            assert_eq!(stored.status.code(), Some(65), "round {round}: {}", said(&stored));
        }
    }
    until("the socket is there", || {
        Connection::try_open(&daemon.home.socket()).is_some()
    });
    assert_eq!(daemon.call("admin.status", json!({}))["pid"], pid);
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    let listed = daemon.call("knowledge.list", json!({"project_id": "p", "limit": 1000}));
    assert_eq!(listed["total"], 50);
    let verified = daemon.home.run(&["verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
    // And it ends when it is told to, wherever its run directory was.
    remove(&run);
    let stopped = daemon.home.run(&["daemon", "stop"]);
    assert!(stopped.status.success(), "{}", said(&stopped));
    let mut daemon = daemon;
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    assert!(daemon.home.run(&["store", "next", "--project", "p"]).status.success());
    assert!(daemon.home.run(&["daemon", "stop"]).status.success());
}

#[test]
fn a_daemon_whose_lock_another_process_has_taken_ends() {
    let mut daemon = Daemon::start_in(Home::new(), &[LOOK_OFTEN]);
    daemon.store("before");
    let path = daemon.home.path().join("run/ccod.lock");
    // Locked before it has the name, so that the daemon cannot be quicker.
    let taken = path.with_extension("taken");
    let other = Flock::lock(File::create(&taken).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    std::fs::rename(&taken, &path).unwrap();
    assert_eq!(daemon.wait(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("another daemon"), "{}", daemon.log());
    drop(other);
    let daemon = daemon.restart_after_end();
    assert_eq!(daemon.call("knowledge.list", json!({}))["total"], 1);
}

/// Whoever moves the projects away from under a running daemon finds nothing of it in what comes in their place.
#[test]
fn a_store_that_was_moved_away_takes_no_writes_and_ends_the_daemon() {
    // It does not look by itself: the write has to.
    let mut daemon = Daemon::start_in(Home::new(), &[("CCO_LIMITS__SOCKET_CHECK_MS", "60000")]);
    let id = daemon.store("before");
    let (knowledge, aside) = (daemon.home.path().join("knowledge"), daemon.home.path().join("moved"));
    std::fs::rename(&knowledge, &aside).unwrap();
    for replaced in [false, true] {
        if replaced {
            std::fs::DirBuilder::new().mode(0o700).create(&knowledge).unwrap();
        }
        for (method, params) in [
            ("knowledge.store", json!({"text": "after"})),
            ("knowledge.store", json!({"text": "after", "project_id": "other"})),
            ("knowledge.delete", json!({"id": id})),
        ] {
            let error = daemon.call_error(method, params);
            assert_eq!(error["code"], -32051, "{method}: {error}");
        }
        assert_eq!(knowledge.exists(), replaced);
    }
    assert_eq!(std::fs::read_dir(&knowledge).unwrap().count(), 0);
    std::fs::remove_dir(&knowledge).unwrap();
    std::fs::rename(&aside, &knowledge).unwrap();
    daemon.store("put back, it goes on");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());

    let mut daemon = Daemon::start_in(daemon.into_home(), &[LOOK_OFTEN]);
    std::fs::rename(&knowledge, &aside).unwrap();
    assert_eq!(
        daemon.wait(),
        Some(1),
        "a service manager starts it again: {}",
        daemon.log()
    );
    // The next one begins with what is there now, while nobody else has it.
    let daemon = daemon.restart_after_end();
    assert_eq!(daemon.call("knowledge.list", json!({}))["total"], 0);
    daemon.store("anew");
    let second = daemon.home.run(&["daemon", "run"]);
    assert_eq!(second.status.code(), Some(75));
}

/// The descriptors of whoever starts it: a lock would be held, and a pipe would not end, for as long as it runs.
#[test]
fn a_started_daemon_keeps_nothing_of_its_parent() {
    let home = Home::new();
    std::fs::create_dir_all(home.path()).unwrap();
    let place = home.path().join("workplace");
    std::fs::create_dir(&place).unwrap();
    let mut shell = Command::new("/bin/sh");
    shell
        .args([
            "-c",
            r#""$0" daemon start 7>&1 8>&2 9<&0 >/dev/null 2>&1"#,
            crate::support::executable(),
        ])
        .env("CCO_HOME", home.path())
        // As if this process were a service of its own.
        .env("LISTEN_FDS", "1")
        .env("NOTIFY_SOCKET", home.path().join("not-for-you"))
        .current_dir(&place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let shell = shell.spawn().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(shell.wait_with_output().unwrap()));
    let output = told
        .recv_timeout(PATIENCE)
        .expect("the pipes end though the daemon runs");
    assert!(output.status.success());

    let status = Connection::open(&home.socket()).call("admin.status", json!({}));
    let pid = Pid::from_raw(i32::try_from(status["pid"].as_i64().unwrap()).unwrap());
    assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), pid, "a session of its own");
    if cfg!(target_os = "linux") {
        let process = Path::new("/proc").join(pid.to_string());
        assert_eq!(std::fs::read_link(process.join("cwd")).unwrap(), Path::new("/"));
        let log = home.path().join("run/ccod.log");
        for standard in ["1", "2"] {
            assert_eq!(std::fs::read_link(process.join("fd").join(standard)).unwrap(), log);
        }
        assert_eq!(
            std::fs::read_link(process.join("fd/0")).unwrap(),
            Path::new("/dev/null")
        );
    }
    assert!(home.run(&["daemon", "stop"]).status.success());
}

#[test]
fn a_hangup_does_not_disturb_a_daemon_without_a_terminal() {
    let mut daemon = Daemon::start();
    daemon.store("warm up");
    let clients: Vec<_> = (0..12)
        .map(|number| {
            let mut connection = daemon.connect();
            let items: Vec<_> = (0..20)
                .map(|item| json!({"text": format!("{number} {item}")}))
                .collect();
            let request =
                json!({"jsonrpc": "2.0", "id": 1, "method": "knowledge.store_batch", "params": {"items": items}});
            connection.send(format!("{request}\n"));
            connection
        })
        .collect();
    for _ in 0..5 {
        daemon.signal(Signal::SIGHUP);
    }
    for mut client in clients {
        let answer = client.receive().expect("an answer");
        assert_eq!(answer["result"]["stored"], 20, "{answer}");
    }
    until("it is told of", || daemon.log().contains("SIGHUP"));
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
}

#[test]
fn a_hangup_of_its_terminal_ends_a_daemon_in_order() {
    let home = Home::new();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut child = home
        .command(&["daemon", "run"])
        .stdout(Stdio::null())
        .stderr(terminal.slave)
        .spawn()
        .unwrap();
    until("it serves", || Connection::try_open(&home.socket()).is_some());
    let mut connection = Connection::open(&home.socket());
    connection.call("knowledge.store", json!({"text": "kept"}));
    // The window is closed: what is written from now on fails as well.
    drop(terminal.master);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGHUP).unwrap();
    assert_eq!(ended(&mut child), Some(0));
    assert!(!home.socket().exists());
    let daemon = Daemon::start_in(home, &[]);
    assert_eq!(daemon.call("knowledge.list", json!({}))["total"], 1);
}

#[test]
fn a_log_that_nobody_reads_any_more_costs_nothing_else() {
    let home = Home::new();
    let mut child = home
        .command(&["daemon", "run", "--log", "debug"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it serves", || Connection::try_open(&home.socket()).is_some());
    drop(child.stderr.take());
    let mut connection = Connection::open(&home.socket());
    for number in 0..3 {
        connection.call("knowledge.store", json!({"text": format!("note {number}")}));
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGHUP).unwrap();
    }
    let status = connection.call("admin.status", json!({}));
    assert_eq!(status["status"], "ok", "{status}");
    connection.call("admin.shutdown", json!({}));
    assert_eq!(ended(&mut child), Some(0));
}

/// A daemon in the background and its log.
struct Background {
    home: Home,
    pid: Pid,
}

impl Background {
    fn start() -> Self {
        let home = Home::new();
        let mut command = home.command(&["--json", "daemon", "start"]);
        let output = command.env(LOOK_OFTEN.0, LOOK_OFTEN.1).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let started: Value = serde_json::from_slice(&output.stdout).unwrap();
        let pid = Pid::from_raw(i32::try_from(started["pid"].as_i64().unwrap()).unwrap());
        Self { home, pid }
    }

    fn hang_up(&self) {
        kill(self.pid, Signal::SIGHUP).unwrap();
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.path().join("run").join(name)).unwrap_or_default()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        kill(self.pid, Signal::SIGKILL).unwrap_or_default();
    }
}

#[test]
fn the_log_is_opened_anew_where_it_was_moved_or_removed() {
    let daemon = Background::start();
    let log = daemon.home.path().join("run/ccod.log");
    let moved = daemon.home.path().join("run/moved.log");
    assert!(daemon.log("ccod.log").contains("serving"));
    std::fs::rename(&log, &moved).unwrap();
    until("the log is back", || log.exists());
    daemon.hang_up();
    until("it goes on there", || daemon.log("ccod.log").contains("SIGHUP"));
    assert!(daemon.log("moved.log").contains("serving") && !daemon.log("moved.log").contains("SIGHUP"));
    assert_eq!(mode(&log), 0o600);
    // Where standard error goes, standard output does too, and with the whole directory it is the same.
    remove(&daemon.home.path().join("run"));
    until("the log is back again", || log.exists());
    until("so is the socket", || {
        Connection::try_open(&daemon.home.socket()).is_some()
    });
    daemon.hang_up();
    until("it goes on", || daemon.log("ccod.log").contains("SIGHUP"));
    assert!(daemon.home.run(&["daemon", "stop"]).status.success());
    assert!(daemon.log("ccod.log").contains("stopped"));
}

#[test]
fn the_log_is_set_aside_while_the_daemon_runs() {
    let daemon = Background::start();
    let run = daemon.home.path().join("run");
    let (log, aside) = (run.join("ccod.log"), run.join("ccod.log.1"));
    let grown = ccod::log_file::MAX_LOG_BYTES + 1;
    for round in 0..2 {
        OpenOptions::new()
            .append(true)
            .open(&log)
            .unwrap()
            .set_len(grown)
            .unwrap();
        daemon.hang_up();
        until("it is set aside", || {
            aside.metadata().is_ok_and(|aside| aside.len() == grown) && daemon.log("ccod.log").contains("SIGHUP")
        });
        assert_eq!((mode(&log), mode(&aside)), (0o600, 0o600), "round {round}");
        assert!(log.metadata().unwrap().len() < grown);
        std::fs::remove_file(&aside).unwrap();
    }
    assert!(daemon.home.run(&["daemon", "stop"]).status.success());
}

#[test]
fn the_log_goes_to_the_file_that_the_configuration_names() {
    let home = Home::new();
    std::fs::create_dir(home.path()).unwrap();
    std::fs::write(home.path().join("ccod.toml"), "[log]\nfile = \"own.log\"\n").unwrap();
    let own = home.path().join("own.log");
    let logged = || std::fs::read_to_string(&own).unwrap_or_default();
    assert!(home.run(&["daemon", "start"]).status.success());
    assert!(logged().contains("serving"));
    assert!(home.run(&["daemon", "stop"]).status.success());
    assert!(!home.path().join("run/ccod.log").exists());

    let mut daemon = Daemon::start_in(home, &[]);
    std::fs::remove_file(daemon.home.path().join("own.log")).unwrap();
    daemon.signal(Signal::SIGHUP);
    let own = daemon.home.path().join("own.log");
    until("it goes on there", || {
        std::fs::read_to_string(&own).is_ok_and(|log| log.contains("SIGHUP"))
    });
    assert_eq!(mode(&own), 0o600);
    assert_eq!(daemon.log(), "", "none of it goes elsewhere");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0));
}

/// More work than a second is enough for.
fn much_work(id: u64) -> String {
    let items: Vec<_> = (0..1_000)
        .map(|n| json!({"text": format!("{n} {}", "many words to embed ".repeat(90))}))
        .collect();
    let request = json!({"jsonrpc": "2.0", "id": id, "method": "knowledge.store_batch", "params": {"items": items}});
    format!("{request}\n")
}

/// The work has begun: its first texts are in the embedder, which may be too busy to say so at once.
fn has_begun(daemon: &Daemon) {
    until("the work begins", || {
        let status = daemon.call("admin.status", json!({}));
        let passes = status.pointer("/actors/embedder/counters/forward_passes");
        passes.and_then(Value::as_u64).is_some_and(|passes| passes > 0)
    });
}

const SHORT_END: [(&str, &str); 2] = [
    ("CCO_SHUTDOWN__GRACE_MS", "3000"),
    ("CCO_LIMITS__SHUTDOWN_GRACE_MS", "300"),
];

#[test]
fn what_is_left_at_the_end_is_stopped_and_answered() {
    let mut daemon = Daemon::start_in(Home::new(), &SHORT_END);
    let file = daemon.home.path().join("many.jsonl");
    let lines: String = (0..2_000)
        .map(|n| json!({"text": format!("{n} {}", "many words to import ".repeat(90))}).to_string() + "\n")
        .collect();
    std::fs::write(&file, lines).unwrap();
    let mut importing = daemon.connect();
    let import = json!({"jsonrpc": "2.0", "id": 7, "method": "admin.import", "params": {"path": file}});
    importing.send(format!("{import}\n"));
    let mut storing = daemon.connect();
    storing.send(much_work(8));
    has_begun(&daemon);
    daemon.signal(Signal::SIGTERM);
    for (mut connection, id) in [(importing, 7), (storing, 8)] {
        let answer = loop {
            let answer = connection.receive().expect("an answer");
            if answer["method"] != "rpc.progress" {
                break answer;
            }
        };
        assert_eq!(
            (&answer["id"], &answer["error"]["code"]),
            (&json!(id), &json!(-32053)),
            "{answer}"
        );
        let executed = &answer["error"]["data"]["executed"];
        assert!(!executed.is_null(), "{answer}");
        assert!(connection.receive().is_none());
    }
    // No failure: neither systemd nor launchd starts it again.
    assert_eq!(daemon.wait(), Some(75), "{}", daemon.log());
    assert!(!daemon.home.socket().exists());
    let daemon = daemon.restart_after_end();
    let verified = daemon.home.run(&["verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
}

#[test]
fn the_first_signal_after_a_shutdown_that_was_asked_for_is_not_the_second() {
    let mut daemon = Daemon::start_in(Home::new(), &SHORT_END);
    let mut working = daemon.connect();
    working.send(much_work(1));
    has_begun(&daemon);
    let stopping = daemon.call("admin.shutdown", json!({}));
    assert_eq!(
        (&stopping["stopping"], &stopping["grace_ms"]),
        (&json!(true), &json!(3000))
    );
    until("it does not listen any more", || !daemon.home.socket().exists());
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGHUP);
    let answer = working.receive().expect("an answer, for it did not end at once");
    assert_eq!(answer["error"]["code"], -32053, "{answer}");
    assert_eq!(daemon.wait(), Some(75), "{}", daemon.log());
    assert!(!daemon.log().contains("second signal, ending"), "{}", daemon.log());
}

#[test]
fn a_second_signal_ends_the_daemon_at_once() {
    let mut daemon = Daemon::start_in(
        Home::new(),
        &[
            ("CCO_SHUTDOWN__GRACE_MS", "600000"),
            ("CCO_LIMITS__SHUTDOWN_GRACE_MS", "500000"),
        ],
    );
    let mut working = daemon.connect();
    working.send(much_work(1));
    has_begun(&daemon);
    daemon.signal(Signal::SIGTERM);
    until("it does not listen any more", || !daemon.home.socket().exists());
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait(), Some(75), "{}", daemon.log());
    assert!(working.try_receive().is_none());
    let daemon = daemon.restart_after_end();
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
}

#[test]
fn a_home_that_others_can_write_into_is_refused_and_left_as_it_is() {
    let home = Home::new();
    std::fs::create_dir(home.path()).unwrap();
    for open in [0o1777, 0o775] {
        std::fs::set_permissions(home.path(), Permissions::from_mode(open)).unwrap();
        for arguments in [
            &["daemon", "run"][..],
            &["daemon", "start"],
            &["store", "x", "--project", "p"],
        ] {
            let output = home.run(arguments);
            assert_eq!(output.status.code(), Some(77), "{arguments:?}: {}", said(&output));
            assert!(said(&output).contains("chmod 700"), "{}", said(&output));
        }
        assert_eq!(mode(&home.path()), open);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }
    // One that others can read keeps its mode as well; what is in it is closed.
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(home.path().join("knowledge")).unwrap();
    std::fs::set_permissions(home.path().join("knowledge"), Permissions::from_mode(0o755)).unwrap();
    let daemon = Daemon::start_in(home, &[]);
    daemon.store("closed all the same");
    assert_eq!(mode(&daemon.home.path()), 0o755);
    for closed in ["run", "knowledge"] {
        assert_eq!(mode(&daemon.home.path().join(closed)), 0o700);
    }
    assert!(daemon.log().contains("chmod 700"), "{}", daemon.log());
}

#[test]
fn a_socket_group_that_cannot_reach_the_socket_is_told_how() {
    let Ok(Some(group)) = nix::unistd::Group::from_gid(getegid()) else {
        eprintln!("skipped: the group of the tests has no name");
        return;
    };
    let home = Home::new();
    let shared = [("CCO_ACCESS__SOCKET_GROUP", group.name.as_str())];
    let above = home.path().parent().unwrap().to_path_buf();
    std::fs::set_permissions(&above, Permissions::from_mode(0o711)).unwrap();
    for arguments in [["daemon", "run"], ["daemon", "start"]] {
        let output = home.command(&arguments).envs(shared).output().unwrap();
        assert_eq!(output.status.code(), Some(77), "{arguments:?}: {}", said(&output));
        let fix = format!("chmod g+x {}", home.path().canonicalize().unwrap().display());
        assert!(said(&output).contains(&fix), "{}", said(&output));
    }
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o710)).unwrap();
    let daemon = Daemon::start_in(home, &shared);
    daemon.store("shared");
    assert_eq!(mode(&daemon.home.path()), 0o710);
    assert_eq!(mode(&daemon.home.path().join("run")), 0o750);
    assert_eq!(mode(&daemon.home.socket()), 0o660);
    assert_eq!(mode(&daemon.home.path().join("knowledge")), 0o700);
}

#[test]
fn what_is_no_file_is_neither_imported_nor_restored_nor_waited_for() {
    let daemon = Daemon::start();
    let place = daemon.home.path().join("named");
    std::fs::create_dir(&place).unwrap();
    let pipe = place.join("backup.json");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    for path in [
        pipe.as_path(),
        Path::new("/dev/null"),
        Path::new("/dev/tty"),
        &place,
        &daemon.home.socket(),
    ] {
        let error = daemon.call_error("admin.import", json!({"path": path}));
        assert_eq!(
            (&error["code"], &error["data"]["parameter"]),
            (&json!(-32602), &json!("path")),
            "{error}"
        );
    }
    let error = daemon.call_error("admin.restore", json!({"path": place}));
    assert_eq!(
        (&error["code"], &error["data"]["parameter"]),
        (&json!(-32602), &json!("path")),
        "{error}"
    );
}

/// Two repositories of one name, and a file of claims that a crash has emptied: neither reads the other's knowledge.
#[test]
fn damaged_claims_never_give_a_repository_the_project_of_another() {
    let daemon = Daemon::start();
    let root = daemon.home.path().join("src");
    for place in ["one/api", "two/api"] {
        let git = root.join(place).join(".git");
        for directory in ["objects", "refs"] {
            std::fs::create_dir_all(git.join(directory)).unwrap();
        }
        std::fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    }
    let run = |place: &str, arguments: &[&str]| {
        let mut command = daemon.home.command(arguments);
        command.current_dir(root.join(place)).output().unwrap()
    };
    assert!(run("one/api", &["store", "of the first"]).status.success());
    assert!(run("two/api", &["store", "of the second"]).status.success());
    let file = daemon.home.path().join("projects.json");
    let copy = daemon.home.path().join("projects.json.bak");
    for damage in [&b""[..], &[0; 50], b"{\"claims\": {\"api"] {
        std::fs::write(&file, damage).unwrap();
        let second = run("two/api", &["list"]);
        let listed = String::from_utf8_lossy(&second.stdout).into_owned();
        assert!(
            listed.contains("of the second") && !listed.contains("of the first"),
            "{listed}"
        );

        std::fs::write(&file, damage).unwrap();
        let sound = std::fs::read(&copy).unwrap();
        std::fs::write(&copy, damage).unwrap();
        for arguments in [&["list"][..], &["store", "lost?"]] {
            let refused = run("two/api", arguments);
            assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
            assert!(said(&refused).contains("--project"), "{}", said(&refused));
        }
        assert!(run("two/api", &["list", "--project", "api"]).status.success());
        std::fs::write(&copy, sound).unwrap();
    }
}

/// What lies in the way is left alone, and whoever starts the daemon is told what to do.
#[test]
fn a_file_in_the_place_of_the_home_or_of_the_projects_is_told_of() {
    for in_the_way in ["", "knowledge"] {
        let home = Home::new();
        let file: PathBuf = home.path().join(in_the_way).components().collect();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "somebody's notes").unwrap();
        for arguments in [
            &["daemon", "run"][..],
            &["daemon", "start"],
            &["store", "x", "--project", "p"],
        ] {
            let output = home.run(arguments);
            assert_eq!(output.status.code(), Some(78), "{arguments:?}: {}", said(&output));
            assert!(
                said(&output).contains(&format!("{} is not a directory; move it away", file.display())),
                "{}",
                said(&output)
            );
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "somebody's notes");
        std::fs::remove_file(&file).unwrap();
        let daemon = Daemon::start_in(home, &[]);
        daemon.store("there is room now");
    }
}
