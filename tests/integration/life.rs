//! The life of an item: changed, deleted, brought back, cleaned up, purged; and its history meanwhile.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Daemon, Home, files_with, ids};

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

    // It is embedded anew: found by the new meaning and words, not by the old ones.
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

    // Without a new text the passages stay, and what changes nothing is no new version.
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
fn deletions_are_counted_first_if_asked_and_can_be_undone() {
    let daemon = Daemon::start();
    let mut of_ada = Vec::new();
    for number in 0..6 {
        let agent = if number % 2 == 0 { "ada" } else { "bob" };
        let stored = daemon.call(
            "knowledge.store",
            json!({"text": format!("note number {number}"), "agent": agent, "idempotency_key": format!("k{number}")}),
        );
        if agent == "ada" {
            of_ada.push(stored["id"].as_str().unwrap().to_owned());
        }
    }
    of_ada.sort();

    let mut dry = daemon.call("knowledge.delete", json!({"agent": "ada", "dry_run": true}));
    dry["ids"]
        .as_array_mut()
        .unwrap()
        .sort_by_key(|id| id.as_str().unwrap().to_owned());
    assert_eq!((&dry["deleted"], &dry["undo_token"]), (&json!(3), &Value::Null));
    assert_eq!(dry["ids"], json!(of_ada));
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 6);

    let gone = daemon.call("knowledge.delete", json!({"agent": "ada"}));
    assert_eq!(
        (&gone["deleted"], &gone["ids"], &gone["version"]),
        (&json!(3), &json!(of_ada), &json!(7))
    );
    assert_eq!(daemon.call("knowledge.stats", json!({}))["by_agent"], json!({"bob": 3}));
    assert_eq!(
        daemon.call_error("knowledge.get", json!({"id": of_ada[0]}))["code"],
        -32020
    );
    assert_eq!(
        daemon.call_error("knowledge.history", json!({"id": of_ada[0]}))["code"],
        -32020
    );
    assert_eq!(
        daemon.call_error("knowledge.update", json!({"id": of_ada[0], "agent": "x"}))["code"],
        -32020
    );
    assert!(!daemon.search_ids(json!({"query": "note number"})).contains(&of_ada[0]));
    assert_eq!(daemon.search_ids(json!({"query": "note number", "as_of": 6})).len(), 6);
    // Of what is not there nothing is deleted, and that is no error and no version.
    let nothing = daemon.call("knowledge.delete", json!({"ids": [of_ada[0], "no-such"]}));
    assert_eq!(
        (&nothing["deleted"], &nothing["undo_token"], &nothing["version"]),
        (&json!(0), &Value::Null, &json!(7))
    );
    assert_eq!(daemon.call_error("knowledge.delete", json!({}))["code"], -32602);

    // Its key is free again, its content too: a store of it is a new item, and what is undone leaves it alone.
    let again = daemon.call(
        "knowledge.store",
        json!({"text": "note number 0", "agent": "ada", "id": of_ada[0]}),
    );
    assert_eq!(again["status"], "stored");
    let daemon = daemon.kill_and_restart();
    let undone = daemon.call("knowledge.undelete", json!({"undo_token": gone["undo_token"]}));
    assert_eq!(
        (&undone["restored"], &undone["missing"]),
        (&json!(2), &json!([of_ada[0]]))
    );
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 6);
    assert_eq!(undone["present"], json!([]));
    // A retry: what it has brought back is there, and what another item has the id of is not.
    let twice = daemon.call("knowledge.undelete", json!({"undo_token": gone["undo_token"]}));
    assert_eq!(twice["restored"], 0);
    assert_eq!(
        (&twice["present"], &twice["missing"]),
        (&undone["ids"], &json!([of_ada[0]]))
    );
    let daemon = daemon.kill_and_restart();
    let again = daemon.call("knowledge.undelete", json!({"undo_token": gone["undo_token"]}));
    assert_eq!(again["present"], undone["ids"]);

    // By id, as it was at last.
    daemon.call(
        "knowledge.update",
        json!({"id": of_ada[1], "text": "changed before it was deleted"}),
    );
    daemon.call("knowledge.delete", json!({"id": of_ada[1]}));
    for (field, other) in [("ids", "present"), ("present", "ids")] {
        let undone = daemon.call("knowledge.undelete", json!({"ids": [of_ada[1], "no-such"]}));
        assert_eq!(
            (&undone[field], &undone[other], &undone["missing"]),
            (&json!([of_ada[1]]), &json!([]), &json!(["no-such"]))
        );
    }
    assert_eq!(
        daemon.call("knowledge.get", json!({"id": of_ada[1]}))["text"],
        "changed before it was deleted"
    );
    for (params, code) in [
        (json!({"undo_token": "zz"}), -32602),
        (json!({"undo_token": gone["undo_token"], "project_id": "other"}), -32602),
        (json!({}), -32602),
    ] {
        assert_eq!(
            daemon.call_error("knowledge.undelete", params.clone())["code"],
            code,
            "{params}"
        );
    }
    // A project does not come to be by a delete.
    daemon.call("knowledge.delete", json!({"id": "x", "project_id": "nowhere"}));
    assert_eq!(
        daemon.call("knowledge.projects", json!({}))["projects"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
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

    // Of what was purged a replay tells that it was, and nothing else.
    let mut replay = daemon.connect();
    replay.call("knowledge.subscribe", json!({"cursor": begun["cursor"]}));
    let change = replay.receive().unwrap()["params"]["result"].clone();
    assert_eq!((&change["op"], &change["id"]), (&json!("purge"), &json!(id)));
}

#[test]
fn an_undo_token_undoes_its_own_delete_and_no_other_that_came_with_it() {
    const DELETES: usize = 32;
    let daemon = Daemon::start();
    let stored: Vec<String> = (0..DELETES)
        .map(|number| daemon.store(&format!("note {number}")))
        .collect();
    // Pipelined on one connection, so that they wait for each other's commits together.
    let mut connection = daemon.connect();
    let requests: String = stored
        .iter()
        .enumerate()
        .map(|(number, id)| {
            let request = json!({"jsonrpc": "2.0", "id": number, "method": "knowledge.delete", "params": {"id": id}});
            format!("{request}\n")
        })
        .collect();
    connection.send(requests);
    let mut tokens = vec![Value::Null; DELETES];
    let mut versions = BTreeSet::new();
    for _ in 0..DELETES {
        let answer = connection.receive().unwrap();
        tokens[answer["id"].as_u64().unwrap() as usize] = answer["result"]["undo_token"].clone();
        versions.insert(answer["result"]["version"].as_u64().unwrap());
    }
    assert!(versions.len() < DELETES, "none shared a commit");
    let undone = daemon.call("knowledge.undelete", json!({"undo_token": tokens[3]}));
    assert_eq!((&undone["restored"], &undone["ids"]), (&json!(1), &json!([stored[3]])));
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 1);
}

