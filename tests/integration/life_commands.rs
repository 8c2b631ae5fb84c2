//! The commands for what happens to items after they were stored, and for the data as a whole.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Daemon, PATIENCE, exits, stderr, stdout};

fn json_of(output: Output) -> Value {
    let output = exits(output, 0);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stdout(&output)))
}

/// A command as a person runs it: its questions and messages are on a terminal.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn open(mut command: Command) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None).unwrap();
        let keyboard = File::from(pair.master);
        let input: OwnedFd = pair.slave.try_clone().unwrap();
        let child = command
            .env("TERM", "xterm")
            .stdin(Stdio::from(input))
            .stderr(Stdio::from(pair.slave))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The terminal's other end closes with the last of its holders, which shall be the child.
        drop(command);
        let mut screen = keyboard.try_clone().unwrap();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 4096];
            // Linux says EIO at the end.
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            keyboard,
            screen: receiver,
            seen: String::new(),
        }
    }

    /// Waits until the screen has shown `text`.
    fn until(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.screen.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("never shown: {text:?} ({error}): {}", self.seen),
            }
        }
    }

    fn write(&mut self, line: &str) {
        self.keyboard.write_all(line.as_bytes()).unwrap();
    }

    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
    }

    /// The exit code, what it printed to standard output, and what the screen has shown.
    fn close(mut self) -> (Option<i32>, String, String) {
        let mut printed = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        let status = self.child.wait().unwrap();
        while let Ok(bytes) = self.screen.recv_timeout(PATIENCE) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        (status.code(), printed, self.seen.clone())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A daemon, and the commands on its project `p`.
struct Rig {
    daemon: Daemon,
}

impl Rig {
    fn new() -> Self {
        Self {
            daemon: Daemon::start(),
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.daemon.home.run(&[arguments, &["--project", "p"]].concat())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        json_of(self.run(&[arguments, &["--json"]].concat()))
    }

    fn on_terminal(&self, arguments: &[&str]) -> Terminal {
        let arguments = [arguments, &["--project", "p"]].concat();
        Terminal::open(self.daemon.home.command(&arguments))
    }

    fn store(&self, text: &str, knowledge_type: &str) -> String {
        let stored = exits(self.run(&["store", text, "--type", knowledge_type]), 0);
        stdout(&stored).trim_end().to_owned()
    }

    fn total(&self) -> Value {
        self.json(&["stats"])["total"].take()
    }
}

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
fn similar_items_are_found_by_id() {
    let rig = Rig::new();
    let id = rig.store("Retries back off exponentially with jitter", "pattern");
    let near = rig.store("Failed calls are repeated after growing, randomised pauses", "pattern");
    rig.store("The office plants are watered on Mondays", "general");
    let found = rig.json(&["similar", &id, "--limit", "1"]);
    assert_eq!(found["results"][0]["id"], json!(near));
    let human = exits(rig.run(&["similar", &id]), 0);
    assert!(stdout(&human).contains(&near), "{}", stdout(&human));
    assert!(
        !stdout(&human).contains(&id),
        "an item does not resemble itself: {}",
        stdout(&human)
    );
    exits(rig.run(&["similar", "nope"]), 1);
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
    // That an answer got lost is no reason to fail.
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

/// Runs a command in `directory`, for relative paths.
fn run_in(rig: &Rig, directory: &Path, arguments: &[&str]) -> Output {
    let mut command = rig.daemon.home.command(arguments);
    command.current_dir(directory).output().unwrap()
}

#[test]
fn backups_are_written_and_restored() {
    let rig = Rig::new();
    let id = rig.store("What the backup holds", "decision");
    let elsewhere = tempfile::tempdir().unwrap();
    let here = elsewhere.path().canonicalize().unwrap();

    let written = exits(run_in(&rig, &here, &["backup", "monday"]), 0);
    let path = here.join("monday");
    assert_eq!(stdout(&written), format!("{}\n", path.display()));
    assert!(path.is_dir());
    assert!(
        stderr(&written).contains("backed up 1 item of 1 project (p)"),
        "{}",
        stderr(&written)
    );

    let later = rig.store("What came after the backup", "decision");
    exits(rig.run(&["purge", &id, "--yes"]), 0);
    let refused = exits(run_in(&rig, &here, &["restore", "monday"]), 2);
    assert!(stderr(&refused).contains("--yes"), "{}", stderr(&refused));
    let mut asked = rig.on_terminal(&["restore", path.to_str().unwrap()]);
    asked.until("The present one is kept aside. [y/N]");
    asked.write("n\n");
    assert_eq!(asked.close().0, Some(1));
    exits(rig.run(&["get", &id]), 1);

    let restored = exits(run_in(&rig, &here, &["restore", "./monday", "--yes"]), 0);
    assert_eq!(stdout(&restored), "p\n");
    let aside = stderr(&restored)
        .lines()
        .find_map(|line| line.strip_prefix("  /").map(|rest| format!("/{rest}")))
        .unwrap_or_else(|| panic!("{}", stderr(&restored)));
    assert!(Path::new(&aside).exists(), "{aside}");
    assert_eq!(rig.json(&["get", &id])["text"], "What the backup holds");
    exits(rig.run(&["get", &later]), 1);

    exits(run_in(&rig, &here, &["restore", "nowhere", "--yes"]), 65);
    exits(run_in(&rig, &here, &["backup", "other", "--project", "../p"]), 65);
}

#[test]
fn what_was_exported_can_be_imported() {
    let rig = Rig::new();
    let id = rig.store("Exports carry texts, types and times", "pattern");
    rig.store("Exports carry metadata as well", "general");
    let elsewhere = tempfile::tempdir().unwrap();
    let here = elsewhere.path().canonicalize().unwrap();

    let written = exits(run_in(&rig, &here, &["export", "p.jsonl", "--project", "p"]), 0);
    let path = here.join("p.jsonl");
    assert_eq!(stdout(&written), format!("{}\n", path.display()));
    assert!(stderr(&written).contains("exported 2 items"), "{}", stderr(&written));
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    exits(
        run_in(
            &rig,
            &here,
            &["export", "p.md", "--format", "markdown", "--project", "p"],
        ),
        0,
    );
    assert!(here.join("p.md").exists());

    let import = |arguments: &[&str]| {
        run_in(
            &rig,
            &here,
            &[&["import", "p.jsonl", "--project", "q"], arguments].concat(),
        )
    };
    let look = json_of(import(&["--dry-run", "--json"]));
    assert_eq!(
        (&look["imported"], &look["dry_run"]),
        (&json!(2), &json!(true)),
        "{look}"
    );
    assert_eq!(
        rig.daemon.call("knowledge.stats", json!({"project_id": "q"}))["total"],
        0
    );
    let imported = exits(import(&[]), 0);
    assert!(stdout(&imported).contains("imported    2"), "{}", stdout(&imported));
    let there = rig.daemon.call("knowledge.get", json!({"id": id, "project_id": "q"}));
    let item = rig.json(&["get", &id]);
    assert_eq!(
        (&there["text"], &there["timestamp"], &there["type"]),
        (&item["text"], &item["timestamp"], &item["type"])
    );
    let again = json_of(import(&["--json"]));
    assert_eq!(
        (&again["imported"], &again["duplicates"]),
        (&json!(0), &json!(2)),
        "{again}"
    );
    exits(run_in(&rig, &here, &["import", "nowhere.jsonl"]), 65);
}

#[test]
fn maintenance_is_done_when_asked_for() {
    let rig = Rig::new();
    rig.store("The fact that maintenance leaves as it is", "general");
    let optimized = exits(rig.daemon.home.run(&["optimize"]), 0);
    assert!(stdout(&optimized).contains("1 project (p)"), "{}", stdout(&optimized));
    assert_eq!(rig.json(&["optimize"])["projects"], json!(["p"]));
    assert_eq!(rig.total(), 1);
}

#[test]
fn sound_data_passes_a_verification() {
    let rig = Rig::new();
    for number in 0..3 {
        rig.store(&format!("The fact number {number} of several"), "general");
    }
    let sound = exits(rig.daemon.home.run(&["verify"]), 0);
    assert_eq!(stdout(&sound), "ok\n");
    assert!(stderr(&sound).contains("1 project (p)"), "{}", stderr(&sound));
    assert_eq!(rig.json(&["verify"])["ok"], true);
    assert_eq!(rig.total(), 3);
}

#[test]
fn a_verification_that_finds_something_fails() {
    let rig = Rig::new();
    rig.store("The fact that is going to be damaged", "general");
    let mut damaged = 0;
    for (path, is_directory, _) in crate::support::modes(&rig.daemon.home.path()) {
        // A data file: a directory of that suffix is the table.
        if !is_directory && path.extension().is_some_and(|extension| extension == "lance") {
            let length = path.metadata().unwrap().len();
            std::fs::write(&path, vec![0; usize::try_from(length).unwrap()]).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let found = exits(rig.daemon.home.run(&["verify"]), 1);
    assert!(stdout(&found).contains("p: "), "{}", stdout(&found));
    let found = exits(rig.run(&["verify", "--json"]), 1);
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["ok"], false);
    assert_eq!(found["findings"][0]["project_id"], "p");
}

#[test]
fn a_long_command_shows_its_progress_and_ends_on_ctrl_c() {
    const ITEMS: usize = 3_000;
    let rig = Rig::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("many.jsonl");
    let lines: Vec<String> = (0..ITEMS)
        .map(|number| {
            json!({"text": format!("Fact {number}: the cache of shard {number} is warmed at night")}).to_string()
        })
        .collect();
    std::fs::write(&path, lines.join("\n")).unwrap();

    let mut import = rig.on_terminal(&["import", path.to_str().unwrap()]);
    // The bar, with some of it done.
    import.until("/3,000");
    import.interrupt();
    import.until("cancelling");
    let (code, printed, screen) = import.close();
    assert_eq!((code, printed.as_str()), (Some(75), ""), "{screen}");
    assert!(screen.contains("cancelled"), "{screen}");
    assert!(rig.total().as_u64().unwrap() < ITEMS as u64);
    exits(rig.daemon.home.run(&["health"]), 0);

    // Off a terminal there is no bar, and no escape sequence.
    std::fs::write(&path, lines[..3].join("\n")).unwrap();
    let quiet = exits(rig.run(&["import", path.to_str().unwrap()]), 0);
    let messages = stderr(&quiet);
    assert!(!messages.contains("/3") && !messages.contains('\u{1b}'), "{messages}");
}

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
