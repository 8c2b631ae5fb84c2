//! The socket in the file system, and who may use it.

use super::support::*;
use ccod_protocol::endpoint::{self, BindOptions, BoundSocket, EndpointError, EndpointLock};
use ccod_protocol::peer::PeerPolicy;
use ccod_protocol::server::Server;
use ccod_protocol::{Methods, Service, WireError};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

struct Place {
    directory: TempDir,
    run: PathBuf,
    socket: PathBuf,
    lock: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    Place {
        socket: run.join("ccod.sock"),
        lock: run.join("ccod.lock"),
        run,
        directory,
    }
}

fn prepared() -> (Place, EndpointLock) {
    let place = place();
    endpoint::prepare_run_dir(&place.run, &BindOptions::default()).unwrap();
    let lock = EndpointLock::acquire(&place.lock).unwrap();
    (place, lock)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn the_directory_is_made_closed_and_parents_too() {
    let place = place();
    let deep = place.directory.path().join("a/b/run");
    endpoint::prepare_run_dir(&deep, &BindOptions::default()).unwrap();
    for path in ["a", "a/b", "a/b/run"] {
        assert_eq!(mode(&place.directory.path().join(path)), 0o700, "{path}");
    }
    endpoint::prepare_run_dir(&deep, &BindOptions::default()).unwrap();
}

#[test]
fn a_directory_that_is_open_to_others_is_refused() {
    let place = place();
    fs::create_dir(&place.run).unwrap();
    for open in [0o777, 0o755, 0o710, 0o701, 0o770, 0o1777] {
        fs::set_permissions(&place.run, fs::Permissions::from_mode(open)).unwrap();
        let error = endpoint::prepare_run_dir(&place.run, &BindOptions::default()).unwrap_err();
        assert!(matches!(error, EndpointError::RunDirIsOpen { .. }), "{error}");
        assert!(error.to_string().contains("chmod 700"), "{error}");
        assert_eq!(mode(&place.run), open);
    }
}

#[test]
fn a_symbolic_link_is_refused() {
    let place = place();
    let real = place.directory.path().join("real");
    endpoint::prepare_run_dir(&real, &BindOptions::default()).unwrap();
    symlink(&real, &place.run).unwrap();
    let error = endpoint::prepare_run_dir(&place.run, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, EndpointError::RunDirIsLink(_)), "{error}");
    fs::remove_file(&place.run).unwrap();
    symlink("/nowhere/at/all", &place.run).unwrap();
    let error = endpoint::prepare_run_dir(&place.run, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, EndpointError::RunDirIsLink(_)), "{error}");
    fs::remove_file(&place.run).unwrap();
    fs::write(&place.run, "").unwrap();
    let error = endpoint::prepare_run_dir(&place.run, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, EndpointError::RunDirIsNoDirectory(_)), "{error}");
}

#[test]
fn a_foreign_directory_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: giving a directory away takes root");
        return;
    }
    let place = place();
    endpoint::prepare_run_dir(&place.run, &BindOptions::default()).unwrap();
    nix::unistd::chown(&place.run, Some(nix::unistd::Uid::from_raw(12_345)), None).unwrap();
    let error = endpoint::prepare_run_dir(&place.run, &BindOptions::default()).unwrap_err();
    assert!(
        matches!(error, EndpointError::RunDirIsForeign { uid: 12_345, .. }),
        "{error}"
    );
}

#[test]
fn a_shared_daemon_opens_the_door_to_its_group_only() {
    let group = nix::unistd::getegid().as_raw();
    let place = place();
    let options = BindOptions {
        socket_group: Some(group),
        policy: PeerPolicy::own_user_and([12_345]),
    };
    endpoint::prepare_run_dir(&place.run, &options).unwrap();
    assert_eq!(mode(&place.run), 0o750);
    let lock = EndpointLock::acquire(&place.lock).unwrap();
    let socket = endpoint::bind(&place.socket, &lock, &options).unwrap();
    assert_eq!(mode(&place.socket), 0o660);
    assert_eq!(fs::metadata(&place.socket).unwrap().gid(), group);
    drop(socket);
    // Without the group the same directory is too open.
    assert!(endpoint::prepare_run_dir(&place.run, &BindOptions::default()).is_err());
    let other = BindOptions {
        socket_group: Some(group + 1),
        ..options
    };
    let error = endpoint::prepare_run_dir(&place.run, &other).unwrap_err();
    assert!(matches!(error, EndpointError::RunDirOfOtherGroup { .. }), "{error}");
    fs::set_permissions(&place.run, fs::Permissions::from_mode(0o770)).unwrap();
    assert!(
        endpoint::prepare_run_dir(
            &place.run,
            &BindOptions {
                socket_group: Some(group),
                ..Default::default()
            }
        )
        .is_err()
    );
}

