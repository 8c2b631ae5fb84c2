//! What is stored is found, as it was stored, and nothing else.

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
fn modes_report_their_scores_apart_and_nothing_matches_nothing() {
    let daemon = Daemon::start();
    let id = daemon.store("The scheduler uses a hierarchical timing wheel, see fooBarWheel and error E0277.");
    daemon.store("Invoices are rendered to PDF by a headless browser.");

    let hybrid = daemon.call("knowledge.search", json!({"query": "timing wheel"}));
    let best = &hybrid["results"][0];
    assert_eq!(best["id"], id.as_str());
    let (score, similarity) = (best["score"].as_f64().unwrap(), best["similarity"].as_f64().unwrap());
    assert!(
        (score - (0.7 * similarity + 0.3)).abs() < 1e-3,
        "the best of both legs: {best}"
    );
    assert!(best["similarity"].as_f64().unwrap() > 0.3);
    assert!(best["bm25"].as_f64().unwrap() > 0.0);
    assert_eq!(best["passage"]["index"], 0);

    let vector = daemon.call("knowledge.search", json!({"query": "timing wheel", "mode": "vector"}));
    assert_eq!(vector["results"][0]["bm25"], Value::Null);
    let text = daemon.call("knowledge.search", json!({"query": "timing wheel", "mode": "text"}));
    assert_eq!(ids(&text), [id.as_str()]);
    assert_eq!(text["results"][0]["similarity"], Value::Null);

    for identifier in ["fooBarWheel", "foobarwheel", "E0277", "e0277"] {
        assert_eq!(
            daemon.search_ids(json!({"query": identifier, "mode": "text"})),
            [id.as_str()],
            "{identifier}"
        );
    }
    // No word and no meaning in common; stop words alone; punctuation alone.
    for query in ["zxqv wvutsrq qqqq", "xylophone"] {
        assert_eq!(
            daemon.search_ids(json!({"query": query, "mode": "text"})),
            Vec::<String>::new()
        );
        assert_eq!(
            daemon.search_ids(json!({"query": query})),
            Vec::<String>::new(),
            "{query}"
        );
    }
    for query in ["the of and", "?!...", "🚀"] {
        assert_eq!(
            daemon.search_ids(json!({"query": query, "mode": "text"})),
            Vec::<String>::new(),
            "{query}"
        );
    }
    let high = daemon.call(
        "knowledge.search",
        json!({"query": "timing wheel", "threshold": 0.99, "mode": "vector"}),
    );
    assert_eq!(high["count"], 0);
}

