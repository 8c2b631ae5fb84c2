//! Backup, restore, export and import, while the daemon serves.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Connection, Daemon, Home, PATIENCE, copy_tree, modes};

/// A call that may tell of its progress before it answers: what it told, and the answer.
fn long_request(connection: &mut Connection, method: &str, params: &Value) -> (Vec<Value>, Value) {
    let request = json!({"jsonrpc": "2.0", "id": "long", "method": method, "params": params});
    connection.send(format!("{request}\n"));
    let mut told = Vec::new();
    loop {
        let mut line = connection.receive().expect("an answer");
        if line.get("id").is_some() {
            assert_eq!(line["id"], "long", "{line}");
            return (told, line);
        }
        assert_eq!(line["method"], "rpc.progress", "{line}");
        told.push(line["params"].take());
    }
}

fn long_call(daemon: &Daemon, method: &str, params: Value) -> Value {
    let (told, mut response) = long_request(&mut daemon.connect(), method, &params);
    assert!(response.get("error").is_none(), "{method}: {response:#}");
    let mut before = BTreeMap::new();
    for progress in told {
        assert_eq!(progress["request_id"], "long", "{progress}");
        let number = |name: &str| progress[name].as_u64().unwrap_or_else(|| panic!("{progress}"));
        assert!(number("done") <= number("total"), "{progress}");
        let stage = progress["message"].as_str().unwrap().to_owned();
        let last = before.insert(stage, number("done")).unwrap_or(0);
        assert!(last <= number("done"), "progress goes forward: {progress}");
    }
    response["result"].take()
}

fn long_error(daemon: &Daemon, method: &str, params: Value) -> Value {
    let (_, mut response) = long_request(&mut daemon.connect(), method, &params);
    assert!(response.get("result").is_none(), "{method}: {response:#}");
    response["error"].take()
}

fn back_up(daemon: &Daemon, path: &Path) -> Value {
    long_call(daemon, "admin.backup", json!({"path": path}))
}

/// All items of a project as they are listed, oldest first.
fn items(daemon: &Daemon, project: &str) -> Vec<Value> {
    let listed = daemon.call(
        "knowledge.list",
        json!({"project_id": project, "order": "oldest", "limit": 1000}),
    );
    assert!(listed["next_cursor"].is_null(), "more than one page");
    listed["results"].as_array().unwrap().clone()
}

fn texts(daemon: &Daemon, project: &str) -> BTreeSet<String> {
    items(daemon, project)
        .iter()
        .map(|item| item["text"].as_str().unwrap().to_owned())
        .collect()
}

fn names(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect()
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = modes(directory)
        .into_iter()
        .filter(|(_, is_directory, _)| !is_directory)
        .map(|(path, _, _)| path)
        .collect();
    files.sort();
    files
}

