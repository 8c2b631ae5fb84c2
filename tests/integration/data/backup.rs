//! A backup, while the daemon serves: as of one time, whole or not there.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::calls::{back_up, entries, files, items, long_call, long_request, names, store_in, texts};
use crate::support::{Connection, Daemon, Home, PATIENCE, copy_tree, modes};

#[test]
fn a_backup_under_load_is_of_one_moment_and_fills_an_empty_home() {
    let daemon = Daemon::start();
    for number in 0..40 {
        let text = if number % 10 == 0 {
            format!(
                "Number {number} is long. {}",
                "The queue of the mailer holds letters. ".repeat(80)
            )
        } else {
            format!("Retries of service {number} have a budget of {} percent", number % 7)
        };
        let metadata = json!({"number": number, "list": [number, "x"]});
        store_in(
            &daemon,
            "steady",
            json!({"text": text, "type": "pattern", "agent": "a", "session_id": "s", "metadata": metadata}),
        );
    }
    // Each client stores a number in `first`, and when that is acknowledged the same one in `second`.
    let stop = Arc::new(AtomicBool::new(false));
    let stored = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..3)
        .map(|client| {
            let (socket, stop, stored) = (daemon.home.socket(), Arc::clone(&stop), Arc::clone(&stored));
            std::thread::spawn(move || {
                let mut connection = Connection::open(&socket);
                for number in 0.. {
                    for project in ["first", "second"] {
                        let text = format!("client {client} number {number}");
                        connection.call("knowledge.store", json!({"text": text, "project_id": project}));
                        stored.fetch_add(1, Ordering::SeqCst);
                    }
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                }
            })
        })
        .collect();
    while stored.load(Ordering::SeqCst) < 30 {
        std::thread::yield_now();
    }
    let before: Vec<BTreeSet<String>> = ["first", "second"].map(|project| texts(&daemon, project)).into();
    let place = TempDir::new().unwrap();
    let backup = place.path().join("backup");
    let result = back_up(&daemon, &backup);
    let at_end = stored.load(Ordering::SeqCst);
    // The load goes on over the backup's end.
    while stored.load(Ordering::SeqCst) < at_end + 6 {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(names(&result["projects"]), ["first", "second", "steady"]);
    assert!(
        result["bytes"].as_u64().unwrap() > 0 && result.get("warnings").is_none(),
        "{result}"
    );
    assert_eq!(entries(place.path()), ["backup"]);
    for (path, is_directory, mode) in modes(place.path()) {
        assert_eq!(mode, if is_directory { 0o700 } else { 0o600 }, "{}", path.display());
    }

    let restored = Daemon::start();
    let report = long_call(&restored, "admin.restore", json!({"path": backup}));
    assert_eq!(names(&report["projects"]), ["first", "second", "steady"]);
    assert_eq!(
        (&report["items"], &report["kept_aside"]),
        (&result["items"], &json!([]))
    );
    assert_eq!(items(&restored, "steady"), items(&daemon, "steady"));
    for query in ["budget of retries", "letters waiting to be sent", "service 17"] {
        for mode in ["hybrid", "vector", "text"] {
            let [mut here, mut there] = [&daemon, &restored].map(|daemon| {
                daemon.call(
                    "knowledge.search",
                    json!({"query": query, "mode": mode, "project_id": "steady", "limit": 20}),
                )
            });
            for answer in [&mut here, &mut there] {
                answer.as_object_mut().unwrap().remove("took_ms");
                // The restore itself took a number.
                answer.as_object_mut().unwrap().remove("version");
                // It names the version.
                answer.as_object_mut().unwrap().remove("next_cursor");
            }
            assert!(here["count"].as_u64().unwrap() > 0, "{query} {mode}");
            if mode != "vector" {
                // BM25 counts by segments of the keyword index, which the upkeep has gone on to merge; and of
                // passages that are alike either may be the best.
                for answer in [&mut here, &mut there] {
                    let hits = answer["results"].as_array_mut().unwrap();
                    for hit in hits.iter_mut() {
                        for of_the_ranking in ["score", "bm25", "similarity", "passage"] {
                            hit[of_the_ranking].take();
                        }
                    }
                    hits.sort_by_key(|hit| hit["id"].as_str().unwrap().to_owned());
                }
            }
            assert_eq!(here, there, "{query} {mode}: vectors and words");
        }
    }

    let [first, second] = ["first", "second"].map(|project| texts(&restored, project));
    assert!(
        before[0].is_subset(&first) && before[1].is_subset(&second),
        "acknowledged before it"
    );
    for client in 0..3 {
        let count = |texts: &BTreeSet<String>| -> usize {
            let own = format!("client {client} number ");
            let numbers: BTreeSet<usize> = texts
                .iter()
                .filter_map(|text| text.strip_prefix(&own)?.parse().ok())
                .collect();
            assert_eq!(numbers, (0..numbers.len()).collect(), "no number is missing");
            numbers.len()
        };
        let (in_first, in_second) = (count(&first), count(&second));
        assert!(
            in_second <= in_first && in_first <= in_second + 1,
            "client {client}: {in_first} in the first project, {in_second} in the second: not one moment"
        );
    }
    // It is a home like any other.
    let id = restored.store("after the restore");
    assert_eq!(
        restored.search_ids(json!({"query": "after the restore", "limit": 1})),
        [id]
    );
    store_in(&restored, "steady", json!({"text": "one more"}));
    let restored = restored.kill_and_restart();
    assert_eq!(items(&restored, "steady").len(), 41);
}