#[test]
fn filters_are_applied_before_the_best_are_taken() {
    let daemon = Daemon::start();
    let mut items = Vec::new();
    for index in 0..60 {
        items.push(
            json!({"text": format!("Cache invalidation note number {index} about the cache."), "agent": "noise"}),
        );
    }
    let wanted = json!({
        "text": "Something about caches that ranks low, with many other words that have nothing to do with it at all.",
        "type": "issue", "agent": "ana", "session_id": "s-1", "metadata": {"ticket": 7, "tags": ["a", "it's"], "deep": {"x": [1]}}
    });
    items.push(wanted);
    let batch = daemon.call("knowledge.store_batch", json!({"items": items}));
    assert_eq!(batch["stored"], 61, "{batch:#}");
    let id = batch["ids"][60].clone();

    let only = |filter: Value| {
        let mut params = json!({"query": "cache invalidation", "limit": 5});
        params
            .as_object_mut()
            .unwrap()
            .extend(filter.as_object().unwrap().clone());
        daemon.search_ids(params)
    };
    for filter in [
        json!({"type": "issue"}),
        json!({"knowledge_type": ["issue", "pattern"]}),
        json!({"agent": "ana"}),
        json!({"session_id": ["s-1", "s-2"]}),
        json!({"metadata": {"ticket": 7}}),
        json!({"metadata": {"tags": "it's"}}),
        json!({"metadata": {"tags": ["a", "it's"], "deep": {"x": [1]}}}),
    ] {
        assert_eq!(only(filter.clone()), [id.as_str().unwrap()], "{filter}");
    }
    assert_eq!(only(json!({"metadata": {"ticket": 8}})).len(), 0);
    assert_eq!(only(json!({"agent": "' OR 1=1 --"})).len(), 0);
    assert_eq!(only(json!({"until": "2020-01-01"})).len(), 0);
    assert_eq!(only(json!({"since": "2020-01-01", "agent": "ana"})).len(), 1);

    let counted = daemon.call("knowledge.list", json!({"type": "issue"}));
    assert_eq!((counted["total"].as_u64(), ids(&counted).len()), (Some(1), 1));
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
fn long_texts_are_found_by_any_of_their_passages() {
    let daemon = Daemon::start();
    let filler = |topic: &str| {
        format!("This part of the handbook is about {topic} and says again what the team agreed on. ").repeat(40)
    };
    let text = format!(
        "{}The emergency phone number of the data centre is written on the blue door. {}",
        filler("vacation days"),
        filler("expense reports")
    );
    let stored = daemon.call("knowledge.store", json!({"text": text}));
    assert!(stored["passages"].as_u64().unwrap() > 3, "{stored}");
    daemon.store("A short note about something else.");

    let found = daemon.call(
        "knowledge.search",
        json!({"query": "emergency phone number of the data centre", "limit": 3}),
    );
    let hits = found["results"].as_array().unwrap();
    let same = hits.iter().filter(|hit| hit["id"] == stored["id"]).count();
    assert_eq!(same, 1, "an item is one result, whatever its passages");
    let best = &hits[0];
    assert_eq!(best["text"], text);
    let passage = &best["passage"];
    assert!(passage["text"].as_str().unwrap().contains("emergency phone number"));
    let (start, end) = (
        passage["start"].as_u64().unwrap() as usize,
        passage["end"].as_u64().unwrap() as usize,
    );
    assert_eq!(&text[start..end], passage["text"].as_str().unwrap());

    let stats = daemon.call("knowledge.stats", json!({}));
    assert_eq!(stats["total"], 2);
    assert_eq!(
        stats["passages"].as_u64().unwrap(),
        stored["passages"].as_u64().unwrap() + 1
    );
}

#[test]
fn a_passage_says_where_it_stands_in_bytes() {
    let daemon = Daemon::start();
    let texts = [
        ("cjk", "状态页面也要支持中文，重试队列会在故障后恢复。".repeat(30)),
        (
            "emoji",
            "The rollout 🚀 of the 👩‍👩‍👧‍👦 service went ✅ fine, said the crab 🦀. ".repeat(30),
        ),
        (
            "marks",
            "Cafe\u{301} re\u{301}sume\u{301} des e\u{301}ve\u{301}nements: la file d'attente est pleine. ".repeat(30),
        ),
        (
            "crlf",
            "Grüße from the first line\r\nand from the second one\r\n\r\n".repeat(40),
        ),
        (
            "ascii",
            "Plain words about the state of the deployment and its queue. ".repeat(40),
        ),
        ("short", "größer als ein Byte".to_owned()),
    ];
    for (agent, text) in &texts {
        let marked = format!("{text}the last words: zebra{agent}");
        let stored = daemon.call("knowledge.store", json!({"text": marked, "agent": agent}));
        assert!(
            *agent == "short" || stored["passages"].as_u64().unwrap() > 1,
            "{agent}: {stored}"
        );
        for query in [format!("zebra{agent}"), text.chars().take(20).collect()] {
            for mode in ["hybrid", "vector"] {
                let found = daemon.call(
                    "knowledge.search",
                    json!({"query": query, "agent": agent, "mode": mode}),
                );
                let hit = &found["results"][0];
                let (whole, passage) = (hit["text"].as_str().unwrap(), &hit["passage"]);
                assert_eq!(whole, marked);
                let place = |end: &str| usize::try_from(passage[end].as_u64().unwrap()).unwrap();
                let cut = whole.get(place("start")..place("end"));
                assert_eq!(cut, passage["text"].as_str(), "{agent}, {query}: {passage}");
            }
        }
        // The last passage ends where the text does, in bytes.
        let found = daemon.call(
            "knowledge.search",
            json!({"query": format!("zebra{agent}"), "agent": agent, "mode": "text"}),
        );
        assert_eq!(found["results"][0]["passage"]["end"], marked.len(), "{agent}");
    }
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

#[test]
fn budget_and_threshold_limit_what_comes_back() {
    let daemon = Daemon::start();
    let items: Vec<Value> = (0..5)
        .map(|n| json!({"text": format!("Release checklist step {n}: {}", "tag the build ".repeat(20))}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    let all = daemon.call("knowledge.search", json!({"query": "release checklist"}));
    assert_eq!((&all["count"], &all["omitted"]), (&json!(5), &json!(0)));
    let some = daemon.call(
        "knowledge.search",
        json!({"query": "release checklist", "budget_tokens": 170}),
    );
    assert_eq!((&some["count"], &some["omitted"]), (&json!(2), &json!(3)), "{some:#}");
    let one = daemon.call(
        "knowledge.search",
        json!({"query": "release checklist", "budget_tokens": 1}),
    );
    assert_eq!((&one["count"], &one["omitted"]), (&json!(1), &json!(4)));
    let paged: Vec<String> = (0..5)
        .flat_map(|offset| daemon.search_ids(json!({"query": "release checklist", "limit": 1, "offset": offset})))
        .collect();
    assert_eq!(paged, ids(&all));
}
