//! The index answers as the table does: random sequences of every kind of write, upkeep and reopening, and after each
//! of them everything is asked both ways.

use std::path::PathBuf;
mod changes;

use std::sync::Arc;
use std::time::Duration;

use ccod_index::{Change, Index};
use chrono::TimeDelta;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::domain::{
    Content, Deletion, Filter, KnowledgeType, NewItem, OnDuplicate, ProjectName, SearchMode, UpdateParams, now_ms,
};
use crate::error::KnowledgeResult;
use crate::store::table::rows::EmbeddedPassage;
use crate::store::transfer::{BackupRequest, Watcher};
use crate::store::upkeep::{Pace, Thorough, due_steps};
use crate::store::verify::verify;
use crate::store::view::search::{SearchOutcome, search};
use crate::store::view::{KeywordsAhead, ListRequest, SearchRequest};
use crate::store::{Durability, ModelIdentity, ProjectView, Store, StoreConfig, StoreLock, WriteAccess};
use crate::writer::commit::{OpOutcome, plan};
use crate::writer::lane::GroupLimits;
use crate::writer::{DeleteTarget, PreparedItem, PreparedUpdate, UndeleteTarget, UndoNote, WriteOp};

mod vectors;

const MODEL: &str = "random@1";
const DIMENSIONS: usize = 40;
const WORDS: [&str; 12] = [
    "socket", "writer", "lease", "commit", "index", "vector", "table", "panic", "retry", "budget", "token", "lock",
];
/// Items at most: all of their passages fit into one round of each leg of a search.
const ITEMS: usize = 24;
const EVERYTHING: usize = 1 << 24;
/// So small that a delete by filter, and its undoing, have several parts.
const LIMITS: GroupLimits = GroupLimits {
    max_rows: 1,
    max_bytes: EVERYTHING,
};

struct Project {
    access: WriteAccess,
    name: ProjectName,
    random: StdRng,
    /// Ids of items that are live.
    live: Vec<String>,
    deleted: Vec<String>,
    deletions: Vec<Deletion>,
    /// The last backup: where it is, and what was live and deleted in it.
    backup: Option<(PathBuf, Vec<String>, Vec<String>)>,
    /// What its store may hold in memory.
    resident_bytes: u64,
    /// Steps that were taken, for the message of a failure.
    steps: Vec<String>,
}

/// Waits for a backup or a restore as long as it takes.
struct Patient;

impl Watcher for Patient {
    fn progress(&self, _done: u64, _total: u64, _message: &str) {}

    fn check(&self) -> KnowledgeResult<()> {
        Ok(())
    }
}

fn open(home: &std::path::Path) -> WriteAccess {
    open_with(home, 1 << 30)
}

fn open_with(home: &std::path::Path, resident_bytes: u64) -> WriteAccess {
    let config = StoreConfig {
        knowledge_dir: home.to_owned(),
        durability: Durability::Fast,
        index_cache_bytes: 8 << 20,
        metadata_cache_bytes: 8 << 20,
        resident_bytes,
        text_cache_bytes: 1 << 20,
        min_free_bytes: 0,
        model: ModelIdentity {
            name: MODEL.to_owned(),
            dimensions: DIMENSIONS,
        },
        retention: TimeDelta::days(7),
    };
    // The last store of this directory may still be on its way out.
    let lock = (0..200).find_map(|_| {
        let lock = StoreLock::acquire(home).ok();
        if lock.is_none() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        lock
    });
    Store::open(config, lock.unwrap()).unwrap().1
}

impl Project {
    fn vector(&mut self) -> Vec<f32> {
        let vector: Vec<f32> = (0..DIMENSIONS).map(|_| self.random.random_range(-1.0..1.0)).collect();
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter().map(|x| x / length).collect()
    }

    fn words(&mut self, number: usize) -> String {
        let word = |random: &mut StdRng| WORDS[random.random_range(0..WORDS.len())];
        let words: Vec<&str> = (0..number).map(|_| word(&mut self.random)).collect();
        words.join(" ")
    }

    fn passages(&mut self, text: &str) -> Vec<EmbeddedPassage> {
        let parts: Vec<&str> = text.split(". ").collect();
        let mut start = 0;
        let mut passages = Vec::new();
        for part in parts {
            let end = start + part.chars().count();
            passages.push(EmbeddedPassage {
                start,
                end,
                text: part.to_owned(),
                vector: self.vector().into(),
            });
            start = end + ". ".len();
        }
        passages
    }

