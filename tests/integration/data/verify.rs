//! `admin.verify` of sound data: which projects it covers, how it ends and what it reports meanwhile.

use serde_json::{Value, json};

use crate::damage::home::Stored;
use crate::support::{Connection, Daemon};

#[test]
fn verify_takes_one_project_or_all_and_only_those_that_exist() {
    let stored = Stored::new();
    stored
        .daemon
        .call("knowledge.store", json!({"text": "elsewhere", "project_id": "other"}));
    assert_eq!(stored.verify()["projects"], json!(["default", "other"]));
    let one = stored.daemon.call("admin.verify", json!({"project_id": "other"}));
    assert_eq!((&one["projects"], &one["rows"]), (&json!(["other"]), &json!(1)));
    // "All is well" would be the answer to a misspelled name.
    let error = stored
        .daemon
        .call_error("admin.verify", json!({"project_id": "nowhere"}));
    assert_eq!(error["code"], -32020, "{error}");
    assert!(!stored.daemon.home.path().join("knowledge/nowhere").exists());
}

#[test]
fn verify_ends_when_it_is_cancelled_and_tells_its_progress() {
    let daemon = Daemon::start();
    let items: Vec<Value> = (0..600)
        .map(|number| json!({"text": format!("number {number} of many")}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    let mut connection = Connection::open(&daemon.home.socket());
    connection.send(format!(
        "{}\n",
        json!({"jsonrpc": "2.0", "id": 7, "method": "admin.verify"})
    ));
    let mut progress = 0;
    let answer = loop {
        let line = connection.receive().unwrap();
        if line["method"] == "rpc.progress" {
            assert_eq!(
                (&line["params"]["request_id"], &line["params"]["total"]),
                (&json!(7), &json!(600)),
                "{line}"
            );
            progress += 1;
        } else {
            break line;
        }
    };
    assert!(progress > 0);
    assert_eq!(
        (&answer["result"]["ok"], &answer["result"]["rows"]),
        (&json!(true), &json!(600)),
        "{answer}"
    );
    let late = daemon.call_error("admin.verify", json!({"timeout_ms": 1}));
    assert_eq!(late["data"]["kind"], "deadline_exceeded", "{late}");
    // One runs at a time, and the late one may not have noticed yet.
    let begun = std::time::Instant::now();
    loop {
        let answer = daemon.connect().request("admin.verify", json!({}));
        if answer["result"]["ok"] == true {
            break;
        }
        assert_eq!(answer["error"]["data"]["kind"], "busy", "{answer}");
        assert!(begun.elapsed() < crate::support::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
