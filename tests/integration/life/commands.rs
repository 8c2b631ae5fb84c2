//! The commands for what happens to items after they were stored.

use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use crate::rig::Rig;
use crate::support::{exits, stderr, stdout};

#[test]
fn an_item_is_changed_and_its_past_stays() {
    let rig = Rig::new();
    let id = rig.store("The gateway times out after ten seconds", "configuration");
    let first = rig.json(&["history", &id])["revisions"][0]["valid_from"]
        .as_u64()
        .unwrap();
    rig.store("Invoices are rendered to PDF by a headless browser", "general");

    let updated = exits(
        rig.run(&[
            "update",
            &id,
            "--text",
            "The gateway times out after thirty seconds",
            "--agent",
            "ops",
            "--metadata",
            r#"{"file":"gateway.toml"}"#,
        ]),
        0,
    );
    assert_eq!(stdout(&updated), format!("{id}\n"));
    assert!(stderr(&updated).contains("version"), "{}", stderr(&updated));
    let item = rig.json(&["get", &id]);
    assert_eq!(item["text"], "The gateway times out after thirty seconds");
    assert_eq!(
        (&item["agent"], &item["type"], &item["metadata"]),
        (&json!("ops"), &json!("configuration"), &json!({"file": "gateway.toml"}))
    );

    // From standard input, and only the type.
    let mut reading = rig
        .daemon
        .home
        .command(&["update", &id, "--text", "-", "--project", "p"]);
    let mut child = reading
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"The gateway times out after a minute\n")
        .unwrap();
    exits(child.wait_with_output().unwrap(), 0);
    rig.json(&["update", &id, "--type", "issue"]);

    let revisions = rig.json(&["history", &id])["revisions"].take();
    let texts: Vec<&str> = revisions
        .as_array()
        .unwrap()
        .iter()
        .map(|revision| revision["text"].as_str().unwrap())
        .collect();
    assert_eq!(
        texts,
        [
            "The gateway times out after a minute",
            "The gateway times out after a minute",
            "The gateway times out after thirty seconds",
            "The gateway times out after ten seconds",
        ]
    );
    assert_eq!(revisions[0]["type"], "issue");
    let human = stdout(&exits(rig.run(&["history", &id]), 0));
    assert_eq!(human.lines().count(), 5, "{human}");
    assert!(human.contains("ten seconds") && human.contains("now"), "{human}");

    // As it was known then.
    let past = rig.json(&["search", "gateway timeout", "--as-of", &first.to_string()]);
    assert_eq!(past["count"], 1, "{past:#}");
    assert_eq!(past["results"][0]["text"], "The gateway times out after ten seconds");
    let before_all = rig.json(&["search", "gateway timeout", "--as-of", "1d"]);
    assert_eq!(before_all["count"], 0);

    exits(rig.run(&["update", &id]), 2);
    exits(rig.run(&["update", &id, "--metadata", "[]"]), 65);
    exits(rig.run(&["update", "nope", "--text", "x"]), 1);
    exits(rig.run(&["history", "nope"]), 1);
}