    fn text(&mut self) -> String {
        let passages = self.random.random_range(1..=3);
        let parts: Vec<String> = (0..passages)
            .map(|_| {
                let words = self.random.random_range(2..=8);
                self.words(words)
            })
            .collect();
        // Never the same text twice, which would be a duplicate.
        format!("{} {}", self.random.random::<u32>(), parts.join(". "))
    }

    fn metadata(&mut self) -> serde_json::Map<String, Value> {
        let metadata = match self.random.random_range(0..4) {
            0 => json!({}),
            1 => json!({"area": "store", "n": self.random.random_range(0..3)}),
            2 => json!({"area": "wire"}),
            _ => json!({"area": "store", "ä": null, "deep": {"x": [1]}}),
        };
        metadata.as_object().unwrap().clone()
    }

    fn store(&mut self) -> WriteOp {
        let text = self.text();
        let kinds = [KnowledgeType::Decision, KnowledgeType::Issue, KnowledgeType::General];
        let item = NewItem {
            content: Content {
                knowledge_type: kinds[self.random.random_range(0..kinds.len())],
                agent: (self.random.random_range(0..3) > 0).then(|| format!("agent{}", self.random.random_range(0..3))),
                session_id: (self.random.random_range(0..2) > 0)
                    .then(|| format!("session{}", self.random.random_range(0..3))),
                metadata: self.metadata(),
                text: text.clone(),
            },
            id: None,
            idempotency_key: None,
            on_duplicate: OnDuplicate::Store,
            timestamp: now_ms() - TimeDelta::minutes(self.random.random_range(0..600)),
            updated_at: None,
        };
        WriteOp::Store(PreparedItem {
            content_hash: item.content_hash(),
            item,
            passages: self.passages(&text),
        })
    }

    fn some(&mut self, of: &[String], most: usize) -> Vec<String> {
        let number = self.random.random_range(1..=most);
        let pick = |random: &mut StdRng| of[random.random_range(0..of.len())].clone();
        let mut picked: Vec<String> = (0..number).map(|_| pick(&mut self.random)).collect();
        picked.sort();
        picked.dedup();
        picked
    }

    fn update(&mut self, id: String) -> WriteOp {
        let new_text = self.random.random_range(0..2) > 0;
        let text = new_text.then(|| self.text());
        let passages = text.as_ref().map(|text| self.passages(text));
        let metadata = (!new_text).then(|| self.metadata());
        WriteOp::Update(PreparedUpdate {
            change: UpdateParams {
                id,
                text,
                agent: Some(format!("agent{}", self.random.random_range(0..5))),
                metadata,
                ..UpdateParams::default()
            },
            passages,
        })
    }

    async fn commit(&mut self, group: Vec<WriteOp>) {
        let project = self.access.project(&self.name).unwrap();
        let mut guard = self.access.lock(&project, true).await.unwrap();
        let table = guard.table().unwrap();
        let planned = plan(table, &group, LIMITS, None).await.unwrap();
        let outcome = planned.commit(table).await.unwrap();
        guard.publish().await.unwrap();
        for outcome in outcome.items {
            match outcome.unwrap() {
                OpOutcome::Stored(stored) => self.live.push(stored.id),
                OpOutcome::Deleted(deleted) => {
                    self.live.retain(|id| !deleted.ids.contains(id));
                    self.deleted.extend(deleted.ids);
                    self.deletions.extend(deleted.deletion);
                }
                OpOutcome::Undeleted(undeleted) => {
                    self.deleted.retain(|id| !undeleted.restored.contains(id));
                    self.live.extend(undeleted.restored);
                }
                OpOutcome::Updated(_) => {}
                OpOutcome::NotEmbedded => panic!("{:?}", self.steps),
            }
        }
    }

