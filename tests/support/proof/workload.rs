//! A seeded load with every kind of write, as a table of operations. A client owns its items, sends one request
//! at a time and writes everything into its journal; several clients together make the daemon commit in groups.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::journal::{Content, Found, Item, Journal, Outcome, Request, State, metadata};
use crate::support::Connection;

/// Items that share a session, so that a filter finds a handful of them.
const SESSION_ITEMS: usize = 4;
/// Tries of a request that is refused with a retryable error.
const TRIES: usize = 200;

/// One kind of write.
pub(crate) struct Operation {
    /// Its name in reports.
    pub(crate) name: &'static str,
    /// The method that it needs.
    pub(crate) method: &'static str,
    /// How often it is chosen, relative to the others.
    pub(crate) weight: u32,
    plan: fn(&mut Client, &str) -> Option<Plan>,
}

/// Every kind of write to single items. Backup and restore replace whole projects and are driven apart.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "store by id",
        method: "knowledge.store",
        weight: 20,
        plan: store_by_id,
    },
    Operation {
        name: "store by key",
        method: "knowledge.store",
        weight: 10,
        plan: store_by_key,
    },
    Operation {
        name: "store by content",
        method: "knowledge.store",
        weight: 6,
        plan: store_by_content,
    },
    Operation {
        name: "store a long text",
        method: "knowledge.store",
        weight: 1,
        plan: store_long,
    },
    Operation {
        name: "store a batch",
        method: "knowledge.store_batch",
        weight: 6,
        plan: store_batch,
    },
    Operation {
        name: "store again",
        method: "knowledge.store",
        weight: 4,
        plan: store_again,
    },
    Operation {
        name: "store over a deleted id",
        method: "knowledge.store",
        weight: 3,
        plan: store_over_deleted,
    },
    Operation {
        name: "update the text",
        method: "knowledge.update",
        weight: 10,
        plan: update_text,
    },
    Operation {
        name: "update the metadata",
        method: "knowledge.update",
        weight: 5,
        plan: update_metadata,
    },
    Operation {
        name: "delete one",
        method: "knowledge.delete",
        weight: 6,
        plan: delete_one,
    },
    Operation {
        name: "delete several",
        method: "knowledge.delete",
        weight: 3,
        plan: delete_several,
    },
    Operation {
        name: "delete by filter",
        method: "knowledge.delete",
        weight: 3,
        plan: delete_by_filter,
    },
    Operation {
        name: "undelete by token",
        method: "knowledge.undelete",
        weight: 6,
        plan: undelete_by_token,
    },
    Operation {
        name: "undelete by id",
        method: "knowledge.undelete",
        weight: 4,
        plan: undelete_by_id,
    },
    Operation {
        name: "clean up",
        method: "knowledge.cleanup",
        weight: 3,
        plan: clean_up,
    },
    Operation {
        name: "purge",
        method: "knowledge.purge",
        weight: 2,
        plan: purge,
    },
];

/// All operations.
pub(crate) fn operations() -> Vec<&'static Operation> {
    OPERATIONS.iter().collect()
}

/// Every live item of a project, page by page.
pub(crate) fn list(connection: &mut Connection, project: &str) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let mut params = json!({"project_id": project, "limit": 1000});
        if let Some(cursor) = cursor {
            params["cursor"] = cursor;
        }
        let response = connection.request("knowledge.list", params);
        if let Some(error) = response.get("error") {
            return Err(format!("project {project} cannot be listed: {error}"));
        }
        let page = &response["result"];
        for item in page["results"].as_array().into_iter().flatten() {
            found.push(Found::from_wire(item)?);
        }
        if page["next_cursor"].is_null() {
            return Ok(found);
        }
        cursor = Some(page["next_cursor"].clone());
    }
}

/// The answer to a request, past the notifications of its progress; none if the connection ends before.
fn answer_to(connection: &mut Connection, id: &str) -> Option<Value> {
    loop {
        let line = connection.try_receive()?;
        if line["id"] == id {
            return Some(line);
        }
        assert_eq!(
            line["method"], "rpc.progress",
            "an answer that nobody asked for: {line}"
        );
    }
}

