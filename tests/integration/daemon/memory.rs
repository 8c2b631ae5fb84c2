//! What the daemon keeps in memory: nothing of what was purged, and nothing of what nobody has used for a while.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Connection, Daemon, Home, PATIENCE, ids};

/// How long after a purge the memory is searched.
const AFTER_PURGE: Duration = Duration::from_secs(10);

/// 32 bytes that are nowhere else.
fn marker(round: usize) -> String {
    let mut state = u64::from(std::process::id()) << 20 | round as u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (state >> 33) as u8 % 26)
    };
    (0..32).map(|_| next()).collect()
}

/// The parts of a process's memory that it can write to, by what they are, with their bytes.
fn writable_memory(daemon: &Daemon, mut look: impl FnMut(&str, &[u8])) {
    let process = Path::new("/proc").join(daemon.pid().to_string());
    let maps = std::fs::read_to_string(process.join("maps")).unwrap();
    let mut memory = File::open(process.join("mem")).unwrap();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(mode)) = (fields.next(), fields.next()) else {
            continue;
        };
        if !mode.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [mut at, end] = [start, end].map(|number| u64::from_str_radix(number, 16).unwrap());
        // In parts, which overlap: most of a large range is reserved and not there.
        const PART: u64 = 1 << 20;
        let mut part = vec![0; PART as usize + 64];
        let place = fields.nth(3).unwrap_or("anonymous");
        while at < end {
            let wanted = (end - at).min(part.len() as u64) as usize;
            memory.seek(SeekFrom::Start(at)).unwrap();
            // What the process has unmapped meanwhile holds nothing.
            let read = memory.read(&mut part[..wanted]).unwrap_or(0);
            look(place, &part[..read]);
            at += PART;
        }
    }
}

/// Where in its memory the daemon has these bytes.
fn places_of(daemon: &Daemon, needle: &str) -> Vec<String> {
    let needle = needle.as_bytes();
    let mut found = Vec::new();
    writable_memory(daemon, |place, part| {
        let mut rest = part;
        while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
            rest = &rest[at..];
            if rest.starts_with(needle) {
                found.push(place.to_owned());
            }
            rest = &rest[1..];
        }
    });
    found
}

