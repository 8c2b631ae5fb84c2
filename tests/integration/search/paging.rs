//! The pages of a search are parts of one sequence: whatever their size, and whatever is written meanwhile.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::{Daemon, ids};

const COMPONENTS: [&str; 14] = [
    "parser",
    "scheduler",
    "cache",
    "index",
    "socket",
    "journal",
    "planner",
    "router",
    "watcher",
    "queue",
    "allocator",
    "compiler",
    "renderer",
    "gateway",
];
const EVENTS: [&str; 10] = [
    "timed out under load",
    "was rewritten in Rust",
    "keeps its state on disk",
    "leaked file descriptors",
    "is shared by two services",
    "retries failed requests",
    "validates its input twice",
    "drops idle connections",
    "was moved behind a feature flag",
    "is covered by property tests",
];

/// Notes that all have a word in common and are more or less like one another.
fn notes(count: usize) -> Vec<Value> {
    let note = |number: usize| {
        let (first, second) = (COMPONENTS[number % 14], COMPONENTS[number * 5 % 13]);
        let event = EVENTS[number * 3 % 10];
        let more = if number.is_multiple_of(3) {
            " The cache was warm."
        } else {
            ""
        };
        json!({"text": format!("Note {number}: the {first} beside the {second} {event}.{more}"), "agent": format!("a{}", number % 2)})
    };
    (0..count).map(note).collect()
}

fn store_all(daemon: &Daemon, project: &str, items: &[Value]) -> Vec<String> {
    // A project that is searched while it is small has all words in memory from then on. Those of a large one come
    // behind its first searches, which are answered by LanceDB's keyword index: in another order of what is equal.
    let first = daemon.call(
        "knowledge.store",
        json!({"text": "The first of all.", "project_id": project}),
    );
    daemon.search_ids(json!({"query": "first", "project_id": project}));
    daemon.call(
        "knowledge.purge",
        json!({"id": first["id"], "project_id": project, "confirm": true}),
    );
    let stored = daemon.call("knowledge.store_batch", json!({"items": items, "project_id": project}));
    assert_eq!(stored["failed"], 0, "{stored:#}");
    settle(daemon);
    let ids = stored["ids"].as_array().unwrap().iter();
    ids.map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// Leaves no upkeep to be done: a search after the next step of it would be of another version.
fn settle(daemon: &Daemon) {
    daemon.call("admin.optimize", json!({}));
}

fn with(params: &Value, more: Value) -> Value {
    let mut params = params.clone();
    params
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    params
}

/// All hits, page by page by offset.
fn by_offset(daemon: &Daemon, params: &Value, limit: usize) -> Vec<Value> {
    let mut connection = daemon.connect();
    let mut hits = Vec::new();
    loop {
        let page = connection.call(
            "knowledge.search",
            with(params, json!({"limit": limit, "offset": hits.len()})),
        );
        let page = page["results"].as_array().unwrap().clone();
        if page.is_empty() {
            return hits;
        }
        hits.extend(page);
    }
}

fn hit_ids(hits: &[Value]) -> Vec<&str> {
    hits.iter().map(|hit| hit["id"].as_str().unwrap()).collect()
}

/// Nothing twice, and nothing better than what stands before it.
fn assert_is_one_sequence(hits: &[Value]) {
    let ids = hit_ids(hits);
    let distinct: HashSet<&&str> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "a hit is there twice");
    for pair in hits.windows(2) {
        let [before, after] = [&pair[0], &pair[1]].map(|hit| hit["score"].as_f64().unwrap());
        assert!(before >= after, "scores rise: {before} before {after}");
    }
}

