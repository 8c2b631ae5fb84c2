//! What a panic says may quote a text: it goes neither to the log nor to a caller, whichever part it happens in.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::Inside;

const SECRET: &str = "the-combination-of-the-safe-is-4711";

/// The log of the daemon in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_a_panic_says_is_neither_logged_nor_told() {
    let daemon = Inside::start();
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .try_init()
        .unwrap();
    let before = std::panic::take_hook();
    ccod_actors::panics::install_hook();
    daemon.call("knowledge.store", json!({"text": "something to read"}));
    let mut told = String::new();
    let mut refused = 0;
    for (point, times) in [
        ("reader::query", 1),
        ("reader::handle", 1),
        ("engine::forward", 2),
        ("writer::before_commit", 1),
        ("writer::before_exclusive", 1),
        ("writer::handle", 1),
        ("write::before_erasing", 1),
    ] {
        let logged_before = log.0.lock().unwrap().len();
        fail::cfg(point, &format!("{times}*panic({SECRET})")).unwrap();
        for round in 0..4 {
            let text = format!("{point} {round}");
            for (method, params) in [
                ("knowledge.list", json!({})),
                ("knowledge.search", json!({"query": text})),
                (
                    "knowledge.store",
                    json!({"text": text, "id": text.replace([':', ' '], "-")}),
                ),
                (
                    "knowledge.purge",
                    json!({"id": text.replace([':', ' '], "-"), "confirm": true}),
                ),
                ("admin.optimize", json!({})),
                ("admin.health", json!({})),
                ("admin.status", json!({})),
            ] {
                let response = daemon.connect().request(method, params);
                refused += usize::from(response.get("error").is_some());
                told.push_str(&format!("{method}: {response}\n"));
            }
        }
        fail::remove(point);
        let logged = log.0.lock().unwrap()[logged_before..].to_vec();
        let logged = String::from_utf8_lossy(&logged).into_owned();
        assert!(
            logged.contains("a panic") && logged.contains("src/lib.rs:"),
            "{point}: {logged}"
        );
        daemon.wait_for_health("ok");
    }
    std::panic::set_hook(before);
    assert!(refused > 0);
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    for (what, text) in [("told", &told), ("logged", &logged)] {
        let line = text.lines().find(|line| line.contains(SECRET));
        assert_eq!(line, None, "{what}");
    }
    // The place is what helps, and it is told.
    assert!(told.contains("reading failed: a panic at fail-"), "{told}");
    // A backtrace, if the environment asks for one, has the places as the compiler knows them.
    let place = logged
        .lines()
        .find(|line| line.contains("place=") && line.contains("/registry/src/"));
    assert_eq!(place, None, "a place of this machine");
}
