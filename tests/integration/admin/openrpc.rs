//! The daemon describes what it can do, and does what it describes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::Daemon;

#[test]
fn every_method_of_the_openrpc_document_answers_and_every_method_is_in_it() {
    let daemon = Daemon::start();
    let document = daemon.call("rpc.discover", json!({}));
    assert!(document["openrpc"].as_str().unwrap().starts_with("1."));
    let described: BTreeSet<String> = document["methods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|method| method["name"].as_str().unwrap().to_owned())
        .collect();
    let version = daemon.call("rpc.version", json!({}));
    let served: BTreeSet<String> = version["capabilities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    let cancel = BTreeSet::from(["rpc.cancel".to_owned()]);
    assert_eq!(described, served.union(&cancel).cloned().collect());
    for name in described.iter().filter(|name| *name != "admin.shutdown") {
        let response = daemon.connect().request(name, json!({}));
        assert_ne!(response["error"]["code"], -32601, "{name} is described and not served");
    }
    for method in document["methods"].as_array().unwrap() {
        assert!(
            method["summary"].as_str().is_some_and(|text| !text.is_empty()),
            "{method}"
        );
        assert!(method["params"].is_array() && method["result"].is_object(), "{method}");
    }
}

#[test]
fn version_names_the_limits_and_both_sides_versions_can_be_compared() {
    let daemon = Daemon::start();
    let version = daemon.call("rpc.version", json!({}));
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["api"], "1");
    for limit in [
        "max_connections",
        "max_message_bytes",
        "max_response_bytes",
        "max_batch_requests",
        "max_depth",
        "max_text_bytes",
    ] {
        assert!(version["limits"][limit].as_u64().is_some(), "{limit}: {version}");
    }
    assert_eq!(version["limits"]["max_message_bytes"], 16 * 1024 * 1024);
    assert_eq!(version["limits"]["rate_limit_per_second"], Value::Null);
}
