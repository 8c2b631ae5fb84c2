//! A clock that is wrong for a while: what is deleted in good time can still be brought back.

use serde_json::json;

use crate::Inside;

/// LanceDB has no times before 1970. That is not damage, and ends with its cause.
#[test]
fn a_clock_before_1970_is_told_of_and_harms_nothing() {
    let mut daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "before the battery was empty"}));
    for restarted in [false, true] {
        fail::cfg("clock::days_ahead", "return(-40000)").unwrap();
        if restarted {
            assert!(daemon.shut_down());
            daemon.boot();
        }
        let error = daemon.call_error("knowledge.store", json!({"text": "in 1916"}));
        assert!(
            error["data"]["retryable"] == true && error["message"].to_string().contains("clock"),
            "{error}"
        );
        if restarted {
            let health = daemon.call("admin.health", json!({}));
            assert!(health["reasons"].to_string().contains("clock"), "{health}");
            let error = daemon.call_error("knowledge.list", json!({}));
            assert_eq!(error["data"]["retryable"], true, "{error}");
        }
        let status = daemon.call("admin.status", json!({}));
        assert!(!status.to_string().contains("no version"), "{status}");
        fail::remove("clock::days_ahead");
        daemon.call("knowledge.store", json!({"text": format!("set again, {restarted}")}));
        assert_eq!(daemon.count(), 2 + u64::from(restarted));
        let health = daemon.call("admin.health", json!({}));
        assert_eq!(health["status"], "ok", "{health}");
        assert!(!daemon.home.path().join("home/knowledge/default/set-aside").exists());
        assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
    }
}

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
