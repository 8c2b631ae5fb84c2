//! How damage to a project is reported: every call that covers several projects names the one that cannot be read,
//! is damaged or is out of reach, also as the first request after a start; and none of them makes it worse.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Daemon, ids};

const TABLE: &str = "orchestra_knowledge.lance";

fn project(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.home.path().join("knowledge").join(name)
}

fn store_in(daemon: &Daemon, project: &str, text: &str) -> String {
    let stored = daemon.call("knowledge.store", json!({"text": text, "project_id": project}));
    stored["id"].as_str().unwrap().to_owned()
}

/// A daemon with three items in each of these projects, each item in a file of its own.
fn with_projects(names: &[&str]) -> Daemon {
    let daemon = Daemon::start();
    for name in names {
        for number in 0..3 {
            store_in(&daemon, name, &format!("Note {number} on the rivers of {name}"));
        }
    }
    daemon
}

/// Ends the daemon (kill -9), changes what is on disk, and starts it again.
fn changed(mut daemon: Daemon, change: impl FnOnce(&Path)) -> Daemon {
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    change(&daemon.home.path().join("knowledge"));
    daemon.restart_after_end()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn make_unreadable(project: &Path) {
    let manifests = files(&project.join(TABLE).join("_versions"));
    for manifest in manifests {
        fs::write(manifest, "").unwrap();
    }
}

/// Each call over all projects that reports damaged ones, with its parameters.
fn tellers(place: &Path) -> Vec<(&'static str, Value)> {
    vec![
        ("admin.health", json!({})),
        ("admin.verify", json!({})),
        ("admin.backup", json!({"path": place})),
        ("admin.status", json!({})),
        ("admin.metrics", json!({})),
        ("knowledge.stats", json!({})),
        ("knowledge.projects", json!({})),
        ("knowledge.search", json!({"query": "rivers", "projects": "*"})),
    ]
}

/// What a call says is wrong, where it says such things.
fn trouble_of(method: &str, told: &Value) -> String {
    let field = match method {
        "admin.health" => "reasons",
        "admin.verify" => "findings",
        "admin.backup" => "warnings",
        "admin.metrics" => "text",
        "knowledge.search" => "degraded",
        _ => "errors",
    };
    told[field].to_string()
}

fn assert_told(method: &str, told: &Value, name: &str) {
    let trouble = trouble_of(method, told);
    let wanted = match method {
        "admin.metrics" => format!("ccod_project_unreadable{{project=\\\"{name}\\\"}} 1"),
        _ => name.to_owned(),
    };
    assert!(trouble.contains(&wanted), "{method} says nothing of {name}: {told}");
    match method {
        "admin.health" => assert_eq!(told["status"], "degraded", "{told}"),
        "admin.verify" => assert_eq!(told["ok"], false, "{told}"),
        "admin.backup" => assert!(!told["projects"].to_string().contains(name), "{told}"),
        "knowledge.projects" | "admin.status" => {
            let projects = told["projects"].as_array().unwrap().iter();
            let state = projects.filter(|project| project["project_id"] == name);
            let state: Vec<&Value> = state.map(|project| &project["state"]).collect();
            assert_eq!(state.len(), 1, "{method}: {told}");
            assert!(state[0].is_string(), "{method}: {told}");
        }
        _ => {}
    }
}

/// Each of the calls reports the project, as the first one after a start, and again.
fn assert_told_by_all(mut daemon: Daemon, name: &str, sound: &[&str]) -> Daemon {
    let place = tempfile::tempdir().unwrap();
    for (turn, (method, params)) in tellers(&place.path().join("backup")).into_iter().enumerate() {
        daemon = daemon.kill_and_restart();
        assert_told(method, &daemon.call(method, params), name);
        let again = tellers(&place.path().join(format!("again-{turn}")));
        for (method, params) in again {
            let told = daemon.call(method, params);
            assert_told(method, &told, name);
            if method == "admin.backup" {
                assert_eq!(told["projects"], json!(sound), "{told}");
            }
            if method == "knowledge.search" {
                assert!(ids(&told).len() >= 3, "{told}");
            }
        }
    }
    daemon
}

#[test]
fn a_project_without_a_version_that_can_be_read_is_told_of_by_all() {
    let daemon = with_projects(&["nov", "sound"]);
    let daemon = changed(daemon, |knowledge| make_unreadable(&knowledge.join("nov")));
    let daemon = assert_told_by_all(daemon, "nov", &["sound"]);
    let told = daemon.call("admin.verify", json!({"project_id": "nov"}));
    assert_eq!(told["ok"], false, "{told}");

    // By itself it is empty, and where there is a place for it, that is told.
    let alone = json!({"query": "rivers", "project_id": "nov"});
    let found = daemon.call("knowledge.search", alone.clone());
    assert_eq!(found["count"], 0, "{found}");
    assert!(found["degraded"].to_string().contains("no version"), "{found}");
    let missing = daemon.call_error("knowledge.get", json!({"id": "x", "project_id": "nov"}));
    assert!(
        missing["data"]["degraded"].to_string().contains("no version"),
        "{missing}"
    );
    let place = tempfile::tempdir().unwrap();
    for (method, params) in [
        (
            "admin.export",
            json!({"path": place.path().join("nov.jsonl"), "project_id": "nov"}),
        ),
        (
            "admin.backup",
            json!({"path": place.path().join("nov"), "project_id": "nov"}),
        ),
        ("admin.optimize", json!({"project_id": "nov"})),
        ("knowledge.stats", json!({"project_id": "nov"})),
        (
            "knowledge.purge",
            json!({"id": "x", "confirm": true, "project_id": "nov"}),
        ),
    ] {
        let error = daemon.call_error(method, params);
        assert!(error["message"].to_string().contains("no version"), "{method}: {error}");
    }
    assert!(files(place.path()).is_empty());

    // The project begins again, and the old data is reported until somebody has dealt with it.
    store_in(&daemon, "nov", "A new beginning");
    let daemon = daemon.kill_and_restart();
    for _ in 0..2 {
        let health = daemon.call("admin.health", json!({}));
        let reasons = health["reasons"].to_string();
        assert!(
            reasons.contains("project nov") && reasons.contains("set-aside"),
            "{health}"
        );
        assert!(reasons.contains("remove the directory"), "{health}");
        let found = daemon.call("knowledge.search", alone.clone());
        assert_eq!((&found["count"], found.get("degraded")), (&json!(1), None), "{found}");
    }
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
    for aside in files(&project(&daemon, "nov").join("set-aside")) {
        fs::remove_dir_all(aside).unwrap();
    }
    let health = daemon.call("admin.health", json!({}));
    assert_eq!(health["status"], "ok", "{health}");
}

#[test]
fn a_project_that_is_put_back_is_told_of_no_longer() {
    let daemon = with_projects(&["nov"]);
    let kept = tempfile::tempdir().unwrap();
    let versions = project(&daemon, "nov").join(TABLE).join("_versions");
    let daemon = changed(daemon, |knowledge| {
        for manifest in files(&knowledge.join("nov").join(TABLE).join("_versions")) {
            fs::copy(&manifest, kept.path().join(manifest.file_name().unwrap())).unwrap();
        }
        make_unreadable(&knowledge.join("nov"));
    });
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "degraded");
    for manifest in files(kept.path()) {
        fs::copy(&manifest, versions.join(manifest.file_name().unwrap())).unwrap();
    }
    let health = daemon.call("admin.health", json!({}));
    assert_eq!(health["status"], "ok", "{health}");
    let listed = daemon.call("knowledge.list", json!({"project_id": "nov"}));
    assert_eq!(listed["total"], 3);
}

