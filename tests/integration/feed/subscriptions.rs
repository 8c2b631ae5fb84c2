//! The change feed.

use serde_json::{Value, json};

use crate::support::{Connection, Daemon, Home};

fn subscribe(connection: &mut Connection, params: Value) -> (String, String) {
    let result = connection.call("knowledge.subscribe", params);
    (
        result["subscription"].as_str().unwrap().to_owned(),
        result["cursor"].as_str().unwrap().to_owned(),
    )
}

fn next_change(connection: &mut Connection, subscription: &str) -> Value {
    let notification = connection.receive().expect("a change");
    assert_eq!(notification["method"], "knowledge.changed", "{notification}");
    assert!(notification.get("id").is_none());
    assert_eq!(notification["params"]["subscription"], subscription);
    notification["params"]["result"].clone()
}

#[test]
fn changes_arrive_in_order_and_can_be_resumed_after_a_restart() {
    let daemon = Daemon::start();
    daemon.store("before the subscription");
    let mut subscriber = daemon.connect();
    let (subscription, start) = subscribe(&mut subscriber, json!({}));
    let mut expected = Vec::new();
    for number in 0..5 {
        expected.push(daemon.store(&format!("change number {number}")));
    }
    daemon.call("knowledge.store", json!({"text": "elsewhere", "project_id": "other"}));
    let mut cursors = Vec::new();
    for (number, id) in expected.iter().enumerate() {
        let change = next_change(&mut subscriber, &subscription);
        assert_eq!(
            (&change["op"], &change["id"], &change["project_id"]),
            (&json!("store"), &json!(id), &json!("default"))
        );
        assert_eq!(change["text"], format!("change number {number}"));
        assert_eq!(change["version"], number as u64 + 2);
        cursors.push(change["cursor"].as_str().unwrap().to_owned());
    }

    // From the middle, and from the very start, on another day of the daemon's life.
    let daemon = daemon.kill_and_restart();
    let mut resumed = daemon.connect();
    let (subscription, _) = subscribe(&mut resumed, json!({"cursor": cursors[2], "with_text": false}));
    for id in &expected[3..] {
        let change = next_change(&mut resumed, &subscription);
        assert_eq!(change["id"], json!(id));
        assert!(change.get("text").is_none());
    }
    let after = daemon.store("after the restart");
    assert_eq!(next_change(&mut resumed, &subscription)["id"], json!(after));
    let mut again = daemon.connect();
    let (subscription, _) = subscribe(&mut again, json!({"cursor": start}));
    for id in &expected {
        assert_eq!(next_change(&mut again, &subscription)["id"], json!(id));
    }
}

#[test]
fn every_project_can_be_followed_and_a_feed_can_be_ended() {
    let daemon = Daemon::start();
    let mut subscriber = daemon.connect();
    let (subscription, _) = subscribe(&mut subscriber, json!({"project_id": "*"}));
    // A project that did not exist when the feed began is part of "every".
    for project in ["one", "two"] {
        let stored = daemon.call("knowledge.store", json!({"text": "news", "project_id": project}));
        let change = next_change(&mut subscriber, &subscription);
        assert_eq!((&change["project_id"], &change["id"]), (&json!(project), &stored["id"]));
    }
    assert_eq!(
        subscriber.call("knowledge.unsubscribe", json!({"subscription": subscription})),
        true
    );
    let error = subscriber.call_error("knowledge.unsubscribe", json!({"subscription": subscription}));
    assert_eq!(
        (&error["code"], &error["data"]["parameter"]),
        (&json!(-32602), &json!("subscription"))
    );
    daemon.call("knowledge.store", json!({"text": "unheard", "project_id": "one"}));
    assert_eq!(
        subscriber.call("admin.health", json!({}))["status"],
        "ok",
        "nothing came in between"
    );
    let error = subscriber.call_error("knowledge.subscribe", json!({"cursor": "nonsense"}));
    assert_eq!(
        (&error["code"], &error["data"]["parameter"]),
        (&json!(-32602), &json!("cursor"))
    );
}