    async fn step(&mut self, home: &std::path::Path) {
        let (live, deleted) = (self.live.clone(), self.deleted.clone());
        let choice = self.random.random_range(0..16);
        let mut note = |step: String| self.steps.push(step);
        match choice {
            0..=4 if live.len() < ITEMS => {
                let number = self.random.random_range(1..=4);
                note(format!("store {number}"));
                let group = (0..number).map(|_| self.store()).collect();
                self.commit(group).await;
            }
            5 | 6 if !live.is_empty() => {
                let ids = self.some(&live, 3);
                self.steps.push(format!("update {ids:?}"));
                let group = ids.into_iter().map(|id| self.update(id)).collect();
                self.commit(group).await;
            }
            7 if !live.is_empty() => {
                let ids = self.some(&live, 4);
                self.steps.push(format!("delete {ids:?}"));
                let delete = WriteOp::Delete(DeleteTarget::Ids(ids), UndoNote::default());
                // In one group with something new.
                let store = self.store();
                self.commit(vec![delete, store]).await;
            }
            8 => {
                let filter = self.filter();
                self.steps.push(format!("delete {filter:?}"));
                let target = DeleteTarget::Matching(filter);
                self.commit(vec![WriteOp::Delete(target, UndoNote::default())]).await;
            }
            9 if !deleted.is_empty() => {
                let target = match self.deletions.pop().filter(|_| self.random.random_range(0..2) > 0) {
                    Some(deletion) => UndeleteTarget::Deletion(deletion),
                    None => UndeleteTarget::Ids(self.some(&deleted, 3)),
                };
                self.steps.push(format!("undelete {target:?}"));
                if live.len() < ITEMS {
                    self.commit(vec![WriteOp::Undelete(target)]).await;
                }
            }
            10 if !live.is_empty() => {
                let ids = self.some(&live, 2);
                self.steps.push(format!("purge {ids:?}"));
                self.purge(&ids).await;
            }
            11 => {
                self.steps.push("upkeep".to_owned());
                self.upkeep(false).await;
            }
            12 => {
                self.steps.push("thorough upkeep".to_owned());
                self.upkeep(true).await;
            }
            13 if self.steps.len().is_multiple_of(2) && self.random.random_range(0..2) > 0 => {
                let closed = self.access.store().close_unused(Duration::ZERO).await;
                self.steps.push(format!("nobody uses it, {closed} closed"));
            }
            13 if self.random.random_range(0..2) > 0 => {
                self.steps.push("open again".to_owned());
                let project = self.access.project(&self.name).unwrap();
                self.access.forget(&project).await;
            }
            13 => {
                self.steps.push("restart".to_owned());
                let gone = std::mem::replace(&mut self.access, open(&home.with_file_name("elsewhere")));
                drop(gone);
                self.access = open_with(home, self.resident_bytes);
            }
            14 if self.view().await.is_some() => {
                self.steps.push("backup".to_owned());
                let path = home.with_file_name(format!("backup-{}", self.steps.len()));
                let request = BackupRequest {
                    path: path.clone(),
                    project: None,
                };
                let store = Arc::clone(self.access.store());
                store.back_up(request, Arc::new(Patient)).await.unwrap();
                self.backup = Some((path, live, deleted));
            }
            15 if let Some((path, live, deleted)) = self.backup.clone() => {
                self.steps.push("restore".to_owned());
                let store = Arc::clone(self.access.store());
                let staged = store.stage(path, None, Arc::new(Patient)).await.unwrap();
                let _alone = store.alone().await;
                self.access.put_in_place(staged).await.unwrap();
                (self.live, self.deleted) = (live, deleted);
                self.deletions.clear();
            }
            _ => {}
        }
    }

    async fn purge(&mut self, ids: &[String]) {
        let project = self.access.project(&self.name).unwrap();
        let mut guard = self.access.lock(&project, false).await.unwrap();
        let table = guard.table().unwrap();
        table.purge(ids).await.unwrap();
        table.erase_removed().await.unwrap();
        guard.publish().await.unwrap();
        self.live.retain(|id| !ids.contains(id));
        self.deletions.clear();
    }

    async fn upkeep(&mut self, thorough: bool) {
        let project = self.access.project(&self.name).unwrap();
        let mut guard = self.access.lock(&project, true).await.unwrap();
        let table = guard.table().unwrap();
        if thorough {
            let mut upkeep = Thorough::default();
            while table.maintain_thoroughly(&mut upkeep).await.unwrap() {}
        } else if let Some(step) = due_steps(&table.debt().await.unwrap(), Pace::Quiet).first() {
            table.maintain(*step).await.unwrap();
        }
        guard.publish().await.unwrap();
        let table = guard.table().unwrap();
        if self.random.random_range(0..2) > 0 {
            table.prune().await.unwrap();
        }
    }