#[test]
fn a_deletion_by_id_prints_what_undoes_it() {
    let rig = Rig::new();
    let first = rig.store("The first of two facts", "issue");
    let second = rig.store("The second of two facts", "issue");

    let deleted = exits(rig.run(&["delete", &first, &second, "nope"]), 0);
    let token = stdout(&deleted).trim_end().to_owned();
    assert!(!token.is_empty() && !token.contains(char::is_whitespace), "{token:?}");
    let message = stderr(&deleted);
    assert!(message.contains("deleted 2 items"), "{message}");
    assert!(message.contains("not there: nope"), "{message}");
    exits(rig.run(&["get", &first]), 1);
    assert_eq!(rig.total(), 0);

    // The command as it was printed, and from wherever it is run.
    let undo = message
        .lines()
        .find_map(|line| line.strip_prefix("undo: ccoctl "))
        .unwrap_or_else(|| panic!("{message}"));
    let arguments: Vec<&str> = undo.split(' ').collect();
    assert_eq!(arguments.last(), Some(&token.as_str()));
    let restored = exits(rig.daemon.home.run(&arguments), 0);
    assert!(stderr(&restored).contains("restored 2 items"), "{}", stderr(&restored));
    assert_eq!(rig.json(&["get", &second])["text"], "The second of two facts");

    exits(rig.run(&["delete", &first]), 0);
    assert_eq!(rig.json(&["undelete", &first])["restored"], 1);
    // It is there already, and another never was.
    let nothing = exits(rig.run(&["undelete", &first, "nope"]), 1);
    assert!(
        stderr(&nothing).contains(&format!("there already: {first}\n")) && stderr(&nothing).contains("restored: nope"),
        "{}",
        stderr(&nothing)
    );
    // A lost answer is not a reason to fail.
    let again = exits(rig.run(&["undelete", &first]), 0);
    assert!(
        stderr(&again).contains(&format!("there already: {first}")),
        "{}",
        stderr(&again)
    );
    let again = exits(rig.run(&["undelete", "--undo", &token]), 0);
    assert!(stderr(&again).contains("there already: "), "{}", stderr(&again));
    assert!(!stderr(&again).contains("not restored"), "{}", stderr(&again));
    assert_eq!(rig.total(), 2);

    // What is not there is deleted already.
    let nothing = exits(rig.run(&["delete", "nope"]), 0);
    assert!(nothing.stdout.is_empty() && stderr(&nothing).contains("not there: nope"));
    exits(rig.run(&["undelete", "--undo", "zz"]), 65);
    exits(rig.run(&["undelete"]), 2);
}

#[test]
fn a_deletion_by_filter_takes_a_yes() {
    let rig = Rig::new();
    let issues: Vec<String> = (0..3)
        .map(|number| rig.store(&format!("The issue number {number}"), "issue"))
        .collect();
    rig.store("A decision that stays", "decision");

    for refused in [
        &["delete"][..],
        &["delete", &issues[0], "--type", "issue"],
        // Nobody is there to be asked.
        &["delete", "--type", "issue"],
    ] {
        let refused = exits(rig.run(refused), 2);
        assert!(refused.stdout.is_empty());
    }
    let refused = rig.run(&["delete", "--type", "issue"]);
    assert!(stderr(&refused).contains("--yes"), "{}", stderr(&refused));
    assert_eq!(rig.total(), 4);

    let look = exits(rig.run(&["delete", "--type", "issue", "--dry-run"]), 0);
    let mut shown: Vec<String> = stdout(&look).lines().map(str::to_owned).collect();
    let mut expected = issues.clone();
    shown.sort();
    expected.sort();
    assert_eq!(shown, expected);
    assert!(stderr(&look).contains("would delete 3 items"), "{}", stderr(&look));
    assert_eq!(rig.total(), 4);

    let deleted = rig.json(&["delete", "--type", "issue", "--since", "1h", "--yes"]);
    assert_eq!(deleted["deleted"], 3);
    assert_eq!(rig.total(), 1);
    let token = deleted["undo_token"].as_str().unwrap();
    exits(rig.run(&["undelete", "--undo", token]), 0);
    assert_eq!(rig.total(), 4);
    let none = exits(rig.run(&["delete", "--agent", "nobody", "--yes"]), 0);
    assert!(none.stdout.is_empty() && stderr(&none).contains("nothing to delete"));
}

#[test]
fn a_deletion_by_filter_asks_on_a_terminal() {
    let rig = Rig::new();
    let issue = rig.store("The issue to be deleted", "issue");
    rig.store("A decision that stays", "decision");

    for no in ["n\n", "\n"] {
        let mut asked = rig.on_terminal(&["delete", "--type", "issue"]);
        asked.until("Delete 1 item from project p? [y/N]");
        asked.write(no);
        let (code, printed, screen) = asked.close();
        assert_eq!((code, printed.as_str()), (Some(1), ""), "{screen}");
        assert!(
            screen.contains(&issue) && screen.contains("nothing was changed"),
            "{screen}"
        );
        assert_eq!(rig.total(), 2);
    }

    let mut asked = rig.on_terminal(&["delete", "--type", "issue"]);
    asked.until("[y/N]");
    asked.write("what?\n");
    asked.until("what?\r\nDelete 1 item");
    asked.write("y\n");
    let (code, token, screen) = asked.close();
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains(&format!("--undo {}", token.trim_end())), "{screen}");
    assert_eq!(rig.total(), 1);

    // Nothing to ask about, and none for ids.
    let (code, _, screen) = rig.on_terminal(&["delete", "--type", "issue"]).close();
    assert_eq!(code, Some(0), "{screen}");
    assert!(
        screen.contains("nothing to delete") && !screen.contains("[y/N]"),
        "{screen}"
    );
    let (code, _, screen) = rig.on_terminal(&["delete", "nope"]).close();
    assert_eq!(code, Some(0), "{screen}");
    assert!(!screen.contains("[y/N]"), "{screen}");
}

