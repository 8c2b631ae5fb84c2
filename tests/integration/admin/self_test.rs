//! The self-test of the drop-in.

use serde_json::json;

use crate::rig::json_of;
use crate::support::Daemon;

#[test]
fn the_self_test_of_the_drop_in_leaves_nothing() {
    let daemon = Daemon::start();
    for _ in 0..2 {
        let report = json_of(daemon.home.run(&["km", "test"]));
        assert_eq!(
            (&report["success"], &report["status"]),
            (&json!(true), &json!("ok")),
            "{report}"
        );
        let projects = daemon.call("knowledge.projects", json!({}));
        assert_eq!(projects["projects"], json!([]));
    }
}
