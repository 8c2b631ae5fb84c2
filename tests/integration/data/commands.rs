//! The commands for the data as a whole.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::rig::{Rig, json_of};
use crate::support::{exits, stderr, stdout};

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