/// Backs all projects up into `path`.
pub(crate) fn back_up(connection: &mut Connection, path: &std::path::Path) {
    let request = json!({"jsonrpc": "2.0", "id": "backup", "method": "admin.backup", "params": {"path": path}});
    connection.send(format!("{request}\n"));
    let answer = answer_to(connection, "backup").expect("an answer");
    assert!(answer.get("result").is_some(), "{answer}");
}

/// The operation of this name.
pub(crate) fn operation(name: &str) -> &'static Operation {
    OPERATIONS
        .iter()
        .find(|operation| operation.name == name)
        .unwrap_or_else(|| panic!("no operation {name}"))
}

/// What a request is going to be, and what its answer must say.
struct Plan {
    params: Value,
    changes: Vec<(u64, State)>,
    whole: bool,
    answer: Answer,
}

/// What the answer must say.
#[derive(Clone, Debug)]
enum Answer {
    /// One item was stored, under this id if it was given.
    Stored { item: u64 },
    /// The item was there already.
    Duplicate { item: u64 },
    /// All items of a batch were stored.
    Batch { items: Vec<u64> },
    /// The item was updated.
    Updated,
    /// These items, and no others, were deleted.
    Deleted { items: Vec<u64> },
    /// So many items are back.
    Restored { count: u64 },
    /// These items were purged.
    Purged { count: u64 },
    /// So many items were cleaned up.
    Cleaned { items: Vec<u64> },
    /// Nothing that could be foretold.
    Any,
}

/// What every item of a project was at one time.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    project: String,
    items: BTreeMap<u64, State>,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It was answered.
    Answered,
    /// Nothing fits this operation now.
    Nothing,
    /// The connection ended before the answer.
    Cut,
}

/// What all clients of one home share: the numbering, and the newest version that was acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    next_request: AtomicU64,
    versions: Mutex<BTreeMap<String, u64>>,
}

impl Shared {
    fn version(&self, project: &str) -> u64 {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.get(project).copied().unwrap_or(0)
    }

    fn saw(&self, project: &str, version: u64) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = versions.entry(project.to_owned()).or_default();
        *newest = version.max(*newest);
    }

    /// Forgets a project's versions: it was replaced as a whole.
    pub(crate) fn replaced(&self, project: &str) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.remove(project);
    }
}

/// A delete that can be undone as a whole.
#[derive(Clone, Debug)]
struct Undo {
    project: String,
    token: String,
    /// The items, each with the write that the token brings back.
    items: Vec<(u64, u64)>,
}

/// One client: its items, its journal, its dice.
pub(crate) struct Client {
    /// Which client it is, from 0.
    pub(crate) number: u64,
    /// Everything it has asked.
    pub(crate) journal: Journal,
    /// How often each operation was answered.
    pub(crate) answered: BTreeMap<&'static str, u64>,
    dice: StdRng,
    shared: Arc<Shared>,
    next_item: u64,
    next_write: u64,
    undos: Vec<Undo>,
    /// What the answer to the open request must say.
    expected: Option<Answer>,
}