#[test]
fn a_directory_that_keeps_the_group_out_is_named() {
    let group = nix::unistd::getegid().as_raw();
    let place = place();
    let options = BindOptions {
        socket_group: Some(group),
        ..Default::default()
    };
    endpoint::prepare_run_dir(&place.run, &options).unwrap();
    let home = place.directory.path();
    for (closed, open) in [(0o700, 0o710), (0o701, 0o750), (0o760, 0o770)] {
        fs::set_permissions(home, fs::Permissions::from_mode(closed)).unwrap();
        let error = endpoint::check_reachable(&place.run, &options).unwrap_err();
        assert!(
            matches!(&error, EndpointError::GroupCannotReach { path, .. } if *path == home.canonicalize().unwrap()),
            "{error}"
        );
        assert!(error.to_string().contains("chmod g+x"), "{error}");
        endpoint::check_reachable(&place.run, &BindOptions::default()).unwrap();
        fs::set_permissions(home, fs::Permissions::from_mode(open)).unwrap();
        endpoint::check_reachable(&place.run, &options).unwrap();
    }
    // Another group passes where everybody does.
    let other = BindOptions {
        socket_group: Some(group + 1),
        ..Default::default()
    };
    fs::set_permissions(home, fs::Permissions::from_mode(0o711)).unwrap();
    let error = endpoint::check_reachable(&place.run, &other).unwrap_err();
    assert!(
        matches!(&error, EndpointError::GroupCannotReach { path, .. } if path.ends_with("run")),
        "{error}"
    );
}

#[test]
fn a_lock_that_was_removed_is_taken_anew_unless_another_has_it() {
    let (place, lock) = prepared();
    let options = BindOptions::default();
    assert!(!lock.renew(&options).unwrap());
    for _ in 0..2 {
        fs::remove_dir_all(&place.run).unwrap();
        assert!(!lock.still_ours());
        assert!(lock.renew(&options).unwrap() && lock.still_ours());
        assert_eq!((mode(&place.run), mode(&place.lock)), (0o700, 0o600));
        assert!(EndpointLock::acquire(&place.lock).is_err(), "it is held again");
    }
    // A clone is the same lock.
    let clone = lock.clone();
    fs::remove_file(&place.lock).unwrap();
    assert!(clone.renew(&options).unwrap() && lock.still_ours());

    fs::remove_file(&place.lock).unwrap();
    let other = EndpointLock::acquire(&place.lock).unwrap();
    let error = lock.renew(&options).unwrap_err();
    assert!(matches!(error, EndpointError::Locked { .. }), "{error}");
    assert!(other.still_ours());
    // A directory that is not as it should be does not make the lock give up.
    drop(other);
    fs::set_permissions(&place.run, fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_file(&place.lock).unwrap();
    assert!(matches!(lock.renew(&options), Err(EndpointError::RunDirIsOpen { .. })));
    fs::set_permissions(&place.run, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(lock.renew(&options).unwrap());
}

#[test]
fn the_lock_is_exclusive_and_says_who_holds_it() {
    let (place, lock) = prepared();
    assert_eq!(mode(&place.lock), 0o600);
    let error = EndpointLock::acquire(&place.lock).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, EndpointError::Locked { pid: Some(pid), .. } if pid == std::process::id()),
        "{text}"
    );
    assert!(text.contains("ccoctl daemon stop"), "{text}");
    let clone = lock.clone();
    drop(lock);
    assert!(EndpointLock::acquire(&place.lock).is_err());
    assert!(clone.still_ours());
    fs::remove_file(&place.lock).unwrap();
    assert!(!clone.still_ours());
    drop(clone);
    EndpointLock::acquire(&place.lock).unwrap();
}

