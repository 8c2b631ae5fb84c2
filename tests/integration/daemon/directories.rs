//! The home and its directories: open to others, out of reach, or with a file in their place.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::unistd::getegid;

use super::process::{mode, said};
use crate::support::{Daemon, Home};

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
