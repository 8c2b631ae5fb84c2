//! An item is updated: each change is made once, as a whole, and its history and its vectors agree with it.

use serde_json::{Value, json};

use crate::support::{Daemon, Home, ids};

fn revisions(daemon: &Daemon, id: &str) -> Vec<(u64, String, Value)> {
    let history = daemon.call("knowledge.history", json!({"id": id}));
    history["revisions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|revision| {
            (
                revision["revision"].as_u64().unwrap(),
                revision["text"].as_str().unwrap().to_owned(),
                revision["valid_to"].clone(),
            )
        })
        .collect()
}

#[test]
fn an_update_changes_what_it_names_and_keeps_the_rest_in_the_history() {
    let daemon = Daemon::start();
    let first = "The cache is invalidated by a broadcast over the message bus.";
    let second = "Penguins huddle together to keep warm in the antarctic winter.";
    let stored = daemon.call(
        "knowledge.store",
        json!({"text": first, "type": "decision", "agent": "ada", "metadata": {"ticket": 7}}),
    );
    let id = stored["id"].as_str().unwrap();
    daemon.store("An unrelated fact about invoices and their numbers.");

    let updated = daemon.call("knowledge.update", json!({"id": id, "text": second}));
    assert_eq!(
        (&updated["version"], &updated["durability"]),
        (&json!(3), &json!("full"))
    );
    let item = daemon.call("knowledge.get", json!({"id": id}));
    assert_eq!(
        (
            &item["text"],
            &item["type"],
            &item["agent"],
            &item["metadata"]["ticket"]
        ),
        (&json!(second), &json!("decision"), &json!("ada"), &json!(7))
    );
    assert_eq!(item["timestamp"], stored["timestamp"], "the creation stays");
    assert_eq!(item["updated_at"], updated["updated_at"]);

    // It is embedded again: found by the new meaning and words, not by the old ones.
    let found = daemon.call(
        "knowledge.search",
        json!({"query": "birds in the cold", "mode": "vector", "limit": 1}),
    );
    assert_eq!(found["results"][0]["id"], id);
    assert_eq!(daemon.search_ids(json!({"query": "huddle", "mode": "text"})), [id]);
    assert!(
        daemon
            .search_ids(json!({"query": "broadcast", "mode": "text"}))
            .is_empty()
    );
    // As of the version before, it is what it was.
    let before = daemon.call("knowledge.search", json!({"query": "broadcast bus", "as_of": 2}));
    assert_eq!(before["results"][0]["text"], first);
    let by_time = json!({"query": "broadcast bus", "as_of": stored["timestamp"]});
    assert_eq!(daemon.call("knowledge.search", by_time)["results"][0]["text"], first);
    assert_eq!(
        revisions(&daemon, id),
        [(2, second.to_owned(), Value::Null), (1, first.to_owned(), json!(3))]
    );

    // Without a new text the passages stay, and what changes nothing does not make a new version.
    let updated = daemon.call(
        "knowledge.update",
        json!({"id": id, "type": "pattern", "session_id": "s1"}),
    );
    assert_eq!(updated["version"], 4);
    let same = daemon.call("knowledge.update", json!({"id": id, "type": "pattern", "text": second}));
    assert_eq!(
        (&same["version"], &same["updated_at"]),
        (&json!(4), &updated["updated_at"])
    );
    let found = daemon.call("knowledge.search", json!({"query": "huddle", "type": "pattern"}));
    assert_eq!(ids(&found), [id]);
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 2);

    for (params, code) in [
        (json!({"id": "no-such", "agent": "x"}), -32020),
        (json!({"id": id}), -32602),
        (json!({"id": id, "text": "  "}), -32602),
    ] {
        assert_eq!(
            daemon.call_error("knowledge.update", params.clone())["code"],
            code,
            "{params}"
        );
    }

    // All of it is there after kill -9.
    let daemon = daemon.kill_and_restart();
    assert_eq!(revisions(&daemon, id).len(), 3);
    assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["session_id"], "s1");
}

