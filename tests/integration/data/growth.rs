//! Tables of other versions of the schema: `tests/data/schema-1.0` was written by the last ccod before the schema
//! could grow. Its project `notes` has stores by id and key, a text of several passages, an update of each kind, a
//! deletion, an upkeep, and commits after it.

use std::path::{Path, PathBuf};

use ccod_actors::lance::Dataset;
use ccod_actors::lance::dataset::NewColumnTransform;
use ccod_actors::store::table::rows::RowReader;
use serde_json::{Value, json};

use crate::support::{Daemon, Home, copy_tree, ids};

const PROJECT: &str = "notes";
/// What the schema of the fixture has no columns for.
const ADDED: [&str; 2] = ["key_hash", "opened_at"];

/// A home with the fixture's project.
fn old_home() -> Home {
    let home = Home::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/schema-1.0");
    copy_tree(&fixture, &home.path().join("knowledge").join(PROJECT));
    home
}

/// The fixture's closed rows grow old, and are to be kept.
const SETTINGS: [(&str, &str); 1] = [("CCO_STORE__RETENTION_DAYS", "36500")];

fn start(home: Home) -> Daemon {
    Daemon::start_in(home, &SETTINGS)
}

fn table(home: &Home) -> PathBuf {
    home.path()
        .join("knowledge")
        .join(PROJECT)
        .join("orchestra_knowledge.lance")
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

fn open(home: &Home) -> Dataset {
    wait(Dataset::open(table(home).to_str().unwrap())).unwrap()
}

/// The version of the table's schema, and which of the added columns it has.
fn schema(home: &Home) -> (String, Vec<&'static str>) {
    let dataset = open(home);
    let has = ADDED.into_iter().filter(|name| dataset.schema().field(name).is_some());
    let version = dataset.schema().metadata["ccod.schema_version"].clone();
    (version, has.collect())
}

fn assert_old(home: &Home) {
    assert_eq!(schema(home), ("1".to_owned(), Vec::new()));
}

fn assert_grown(home: &Home) {
    assert_eq!(schema(home), ("1.1".to_owned(), ADDED.to_vec()));
}

/// Calls that only read, with what they must find in the fixture.
fn assert_readable(daemon: &Daemon) {
    let call = |method: &str, mut params: Value| {
        params["project_id"] = json!(PROJECT);
        daemon.call(method, params)
    };
    for mode in ["hybrid", "text", "vector"] {
        for (query, id) in [("a violin in perfect fifths", "violin"), ("glacier ninety", "long")] {
            let found = call("knowledge.search", json!({"query": query, "mode": mode, "limit": 1}));
            assert_eq!(ids(&found), [id], "{mode}: {found}");
        }
    }
    let listed = call("knowledge.list", json!({}));
    assert_eq!(listed["total"], 5, "{listed}");
    let filtered = call("knowledge.list", json!({"metadata": {"bird": "penguin"}}));
    assert_eq!(ids(&filtered), ["penguins"]);
    let history = call("knowledge.history", json!({"id": "violin"}));
    assert_eq!(history["revisions"].as_array().unwrap().len(), 2, "{history}");
    // How things were at a commit, and at a time: before the update of the violin.
    let first = &history["revisions"][1];
    for as_of in [first["valid_from"].clone(), first["updated_at"].clone()] {
        let then = json!({"query": "violin", "as_of": as_of, "limit": 1});
        assert_eq!(
            call("knowledge.search", then)["results"][0]["text"],
            first["text"],
            "{as_of}"
        );
    }
    assert_eq!(call("knowledge.stats", json!({}))["total"], 5);
    let gone = daemon.call_error("knowledge.get", json!({"id": "gone", "project_id": PROJECT}));
    assert_eq!(gone["code"], -32020);
    let projects = daemon.call("knowledge.projects", json!({}));
    let notes = projects["projects"]
        .as_array()
        .unwrap()
        .iter()
        .find(|project| project["project_id"] == PROJECT);
    assert!(notes.is_some_and(|notes| notes["state"].is_null()), "{projects}");
    let verified = daemon.call("admin.verify", json!({"project_id": PROJECT}));
    assert_eq!(verified["ok"], true, "{verified}");
    // Repeated stores write nothing: the first answers again.
    for (key, text) in [
        ("key-penguins", "Penguins huddle against the wind"),
        ("key-plain", "Bread rises in the cold"),
    ] {
        let again = call("knowledge.store", json!({"text": text, "idempotency_key": key}));
        assert_eq!(again["status"], "duplicate", "{again}");
    }
}

#[test]
fn a_table_of_an_older_minor_version_is_read_and_not_changed_by_it() {
    let daemon = start(old_home());
    assert_old(&daemon.home);
    let before = open(&daemon.home).version().version;
    assert_readable(&daemon);
    assert_old(&daemon.home);
    assert_eq!(open(&daemon.home).version().version, before, "reading makes no version");
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    let daemon = daemon.kill_and_restart_with(&SETTINGS);
    assert_readable(&daemon);
    assert_eq!(open(&daemon.home).version().version, before);
}

#[test]
fn the_first_write_gives_a_table_its_new_columns() {
    // Each as the first write to the old table.
    let writes = [
        (
            "knowledge.store",
            json!({"text": "something new", "idempotency_key": "key-new"}),
        ),
        (
            "knowledge.update",
            json!({"id": "penguins", "metadata": {"bird": "emperor"}}),
        ),
        ("knowledge.update", json!({"id": "long", "text": "short now"})),
        ("knowledge.delete", json!({"id": "long"})),
        ("knowledge.undelete", json!({"ids": ["gone"]})),
        ("knowledge.purge", json!({"id": "violin", "confirm": true})),
    ];
    for (method, mut params) in writes {
        let daemon = start(old_home());
        // Opened, and held by those who look at the old version meanwhile.
        let mut feed = daemon.connect();
        feed.call("knowledge.subscribe", json!({"project_id": PROJECT}));
        params["project_id"] = json!(PROJECT);
        daemon.call(method, params);
        assert_grown(&daemon.home);
        assert_ne!(feed.receive().unwrap()["params"]["result"]["op"], "lagged");
        let check = |daemon: &Daemon| {
            let verified = daemon.call("admin.verify", json!({"project_id": PROJECT}));
            assert_eq!(verified["ok"], true, "{method}: {verified}");
            let found = daemon.search_ids(json!({"query": "rises in the cold", "project_id": PROJECT, "limit": 1}));
            assert_eq!(found, ["plain"], "{method}");
        };
        check(&daemon);
        daemon.call("admin.optimize", json!({"project_id": PROJECT}));
        check(&daemon);
        let daemon = daemon.kill_and_restart_with(&SETTINGS);
        check(&daemon);
        assert_grown(&daemon.home);
        assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    }
}

#[test]
fn the_keys_of_old_rows_hold_after_the_table_has_grown() {
    let daemon = start(old_home());
    let call = |method: &str, mut params: Value| {
        params["project_id"] = json!(PROJECT);
        daemon.call(method, params)
    };
    call("knowledge.update", json!({"id": "plain", "type": "pattern"}));
    let retry = |key: &str, text: &str| {
        let retried = json!({"text": text, "idempotency_key": key, "type": "general", "project_id": PROJECT});
        daemon.connect().request("knowledge.store", retried)
    };
    let penguins = retry("key-penguins", "Penguins huddle against the wind");
    assert_eq!(penguins["result"]["status"], "duplicate", "{penguins}");
    let other = retry("key-penguins", "Something else under the same key");
    assert_eq!(other["error"]["code"], -32602, "{other}");
    let undeleted = call("knowledge.undelete", json!({"ids": ["gone"]}));
    assert_eq!(undeleted["ids"], json!(["gone"]), "{undeleted}");
    let gone = retry("key-gone", "Soon forgotten");
    assert_eq!(gone["result"]["status"], "duplicate", "{gone}");
}

#[test]
fn backups_of_old_tables_are_restored_and_grow_again() {
    let daemon = start(old_home());
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("backup");
    let long_call = |daemon: &Daemon, method: &str| daemon.call(method, json!({"path": path}));
    long_call(&daemon, "admin.backup");
    assert_old(&daemon.home);
    daemon.call("knowledge.delete", json!({"id": "violin", "project_id": PROJECT}));
    assert_grown(&daemon.home);
    long_call(&daemon, "admin.restore");
    assert_readable(&daemon);
    assert_old(&daemon.home);
    daemon.call(
        "knowledge.store",
        json!({"text": "after the restore", "project_id": PROJECT}),
    );
    assert_grown(&daemon.home);
    // And in an empty home.
    let other = start(Home::new());
    long_call(&other, "admin.restore");
    assert_readable(&other);
    assert_old(&other.home);
}

/// Adds what only a newer version knows.
fn from_the_future(home: &Home, version: &str) {
    wait(async {
        let mut dataset = Dataset::open(table(home).to_str().unwrap()).await.unwrap();
        let future = vec![("future".to_owned(), "concat('of ', id)".to_owned())];
        dataset
            .add_columns(NewColumnTransform::SqlExpressions(future), None, None)
            .await
            .unwrap();
        dataset
            .update_schema_metadata([("ccod.schema_version", version)])
            .await
            .unwrap();
    });
}

/// The `future` of each row, by the row's key.
fn futures(home: &Home) -> Vec<(String, Option<String>)> {
    let batch = wait(async {
        let dataset = Dataset::open(table(home).to_str().unwrap()).await.unwrap();
        dataset.scan().try_into_batch().await.unwrap()
    });
    let rows = RowReader(&batch);
    let text = |name: &str, row: usize| rows.text(name, row).unwrap().map(str::to_owned);
    let read = |row: usize| (text("row_key", row).unwrap(), text("future", row));
    (0..batch.num_rows()).map(read).collect()
}

#[test]
fn a_table_of_a_newer_minor_version_keeps_what_only_that_one_knows() {
    let home = old_home();
    from_the_future(&home, "1.9");
    let daemon = start(home);
    assert_readable(&daemon);
    for (method, params) in [
        ("knowledge.delete", json!({"id": "violin"})),
        ("knowledge.update", json!({"id": "penguins", "metadata": {}})),
        ("knowledge.store", json!({"text": "new", "id": "new"})),
        ("knowledge.purge", json!({"id": "long", "confirm": true})),
        ("admin.optimize", json!({})),
    ] {
        let mut params = params;
        params["project_id"] = json!(PROJECT);
        daemon.call(method, params);
    }
    assert_eq!(daemon.call("admin.verify", json!({"project_id": PROJECT}))["ok"], true);
    let (version, added) = schema(&daemon.home);
    assert_eq!(
        (version.as_str(), added),
        ("1.9", ADDED.to_vec()),
        "it never becomes older"
    );
    for (key, future) in futures(&daemon.home) {
        let (id, revision) = key.split_once('/').unwrap();
        let ours = matches!((id, revision), ("penguins", "3/0") | ("new", _) | ("long", _));
        let expected = (!ours).then(|| format!("of {id}"));
        assert_eq!(future, expected, "{key}");
    }
}

#[test]
fn a_table_of_another_major_version_is_shown_and_left_alone() {
    let home = old_home();
    from_the_future(&home, "2.0");
    let daemon = start(home);
    let version = open(&daemon.home).version().version;
    for (method, params) in [
        ("knowledge.search", json!({"query": "violin", "project_id": PROJECT})),
        ("knowledge.store", json!({"text": "new", "project_id": PROJECT})),
    ] {
        let error = daemon.call_error(method, params);
        assert_eq!(error["code"], -32029, "{error}");
        assert!(error.to_string().contains("use a newer ccod"), "{error}");
    }
    assert_eq!(open(&daemon.home).version().version, version);
}
