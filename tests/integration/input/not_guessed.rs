//! What was not said is not guessed: a misspelled name, a key that stands there twice, a repository without a recorded
//! project, a home that another daemon has.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Daemon, Home, exits, stderr, stdout};

/// What git leaves of a repository, as far as it is looked at.
fn repository(path: &Path) {
    for part in ["objects", "refs"] {
        std::fs::create_dir_all(path.join(".git").join(part)).unwrap();
    }
    std::fs::write(path.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
}

fn total(daemon: &Daemon) -> Value {
    daemon.call("knowledge.stats", json!({}))["total"].take()
}

#[test]
fn a_misspelled_filter_without_a_value_deletes_nothing() {
    let daemon = Daemon::start();
    for text in ["the first of two notes", "the second of two notes"] {
        daemon.store(text);
    }
    for (method, params) in [
        (
            "knowledge.cleanup",
            json!({"ids": null, "older_than_days": 0, "dry_run": false}),
        ),
        ("knowledge.delete", json!({"type": "general", "sesion_id": null})),
        ("knowledge.list", json!({"tpye": null})),
        ("knowledge.search", json!({"query": "notes", "projcts": null})),
        ("admin.optimize", json!({"project": null})),
        ("admin.verify", json!({"project": null})),
        ("admin.health", json!({"deap": null})),
    ] {
        let error = daemon.call_error(method, params.clone());
        assert_eq!(error["code"], -32602, "{method} {params}: {error}");
        assert!(
            error["message"].as_str().unwrap().contains("there is no parameter"),
            "{error}"
        );
    }
    assert_eq!(total(&daemon), 2);
}

#[test]
fn the_parameters_of_rpc_are_sent_as_they_are_written() {
    let daemon = Daemon::start();
    for tags in [json!(["a", "b"]), json!("b")] {
        daemon.call(
            "knowledge.store",
            json!({"text": format!("tags {tags}"), "metadata": {"tag": tags}}),
        );
    }
    let rpc = |arguments: &[&str]| daemon.home.run(&[&["rpc"], arguments].concat());
    for flags in [&[][..], &["--timeout", "30"]] {
        let both = rpc(&[
            &[
                "knowledge.delete",
                r#"{"metadata":{"tag":"a","tag":"b"},"dry_run":true}"#,
            ],
            flags,
        ]
        .concat());
        let found: Value = serde_json::from_slice(&exits(both, 0).stdout).unwrap();
        assert_eq!(found["deleted"], 1, "{found}");
        let twice = exits(
            rpc(&[&["knowledge.delete", r#"{"type":"issue","type":"general"}"#], flags].concat()),
            65,
        );
        assert!(stderr(&twice).contains("`type` is given twice"), "{}", stderr(&twice));
        for (method, parameters) in [
            ("knowledge.store", r#"{"text":"x","metadata":{"a":1,"a":2}}"#),
            ("knowledge.update", r#"{"id":"x","metadata":{"b":{"a":1,"a":2}}}"#),
        ] {
            let refused = exits(rpc(&[&[method, parameters], flags].concat()), 65);
            assert!(
                stderr(&refused).contains("the key `a` is given twice"),
                "{}",
                stderr(&refused)
            );
        }
    }
    assert_eq!(total(&daemon), 2);
    // One bad item of a batch costs itself alone.
    let batch = r#"{"items":[{"text":"of a batch","metadata":{"a":1,"a":2}},{"text":"also of a batch"}]}"#;
    let stored: Value = serde_json::from_slice(&exits(rpc(&["knowledge.store_batch", batch]), 0).stdout).unwrap();
    assert_eq!(
        (&stored["stored"], &stored["failed"]),
        (&json!(1), &json!(1)),
        "{stored}"
    );
    // Written over lines, from standard input too.
    let file = daemon.home.path().join("parameters.json");
    std::fs::write(&file, "{\n  \"type\": \"general\",\n  \"limit\": 1\n}\r\n").unwrap();
    let mut command = daemon.home.command(&["rpc", "knowledge.list", "-"]);
    let listed = command.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    let listed: Value = serde_json::from_slice(&exits(listed, 0).stdout).unwrap();
    assert_eq!(listed["results"].as_array().unwrap().len(), 1);
}

#[test]
fn a_repository_whose_project_cannot_be_recorded_has_none() {
    let daemon = Daemon::start();
    let root = daemon.home.path().join("src");
    for place in ["a/web", "b/web"] {
        repository(&root.join(place));
    }
    let run = |place: &str, arguments: &[&str]| {
        let mut command = daemon.home.command(arguments);
        command.current_dir(root.join(place)).output().unwrap()
    };
    let obstacle = daemon.home.path().join("projects.json.tmp");
    std::fs::create_dir(&obstacle).unwrap();
    for place in ["a/web", "b/web"] {
        for arguments in [&["store", "whose is it?"][..], &["list"], &["km", "search", "it"]] {
            let refused = exits(run(place, arguments), 78);
            assert!(stderr(&refused).contains("--project"), "{}", stderr(&refused));
        }
    }
    assert_eq!(total(&daemon), 0);
    std::fs::remove_dir(&obstacle).unwrap();
    exits(run("a/web", &["store", "of the first"]), 0);

    // The one that is recorded goes on, whatever cannot be written.
    std::fs::create_dir(&obstacle).unwrap();
    assert!(stdout(&exits(run("a/web", &["list"]), 0)).contains("of the first"));
    exits(run("b/web", &["list"]), 78);
    std::fs::remove_dir(&obstacle).unwrap();
    assert!(!stdout(&exits(run("b/web", &["list"]), 0)).contains("of the first"));

    // A repository that cannot be read is not the project of no repository.
    daemon.store("of no repository");
    let broken = root.join("c");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join(".git"), "gitdir: /nowhere/c.git\n").unwrap();
    let refused = exits(run("c", &["list"]), 78);
    assert!(stderr(&refused).contains("/nowhere/c.git"), "{}", stderr(&refused));
    assert!(!stdout(&refused).contains("of no repository"));
    exits(run("c", &["list", "--project", "default"]), 0);
}

#[test]
fn a_project_that_does_not_exist_is_not_in_order() {
    let daemon = Daemon::start();
    daemon.call("knowledge.store", json!({"text": "of the web", "project_id": "web"}));
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("out.jsonl");
    for method in ["admin.verify", "admin.optimize", "admin.export"] {
        let params = |project: &str| {
            let mut params = json!({ "project_id": project });
            if method == "admin.export" {
                params["path"] = json!(file);
            }
            params
        };
        let error = daemon.call_error(method, params("nope"));
        assert_eq!(error["code"], -32020, "{method}: {error}");
        assert!(
            error["message"].as_str().unwrap().contains("no project nope"),
            "{error}"
        );
        let error = daemon.call_error(method, params("WEB"));
        assert_eq!(
            (&error["code"], &error["data"]["parameter"]),
            (&json!(-32602), &json!("project_id")),
            "{method}: {error}"
        );
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
    for method in ["admin.verify", "admin.optimize"] {
        let done = daemon.call(method, json!({"project_id": "web"}));
        assert_eq!(done["projects"], json!(["web"]), "{done}");
    }
    // A read of it finds nothing, as ever, unless another one is meant.
    assert_eq!(
        daemon.call("knowledge.stats", json!({"project_id": "nope"}))["total"],
        0
    );
    assert_eq!(
        daemon.call_error("knowledge.stats", json!({"project_id": "WEB"}))["code"],
        -32602
    );
    let out = file.to_str().unwrap();
    for arguments in [&["verify"][..], &["optimize"], &["export", out]] {
        let refused = exits(daemon.home.run(&[arguments, &["--project", "nope"]].concat()), 1);
        assert!(stdout(&refused).is_empty() && stderr(&refused).contains("no project nope"));
    }
    assert!(!daemon.home.path().join("knowledge/nope").exists());
}

#[test]
fn a_home_that_a_daemon_serves_on_another_socket_is_told_of() {
    let daemon = Daemon::start();
    let other = daemon.home.path().join("run/other.sock");
    let usual = daemon.home.socket();
    for arguments in [&["store", "x", "--project", "p"][..], &["daemon", "start"]] {
        let mut command = daemon.home.command(arguments);
        let refused = exits(command.env("CCO_SOCKET", &other).output().unwrap(), 69);
        let message = stderr(&refused);
        assert!(
            message.contains(&format!("listens on {}, not on {}", usual.display(), other.display())),
            "{message}"
        );
        assert!(message.contains("CCO_SOCKET"), "{message}");
    }
    assert_eq!(total(&daemon), 0);
    drop(daemon);

    // The other way round nobody knows where it listens, but that it runs.
    let home = Home::new();
    let hidden = home.path().join("run/hidden.sock");
    let mut command = home.command(&["daemon", "start"]);
    exits(command.env("CCO_SOCKET", &hidden).output().unwrap(), 0);
    let refused = home.run(&["store", "x", "--project", "p", "--timeout", "3"]);
    let mut stop = home.command(&["daemon", "stop"]);
    exits(stop.env("CCO_SOCKET", &hidden).output().unwrap(), 0);
    let message = stderr(&exits(refused, 69));
    assert!(message.contains("does not listen on"), "{message}");
    assert!(message.contains("another --socket"), "{message}");
}

#[test]
fn a_second_home_with_the_same_knowledge_is_told_whose_it_is() {
    let daemon = Daemon::start();
    let second = Home::new();
    std::fs::create_dir(second.path()).unwrap();
    std::os::unix::fs::symlink(daemon.home.path().join("knowledge"), second.path().join("knowledge")).unwrap();
    let first = format!("{:?}", daemon.home.path());
    let commands = [
        &["daemon", "start"][..],
        &["daemon", "stop"],
        &["store", "x", "--project", "p"],
    ];
    for arguments in commands {
        let message = stderr(&exits(second.run(arguments), 69));
        assert!(message.contains(&format!("process {}", daemon.pid())), "{message}");
        assert!(
            message.contains(&format!("ccoctl --home {first} daemon stop")),
            "{message}"
        );
        assert!(!message.contains("starting or stopping"), "{message}");
    }
    let run = stderr(&exits(second.run(&["daemon", "run"]), 75));
    assert!(run.contains(&first) && run.contains(&daemon.pid().to_string()), "{run}");
    // What it is told to do works.
    let home = daemon.home.path();
    let mut daemon = daemon;
    exits(second.run(&["--home", home.to_str().unwrap(), "daemon", "stop"]), 0);
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn a_verification_does_not_fill_the_log() {
    let daemon = Daemon::start();
    let items: Vec<Value> = (0..20)
        .map(|number| json!({"text": format!("note {number}")}))
        .collect();
    daemon.call("knowledge.store_batch", json!({ "items": items }));
    let verified = daemon.call("admin.verify", json!({}));
    assert_eq!((&verified["ok"], &verified["rows"]), (&json!(true), &json!(20)));
    let log = daemon.log();
    assert!(!log.contains("lance::dataset::scanner"), "{log}");
}

#[test]
fn a_cursor_that_got_lost_does_not_begin_the_feed_anew() {
    let daemon = Daemon::start();
    let mut first = daemon.connect();
    // Of a daemon without projects it is a cursor as well.
    let begun = first.call("knowledge.subscribe", json!({"project_id": "*"}));
    let cursor = begun["cursor"].as_str().unwrap();
    assert!(!cursor.is_empty());
    let id = daemon.store("stored since");
    let error = daemon.call_error("knowledge.subscribe", json!({"cursor": ""}));
    assert_eq!(
        (&error["code"], &error["data"]["parameter"]),
        (&json!(-32602), &json!("cursor")),
        "{error}"
    );
    let mut second = daemon.connect();
    second.call("knowledge.subscribe", json!({"project_id": "*", "cursor": cursor}));
    let change = second.receive().unwrap();
    assert_eq!(change["params"]["result"]["id"], json!(id), "{change}");
}

#[test]
fn an_export_is_never_a_file_of_the_home() {
    let daemon = Daemon::start();
    daemon.store("a note");
    let home = daemon.home.path();
    for name in [
        "projects.json",
        "projects.json.bak",
        "ccod.toml",
        "out.jsonl",
        "run/out.jsonl",
    ] {
        let error = daemon.call_error("admin.export", json!({"path": home.join(name)}));
        assert_eq!(
            (&error["code"], &error["data"]["parameter"]),
            (&json!(-32602), &json!("path")),
            "{name}: {error}"
        );
        assert!(!home.join(name).exists(), "{name}");
    }
    // A directory that somebody has made there is theirs.
    std::fs::create_dir(home.join("exports")).unwrap();
    daemon.call("admin.export", json!({"path": home.join("exports/out.jsonl")}));
    for command in ["export", "import"] {
        let refused = exits(daemon.home.run(&[command, "-", "--project", "default"]), 2);
        assert!(stderr(&refused).contains("./-"), "{}", stderr(&refused));
    }
}

#[test]
fn a_text_from_a_file_with_crlf_ends_without_it() {
    let daemon = Daemon::start();
    let file = daemon.home.path().join("text");
    std::fs::write(&file, "two\r\nlines\r\n").unwrap();
    let mut command = daemon.home.command(&["store", "-", "--project", "default"]);
    let stored = command.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    let id = stdout(&exits(stored, 0)).trim_end().to_owned();
    assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["text"], "two\r\nlines");
}
