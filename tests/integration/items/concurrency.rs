//! Many clients at once.

use std::sync::Arc;

use serde_json::json;

use crate::support::Daemon;

/// 64 connections, each with a store and searches at the same time: every answer is its own, and the embedder
/// and the writer have put the work together.
#[test]
fn sixty_four_connections_are_answered_correctly_in_fewer_passes_and_commits() {
    const CLIENTS: usize = 64;
    let daemon = Arc::new(Daemon::start());
    daemon.store("warm up the model");
    let passes_before = daemon.status_number("/actors/embedder/counters/forward_passes");
    let commits_before = daemon.status_number("/actors/writer/counters/commits");
    let gate = Arc::new(std::sync::Barrier::new(CLIENTS));
    let threads: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (daemon, gate) = (Arc::clone(&daemon), Arc::clone(&gate));
            std::thread::spawn(move || {
                let mut connection = daemon.connect();
                let text = format!(
                    "client {client} learned that service number {client} listens on port {}",
                    9_000 + client
                );
                gate.wait();
                let stored = connection.call("knowledge.store", json!({"text": text}));
                let found = connection.call("knowledge.search", json!({"query": text, "limit": 1}));
                assert_eq!(found["results"][0]["id"], stored["id"]);
                assert_eq!(found["results"][0]["text"], text);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let passes = daemon.status_number("/actors/embedder/counters/forward_passes") - passes_before;
    let commits = daemon.status_number("/actors/writer/counters/commits") - commits_before;
    assert!(
        passes < CLIENTS as u64,
        "{passes} forward passes for {} requests",
        2 * CLIENTS
    );
    assert!(commits < CLIENTS as u64, "{commits} commits for {CLIENTS} stores");
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], CLIENTS as u64 + 1);
}

/// Single stores of many clients share versions; those of one client alone do not wait for one another.
#[test]
fn single_stores_of_many_clients_share_their_commits() {
    const CLIENTS: usize = 64;
    const STORES: usize = 6;
    let daemon = Daemon::start();
    daemon.store("warm up the model");
    let commits = || daemon.status_number("/actors/writer/counters/commits");
    let before = commits();
    let gate = std::sync::Barrier::new(CLIENTS);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (daemon, gate) = (&daemon, &gate);
            scope.spawn(move || {
                let mut connection = daemon.connect();
                gate.wait();
                for number in 0..STORES {
                    connection.call(
                        "knowledge.store",
                        json!({"text": format!("client {client} fact {number}")}),
                    );
                }
            });
        }
    });
    let shared = commits() - before;
    // 1/16 is what the benchmark asks for; a machine that is busy with other things gets some room.
    let most = (CLIENTS * STORES / 10) as u64;
    assert!(shared <= most, "{shared} commits for {} stores", CLIENTS * STORES);

    let before = commits();
    for number in 0..5 {
        daemon.store(&format!("alone {number}"));
    }
    assert_eq!(commits() - before, 5);
}

/// One connection, many requests at once: answers may come in any order, each with its id.
#[test]
fn pipelined_requests_are_matched_by_id() {
    let daemon = Daemon::start();
    daemon.store("pipelining is allowed");
    let mut connection = daemon.connect();
    let mut expected = std::collections::BTreeSet::new();
    for id in 0..100 {
        expected.insert(id);
        let (method, params) = match id % 3 {
            0 => ("knowledge.search", json!({"query": "pipelining", "mode": "text"})),
            1 => ("knowledge.stats", json!({})),
            _ => ("admin.health", json!({})),
        };
        connection.send(format!(
            "{}\n",
            json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
        ));
    }
    connection.finish_writing();
    while let Some(response) = connection.receive() {
        assert!(response.get("error").is_none(), "{response}");
        assert!(
            expected.remove(&response["id"].as_i64().unwrap()),
            "answered twice: {response}"
        );
    }
    assert!(expected.is_empty(), "unanswered: {expected:?}");
}