    fn filter(&mut self) -> Filter {
        let agents = ["agent0", "agent1", "agent4"];
        let mut filter = match self.random.random_range(0..5) {
            0 => json!({"agent": agents[self.random.random_range(0..3)]}),
            1 => json!({"session_id": ["session0", "session2"], "type": ["issue", "decision"]}),
            2 => json!({"metadata": {"area": "store"}}),
            3 => json!({"metadata": {"ä": null, "deep": {"x": [1]}}}),
            _ => json!({"type": "general"}),
        };
        if self.random.random_range(0..3) == 0 {
            let since = now_ms() - TimeDelta::minutes(self.random.random_range(0..600));
            filter["since"] = json!(crate::domain::format_time(since));
        }
        serde_json::from_value(filter).unwrap()
    }

    async fn view(&self) -> Option<Arc<ProjectView>> {
        self.access.store().view(&self.name).await.unwrap()
    }

    async fn check(&mut self) {
        let Some(view) = self.view().await else { return };
        let table = Arc::new(view.without_index());
        assert!(view.index().await.unwrap().is_some());
        assert_eq!(view.check_index().await.unwrap(), None, "{:?}", self.steps);
        assert_eq!(
            view.stats().await.unwrap(),
            table.stats().await.unwrap(),
            "{:?}",
            self.steps
        );

        let filters = [Filter::default(), self.filter(), self.filter()];
        let mut ids = self.live.clone();
        ids.extend(self.deleted.iter().take(3).cloned());
        ids.push("unknown-1".to_owned());
        assert_eq!(
            view.get(&ids, EVERYTHING).await.unwrap(),
            table.get(&ids, EVERYTHING).await.unwrap(),
            "{:?}",
            self.steps
        );
        assert_eq!(
            view.live_ids(&ids, EVERYTHING).await.unwrap(),
            table.live_ids(&ids, EVERYTHING).await.unwrap(),
        );
        for filter in filters {
            assert_eq!(
                view.matching_ids(&filter, EVERYTHING).await.unwrap(),
                table.matching_ids(&filter, EVERYTHING).await.unwrap(),
                "{filter:?} {:?}",
                self.steps
            );
            self.check_lists(&view, &table, &filter).await;
            for mode in [SearchMode::Vector, SearchMode::Text, SearchMode::Hybrid] {
                self.check_search(&view, &table, &filter, mode).await;
            }
        }
    }

    async fn check_lists(&mut self, view: &ProjectView, table: &ProjectView, filter: &Filter) {
        let mut after = None;
        loop {
            let request = ListRequest {
                filter: filter.clone(),
                newest_first: self.random.random_range(0..2) > 0,
                limit: 7,
                after: after.clone(),
                max_answer_bytes: EVERYTHING,
            };
            let (own, other) = (view.list(&request).await.unwrap(), table.list(&request).await.unwrap());
            assert_eq!(own.items, other.items, "{request:?} {:?}", self.steps);
            assert_eq!((own.total, own.more), (other.total, other.more), "{request:?}");
            let last = own
                .items
                .last()
                .map(|stored| (stored.item.timestamp, stored.item.id.clone()));
            // The order may change on the way: then it goes back or ends.
            if !own.more || last.is_none() || self.random.random_range(0..3) == 0 {
                return;
            }
            after = last;
        }
    }

