//! What is wrong with one project, or lies in the data directory and is not a project, is reported and in nobody's
//! way; and the daemon's own projects are nobody else's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Connection, Daemon, Home, PATIENCE, copy_tree, ids};

const TABLE: &str = "orchestra_knowledge.lance";

fn knowledge(daemon: &Daemon) -> PathBuf {
    daemon.home.path().join("knowledge")
}

fn store_in(daemon: &Daemon, project: &str, text: &str) -> String {
    let stored = daemon.call("knowledge.store", json!({"text": text, "project_id": project}));
    stored["id"].as_str().unwrap().to_owned()
}

fn names(result: &Value) -> Vec<&str> {
    let projects = result["projects"].as_array().unwrap();
    projects
        .iter()
        .map(|project| project["project_id"].as_str().unwrap())
        .collect()
}

fn told(list: &Value) -> String {
    let lines = list.as_array().unwrap().iter();
    lines.map(|line| line.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Ends the daemon (kill -9), changes its data directory, and starts it again.
fn changed(mut daemon: Daemon, change: impl FnOnce(&Path)) -> Daemon {
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    daemon.wait();
    change(&knowledge(&daemon));
    daemon.restart_after_end()
}

fn own_directories(daemon: &Daemon) -> usize {
    let entries = fs::read_dir(knowledge(daemon)).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".health"))
        .count()
}

#[test]
fn self_tests_touch_no_project_of_a_user_whatever_its_name() {
    let daemon = Daemon::start();
    let path = daemon.home.path().join("old.jsonl");
    // Older than what a self-test takes for its own left-overs, if it takes anything for that.
    fs::write(
        &path,
        json!({"id": "old", "text": "A user's note", "timestamp": "2020-01-01T00:00:00Z"}).to_string(),
    )
    .unwrap();
    let projects = ["ccod-health-probe", "health", "knowledge-manager-test"];
    for project in projects {
        daemon.call("admin.import", json!({"path": path, "project_id": project}));
        store_in(&daemon, project, "Another note of the user");
    }
    let mut subscriber = daemon.connect();
    let subscription = subscriber.call("knowledge.subscribe", json!({"project_id": "*"}))["subscription"].clone();
    for _ in 0..2 {
        assert_eq!(daemon.call("admin.health", json!({"deep": true}))["status"], "ok");
        let test = daemon.home.run(&["km", "test"]);
        assert_eq!(test.status.code(), Some(0), "{test:?}");
    }
    for project in projects {
        let listed = daemon.call("knowledge.list", json!({"project_id": project}));
        assert_eq!(listed["total"], 2, "{project}: {listed}");
    }
    assert_eq!(names(&daemon.call("knowledge.projects", json!({}))), projects);
    assert_eq!(names(&daemon.call("admin.status", json!({}))), projects);
    let found = daemon.call(
        "knowledge.search",
        json!({"query": "note", "projects": "*", "limit": 100}),
    );
    assert_eq!(found["count"], 6, "{found}");
    let place = tempfile::tempdir().unwrap();
    let backup = daemon.call("admin.backup", json!({"path": place.path().join("backup")}));
    assert_eq!(backup["projects"], json!(projects));
    assert_eq!(own_directories(&daemon), 0);
    // Nothing of the probes is in a feed: the first that comes is the user's.
    let id = store_in(&daemon, "health", "A note that is told of");
    let change = subscriber.receive().unwrap();
    assert_eq!(change["params"]["subscription"], subscription);
    assert_eq!(change["params"]["result"]["id"], json!(id), "{change}");

    for name in [".health", ".health-0123456789abcdef"] {
        let error = daemon.call_error("knowledge.store", json!({"text": "x", "project_id": name}));
        assert_eq!(error["code"], -32602, "{error}");
    }
}

#[test]
fn six_monitors_at_once_are_all_told_that_all_is_well() {
    let daemon = Daemon::start();
    let socket = daemon.home.socket();
    let monitors: Vec<_> = (0..6)
        .map(|_| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                for _ in 0..3 {
                    let health = Connection::open(&socket).call("admin.health", json!({"deep": true}));
                    assert_eq!((&health["status"], &health["reasons"]), (&json!("ok"), &json!([])));
                }
            })
        })
        .collect();
    for monitor in monitors {
        monitor.join().unwrap();
    }
    assert_eq!(names(&daemon.call("knowledge.projects", json!({}))), Vec::<&str>::new());
    assert_eq!(own_directories(&daemon), 0);
}

