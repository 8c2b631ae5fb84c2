//! Exports that went through editors and version control, and files that people write: nothing is lost, nothing
//! doubled, and texts are what they were.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::Daemon;

const TEXTS: [&str; 7] = [
    "one line",
    "two\nlines\n\nand a gap",
    "ends in a newline\n",
    "lines\r\nof a\r\nWindows editor",
    "mixed\r\nlines\nand a lone \r inside",
    "ends in a carriage return\r",
    "---\r\nlooks like\n---\nfront matter",
];

fn items(daemon: &Daemon, project: &str) -> Value {
    daemon.call(
        "knowledge.list",
        json!({"project_id": project, "order": "oldest", "limit": 1000}),
    )["results"]
        .take()
}

fn import(daemon: &Daemon, path: &Path, project: &str) -> Value {
    daemon.call("admin.import", json!({"path": path, "project_id": project}))
}

/// `bytes` with CRLF for LF in every line whose number `chosen` takes.
fn converted(bytes: &[u8], chosen: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        match line.strip_suffix(b"\n") {
            Some(content) if chosen(number) => out.extend([content, b"\r\n"].concat()),
            _ => out.extend_from_slice(line),
        }
    }
    out
}

#[test]
fn an_export_survives_a_change_of_its_line_endings() {
    let daemon = Daemon::start();
    for (number, text) in TEXTS.iter().enumerate() {
        let item = json!({"text": text, "agent": "a\r\nb".replace("\r\n", " "), "project_id": "web",
                          "metadata": {"lines": "a\r\nb", "number": number}});
        daemon.call("knowledge.store", item);
    }
    let original = items(&daemon, "web");
    let place = TempDir::new().unwrap();
    for name in ["a.md", "a.jsonl"] {
        let path = place.path().join(name);
        daemon.call("admin.export", json!({"path": path, "project_id": "web"}));
        let bytes = std::fs::read(&path).unwrap();
        let lines = bytes.split_inclusive(|byte| *byte == b'\n').count();
        let mark = b"\xEF\xBB\xBF".as_slice();
        let variants = [
            ("as it was written", bytes.clone()),
            ("all CRLF", converted(&bytes, |_| true)),
            (
                "all CRLF and a byte order mark",
                [mark, &converted(&bytes, |_| true)].concat(),
            ),
            ("every other line", converted(&bytes, |number| number % 2 == 0)),
            ("the first half", converted(&bytes, |number| number < lines / 2)),
            ("the second half", converted(&bytes, |number| number >= lines / 2)),
            ("without the last newline", converted(bytes.trim_ascii_end(), |_| true)),
        ];
        for (number, (what, variant)) in variants.into_iter().enumerate() {
            std::fs::write(&path, variant).unwrap();
            // What a missing last newline takes from a text that ends in one is gone from the file.
            let cut = what.contains("without") && name == "a.md";
            let project = format!("{}-{number}", name.replace('.', "-"));
            let result = import(&daemon, &path, &project);
            assert_eq!(
                (&result["imported"], &result["duplicates"], &result["skipped"]),
                (&json!(TEXTS.len()), &json!(0), &json!({})),
                "{name}, {what}: {result:#}"
            );
            let mut expected = original.clone();
            for item in expected.as_array_mut().unwrap() {
                item["project_id"] = json!(project);
            }
            if !cut {
                assert_eq!(items(&daemon, &project), expected, "{name}, {what}");
            }
            let again = import(&daemon, &path, "web");
            assert_eq!(
                (&again["imported"], &again["duplicates"], &again["skipped"]),
                (&json!(0), &json!(TEXTS.len()), &json!({})),
                "{name}, {what}, into the project that it came from: {again:#}"
            );
            std::fs::remove_file(&path).unwrap();
            if !cut {
                daemon.call("admin.export", json!({"path": path, "project_id": project}));
                let second = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
                assert_eq!(second.replace(&project, "web").as_bytes(), bytes, "{name}, {what}");
                std::fs::remove_file(&path).unwrap();
            }
        }
    }
    assert_eq!(items(&daemon, "web"), original);
}

#[test]
fn files_that_people_write_are_read_or_explained() {
    let daemon = Daemon::start();
    let place = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = place.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let texts = |project: &str| {
        let items = items(&daemon, project);
        let texts = items
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["text"].as_str().unwrap().to_owned());
        texts.collect::<Vec<_>>()
    };
    // Trailing blanks, no newline at the end, in a directory whose name is decomposed.
    let path = write(
        "nested/Cafe\u{301}/notes.md",
        b"---  \r\ntype: issue   \r\nagent: me  \t\r\n---\t\r\nThe text\r\nof two lines",
    );
    assert_eq!(import(&daemon, &path, "hand")["imported"], 1);
    assert_eq!(texts("hand"), ["The text\nof two lines"]);
    let item = &items(&daemon, "hand")[0];
    assert_eq!((&item["type"], &item["agent"]), (&json!("issue"), &json!("me")));

    for empty in [b"".as_slice(), b"\n\r\n  \n", b"\xEF\xBB\xBF"] {
        let result = import(&daemon, &write("empty.md", empty), "empty");
        assert_eq!(
            (&result["imported"], &result["skipped"]),
            (&json!(0), &json!({})),
            "{empty:?}"
        );
    }
    let result = import(
        &daemon,
        &write("plain.md", b"# A heading\r\n\r\nand no front matter"),
        "plain",
    );
    assert_eq!(
        (&result["imported"], &result["skipped"]),
        (&json!(0), &json!({"unreadable": 1}))
    );
    assert!(
        result["problems"][0]["message"].as_str().unwrap().contains("`---`"),
        "{result}"
    );
    let long = format!("---\n---\n{}\n---\n---\nshort\n", "x".repeat(20_000_000));
    let result = import(&daemon, &write("long.md", long.as_bytes()), "long");
    assert_eq!(
        (&result["imported"], &result["skipped"]),
        (&json!(1), &json!({"unreadable": 1}))
    );
    assert_eq!(texts("long"), ["short"]);

    // The command says it by its exit code as well.
    let plain = place.path().join("plain.md");
    let output = daemon
        .home
        .run(&["import", plain.to_str().unwrap(), "--project", "plain"]);
    assert_eq!(
        output.status.code(),
        Some(65),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    // What is not a file at all.
    std::os::unix::fs::symlink("loop-b", place.path().join("loop-a")).unwrap();
    std::os::unix::fs::symlink("loop-a", place.path().join("loop-b")).unwrap();
    for (name, words) in [
        ("nested", "must be a file"),
        ("loop-a", "cannot be read"),
        ("absent.md", "cannot be read"),
    ] {
        let error = daemon.call_error("admin.import", json!({"path": place.path().join(name)}));
        assert_eq!(
            (&error["code"], &error["data"]["parameter"]),
            (&json!(-32602), &json!("path")),
            "{error}"
        );
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
}