#[test]
fn an_item_of_many_passages_changes_as_a_whole() {
    let daemon = Daemon::start();
    let long = |word: &str| -> String { (0..900).map(|n| format!("{word}{n} ")).collect() };
    let id = daemon.store(&long("alpha"));
    daemon.call("knowledge.update", json!({"id": id, "text": long("bravo")}));
    assert!(
        daemon
            .search_ids(json!({"query": "alpha850", "mode": "text"}))
            .is_empty()
    );
    let found = daemon.call("knowledge.search", json!({"query": "bravo850", "mode": "text"}));
    assert_eq!(ids(&found), [id.as_str()]);
    assert_eq!(found["results"][0]["text"], long("bravo"));
    assert!(found["results"][0]["passage"]["index"].as_u64().unwrap() > 0);

    let deleted = daemon.call("knowledge.delete", json!({"id": id}));
    assert_eq!(daemon.call("knowledge.stats", json!({}))["passages"], 0);
    daemon.call("knowledge.undelete", json!({"undo_token": deleted["undo_token"]}));
    assert_eq!(
        daemon.search_ids(json!({"query": "bravo850", "mode": "text"})),
        [id.as_str()]
    );
    assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["text"], long("bravo"));
}

#[test]
fn the_feed_tells_every_change() {
    let daemon = Daemon::start();
    let mut subscriber = daemon.connect();
    let begun = subscriber.call("knowledge.subscribe", json!({}));
    let id = daemon.store("first text");
    daemon.call("knowledge.update", json!({"id": id, "text": "second text"}));
    daemon.call("knowledge.delete", json!({"id": id}));
    daemon.call("knowledge.undelete", json!({"ids": [id]}));
    daemon.call("knowledge.delete", json!({"id": id}));
    daemon.call("knowledge.store", json!({"id": id, "text": "third text"}));
    daemon.call("knowledge.purge", json!({"id": id, "confirm": true}));
    let mut told = Vec::new();
    let mut purged = Value::Null;
    for _ in 0..7 {
        let change = subscriber.receive().unwrap()["params"]["result"].clone();
        assert_eq!(change["id"], json!(id));
        told.push(change["op"].as_str().unwrap().to_owned());
        purged = change;
    }
    assert_eq!(
        told,
        ["store", "update", "delete", "undelete", "delete", "store", "purge"]
    );
    assert!(purged.get("text").is_none() && purged.get("type").is_none(), "{purged}");

    // A replay says of a purged item that it was purged, and nothing else.
    let mut replay = daemon.connect();
    replay.call("knowledge.subscribe", json!({"cursor": begun["cursor"]}));
    let change = replay.receive().unwrap()["params"]["result"].clone();
    assert_eq!((&change["op"], &change["id"]), (&json!("purge"), &json!(id)));
}

#[test]
fn many_changes_at_once_are_each_done_once() {
    let daemon = Daemon::start();
    let all: Vec<String> = (0..16).map(|number| daemon.store(&format!("item {number}"))).collect();
    let before = daemon.status_number("/actors/writer/counters/commits");
    std::thread::scope(|scope| {
        for id in &all {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut connection = daemon.connect();
                for round in 0..4 {
                    connection.call("knowledge.update", json!({"id": id, "metadata": {"round": round}}));
                }
                connection.call("knowledge.delete", json!({"id": id}));
                connection.call("knowledge.undelete", json!({"ids": [id]}));
            });
        }
    });
    for id in &all {
        assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["metadata"]["round"], 3);
        assert_eq!(revisions(&daemon, id).len(), 6);
    }
    let commits = daemon.status_number("/actors/writer/counters/commits") - before;
    assert!(commits < 16 * 6, "{commits} commits for 96 changes: none was shared");
}

/// The answer to a change that is too large to be sent says that the change was made, and what undoes it.
#[test]
fn a_change_whose_answer_is_too_large_is_told_with_its_undo_token() {
    const ITEMS: u64 = 120;
    let daemon = Daemon::start_in(Home::new(), &[("CCO_LIMITS__MAX_RESPONSE_BYTES", "4096")]);
    let items: Vec<Value> = (0..ITEMS)
        .map(|number| json!({"text": format!("short note {number}"), "id": format!("note-{number:040}"), "agent": "ada"}))
        .collect();
    // Its answer is over the limit as well.
    let told = |error: &Value, member: &str| {
        assert_eq!(
            (&error["code"], &error["data"]["executed"], &error["data"]["retryable"]),
            (&json!(-32008), &json!(true), &json!(false)),
            "{error}"
        );
        error["data"][member].clone()
    };
    let error = daemon.call_error("knowledge.store_batch", json!({"items": items}));
    assert_eq!(told(&error, "stored"), ITEMS);
    assert!(error["data"].get("ids").is_none(), "{error}");

    // Alone, and in a batch that grows too large by it.
    let delete = json!({"jsonrpc": "2.0", "id": 1, "method": "knowledge.delete", "params": {"agent": "ada"}});
    let alone = daemon.call_error("knowledge.delete", delete["params"].clone());
    let undone = daemon.call_error("knowledge.undelete", json!({"undo_token": told(&alone, "undo_token")}));
    assert_eq!(told(&undone, "restored"), ITEMS);
    let mut connection = daemon.connect();
    let health = json!({"jsonrpc": "2.0", "id": 2, "method": "admin.health"});
    connection.send(format!("{}\n", json!([delete, health])));
    let answers = connection.receive().unwrap();
    assert_eq!(answers[1]["result"]["status"], "ok");
    let token = told(&answers[0]["error"], "undo_token");
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 0);
    daemon.call_error("knowledge.undelete", json!({"undo_token": token}));
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], ITEMS);
    // What only reads says to ask for less.
    let error = daemon.call_error("knowledge.list", json!({"limit": 1000}));
    assert_eq!(error["code"], -32008);
    assert!(error["data"].get("executed").is_none(), "{error}");
}

