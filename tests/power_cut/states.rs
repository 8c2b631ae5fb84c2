//! Builds what a cut could leave and starts the daemon on it, as a user would after the power is back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use ccod::config::Config;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::disk::{Disk, Entry, Fate, Image, Operation};
use super::trace::Log;
use crate::proof::journal::{Expectation, Journal};
use crate::proof::rows::{self, Vectors};
use crate::proof::workload::list;
use crate::support::{Connection, PATIENCE};

/// States that are checked at once.
const WORKERS: usize = 2;
/// One in so many states is also written to: what was recovered can be used.
const WRITTEN: usize = 24;

/// What the checks found, all states together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Steps of the disk after which a cut was possible.
    pub(crate) moments: usize,
    /// States that were built, by what became of the uncertain.
    pub(crate) built: [usize; 4],
    /// Different states that the daemon was started on.
    pub(crate) opened: usize,
    /// States after which the daemon said that it had tidied something up.
    pub(crate) tidied: usize,
    /// States of which it took a version for torn and set it aside.
    pub(crate) set_aside: usize,
    /// States that were written to afterwards.
    pub(crate) written: usize,
    /// Acknowledged items that were compared, over all states.
    pub(crate) items: usize,
    /// Items of unanswered writes that were there as a whole, and that were not.
    pub(crate) unanswered: [usize; 2],
    /// What is wrong, with the state.
    pub(crate) violations: Vec<String>,
}

struct State {
    number: usize,
    label: String,
    image: Image,
    expectation: Expectation,
}

const FATES: [Fate; 4] = [Fate::Lost, Fate::Kept, Fate::NamesOnly, Fate::Random];

/// The moments of the cuts: half of them just after an answer, where the most is promised and the least is
/// known to be on disk, every kind of write as often as the others; the other half anywhere. In the order of
/// the log.
fn choose(log: &Log, journals: &[Journal], count: usize, dice: &mut StdRng) -> (usize, Vec<(usize, Fate)>) {
    let operations = &log.operations;
    let moments: Vec<usize> = (0..operations.len())
        .filter(|index| operations[*index].changes_the_disk())
        .collect();
    let kinds: HashMap<String, &str> = journals
        .iter()
        .flat_map(|journal| &journal.requests)
        .map(|request| (request.wire_id(), request.operation))
        .collect();
    let mut answers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for index in &moments {
        if let Operation::Acknowledged { id } = &operations[*index]
            && let Some(kind) = kinds.get(id)
        {
            answers.entry(kind).or_default().push(*index);
        }
    }
    let answers: Vec<Vec<usize>> = answers.into_values().collect();
    let mut chosen = Vec::with_capacity(count);
    for number in 0..count {
        let (from, fates): (&[usize], &[Fate]) = if number % 2 == 0 && !answers.is_empty() {
            // With everything there, a moment after an answer is like any other.
            let kind = &answers[(number / 2) % answers.len()];
            (kind, &[Fate::Lost, Fate::Lost, Fate::NamesOnly, Fate::Random])
        } else {
            let fates = &[Fate::Lost, Fate::Kept, Fate::NamesOnly, Fate::Random, Fate::Random];
            (&moments, fates)
        };
        let fate = fates[dice.random_range(0..fates.len())];
        chosen.push((from[dice.random_range(0..from.len())], fate));
    }
    chosen.sort_unstable_by_key(|(moment, _)| *moment);
    (moments.len(), chosen)
}

/// Cuts the power `count` times and checks what is left. `embedder` is the socket of a daemon that only embeds.
pub(crate) fn check(
    log: &Log,
    journals: &[Journal],
    count: usize,
    seed: u64,
    scratch: &Path,
    embedder: &Path,
) -> Report {
    let mut dice = StdRng::seed_from_u64(seed);
    let (moments, chosen) = choose(log, journals, count, &mut dice);
    let report = Mutex::new(Report {
        moments,
        ..Report::default()
    });
    let (sender, receiver) = sync_channel::<State>(WORKERS * 2);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| work(&receiver, scratch, embedder, &report));
        }
        let mut disk = Disk::default();
        let mut answered: HashSet<&str> = HashSet::new();
        let mut seen = HashSet::new();
        let mut chosen = chosen.into_iter().peekable();
        for (now, operation) in log.operations.iter().enumerate() {
            disk.apply(operation);
            if let Operation::Acknowledged { id } = operation {
                answered.insert(id);
            }
            while let Some((_, fate)) = chosen.next_if(|(moment, _)| *moment == now) {
                let image = disk.cut(fate, &mut dice);
                let place = FATES.iter().position(|known| *known == fate).unwrap_or(0);
                let mut so_far = report.lock().expect("a report");
                so_far.built[place] += 1;
                // The same files with more acknowledged is another check.
                if !seen.insert((image.fingerprint, answered.len())) {
                    continue;
                }
                so_far.opened += 1;
                let number = so_far.opened;
                drop(so_far);
                let expectation = Expectation::merge(
                    journals
                        .iter()
                        .map(|journal| journal.expectation(|request| answered.contains(request.wire_id().as_str()))),
                );
                let state = State {
                    number,
                    label: format!("cut after step {now} of {}, {fate:?}", log.operations.len()),
                    image,
                    expectation,
                };
                if sender.send(state).is_err() {
                    return;
                }
            }
        }
        drop(sender);
    });
    report.into_inner().expect("a report")
}

