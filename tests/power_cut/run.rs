//! Records a run, and the tests on the record.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use super::disk::{Fate, Inode, Operation};
use super::order::{self, Table};
use super::trace::{self, Log};
use super::{states, strace};
use crate::proof::journal::Journal;
use crate::proof::process::{Process, Workspace};
use crate::proof::workload::{Client, OPERATIONS, Shared, Step, back_up, operation, operations};
use crate::support::Connection;

/// Times that each operation is run one after the other, at the beginning.
const EACH: usize = 2;
/// Clients at once, and the writes of each.
const CLIENTS: u64 = 6;
const WRITES: usize = 25;
/// Stores one after the other, so that upkeep comes to everything it does: 12 make it fold rows into the index
/// and merge fragments, and versions are pruned from 64 on.
const STORES: usize = 100;
/// Cuts of the power.
const CUTS: usize = 300;
/// Cuts of the run whose acknowledgements promise less.
const FAST_CUTS: usize = 40;

/// A run: what happened on the disk, and what was asked.
struct Run {
    log: Log,
    journals: Vec<Journal>,
    tables: std::collections::HashMap<Inode, Table>,
}

/// Records what the daemon does while `load` runs.
fn record(workspace: &Workspace, durability: &str, load: impl FnOnce(&Process) -> Vec<Client>) -> Run {
    let strace_log = workspace.path().join("strace.log");
    let mut strace = Command::new("strace");
    strace
        // All threads; stop at these calls alone; whole strings, in hexadecimal; no signals.
        .args(["-f", "--seccomp-bpf", "-xx", "-s", "67108864", "-e", "signal=none"])
        .arg("-e")
        .arg(format!("trace={}", trace::CALLS))
        .arg("-o")
        .arg(&strace_log);
    assert!(
        Command::new("strace").arg("-V").output().is_ok(),
        "strace is not installed; scripts/install-deps.sh installs it"
    );
    let daemon = Process::start_as(&workspace.home(), strace, &["--durability", durability]);
    let clients = load(&daemon);
    daemon.stop();

    let begun = Instant::now();
    let text = std::fs::read_to_string(&strace_log).expect("what strace wrote");
    let calls = strace::parse(&text).unwrap_or_else(|wrong| panic!("the record cannot be read, {wrong}"));
    let log = trace::translate(&calls, workspace.path())
        .unwrap_or_else(|wrong| panic!("the record cannot be followed, {wrong}"));
    let entries = trace::compare_with_reality(&log, workspace.path())
        .unwrap_or_else(|wrong| panic!("the record is not what happened: {wrong}"));
    let scratch = workspace.path().join("tables");
    let tables = runtime()
        .block_on(order::read_tables(&log, &scratch))
        .unwrap_or_else(|wrong| panic!("the recorded tables cannot be read: {wrong}"));
    println!(
        "recorded ({durability}): {} calls in {} MB, {} steps; all {entries} files and directories are as recorded; \
         {} tables with {} versions; read in {:.1} s",
        calls.len(),
        text.len() >> 20,
        log.operations.len(),
        tables.len(),
        tables.values().map(|table| table.versions.len()).sum::<usize>(),
        begun.elapsed().as_secs_f64(),
    );
    Run {
        log,
        journals: clients.into_iter().map(|client| client.journal).collect(),
        tables,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Every kind of write, first one after the other, then by several clients at once, then enough for all upkeep.
fn all_writes(daemon: &Process, seed: u64) -> Vec<Client> {
    let shared = Arc::new(Shared::default());
    let mut connection = daemon.connect();
    let operations = operations();
    let mut first = Client::new(0, seed, Arc::clone(&shared));
    let run = |client: &mut Client, connection: &mut Connection, name: &str| {
        let step = client
            .run(connection, operation(name), "alpha")
            .unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_ne!(step, Step::Cut, "the daemon is gone");
    };
    for _ in 0..EACH {
        run(&mut first, &mut connection, "store a batch");
        for operation in &operations {
            run(&mut first, &mut connection, operation.name);
        }
    }
    let others: Vec<Client> = std::thread::scope(|scope| {
        let running: Vec<_> = (1..=CLIENTS)
            .map(|number| {
                let mut client = Client::new(number, seed, Arc::clone(&shared));
                let (mut connection, operations) = (daemon.connect(), &operations);
                scope.spawn(move || {
                    for _ in 0..WRITES {
                        let project = ["alpha", "alpha", "beta"][client.chance(0..3)];
                        let step = client.step(&mut connection, operations, project);
                        assert_eq!(step, Ok(Step::Answered));
                    }
                    client
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("a client"))
            .collect()
    });
    for _ in 0..STORES {
        run(&mut first, &mut connection, "store by id");
    }
    for operation in &operations {
        run(&mut first, &mut connection, operation.name);
    }
    let mut clients = vec![first];
    clients.extend(others);
    clients
}

/// How often the log does what a name stands for.
fn count(log: &Log, does: impl Fn(&Operation, &str) -> bool) -> usize {
    let path = |inode: &Inode| {
        log.paths
            .get(inode)
            .map_or_else(String::new, |path| path.display().to_string())
    };
    log.operations
        .iter()
        .filter(|operation| match operation {
            Operation::MakeDirectory { inode, .. } | Operation::Link { inode, .. } => does(operation, &path(inode)),
            Operation::Remove {
                place: (directory, name),
            } => does(operation, &format!("{}/{name}", path(directory))),
            _ => false,
        })
        .count()
}

/// Whether a sync is of a kind, by its path.
type Concerns = fn(&Path) -> bool;

/// The syncs that are left out to see whether the check notices: of which files and directories.
const LEFT_OUT: [(&str, Concerns); 9] = [
    ("data files", |path| in_directory(path, "data")),
    ("the directories of data files", |path| path.ends_with("data")),
    ("files of deleted rows", |path| in_directory(path, "_deletions")),
    ("the directories of tables", |path| {
        path.extension().is_some_and(|extension| extension == "lance") && !in_directory(path, "data")
    }),
    ("index files", |path| {
        path.components().any(|part| part.as_os_str() == "_indices") && path.extension().is_some()
    }),
    ("manifests", |path| in_directory(path, "_versions")),
    ("the directories of manifests", |path| path.ends_with("_versions")),
    ("the directories of projects", |path| path.ends_with("home/knowledge")),
    ("the home", |path| path.ends_with("home")),
];

fn in_directory(path: &Path, name: &str) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with(name))
}

fn without_syncs(log: &Log, of: fn(&Path) -> bool) -> Vec<Operation> {
    let mut tickets = std::collections::HashSet::new();
    let mut left = Vec::with_capacity(log.operations.len());
    for operation in &log.operations {
        match operation {
            Operation::SyncBegins { ticket, inode } if log.paths.get(inode).is_some_and(|path| of(path)) => {
                tickets.insert(*ticket);
            }
            Operation::SyncEnded { ticket } if tickets.contains(ticket) => {}
            operation => left.push(operation.clone()),
        }
    }
    left
}

fn show(violations: &[String]) -> String {
    let shown: Vec<&str> = violations.iter().take(20).map(String::as_str).collect();
    format!("{} violations, such as:\n{}", violations.len(), shown.join("\n"))
}

fn seed() -> u64 {
    match std::env::var("CCOD_POWER_CUT_SEED") {
        Ok(seed) => seed.parse().expect("CCOD_POWER_CUT_SEED is a number"),
        Err(_) => rand::random(),
    }
}

#[test]
fn an_acknowledged_write_survives_a_power_cut_at_any_moment() {
    let seed = seed();
    println!("seed {seed} (CCOD_POWER_CUT_SEED={seed} makes the same requests and cuts)");
    let workspace = Workspace::new(format!("seed {seed} failed"));
    let run = record(&workspace, "full", |daemon| all_writes(daemon, seed));

    // Everything that commits was there.
    let log = &run.log;
    let versions = count(log, |step, path| {
        matches!(step, Operation::Link { .. }) && path.ends_with(".manifest")
    });
    let indices = count(log, |step, path| {
        matches!(step, Operation::MakeDirectory { .. }) && path.contains("_indices/")
    });
    let pruned = count(log, |step, path| {
        matches!(step, Operation::Remove { .. }) && path.ends_with(".manifest")
    });
    let merged = count(log, |step, path| {
        matches!(step, Operation::Remove { .. }) && path.contains("/data/")
    });
    assert!(
        indices > 8 && pruned > 0 && merged > 0,
        "no upkeep: {indices} {pruned} {merged}"
    );
    let mut answered: BTreeMap<&str, usize> = BTreeMap::new();
    for request in run.journals.iter().flat_map(|journal| &journal.requests) {
        *answered.entry(request.operation).or_default() += 1;
    }
    for operation in OPERATIONS {
        assert!(answered.contains_key(operation.name), "no {}", operation.name);
    }

    // From the record alone.
    let order = order::check(&log.operations, &run.tables, &run.journals);
    println!(
        "order: {} acknowledged writes in {} versions, {} syncs checked; {versions} versions, {indices} index builds, \
         {pruned} versions pruned, {merged} data files removed; {answered:?}",
        order.writes, order.versions, order.files
    );
    // A check that is passed by a record without the syncs would check nothing.
    for (what, of) in LEFT_OUT {
        let report = order::check(&without_syncs(log, of), &run.tables, &run.journals);
        assert!(!report.violations.is_empty(), "without the syncs of {what} all is well");
    }

    // From what a cut leaves.
    let begun = Instant::now();
    let embedder = embedder(&workspace);
    let scratch = workspace.path().join("states");
    let report = states::check(log, &run.journals, CUTS, seed, &scratch, &embedder.socket());
    println!(
        "power cuts: {} of {} steps, {} states built ({:?}: {:?}), {} different ones opened in {:.1} s, {} of them \
         tidied up, {} written to afterwards; {} acknowledged items checked, {} items of unanswered writes were there \
         and {} were not",
        CUTS,
        report.moments,
        report.built.iter().sum::<usize>(),
        [Fate::Lost, Fate::Kept, Fate::NamesOnly, Fate::Random],
        report.built,
        report.opened,
        begun.elapsed().as_secs_f64(),
        report.tidied,
        report.written,
        report.items,
        report.unanswered[0],
        report.unanswered[1],
    );
    embedder.stop();
    assert_eq!(
        order.writes,
        run.journals.iter().map(|journal| journal.requests.len()).sum::<usize>()
    );
    assert!(order.violations.is_empty(), "{}", show(&order.violations));
    assert!(report.violations.is_empty(), "{}", show(&report.violations));
    assert_eq!(report.set_aside, 0, "a commit in this order is never torn");
}

/// A daemon that embeds texts for the comparison of vectors.
fn embedder(workspace: &Workspace) -> Process {
    let directory = workspace.path().join("embedder");
    std::fs::create_dir(&directory).expect("a directory");
    Process::start(&directory.join("home"))
}

#[test]
fn a_backup_and_a_restore_survive_a_power_cut_at_any_moment() {
    let seed = seed();
    println!("seed {seed} (CCOD_POWER_CUT_SEED={seed} makes the same requests and cuts)");
    let workspace = Workspace::new(format!("seed {seed} failed"));
    let run = record(&workspace, "full", |daemon| {
        let mut connection = daemon.connect();
        let mut client = Client::new(0, seed, Arc::new(Shared::default()));
        let step = |client: &mut Client, connection: &mut Connection, name: &str| {
            assert_eq!(client.run(connection, operation(name), "vault"), Ok(Step::Answered));
        };
        for _ in 0..3 {
            step(&mut client, &mut connection, "store a batch");
        }
        step(&mut client, &mut connection, "delete one");
        let backup = workspace.path().join("backup");
        back_up(&mut connection, &backup);
        let snapshot = client.snapshot("vault");
        for _ in 0..2 {
            step(&mut client, &mut connection, "store by id");
            step(&mut client, &mut connection, "delete several");
            assert_eq!(client.restore(&mut connection, &backup, &snapshot), Ok(Step::Answered));
            step(&mut client, &mut connection, "store by id");
        }
        vec![client]
    });
    let order = order::check(&run.log.operations, &run.tables, &run.journals);
    let embedder = embedder(&workspace);
    let scratch = workspace.path().join("states");
    let report = states::check(&run.log, &run.journals, CUTS / 2, seed, &scratch, &embedder.socket());
    println!(
        "power cuts of backup and restore: {} steps, {} writes and {} syncs in order, {} states opened, {} tidied up, \
         {} acknowledged items checked",
        report.moments, order.writes, order.files, report.opened, report.tidied, report.items
    );
    embedder.stop();
    assert!(order.violations.is_empty(), "{}", show(&order.violations));
    assert!(report.violations.is_empty(), "{}", show(&report.violations));
    assert_eq!(report.set_aside, 0, "a commit in this order is never torn");
}

/// The other way round: acknowledgements that promise less are found out by both checks.
#[test]
fn the_checks_find_what_durability_fast_does_not_promise() {
    let seed = seed();
    let workspace = Workspace::new(format!("seed {seed} failed"));
    let run = record(&workspace, "fast", |daemon| {
        let mut client = Client::new(0, seed, Arc::new(Shared::default()));
        let mut connection = daemon.connect();
        for _ in 0..10 {
            let step = client.run(&mut connection, operation("store by id"), "alpha");
            assert_eq!(step, Ok(Step::Answered));
        }
        vec![client]
    });
    let order = order::check(&run.log.operations, &run.tables, &run.journals);
    let embedder = embedder(&workspace);
    let scratch = workspace.path().join("states");
    let report = states::check(&run.log, &run.journals, FAST_CUTS, seed, &scratch, &embedder.socket());
    println!(
        "durability fast: {} violations of the order in {} writes, {} in {} states",
        order.violations.len(),
        order.writes,
        report.violations.len(),
        report.opened
    );
    embedder.stop();
    assert!(order.violations.len() >= order.writes && !report.violations.is_empty());
}