#[test]
fn a_link_that_leads_nowhere_is_told_of_by_all_until_it_leads_somewhere() {
    let daemon = with_projects(&["good", "sound"]);
    let disk = tempfile::tempdir().unwrap();
    let (mounted, unmounted) = (disk.path().join("good"), disk.path().join("unmounted"));
    let daemon = changed(daemon, |knowledge| {
        crate::support::copy_tree(&knowledge.join("good"), &mounted);
        fs::remove_dir_all(knowledge.join("good")).unwrap();
        symlink(&mounted, knowledge.join("good")).unwrap();
    });
    assert_eq!(daemon.call("knowledge.list", json!({"project_id": "good"}))["total"], 3);
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    let daemon = changed(daemon, |_| fs::rename(&mounted, &unmounted).unwrap());
    let daemon = assert_told_by_all(daemon, "good", &["sound"]);
    let verified = daemon.call("admin.verify", json!({"project_id": "good"}));
    assert_eq!(verified["ok"], false, "{verified}");
    for (method, words) in [("knowledge.store", "text"), ("knowledge.search", "query")] {
        let error = daemon.call_error(method, json!({words: "rivers", "project_id": "good"}));
        assert!(error["message"].to_string().contains("link to nothing"), "{error}");
    }
    assert!(!mounted.exists());
    fs::rename(&unmounted, &mounted).unwrap();
    let health = daemon.call("admin.health", json!({}));
    assert_eq!(health["status"], "ok", "{health}");
    assert_eq!(daemon.call("knowledge.list", json!({"project_id": "good"}))["total"], 3);
}

