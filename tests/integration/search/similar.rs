//! What resembles an item is found by its id.

use serde_json::json;

use crate::rig::Rig;
use crate::support::{Daemon, exits, ids, stdout};

#[test]
fn what_resembles_an_item_is_found_without_the_item() {
    let daemon = Daemon::start();
    let bread = daemon.store("Sourdough bread needs a starter and a long fermentation.");
    let cake = daemon.store("A cake rises with baking powder and is baked for forty minutes.");
    daemon.store("The kernel schedules threads by virtual runtime.");
    let found = daemon.call("knowledge.similar", json!({"id": bread, "limit": 1}));
    assert_eq!(ids(&found), [cake]);
    assert_eq!(found["mode"], "vector");
    assert_eq!(
        daemon.call_error("knowledge.similar", json!({"id": "no-such"}))["code"],
        -32020
    );
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
