//! A delete by filter that is cut into several commits, and what ends it between two of them.

use ccod_actors::store::table::schema::TABLE_NAME;
use serde_json::{Value, json};

use crate::Inside;
use crate::lanes::{answer, begin, wait_for, wait_for_queue};

/// Items of "ada": three commits of four rows each.
const ITEMS: u64 = 12;

/// A daemon with these items and one more.
fn filled() -> Inside {
    let daemon = Inside::start_with(|config| config.writer.max_group_rows = 1);
    let items: Vec<Value> = (0..ITEMS)
        .map(|number| json!({"id": format!("ada-{number}"), "text": format!("number {number}"), "agent": "ada"}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    daemon.call("knowledge.store", json!({"text": "to stay"}));
    assert_eq!(daemon.count(), ITEMS + 1);
    wait_for_queue(&daemon, 0, 0);
    daemon
}

fn delete(daemon: &Inside) -> Value {
    answer(&mut begin(daemon, "knowledge.delete", &json!({"agent": "ada"})))
}

fn restored(daemon: &Inside, token: &Value) -> Value {
    assert!(token.is_string(), "{token}");
    daemon.call("knowledge.undelete", json!({"undo_token": token}))["restored"].clone()
}

#[test]
fn a_delete_that_fails_between_its_commits_says_so_and_each_token_undoes_what_its_call_has_done() {
    let daemon = filled();
    for (point, done) in [("writer::between_parts", 8), ("commit::before", 4)] {
        // After two of its commits; in the second one.
        let calls = if point == "commit::before" {
            "1*off->return"
        } else {
            "1*off->1*return"
        };
        wait_for_queue(&daemon, 0, 0);
        fail::cfg(point, calls).unwrap();
        let failed = delete(&daemon)["error"].clone();
        fail::remove(point);
        assert_eq!(
            (&failed["code"], &failed["data"]["executed"]),
            (&json!(-32603), &json!("unknown")),
            "{point}: {failed}"
        );
        assert!(failed["message"].as_str().unwrap().contains("a part of it"), "{failed}");
        assert_eq!(daemon.count(), ITEMS + 1 - done, "{point}");
        let rest = delete(&daemon)["result"].clone();
        assert_eq!(rest["deleted"], ITEMS - done, "{point}: {rest}");
        assert_eq!(daemon.count(), 1);
        assert_eq!(restored(&daemon, &failed["data"]["undo_token"]), done, "{point}");
        assert_eq!(restored(&daemon, &rest["undo_token"]), ITEMS - done, "{point}");
        assert_eq!(daemon.count(), ITEMS + 1);
    }
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

#[test]
fn readers_see_all_commits_of_a_delete_at_once_and_it_ends_without_its_caller() {
    let daemon = filled();
    let table = daemon
        .home
        .path()
        .join(format!("home/knowledge/default/{TABLE_NAME}.lance"));
    let versions = || std::fs::read_dir(table.join("_versions")).unwrap().count();
    fail::cfg("writer::hold_between_parts", "1*off->return").unwrap();
    let before = versions();
    let mut connection = begin(&daemon, "knowledge.delete", &json!({"agent": "ada"}));
    wait_for("two commits", || versions() == before + 2);
    assert_eq!(daemon.count(), ITEMS + 1, "nothing is published yet");
    let listed = daemon.call("knowledge.list", json!({"agent": "ada"}));
    assert_eq!(listed["total"], ITEMS);
    let cancel = json!({"jsonrpc": "2.0", "id": 2, "method": "rpc.cancel", "params": {"id": 1}});
    connection.send(format!("{cancel}\n"));
    let error = answer(&mut connection)["error"].clone();
    assert_eq!(
        (&error["code"], &error["data"]["executed"]),
        (&json!(-32027), &json!("unknown")),
        "{error}"
    );
    assert_eq!(daemon.count(), ITEMS + 1);
    fail::remove("writer::hold_between_parts");
    wait_for("the deletion", || daemon.count() != ITEMS + 1);
    assert_eq!(daemon.count(), 1, "all at once");
    assert_eq!(restored(&daemon, &error["data"]["undo_token"]), ITEMS);
}

#[test]
fn a_panic_between_two_commits_of_a_delete_loses_no_token() {
    let daemon = filled();
    fail::cfg("writer::between_parts", "1*off->1*panic(injected)").unwrap();
    let error = delete(&daemon)["error"].clone();
    assert_eq!(
        (&error["code"], &error["data"]["executed"]),
        (&json!(-32052), &json!("unknown")),
        "{error}"
    );
    wait_for("the project's next turn", || daemon.count() == ITEMS + 1 - 8);
    let token = json!({"undo_token": error["data"]["undo_token"]});
    assert_eq!(daemon.call_retrying("knowledge.undelete", &token)["restored"], 8);
    assert_eq!(daemon.count(), ITEMS + 1);
}

#[test]
fn an_undo_that_fails_between_its_commits_is_finished_by_the_next() {
    let daemon = filled();
    let token = json!({"undo_token": delete(&daemon)["result"]["undo_token"]});
    fail::cfg("writer::between_parts", "1*off->1*return").unwrap();
    let failed = answer(&mut begin(&daemon, "knowledge.undelete", &token))["error"].clone();
    fail::remove("writer::between_parts");
    assert_eq!(failed["data"]["executed"], "unknown", "{failed}");
    assert_eq!(daemon.count(), 1 + 8);
    let rest = daemon.call("knowledge.undelete", token);
    assert_eq!(rest["restored"], ITEMS - 8, "{rest}");
    assert_eq!(rest["present"].as_array().unwrap().len(), 8, "{rest}");
    assert_eq!(daemon.count(), ITEMS + 1);
}

/// A cleanup deletes in the same way, and its other work comes after.
#[test]
fn a_cleanup_in_several_commits_is_undone_by_one_token() {
    let daemon = filled();
    let cleanup = json!({"older_than_days": 0, "dry_run": false, "agent": "ada"});
    let cleaned = daemon.call("knowledge.cleanup", cleanup);
    assert_eq!(cleaned["deleted"], ITEMS, "{cleaned}");
    assert_eq!(daemon.count(), 1);
    assert_eq!(restored(&daemon, &cleaned["undo_token"]), ITEMS);
}