fn store_in(daemon: &Daemon, project: &str, item: Value) -> Value {
    let mut item = item;
    item["project_id"] = json!(project);
    daemon.call("knowledge.store", item)
}

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
fn a_restore_keeps_the_old_aside_and_begins_another_history() {
    let daemon = Daemon::start();
    let kept = daemon.store("in the backup");
    store_in(&daemon, "other", json!({"text": "also in the backup"}));
    let place = TempDir::new().unwrap();
    let backup = place.path().join("backup");
    // An empty directory may be there.
    std::fs::create_dir(&backup).unwrap();
    back_up(&daemon, &backup);

    let mut live = daemon.connect();
    let begun = live.call("knowledge.subscribe", json!({}));
    let old_cursor = begun["cursor"].clone();
    let mut last = Value::Null;
    for number in 0..3 {
        last = daemon.call("knowledge.store", json!({"text": format!("after the backup {number}")}));
        assert_eq!(live.receive().unwrap()["params"]["result"]["id"], last["id"]);
    }
    store_in(&daemon, "other", json!({"text": "stays where it is"}));
    let report = long_call(
        &daemon,
        "admin.restore",
        json!({"path": backup, "project_id": "default"}),
    );
    assert_eq!(
        (names(&report["projects"]), &report["items"]),
        (vec!["default"], &json!(1))
    );
    assert_eq!(texts(&daemon, "default"), BTreeSet::from(["in the backup".to_owned()]));
    assert_eq!(daemon.search_ids(json!({"query": "backup"})), [kept.as_str()]);
    assert_eq!(texts(&daemon, "other").len(), 2, "only the named project is replaced");

    // Who was listening, and who comes back later, has to read everything anew.
    let ended = live.receive().unwrap()["params"]["result"].take();
    assert_eq!(
        (&ended["op"], &ended["resync"]),
        (&json!("lagged"), &json!(true)),
        "{ended}"
    );
    let mut newest = 0;
    for number in 0..5 {
        let stored = daemon.call(
            "knowledge.store",
            json!({"text": format!("in the new history {number}")}),
        );
        newest = stored["version"].as_u64().unwrap();
        assert!(newest > last["version"].as_u64().unwrap(), "versions go on growing");
    }
    let daemon = daemon.kill_and_restart();
    let mut late = daemon.connect();
    late.call("knowledge.subscribe", json!({"cursor": old_cursor}));
    let ended = late.receive().unwrap()["params"]["result"].take();
    assert_eq!(
        (&ended["op"], &ended["resync"]),
        (&json!("lagged"), &json!(true)),
        "{ended}"
    );
    // And from there on the feed is complete.
    let mut resumed = daemon.connect();
    resumed.call("knowledge.subscribe", json!({"cursor": ended["cursor"]}));
    let next = daemon.call("knowledge.store", json!({"text": "seen again"}));
    assert!(next["version"].as_u64().unwrap() > newest);
    assert_eq!(resumed.receive().unwrap()["params"]["result"]["id"], next["id"]);

    // What was replaced is whole: put back by hand, it is a project.
    let aside = names(&report["kept_aside"]);
    assert_eq!(aside.len(), 1);
    assert!(Path::new(aside[0]).starts_with(daemon.home.path().canonicalize().unwrap().join("aside")));
    let by_hand = Home::new();
    copy_tree(Path::new(aside[0]), &by_hand.path().join("knowledge/default"));
    let by_hand = Daemon::start_in(by_hand, &[]);
    assert_eq!(texts(&by_hand, "default").len(), 4);

    // A second time: another place aside, the same result.
    let again = long_call(&daemon, "admin.restore", json!({"path": backup}));
    assert_eq!(names(&again["kept_aside"]).len(), 2);
    assert_ne!(again["kept_aside"][0], report["kept_aside"][0]);
    assert_eq!(texts(&daemon, "default"), BTreeSet::from(["in the backup".to_owned()]));
    assert_eq!(texts(&daemon, "other").len(), 1);
    assert_eq!(
        entries(&daemon.home.path().join("knowledge")),
        [".lock", "default", "other"]
    );
}

#[test]
fn stores_wait_for_a_restore_and_none_that_was_acknowledged_is_lost() {
    let daemon = Daemon::start();
    daemon.store("in the backup");
    let place = TempDir::new().unwrap();
    let backup = place.path().join("backup");
    back_up(&daemon, &backup);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|client| {
            let (socket, stop) = (daemon.home.socket(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut connection = Connection::open(&socket);
                let mut acknowledged = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let text = format!("client {client} number {}", acknowledged.len());
                    connection.call("knowledge.store", json!({"text": text}));
                    acknowledged.push(text);
                    let found = connection.call("knowledge.search", json!({"query": "number", "mode": "text"}));
                    assert!(found["count"].is_u64());
                }
                acknowledged
            })
        })
        .collect();
    let mut asides = Vec::new();
    for _ in 0..4 {
        let report = long_call(&daemon, "admin.restore", json!({"path": backup}));
        asides.extend(names(&report["kept_aside"]).iter().map(|path| (*path).to_owned()));
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged: Vec<String> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    assert_eq!(asides.len(), 4);
    let mut held = texts(&daemon, "default");
    for aside in &asides {
        let home = Home::new();
        copy_tree(Path::new(aside), &home.path().join("knowledge/default"));
        held.append(&mut texts(&Daemon::start_in(home, &[]), "default"));
    }
    for text in &acknowledged {
        assert!(held.contains(text), "{text} was acknowledged and is gone");
    }
    assert!(held.contains("in the backup"));
}

