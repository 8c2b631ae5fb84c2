//! A large text keeps nobody out while it is stored, and hides nothing once it is there.

use serde_json::json;

use crate::support::{Daemon, ids};

/// More passages than a leg of a search fetches at first.
const SENTENCES: usize = 2_500;

fn long_text() -> String {
    (0..SENTENCES)
        .map(|number| format!("Step {number} of the payment retries waits and tries the charge again. "))
        .collect()
}

#[test]
fn a_large_text_keeps_nobody_out_and_hides_nobody() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect();
    connection.call("knowledge.store", json!({"text": "Loads the model."}));

    let text = long_text();
    let request = json!({"jsonrpc": "2.0", "id": "large", "method": "knowledge.store", "params": {"text": text}});
    connection.send(format!("{request}\n"));
    // On the same connection and on others: none is refused, and none waits for it.
    let search = json!({"jsonrpc": "2.0", "id": "search", "method": "knowledge.search", "params": {"query": "the newest question"}});
    connection.send(format!("{search}\n"));
    let searched = connection.receive().unwrap();
    assert_eq!(searched["id"], "search", "the large one takes longer");
    assert_eq!(searched["result"]["mode"], "hybrid", "{searched}");
    let mut others = daemon.connect();
    let mut notes = Vec::new();
    for number in 0..20 {
        let note = format!("Payment retries, note {number}: the charge is tried again after {number} minutes.");
        let stored = others.call("knowledge.store", json!({"text": note}));
        notes.push(stored["id"].as_str().unwrap().to_owned());
        let found = others.call("knowledge.search", json!({"query": note, "limit": 1}));
        assert_eq!(
            (&found["mode"], &found["results"][0]["id"]),
            (&json!("hybrid"), &stored["id"]),
            "{found}"
        );
    }
    let answer = connection.receive().unwrap();
    let large = &answer["result"];
    assert!(large["passages"].as_u64().is_some_and(|count| count > 100), "{answer}");

    let is_note = |id: &String| notes.contains(id);
    for mode in ["text", "hybrid", "vector"] {
        let params = json!({"query": "payment retries try the charge again", "mode": mode, "limit": 10});
        let found = ids(&daemon.call("knowledge.search", params.clone()));
        assert_eq!(found.len(), 10, "{mode}: {found:?}");
        assert!(found.iter().filter(|id| is_note(id)).count() >= 9, "{mode}: {found:?}");
        let mut params = params;
        params["limit"] = json!(100);
        let found = ids(&daemon.call("knowledge.search", params));
        assert_eq!(
            found.iter().filter(|id| is_note(id)).count(),
            20,
            "{mode}: all of them are found"
        );
    }
    // Its own passages are the nearest of all, and no answer.
    let similar = ids(&daemon.call("knowledge.similar", json!({"id": large["id"], "limit": 10})));
    assert_eq!(similar.iter().filter(|id| is_note(id)).count(), 10, "{similar:?}");
    let similar = ids(&daemon.call("knowledge.similar", json!({"id": notes[0], "limit": 20})));
    assert_eq!(similar.len(), 20, "{similar:?}");

    // The same text by another way is the same work: an update, and one item of a batch.
    let update = json!({"jsonrpc": "2.0", "id": "update", "method": "knowledge.update", "params": {"id": notes[0], "text": format!("Once more. {}", &text[..text.len() / 3])}});
    connection.send(format!("{update}\n"));
    others.call("knowledge.store", json!({"text": "A short one beside an update."}));
    let updated = connection.receive().unwrap();
    assert!(updated.get("result").is_some(), "{updated}");
}