#[test]
fn a_probe_that_nobody_waits_for_leaves_nothing_and_what_a_crash_left_goes() {
    let daemon = Daemon::start();
    store_in(&daemon, "web", "A note");
    for _ in 0..8 {
        let mut connection = daemon.connect();
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "admin.health", "params": {"deep": true}});
        connection.send(format!("{request}\n"));
    }
    let begun = Instant::now();
    std::thread::sleep(Duration::from_millis(200));
    while own_directories(&daemon) > 0 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    let leave = |knowledge: &Path| copy_tree(&knowledge.join("web"), &knowledge.join(".health-00000000deadbeef"));
    // Gone at a start: before the first request is answered, not before the socket is there.
    let daemon = changed(daemon, leave);
    assert_eq!(names(&daemon.call("knowledge.projects", json!({}))), ["web"]);
    assert_eq!(own_directories(&daemon), 0);
    // And with the next probe.
    leave(&knowledge(&daemon));
    assert_eq!(names(&daemon.call("knowledge.projects", json!({}))), ["web"]);
    assert_eq!(daemon.call("admin.health", json!({"deep": true}))["status"], "ok");
    assert_eq!(own_directories(&daemon), 0);
}

#[test]
fn a_directory_that_differs_in_case_is_left_aside() {
    let daemon = Daemon::start();
    let id = store_in(&daemon, "foo", "Kept under the name that was first");
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/legacy/statushub");
    let daemon = changed(daemon, |knowledge| copy_tree(&old, &knowledge.join("Foo")));
    // And one that comes while it runs.
    copy_tree(&knowledge(&daemon).join("foo"), &knowledge(&daemon).join("FOO"));

    let health = daemon.call("admin.health", json!({}));
    assert_eq!(health["status"], "degraded");
    let status = daemon.call("admin.status", json!({}));
    for list in [&health["reasons"], &status["recovery"]] {
        let told = told(list);
        assert!(told.contains("knowledge/Foo is left aside"), "{told}");
        assert!(told.contains("knowledge/FOO is left aside"), "{told}");
    }
    assert_eq!(names(&status), ["foo"]);
    let found = daemon.call(
        "knowledge.search",
        json!({"query": "kept under the name", "projects": "*"}),
    );
    assert_eq!(ids(&found), [id.as_str()]);
    for method in ["knowledge.store", "knowledge.search"] {
        let words = if method == "knowledge.store" { "text" } else { "query" };
        let error = daemon.call_error(method, json!({words: "x", "project_id": "Foo"}));
        assert_eq!(error["code"], -32602, "{error}");
    }
    let place = tempfile::tempdir().unwrap();
    let backup = daemon.call("admin.backup", json!({"path": place.path().join("backup")}));
    assert_eq!(backup["projects"], json!(["foo"]));
    assert!(told(&backup["warnings"]).contains("knowledge/Foo"), "{backup}");

    // Once it has another name it is a project like others.
    fs::rename(knowledge(&daemon).join("FOO"), knowledge(&daemon).join("FOO-2")).unwrap();
    fs::remove_dir_all(knowledge(&daemon).join("Foo")).unwrap();
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    let projects = daemon.call("knowledge.projects", json!({}));
    assert_eq!(names(&projects), ["foo", "FOO-2"]);
}

#[test]
fn a_link_to_a_project_that_comes_while_the_daemon_runs_is_no_second_project() {
    let daemon = Daemon::start();
    let id = store_in(&daemon, "foo", "Written by one hand");
    symlink("foo", knowledge(&daemon).join("bar")).unwrap();
    for (method, params) in [
        ("knowledge.store", json!({"text": "By another", "project_id": "bar"})),
        ("knowledge.search", json!({"query": "hand", "project_id": "bar"})),
    ] {
        let error = daemon.call_error(method, params);
        assert_eq!(error["code"], -32602, "{method}: {error}");
    }
    store_in(&daemon, "foo", "Written by the same hand");
    let listed = daemon.call("knowledge.list", json!({"project_id": "foo"}));
    assert_eq!(listed["total"], 2);
    assert_eq!(listed["results"][1]["id"], json!(id));
    assert_eq!(names(&daemon.call("knowledge.projects", json!({}))), ["foo"]);
    fs::remove_file(knowledge(&daemon).join("bar")).unwrap();
    store_in(&daemon, "bar", "Now a project of its own");
    assert_eq!(names(&daemon.call("knowledge.projects", json!({}))), ["bar", "foo"]);
}

