//! kill -9 in the middle of what a random moment seldom meets. A watcher looks at the directories as fast as it
//! can and kills when they have changed so many times; the number goes from one step of the work to the next.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ccod_actors::lance::Dataset;
use ccod_actors::lance::index::DatasetIndexExt;
use serde_json::{Value, json};

use crate::proof::process::{Process, Workspace};
use crate::proof::rows::{Vectors, table_path};
use crate::proof::workload::{Client, Operation, Shared, Step, back_up, operation, operations};
use crate::rounds::{Totals, check, runtime};
use crate::support::{Connection, PATIENCE};

/// Changes of the directories after which a creation is killed, at most. A creation with its first store makes
/// about 20, of which the watcher sees most.
const CREATION_CHANGES: usize = 16;
/// Changes after which every other write is killed, at most. One makes four or five, a purge more.
const WRITE_CHANGES: usize = 4;
const PURGE_CHANGES: usize = 12;
/// Changes after which a restore is killed, at most.
const RESTORE_CHANGES: usize = 16;
/// Kills in the middle of an index build, and of a merge of fragments, that the test wants to see.
const WANTED: usize = 4;
/// Kills at most to get there.
const UPKEEP_KILLS: usize = 60;
/// Changes after which upkeep is killed, at most.
const UPKEEP_CHANGES: usize = 3;
/// Fragments that make upkeep due, as in the store's `maintenance.rs`; each store makes one.
const UNINDEXED_FRAGMENTS: usize = 12;
/// Items of a delete by filter that is killed, and how many of them are one of its commits: its configuration has
/// groups of one row, and a commit of it is four of them.
const CUT_ITEMS: usize = 24;
const CUT: usize = 4;
/// Kills of it, each two changes later than the one before.
const CUT_KILLS: usize = 12;
/// Nothing has changed for so long: what was to be watched is over.
const REST: Duration = Duration::from_secs(2);