/// A subscriber that does not read slows nobody, is told that it lags, and misses nothing when it resumes.
#[test]
fn a_subscriber_that_stops_reading_is_told_where_to_resume() {
    // However long the stores below take, the connection stays open meanwhile.
    let daemon = Daemon::start_in(Home::new(), &[("CCO_LIMITS__WRITE_TIMEOUT_MS", "120000")]);
    let mut slow = daemon.connect();
    let (subscription, _) = subscribe(&mut slow, json!({}));
    let mut expected = Vec::new();
    // One word each, so that they are quick to embed, and too long for the buffers in between.
    for batch in 0..5 {
        let items: Vec<Value> = (0..30)
            .map(|number| json!({"id": format!("{batch}-{number:02}"), "text": format!("{batch}-{number}-{}", "x".repeat(40_000))}))
            .collect();
        let stored = daemon.call("knowledge.store_batch", json!({"items": items}));
        let ids = stored["ids"].as_array().unwrap();
        expected.extend(ids.iter().map(|id| id.as_str().unwrap().to_owned()));
    }
    // Longer than the patience of the feed (5 s).
    std::thread::sleep(std::time::Duration::from_millis(6_500));
    let mut seen = Vec::new();
    let cursor = loop {
        let change = next_change(&mut slow, &subscription);
        if change["op"] == "lagged" {
            assert!(change.get("resync").is_none(), "{change}");
            break change["cursor"].as_str().unwrap().to_owned();
        }
        seen.push(change["id"].as_str().unwrap().to_owned());
        assert!(seen.len() < expected.len(), "it never lagged");
    };
    let mut resumed = daemon.connect();
    let (subscription, _) = subscribe(&mut resumed, json!({"cursor": cursor, "with_text": false}));
    // A group is resumed from its beginning, so some may come again; none may be left out.
    while seen.last() != expected.last() {
        let id = next_change(&mut resumed, &subscription)["id"]
            .as_str()
            .unwrap()
            .to_owned();
        if !seen.contains(&id) {
            seen.push(id);
        }
    }
    assert_eq!(seen, expected);
}

/// Longer than others may leave their socket full: who comes back is told, and not just cut off.
#[test]
fn a_subscriber_that_is_away_for_a_while_is_told_where_to_resume() {
    let daemon = Daemon::start();
    let (_, beginning) = subscribe(&mut daemon.connect(), json!({}));
    for batch in 0..5 {
        let items: Vec<Value> = (0..30)
            .map(|number| json!({"text": format!("{batch}-{number}-{}", "x".repeat(40_000))}))
            .collect();
        daemon.call("knowledge.store_batch", json!({"items": items}));
    }
    let mut away = daemon.connect();
    let (subscription, _) = subscribe(&mut away, json!({"cursor": beginning}));
    std::thread::sleep(std::time::Duration::from_secs(14));
    let told = std::iter::repeat_with(|| next_change(&mut away, &subscription));
    let lagged: Vec<Value> = told
        .take(150)
        .skip_while(|change| change["op"] != "lagged")
        .take(1)
        .collect();
    assert_eq!(lagged.len(), 1, "it never lagged");
    assert!(lagged[0]["cursor"].is_string(), "{}", lagged[0]);
}

/// Whoever subscribes must know the id of the subscription before the first change of it comes.
#[test]
fn the_answer_to_a_subscription_comes_before_its_first_change() {
    /// Ends the writers also where the test fails.
    struct Over<'a>(&'a std::sync::atomic::AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    let daemon = Daemon::start();
    // From the very beginning, so that there is something to send at once.
    let empty = daemon.connect().call("knowledge.subscribe", json!({"project_id": "*"}));
    let beginning = empty["cursor"].as_str().unwrap().to_owned();
    daemon.store("before");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for writer in 0..3 {
            let (daemon, over) = (&daemon, &over);
            scope.spawn(move || {
                let mut connection = daemon.connect();
                let mut number = 0;
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    let text = format!("{writer} {number}");
                    connection.call("knowledge.store", json!({"text": text}));
                    number += 1;
                }
            });
        }
        for round in 0..100 {
            let mut connection = daemon.connect();
            let params = json!({"project_id": "*", "cursor": beginning, "with_text": false});
            let request = |id| json!({"jsonrpc": "2.0", "id": id, "method": "knowledge.subscribe", "params": params});
            // Alone, and in a batch, which has one line for all of its answers.
            let sent = if round % 2 == 0 {
                request(1)
            } else {
                json!([request(1), request(2)])
            };
            connection.send(format!("{sent}\n"));
            let first = connection.receive().unwrap();
            let answers = match &first {
                Value::Array(answers) => answers.clone(),
                answer => vec![answer.clone()],
            };
            let ids: Vec<&str> = answers
                .iter()
                .map(|answer| {
                    answer["result"]["subscription"]
                        .as_str()
                        .unwrap_or_else(|| panic!("{first}"))
                })
                .collect();
            let change = connection.receive().unwrap();
            let of = change["params"]["subscription"].as_str().unwrap();
            assert!(ids.contains(&of), "{change}");
        }
    });
}