#[test]
fn a_purge_takes_a_yes() {
    let rig = Rig::new();
    let id = rig.store("The purged fact about zyxwvutsrq", "issue");
    let kept = rig.store("A fact that stays", "issue");

    let refused = exits(rig.run(&["purge", &id]), 2);
    assert!(stderr(&refused).contains("--yes"), "{}", stderr(&refused));
    let mut asked = rig.on_terminal(&["purge", &id]);
    asked.until("cannot be undone. [y/N]");
    asked.write("n\n");
    assert_eq!(asked.close().0, Some(1));
    assert_eq!(rig.json(&["get", &id])["id"], json!(id));

    let mut asked = rig.on_terminal(&["purge", &id]);
    asked.until("[y/N]");
    asked.write("yes\n");
    let (code, printed, screen) = asked.close();
    assert_eq!((code, printed), (Some(0), format!("{id}\n")), "{screen}");
    exits(rig.run(&["get", &id]), 1);
    exits(rig.run(&["history", &id]), 1);
    exits(rig.run(&["undelete", &id]), 1);
    assert_eq!(rig.json(&["search", "zyxwvutsrq", "--mode", "text"])["count"], 0);

    // One that was deleted before can still be purged; one that never was is told.
    exits(rig.run(&["delete", &kept]), 0);
    let purged = exits(rig.run(&["purge", &kept, "nope", "--yes"]), 1);
    assert_eq!(stdout(&purged), format!("{kept}\n"));
    assert!(stderr(&purged).contains("not there: nope"), "{}", stderr(&purged));
    exits(rig.run(&["undelete", &kept]), 1);
}

#[test]
fn a_purge_names_the_backups_that_still_hold_it() {
    let rig = Rig::new();
    let id = rig.store("The fact that is in a backup", "issue");
    let elsewhere = tempfile::tempdir().unwrap();
    let backup = elsewhere.path().canonicalize().unwrap().join("monday");
    exits(rig.daemon.home.run(&["backup", backup.to_str().unwrap()]), 0);
    let purged = exits(rig.run(&["purge", &id, "--yes"]), 0);
    assert_eq!(stdout(&purged), format!("{id}\n"));
    assert!(
        stderr(&purged).contains(backup.to_str().unwrap()),
        "{}",
        stderr(&purged)
    );
}

#[test]
fn a_cleanup_only_counts_unless_told() {
    let rig = Rig::new();
    rig.store("An issue of today", "issue");
    rig.store("A decision of today", "decision");

    assert_eq!(rig.json(&["cleanup"])["deleted"], 0, "nothing is older than 90 days");
    let look = exits(rig.run(&["cleanup", "--older-than", "0", "--type", "issue"]), 0);
    assert!(stdout(&look).contains("items  1"), "{}", stdout(&look));
    assert!(stderr(&look).contains("--apply"), "{}", stderr(&look));
    let refused = exits(rig.run(&["cleanup", "--older-than", "0", "--apply"]), 2);
    assert!(stderr(&refused).contains("--yes"), "{}", stderr(&refused));
    assert_eq!(rig.total(), 2);

    let mut asked = rig.on_terminal(&["cleanup", "--older-than", "0", "--apply"]);
    asked.until("Delete 2 items older than 0 days from project p? [y/N]");
    asked.write("\n");
    assert_eq!(asked.close().0, Some(1));
    assert_eq!(rig.total(), 2);

    let cleaned = rig.json(&["cleanup", "--older-than", "0", "--type", "issue", "--apply", "--yes"]);
    assert_eq!(
        (&cleaned["deleted"], &cleaned["dry_run"]),
        (&json!(1), &json!(false)),
        "{cleaned}"
    );
    assert_eq!(rig.total(), 1);
    exits(
        rig.run(&["undelete", "--undo", cleaned["undo_token"].as_str().unwrap()]),
        0,
    );
    assert_eq!(rig.total(), 2);
}
