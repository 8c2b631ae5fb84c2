//! The calls for data as a whole, which may report progress, and what they leave.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Connection, Daemon, modes};

/// A call that may report progress before it answers: the reports, and the answer.
pub(super) fn long_request(connection: &mut Connection, method: &str, params: &Value) -> (Vec<Value>, Value) {
    let request = json!({"jsonrpc": "2.0", "id": "long", "method": method, "params": params});
    connection.send(format!("{request}\n"));
    let mut told = Vec::new();
    loop {
        let mut line = connection.receive().expect("an answer");
        if line.get("id").is_some() {
            assert_eq!(line["id"], "long", "{line}");
            return (told, line);
        }
        assert_eq!(line["method"], "rpc.progress", "{line}");
        told.push(line["params"].take());
    }
}

pub(super) fn long_call(daemon: &Daemon, method: &str, params: Value) -> Value {
    let (told, mut response) = long_request(&mut daemon.connect(), method, &params);
    assert!(response.get("error").is_none(), "{method}: {response:#}");
    let mut before = BTreeMap::new();
    for progress in told {
        assert_eq!(progress["request_id"], "long", "{progress}");
        let number = |name: &str| progress[name].as_u64().unwrap_or_else(|| panic!("{progress}"));
        assert!(number("done") <= number("total"), "{progress}");
        let stage = progress["message"].as_str().unwrap().to_owned();
        let last = before.insert(stage, number("done")).unwrap_or(0);
        assert!(last <= number("done"), "progress goes forward: {progress}");
    }
    response["result"].take()
}

pub(super) fn long_error(daemon: &Daemon, method: &str, params: Value) -> Value {
    let (_, mut response) = long_request(&mut daemon.connect(), method, &params);
    assert!(response.get("result").is_none(), "{method}: {response:#}");
    response["error"].take()
}

pub(super) fn refused_path(daemon: &Daemon, method: &str, path: &Path) -> String {
    let error = long_error(daemon, method, json!({"path": path}));
    assert_eq!(
        (&error["code"], &error["data"]["parameter"]),
        (&json!(-32602), &json!("path")),
        "{method} {}: {error}",
        path.display()
    );
    error["message"].as_str().unwrap().to_owned()
}

pub(super) fn back_up(daemon: &Daemon, path: &Path) -> Value {
    long_call(daemon, "admin.backup", json!({"path": path}))
}

/// All items of a project as they are listed, oldest first.
pub(super) fn items(daemon: &Daemon, project: &str) -> Vec<Value> {
    let listed = daemon.call(
        "knowledge.list",
        json!({"project_id": project, "order": "oldest", "limit": 1000}),
    );
    assert!(listed["next_cursor"].is_null(), "more than one page");
    listed["results"].as_array().unwrap().clone()
}

pub(super) fn texts(daemon: &Daemon, project: &str) -> BTreeSet<String> {
    items(daemon, project)
        .iter()
        .map(|item| item["text"].as_str().unwrap().to_owned())
        .collect()
}

pub(super) fn names(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect()
}

pub(super) fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(super) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = modes(directory)
        .into_iter()
        .filter(|(_, is_directory, _)| !is_directory)
        .map(|(path, _, _)| path)
        .collect();
    files.sort();
    files
}

pub(super) fn store_in(daemon: &Daemon, project: &str, item: Value) -> Value {
    let mut item = item;
    item["project_id"] = json!(project);
    daemon.call("knowledge.store", item)
}