#[test]
fn a_purge_leaves_no_byte_of_the_text_on_disk() {
    let daemon = Daemon::start();
    let knowledge = daemon.home.path().join("knowledge");
    let secret = "xqzzyv7731";
    let item = daemon.call(
        "knowledge.store",
        json!({"text": format!("the passphrase is {secret} and nobody may know"), "agent": secret,
               "metadata": {"note": format!("also {secret}")}}),
    );
    let id = item["id"].as_str().unwrap();
    let other = daemon.store("A neighbour that stays, about lighthouses.");
    // Into an old revision, into the keyword index, into several versions.
    daemon.call(
        "knowledge.update",
        json!({"id": id, "text": "harmless now", "agent": "x", "metadata": {}}),
    );
    for number in 0..20 {
        daemon.store(&format!("filler {number}"));
    }
    daemon.call("admin.optimize", json!({"project_id": "default"}));
    assert!(
        !files_with(&knowledge, secret.as_bytes()).is_empty(),
        "the search of the files finds it before"
    );

    assert_eq!(
        daemon.call_error("knowledge.purge", json!({"id": id}))["data"]["parameter"],
        "confirm"
    );
    let purged = daemon.call("knowledge.purge", json!({"ids": [id, "no-such"], "confirm": true}));
    assert_eq!((&purged["purged"], &purged["ids"]), (&json!(1), &json!([id])));
    assert_eq!(files_with(&knowledge, secret.as_bytes()), Vec::<String>::new());

    for method in ["knowledge.get", "knowledge.history"] {
        assert_eq!(daemon.call_error(method, json!({"id": id}))["code"], -32020);
    }
    assert_eq!(daemon.call("knowledge.undelete", json!({"ids": [id]}))["restored"], 0);
    assert!(daemon.search_ids(json!({"query": secret, "as_of": 1})).is_empty());
    assert_eq!(
        daemon.search_ids(json!({"query": "lighthouses", "mode": "text"})),
        [other.as_str()]
    );
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 21);
    // Asking again is harmless; the id can be used again.
    daemon.call("knowledge.purge", json!({"id": id, "confirm": true}));
    daemon.call("knowledge.store", json!({"id": id, "text": "a new life"}));
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["text"], "a new life");
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 22);
}