#[test]
fn a_damaged_backup_is_refused_and_nothing_changes() {
    let daemon = Daemon::start();
    for number in 0..5 {
        daemon.store(&format!("in the backup {number}"));
    }
    let place = TempDir::new().unwrap();
    let backup = place.path().join("backup");
    back_up(&daemon, &backup);
    daemon.store("after the backup");
    let before = items(&daemon, "default");

    let refused = |what: &str| {
        let error = long_error(&daemon, "admin.restore", json!({"path": backup}));
        assert_eq!(
            (&error["code"], &error["data"]["parameter"]),
            (&json!(-32602), &json!("path")),
            "{what}: {error}"
        );
        assert_eq!(items(&daemon, "default"), before, "{what}");
        assert_eq!(
            entries(&daemon.home.path().join("knowledge")),
            [".lock", "default"],
            "{what}"
        );
        assert!(!daemon.home.path().join("aside").exists(), "{what}");
        error["message"].as_str().unwrap().to_owned()
    };
    let all = files(&backup);
    for kind in ["data/", "_versions/", "_indices/", "backup.json"] {
        assert!(all.iter().any(|file| file.to_str().unwrap().contains(kind)), "{kind}");
    }
    for file in &all {
        let length = std::fs::metadata(file).unwrap().len();
        let name = file.file_name().unwrap().to_str().unwrap();
        // Not in the sum itself, where one digit of hexadecimal could become another of the same value.
        flip(file, length / 2);
        let message = refused(name);
        assert!(
            message.contains(name) && message.contains("damaged"),
            "{name}: {message}"
        );
        flip(file, length / 2);
    }
    let victim = all
        .iter()
        .find(|file| file.to_str().unwrap().contains("data/"))
        .unwrap();
    let content = std::fs::read(victim).unwrap();
    std::fs::write(victim, &content[..content.len() - 1]).unwrap();
    assert!(refused("truncated").contains("bytes instead of"));
    std::fs::remove_file(victim).unwrap();
    assert!(refused("missing").contains("cannot be read"));
    std::fs::write(victim, &content).unwrap();
    assert!(refused_path(&daemon, "admin.restore", place.path()).contains("no backup"));
    let unknown = long_error(
        &daemon,
        "admin.restore",
        json!({"path": backup, "project_id": "absent"}),
    );
    assert_eq!(unknown["data"]["parameter"], "project_id", "{unknown}");

    // Whole again, it works.
    long_call(&daemon, "admin.restore", json!({"path": backup}));
    assert_eq!(items(&daemon, "default"), before[..5]);
}

/// Inverts one bit of a file.
fn flip(file: &Path, position: u64) {
    let mut file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(position)).unwrap();
    file.read_exact(&mut byte).unwrap();
    byte[0] ^= 1;
    file.seek(SeekFrom::Start(position)).unwrap();
    file.write_all(&byte).unwrap();
}

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

fn refused_path(daemon: &Daemon, method: &str, path: &Path) -> String {
    let error = long_error(daemon, method, json!({"path": path}));
    assert_eq!(
        (&error["code"], &error["data"]["parameter"]),
        (&json!(-32602), &json!("path")),
        "{method} {}: {error}",
        path.display()
    );
    error["message"].as_str().unwrap().to_owned()
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

/// Texts that files, editors and formats are known to change.
fn hostile_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "plain",
        "---\nid: \"stolen\"\n---\n\nfront matter inside\n",
        "\\---\n\\\\---\n---",
        "---",
        "two\r\nlines\r\n---\r\nof Windows\r\n",
        "no newline at the end",
        "one at the end\n",
        "three at the end\n\n\n",
        "\n\n  leading and trailing white space \t ",
        "emoji 👩‍👩‍👧‍👦 and ünïcode, \u{feff}\u{2028}\u{85}\u{0}\u{1b}[31m",
        "{\"text\": \"json inside\"}\n{\"text\": \"and again\"}",
        "a\r---\rlone carriage returns",
        "```yaml\n---\na: 1\n---\n```\n",
        "\u{202e}right to left",
    ]
    .map(str::to_owned)
    .into();
    // One megabyte that is cheap to embed: words beyond what the model reads as words.
    let line = format!("{}\n---\n", "x".repeat(995));
    texts.push(line.repeat(1_000));
    assert_eq!(texts.last().unwrap().len(), 1_000_000);
    texts
}

