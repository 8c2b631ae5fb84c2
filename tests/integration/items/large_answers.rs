//! Answers that would be larger than may be sent: refused by every method that reads, and what fits is answered.

use serde_json::{Value, json};

use crate::support::{Daemon, Home};

const ITEMS: usize = 30;
const LIMIT: &str = "16384";

/// A daemon whose answers are small, and the ids of items whose metadata fill some two kilobytes each.
fn full() -> (Daemon, Vec<String>) {
    let daemon = Daemon::start_in(Home::new(), &[("CCO_LIMITS__MAX_RESPONSE_BYTES", LIMIT)]);
    let ids: Vec<String> = (0..ITEMS).map(|number| format!("note-{number:02}")).collect();
    let items: Vec<Value> = ids
        .iter()
        .map(|id| json!({"id": id, "text": format!("a short word, {id}"), "metadata": {"padding": "x".repeat(2_000)}}))
        .collect();
    let stored = daemon.call("knowledge.store_batch", json!({"items": items}));
    assert_eq!(stored["stored"], ITEMS);
    (daemon, ids)
}

fn ids_of(items: &Value) -> Vec<&str> {
    let items = items.as_array().unwrap().iter();
    items.map(|item| item["id"].as_str().unwrap()).collect()
}

#[test]
fn what_an_answer_has_no_room_for_is_refused_and_what_fits_is_answered() {
    let (daemon, ids) = full();
    let search = |limit: usize| json!({"query": "short word", "limit": limit});
    let similar = |limit: usize| json!({"id": ids[0], "limit": limit});
    for (method, large, small) in [
        ("knowledge.get", json!({"ids": ids}), json!({"ids": ids[..5]})),
        ("knowledge.list", json!({"limit": ITEMS}), json!({"limit": 5})),
        ("knowledge.search", search(ITEMS), search(5)),
        ("knowledge.similar", similar(ITEMS), similar(5)),
    ] {
        let error = daemon.call_error(method, large);
        assert_eq!(
            (&error["code"], &error["data"]["limit_bytes"]),
            (&json!(-32008), &json!(16_384)),
            "{method}: {error}"
        );
        assert!(error["data"].get("executed").is_none(), "{method}: {error}");
        let answer = daemon.call(method, small);
        assert_eq!(ids_of(&answer["results"]).len(), 5, "{method}");
    }
    // Page by page nothing is missing.
    let (mut listed, mut cursor) = (Vec::new(), None);
    loop {
        let mut params = json!({"limit": 7, "order": "oldest"});
        if let Some(cursor) = cursor {
            params["cursor"] = cursor;
        }
        let page = daemon.call("knowledge.list", params);
        assert_eq!(page["total"], ITEMS);
        listed.extend(ids_of(&page["results"]).into_iter().map(str::to_owned));
        cursor = page.get("next_cursor").filter(|cursor| !cursor.is_null()).cloned();
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(listed, ids);
    // One id a thousand times is one item.
    let again = daemon.call("knowledge.get", json!({"ids": vec![&ids[3]; 1_000]}));
    assert_eq!(ids_of(&again["results"]), [ids[3].as_str()]);
    // What the caller's own budget leaves out takes no room.
    let found = daemon.call(
        "knowledge.search",
        json!({"query": "short word", "limit": ITEMS, "budget_tokens": 20}),
    );
    let count = found["count"].as_u64().unwrap();
    assert!(
        count > 0 && count + found["omitted"].as_u64().unwrap() == ITEMS as u64,
        "{count}"
    );
}

#[test]
fn a_long_history_is_refused_and_a_dry_run_needs_room_for_ids_alone() {
    let (daemon, ids) = full();
    for number in 0..10 {
        let metadata = json!({"padding": "y".repeat(2_000), "number": number});
        daemon.call("knowledge.update", json!({"id": ids[0], "metadata": metadata}));
    }
    let error = daemon.call_error("knowledge.history", json!({"id": ids[0]}));
    assert_eq!(error["code"], -32008, "{error}");
    daemon.call("knowledge.update", json!({"id": ids[1], "metadata": {}}));
    let history = daemon.call("knowledge.history", json!({"id": ids[1]}));
    let revisions: Vec<&Value> = history["revisions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["revision"])
        .collect();
    assert_eq!(revisions, [2, 1]);

    let mut named: Vec<&str> = ids.iter().map(String::as_str).collect();
    named.push("nobody");
    for target in [json!({"ids": named}), json!({"type": "general"})] {
        let mut params = target;
        params["dry_run"] = json!(true);
        let answer = daemon.call("knowledge.delete", params);
        assert_eq!((&answer["deleted"], &answer["ids"]), (&json!(ITEMS), &json!(ids)));
    }
    let cleaned = daemon.call("knowledge.cleanup", json!({"older_than_days": 0}));
    assert_eq!(
        (&cleaned["deleted"], &cleaned["dry_run"]),
        (&json!(ITEMS), &json!(true))
    );
    assert!(cleaned["freed_bytes"].as_u64().unwrap() > 0);
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], ITEMS);
    // An item that no answer could hold can still be changed.
    daemon.call(
        "knowledge.update",
        json!({"id": ids[2], "metadata": {"padding": "z".repeat(20_000)}}),
    );
    assert_eq!(
        daemon.call_error("knowledge.get", json!({"id": ids[2]}))["code"],
        -32008
    );
    daemon.call("knowledge.update", json!({"id": ids[2], "metadata": {}}));
    assert_eq!(
        daemon.call("knowledge.get", json!({"id": ids[2]}))["metadata"],
        json!({})
    );
}

/// Ids alone may be more than an answer holds.
#[test]
fn a_dry_run_over_too_many_ids_is_refused() {
    let daemon = Daemon::start_in(Home::new(), &[("CCO_LIMITS__MAX_RESPONSE_BYTES", "4096")]);
    let ids: Vec<String> = (0..120).map(|number| format!("note-{number:040}")).collect();
    let items: Vec<Value> = ids.iter().map(|id| json!({"id": id, "text": id})).collect();
    daemon.call_error("knowledge.store_batch", json!({"items": items}));
    for target in [
        json!({"ids": ids, "dry_run": true}),
        json!({"type": "general", "dry_run": true}),
    ] {
        let error = daemon.call_error("knowledge.delete", target);
        assert_eq!(error["code"], -32008, "{error}");
    }
    let cleaned = daemon.call("knowledge.cleanup", json!({"older_than_days": 0}));
    assert_eq!(cleaned["deleted"], 120);
}
