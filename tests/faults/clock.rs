//! A clock that is wrong for a while: what is deleted in good time can still be brought back.

use serde_json::json;

use crate::Inside;

#[test]
fn a_clock_that_is_years_ahead_for_a_while_costs_no_history() {
    let mut daemon = Inside::start();
    let id = daemon.call("knowledge.store", json!({"text": "first words"}))["id"].clone();
    daemon.call("knowledge.update", json!({"id": id, "text": "other words"}));
    let deleted = daemon.call("knowledge.delete", json!({"id": id}));
    // While the daemon runs, and at a start.
    for restarted in [false, true] {
        fail::cfg("clock::days_ahead", "return(400)").unwrap();
        if restarted {
            assert!(daemon.shut_down());
            daemon.boot();
        }
        // Both forget what has expired.
        daemon.call("admin.optimize", json!({}));
        daemon.call(
            "knowledge.cleanup",
            json!({"older_than_days": 36_500, "dry_run": false}),
        );
        let undone = daemon.call("knowledge.undelete", json!({"undo_token": deleted["undo_token"]}));
        assert_eq!(
            undone["restored"],
            u64::from(!restarted),
            "restarted: {restarted}: {undone}"
        );
        fail::remove("clock::days_ahead");
        let revisions = daemon.call("knowledge.history", json!({"id": id}))["revisions"].clone();
        assert_eq!(revisions.as_array().unwrap().len(), 3, "{revisions}");
    }
    // What is really expired goes: the clock has stood for long enough.
    fail::cfg("writer::hasten", "return").unwrap();
    fail::cfg("clock::days_ahead", "return(400)").unwrap();
    let begun = std::time::Instant::now();
    loop {
        let revisions = daemon.call("knowledge.history", json!({"id": id}))["revisions"].clone();
        if revisions.as_array().unwrap().len() == 1 {
            break;
        }
        assert!(begun.elapsed() < crate::support::PATIENCE, "{revisions}");
        std::thread::sleep(std::time::Duration::from_millis(20));
        daemon.call("admin.optimize", json!({}));
    }
}