#[test]
fn what_is_no_longer_kept_is_forgotten_and_said_to_be() {
    let daemon = Daemon::start_in(Home::new(), &[("CCO_STORE__RETENTION_DAYS", "0")]);
    let beginning = daemon.call("knowledge.subscribe", json!({}))["cursor"].take();
    let id = daemon.store("a text with the word xqvforgotten in it");
    for number in 0..5 {
        daemon.call(
            "knowledge.update",
            json!({"id": id, "text": format!("revision {number}")}),
        );
    }
    let deleted = daemon.call("knowledge.delete", json!({"id": id}));
    let last = daemon.store("what stays");
    daemon.call("admin.optimize", json!({}));
    assert_eq!(
        files_with(&daemon.home.path().join("knowledge"), b"xqvforgotten"),
        Vec::<String>::new()
    );
    let error = daemon.call_error("knowledge.undelete", json!({"undo_token": deleted["undo_token"]}));
    assert_eq!(error["code"], -32028, "{error}");
    let error = daemon.call_error("knowledge.search", json!({"query": "xqvforgotten", "as_of": 1}));
    assert_eq!(error["code"], -32028, "{error}");
    let mut subscriber = daemon.connect();
    subscriber.call("knowledge.subscribe", json!({"cursor": beginning}));
    let change = subscriber.receive().unwrap()["params"]["result"].clone();
    assert_eq!((&change["op"], &change["resync"]), (&json!("lagged"), &json!(true)));

    // The numbers go on, also after a restart that finds no trace of the last ones.
    daemon.call("knowledge.delete", json!({"id": last}));
    daemon.call("admin.optimize", json!({}));
    let daemon = daemon.kill_and_restart();
    let stored = daemon.call("knowledge.store", json!({"text": "the next version"}));
    assert_eq!(stored["version"], 10);
}

#[test]
fn a_cleanup_counts_first_then_deletes_and_frees() {
    let daemon = Daemon::start();
    for number in 0..30 {
        daemon.store(&format!("entry {number}"));
    }
    let error = daemon.call_error("knowledge.cleanup", json!({"older_than_days": u32::MAX}));
    assert_eq!(error["data"]["parameter"], "older_than_days");
    let young = daemon.call("knowledge.cleanup", json!({}));
    assert_eq!(
        (&young["deleted"], &young["dry_run"], &young["freed_bytes"]),
        (&json!(0), &json!(true), &json!(0))
    );
    let dry = daemon.call("knowledge.cleanup", json!({"older_than_days": 0}));
    assert_eq!((&dry["deleted"], &dry["dry_run"]), (&json!(30), &json!(true)));
    assert!(dry["freed_bytes"].as_u64().unwrap() > 30 * 384 * 4);
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 30);

    let before = daemon.call("knowledge.stats", json!({}))["bytes_on_disk"]
        .as_u64()
        .unwrap();
    let done = daemon.call("knowledge.cleanup", json!({"older_than_days": 0, "dry_run": false}));
    assert_eq!((&done["deleted"], &done["dry_run"]), (&json!(30), &json!(false)));
    let after = daemon.call("knowledge.stats", json!({}))["bytes_on_disk"]
        .as_u64()
        .unwrap();
    assert!(after < before, "{before} before, {after} after");
    assert!(done["freed_bytes"].as_u64().unwrap() > 0);
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 0);
    let undone = daemon.call("knowledge.undelete", json!({"undo_token": done["undo_token"]}));
    assert_eq!(undone["restored"], 30);
    assert_eq!(
        daemon
            .search_ids(json!({"query": "entry 7", "limit": 100, "mode": "text"}))
            .len(),
        30
    );
}

#[test]
fn what_resembles_an_item_is_found_without_the_item() {
    let daemon = Daemon::start();
    let bread = daemon.store("Sourdough bread needs a starter and a long fermentation.");
    let cake = daemon.store("A cake rises with baking powder and is baked for forty minutes.");
    daemon.store("The kernel schedules threads by virtual runtime.");
    let found = daemon.call("knowledge.similar", json!({"id": bread, "limit": 1}));
    assert_eq!(ids(&found), [cake]);
    assert_eq!(found["mode"], "vector");
    assert_eq!(
        daemon.call_error("knowledge.similar", json!({"id": "no-such"}))["code"],
        -32020
    );
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