#[test]
fn updates_of_one_item_at_once_leave_each_text_with_its_own_vectors() {
    let daemon = Daemon::start();
    let texts = ["Penguins huddle in the cold.", "The invoice is due in March."];
    let id = daemon.store(texts[0]);
    for round in 0..20 {
        let gate = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for (number, text) in texts.into_iter().enumerate() {
                let (daemon, gate, id) = (&daemon, &gate, &id);
                scope.spawn(move || {
                    let mut connection = daemon.connect();
                    gate.wait();
                    let metadata = json!({"round": round, "of": number});
                    connection.call(
                        "knowledge.update",
                        json!({"id": id, "text": text, "metadata": metadata}),
                    );
                });
            }
        });
        let text = daemon.call("knowledge.get", json!({"id": id}))["text"].clone();
        let found = daemon.call("knowledge.search", json!({"query": text, "mode": "vector", "limit": 1}));
        assert!(
            found["results"][0]["similarity"].as_f64().unwrap() > 0.99,
            "round {round}: {found}"
        );
    }
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

/// Whatever has become of an item since: who has not got the answer to its store asks again, and gets it.
#[test]
fn a_retried_store_gets_its_own_first_answer() {
    let mut daemon = Daemon::start();
    let store = |daemon: &Daemon, params: &Value| daemon.call("knowledge.store", params.clone());
    let long: String = (0..400).map(|number| format!("word{number} ")).collect();
    let by_key = json!({"text": long, "idempotency_key": "k"});
    let by_id = json!({"text": "first text", "id": "mine"});
    let answers = [store(&daemon, &by_key), store(&daemon, &by_id)];
    assert!(answers[0]["passages"].as_u64().unwrap() > 1);
    // Somebody updates both, twice.
    for text in ["second text", "third text"] {
        for answer in &answers {
            daemon.call("knowledge.update", json!({"id": answer["id"], "text": text}));
        }
    }
    let same = |first: &Value, again: &Value| {
        assert_eq!(again["status"], "duplicate", "{again}");
        for member in ["id", "timestamp", "passages"] {
            assert_eq!(first[member], again[member], "{member}");
        }
    };
    let refused = |daemon: &Daemon| {
        let other = json!({"text": "other", "idempotency_key": "k"});
        assert_eq!(daemon.call_error("knowledge.store", other)["code"], -32602);
        let other = json!({"text": "other", "id": "mine"});
        assert_eq!(daemon.call_error("knowledge.store", other)["code"], -32021);
    };
    for _ in 0..2 {
        same(&answers[0], &store(&daemon, &by_key));
        same(&answers[1], &store(&daemon, &by_id));
        refused(&daemon);
        assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 2);
        daemon = daemon.kill_and_restart();
    }

    // Deleted, the key used again, and the first one brought back: both stores have their own answers.
    let deleted = daemon.call("knowledge.delete", json!({"id": answers[0]["id"]}));
    let second = json!({"text": "another fact", "idempotency_key": "k"});
    let answer = store(&daemon, &second);
    assert_eq!(answer["status"], "stored");
    daemon.call("knowledge.undelete", json!({"undo_token": deleted["undo_token"]}));
    for _ in 0..2 {
        same(&answer, &store(&daemon, &second));
        same(&answers[0], &store(&daemon, &by_key));
        refused(&daemon);
        assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 3);
        daemon = daemon.kill_and_restart();
    }
}
