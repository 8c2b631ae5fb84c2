//! Rounds of random load and kill -9.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::proof::journal::{Expectation, Found};
use crate::proof::process::{Process, Workspace};
use crate::proof::rows::{self, Vectors};
use crate::proof::workload::{Client, Operation, Shared, Step, list, operations};
use crate::support::Connection;

/// Rounds in all.
const ROUNDS: usize = 50;
/// Rounds on one home, so that damage which only shows later has time to show.
const ROUNDS_PER_HOME: usize = 10;
/// Clients at once.
const CLIENTS: u64 = 8;
/// Writes that are acknowledged before the kill, at least and at most.
const WRITES: std::ops::Range<usize> = 5..60;
/// Items of each client that are looked for by their words and by their meaning, after each restart.
const SEARCHED: usize = 1;
/// Seeds of which a run failed once. Each is run again, one home long, before the new ones.
const FAILED_ONCE: &[u64] = &[];

/// What all rounds did together.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) kills: usize,
    pub(crate) answered: BTreeMap<&'static str, u64>,
    pub(crate) settled: usize,
    pub(crate) applied: usize,
    pub(crate) not_applied: usize,
    pub(crate) rows: usize,
    pub(crate) searches: usize,
}

#[test]
fn fifty_kills_under_load_lose_double_and_halve_nothing() {
    let mut totals = Totals::default();
    if let Ok(seed) = std::env::var("CCOD_CRASH_SEED") {
        let seed = seed.parse().expect("CCOD_CRASH_SEED is a number");
        run_home(seed, ROUNDS_PER_HOME, &mut totals);
    } else {
        for seed in FAILED_ONCE {
            run_home(*seed, ROUNDS_PER_HOME, &mut totals);
        }
        for _ in 0..ROUNDS / ROUNDS_PER_HOME {
            run_home(rand::random(), ROUNDS_PER_HOME, &mut totals);
        }
    }
    println!(
        "crash rounds: {} kills, {} writes acknowledged ({:?}), {} items checked after restarts, {} items of \
         unanswered writes had happened and {} had not, {} rows with their vectors, {} searches",
        totals.kills,
        totals.answered.values().sum::<u64>(),
        totals.answered,
        totals.settled,
        totals.applied,
        totals.not_applied,
        totals.rows,
        totals.searches,
    );
}

fn run_home(seed: u64, count: usize, totals: &mut Totals) {
    println!("seed {seed}: {count} rounds (CCOD_CRASH_SEED={seed} runs them again)");
    let workspace = Workspace::new(format!("seed {seed} failed"));
    // Warm: a restart is then ready for the next round's stores at once.
    workspace.configure("[embedder]\nwarm = true\n");
    let shared = Arc::new(Shared::default());
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|number| Client::new(number, seed, Arc::clone(&shared)))
        .collect();
    let mut dice = StdRng::seed_from_u64(seed);
    let mut vectors = Vectors::default();
    let mut daemon = Process::start(&workspace.home());
    let operations = operations();
    for round in 0..count {
        let writes = dice.random_range(WRITES);
        // Two projects for all, and one that is created while the load runs.
        let projects = ["alpha".to_owned(), "beta".to_owned(), format!("fresh-{round}")];
        clients = load_and_kill(daemon, clients, &operations, &projects, writes);
        totals.kills += 1;
        daemon = Process::start(&workspace.home());
        check(&daemon, &mut clients, &mut vectors, totals)
            .unwrap_or_else(|violations| panic!("seed {seed}, round {round}: {}", violations.join("\n")));
    }
    for client in &clients {
        for (name, count) in &client.answered {
            *totals.answered.entry(name).or_default() += count;
        }
    }
    daemon.stop();
}