/// Makes a project of few files; answers those that are to be lost: a data file, and the one that says what is deleted.
fn losses(daemon: &Daemon) -> Vec<PathBuf> {
    let items: Vec<Value> = (0..3)
        .map(|number| json!({"id": format!("n{number}"), "text": format!("n {number}")}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items, "project_id": "bad"}));
    daemon.call("knowledge.delete", json!({"id": "n1", "project_id": "bad"}));
    let table = project(daemon, "bad").join(TABLE);
    let deletions = files(&table.join("_deletions"));
    assert_eq!(deletions.len(), 1, "{deletions:?}");
    vec![files(&table.join("data"))[0].clone(), deletions[0].clone()]
}

#[test]
fn a_damaged_project_costs_no_other_its_backup() {
    let daemon = with_projects(&["sound"]);
    let lost = losses(&daemon);
    let place = tempfile::tempdir().unwrap();
    let mut daemon = daemon;
    let mut number = 0;
    for file in lost {
        let kept = fs::read(&file).unwrap();
        // Lost while it is stopped, and while it runs with the project open.
        for stopped in [true, false] {
            number += 1;
            if stopped {
                daemon = changed(daemon, |_| fs::remove_file(&file).unwrap());
            } else {
                fs::remove_file(&file).unwrap();
            }
            for attempt in 0..2 {
                let path = place.path().join(format!("{number}-{attempt}"));
                let output = daemon.home.run(&["--json", "backup", path.to_str().unwrap()]);
                let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
                assert_eq!(
                    (output.status.code(), &told["projects"]),
                    (Some(65), &json!(["sound"])),
                    "{told}"
                );
                let name = file.file_name().unwrap().to_str().unwrap();
                let warnings = told["warnings"].to_string();
                assert!(warnings.contains("project bad") && warnings.contains(name), "{told}");
                assert!(!path.join("knowledge/bad").exists());
                let alone = json!({"path": place.path().join("alone"), "project_id": "bad"});
                let error = daemon.call_error("admin.backup", alone);
                assert_eq!(error["code"], -32603, "{error}");
                assert!(error["message"].to_string().contains(name), "{error}");
            }
            let health = daemon.call("admin.health", json!({}));
            assert_eq!(health["status"], "degraded", "{health}");
            daemon = changed(daemon, |_| fs::write(&file, &kept).unwrap());
        }
    }
    // Put back, it is in the next one, whole.
    let whole = daemon.call("admin.backup", json!({"path": place.path().join("whole")}));
    assert_eq!(whole["projects"], json!(["bad", "sound"]), "{whole}");
    assert!(whole.get("warnings").is_none(), "{whole}");
}