fn work(receiver: &Mutex<Receiver<State>>, scratch: &Path, embedder: &Path, report: &Mutex<Report>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut vectors = Vectors::default();
    let mut embedder = Connection::open(embedder);
    loop {
        let Ok(state) = receiver.lock().expect("a receiver").recv() else {
            return;
        };
        let root = scratch.join(state.number.to_string());
        let checked = std::panic::catch_unwind(AssertUnwindSafe(|| {
            build(&state.image, &root)?;
            check_state(
                &runtime,
                &state,
                &root.join("home"),
                &mut vectors,
                &mut embedder,
                report,
            )
        }));
        let violations = match checked {
            Ok(Ok(violations)) => violations,
            Ok(Err(violation)) => vec![violation],
            Err(_) => vec!["the check panicked".to_owned()],
        };
        if violations.is_empty() {
            std::fs::remove_dir_all(&root).ok();
            continue;
        }
        let mut report = report.lock().expect("a report");
        for violation in violations {
            report
                .violations
                .push(format!("{}: {violation} (state {})", state.label, root.display()));
        }
    }
}

/// Writes what a cut leaves below `root`.
fn build(image: &Image, root: &Path) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(root).map_err(text)?;
    for (path, entry) in &image.entries {
        let path = root.join(path);
        match entry {
            Entry::Directory => std::fs::create_dir(&path).map_err(text)?,
            Entry::File(data) => std::fs::write(&path, data.as_slice()).map_err(text)?,
        }
    }
    Ok(())
}

/// A daemon in this process.
struct Inside<'a> {
    runtime: &'a tokio::runtime::Runtime,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<Result<bool, String>>>,
    socket: std::path::PathBuf,
}

impl<'a> Inside<'a> {
    fn start(runtime: &'a tokio::runtime::Runtime, home: &Path) -> Result<Self, String> {
        let config = Config::at(home);
        let socket = config.socket_path();
        let stop = CancellationToken::new();
        let until = stop.clone();
        let task = runtime.spawn(async move {
            ccod::daemon::run_until(config, until)
                .await
                .map_err(|error| error.to_string())
        });
        let mut inside = Self {
            runtime,
            stop,
            task: Some(task),
            socket,
        };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&inside.socket).is_err() {
            if let Some(task) = inside.task.take_if(|task| task.is_finished()) {
                return Err(format!("the daemon does not start: {:?}", runtime.block_on(task)));
            }
            if begun.elapsed() > PATIENCE {
                return Err("the daemon does not answer".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(inside)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            self.runtime
                .block_on(async { tokio::time::timeout(PATIENCE, task).await })
                .ok();
        }
    }
}

/// One call; its error is a violation.
fn call(connection: &mut Connection, method: &str, params: Value) -> Result<Value, String> {
    let mut response = connection.request(method, params);
    match response.get("error") {
        Some(error) => Err(format!("{method} fails: {error}")),
        None => Ok(response["result"].take()),
    }
}

fn check_state(
    runtime: &tokio::runtime::Runtime,
    state: &State,
    home: &Path,
    vectors: &mut Vectors,
    embedder: &mut Connection,
    report: &Mutex<Report>,
) -> Result<Vec<String>, String> {
    let daemon = Inside::start(runtime, home)?;
    let mut connection = Connection::open(&daemon.socket);
    let mut violations = Vec::new();
    let mut found = Vec::new();
    for project in state.expectation.projects() {
        let shown = list(&mut connection, &project)?;
        let rows = runtime.block_on(rows::read(home, &project))?;
        vectors.learn(embedder, rows.iter().map(|row| row.passage_text.as_str()));
        violations.extend(rows::check(&rows, vectors));
        violations.extend(rows::check_purged(home, &project, &state.expectation));
        let (mut live, mut listed) = (rows::live(&project, &rows), shown.clone());
        live.sort_by(|a, b| a.id.cmp(&b.id));
        listed.sort_by(|a, b| a.id.cmp(&b.id));
        if live != listed {
            violations.push(format!(
                "project {project}: the socket shows {listed:?}, the table holds {live:?}"
            ));
        }
        found.extend(shown);
    }
    let comparison = state.expectation.compare(&found);
    violations.extend(comparison.violations);
    let status = call(&mut connection, "admin.status", json!({}))?;
    let written = state.number.is_multiple_of(WRITTEN);
    if written {
        for project in state.expectation.projects() {
            let text = "After the cut, work goes on.";
            let params = json!({"project_id": project, "text": text, "id": "after-the-cut"});
            call(&mut connection, "knowledge.store", params)?;
            let params = json!({"project_id": project, "id": "after-the-cut"});
            if call(&mut connection, "knowledge.get", params)?["text"] != text {
                violations.push(format!("project {project} does not keep what is stored after the cut"));
            }
        }
    }
    let mut report = report.lock().expect("a report");
    report.items += comparison.settled;
    report.unanswered[0] += comparison.applied;
    report.unanswered[1] += comparison.not_applied;
    report.tidied += usize::from(status["recovery"].as_array().is_some_and(|notes| !notes.is_empty()));
    let projects = state.expectation.projects();
    let set_aside = |project: &String| home.join("knowledge").join(project).join("set-aside").exists();
    report.set_aside += usize::from(projects.iter().any(set_aside));
    report.written += usize::from(written);
    Ok(violations)
}
