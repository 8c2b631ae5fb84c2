//! What is stored is there, as it was stored, once, and in its project.

use serde_json::{Value, json};

use crate::support::{Daemon, Home, copy_tree, ids};

#[test]
fn what_is_stored_is_found_by_the_next_search_on_any_connection() {
    let daemon = Daemon::start();
    let mut writer = daemon.connect();
    let mut reader = daemon.connect();
    let facts = [
        "The payment service retries a failed charge three times with exponential backoff.",
        "Database migrations run in a transaction and take an advisory lock.",
        "The mobile app caches the user's profile for ten minutes.",
        "Logs are shipped to the central collector by a sidecar container.",
    ];
    for (index, fact) in facts.iter().enumerate() {
        let stored = writer.call("knowledge.store", json!({"text": fact, "type": "decision"}));
        assert_eq!(stored["status"], "stored");
        assert_eq!(stored["project_id"], "default");
        assert_eq!(stored["durability"], "full");
        assert_eq!(stored["version"], index as u64 + 1);
        let found = reader.call("knowledge.search", json!({"query": fact, "limit": 1}));
        assert_eq!(found["results"][0]["id"], stored["id"]);
        assert_eq!(found["results"][0]["text"], *fact);
        assert_eq!(found["mode"], "hybrid");
        assert_eq!(found["version"], stored["version"]);
    }
    // By meaning, without a word in common.
    let found = reader.call(
        "knowledge.search",
        json!({"query": "what happens when billing a customer does not succeed", "mode": "vector", "limit": 1}),
    );
    assert_eq!(found["results"][0]["text"], facts[0], "{found:#}");
}

