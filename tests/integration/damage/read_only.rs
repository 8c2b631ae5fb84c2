//! A disk that is full or may not be written: stores are refused, everything else goes on, and it heals.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::home::{OnDisk, Stored, TEXTS};
use crate::support::{Daemon, Home, engine, executable, ids};

fn assert_read_only(daemon: &Daemon, words: &str) {
    let error = daemon.call_error("knowledge.store", json!({"text": "not now"}));
    assert_eq!(
        (&error["code"], &error["data"]["kind"], &error["data"]["retryable"]),
        (&json!(-32024), &json!("read_only"), &json!(true)),
        "{error}"
    );
    assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    let health = daemon.call("admin.health", json!({}));
    assert_eq!(health["status"], "degraded", "{health}");
    assert!(health["reasons"].to_string().contains(words), "{health}");
    assert_eq!(daemon.search_ids(json!({"query": TEXTS[0], "limit": 1})).len(), 1);
}

#[test]
fn a_disk_that_is_nearly_full_refuses_stores_and_takes_deletions() {
    let stored = Stored::new();
    let ids = stored.ids.clone();
    let mut daemon = stored.daemon;
    daemon.call("admin.shutdown", json!({}));
    daemon.wait();
    let home = daemon.into_home();
    // More than any disk has free.
    let daemon = Daemon::start_in(home, &[("CCO_STORE__MIN_FREE_BYTES", "1125899906842624")]);
    assert_read_only(&daemon, "store.min_free_bytes");
    assert_eq!(daemon.call("knowledge.delete", json!({"id": ids[0]}))["deleted"], 1);
    let daemon = daemon.kill_and_restart();
    assert_eq!(
        daemon.call("knowledge.store", json!({"text": "room again"}))["status"],
        "stored"
    );
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
}

/// A data directory without the right to write. Root has that right everywhere, so as root the daemon runs as
/// another user.
#[test]
fn a_directory_that_may_not_be_written_is_read_only_until_it_may() {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    /// `nobody`, on Linux and macOS near enough: any id but root's will do.
    const OTHER: u32 = 65_534;

    let home = Home::new();
    let parent = home.path().parent().unwrap().to_path_buf();
    fs::create_dir_all(home.path()).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    // Where the executable lies the other user may not be able to go.
    let copy = parent.join("ccod");
    if is_root {
        if fs::hard_link(engine(), &copy).is_err() {
            fs::copy(engine(), &copy).unwrap();
        }
        for path in [&parent, &home.path()] {
            chown(path, Some(OTHER), Some(OTHER)).unwrap();
        }
    }
    let mut command = std::process::Command::new(if is_root { &copy } else { Path::new(engine()) });
    command
        .env("CCO_HOME", home.path())
        .env("CCO_ACCESS__ALLOWED_UIDS", nix::unistd::geteuid().to_string())
        .current_dir("/");
    if is_root {
        command.uid(OTHER).gid(OTHER);
    }
    let daemon = Daemon::spawn(home, command);
    for text in TEXTS {
        daemon.store(text);
    }
    let table = OnDisk::of(&daemon.home).table();
    let directories: Vec<PathBuf> = ["data", "_versions", "_transactions"]
        .map(|name| table.join(name))
        .into();
    let set_mode = |mode: u32| {
        for directory in &directories {
            fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set_mode(0o500);
    assert_read_only(&daemon, "writable");
    assert_read_only(&daemon, &table.parent().unwrap().display().to_string());
    assert_eq!(ids(&daemon.call("knowledge.list", json!({}))).len(), TEXTS.len());
    set_mode(0o700);
    // The probe of the health check is enough; so would be the next store.
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    assert_eq!(
        daemon.call("knowledge.store", json!({"text": "not now"}))["status"],
        "stored"
    );
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

/// A disk that is really full. Needs the right to mount; what does not is tested in `faults`.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_read_only_until_there_is_room() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            std::process::Command::new("umount")
                .arg("-l")
                .arg(&self.0)
                .status()
                .ok();
        }
    }
    let home = Home::new();
    fs::create_dir_all(home.path()).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m,mode=700", "none"])
        .arg(home.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("not run: this user may not mount a file system");
        return;
    }
    let mounted = Mounted(home.path());
    let daemon = Daemon::start_in(home, &[("CCO_STORE__MIN_FREE_BYTES", "0")]);
    let stored = Stored::in_daemon(daemon);
    let filler = mounted.0.join("filler");
    let mut file = File::create(&filler).unwrap();
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok() {}
    drop(file);
    assert_read_only(&stored.daemon, "disk is full");
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    // It can be started on a full disk, too.
    let stored = Stored {
        daemon: stored
            .daemon
            .kill_and_restart_with(&[("CCO_STORE__MIN_FREE_BYTES", "0")]),
        ..stored
    };
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    assert_read_only(&stored.daemon, "disk is full");
    fs::remove_file(&filler).unwrap();
    assert_eq!(stored.health()["status"], "ok", "{}", stored.health());
    stored.assert_writable();
}

