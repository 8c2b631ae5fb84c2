//! What an error of a write says of its effect: whether it was carried out, and for a delete what undoes it.

use serde_json::{Value, json};

use crate::Inside;
use crate::lanes::{answer, begin, wait_for, wait_for_queue};

fn cancel(connection: &mut crate::support::Connection) {
    let cancel = json!({"jsonrpc": "2.0", "id": 2, "method": "rpc.cancel", "params": {"id": 1}});
    connection.send(format!("{cancel}\n"));
}

/// The three ways to delete item `id`, which is the only one of the agent "ada".
fn deletes(id: &Value) -> [(&'static str, Value); 3] {
    [
        ("knowledge.delete", json!({"id": id})),
        ("knowledge.delete", json!({"agent": "ada"})),
        (
            "knowledge.cleanup",
            json!({"older_than_days": 0, "dry_run": false, "agent": "ada"}),
        ),
    ]
}

fn store(daemon: &Inside) -> Value {
    daemon.call("knowledge.store", json!({"text": "to be deleted", "agent": "ada"}))["id"].clone()
}

fn undo(daemon: &Inside, error: &Value) {
    let token = error["data"]["undo_token"].as_str().expect("an undo token");
    assert!(error["data"]["fix"].as_str().unwrap().contains(token), "{error}");
    let undone = daemon.call("knowledge.undelete", json!({"undo_token": token}));
    assert_eq!(undone["restored"], 1, "{error}");
}

#[test]
fn a_delete_that_misses_its_deadline_in_its_commit_gives_its_undo_token() {
    let daemon = Inside::start();
    let id = store(&daemon);
    for (method, mut params) in deletes(&id) {
        params["timeout_ms"] = json!(3_000);
        fail::cfg("writer::hold_planned", "return").unwrap();
        let error = answer(&mut begin(&daemon, method, &params))["error"].clone();
        fail::remove("writer::hold_planned");
        assert_eq!(
            (&error["code"], &error["data"]["executed"]),
            (&json!(-32050), &json!("unknown")),
            "{method}: {error}"
        );
        wait_for("the deletion", || daemon.count() == 0);
        undo(&daemon, &error);
        assert_eq!(daemon.count(), 1);
    }
}

/// Whenever the cancellation comes: what the error says is so.
#[test]
fn a_delete_that_is_cancelled_happens_with_its_undo_token_or_not_at_all() {
    let daemon = Inside::start();
    let id = store(&daemon);
    for (method, params) in deletes(&id) {
        for point in ["writer::hold_commit", "writer::hold_planned"] {
            fail::cfg(point, "return").unwrap();
            let mut connection = begin(&daemon, method, &params);
            wait_for_queue(&daemon, 1, 0);
            cancel(&mut connection);
            let error = answer(&mut connection)["error"].clone();
            fail::remove(point);
            assert_eq!(error["code"], -32027, "{error}");
            // What comes after it in the lane.
            daemon.call("knowledge.store", json!({"text": format!("behind {method} {point}")}));
            let there = daemon.connect().request("knowledge.get", json!({"id": id}));
            let is_there = there.get("result").is_some();
            match &error["data"]["executed"] {
                Value::Bool(false) => assert!(is_there && error["data"].get("undo_token").is_none(), "{error}"),
                _ => {
                    assert!(point == "writer::hold_planned" && !is_there, "{error}");
                    undo(&daemon, &error);
                }
            }
            let everybody = json!({"ids": [id]});
            assert_eq!(daemon.call("knowledge.get", everybody)["missing"], json!([]));
        }
    }
}

#[test]
fn a_delete_whose_time_is_up_before_its_turn_is_not_carried_out() {
    let daemon = Inside::start();
    let id = store(&daemon);
    for (method, mut params) in deletes(&id) {
        params["timeout_ms"] = json!(1_000);
        fail::cfg("writer::hold_commit", "return").unwrap();
        let error = answer(&mut begin(&daemon, method, &params))["error"].clone();
        fail::remove("writer::hold_commit");
        assert_eq!(
            (
                &error["code"],
                &error["data"]["executed"],
                error["data"].get("undo_token")
            ),
            (&json!(-32050), &json!(false), None),
            "{method}: {error}"
        );
        daemon.call("knowledge.store", json!({"text": format!("behind {params}")}));
        assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["id"], id, "{method}");
    }
}

#[test]
fn a_delete_whose_outcome_is_lost_gives_its_undo_token() {
    let daemon = Inside::start();
    let id = store(&daemon);
    for (method, params) in deletes(&id) {
        fail::cfg("writer::after_commit", "1*panic(injected)").unwrap();
        let error = answer(&mut begin(&daemon, method, &params))["error"].clone();
        assert_eq!(
            (&error["code"], &error["data"]["executed"]),
            (&json!(-32052), &json!("unknown")),
            "{method}: {error}"
        );
        wait_for("the project's next turn", || daemon.count() == 0);
        let token = json!({"undo_token": error["data"]["undo_token"]});
        assert_eq!(
            daemon.call_retrying("knowledge.undelete", &token)["restored"],
            1,
            "{error}"
        );
    }
}

#[test]
fn a_commit_that_fails_before_its_version_is_out_says_that_nothing_was_done_and_reads_go_on() {
    let daemon = Inside::start();
    let id = store(&daemon);
    let gone = daemon.call("knowledge.store", json!({"text": "deleted before"}))["id"].clone();
    let token = daemon.call("knowledge.delete", json!({"id": gone}))["undo_token"].clone();
    let [(_, by_id), (_, by_filter), (cleanup, by_age)] = deletes(&id);
    let writes = [
        ("knowledge.store", json!({"text": "not stored"})),
        ("knowledge.update", json!({"id": id, "text": "not changed"})),
        ("knowledge.delete", by_id),
        ("knowledge.delete", by_filter),
        (cleanup, by_age),
        ("knowledge.undelete", json!({"undo_token": token})),
        ("knowledge.undelete", json!({"ids": [gone]})),
        ("knowledge.purge", json!({"id": id, "confirm": true})),
    ];
    for opens in [true, false] {
        for (method, params) in &writes {
            // Before the manifest is out: nothing has moved, so nobody needs to open the table to know that.
            fail::cfg("commit::before", "return").unwrap();
            if !opens {
                fail::cfg("store::open", "return").unwrap();
            }
            let error = answer(&mut begin(&daemon, method, params))["error"].clone();
            // Whoever reads goes on with the version that there is.
            let kept = daemon.call("knowledge.get", json!({"id": id}));
            assert_eq!(kept["text"], "to be deleted", "{method}");
            assert_eq!(daemon.count(), 1, "{method}");
            fail::remove("commit::before");
            fail::remove("store::open");
            assert_eq!(error["code"], -32603, "{method}: {error}");
            assert_eq!(error["data"]["executed"], false, "{method}: {error}");
            assert!(error["data"].get("undo_token").is_none(), "{method}: {error}");
        }
    }
    assert_eq!(
        daemon.call("knowledge.undelete", json!({"undo_token": token}))["restored"],
        1
    );
}
