//! An item is deleted, brought back, cleaned up, forgotten or purged.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Daemon, Home, files_with};

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
    // Deleting what is not there deletes nothing; that is not an error and makes no version.
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