    async fn check_search(
        &mut self,
        view: &Arc<ProjectView>,
        table: &Arc<ProjectView>,
        filter: &Filter,
        mode: SearchMode,
    ) {
        let vector = (mode != SearchMode::Text).then(|| Arc::from(self.vector()));
        let request = SearchRequest {
            query: self.words(3),
            vector,
            mode,
            filter: filter.clone(),
            limit: 100,
            offset: 0,
            threshold: None,
            min_similarity: [-1.0, 0.05][self.random.random_range(0..2)],
            at: None,
            except: None,
            text_budget: None,
            max_answer_bytes: EVERYTHING,
            keywords_ahead: None,
        };
        let own = search(std::slice::from_ref(view), &request, MODEL).await.unwrap();
        let other = search(std::slice::from_ref(table), &request, MODEL).await.unwrap();
        let shown = |outcome: &SearchOutcome| {
            let hits = outcome.hits.iter();
            hits.map(|hit| (hit.stored.item.id.clone(), hit.passage.index, hit.similarity))
                .collect::<Vec<_>>()
        };
        let (mut own_hits, mut other_hits) = (shown(&own), shown(&other));
        // Words that were looked up before make no difference.
        let ahead = KeywordsAhead::look_up(std::slice::from_ref(view), &request).await;
        let with_ahead = SearchRequest {
            keywords_ahead: Some(Arc::new(ahead)),
            ..request.clone()
        };
        let early = search(std::slice::from_ref(view), &with_ahead, MODEL).await.unwrap();
        assert_eq!(shown(&early), own_hits, "{request:?} {:?}", self.steps);
        // BM25 goes by all rows that are not indexed yet, or, with a filter in the query, by those of them that pass
        // it: what is found is the same, its order need not be.
        let is_scored_alike = mode == SearchMode::Vector;
        if !is_scored_alike {
            for hits in [&mut own_hits, &mut other_hits] {
                hits.sort_by(|a, b| a.0.cmp(&b.0));
                hits.iter_mut().for_each(|hit| (hit.1, hit.2) = (0, None));
            }
        }
        let near = |a: Option<f32>, b: Option<f32>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-3,
            (a, b) => a == b,
        };
        let same = own_hits.len() == other_hits.len()
            && own_hits
                .iter()
                .zip(&other_hits)
                .all(|(a, b)| (&a.0, a.1) == (&b.0, b.1) && near(a.2, b.2));
        assert!(
            same && own.more == other.more && own.mode == other.mode,
            "{request:?}\n{own_hits:?}\n{other_hits:?}\n{:?}",
            self.steps
        );
        if !is_scored_alike {
            return;
        }
        for (hit, other) in own.hits.iter().zip(&other.hits) {
            assert_eq!(hit.stored, other.stored);
            assert_eq!(hit.passage, other.passage);
        }
    }
}

impl Project {
    fn new(access: WriteAccess, name: &str, seed: u64) -> Self {
        Self {
            access,
            name: ProjectName::parse(name, "project_id").unwrap(),
            random: StdRng::seed_from_u64(seed),
            live: Vec::new(),
            deleted: Vec::new(),
            deletions: Vec::new(),
            backup: None,
            resident_bytes: 1 << 30,
            steps: vec![format!("seed {seed}")],
        }
    }

    async fn fill(&mut self, items: usize) {
        let group = (0..items).map(|_| self.store()).collect();
        self.commit(group).await;
    }

    /// The items that are found and shown, all of them.
    async fn shown(&self) -> usize {
        let view = self.view().await.unwrap();
        view.get(&self.live, EVERYTHING).await.unwrap().len()
    }
}

/// Bytes of the index of a project of so many items.
async fn index_bytes(items: usize) -> u64 {
    let home = tempfile::tempdir().unwrap();
    let mut project = Project::new(open(home.path()), "measured", 1);
    project.fill(items).await;
    assert_eq!(project.shown().await, items);
    project.access.store().resident().bytes
}

#[tokio::test]
async fn projects_that_were_used_least_recently_give_way_and_one_that_is_too_large_is_read_on_disk() {
    let (small, large) = (20, 400);
    let bound = index_bytes(small).await * 2 + index_bytes(small).await / 2;
    assert!(index_bytes(large).await > bound);
    let home = tempfile::tempdir().unwrap();
    let mut access = open_with(home.path(), bound);
    let mut projects = Vec::new();
    for name in ["a", "b", "c", "large"] {
        let mut project = Project::new(access, name, 2);
        project.fill(if name == "large" { large } else { small }).await;
        access = WriteAccess {
            store: Arc::clone(project.access.store()),
        };
        projects.push(project);
    }
    let store = Arc::clone(access.store());
    for round in 0..3 {
        for project in &projects {
            assert_eq!(project.shown().await, project.live.len());
            let resident = store.resident();
            assert!(resident.bytes <= bound, "{round} {resident:?}");
            assert_eq!(resident.limit_bytes, bound);
        }
    }
    // Two of the small ones have room at a time, so each use of one makes another go; the large one never has.
    let resident = store.resident();
    assert_eq!(resident.projects, 2, "{resident:?}");
    assert!(resident.evicted >= 6, "{resident:?}");
    assert_eq!(projects[3].shown().await, large);
    let after = store.resident();
    assert_eq!((after.projects, after.evicted), (resident.projects, resident.evicted));
    assert!(projects[3].view().await.unwrap().index().await.unwrap().is_none());
}