impl Client {
    /// A client that has asked nothing yet. No two of one home may have the same number.
    pub(crate) fn new(number: u64, seed: u64, shared: Arc<Shared>) -> Self {
        Self {
            number,
            journal: Journal::default(),
            answered: BTreeMap::new(),
            dice: StdRng::seed_from_u64(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            shared,
            next_item: (number + 1) * 1_000_000,
            next_write: (number + 1) * 1_000_000,
            undos: Vec::new(),
            expected: None,
        }
    }

    /// Chooses an operation that fits and runs it.
    pub(crate) fn step(
        &mut self,
        connection: &mut Connection,
        operations: &[&'static Operation],
        project: &str,
    ) -> Result<Step, String> {
        loop {
            let operation = operations
                .choose_weighted(&mut self.dice, |operation| operation.weight)
                .map_err(|error| error.to_string())?;
            match self.run(connection, operation, project)? {
                Step::Nothing => {}
                step => return Ok(step),
            }
        }
    }

    /// One of the dice's choices.
    pub(crate) fn chance(&mut self, of: std::ops::Range<usize>) -> usize {
        self.dice.random_range(of)
    }

    /// Runs one operation, if something fits it.
    pub(crate) fn run(
        &mut self,
        connection: &mut Connection,
        operation: &'static Operation,
        project: &str,
    ) -> Result<Step, String> {
        let Some(mut plan) = (operation.plan)(self, project) else {
            return Ok(Step::Nothing);
        };
        plan.params["project_id"] = json!(project);
        self.send(connection, (operation.name, operation.method), project, plan)
    }

    /// What every item of a project is, to be restored later.
    pub(crate) fn snapshot(&self, project: &str) -> Snapshot {
        let items = self.journal.items.iter().filter(|(_, item)| item.project == project);
        Snapshot {
            project: project.to_owned(),
            items: items.map(|(number, item)| (*number, item.state.clone())).collect(),
        }
    }

    /// Restores the backup at `path`, which was made when the project was as `snapshot` says. This client's
    /// items must be the only ones of the backup.
    pub(crate) fn restore(
        &mut self,
        connection: &mut Connection,
        path: &std::path::Path,
        snapshot: &Snapshot,
    ) -> Result<Step, String> {
        let items = self
            .journal
            .items
            .iter()
            .filter(|(_, item)| item.project == snapshot.project);
        let changes = items
            .map(|(number, _)| (*number, snapshot.items.get(number).cloned().unwrap_or(State::Absent)))
            .collect();
        self.undos.retain(|undo| undo.project != snapshot.project);
        self.shared.replaced(&snapshot.project);
        let plan = Plan {
            params: json!({"path": path}),
            changes,
            whole: true,
            answer: Answer::Any,
        };
        self.send(connection, ("restore", "admin.restore"), &snapshot.project, plan)
    }

    fn send(
        &mut self,
        connection: &mut Connection,
        (name, method): (&'static str, &'static str),
        project: &str,
        plan: Plan,
    ) -> Result<Step, String> {
        for (number, after) in &plan.changes {
            if let (Some(item), Some(content)) = (self.journal.items.get_mut(number), after.visible())
                && !item.writes.contains(&content.write)
            {
                item.writes.push(content.write);
            }
        }
        self.journal.requests.push(Request {
            number: self.shared.next_request.fetch_add(1, Ordering::Relaxed),
            operation: name,
            method,
            project: project.to_owned(),
            params: plan.params,
            changes: plan.changes,
            whole: plan.whole,
            outcome: Outcome::Open,
        });
        self.expected = Some(plan.answer);
        self.submit(connection, self.journal.requests.len() - 1, true)
    }

    /// Sends the request that was not answered once more, as a client does after a crash. If it had happened,
    /// repeating it must change nothing; either way it has happened afterwards.
    pub(crate) fn repeat_open(
        &mut self,
        connection: &mut Connection,
        had_happened: Option<bool>,
    ) -> Result<bool, String> {
        let Some(open) = self.journal.open_request() else {
            return Ok(false);
        };
        match self.submit(connection, open, had_happened == Some(false)) {
            Ok(Step::Answered) => Ok(true),
            Ok(step) => Err(format!("the repeated request was {step:?}")),
            // A token that was used up, an item that is purged: what was asked for is so already.
            Err(error) if had_happened != Some(false) && error.starts_with(ALREADY_SO) => {
                self.journal.acknowledge(open);
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a request and takes its answer into the journal. `exact`: it has not happened before, so that the
    /// answer must tell of exactly its changes.
    fn submit(&mut self, connection: &mut Connection, index: usize, exact: bool) -> Result<Step, String> {
        let request = &self.journal.requests[index];
        let (project, name) = (request.project.clone(), request.operation);
        let id = request.wire_id();
        let line = json!({
            "jsonrpc": "2.0",
            "id": id,
            "method": request.method,
            "params": request.params,
        });
        let line = format!("{line}\n");
        let mut exact = exact;
        for attempt in 1..=TRIES {
            let newest = self.shared.version(&project);
            if connection.try_send(line.as_bytes()).is_err() {
                return Ok(Step::Cut);
            }
            let Some(response) = answer_to(connection, &id) else {
                return Ok(Step::Cut);
            };
            if let Some(error) = response.get("error") {
                if error["data"]["retryable"] == true && attempt < TRIES {
                    // Nothing says that it did not happen.
                    exact &= error["code"] == -32009;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    continue;
                }
                if [-32020, -32028].iter().any(|code| error["code"] == *code) {
                    return Err(format!("{ALREADY_SO}: {name}: {error}"));
                }
                return Err(format!("{name} was refused: {error}; asked: {line}"));
            }
            let result = &response["result"];
            let answer = self.expected.clone().ok_or("no request is open")?;
            self.check_answer(&answer, result, exact)
                .map_err(|wrong| format!("{name} was answered wrongly, {wrong}: {result}; asked: {line}"))?;
            self.check_version(&project, newest, result, exact)
                .map_err(|wrong| format!("{name}: {wrong}: {result}; asked: {line}"))?;
            self.learn(&project, &answer, result);
            self.journal.acknowledge(index);
            self.expected = None;
            *self.answered.entry(name).or_default() += 1;
            return Ok(Step::Answered);
        }
        Err(format!("{name} was refused {TRIES} times"))
    }

    fn id_of(&self, item: u64) -> Option<&str> {
        self.journal.items.get(&item)?.id.as_deref()
    }

    fn check_answer(&self, answer: &Answer, result: &Value, exact: bool) -> Result<(), String> {
        let count = |name: &str, wanted: u64| match result[name].as_u64() {
            Some(found) if found == wanted || (!exact && found <= wanted) => Ok(()),
            found => Err(format!("{name} is {found:?} and must be {wanted}")),
        };
        let same_ids = |items: &[u64]| {
            let mut found: Vec<&str> = result["ids"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let mut wanted: Vec<&str> = items.iter().filter_map(|item| self.id_of(*item)).collect();
            found.sort_unstable();
            wanted.sort_unstable();
            if found == wanted || !exact {
                Ok(())
            } else {
                Err(format!("ids must be {wanted:?}"))
            }
        };
        match answer {
            Answer::Stored { item } | Answer::Duplicate { item } => {
                let wanted = if matches!(answer, Answer::Stored { .. }) {
                    "stored"
                } else {
                    "duplicate"
                };
                if exact && result["status"] != wanted {
                    return Err(format!("status must be {wanted}"));
                }
                match (self.id_of(*item), result["id"].as_str()) {
                    (Some(wanted), Some(found)) if wanted != found => Err(format!("id must be {wanted}")),
                    (_, Some(_)) => Ok(()),
                    (_, None) => Err("there is no id".to_owned()),
                }
            }
            Answer::Batch { items } => {
                let ids = result["ids"].as_array().map_or(0, Vec::len);
                if ids != items.len() || result["failed"] != 0 {
                    return Err(format!("{} items must be stored", items.len()));
                }
                count("stored", items.len() as u64)
            }
            Answer::Updated | Answer::Any => Ok(()),
            Answer::Deleted { items } => {
                count("deleted", items.len() as u64)?;
                same_ids(items)
            }
            Answer::Cleaned { items } => count("deleted", items.len() as u64),
            Answer::Restored { count: wanted } => count("restored", *wanted),
            Answer::Purged { count: wanted } => count("purged", *wanted),
        }
    }

    /// A version grows with each commit of a project, over restarts too.
    fn check_version(&self, project: &str, newest: u64, result: &Value, exact: bool) -> Result<(), String> {
        let Some(version) = result["version"].as_u64() else {
            return Ok(());
        };
        self.shared.saw(project, version);
        let committed = exact && result["status"] != "duplicate";
        if version < newest || (committed && version == newest) {
            return Err(format!(
                "version {version} is not newer than {newest}, which was acknowledged before"
            ));
        }
        Ok(())
    }

    /// Takes ids and undo tokens from an answer.
    fn learn(&mut self, project: &str, answer: &Answer, result: &Value) {
        match answer {
            Answer::Stored { item } => self.learn_id(*item, &result["id"]),
            Answer::Batch { items } => {
                for (index, item) in items.iter().enumerate() {
                    self.learn_id(*item, &result["ids"][index]);
                }
            }
            Answer::Deleted { items } | Answer::Cleaned { items } => {
                if let Some(token) = result["undo_token"].as_str() {
                    let items = items
                        .iter()
                        .filter_map(|item| match &self.journal.items.get(item)?.state {
                            State::Live(content) | State::Deleted(content) => Some((*item, content.write)),
                            State::Absent | State::Purged => None,
                        })
                        .collect();
                    self.undos.push(Undo {
                        project: project.to_owned(),
                        token: token.to_owned(),
                        items,
                    });
                }
            }
            Answer::Duplicate { .. }
            | Answer::Updated
            | Answer::Restored { .. }
            | Answer::Purged { .. }
            | Answer::Any => {}
        }
    }

    fn learn_id(&mut self, item: u64, id: &Value) {
        if let (Some(item), Some(id)) = (self.journal.items.get_mut(&item), id.as_str()) {
            item.id = Some(id.to_owned());
        }
    }

    /// Items of the project in a state that `fits`.
    fn items(&self, project: &str, fits: impl Fn(&State) -> bool) -> Vec<u64> {
        self.journal
            .items
            .iter()
            .filter(|(_, item)| item.project == project && item.id.is_some() && fits(&item.state))
            .map(|(number, _)| *number)
            .collect()
    }

    fn choose(&mut self, project: &str, fits: impl Fn(&State) -> bool) -> Option<u64> {
        let items = self.items(project, fits);
        items.choose(&mut self.dice).copied()
    }

    fn live(&self, project: &str) -> Vec<u64> {
        self.items(project, |state| matches!(state, State::Live(_)))
    }

    fn choose_live(&mut self, project: &str) -> Option<u64> {
        self.choose(project, |state| matches!(state, State::Live(_)))
    }

    fn choose_deleted(&mut self, project: &str) -> Option<u64> {
        self.choose(project, |state| matches!(state, State::Deleted(_)))
    }

    fn state(&self, item: u64) -> Option<&State> {
        self.journal.items.get(&item).map(|item| &item.state)
    }

    fn id(&self, item: u64) -> String {
        self.id_of(item).unwrap_or_default().to_owned()
    }

    /// What deleting makes of a live item.
    fn deleted(&self, item: u64) -> Option<(u64, State)> {
        match self.state(item)? {
            State::Live(content) => Some((item, State::Deleted(content.clone()))),
            _ => None,
        }
    }

    /// What undeleting makes of a deleted item.
    fn restored(&self, item: u64) -> Option<(u64, State)> {
        match self.state(item)? {
            State::Deleted(content) => Some((item, State::Live(content.clone()))),
            _ => None,
        }
    }

    /// A new item with the parameters that store it.
    fn new_item(&mut self, project: &str, text: Arc<str>, identity: Identity) -> (u64, State, Value) {
        let (item, write) = (self.next_item, self.next_write);
        self.next_item += 1;
        self.next_write += 1;
        let session = format!("c{}-{}", self.number, (item as usize % 1_000_000) / SESSION_ITEMS);
        let mut params = json!({
            "text": &*text,
            "type": KINDS[item as usize % KINDS.len()],
            "agent": format!("client-{}", self.number),
            "session_id": session,
            "metadata": metadata(item, write),
        });
        let mut id = None;
        match identity {
            Identity::Id => {
                id = Some(format!("item-{item}"));
                params["id"] = json!(id);
            }
            Identity::Key => params["idempotency_key"] = json!(format!("key-{item}")),
            Identity::Content => {}
        }
        self.journal.items.insert(
            item,
            Item {
                project: project.to_owned(),
                id,
                session,
                state: State::Absent,
                writes: vec![write],
            },
        );
        (item, State::Live(Content { write, text }), params)
    }

    fn new_write(&mut self) -> u64 {
        let write = self.next_write;
        self.next_write += 1;
        write
    }

    fn text(&mut self) -> Arc<str> {
        sentence(self.dice.random_range(0..SENTENCES)).into()
    }
}

/// How an error begins that says that there is nothing left to do.
const ALREADY_SO: &str = "nothing to do";

const KINDS: [&str; 5] = ["decision", "architecture", "implementation", "issue", "general"];

/// What makes a repeated store the same one.
#[derive(Clone, Copy)]
enum Identity {
    Id,
    Key,
    Content,
}

/// Number of different short texts. Items are told apart by their metadata; few texts mean that few have to be
/// embedded to know the vectors.
const SENTENCES: usize = 40;

/// The short text of this number.
fn sentence(number: usize) -> String {
    const THINGS: [&str; 8] = [
        "The retry budget",
        "The session token",
        "The write ahead log",
        "The connection pool",
        "The feature flag",
        "The nightly export",
        "The rate limiter",
        "The schema migration",
    ];
    const FACTS: [&str; 5] = [
        "is shared by all workers of a shard",
        "expires an hour after its last use",
        "was moved into the billing service in March",
        "must not be changed while a deployment runs",
        "failed twice because the disk was full",
    ];
    format!(
        "{} {}.",
        THINGS[number % THINGS.len()],
        FACTS[(number / THINGS.len()) % FACTS.len()]
    )
}

/// A text of several passages.
fn long_text(first: usize) -> Arc<str> {
    let sentences: Vec<String> = (0..30).map(|offset| sentence((first + offset) % SENTENCES)).collect();
    sentences.join(" ").into()
}

fn store(client: &mut Client, project: &str, text: Arc<str>, identity: Identity) -> Option<Plan> {
    let (item, after, params) = client.new_item(project, text, identity);
    Some(Plan {
        params,
        changes: vec![(item, after)],
        whole: true,
        answer: Answer::Stored { item },
    })
}

fn store_by_id(client: &mut Client, project: &str) -> Option<Plan> {
    let text = client.text();
    store(client, project, text, Identity::Id)
}

fn store_by_key(client: &mut Client, project: &str) -> Option<Plan> {
    let text = client.text();
    store(client, project, text, Identity::Key)
}

fn store_by_content(client: &mut Client, project: &str) -> Option<Plan> {
    let text = format!("{} Note {}.", client.text(), client.next_item);
    store(client, project, text.into(), Identity::Content)
}

fn store_long(client: &mut Client, project: &str) -> Option<Plan> {
    let first = client.dice.random_range(0..SENTENCES);
    store(client, project, long_text(first), Identity::Id)
}

fn store_batch(client: &mut Client, project: &str) -> Option<Plan> {
    let mut items = Vec::new();
    let mut changes = Vec::new();
    let mut params = Vec::new();
    for index in 0..client.dice.random_range(2..8) {
        let text = client.text();
        let identity = if index % 2 == 0 { Identity::Id } else { Identity::Key };
        let (item, after, store) = client.new_item(project, text, identity);
        items.push(item);
        changes.push((item, after));
        params.push(store);
    }
    Some(Plan {
        params: json!({"items": params}),
        changes,
        // A batch may be more than one commit; an item never is.
        whole: false,
        answer: Answer::Batch { items },
    })
}

/// What was acknowledged long ago, once more: it is there already.
fn store_again(client: &mut Client, project: &str) -> Option<Plan> {
    let done: Vec<usize> = client
        .journal
        .requests
        .iter()
        .enumerate()
        .filter(|(_, request)| {
            request.method == "knowledge.store"
                && request.outcome == Outcome::Acknowledged
                && request.project == project
                && request.changes.len() == 1
                && client.state(request.changes[0].0) == Some(&request.changes[0].1)
        })
        .map(|(index, _)| index)
        .collect();
    let index = *done.choose(&mut client.dice)?;
    let request = &client.journal.requests[index];
    let item = request.changes[0].0;
    Some(Plan {
        params: request.params.clone(),
        changes: request.changes.clone(),
        whole: true,
        answer: Answer::Duplicate { item },
    })
}

fn store_over_deleted(client: &mut Client, project: &str) -> Option<Plan> {
    let item = client.choose_deleted(project)?;
    let (text, write) = (client.text(), client.new_write());
    let params = json!({
        "text": &*text,
        "id": client.id(item),
        "session_id": client.journal.items[&item].session,
        "metadata": metadata(item, write),
    });
    Some(Plan {
        params,
        changes: vec![(item, State::Live(Content { write, text }))],
        whole: true,
        answer: Answer::Stored { item },
    })
}

fn update_text(client: &mut Client, project: &str) -> Option<Plan> {
    let item = client.choose_live(project)?;
    let (text, write) = (client.text(), client.new_write());
    Some(Plan {
        params: json!({"id": client.id(item), "text": &*text, "metadata": metadata(item, write)}),
        changes: vec![(item, State::Live(Content { write, text }))],
        whole: true,
        answer: Answer::Updated,
    })
}

fn update_metadata(client: &mut Client, project: &str) -> Option<Plan> {
    let item = client.choose_live(project)?;
    let text = Arc::clone(&client.state(item)?.visible()?.text);
    let write = client.new_write();
    Some(Plan {
        params: json!({"id": client.id(item), "metadata": metadata(item, write)}),
        changes: vec![(item, State::Live(Content { write, text }))],
        whole: true,
        answer: Answer::Updated,
    })
}

fn delete(client: &Client, items: Vec<u64>, params: Value) -> Plan {
    Plan {
        params,
        changes: items.iter().filter_map(|item| client.deleted(*item)).collect(),
        whole: true,
        answer: Answer::Deleted { items },
    }
}

fn delete_one(client: &mut Client, project: &str) -> Option<Plan> {
    let item = client.choose_live(project)?;
    let params = json!({"id": client.id(item)});
    Some(delete(client, vec![item], params))
}

fn delete_several(client: &mut Client, project: &str) -> Option<Plan> {
    let live = client.live(project);
    if live.len() < 3 {
        return None;
    }
    let count = client.dice.random_range(2..=live.len().min(5));
    let items: Vec<u64> = live.choose_multiple(&mut client.dice, count).copied().collect();
    let ids: Vec<String> = items.iter().map(|item| client.id(*item)).collect();
    Some(delete(client, items, json!({"ids": ids})))
}

/// A session with live items, and those items.
fn session(client: &mut Client, project: &str) -> Option<(String, Vec<u64>)> {
    let item = client.choose_live(project)?;
    let session = client.journal.items[&item].session.clone();
    let items: Vec<u64> = client
        .live(project)
        .into_iter()
        .filter(|item| client.journal.items[item].session == session)
        .collect();
    Some((session, items))
}

fn delete_by_filter(client: &mut Client, project: &str) -> Option<Plan> {
    let (session, items) = session(client, project)?;
    Some(delete(client, items, json!({"session_id": session})))
}

fn clean_up(client: &mut Client, project: &str) -> Option<Plan> {
    let (session, items) = session(client, project)?;
    let params = json!({"older_than_days": 0, "session_id": session, "dry_run": false});
    let answer = Answer::Cleaned { items: items.clone() };
    Some(Plan {
        answer,
        ..delete(client, items, params)
    })
}

fn restore(client: &Client, items: &[u64], params: Value) -> Plan {
    Plan {
        params,
        changes: items.iter().filter_map(|item| client.restored(*item)).collect(),
        whole: true,
        answer: Answer::Restored {
            count: items.len() as u64,
        },
    }
}

fn undelete_by_token(client: &mut Client, project: &str) -> Option<Plan> {
    // Only where the token still means exactly what it meant.
    let fits = |client: &Client, undo: &Undo| {
        undo.project == project
            && undo.items.iter().all(
                |(item, write)| matches!(client.state(*item), Some(State::Deleted(content)) if content.write == *write),
            )
    };
    let index = client.undos.iter().position(|undo| fits(client, undo))?;
    let undo = client.undos.remove(index);
    let items: Vec<u64> = undo.items.iter().map(|(item, _)| *item).collect();
    Some(restore(client, &items, json!({"undo_token": undo.token})))
}

fn undelete_by_id(client: &mut Client, project: &str) -> Option<Plan> {
    let item = client.choose_deleted(project)?;
    Some(restore(client, &[item], json!({"ids": [client.id(item)]})))
}

fn purge(client: &mut Client, project: &str) -> Option<Plan> {
    let item = client.choose(project, |state| matches!(state, State::Live(_) | State::Deleted(_)))?;
    Some(Plan {
        params: json!({"ids": [client.id(item)], "confirm": true}),
        changes: vec![(item, State::Purged)],
        whole: true,
        answer: Answer::Purged { count: 1 },
    })
}
