//! The paths that a caller may name for a backup, an export, a restore or an import.

use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;
use tempfile::TempDir;

use super::calls::{back_up, entries, long_error, refused_path};
use crate::support::Daemon;

/// In the home is a good place for backups, but not among what the daemon keeps there.
#[test]
fn a_backup_may_lie_in_a_directory_of_the_home_that_is_not_the_daemons() {
    let daemon = Daemon::start();
    daemon.store("precious");
    let own = daemon.home.path().join("backups");
    std::fs::create_dir(&own).unwrap();
    for path in [own.join("monday"), daemon.home.path().join("tuesday")] {
        back_up(&daemon, &path);
        daemon.call("admin.restore", json!({"path": path}));
    }
    for directory in ["run", "aside"] {
        let path = daemon.home.path().join(directory).join("wednesday");
        let message = refused_path(&daemon, "admin.backup", &path);
        assert!(message.contains("choose a place outside"), "{message}");
        assert!(!path.exists());
    }
}

#[test]
fn places_that_cannot_be_written_are_refused() {
    let daemon = Daemon::start();
    daemon.store("precious");
    let place = TempDir::new().unwrap();
    let file = place.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let full = place.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("x"), "").unwrap();
    let link = place.path().join("link");
    std::os::unix::fs::symlink("/nowhere", &link).unwrap();
    for method in ["admin.backup", "admin.export"] {
        for taken in [&file, &full, &link] {
            let message = refused_path(&daemon, method, taken);
            assert!(message.contains("exists already"), "{message}");
        }
        for bad in [
            PathBuf::from("relative/path"),
            PathBuf::from("/"),
            place.path().join("absent/backup"),
            file.join("below"),
            daemon.home.path().join("knowledge/backup"),
            daemon.home.path().join("knowledge/default/../backup"),
            daemon.home.path().join("run/backup"),
        ] {
            refused_path(&daemon, method, &bad);
        }
    }
    // A healthy project is not blamed for what stands in the name of a file.
    for method in ["admin.backup", "admin.restore", "admin.import", "admin.export"] {
        for name in ["line\nbreak", "nul\0", "line\n"] {
            let message = refused_path(&daemon, method, &place.path().join(name));
            assert!(message.contains("control character"), "{message}");
        }
    }
    refused_path(&daemon, "admin.export", &place.path().join("directory/"));
    let format = daemon.call_error(
        "admin.export",
        json!({"path": place.path().join("x"), "format": "yaml"}),
    );
    assert_eq!(format["data"]["parameter"], "format");
    for unreadable in [
        place.path(),
        &place.path().join("absent"),
        &link,
        Path::new("/dev/zero"),
    ] {
        refused_path(&daemon, "admin.import", unreadable);
        refused_path(&daemon, "admin.restore", unreadable);
    }
    let binary = place.path().join("binary");
    std::fs::write(&binary, [0, 1, 2, 3]).unwrap();
    assert!(refused_path(&daemon, "admin.import", &binary).contains("JSON Lines"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert_eq!(entries(place.path()), ["binary", "file", "full", "link"]);
    let absent = long_error(
        &daemon,
        "admin.backup",
        json!({"path": place.path().join("b"), "project_id": "absent"}),
    );
    assert_eq!(absent["data"]["parameter"], "project_id", "{absent}");
    assert_eq!(entries(place.path()), ["binary", "file", "full", "link"]);
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