#[tokio::test]
async fn equally_good_passages_come_in_the_order_of_the_table_however_often_it_is_opened() {
    let home = tempfile::tempdir().unwrap();
    let mut project = Project::new(open(home.path()), "equals", 5);
    let mut stored = 0;
    // More than one fetch of a leg, in several segments of the keyword index.
    for _ in 0..6 {
        let group: Vec<WriteOp> = (0..60)
            .map(|_| {
                let WriteOp::Store(mut item) = project.store() else {
                    unreachable!()
                };
                stored += 1;
                item.item.content.text = "socket writer lease".to_owned();
                item.item.id = Some(format!("equal-{stored:03}"));
                item.passages.truncate(1);
                item.passages[0].text.clone_from(&item.item.content.text);
                WriteOp::Store(item)
            })
            .collect();
        project.commit(group).await;
        project.upkeep(false).await;
    }
    let request = SearchRequest {
        query: "lease".to_owned(),
        vector: None,
        mode: SearchMode::Text,
        filter: Filter::default(),
        limit: 50,
        offset: 0,
        threshold: None,
        min_similarity: 0.0,
        at: None,
        except: None,
        text_budget: None,
        max_answer_bytes: EVERYTHING,
        keywords_ahead: None,
    };
    let mut first: Option<Vec<String>> = None;
    for _ in 0..4 {
        let known = project.access.project(&project.name).unwrap();
        project.access.forget_all(&known).await;
        let view = [project.view().await.unwrap()];
        let found = search(&view, &request, MODEL).await.unwrap();
        let ids: Vec<String> = found.hits.into_iter().map(|hit| hit.stored.item.id).collect();
        assert_eq!(ids.len(), 50);
        assert_eq!(*first.get_or_insert_with(|| ids.clone()), ids);
    }
}

/// A search by words that shows all that it finds: ids with BM25, best first.
async fn found_by_words(project: &Project, query: &str) -> Vec<(String, f32)> {
    let request = SearchRequest {
        query: query.to_owned(),
        vector: None,
        mode: SearchMode::Text,
        filter: Filter::default(),
        limit: 100,
        offset: 0,
        threshold: None,
        min_similarity: 0.0,
        at: None,
        except: None,
        text_budget: None,
        max_answer_bytes: EVERYTHING,
        keywords_ahead: None,
    };
    let view = [project.view().await.unwrap()];
    let found = search(&view, &request, MODEL).await.unwrap();
    let hits = found.hits.into_iter();
    hits.map(|hit| (hit.stored.item.id, hit.bm25.unwrap())).collect()
}

#[tokio::test]
async fn revisions_that_are_closed_change_nothing_of_what_words_weigh() {
    let home = tempfile::tempdir().unwrap();
    let mut project = Project::new(open(home.path()), "revised", 6);
    project.fill(40).await;
    let before = found_by_words(&project, "socket panic").await;
    assert!(before.len() > 5, "{before:?}");
    // Each update closes the rows of a revision and opens the same text again.
    let best = before[0].0.clone();
    for number in 0..60 {
        let change = UpdateParams {
            id: best.clone(),
            metadata: json!({ "number": number }).as_object().cloned(),
            ..UpdateParams::default()
        };
        let passages = None;
        project
            .commit(vec![WriteOp::Update(PreparedUpdate { change, passages })])
            .await;
        if number % 25 == 0 {
            project.upkeep(false).await;
        }
    }
    assert_eq!(found_by_words(&project, "socket panic").await, before);
    // Nor does it matter whether an item that is gone was ever there.
    let stored = project.live.len();
    project.fill(20).await;
    let more = project.live[stored..].to_vec();
    assert_ne!(found_by_words(&project, "socket panic").await, before);
    let delete = WriteOp::Delete(DeleteTarget::Ids(more), UndoNote::default());
    project.commit(vec![delete]).await;
    assert_eq!(found_by_words(&project, "socket panic").await, before);
}