/// Of many projects a cursor does not name them all, and is as good as one that does.
#[test]
fn a_cursor_of_many_projects_is_short_and_survives_a_restart() {
    let project = |number: usize| format!("a-project-with-quite-a-long-name-{number:02}");
    let store = |daemon: &Daemon, number: usize| {
        let text = format!("news of {number} at {:?}", std::time::Instant::now());
        let stored = daemon.call("knowledge.store", json!({"text": text, "project_id": project(number)}));
        stored["id"].as_str().unwrap().to_owned()
    };
    let daemon = Daemon::start();
    for number in 0..24 {
        store(&daemon, number);
    }
    let mut subscriber = daemon.connect();
    let (subscription, start) = subscribe(&mut subscriber, json!({"project_id": "*", "with_text": false}));
    let mut cursors = vec![start];
    let ids: Vec<String> = (0..12).map(|number| store(&daemon, number)).collect();
    for id in &ids {
        let change = next_change(&mut subscriber, &subscription);
        assert_eq!(change["id"], json!(id));
        cursors.push(change["cursor"].as_str().unwrap().to_owned());
    }
    let longest = cursors.iter().map(String::len).max().unwrap();
    assert!(longest < 600, "{longest}");

    let daemon = daemon.kill_and_restart();
    for (seen, cursor) in cursors.iter().enumerate() {
        let mut resumed = daemon.connect();
        let (subscription, again) = subscribe(&mut resumed, json!({"project_id": "*", "cursor": cursor}));
        assert!(again.len() < 600, "{}", again.len());
        // In the order of the projects, which is that of the stores.
        for id in &ids[seen..] {
            assert_eq!(
                next_change(&mut resumed, &subscription)["id"],
                json!(id),
                "after {seen}"
            );
        }
    }
    // One that names every project, as those of before did.
    let plain: Vec<String> = (0..24).map(|number| format!("{}/1", project(number))).collect();
    let long: String = plain.join("\n").bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut resumed = daemon.connect();
    let (subscription, again) = subscribe(&mut resumed, json!({"project_id": "*", "cursor": long}));
    assert!(again.len() < 600, "{}", again.len());
    for id in &ids {
        assert_eq!(next_change(&mut resumed, &subscription)["id"], json!(id));
    }
    let late = store(&daemon, 20);
    assert_eq!(next_change(&mut resumed, &subscription)["id"], json!(late));

    // Where the positions are gone nobody knows what was seen.
    std::fs::remove_dir_all(daemon.home.path().join("knowledge/.feed-positions")).unwrap();
    let mut lost = daemon.connect();
    let (subscription, _) = subscribe(&mut lost, json!({"project_id": "*", "cursor": cursors[3]}));
    let lagged = next_change(&mut lost, &subscription);
    assert_eq!((&lagged["op"], &lagged["resync"]), (&json!("lagged"), &json!(true)));
    let mut resumed = daemon.connect();
    let (subscription, _) = subscribe(&mut resumed, json!({"project_id": "*", "cursor": lagged["cursor"]}));
    let last = store(&daemon, 3);
    assert_eq!(next_change(&mut resumed, &subscription)["id"], json!(last));
}

/// A text is the one that the change made, whatever became of the item since.
#[test]
fn texts_are_those_of_the_changes_also_where_the_items_have_changed_since() {
    let daemon = Daemon::start();
    let (_, start) = subscribe(&mut daemon.connect(), json!({}));
    let id = daemon.store("as it was first");
    for text in ["as it was then", "as it was in the end"] {
        daemon.call("knowledge.update", json!({"id": id, "text": text}));
    }
    let deleted = daemon.call("knowledge.delete", json!({"id": id}));
    daemon.call("knowledge.undelete", json!({"undo_token": deleted["undo_token"]}));
    let other = daemon.store("stays as it is");
    let wanted = [
        ("store", &id, Some("as it was first")),
        ("update", &id, Some("as it was then")),
        ("update", &id, Some("as it was in the end")),
        ("delete", &id, None),
        ("undelete", &id, Some("as it was in the end")),
        ("store", &other, Some("stays as it is")),
    ];
    let told = |daemon: &Daemon, with_text: bool| {
        let mut connection = daemon.connect();
        let params = json!({"cursor": start, "with_text": with_text});
        let (subscription, _) = subscribe(&mut connection, params);
        for (op, id, text) in &wanted {
            let change = next_change(&mut connection, &subscription);
            assert_eq!((&change["op"], &change["id"]), (&json!(op), &json!(id)), "{change}");
            assert_eq!(change["text"].as_str(), text.filter(|_| with_text), "{change}");
        }
    };
    for with_text in [true, false] {
        told(&daemon, with_text);
    }
    let daemon = daemon.kill_and_restart();
    for with_text in [true, false] {
        told(&daemon, with_text);
    }
}