#[test]
fn lists_page_without_gaps_or_repeats() {
    let daemon = Daemon::start();
    let items: Vec<Value> = (0..25)
        .map(|index| json!({"text": format!("fact {index}"), "id": format!("fact-{index:02}")}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    for order in ["newest", "oldest"] {
        let mut seen = Vec::new();
        let mut cursor = Value::Null;
        loop {
            let mut params = json!({"limit": 7, "order": order});
            if !cursor.is_null() {
                params["cursor"] = cursor;
                // What comes between two pages moves neither.
                daemon.store(&format!("in between {order} {}", seen.len()));
            }
            let page = daemon.call("knowledge.query", params);
            seen.extend(ids(&page).into_iter().filter(|id| id.starts_with("fact-")));
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        let unique: std::collections::BTreeSet<&String> = seen.iter().collect();
        assert_eq!((seen.len(), unique.len()), (25, 25), "{order}");
    }
    let error = daemon.call_error("knowledge.list", json!({"cursor": "zz"}));
    assert_eq!(
        (&error["code"], &error["data"]["parameter"]),
        (&json!(-32602), &json!("cursor"))
    );
}

#[test]
fn retries_are_harmless_and_duplicates_are_told() {
    let daemon = Daemon::start();
    let store = |params: Value| daemon.call("knowledge.store", params);
    let first = store(json!({"text": "same words", "agent": "a"}));
    let again = store(json!({"text": "same words", "agent": "a", "metadata": {"x": 1}}));
    assert_eq!((&again["status"], &again["id"]), (&json!("duplicate"), &first["id"]));
    assert_eq!(again["timestamp"], first["timestamp"]);
    assert_eq!(store(json!({"text": "same words", "agent": "b"}))["status"], "stored");
    assert_eq!(
        store(json!({"text": "same words", "agent": "a", "type": "issue"}))["status"],
        "stored"
    );
    assert_eq!(
        store(json!({"text": "same words", "agent": "a", "on_duplicate": "store"}))["status"],
        "stored"
    );

    let keyed = store(json!({"text": "keyed", "idempotency_key": "k1"}));
    let retried = store(json!({"text": "keyed", "idempotency_key": "k1"}));
    assert_eq!(
        (&retried["status"], &retried["id"]),
        (&json!("duplicate"), &keyed["id"])
    );
    let error = daemon.call_error("knowledge.store", json!({"text": "other", "idempotency_key": "k1"}));
    assert_eq!(
        (&error["code"], &error["data"]["parameter"]),
        (&json!(-32602), &json!("idempotency_key"))
    );

    assert_eq!(store(json!({"text": "named", "id": "my-id"}))["id"], "my-id");
    assert_eq!(store(json!({"text": "named", "id": "my-id"}))["status"], "duplicate");
    let error = daemon.call_error("knowledge.store", json!({"text": "other", "id": "my-id"}));
    assert_eq!(
        (&error["code"], &error["data"]["kind"]),
        (&json!(-32021), &json!("already_exists"))
    );

    // Within one batch as between requests.
    let batch = daemon.call(
        "knowledge.store_batch",
        json!({"items": [{"text": "twin"}, {"text": "twin"}, {"text": " "}, {"text": "x", "id": "my-id"}, {"text": "fine", "type": "bug"}]}),
    );
    assert_eq!(
        (&batch["stored"], &batch["duplicates"], &batch["failed"]),
        (&json!(1), &json!(1), &json!(3)),
        "{batch:#}"
    );
    assert_eq!(batch["ids"][0], batch["ids"][1]);
    let errors: Vec<(u64, i64)> = batch["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| (error["index"].as_u64().unwrap(), error["code"].as_i64().unwrap()))
        .collect();
    assert_eq!(errors, [(2, -32602), (3, -32021), (4, -32602)]);

    // And after a restart.
    let daemon = daemon.kill_and_restart();
    let retried = daemon.call("knowledge.store", json!({"text": "keyed", "idempotency_key": "k1"}));
    assert_eq!(
        (&retried["status"], &retried["id"]),
        (&json!("duplicate"), &keyed["id"])
    );
    assert_eq!(
        daemon.call_error("knowledge.store", json!({"text": "other", "id": "my-id"}))["code"],
        -32021
    );
}

#[test]
fn projects_are_apart_unless_asked_for_together() {
    let daemon = Daemon::start();
    for project in ["alpha", "beta"] {
        let stored = daemon.call(
            "knowledge.store",
            json!({"text": format!("the secret plan of {project}"), "project_id": project}),
        );
        assert_eq!(stored["project_id"], project);
    }
    let found = daemon.call(
        "knowledge.search",
        json!({"query": "secret plan", "project_id": "alpha"}),
    );
    assert_eq!(found["count"], 1);
    assert_eq!(found["results"][0]["project_id"], "alpha");
    assert_eq!(
        daemon.call("knowledge.search", json!({"query": "secret plan"}))["count"],
        0
    );
    for projects in [json!("*"), json!(["alpha", "beta"])] {
        let found = daemon.call(
            "knowledge.search",
            json!({"query": "secret plan", "projects": projects}),
        );
        assert_eq!(found["count"], 2);
        assert_eq!(found["versions"], json!({"alpha": 1, "beta": 1}));
    }

    // Reading creates nothing.
    assert_eq!(
        daemon.call("knowledge.list", json!({"project_id": "gamma"}))["total"],
        0
    );
    assert_eq!(
        daemon.call("knowledge.stats", json!({"project_id": "gamma"}))["total"],
        0
    );
    assert_eq!(
        daemon.call_error("knowledge.get", json!({"id": "x", "project_id": "gamma"}))["code"],
        -32020
    );
    assert!(!daemon.home.path().join("knowledge/gamma").exists());
    let projects = daemon.call("knowledge.projects", json!({}));
    let names: Vec<&str> = projects["projects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["project_id"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["alpha", "beta"]);
    let stats = daemon.call("knowledge.stats", json!({}));
    assert_eq!(stats["by_project"], json!({"alpha": 1, "beta": 1}));

    let error = daemon.call_error("knowledge.store", json!({"text": "x", "project_id": "ALPHA"}));
    assert_eq!(
        (&error["code"], &error["data"]["parameter"]),
        (&json!(-32602), &json!("project_id"))
    );
}

#[test]
fn get_returns_items_as_they_were_stored() {
    let daemon = Daemon::start();
    let metadata =
        json!({"number": 0.1, "big": 9007199254740993_u64, "nested": {"list": [1, null, "ü🚀"]}, "empty": ""});
    let stored = daemon.call(
        "knowledge.store",
        json!({"text": "Grüße\n\t\"quoted\" 世界 🚀\u{0000}", "type": "pattern", "agent": "ana", "session_id": "s", "metadata": metadata}),
    );
    let item = daemon.call("knowledge.get", json!({"id": stored["id"]}));
    assert_eq!(item["text"], "Grüße\n\t\"quoted\" 世界 🚀\u{0000}");
    assert_eq!(item["metadata"], metadata);
    assert_eq!(
        (&item["type"], &item["agent"], &item["session_id"]),
        (&json!("pattern"), &json!("ana"), &json!("s"))
    );
    assert_eq!(item["timestamp"], stored["timestamp"]);
    let several = daemon.call("knowledge.get", json!({"ids": ["nope", stored["id"]]}));
    assert_eq!(several["missing"], json!(["nope"]));
    assert_eq!(several["results"][0]["id"], stored["id"]);
    let id = stored["id"].as_str().unwrap();
    let shape: Vec<&str> = id.split('-').collect();
    assert_eq!((shape[0], shape[2].len()), ("pattern", 8), "{id}");
}

#[test]
fn data_of_the_old_tool_is_shown_and_never_touched() {
    let home = Home::new();
    let legacy = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/legacy");
    copy_tree(&legacy, &home.path().join("knowledge"));
    let before = tree_bytes(&home.path().join("knowledge"));
    let daemon = Daemon::start_in(home, &[]);

    let projects = daemon.call("knowledge.projects", json!({}));
    let states: Vec<(&str, &str)> = projects["projects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|project| {
            (
                project["project_id"].as_str().unwrap(),
                project["state"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        states,
        [("cc-orchestra", "needs_migration"), ("statushub", "needs_migration")]
    );
    for (method, params) in [
        ("knowledge.search", json!({"query": "x", "project_id": "statushub"})),
        ("knowledge.list", json!({"project_id": "statushub"})),
        ("knowledge.store", json!({"text": "x", "project_id": "statushub"})),
    ] {
        let error = daemon.call_error(method, params);
        assert_eq!(
            (&error["code"], &error["data"]["kind"]),
            (&json!(-32029), &json!("needs_migration")),
            "{method}"
        );
    }
    // The others go on, across all projects too.
    daemon.store("hello there");
    assert_eq!(
        daemon.call("knowledge.search", json!({"query": "hello there", "projects": "*"}))["count"],
        1
    );
    let mut after = tree_bytes(&daemon.home.path().join("knowledge"));
    // The daemon's own: the project that was stored into, and the lock of the store.
    after.retain(|path, _| !path.starts_with("default") && path.as_path() != std::path::Path::new(".lock"));
    assert_eq!(before, after);
}

fn tree_bytes(root: &std::path::Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    crate::support::modes(root)
        .into_iter()
        .filter(|(_, is_directory, _)| !is_directory)
        .map(|(path, _, _)| {
            let bytes = std::fs::read(&path).unwrap();
            (path.strip_prefix(root).unwrap().to_path_buf(), bytes)
        })
        .collect()
}