#[test]
fn nothing_in_the_data_directory_keeps_the_daemon_from_starting() {
    let daemon = Daemon::start();
    let id = store_in(&daemon, "sound", "All is well here");
    let daemon = changed(daemon, |knowledge| {
        let at = |name: &str| knowledge.join(name);
        fs::write(at("notes.txt"), "a file").unwrap();
        fs::write(at(".DS_Store"), "a file").unwrap();
        fs::create_dir(at("empty")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        symlink(at("round"), at("round")).unwrap();
        symlink(at("sound"), at("twice")).unwrap();
        copy_tree(&at("sound"), &at("no name of a project"));
        copy_tree(&at("sound"), &at("-x"));
        fs::write(at("\u{fc}ml\u{e4}ut"), "").unwrap();
        // A table that is a file, one without anything in it, and one whose parts are of the wrong kind.
        fs::create_dir(at("file")).unwrap();
        fs::write(at("file").join(TABLE), "garbage").unwrap();
        fs::create_dir_all(at("hollow").join(TABLE)).unwrap();
        fs::create_dir_all(at("crooked").join(TABLE)).unwrap();
        fs::write(at("crooked").join(TABLE).join("_versions"), "garbage").unwrap();
        copy_tree(&at("sound"), &at("torn"));
        for manifest in fs::read_dir(at("torn").join(TABLE).join("_versions"))
            .unwrap()
            .flatten()
        {
            fs::write(manifest.path(), "garbage").unwrap();
        }
        // For a user who is not root these cannot be read.
        copy_tree(&at("sound"), &at("closed"));
        fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        // Restores that can be neither finished nor removed, and what looks like one.
        fs::create_dir(at(".restore-00000001")).unwrap();
        fs::write(at(".restore-00000001").join("intent.json"), "{").unwrap();
        fs::write(at(".restore-00000002"), "a file").unwrap();
        fs::write(at(".health-00000001"), "a file").unwrap();
    });
    let found = daemon.call("knowledge.search", json!({"query": "well", "project_id": "sound"}));
    assert_eq!(ids(&found), [id.as_str()]);
    let status = daemon.call("admin.status", json!({}));
    let health = daemon.call("admin.health", json!({}));
    assert_eq!(health["status"], "degraded");
    let recovery = told(&status["recovery"]);
    for what in [
        "notes.txt is left aside",
        "dangling is left aside",
        "twice is left aside",
        "no name of a project is left aside",
        "-x is left aside",
        ".restore-00000001",
    ] {
        assert!(recovery.contains(what), "{what}: {recovery}");
    }
    let reasons = told(&health["reasons"]);
    for what in [
        "no name of a project",
        ".restore-00000001",
        "project file",
        "project crooked",
    ] {
        assert!(reasons.contains(what), "{what}: {reasons}");
    }
    assert!(!reasons.contains("notes.txt"), "a stray file is no trouble: {reasons}");
    for project in ["notes.txt", "dangling", "twice"] {
        let error = daemon.call_error("knowledge.store", json!({"text": "x", "project_id": project}));
        assert_eq!(error["code"], -32602, "{error}");
        assert!(error["message"].as_str().unwrap().contains("left aside"), "{error}");
    }
    fs::remove_file(knowledge(&daemon).join("notes.txt")).unwrap();
    store_in(&daemon, "notes.txt", "A file no longer in the way");
    // Left for its owner to put in order again.
    fs::set_permissions(knowledge(&daemon).join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

/// A daemon with projects of which one, the first in the order of names, cannot be opened.
fn with_a_broken_project() -> (Daemon, Vec<String>) {
    let daemon = Daemon::start();
    let mut kept = Vec::new();
    for project in ["aaa", "mmm", "zzz"] {
        kept.push(store_in(&daemon, project, &format!("A note about rivers in {project}")));
    }
    let daemon = changed(daemon, |knowledge| {
        fs::rename(knowledge.join("aaa"), knowledge.join("../moved")).unwrap();
        fs::create_dir(knowledge.join("aaa")).unwrap();
        fs::write(knowledge.join("aaa").join(TABLE), "garbage").unwrap();
    });
    (daemon, kept)
}

fn mend(daemon: &Daemon) {
    let knowledge = knowledge(daemon);
    fs::remove_dir_all(knowledge.join("aaa")).unwrap();
    fs::rename(knowledge.join("../moved"), knowledge.join("aaa")).unwrap();
}

#[test]
fn a_project_that_cannot_be_opened_costs_the_others_nothing() {
    let (daemon, kept) = with_a_broken_project();
    let only_aaa = |result: &Value| {
        let errors = result["errors"].as_array().unwrap_or_else(|| panic!("{result}"));
        assert_eq!(errors.len(), 1, "{result}");
        assert_eq!(errors[0]["project_id"], "aaa");
        assert_eq!(errors[0]["code"], -32603);
        assert!(
            errors[0]["message"].as_str().unwrap().contains("knowledge/aaa"),
            "{result}"
        );
    };
    let stats = daemon.call("knowledge.stats", json!({}));
    only_aaa(&stats);
    assert_eq!(stats["by_project"], json!({"mmm": 1, "zzz": 1}));
    let projects = daemon.call("knowledge.projects", json!({}));
    only_aaa(&projects);
    assert_eq!(names(&projects), ["aaa", "mmm", "zzz"]);
    assert_eq!(projects["projects"][0]["state"], "unreadable");
    let status = daemon.call("admin.status", json!({}));
    only_aaa(&status);
    assert_eq!(names(&status), ["aaa", "mmm", "zzz"]);
    assert_eq!(
        (&status["status"], &status["projects"][0]["state"]),
        (&json!("degraded"), &json!("unreadable"))
    );
    let metrics = daemon.call("admin.metrics", json!({}));
    let metrics = metrics["text"].as_str().unwrap();
    assert!(
        metrics.contains("ccod_project_unreadable{project=\"aaa\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("ccod_project_items{project=\"zzz\"} 1"), "{metrics}");
    let health = daemon.call("admin.health", json!({}));
    assert!(
        told(&health["reasons"]).contains("project aaa: it cannot be opened"),
        "{health}"
    );

    for mode in ["hybrid", "vector", "text"] {
        for projects in [json!("*"), json!(["aaa", "mmm", "zzz"])] {
            let found = daemon.call(
                "knowledge.search",
                json!({"query": "rivers", "mode": mode, "projects": projects}),
            );
            let mut hits = ids(&found);
            hits.sort();
            let mut wanted = kept[1..].to_vec();
            wanted.sort();
            assert_eq!(hits, wanted, "{mode}");
            assert!(
                found["degraded"].as_str().unwrap().contains("project aaa is left out"),
                "{found}"
            );
        }
    }
    let optimized = daemon.call("admin.optimize", json!({}));
    only_aaa(&optimized);
    assert_eq!(optimized["projects"], json!(["mmm", "zzz"]));
    let verified = daemon.call("admin.verify", json!({}));
    assert_eq!(
        (&verified["ok"], &verified["projects"]),
        (&json!(false), &json!(["aaa", "mmm", "zzz"]))
    );
    assert_eq!(verified["findings"][0]["project_id"], "aaa");
    let place = tempfile::tempdir().unwrap();
    let backup = daemon.call("admin.backup", json!({"path": place.path().join("backup")}));
    assert_eq!(backup["projects"], json!(["mmm", "zzz"]));
    assert!(told(&backup["warnings"]).contains("project aaa"), "{backup}");

    // On the command line it is a warning, and a failure where something was to be done.
    for (command, code) in [("projects", 0), ("status", 0), ("optimize", 1)] {
        let output = daemon.home.run(&[command]);
        let messages = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{command}: {messages}");
        assert!(messages.contains("project aaa"), "{command}: {messages}");
    }

    // Asked for by itself it is an error, and nothing is lost once it can be read again.
    for method in ["knowledge.stats", "admin.optimize", "knowledge.list"] {
        assert_eq!(
            daemon.call_error(method, json!({"project_id": "aaa"}))["code"],
            -32603,
            "{method}"
        );
    }
    mend(&daemon);
    let stats = daemon.call("knowledge.stats", json!({}));
    assert_eq!((&stats["total"], stats.get("errors")), (&json!(3), None));
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
}

#[test]
fn a_feed_of_all_projects_goes_on_beside_one_that_cannot_be_read() {
    let (daemon, kept) = with_a_broken_project();
    let mut subscriber = daemon.connect();
    subscriber.call("knowledge.subscribe", json!({"project_id": "*"}));
    let mut next = |wanted: &str| {
        let change = subscriber.receive().unwrap();
        assert_eq!(change["params"]["result"]["id"], json!(wanted), "{change}");
        change["params"]["result"]["cursor"].clone()
    };
    for project in ["zzz", "mmm", "zzz"] {
        let id = store_in(
            &daemon,
            project,
            &format!("Told of, though aaa cannot be read ({})", rand()),
        );
        next(&id);
    }
    // Once it can be read, its subscribers get it as a whole: they have seen nothing of it.
    mend(&daemon);
    let cursor = next(&kept[0]);
    let id = store_in(&daemon, "aaa", "Stored afterwards");
    next(&id);

    // A cursor that has seen all of it goes on beside it as well.
    let daemon = changed(daemon, |knowledge| {
        fs::rename(knowledge.join("aaa"), knowledge.join("../moved")).unwrap();
        fs::create_dir(knowledge.join("aaa")).unwrap();
        fs::write(knowledge.join("aaa").join(TABLE), "garbage").unwrap();
    });
    let mut resumed = daemon.connect();
    resumed.call("knowledge.subscribe", json!({"project_id": "*", "cursor": cursor}));
    let other = store_in(&daemon, "mmm", "While it is broken again");
    assert_eq!(resumed.receive().unwrap()["params"]["result"]["id"], json!(other));
    mend(&daemon);
    assert_eq!(resumed.receive().unwrap()["params"]["result"]["id"], json!(id));
}

fn rand() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos()
}

#[test]
fn a_backup_of_all_is_made_without_the_project_that_cannot_be_copied() {
    let daemon = Daemon::start();
    for project in ["broken", "sound"] {
        store_in(&daemon, project, "A note");
        store_in(&daemon, project, "Another note");
    }
    let data = knowledge(&daemon).join("broken").join(TABLE).join("data");
    let damaged = fs::read_dir(data).unwrap().flatten().next().unwrap().path();
    let length = fs::metadata(&damaged).unwrap().len() as usize;
    fs::write(&damaged, vec![0; length]).unwrap();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("backup");
    let backup = daemon.call("admin.backup", json!({"path": path}));
    assert_eq!(backup["projects"], json!(["sound"]), "{backup}");
    assert!(told(&backup["warnings"]).contains("project broken"), "{backup}");
    assert!(!path.join("knowledge/broken").exists());
    let alone = json!({"path": place.path().join("alone"), "project_id": "broken"});
    assert_eq!(daemon.call_error("admin.backup", alone)["code"], -32603);
    // What is in it can be restored.
    let other = Daemon::start_in(Home::new(), &[]);
    let restored = other.call("admin.restore", json!({"path": path}));
    assert_eq!(
        (&restored["projects"], &restored["items"]),
        (&json!(["sound"]), &json!(2))
    );
}

#[test]
fn rows_count_passages_and_closed_revisions() {
    let daemon = Daemon::start();
    let long = "A sentence about the long history of lighthouses at sea. ".repeat(120);
    let id = daemon.store(&long);
    let row = |name: &str| {
        daemon.call("admin.status", json!({}))["projects"][0][name]
            .as_u64()
            .unwrap()
    };
    let passages = daemon.call("knowledge.stats", json!({}))["passages"].as_u64().unwrap();
    assert!(passages > 1);
    assert_eq!((row("rows"), row("items")), (passages, 1));
    daemon.call("knowledge.delete", json!({"id": id}));
    assert_eq!((row("rows"), row("items")), (passages, 0));
}