#[test]
fn offset_pages_of_any_size_are_parts_of_one_sequence() {
    let daemon = Daemon::start();
    let stored = store_all(&daemon, "default", &notes(700));
    for mode in ["hybrid", "text", "vector"] {
        let params = json!({"query": "why did the cache beside the parser time out", "mode": mode});
        let by_ten = by_offset(&daemon, &params, 10);
        assert_is_one_sequence(&by_ten);
        let by_hundred = by_offset(&daemon, &params, 100);
        assert_eq!(hit_ids(&by_ten), hit_ids(&by_hundred), "{mode}");
        let by_seventy_three = by_offset(&daemon, &params, 73);
        assert_eq!(hit_ids(&by_ten), hit_ids(&by_seventy_three), "{mode}");
        // All have the query's words, or are not far from its meaning.
        let least = if mode == "vector" { 150 } else { 300 };
        assert!(by_ten.len() >= least, "{mode}: {} of {}", by_ten.len(), stored.len());

        let filtered = by_offset(&daemon, &with(&params, json!({"agent": "a1"})), 10);
        assert_is_one_sequence(&filtered);
        assert!(filtered.iter().all(|hit| hit["agent"] == "a1"));
        let cut = by_offset(&daemon, &with(&params, json!({"threshold": 0.3})), 10);
        assert!(cut.iter().all(|hit| hit["score"].as_f64().unwrap() >= 0.3));
        assert_eq!(hit_ids(&cut), hit_ids(&by_ten[..cut.len()]), "{mode}");
    }
    let too_deep = daemon.call_error("knowledge.search", json!({"query": "cache", "offset": 10_001}));
    assert_eq!(too_deep["data"]["parameter"], "offset", "{too_deep}");
}

#[test]
fn equal_scores_do_not_mix_up_pages() {
    let daemon = Daemon::start();
    // Alike but for what the keyword index and the model do not see.
    let items: Vec<Value> = (0..260)
        .map(|number| {
            json!({"text": "The nightly job rotates the keys.", "metadata": {"n": number}, "on_duplicate": "store"})
        })
        .collect();
    store_all(&daemon, "default", &items);
    for mode in ["hybrid", "text", "vector"] {
        let params = json!({"query": "rotates keys", "mode": mode});
        let by_ten = by_offset(&daemon, &params, 10);
        assert_is_one_sequence(&by_ten);
        assert_eq!(by_ten.len(), 260, "{mode}");
        assert_eq!(hit_ids(&by_ten), hit_ids(&by_offset(&daemon, &params, 64)), "{mode}");
    }
}

#[test]
fn several_projects_are_one_sequence_too() {
    let daemon = Daemon::start();
    let items = notes(450);
    store_all(&daemon, "alpha", &items[..300]);
    store_all(&daemon, "beta", &items[300..]);
    for mode in ["hybrid", "text", "vector"] {
        let params =
            json!({"query": "a queue that drops idle connections", "mode": mode, "projects": ["alpha", "beta"]});
        let by_ten = by_offset(&daemon, &params, 10);
        assert_is_one_sequence(&by_ten);
        assert_eq!(hit_ids(&by_ten), hit_ids(&by_offset(&daemon, &params, 90)), "{mode}");
        let projects: HashSet<&str> = by_ten.iter().map(|hit| hit["project_id"].as_str().unwrap()).collect();
        assert_eq!(projects.len(), 2);
        if mode == "vector" {
            for hit in &by_ten {
                let [score, cosine] = ["score", "similarity"].map(|name| hit[name].as_f64().unwrap());
                assert_eq!(score, cosine.max(0.0), "each stands where its cosine puts it: {hit}");
            }
        }
    }
}