/// A daemon whose files may not grow beyond so many blocks of 512 bytes.
fn with_limited_files(home: Home, blocks: u32) -> Daemon {
    let mut command = Command::new("sh");
    let prepared = home.command(&[]);
    for (name, value) in prepared.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .args(["-c", r#"ulimit -f "$1" && exec "$0" daemon run"#, executable()])
        .arg(blocks.to_string());
    Daemon::spawn(home, command)
}

fn total(daemon: &Daemon) -> Value {
    daemon.call("knowledge.stats", json!({}))["total"].take()
}

#[test]
fn a_file_that_may_not_grow_is_a_refusal_and_no_end() {
    let mut daemon = with_limited_files(Home::new(), 80);
    let items: Vec<Value> = (0..40)
        .map(|number| json!({"text": format!("note {number}")}))
        .collect();
    let batch = daemon.call("knowledge.store_batch", json!({ "items": items }));
    assert_eq!((&batch["stored"], &batch["failed"]), (&json!(0), &json!(40)), "{batch}");
    let error = &batch["errors"][0];
    assert_eq!(error["code"], -32024, "{error}");
    assert!(error["message"].as_str().unwrap().contains("ulimit -f"), "{error}");
    // It is there, and what fits is stored.
    daemon.store("a small note");
    assert_eq!(total(&daemon), 1);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
}

/// The limit may be met within any file of a commit: that of the rows, of the words, of the deleted rows.
#[test]
fn a_file_that_is_cut_short_is_never_committed() {
    for blocks in [4, 5, 6, 8, 10, 12, 14, 20] {
        let mut daemon = Daemon::start();
        let texts: Vec<String> = (0..12).map(|number| format!("a good note, number {number}")).collect();
        let ids: Vec<String> = texts.iter().map(|text| daemon.store(text)).collect();
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
        let mut daemon = with_limited_files(daemon.into_home(), blocks);
        let mut connection = daemon.connect();
        let mut refused = 0;
        let mut wanted = (texts[0].clone(), 12);
        for (method, params) in [
            ("knowledge.store", json!({"text": "one more note"})),
            ("knowledge.update", json!({"id": ids[0], "text": "another text"})),
            ("knowledge.delete", json!({"id": ids[1]})),
            ("knowledge.store", json!({"text": "and one more note"})),
        ] {
            let answer = connection.request(method, params);
            let error = &answer["error"];
            if error.is_null() {
                match method {
                    "knowledge.store" => wanted.1 += 1,
                    "knowledge.update" => wanted.0 = "another text".to_owned(),
                    _ => wanted.1 -= 1,
                }
                continue;
            }
            refused += 1;
            assert_eq!(
                (&error["code"], &error["data"]["executed"]),
                (&json!(-32024), &json!(false)),
                "{answer}"
            );
            assert!(error["message"].as_str().unwrap().contains("ulimit -f"), "{answer}");
        }
        // A file of rows has more than 6,000 bytes.
        assert!(refused == 4 || blocks > 12, "{blocks} blocks: {refused} refused");
        let held = |daemon: &Daemon| {
            let first = daemon.call("knowledge.get", json!({"id": ids[0]}));
            (
                first["text"].as_str().unwrap().to_owned(),
                total(daemon).as_u64().unwrap(),
            )
        };
        assert_eq!(held(&daemon), (wanted.0.clone(), wanted.1), "{blocks} blocks");
        drop(connection);
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
        let daemon = daemon.restart_after_end();
        assert_eq!(held(&daemon), wanted, "{blocks} blocks, after a restart");
        let verified = daemon.call("admin.verify", json!({}));
        assert_eq!(verified["ok"], true, "{blocks} blocks: {verified}");
        daemon.store("and what is stored now is there");
        assert_eq!(total(&daemon), wanted.1 + 1);
    }
}