/// The index once it has the words of all rows.
async fn words_of_all_rows(project: &Project) -> Index {
    loop {
        let index = project.view().await.unwrap().index().await.unwrap().unwrap();
        if index.unread_words() == 0 {
            return index;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_project_is_searched_before_its_words_are_in_memory() {
    let home = tempfile::tempdir().unwrap();
    let mut project = Project::new(open(home.path()), "large", 7);
    // More than one part of words, in several fragments; the last comes as rows that are at hand.
    for items in [500, 300, 20] {
        project.fill(items).await;
    }
    let whole = words_of_all_rows(&project).await;
    let expected = found_by_words(&project, "lease budget").await;
    let known = project.access.project(&project.name).unwrap();
    project.access.forget_all(&known).await;
    // LanceDB's keyword index or memory, as far as it has come: while nothing is closed, both find the same.
    let early = found_by_words(&project, "lease budget").await;
    assert_eq!(early.len(), expected.len());
    for ((_, early), (_, expected)) in early.iter().zip(&expected) {
        assert!((early - expected).abs() < 1e-5, "{early} {expected}");
    }
    // What is written meanwhile must not stop it.
    project.fill(1).await;
    let index = words_of_all_rows(&project).await;
    for address in whole.addresses_in(0..u64::MAX) {
        assert_eq!(index.words(address), whole.words(address));
    }
    assert_eq!(project.view().await.unwrap().check_index().await.unwrap(), None);
    let last = project.live.last().cloned().unwrap();
    let delete = WriteOp::Delete(DeleteTarget::Ids(vec![last]), UndoNote::default());
    project.commit(vec![delete]).await;
    assert_eq!(found_by_words(&project, "lease budget").await, expected);
}

#[tokio::test]
async fn verify_finds_an_index_that_is_wrong_and_has_it_made_again() {
    let home = tempfile::tempdir().unwrap();
    let mut project = Project::new(open(home.path()), "verified", 4);
    project.fill(10).await;
    assert_eq!(project.shown().await, 10);
    let store = Arc::clone(project.access.store());
    let flaws = async || {
        let verified = verify(&store, &project.name, |_, _| {}, || false).await.unwrap();
        verified
            .unwrap()
            .flaws
            .into_iter()
            .map(|flaw| flaw.problem)
            .collect::<Vec<_>>()
    };
    assert_eq!(flaws().await, [""; 0]);

    let view = project.view().await.unwrap();
    let right = view.index().await.unwrap().unwrap();
    let gone = right.get(&project.live[3])[0].address;
    let change = Change {
        removed: &[gone],
        ..Change::default()
    };
    view.replace_index(right.apply(&change).unwrap());
    assert!(project.shown().await < 10);
    let [flaw] = &flaws().await[..] else {
        panic!("it was not found")
    };
    assert!(flaw.contains("the index in memory was wrong"), "{flaw}");
    assert_eq!(project.shown().await, 10);
    assert_eq!(flaws().await, [""; 0]);
}

#[tokio::test]
async fn a_purge_leaves_nothing_of_what_was_shown() {
    let home = tempfile::tempdir().unwrap();
    let mut project = Project::new(open(home.path()), "purged", 3);
    project.fill(10).await;
    assert_eq!(project.shown().await, 10);
    assert_eq!(project.shown().await, 10);
    let texts = project.access.store().resident().texts;
    assert_eq!((texts.rows, texts.hits, texts.misses), (10, 10, 10));
    // A reader of the version before may still show what is purged, and keeps nothing of it.
    let before = project.view().await.unwrap();
    let ids = project.live[..3].to_vec();
    project.purge(&ids).await;
    assert_eq!(project.access.store().resident().texts.rows, 0);
    before.get(&ids, EVERYTHING).await.ok();
    assert_eq!(project.access.store().resident().texts.rows, 0);
    assert_eq!(project.shown().await, 7);
    assert_eq!(project.access.store().resident().texts.rows, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_are_answered_from_memory_as_from_the_table() {
    for seed in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home");
        for place in ["home", "elsewhere"] {
            std::fs::create_dir(directory.path().join(place)).unwrap();
        }
        let mut project = Project::new(open(&home), "random", seed);
        let mut known = 0;
        for _ in 0..40 {
            project.step(&home).await;
            project.check().await;
            known += usize::from(project.check_changes().await);
        }
        assert!(known >= 10, "{known} {:?}", project.steps);
    }
}