#[test]
fn exports_come_back_identical() {
    let daemon = Daemon::start();
    for (number, text) in hostile_texts().iter().enumerate() {
        let kinds = ["decision", "architecture", "issue", "general"];
        let item = json!({
            "text": text,
            "type": kinds[number % kinds.len()],
            "agent": if number % 3 == 0 { Value::Null } else { json!("agent \"quoted\" --- ü") },
            "session_id": if number % 2 == 0 { Value::Null } else { json!("null") },
            "metadata": {"number": number, "---": "\n---\n", "deep": {"a": [1.5, -0.25, 1e300, null, true]},
                         "big": u64::MAX, "text": text.chars().take(50).collect::<String>()},
        });
        store_in(&daemon, "web", item);
    }
    let huge = json!({"text": "huge metadata", "id": "with / slash: \"and\" more", "metadata": {"huge": "é\"\n".repeat(10_000)}});
    store_in(&daemon, "web", huge);
    let original = items(&daemon, "web");
    let place = TempDir::new().unwrap();
    for (name, format) in [("a.jsonl", "jsonl"), ("a.md", "markdown")] {
        let path = place.path().join(name);
        let result = long_call(&daemon, "admin.export", json!({"path": path, "project_id": "web"}));
        assert_eq!(
            (&result["format"], &result["items"], result["bytes"].as_u64().unwrap()),
            (
                &json!(format),
                &json!(original.len()),
                std::fs::metadata(&path).unwrap().len()
            )
        );

        let other = Daemon::start();
        let dry = long_call(
            &other,
            "admin.import",
            json!({"path": path, "project_id": "web", "dry_run": true}),
        );
        assert_eq!(
            (&dry["imported"], &dry["dry_run"]),
            (&json!(original.len()), &json!(true)),
            "{dry}"
        );
        assert_eq!(other.call("knowledge.projects", json!({}))["projects"], json!([]));
        let result = long_call(&other, "admin.import", json!({"path": path, "project_id": "web"}));
        assert_eq!(
            (&result["imported"], &result["duplicates"], &result["skipped"]),
            (&json!(original.len()), &json!(0), &json!({})),
            "{result}"
        );
        assert_eq!(items(&other, "web"), original, "{format}: every field of every item");
        for (name, format) in [("b.jsonl", "jsonl"), ("b.md", "markdown")] {
            let again = place.path().join(name);
            long_call(
                &other,
                "admin.export",
                json!({"path": again, "project_id": "web", "format": format}),
            );
            let first = place.path().join(name.replace('b', "a"));
            if first.exists() {
                assert!(
                    std::fs::read(&again).unwrap() == std::fs::read(&first).unwrap(),
                    "{format} differs the second time"
                );
            }
            std::fs::remove_file(again).unwrap();
        }
        // A second time it adds nothing, and embeds nothing.
        let passes = other.status_number("/actors/embedder/counters/forward_passes");
        let result = long_call(&other, "admin.import", json!({"path": path, "project_id": "web"}));
        assert_eq!(
            (&result["imported"], &result["duplicates"]),
            (&json!(0), &json!(original.len()))
        );
        assert_eq!(other.status_number("/actors/embedder/counters/forward_passes"), passes);
        assert!(
            !other
                .search_ids(json!({"query": "front matter", "project_id": "web"}))
                .is_empty()
        );
    }
    // A project that does not exist has nothing to export, and is not made; an import of nothing makes none either.
    let empty = place.path().join("empty.jsonl");
    let error = long_error(&daemon, "admin.export", json!({"path": empty, "project_id": "absent"}));
    assert_eq!(error["code"], -32020, "{error}");
    assert!(!empty.exists());
    std::fs::write(&empty, "").unwrap();
    let result = long_call(&daemon, "admin.import", json!({"path": empty, "project_id": "absent"}));
    assert_eq!(result["imported"], 0);
    assert_eq!(
        daemon.call("knowledge.projects", json!({}))["projects"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn an_import_takes_what_it_can_and_names_the_rest() {
    let daemon = Daemon::start();
    daemon.call("knowledge.store", json!({"id": "taken", "text": "first content"}));
    daemon.call("knowledge.store", json!({"id": "same", "text": "same content"}));
    let place = TempDir::new().unwrap();
    let file = place.path().join("items");
    let long = "x".repeat(1_000_001);
    let lines = [
        json!({"text": "good", "id": "good", "timestamp": "2020-01-01T00:00:00Z", "updated_at": "2021-01-01"})
            .to_string(),
        "not json".to_owned(),
        String::new(),
        json!({"text": "other content", "id": "taken"}).to_string(),
        json!({"text": "same content", "id": "same", "metadata": {"ignored": true}}).to_string(),
        json!({"text": "  "}).to_string(),
        json!({"text": long}).to_string(),
        json!({"text": "bad time", "timestamp": "yesterday"}).to_string(),
        json!({"text": "no id"}).to_string(),
        json!({"text": "no id"}).to_string(),
        json!({"text": "other content of one before", "id": "good"}).to_string(),
        json!({"text": "unknown type", "type": "bug"}).to_string(),
        "{\"text\": \"cut".to_owned(),
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    for dry_run in [true, false] {
        let result = long_call(&daemon, "admin.import", json!({"path": file, "dry_run": dry_run}));
        assert_eq!(
            (&result["imported"], &result["duplicates"], &result["skipped"]),
            (
                &json!(2),
                &json!(2),
                &json!({"unreadable": 3, "already_exists": 2, "invalid_params": 3})
            ),
            "{result:#}"
        );
        let lines: Vec<u64> = result["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|problem| problem["line"].as_u64().unwrap())
            .collect();
        assert_eq!(lines, [2, 4, 6, 7, 8, 11, 12, 13]);
        assert_eq!(result["problems"][1]["id"], "taken");
        assert!(result["problems"][4]["message"].as_str().unwrap().contains("timestamp"));
        assert_eq!(items(&daemon, "default").len(), if dry_run { 2 } else { 4 });
    }
    let good = daemon.call("knowledge.get", json!({"id": "good"}));
    assert_eq!(
        (&good["timestamp"], &good["updated_at"]),
        (&json!("2020-01-01T00:00:00.000Z"), &json!("2021-01-01T00:00:00.000Z"))
    );
    assert_eq!(
        daemon.call("knowledge.get", json!({"id": "taken"}))["text"],
        "first content"
    );
    assert_eq!(
        daemon.call("knowledge.get", json!({"id": "same"}))["metadata"],
        json!({})
    );
}

/// An import brings items with times of their own; here they are from their import on.
#[test]
fn as_of_a_time_shows_no_item_before_its_import() {
    let daemon = Daemon::start();
    let before = daemon.call("knowledge.store", json!({"text": "stored a note before"}));
    let place = TempDir::new().unwrap();
    let path = place.path().join("notes.jsonl");
    let records = [
        json!({"id": "both", "text": "imported note with both", "timestamp": "2020-01-01T00:00:00Z",
               "updated_at": "2021-01-01T00:00:00Z"}),
        json!({"id": "one", "text": "imported note with one", "timestamp": "2020-01-01T00:00:00Z"}),
        json!({"id": "none", "text": "imported note with none"}),
    ];
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    let report = long_call(&daemon, "admin.import", json!({"path": path}));
    assert_eq!(report["imported"], 3, "{report}");
    let after = daemon.call("knowledge.store", json!({"text": "stored a note after"}));
    let at = |time: &Value| daemon.search_ids(json!({"query": "note", "as_of": time})).len();
    assert_eq!(at(&json!("2022-01-01")), 0);
    assert_eq!(at(&before["timestamp"]), 1);
    assert_eq!(at(&after["timestamp"]), 5);
    // Their times are theirs all the same.
    let one = daemon.call("knowledge.get", json!({"id": "one"}));
    assert_eq!(one["timestamp"], "2020-01-01T00:00:00.000Z", "{one}");
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

/// More imports at once than the daemon has threads for file work: everything else goes on, and all of them end.
#[test]
fn many_imports_at_once_leave_the_daemon_at_work() {
    const IMPORTS: usize = 20;
    // Several groups, so that a reader is ahead of what is stored.
    const ITEMS: usize = 200;
    let daemon = Daemon::start();
    let place = TempDir::new().unwrap();
    let file = place.path().join("items.jsonl");
    let lines: Vec<String> = (0..ITEMS)
        .map(|number| json!({"text": format!("fact {number}")}).to_string())
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let mut imports: Vec<Connection> = (0..IMPORTS)
        .map(|_| {
            let mut connection = daemon.connect();
            let request = json!({"jsonrpc": "2.0", "id": 1, "method": "admin.import", "params": {"path": file}});
            connection.send(format!("{request}\n"));
            connection
        })
        .collect();
    // One that gives up while it waits has done nothing.
    let hurried = json!({"path": file, "timeout_ms": 1});
    let error = long_error(&daemon, "admin.import", hurried);
    assert_eq!(
        (&error["code"], &error["data"]["executed"]),
        (&json!(-32050), &json!(false)),
        "{error}"
    );
    let stored = daemon.call("knowledge.store", json!({"project_id": "other", "text": "meanwhile"}));
    assert_eq!(stored["status"], "stored");
    let found = daemon.call("knowledge.search", json!({"project_id": "other", "query": "meanwhile"}));
    assert_eq!(found["results"][0]["id"], stored["id"]);
    let mut imported = 0;
    for connection in &mut imports {
        let result = loop {
            let line = connection.receive().expect("an answer");
            if line["id"] == 1 {
                break line["result"].clone();
            }
        };
        let number = |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("{result}"));
        assert_eq!(number("imported") + number("duplicates"), ITEMS as u64, "{result}");
        imported += number("imported");
    }
    assert_eq!(imported, ITEMS as u64, "each item was imported once");
    assert_eq!(items(&daemon, "default").len(), ITEMS);
}
