//! The configuration of a table says where commit numbers and the history go on. A value that cannot be
//! read is not taken for the first one.

use std::path::Path;

use ccod_actors::store::table::schema::TABLE_NAME;
use serde_json::{Value, json};

use crate::support::{Daemon, Home};

fn configure(home: &Home, entries: &[(&str, Option<&str>)]) {
    let table = home.path().join(format!("knowledge/default/{TABLE_NAME}.lance"));
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut dataset = ccod_actors::lance::Dataset::open(table.to_str().unwrap())
            .await
            .unwrap();
        let entries = entries.iter().map(|(key, value)| (*key, *value));
        dataset.update_config(entries).await.unwrap();
    });
}

fn stop(mut daemon: Daemon) -> Home {
    daemon.call("admin.shutdown", json!({}));
    daemon.wait();
    daemon.into_home()
}

fn flaws(verified: &Value) -> String {
    verified["findings"].to_string()
}

#[test]
fn a_project_whose_numbering_is_damaged_is_read_and_not_written() {
    let daemon = Daemon::start();
    let id = daemon.store("Invoices are archived after ninety days");
    let last = daemon.call("knowledge.update", json!({"id": id, "type": "decision"}))["version"]
        .as_u64()
        .unwrap();
    let other = json!({"project_id": "other", "text": "A project beside it"});
    daemon.call("knowledge.store", other.clone());
    let mut home = stop(daemon);
    for entries in [
        [("ccod.last_sequence", Some("7x")), ("ccod.horizon_ms", None)],
        [("ccod.last_sequence", None), ("ccod.horizon_ms", Some("1795362864593"))],
    ] {
        configure(&home, &entries);
        let daemon = Daemon::start_in(home, &[]);
        // Reads go on.
        assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["type"], "decision");
        assert_eq!(daemon.call("knowledge.list", json!({}))["total"], 1);
        let found = daemon.call("knowledge.search", json!({"query": "archived invoices"}));
        assert_eq!(
            (&found["mode"], &found["count"]),
            (&json!("hybrid"), &json!(1)),
            "{found}"
        );
        assert!(found["degraded"].as_str().unwrap().contains("configuration"), "{found}");
        let history = daemon.call("knowledge.history", json!({"id": id}));
        assert_eq!(history["revisions"].as_array().unwrap().len(), 2);
        // Writes are refused, and say that nothing was done.
        for (method, params) in [
            ("knowledge.store", json!({"text": "Would get a number twice"})),
            ("knowledge.update", json!({"id": id, "type": "issue"})),
            ("knowledge.delete", json!({"id": id})),
            ("knowledge.purge", json!({"id": id, "confirm": true})),
        ] {
            let error = daemon.call_error(method, params);
            assert_eq!(
                (&error["code"], &error["data"]["executed"]),
                (&json!(-32603), &json!(false)),
                "{method}: {error}"
            );
            let told = error["message"].as_str().unwrap();
            assert!(told.contains("ccod.") && told.contains("restore"), "{method}: {told}");
            assert!(error["data"].get("undo_token").is_none(), "{error}");
        }
        assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["type"], "decision");
        // It is said, and the others notice nothing.
        let health = daemon.call("admin.health", json!({}));
        assert_eq!(health["status"], "degraded");
        assert!(health["reasons"].to_string().contains("project default"), "{health}");
        let verified = daemon.call("admin.verify", json!({"project_id": "default"}));
        assert_eq!(verified["ok"], false);
        assert!(flaws(&verified).contains("ccod."), "{verified}");
        daemon.call("knowledge.store", other.clone());
        home = stop(daemon);
    }
    // Put right, it goes on behind what was there.
    configure(&home, &[("ccod.last_sequence", Some("40")), ("ccod.horizon_ms", None)]);
    let daemon = Daemon::start_in(home, &[]);
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    let stored = daemon.call("knowledge.store", json!({"text": "Goes on"}));
    assert!(last < 40 && stored["version"] == 41, "{stored}");
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

fn cut(path: &Path) {
    let length = std::fs::metadata(path).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(length / 2).unwrap();
}

/// A backup that lacks a project is made, and is not a success for a script.
#[test]
fn a_backup_without_one_of_the_projects_exits_65() {
    let daemon = Daemon::start();
    for project in ["sound", "damaged"] {
        daemon.call(
            "knowledge.store",
            json!({"project_id": project, "text": "Something to keep"}),
        );
    }
    let place = tempfile::tempdir().unwrap();
    let backup = |name: &str| {
        let path = place.path().join(name);
        let output = daemon.home.run(&["--json", "backup", path.to_str().unwrap()]);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), told)
    };
    let (code, told) = backup("whole");
    assert_eq!(
        (code, &told["projects"]),
        (Some(0), &json!(["damaged", "sound"])),
        "{told}"
    );
    let data = daemon
        .home
        .path()
        .join(format!("knowledge/damaged/{TABLE_NAME}.lance/data"));
    for file in std::fs::read_dir(data).unwrap() {
        cut(&file.unwrap().path());
    }
    let (code, told) = backup("in part");
    assert_eq!((code, &told["projects"]), (Some(65), &json!(["sound"])), "{told}");
    assert!(told["warnings"][0].as_str().unwrap().contains("damaged"), "{told}");
}