#[test]
fn a_lock_file_that_is_a_link_is_refused() {
    let place = place();
    endpoint::prepare_run_dir(&place.run, &BindOptions::default()).unwrap();
    let target = place.directory.path().join("precious");
    fs::write(&target, "precious").unwrap();
    symlink(&target, &place.lock).unwrap();
    assert!(matches!(
        EndpointLock::acquire(&place.lock),
        Err(EndpointError::LockIsForeign(_))
    ));
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn a_stale_socket_is_replaced() {
    let (place, lock) = prepared();
    drop(UnixListener::bind(&place.socket).unwrap());
    assert!(place.socket.exists());
    let socket = endpoint::bind(&place.socket, &lock, &BindOptions::default()).unwrap();
    assert_eq!(mode(&place.socket), 0o600);
    assert!(socket.still_ours());
    drop(socket);
    assert!(!place.socket.exists());
}

#[test]
fn a_live_socket_is_not_displaced() {
    let (place, lock) = prepared();
    let other = UnixListener::bind(&place.socket).unwrap();
    let before = fs::symlink_metadata(&place.socket).unwrap().ino();
    let error = endpoint::bind(&place.socket, &lock, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, EndpointError::Occupied(_)), "{error}");
    assert_eq!(fs::symlink_metadata(&place.socket).unwrap().ino(), before);
    drop(other);
    // Another kind of socket is somebody's too.
    fs::remove_file(&place.socket).unwrap();
    let _datagram = UnixDatagram::bind(&place.socket).unwrap();
    let error = endpoint::bind(&place.socket, &lock, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, EndpointError::Occupied(_)), "{error}");
}

#[test]
fn a_daemon_that_hangs_is_alive() {
    let (place, lock) = prepared();
    let other = UnixListener::bind(&place.socket).unwrap();
    // Fill its queue of new connections; without blocking, for it will never accept.
    let mut waiting = Vec::new();
    loop {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
        use std::os::fd::AsRawFd;
        let client = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
        if connect(client.as_raw_fd(), &UnixAddr::new(&place.socket).unwrap()).is_err() {
            break;
        }
        waiting.push(client);
        if waiting.len() > 800 {
            // A longer queue than descriptors allow to fill; the probe then simply connects.
            break;
        }
    }
    let error = endpoint::bind(&place.socket, &lock, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, EndpointError::Occupied(_)), "{error}");
    drop(other);
}

#[test]
fn what_is_not_a_socket_is_kept() {
    let (place, lock) = prepared();
    fs::write(&place.socket, "precious").unwrap();
    let error = endpoint::bind(&place.socket, &lock, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, EndpointError::NotASocket(_)), "{error}");
    assert_eq!(fs::read_to_string(&place.socket).unwrap(), "precious");
    fs::remove_file(&place.socket).unwrap();
    let target = place.directory.path().join("target");
    drop(UnixListener::bind(&target).unwrap());
    symlink(&target, &place.socket).unwrap();
    let error = endpoint::bind(&place.socket, &lock, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, EndpointError::NotASocket(_)), "{error}");
    assert!(target.exists() && place.socket.is_symlink());
    fs::remove_file(&place.socket).unwrap();
    fs::create_dir(&place.socket).unwrap();
    assert!(matches!(
        endpoint::bind(&place.socket, &lock, &BindOptions::default()),
        Err(EndpointError::NotASocket(_))
    ));
}

#[test]
fn closing_removes_only_the_own_socket() {
    let (place, lock) = prepared();
    let socket = endpoint::bind(&place.socket, &lock, &BindOptions::default()).unwrap();
    fs::remove_file(&place.socket).unwrap();
    assert!(!socket.still_ours());
    let other = UnixListener::bind(&place.socket).unwrap();
    assert!(!socket.still_ours());
    drop(socket);
    assert!(place.socket.exists());
    drop(other);
}

#[test]
fn long_and_relative_paths_are_refused_with_the_limit() {
    let (place, lock) = prepared();
    let long = place.run.join("x".repeat(endpoint::SOCKET_PATH_MAX));
    let error = endpoint::bind(&long, &lock, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, EndpointError::PathTooLong { .. }), "{error}");
    assert!(
        error.to_string().contains("107") || cfg!(not(target_os = "linux")),
        "{error}"
    );
    let room = endpoint::SOCKET_PATH_MAX - place.run.as_os_str().len() - 1;
    let longest = place.run.join("x".repeat(room));
    endpoint::bind(&longest, &lock, &BindOptions::default()).unwrap();
    for relative in ["ccod.sock", "", "/"] {
        let error = endpoint::bind(Path::new(relative), &lock, &BindOptions::default()).unwrap_err();
        assert!(matches!(error, EndpointError::PathNotAbsolute(_)), "{error}");
    }
}