#[test]
fn a_keyword_index_that_is_lost_keeps_no_project_out_of_a_backup() {
    let daemon = with_projects(&["bad", "sound"]);
    for index in files(&project(&daemon, "bad").join(TABLE).join("_indices")) {
        fs::remove_dir_all(index).unwrap();
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("backup");
    let mut answer = daemon.connect().request("admin.backup", json!({"path": path}));
    if let Some(error) = answer.get("error") {
        assert_eq!(error["data"]["retryable"], true, "{error}");
        answer = daemon.connect().request("admin.backup", json!({"path": path}));
    }
    assert_eq!(answer["result"]["projects"], json!(["bad", "sound"]), "{answer}");
}

#[test]
fn upkeep_leaves_a_project_alone_that_a_file_is_missing_of() {
    let daemon = with_projects(&["bad", "sound"]);
    let file = files(&project(&daemon, "bad").join(TABLE).join("data"))[0].clone();
    let kept = fs::read(&file).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    let listed = |daemon: &Daemon| daemon.call("knowledge.list", json!({"project_id": "bad"}))["total"].clone();
    let daemon = changed(daemon, |_| fs::remove_file(&file).unwrap());
    for _ in 0..2 {
        let optimized = daemon.call("admin.optimize", json!({}));
        assert_eq!(optimized["projects"], json!(["sound"]), "{optimized}");
        let error = &optimized["errors"][0];
        assert_eq!(error["project_id"], "bad", "{optimized}");
        let alone = daemon.call_error("admin.optimize", json!({"project_id": "bad"}));
        for message in [&error["message"], &alone["message"]] {
            let message = message.to_string();
            assert!(
                message.contains(&name) && message.contains("put the file back"),
                "{message}"
            );
        }
        assert_eq!(daemon.call("admin.health", json!({}))["status"], "degraded");
    }
    assert_eq!(listed(&daemon), 2);
    assert!(files(&project(&daemon, "bad").join("set-aside")).is_empty());
    // Put back, it is as if nothing had been.
    let daemon = changed(daemon, |_| fs::write(&file, &kept).unwrap());
    assert_eq!(listed(&daemon), 3);
    // Given up by a write: then upkeep goes on.
    let daemon = changed(daemon, |_| fs::remove_file(&file).unwrap());
    store_in(&daemon, "bad", "Whoever writes gives up what is gone");
    let optimized = daemon.call("admin.optimize", json!({}));
    assert_eq!(optimized["projects"], json!(["bad", "sound"]), "{optimized}");
    assert_eq!(listed(&daemon), 3);
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

#[test]
fn upkeep_gives_up_nothing_that_goes_while_the_daemon_runs() {
    let daemon = with_projects(&["bad"]);
    let file = files(&project(&daemon, "bad").join(TABLE).join("data"))[0].clone();
    let kept = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    // What is open may still be read; if not, it is told.
    let answer = daemon.connect().request("admin.optimize", json!({"project_id": "bad"}));
    if let Some(error) = answer.get("error") {
        assert!(error["message"].to_string().contains("put the file back"), "{error}");
    }
    let daemon = changed(daemon, |_| fs::write(&file, &kept).unwrap());
    let listed = daemon.call("knowledge.list", json!({"project_id": "bad"}));
    assert_eq!(listed["total"], 3, "{answer}");
}

#[test]
fn what_lies_in_set_aside_by_chance_is_in_no_purges_way() {
    let daemon = with_projects(&["default"]);
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("mine"), "not of the daemon").unwrap();
    let aside = project(&daemon, "default").join("set-aside");
    let listed = daemon.call("knowledge.list", json!({}));
    for (number, id) in ids(&listed).iter().take(2).enumerate() {
        if number == 0 {
            fs::create_dir(&aside).unwrap();
            fs::write(aside.join(".DS_Store"), "").unwrap();
            symlink(elsewhere.path(), aside.join("link")).unwrap();
            fs::create_dir_all(aside.join("deep/er")).unwrap();
        } else {
            fs::remove_dir_all(&aside).unwrap();
            fs::write(&aside, "a file").unwrap();
        }
        let purged = daemon.call("knowledge.purge", json!({"id": id, "confirm": true}));
        assert_eq!(purged["purged"], 1, "{purged}");
        daemon.call("admin.optimize", json!({}));
        assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
        assert!(!project(&daemon, "default").join("purge-unfinished").exists());
        assert!(!aside.join(".DS_Store").exists());
    }
    assert!(
        elsewhere.path().join("mine").exists(),
        "a link is removed, not what it leads to"
    );
}