/// Everything below some directories, by path.
fn listing(roots: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut directories = roots.to_vec();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Kills the daemon when what lies below `roots` has changed `changes` times, or when `over` says that there will
/// be no more changes.
fn kill_after(daemon: Process, roots: &[PathBuf], changes: usize, over: impl Fn(Instant) -> bool) {
    let begun = Instant::now();
    let mut before = listing(roots);
    let mut last_change = begun;
    let mut seen = 0;
    while seen < changes && !over(last_change) {
        let now = listing(roots);
        if now != before {
            seen += 1;
            before = now;
            last_change = Instant::now();
        }
        assert!(begun.elapsed() < PATIENCE, "the work does not end: {}", daemon.log());
    }
    daemon.kill();
}

/// One home with one client, for as many kills as a test needs.
struct Scene {
    workspace: Workspace,
    client: Client,
    vectors: Vectors,
    totals: Totals,
    name: &'static str,
}

impl Scene {
    fn new(name: &'static str) -> Self {
        let seed: u64 = rand::random();
        println!("{name}: seed {seed}");
        let workspace = Workspace::new(format!("{name}, seed {seed}"));
        workspace.configure("[embedder]\nwarm = true\n");
        Self {
            workspace,
            client: Client::new(0, seed, Arc::new(Shared::default())),
            vectors: Vectors::default(),
            totals: Totals::default(),
            name,
        }
    }

    fn start(&self) -> Process {
        Process::start(&self.workspace.home())
    }

    /// Runs one operation to its end.
    fn run(&mut self, connection: &mut Connection, operation: &'static Operation, project: &str) {
        match self.client.run(connection, operation, project) {
            Ok(Step::Answered) => {}
            Ok(step) => panic!("{} in {project}: {step:?}", operation.name),
            Err(wrong) => panic!("{wrong}"),
        }
    }

    /// Starts `work` and kills the daemon when the directories have changed `changes` times, or after the
    /// answer. True if there was no answer.
    fn kill_during(
        &mut self,
        daemon: Process,
        changes: usize,
        work: impl FnOnce(&mut Client, &mut Connection) -> Result<Step, String> + Send,
    ) -> bool {
        let roots = [self.workspace.home().join("knowledge")];
        let mut connection = daemon.connect();
        let client = &mut self.client;
        let step = std::thread::scope(|scope| {
            let working = scope.spawn(move || work(client, &mut connection));
            kill_after(daemon, &roots, changes, |_| working.is_finished());
            working.join().expect("a client")
        });
        self.totals.kills += 1;
        match step {
            Ok(step) => step == Step::Cut,
            Err(wrong) => panic!("{wrong}"),
        }
    }

    /// Restarts, checks everything, repeats what was not answered, checks again.
    fn restart(&mut self) -> Process {
        let daemon = self.start();
        let clients = std::slice::from_mut(&mut self.client);
        check(&daemon, clients, &mut self.vectors, &mut self.totals)
            .unwrap_or_else(|violations| panic!("{}", violations.join("\n")));
        daemon
    }

    fn report(&self, what: &str) {
        println!(
            "{}: {} kills, {what}, {} items checked after restarts, {} of unanswered writes had happened and {} had not",
            self.name, self.totals.kills, self.totals.settled, self.totals.applied, self.totals.not_applied
        );
    }
}

#[test]
fn a_kill_at_any_step_of_a_projects_creation_leaves_a_project_or_none() {
    let mut scene = Scene::new("creation");
    let mut daemon = scene.start();
    let mut unanswered = 0;
    for changes in 1..=CREATION_CHANGES {
        let project = format!("new-{changes}");
        let store = operation("store by id");
        unanswered += usize::from(scene.kill_during(daemon, changes, |client, connection| {
            client.run(connection, store, &project)
        }));
        daemon = scene.restart();
    }
    daemon.stop();
    scene.report(&format!("{unanswered} before the answer"));
    assert!(
        unanswered >= CREATION_CHANGES / 4,
        "too few kills came before the answer: {unanswered}"
    );
}

#[test]
fn a_kill_at_any_step_of_any_write_leaves_it_whole_or_undone() {
    let mut scene = Scene::new("writes");
    let mut daemon = scene.start();
    let mut unanswered = 0;
    for operation in operations() {
        let changes = if operation.method == "knowledge.purge" {
            PURGE_CHANGES
        } else {
            WRITE_CHANGES
        };
        if operation.name == "store again" {
            continue; // Writes nothing.
        }
        for changes in 1..=changes {
            let mut connection = daemon.connect();
            // Something to change, whatever the operation is.
            scene.run(&mut connection, self::operation("store a batch"), "alpha");
            if operation.name.contains("deleted") || operation.name.contains("undelete") {
                scene.run(&mut connection, self::operation("delete several"), "alpha");
            }
            drop(connection);
            unanswered += usize::from(scene.kill_during(daemon, changes, |client, connection| {
                client.run(connection, operation, "alpha")
            }));
            daemon = scene.restart();
        }
    }
    daemon.stop();
    scene.report(&format!("{unanswered} before the answer"));
    assert!(
        unanswered >= scene.totals.kills / 4,
        "too few kills came before the answer: {unanswered}"
    );
}

/// Files of a table that no version on disk names: index directories, and data files.
async fn unnamed(table: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let names = |directory: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(table.join(directory)).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let (mut indices, mut data) = (names("_indices"), names("data"));
    let newest = Dataset::open(table.to_str().expect("UTF-8")).await.expect("a table");
    for version in newest.versions().await.expect("the versions") {
        let dataset = newest.checkout_version(version.version).await.expect("a version");
        for index in dataset.load_indices().await.expect("the indices").iter() {
            indices.remove(&index.uuid.to_string());
        }
        for fragment in dataset.manifest().fragments.iter() {
            for file in &fragment.files {
                data.remove(file.path.as_str());
            }
        }
    }
    (indices, data)
}

/// Fragments of a table that no index covers.
async fn unindexed(table: &Path) -> usize {
    if !table.is_dir() {
        return 0;
    }
    let dataset = Dataset::open(table.to_str().expect("UTF-8")).await.expect("a table");
    let indices = dataset.load_indices().await.expect("the indices");
    let covered = |fragment: u64| {
        let mut bitmaps = indices.iter().filter_map(|index| index.fragment_bitmap.as_ref());
        bitmaps.any(|bitmap| u32::try_from(fragment).is_ok_and(|fragment| bitmap.contains(fragment)))
    };
    dataset
        .manifest()
        .fragments
        .iter()
        .filter(|fragment| !covered(fragment.id))
        .count()
}

#[test]
fn a_kill_during_an_index_build_or_a_merge_of_fragments_costs_nothing() {
    let mut scene = Scene::new("upkeep");
    let mut daemon = scene.start();
    let (mut index_builds, mut merges) = (0, 0);
    let (mut indices_before, mut data_before) = (BTreeSet::new(), BTreeSet::new());
    for kill in 0..UPKEEP_KILLS {
        let mut connection = daemon.connect();
        let table = table_path(&scene.workspace.home(), "alpha");
        let due = UNINDEXED_FRAGMENTS.saturating_sub(runtime().block_on(unindexed(&table)));
        for _ in 0..due.max(1) {
            scene.run(&mut connection, operation("store by id"), "alpha");
        }
        // The last store is answered, upkeep begins: an index is built in one of these directories, then fragments
        // are merged in the other.
        let watched = [table.join(["_indices", "data"][kill % 2])];
        kill_after(daemon, &watched, 1 + kill / 2 % UPKEEP_CHANGES, |last_change| {
            last_change.elapsed() > REST
        });
        scene.totals.kills += 1;
        let (indices, data) = runtime().block_on(unnamed(&table));
        index_builds += usize::from(!indices.is_subset(&indices_before));
        // No store was under way: a data file that nothing names is a merge's.
        merges += usize::from(!data.is_subset(&data_before));
        (indices_before, data_before) = (indices, data);
        daemon = scene.restart();
        if index_builds >= WANTED && merges >= WANTED {
            break;
        }
    }
    daemon.stop();
    scene.report(&format!(
        "{index_builds} in an index build, {merges} in a merge of fragments"
    ));
    assert!(
        index_builds >= WANTED && merges >= WANTED,
        "the kills missed what they were for: {index_builds} index builds, {merges} merges"
    );
}

#[test]
fn a_kill_at_any_step_of_a_restore_leaves_the_old_or_the_restored() {
    let mut scene = Scene::new("restore");
    let mut daemon = scene.start();
    let mut connection = daemon.connect();
    for _ in 0..4 {
        scene.run(&mut connection, operation("store a batch"), "vault");
    }
    let backup = scene.workspace.path().join("backup");
    back_up(&mut connection, &backup);
    let snapshot = scene.client.snapshot("vault");
    drop(connection);
    let mut unanswered = 0;
    for changes in 1..=RESTORE_CHANGES {
        let mut connection = daemon.connect();
        scene.run(&mut connection, operation("store by id"), "vault");
        scene.run(&mut connection, operation("delete several"), "vault");
        drop(connection);
        unanswered += usize::from(scene.kill_during(daemon, changes, |client, connection| {
            client.restore(connection, &backup, &snapshot)
        }));
        daemon = scene.restart();
    }
    daemon.stop();
    scene.report(&format!("{unanswered} before the answer"));
    assert!(unanswered >= 2, "too few kills came before the answer: {unanswered}");
}

#[test]
fn a_kill_between_the_commits_of_a_delete_leaves_whole_ones_and_the_next_call_deletes_the_rest() {
    let workspace = Workspace::new("a delete of several commits");
    workspace.configure("[embedder]\nwarm = true\n[writer]\nmax_group_rows = 1\n");
    let mut daemon = Process::start(&workspace.home());
    let ids: Vec<String> = (0..CUT_ITEMS).map(|number| format!("cut-{number}")).collect();
    let item = |id: &String| json!({"id": id, "text": format!("the text of {id}"), "agent": "cut"});
    let items: Vec<Value> = ids.iter().map(item).collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    let filter = json!({"agent": "cut"});
    let mut between = 0;
    for kill in 0..CUT_KILLS {
        let roots = [workspace.home().join("knowledge")];
        let mut connection = daemon.connect();
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "knowledge.delete", "params": filter});
        std::thread::scope(|scope| {
            let working = scope.spawn(move || {
                connection.send(format!("{request}\n"));
                connection.try_receive()
            });
            kill_after(daemon, &roots, 1 + 2 * kill, |_| working.is_finished());
        });
        daemon = Process::start(&workspace.home());
        let total = |daemon: &Process| daemon.call("knowledge.list", filter.clone())["total"].as_u64();
        let live = total(&daemon).expect("a number") as usize;
        assert_eq!((CUT_ITEMS - live) % CUT, 0, "{live} are left");
        between += usize::from(live > 0 && live < CUT_ITEMS);
        // Whoever has no answer repeats the call: its token is of what it has deleted itself.
        let rest = daemon.call("knowledge.delete", filter.clone());
        assert_eq!(rest["deleted"], live, "{rest}");
        assert_eq!(total(&daemon), Some(0));
        if let Some(token) = rest["undo_token"].as_str() {
            let undone = daemon.call("knowledge.undelete", json!({"undo_token": token}));
            assert_eq!(undone["restored"], live, "{undone}");
        }
        // And of what the one that was killed has deleted, the ids are enough.
        let undone = daemon.call("knowledge.undelete", json!({"ids": ids}));
        assert_eq!(undone["restored"], CUT_ITEMS - live, "{undone}");
        assert_eq!(total(&daemon), Some(CUT_ITEMS as u64));
    }
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
    daemon.stop();
    println!("a delete of several commits: {CUT_KILLS} kills, {between} between its commits");
    assert!(
        between >= CUT_KILLS / 4,
        "too few kills came between the commits: {between}"
    );
}