#[test]
fn the_mode_is_right_from_the_first_moment() {
    let (place, lock) = prepared();
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(AtomicUsize::new(0));
    let watchers: Vec<_> = (0..2)
        .map(|_| {
            let (path, stop, seen) = (place.socket.clone(), Arc::clone(&stop), Arc::clone(&seen));
            std::thread::spawn(move || {
                let mut wrong = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(found) = fs::symlink_metadata(&path) {
                        seen.fetch_add(1, Ordering::Relaxed);
                        if found.mode() & 0o777 != 0o600 {
                            wrong.push(found.mode());
                        }
                    }
                }
                wrong
            })
        })
        .collect();
    let mut rounds = 0;
    while rounds < 300 || (seen.load(Ordering::Relaxed) < 100 && rounds < 100_000) {
        drop(endpoint::bind(&place.socket, &lock, &BindOptions::default()).unwrap());
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    for watcher in watchers {
        assert_eq!(watcher.join().unwrap(), Vec::<u32>::new());
    }
    assert!(seen.load(Ordering::Relaxed) > 0);
}

#[test]
fn of_two_that_start_at_once_one_serves() {
    for _ in 0..100 {
        let place = Arc::new(place());
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let starters: Vec<_> = (0..2)
            .map(|_| {
                let (place, barrier) = (Arc::clone(&place), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    barrier.wait();
                    let options = BindOptions::default();
                    endpoint::prepare_run_dir(&place.run, &options)?;
                    let lock = EndpointLock::acquire(&place.lock)?;
                    endpoint::bind(&place.socket, &lock, &options)
                })
            })
            .collect();
        let outcomes: Vec<Result<BoundSocket, EndpointError>> =
            starters.into_iter().map(|starter| starter.join().unwrap()).collect();
        assert_eq!(
            outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
            1,
            "{outcomes:?}"
        );
        let loser = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).unwrap();
        assert!(matches!(loser, EndpointError::Locked { .. }), "{loser}");
        let winner = outcomes.iter().find_map(|outcome| outcome.as_ref().ok()).unwrap();
        assert!(winner.still_ours());
    }
}

#[tokio::test]
async fn another_user_is_refused_and_told_why() {
    let daemon = Daemon::serving(quick(), Some(PeerPolicy::only([4_000_000_000])));
    for _ in 0..3 {
        let mut wire = daemon.connect().await;
        wire.send(format!("{}\n", echo(1, json!([])))).await;
        let answers = wire.rest().await;
        assert_eq!(answers.len(), 1);
        refused(&answers[0], &Value::Null, -32026);
    }
    let snapshot = daemon.stats.snapshot();
    assert_eq!(
        (
            snapshot.connections_refused,
            snapshot.connections_open,
            snapshot.requests
        ),
        (3, 0, 0)
    );
    assert!(daemon.stop().await.is_clean());
}

#[tokio::test]
async fn a_socket_that_was_passed_on_is_served_and_left_alone() {
    let place = place();
    let path = place.directory.path().join("activated.sock");
    let passed = UnixListener::bind(&path).unwrap();
    let socket = BoundSocket::from_fd(passed.into()).unwrap();
    assert!(socket.path().is_none() && socket.still_ours());
    let mut table = Methods::default();
    table.serve_raw("test.one", |_, _| async move { Ok::<_, WireError>(1) });
    let shutdown = CancellationToken::new();
    let service = Service::new(table).with_limits(quick()).with_shutdown(shutdown.clone());
    let serving = tokio::spawn(Server::over(Arc::new(service)).serve(socket));
    let answer = Wire::connect(&path)
        .await
        .call(&request(1, "test.one", json!([])))
        .await;
    assert_eq!(answer, result(1, json!(1)));
    shutdown.cancel();
    assert!(within(serving).await.unwrap().is_clean());
    assert!(path.exists());
}

#[test]
fn what_does_not_listen_is_not_adopted() {
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(
        BoundSocket::from_fd(one.into()),
        Err(EndpointError::NotListening)
    ));
    let place = place();
    let file = fs::File::create(place.directory.path().join("file")).unwrap();
    assert!(matches!(
        BoundSocket::from_fd(file.into()),
        Err(EndpointError::NotListening)
    ));
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(matches!(
        BoundSocket::from_fd(tcp.into()),
        Err(EndpointError::NotListening)
    ));
}