#[test]
fn a_cursor_goes_on_where_the_page_ended_whatever_is_written_meanwhile() {
    let daemon = Daemon::start();
    let stored = store_all(&daemon, "default", &notes(330));
    for mode in ["hybrid", "text", "vector"] {
        let params = json!({"query": "which component leaked descriptors", "mode": mode});
        settle(&daemon);
        let expected = by_offset(&daemon, &params, 50);
        let mut pages = Vec::new();
        let mut cursor = Value::Null;
        let mut version = Value::Null;
        for (round, other) in stored.iter().enumerate() {
            let mut page_params = with(&params, json!({"limit": 40 + round}));
            if !cursor.is_null() {
                page_params["cursor"] = cursor;
            }
            let mut page = daemon.call("knowledge.search", page_params);
            if round == 0 {
                version = page["version"].clone();
            }
            assert_eq!(page["version"], version, "all pages are of one version");
            pages.extend(page["results"].as_array().unwrap().iter().cloned());
            cursor = page["next_cursor"].take();
            if cursor.is_null() {
                break;
            }
            // The best that is to come is deleted, another one is changed, and something better is new.
            let last = pages.len().min(expected.len() - 1);
            let next = expected[last]["id"].as_str().unwrap();
            let deleted = daemon.call("knowledge.delete", json!({"id": next}));
            daemon.call("knowledge.undelete", json!({"undo_token": deleted["undo_token"]}));
            daemon.call(
                "knowledge.update",
                json!({"id": other, "agent": format!("changed-{mode}-{round}")}),
            );
            daemon.store(&format!(
                "Which component leaked descriptors? Number {round} in mode {mode}."
            ));
        }
        assert_eq!(hit_ids(&pages), hit_ids(&expected), "{mode}");
        assert_is_one_sequence(&pages);
    }
    // A search without a cursor sees the present.
    let now = daemon.call(
        "knowledge.search",
        json!({"query": "which component leaked descriptors", "limit": 1}),
    );
    assert!(
        now["results"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("Which component")
    );
}

#[test]
fn a_cursor_is_of_one_search_and_expires_with_its_version() {
    let daemon = Daemon::start();
    let stored = store_all(&daemon, "default", &notes(30));
    let params = json!({"query": "cache", "limit": 5});
    let first = daemon.call("knowledge.search", params.clone());
    let cursor = first["next_cursor"].as_str().expect("there is more").to_owned();
    let go_on = |more: Value| with(&with(&params, json!({"cursor": cursor})), more);
    for (changed, parameter) in [
        (json!({"query": "queue"}), "cursor"),
        (json!({"mode": "text"}), "cursor"),
        (json!({"agent": "a1"}), "cursor"),
        (json!({"project_id": "other"}), "cursor"),
        (json!({"offset": 5}), "offset"),
        (json!({"cursor": ""}), "cursor"),
        (json!({"cursor": "7331"}), "cursor"),
        (json!({"cursor": &cursor[..cursor.len() / 2 * 2 - 8]}), "cursor"),
    ] {
        let error = daemon.call_error("knowledge.search", go_on(changed.clone()));
        assert_eq!(
            (error["code"].as_i64(), &error["data"]["parameter"]),
            (Some(-32602), &json!(parameter)),
            "{changed}: {error}"
        );
    }
    let second = daemon.call("knowledge.search", go_on(json!({"limit": 7, "explain": true})));
    assert_eq!(second["count"], 7);
    assert!(ids(&second).iter().all(|id| !ids(&first).contains(id)));
    // What was purged is in no version that can still be read.
    daemon.call("knowledge.purge", json!({"id": stored[3], "confirm": true}));
    let error = daemon.call_error("knowledge.search", go_on(json!({})));
    assert_eq!(
        (error["code"].as_i64(), error["data"]["kind"].as_str()),
        (Some(-32028), Some("expired")),
        "{error}"
    );
    // The end has no cursor, and neither has a project that does not exist.
    let all = daemon.call(
        "knowledge.search",
        json!({"query": "cache", "limit": 100, "mode": "text"}),
    );
    assert_eq!(all["next_cursor"], Value::Null);
    let nothing = daemon.call("knowledge.search", json!({"query": "cache", "project_id": "nowhere"}));
    assert_eq!((&nothing["count"], &nothing["next_cursor"]), (&json!(0), &Value::Null));
}