#[test]
fn a_cancelled_backup_leaves_nothing_or_is_complete() {
    let daemon = Daemon::start();
    for number in 0..20 {
        daemon.store(&format!("number {number}"));
    }
    let place = TempDir::new().unwrap();
    for round in 0..10 {
        let path = place.path().join(format!("backup-{round}"));
        let mut connection = daemon.connect();
        let backup = json!({"jsonrpc": "2.0", "id": 1, "method": "admin.backup", "params": {"path": path}});
        let cancel = json!({"jsonrpc": "2.0", "id": 2, "method": "rpc.cancel", "params": {"id": 1}});
        connection.send(format!("{backup}\n"));
        if round % 2 == 1 {
            connection.receive().expect("progress or the answer");
        }
        connection.send(format!("{cancel}\n"));
        connection.finish_writing();
        let mut outcome = None;
        while let Some(line) = connection.receive() {
            if line["id"] == 1 {
                outcome = Some(line);
            }
        }
        match outcome {
            Some(line) if line.get("error").is_some() => assert_eq!(line["error"]["code"], -32027, "{line}"),
            _ => assert!(path.join("backup.json").exists()),
        }
    }
    // A cancelled one is answered at once, and cleans up when it notices.
    let begun = Instant::now();
    while entries(place.path()).iter().any(|name| name.contains("partial")) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", entries(place.path()));
        std::thread::yield_now();
    }
    for name in entries(place.path()) {
        long_call(&daemon, "admin.restore", json!({"path": place.path().join(name)}));
    }
    assert_eq!(daemon.call("admin.health", json!({"deep": true}))["status"], "ok");
}

#[test]
fn a_backup_of_nothing_but_a_link_that_leads_nowhere_says_what_to_do_about_the_link() {
    let daemon = Daemon::start();
    let knowledge = daemon.home.path().join("knowledge");
    std::os::unix::fs::symlink("/nowhere", knowledge.join("web")).unwrap();
    let place = TempDir::new().unwrap();
    let path = place.path().join("backup");
    let error = daemon.call_error("admin.backup", json!({"path": path}));
    assert!(error["message"].to_string().contains("link to nothing"), "{error}");
    let fix = error["data"]["fix"].as_str().unwrap();
    assert!(fix.contains("mend the link, or remove it"), "{error}");
    assert!(!path.exists());
    let output = daemon.home.run(&["backup", path.to_str().unwrap()]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("fix: mount the disk"), "{told}");
}

#[test]
fn data_of_the_old_tool_is_carried_along_as_it_is() {
    let home = Home::new();
    let legacy = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/legacy");
    copy_tree(&legacy, &home.path().join("knowledge"));
    let daemon = Daemon::start_in(home, &[]);
    daemon.store("of today");
    let before = daemon.call("knowledge.projects", json!({}));
    let place = TempDir::new().unwrap();
    let backup = place.path().join("backup");
    let result = back_up(&daemon, &backup);
    assert_eq!(names(&result["projects"]).len(), 3, "{result}");

    let restored = Daemon::start();
    let report = long_call(&restored, "admin.restore", json!({"path": backup}));
    assert_eq!(names(&report["warnings"]).len(), 2, "{report}");
    let after = restored.call("knowledge.projects", json!({}));
    let summary = |projects: &Value| -> Vec<Value> {
        let projects = projects["projects"].as_array().unwrap().iter();
        projects
            .map(|project| {
                json!([
                    project["project_id"],
                    project["total"],
                    project["state"],
                    project["newest"]
                ])
            })
            .collect()
    };
    assert_eq!(summary(&after), summary(&before));
    for project in entries(&legacy) {
        let original = files(&legacy.join(&project));
        let copies = files(&backup.join("knowledge").join(&project));
        assert_eq!(original.len(), copies.len());
        for (original, copy) in original.iter().zip(&copies) {
            assert_eq!(std::fs::read(original).unwrap(), std::fs::read(copy).unwrap());
        }
    }
}

#[test]
fn long_calls_tell_how_far_they_are() {
    let daemon = Daemon::start();
    let place = TempDir::new().unwrap();
    let file = place.path().join("many.jsonl");
    let lines: Vec<String> = (0..150)
        .map(|number| json!({"id": format!("n{number}"), "text": format!("number {number}")}).to_string())
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let backup = place.path().join("backup");
    let calls = [
        ("admin.import", file.clone()),
        ("admin.backup", backup.clone()),
        ("admin.restore", backup),
        ("admin.export", place.path().join("out.jsonl")),
    ];
    for (method, path) in calls {
        let (told, response) = long_request(&mut daemon.connect(), method, &json!({"path": path}));
        assert!(response.get("result").is_some(), "{response}");
        assert!(told.len() > 1, "{method} told {told:?}");
        let last = told.last().unwrap();
        assert_eq!(last["done"], last["total"], "{method}: {last}");
        assert!(!last["message"].as_str().unwrap().is_empty());
    }
    // A notification has nobody to tell.
    let mut connection = daemon.connect();
    let silent = json!({"jsonrpc": "2.0", "method": "admin.export", "params": {"path": place.path().join("silent")}});
    connection.send(format!("{silent}\n"));
    assert_eq!(connection.call("admin.health", json!({}))["status"], "ok");
}