/// Runs the clients until so many writes are acknowledged, then kills the daemon under them.
fn load_and_kill(
    daemon: Process,
    clients: Vec<Client>,
    operations: &[&'static Operation],
    projects: &[String],
    writes: usize,
) -> Vec<Client> {
    let acknowledged = AtomicUsize::new(0);
    let (pid, socket) = (daemon.pid(), daemon.socket());
    let clients = std::thread::scope(|scope| {
        let running: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let (acknowledged, socket) = (&acknowledged, &socket);
                scope.spawn(move || {
                    let mut connection = Connection::open(socket);
                    loop {
                        let project = &projects[[0, 0, 0, 1, 2][client.chance(0..5)]];
                        match client.step(&mut connection, operations, project) {
                            Ok(Step::Cut) => return Ok(client),
                            Ok(_) => {}
                            Err(wrong) => {
                                // The others would run on for ever.
                                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
                                return Err(wrong);
                            }
                        }
                        if acknowledged.fetch_add(1, Ordering::SeqCst) + 1 == writes {
                            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("a daemon to kill");
                        }
                    }
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("a client"))
            .collect::<Result<Vec<Client>, String>>()
    });
    daemon.kill();
    clients.unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// Checks after a restart that everything is as it must be, repeats what was not answered, and checks again.
pub(crate) fn check(
    daemon: &Process,
    clients: &mut [Client],
    vectors: &mut Vectors,
    totals: &mut Totals,
) -> Result<(), Vec<String>> {
    let mut connection = daemon.connect();
    let one = |violation: String| vec![violation];

    let found = check_now(daemon, &mut connection, clients, vectors, totals)?;
    let mut repeated = false;
    for client in clients.iter_mut() {
        let had_happened = client.journal.present().had_happened(&found);
        repeated |= client.repeat_open(&mut connection, had_happened).map_err(one)?;
    }
    if repeated {
        // Nothing is open any more: what was repeated is there once.
        check_now(daemon, &mut connection, clients, vectors, totals)?;
    }
    search(&mut connection, clients, totals).map_err(one)
}

fn check_now(
    daemon: &Process,
    connection: &mut Connection,
    clients: &[Client],
    vectors: &mut Vectors,
    totals: &mut Totals,
) -> Result<Vec<Found>, Vec<String>> {
    let one = |violation: String| vec![violation];
    let expectation = Expectation::merge(clients.iter().map(|client| client.journal.present()));
    let mut found = Vec::new();
    let mut violations = Vec::new();
    for project in expectation.projects() {
        let listed = list(connection, &project).map_err(one)?;
        // Beside what the socket says: every row on disk, with its vector.
        let rows = settled(|| runtime().block_on(rows::read(daemon.home(), &project))).map_err(one)?;
        vectors.learn(connection, rows.iter().map(|row| row.passage_text.as_str()));
        violations.extend(rows::check(&rows, vectors));
        let purged = settled(|| match rows::check_purged(daemon.home(), &project, &expectation) {
            found if found.is_empty() => Ok(()),
            found => Err(found.join("\n")),
        });
        violations.extend(purged.err());
        let mut live = rows::live(&project, &rows);
        let mut shown = listed.clone();
        live.sort_by(|a, b| a.id.cmp(&b.id));
        shown.sort_by(|a, b| a.id.cmp(&b.id));
        if live != shown {
            violations.push(format!(
                "project {project}: the socket shows {shown:?}, the table holds {live:?}"
            ));
        }
        totals.rows += rows.len();
        found.extend(listed);
    }
    let comparison = expectation.compare(&found);
    violations.extend(comparison.violations);
    totals.settled += comparison.settled;
    totals.applied += comparison.applied;
    totals.not_applied += comparison.not_applied;
    if violations.is_empty() {
        Ok(found)
    } else {
        Err(violations)
    }
}

/// Looks at the files of a daemon that may be merging and removing some meanwhile: what is wrong only for a short time
/// is not wrong.
fn settled<T>(look: impl Fn() -> Result<T, String>) -> Result<T, String> {
    const LOOKS: usize = 5;
    (1..LOOKS).find_map(|_| look().ok()).map_or_else(look, Ok)
}

/// Looks for some items by their words and by their meaning: the indices are whole as well.
fn search(connection: &mut Connection, clients: &mut [Client], totals: &mut Totals) -> Result<(), String> {
    for client in clients {
        for _ in 0..SEARCHED {
            let live: Vec<(u64, String, String, String)> = client
                .journal
                .items
                .iter()
                .filter_map(|(number, item)| {
                    let content = item.state.visible()?;
                    // A long text is cut as a query, and its vector is not that of one of its passages.
                    (content.text.len() < 200).then(|| {
                        let text = content.text.to_string();
                        (*number, item.id.clone().unwrap_or_default(), item.project.clone(), text)
                    })
                })
                .collect();
            if live.is_empty() {
                continue;
            }
            let (number, id, project, text) = &live[client.chance(0..live.len())];
            for mode in ["text", "vector"] {
                let params = json!({
                    "project_id": project,
                    "query": text,
                    "mode": mode,
                    "metadata": {"item": number},
                });
                let result = connection.call("knowledge.search", params);
                let hit = &result["results"][0];
                if result["count"] != 1 || hit["id"] != json!(id) || hit["text"] != json!(text) {
                    return Err(format!("{id} of {project} is not found by {mode} {text:?}: {result}"));
                }
                if mode == "vector" && hit["similarity"].as_f64().is_none_or(|similarity| similarity < 0.999) {
                    return Err(format!("{id} of {project} is not like its own text: {hit}"));
                }
                totals.searches += 1;
            }
        }
    }
    Ok(())
}

/// Reads tables; one thread is enough for that.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