/// Has the daemon store, show, change and purge an item that is full of a marker, in every way in which a text gets in
/// and out; then nothing of it may be in its memory.
fn purge_and_search(daemon: &Daemon, connection: &mut Connection, round: usize, pause: Duration) {
    let marker = marker(round);
    let text = format!("The key of this round is {marker} and it rests in the vault. ").repeat(1 + round % 40);
    let stored = connection.call(
        "knowledge.store",
        json!({"text": text, "metadata": {"quoted": marker, "list": [marker]}, "agent": marker, "session_id": marker}),
    );
    let id = stored["id"].clone();
    let second = format!("second-{round}");
    for mode in ["hybrid", "vector", "text"] {
        let found = connection.call(
            "knowledge.search",
            json!({"query": format!("key {marker}"), "mode": mode}),
        );
        assert_eq!(ids(&found)[0], id.as_str().unwrap());
    }
    let filter = json!({"query": "key", "agent": marker, "metadata": {"quoted": marker}});
    assert_eq!(ids(&connection.call("knowledge.search", filter)).len(), 1);
    connection.call("knowledge.get", json!({"id": id}));
    connection.call("knowledge.list", json!({"limit": 5}));
    connection.call("embedding.embed", json!({"texts": [text]}));
    let batch = json!({"items": [{"text": format!("{text} once more"), "id": second}]});
    connection.call("knowledge.store_batch", batch);
    connection.call(
        "knowledge.update",
        json!({"id": id, "text": format!("{text} and was moved")}),
    );
    connection.call("knowledge.history", json!({"id": id}));
    daemon.call("knowledge.search", json!({"query": text}));
    assert_ne!(places_of(daemon, &marker), [""; 0], "the search finds what is there");
    connection.call("knowledge.delete", json!({"id": second}));
    let purged = connection.call("knowledge.purge", json!({"ids": [id, second], "confirm": true}));
    assert_eq!(purged["purged"], 2, "{purged:#}");
    let begun = Instant::now();
    loop {
        let places = places_of(daemon, &marker);
        // It may take a moment, for the caches and for what was in flight.
        if places.is_empty() && begun.elapsed() >= pause {
            return;
        }
        assert!(
            begun.elapsed() < AFTER_PURGE || places.is_empty(),
            "round {round}: a purged text is still in memory, in {places:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn a_purged_text_is_not_in_memory(rounds: usize, pause: Duration) {
    let daemon = Daemon::start();
    let mut connection = daemon.connect();
    let others: Vec<Value> = (0..40)
        .map(|number| json!({"text": format!("Note {number}: nobody purges this one.")}))
        .collect();
    connection.call("knowledge.store_batch", json!({"items": others}));
    for round in 0..rounds {
        purge_and_search(&daemon, &mut connection, round, pause);
    }
}

/// Three rounds, or as many as `CCOD_TEST_PURGE_ROUNDS` says; those of a longer run are searched after ten seconds each.
#[test]
fn a_purged_text_is_nowhere_in_the_memory_of_the_daemon() {
    let asked = std::env::var("CCOD_TEST_PURGE_ROUNDS").ok();
    match asked.and_then(|rounds| rounds.parse().ok()) {
        Some(rounds) => a_purged_text_is_not_in_memory(rounds, AFTER_PURGE),
        None => a_purged_text_is_not_in_memory(3, Duration::ZERO),
    }
}

/// A daemon that closes what nobody uses after a second.
fn of_short_memory(home: Home) -> Daemon {
    let settings = [("CCO_STORE__IDLE_CLOSE_S", "1"), ("CCO_EMBEDDER__IDLE_UNLOAD_S", "1")];
    Daemon::start_in(home, &settings)
}

fn open_projects(daemon: &Daemon) -> u64 {
    daemon.status_number("/caches/resident_index/projects")
}

fn files_of_projects(daemon: &Daemon) -> usize {
    let descriptors = Path::new("/proc").join(daemon.pid().to_string()).join("fd");
    let knowledge = daemon.home.path().join("knowledge");
    let open = std::fs::read_dir(descriptors).unwrap().flatten();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets
        .filter(|target| target.starts_with(&knowledge) && target.extension().is_some())
        .count()
}

/// Bytes of the process that are no part of a file.
fn own_bytes(daemon: &Daemon) -> u64 {
    let status = Path::new("/proc").join(daemon.pid().to_string()).join("status");
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn wait_until(daemon: &Daemon, what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "not so: {what}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_nobody_uses_is_closed_and_goes_on_where_it_was() {
    let daemon = of_short_memory(Home::new());
    let mut feed = daemon.connect();
    feed.call("knowledge.subscribe", json!({"project_id": "*"}));
    let items: Vec<Value> = (0..300)
        .map(|number| json!({"text": format!("Note {number} about the harbour and its cranes."), "id": format!("note-{number}")}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    for _ in 0..300 {
        assert_eq!(feed.receive().unwrap()["params"]["result"]["op"], "store");
    }
    let deleted = daemon.call("knowledge.delete", json!({"id": "note-7"}));
    assert_eq!(feed.receive().unwrap()["params"]["result"]["op"], "delete");
    daemon.search_ids(json!({"query": "harbour cranes"}));
    let page = daemon.call(
        "knowledge.search",
        json!({"query": "harbour", "limit": 10, "mode": "text"}),
    );
    assert_eq!(open_projects(&daemon), 1);
    let before = daemon.call("knowledge.stats", json!({}));
    let busy = own_bytes(&daemon);

    // The next page of a search keeps its version, and with it the project, for some minutes.
    let next = json!({"query": "harbour", "limit": 10, "mode": "text", "cursor": page["next_cursor"]});
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(open_projects(&daemon), 1);
    let following = ids(&daemon.call("knowledge.search", next));
    assert_eq!(following.len(), 10);
    assert!(ids(&page).iter().all(|id| !following.contains(id)));
    let daemon =
        daemon.kill_and_restart_with(&[("CCO_STORE__IDLE_CLOSE_S", "1"), ("CCO_EMBEDDER__IDLE_UNLOAD_S", "1")]);
    let mut feed = daemon.connect();
    feed.call("knowledge.subscribe", json!({"project_id": "*"}));
    let mut other = daemon.connect();
    other.call("knowledge.subscribe", json!({"project_id": "default"}));

    for round in 0..3 {
        // Not a search that has further pages.
        daemon.call("embedding.embed", json!({"texts": [format!("harbour {round}")]}));
        daemon.call("knowledge.get", json!({"id": "note-1"}));
        // Who watches keeps nothing open.
        wait_until(&daemon, "the project is closed", || open_projects(&daemon) == 0);
        wait_until(&daemon, "its files are closed", || files_of_projects(&daemon) == 0);
        wait_until(&daemon, "the model is given up", || {
            daemon.call("admin.status", json!({}))["model"]["loaded"] == false
        });
        wait_until(&daemon, "its memory is given back", || {
            own_bytes(&daemon) + (30 << 20) < busy
        });
        if round == 0 {
            let now = daemon.call("knowledge.stats", json!({}));
            assert_eq!((&now["total"], &now["by_type"]), (&before["total"], &before["by_type"]));
            assert_eq!(open_projects(&daemon), 0, "to count what rests opens nothing");
        }
        // A write to another project opens that one alone, whoever listens.
        daemon.call(
            "knowledge.store",
            json!({"text": format!("beside {round}"), "project_id": "beside"}),
        );
        assert_eq!(feed.receive().unwrap()["params"]["result"]["project_id"], "beside");
        wait_until(&daemon, "both are closed", || open_projects(&daemon) == 0);
    }
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");

    // Nothing is lost by it: not the deletion's undo token, not the item's key, not the feed.
    let back = daemon.call("knowledge.undelete", json!({"undo_token": deleted["undo_token"]}));
    assert_eq!(back["restored"], 1, "{back:#}");
    for feed in [&mut feed, &mut other] {
        let told = feed.receive().unwrap();
        assert_eq!(told["params"]["result"]["id"], "note-7", "{told}");
    }
    wait_until(&daemon, "the project is closed", || open_projects(&daemon) == 0);
    let again = daemon.call(
        "knowledge.store",
        json!({"text": "Note 9 about the harbour and its cranes."}),
    );
    assert_eq!(again["status"], "duplicate", "{again}");
    let stored = daemon.call("knowledge.store", json!({"text": "A store wakes the project up."}));
    assert_eq!(feed.receive().unwrap()["params"]["result"]["id"], stored["id"]);
    assert_eq!(
        daemon.call("knowledge.stats", json!({"project_id": "default"}))["total"],
        301
    );
}
