//! What was exported can be imported, and is what it was.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::calls::{items, long_call, long_error, store_in};
use crate::support::{Connection, Daemon};

/// Texts that files, editors and formats are known to change.
fn hostile_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "plain",
        "---\nid: \"stolen\"\n---\n\nfront matter inside\n",
        "\\---\n\\\\---\n---",
        "---",
        "two\r\nlines\r\n---\r\nof Windows\r\n",
        "no newline at the end",
        "one at the end\n",
        "three at the end\n\n\n",
        "\n\n  leading and trailing white space \t ",
        "emoji 👩‍👩‍👧‍👦 and ünïcode, \u{feff}\u{2028}\u{85}\u{0}\u{1b}[31m",
        "{\"text\": \"json inside\"}\n{\"text\": \"and again\"}",
        "a\r---\rlone carriage returns",
        "```yaml\n---\na: 1\n---\n```\n",
        "\u{202e}right to left",
    ]
    .map(str::to_owned)
    .into();
    // One megabyte that is cheap to embed: words beyond what the model reads as words.
    let line = format!("{}\n---\n", "x".repeat(995));
    texts.push(line.repeat(1_000));
    assert_eq!(texts.last().unwrap().len(), 1_000_000);
    texts
}

#[test]
fn exports_come_back_identical() {
    let daemon = Daemon::start();
    for (number, text) in hostile_texts().iter().enumerate() {
        let kinds = ["decision", "architecture", "issue", "general"];
        let item = json!({
            "text": text,
            "type": kinds[number % kinds.len()],
            "agent": if number % 3 == 0 { Value::Null } else { json!("agent \"quoted\" --- ü") },
            "session_id": if number % 2 == 0 { Value::Null } else { json!("null") },
            "metadata": {"number": number, "---": "\n---\n", "deep": {"a": [1.5, -0.25, 1e300, null, true]},
                         "big": u64::MAX, "text": text.chars().take(50).collect::<String>()},
        });
        store_in(&daemon, "web", item);
    }
    let huge = json!({"text": "huge metadata", "id": "with / slash: \"and\" more", "metadata": {"huge": "é\"\n".repeat(10_000)}});
    store_in(&daemon, "web", huge);
    let original = items(&daemon, "web");
    let place = TempDir::new().unwrap();
    for (name, format) in [("a.jsonl", "jsonl"), ("a.md", "markdown")] {
        let path = place.path().join(name);
        let result = long_call(&daemon, "admin.export", json!({"path": path, "project_id": "web"}));
        assert_eq!(
            (&result["format"], &result["items"], result["bytes"].as_u64().unwrap()),
            (
                &json!(format),
                &json!(original.len()),
                std::fs::metadata(&path).unwrap().len()
            )
        );

        let other = Daemon::start();
        let dry = long_call(
            &other,
            "admin.import",
            json!({"path": path, "project_id": "web", "dry_run": true}),
        );
        assert_eq!(
            (&dry["imported"], &dry["dry_run"]),
            (&json!(original.len()), &json!(true)),
            "{dry}"
        );
        assert_eq!(other.call("knowledge.projects", json!({}))["projects"], json!([]));
        let result = long_call(&other, "admin.import", json!({"path": path, "project_id": "web"}));
        assert_eq!(
            (&result["imported"], &result["duplicates"], &result["skipped"]),
            (&json!(original.len()), &json!(0), &json!({})),
            "{result}"
        );
        assert_eq!(items(&other, "web"), original, "{format}: every field of every item");
        for (name, format) in [("b.jsonl", "jsonl"), ("b.md", "markdown")] {
            let again = place.path().join(name);
            long_call(
                &other,
                "admin.export",
                json!({"path": again, "project_id": "web", "format": format}),
            );
            let first = place.path().join(name.replace('b', "a"));
            if first.exists() {
                assert!(
                    std::fs::read(&again).unwrap() == std::fs::read(&first).unwrap(),
                    "{format} differs the second time"
                );
            }
            std::fs::remove_file(again).unwrap();
        }
        // A second time it adds nothing, and embeds nothing.
        let passes = other.status_number("/actors/embedder/counters/forward_passes");
        let result = long_call(&other, "admin.import", json!({"path": path, "project_id": "web"}));
        assert_eq!(
            (&result["imported"], &result["duplicates"]),
            (&json!(0), &json!(original.len()))
        );
        assert_eq!(other.status_number("/actors/embedder/counters/forward_passes"), passes);
        assert!(
            !other
                .search_ids(json!({"query": "front matter", "project_id": "web"}))
                .is_empty()
        );
    }
    // A project that does not exist has nothing to export, and is not made; an import of nothing makes none either.
    let empty = place.path().join("empty.jsonl");
    let error = long_error(&daemon, "admin.export", json!({"path": empty, "project_id": "absent"}));
    assert_eq!(error["code"], -32020, "{error}");
    assert!(!empty.exists());
    std::fs::write(&empty, "").unwrap();
    let result = long_call(&daemon, "admin.import", json!({"path": empty, "project_id": "absent"}));
    assert_eq!(result["imported"], 0);
    assert_eq!(
        daemon.call("knowledge.projects", json!({}))["projects"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn an_import_takes_what_it_can_and_names_the_rest() {
    let daemon = Daemon::start();
    daemon.call("knowledge.store", json!({"id": "taken", "text": "first content"}));
    daemon.call("knowledge.store", json!({"id": "same", "text": "same content"}));
    let place = TempDir::new().unwrap();
    let file = place.path().join("items");
    let long = "x".repeat(1_000_001);
    let lines = [
        json!({"text": "good", "id": "good", "timestamp": "2020-01-01T00:00:00Z", "updated_at": "2021-01-01"})
            .to_string(),
        "not json".to_owned(),
        String::new(),
        json!({"text": "other content", "id": "taken"}).to_string(),
        json!({"text": "same content", "id": "same", "metadata": {"ignored": true}}).to_string(),
        json!({"text": "  "}).to_string(),
        json!({"text": long}).to_string(),
        json!({"text": "bad time", "timestamp": "yesterday"}).to_string(),
        json!({"text": "no id"}).to_string(),
        json!({"text": "no id"}).to_string(),
        json!({"text": "other content of one before", "id": "good"}).to_string(),
        json!({"text": "unknown type", "type": "bug"}).to_string(),
        "{\"text\": \"cut".to_owned(),
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    for dry_run in [true, false] {
        let result = long_call(&daemon, "admin.import", json!({"path": file, "dry_run": dry_run}));
        assert_eq!(
            (&result["imported"], &result["duplicates"], &result["skipped"]),
            (
                &json!(2),
                &json!(2),
                &json!({"unreadable": 3, "already_exists": 2, "invalid_params": 3})
            ),
            "{result:#}"
        );
        let lines: Vec<u64> = result["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|problem| problem["line"].as_u64().unwrap())
            .collect();
        assert_eq!(lines, [2, 4, 6, 7, 8, 11, 12, 13]);
        assert_eq!(result["problems"][1]["id"], "taken");
        assert!(result["problems"][4]["message"].as_str().unwrap().contains("timestamp"));
        assert_eq!(items(&daemon, "default").len(), if dry_run { 2 } else { 4 });
    }
    let good = daemon.call("knowledge.get", json!({"id": "good"}));
    assert_eq!(
        (&good["timestamp"], &good["updated_at"]),
        (&json!("2020-01-01T00:00:00.000Z"), &json!("2021-01-01T00:00:00.000Z"))
    );
    assert_eq!(
        daemon.call("knowledge.get", json!({"id": "taken"}))["text"],
        "first content"
    );
    assert_eq!(
        daemon.call("knowledge.get", json!({"id": "same"}))["metadata"],
        json!({})
    );
}

/// An import brings items with times of their own; here they are from their import on.
#[test]
fn as_of_a_time_shows_no_item_before_its_import() {
    let daemon = Daemon::start();
    let before = daemon.call("knowledge.store", json!({"text": "stored a note before"}));
    let place = TempDir::new().unwrap();
    let path = place.path().join("notes.jsonl");
    let records = [
        json!({"id": "both", "text": "imported note with both", "timestamp": "2020-01-01T00:00:00Z",
               "updated_at": "2021-01-01T00:00:00Z"}),
        json!({"id": "one", "text": "imported note with one", "timestamp": "2020-01-01T00:00:00Z"}),
        json!({"id": "none", "text": "imported note with none"}),
    ];
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    let report = long_call(&daemon, "admin.import", json!({"path": path}));
    assert_eq!(report["imported"], 3, "{report}");
    let after = daemon.call("knowledge.store", json!({"text": "stored a note after"}));
    let at = |time: &Value| daemon.search_ids(json!({"query": "note", "as_of": time})).len();
    assert_eq!(at(&json!("2022-01-01")), 0);
    assert_eq!(at(&before["timestamp"]), 1);
    assert_eq!(at(&after["timestamp"]), 5);
    // Their times are theirs all the same.
    let one = daemon.call("knowledge.get", json!({"id": "one"}));
    assert_eq!(one["timestamp"], "2020-01-01T00:00:00.000Z", "{one}");
}

/// More imports at once than the daemon has threads for file work: everything else goes on, and all of them end.
#[test]
fn many_imports_at_once_leave_the_daemon_at_work() {
    const IMPORTS: usize = 20;
    // Several groups, so that a reader is ahead of what is stored.
    const ITEMS: usize = 200;
    let daemon = Daemon::start();
    let place = TempDir::new().unwrap();
    let file = place.path().join("items.jsonl");
    let lines: Vec<String> = (0..ITEMS)
        .map(|number| json!({"text": format!("fact {number}")}).to_string())
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let mut imports: Vec<Connection> = (0..IMPORTS)
        .map(|_| {
            let mut connection = daemon.connect();
            let request = json!({"jsonrpc": "2.0", "id": 1, "method": "admin.import", "params": {"path": file}});
            connection.send(format!("{request}\n"));
            connection
        })
        .collect();
    // One that gives up while it waits has done nothing.
    let hurried = json!({"path": file, "timeout_ms": 1});
    let error = long_error(&daemon, "admin.import", hurried);
    assert_eq!(
        (&error["code"], &error["data"]["executed"]),
        (&json!(-32050), &json!(false)),
        "{error}"
    );
    let stored = daemon.call("knowledge.store", json!({"project_id": "other", "text": "meanwhile"}));
    assert_eq!(stored["status"], "stored");
    let found = daemon.call("knowledge.search", json!({"project_id": "other", "query": "meanwhile"}));
    assert_eq!(found["results"][0]["id"], stored["id"]);
    let mut imported = 0;
    for connection in &mut imports {
        let result = loop {
            let line = connection.receive().expect("an answer");
            if line["id"] == 1 {
                break line["result"].clone();
            }
        };
        let number = |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("{result}"));
        assert_eq!(number("imported") + number("duplicates"), ITEMS as u64, "{result}");
        imported += number("imported");
    }
    assert_eq!(imported, ITEMS as u64, "each item was imported once");
    assert_eq!(items(&daemon, "default").len(), ITEMS);
}
