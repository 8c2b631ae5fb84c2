//! Groups on real tables: what a commit makes of the fragments, the versions and the keyword index.

mod parts;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use futures::TryStreamExt;
use lancedb::datafusion::logical_expr::lit;
use lancedb::expr::col;
use tempfile::TempDir;

use super::{DeleteTarget, GroupOutcome, OpOutcome, PreparedItem, PreparedUpdate, UndeleteTarget, WriteOp, plan};
use crate::domain::{Content, Filter, NewItem, OnDuplicate, ProjectName, SearchMode, UpdateParams, now_ms};
use crate::error::KnowledgeError;
use crate::store::table::rows::{EmbeddedPassage, RowReader};
use crate::store::table::schema::column;
use crate::store::table::written::WrittenFragment;
use crate::store::upkeep::Step;
use crate::store::view::search::search;
use crate::store::view::{ProjectView, SearchRequest, filter};
use crate::store::{Durability, ModelIdentity, Project, Store, StoreConfig, StoreLock, WriteAccess};
use crate::writer::lane::GroupLimits;
use crate::writer::undo::UndoNote;

const MODEL: &str = "none@0";
/// Parts of four rows.
const LIMITS: GroupLimits = GroupLimits {
    max_rows: 1,
    max_bytes: 1 << 20,
};

/// A project with a table of vectors of two components.
struct Bench {
    access: WriteAccess,
    project: Arc<Project>,
    _home: TempDir,
}

/// What the fragments of a table are, and how often it was committed to.
#[derive(Debug, PartialEq)]
struct Shape {
    version: u64,
    /// Rows of each fragment, with those that are deleted, and these alone.
    fragments: Vec<(usize, usize)>,
    unindexed: usize,
}

impl Bench {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            knowledge_dir: home.path().to_owned(),
            durability: Durability::Full,
            index_cache_bytes: 1 << 20,
            metadata_cache_bytes: 1 << 20,
            resident_bytes: 1 << 30,
            text_cache_bytes: 1 << 20,
            min_free_bytes: 0,
            model: ModelIdentity {
                name: MODEL.to_owned(),
                dimensions: 2,
            },
            retention: chrono::TimeDelta::days(7),
        };
        let lock = StoreLock::acquire(home.path()).unwrap();
        let (_, access) = Store::open(config, lock).unwrap();
        let project = access.project(&ProjectName::default()).unwrap();
        drop(access.lock(&project, true).await.unwrap());
        Self {
            access,
            project,
            _home: home,
        }
    }

    async fn write(&self, group: Vec<WriteOp>) -> GroupOutcome {
        let mut guard = self.access.lock(&self.project, true).await.unwrap();
        let table = guard.table().unwrap();
        let planned = plan(table, &group, LIMITS, None).await.unwrap();
        planned.commit(table).await.unwrap()
    }

    async fn index(&self) {
        let mut guard = self.access.lock(&self.project, true).await.unwrap();
        let table = guard.table().unwrap();
        assert!(table.maintain(Step::Index { merged: 0 }).await.unwrap());
    }

    async fn view(&self) -> Arc<ProjectView> {
        let mut guard = self.access.lock(&self.project, true).await.unwrap();
        guard.table().unwrap().view().await.unwrap()
    }

    async fn shape(&self) -> Shape {
        let view = self.view().await;
        let fragments = view.dataset().fragments().iter().map(|fragment| {
            let physical = fragment.physical_rows.unwrap();
            (physical, physical - fragment.num_rows().unwrap())
        });
        let fragments = fragments.collect();
        let mut guard = self.access.lock(&self.project, true).await.unwrap();
        Shape {
            version: view.lance_version(),
            fragments,
            unindexed: guard.table().unwrap().debt().await.unwrap().unindexed_rows,
        }
    }

    /// The key of each row of the table, with whether it is live.
    async fn rows(&self) -> BTreeMap<String, bool> {
        let every = col(column::REVISION).gt_eq(lit(0_i64));
        let rows = self.view().await.rows(every).await.unwrap();
        let found: BTreeMap<String, bool> = keys(&rows)
            .into_iter()
            .enumerate()
            .map(|(row, key)| (key, RowReader(&rows).int(column::VALID_TO, row).unwrap().is_none()))
            .collect();
        assert_eq!(found.len(), rows.num_rows(), "a key is there twice");
        found
    }

    async fn live(&self) -> Vec<String> {
        let rows = self.rows().await.into_iter();
        rows.filter(|(_, live)| *live).map(|(key, _)| key).collect()
    }

    /// The ids of the items that hold a word of `query`.
    async fn found(&self, query: &str) -> Vec<String> {
        let request = SearchRequest {
            query: query.to_owned(),
            vector: None,
            mode: SearchMode::Text,
            filter: Filter::default(),
            limit: 10,
            offset: 0,
            threshold: None,
            min_similarity: 0.0,
            at: None,
            except: None,
            text_budget: None,
            max_answer_bytes: 1 << 20,
            keywords_ahead: None,
        };
        let outcome = search(&[self.view().await], &request, MODEL).await.unwrap();
        let mut ids: Vec<String> = outcome.hits.into_iter().map(|hit| hit.stored.item.id).collect();
        ids.sort();
        ids
    }

    async fn written(&self) -> Vec<WrittenFragment> {
        let mut guard = self.access.lock(&self.project, true).await.unwrap();
        guard.table().unwrap().take_written()
    }
}

fn keys(rows: &RecordBatch) -> Vec<String> {
    let reader = RowReader(rows);
    (0..rows.num_rows())
        .map(|row| reader.required_text(column::ROW_KEY, row).unwrap().to_owned())
        .collect()
}

fn passages(texts: &[&str]) -> Vec<EmbeddedPassage> {
    texts
        .iter()
        .map(|text| EmbeddedPassage {
            start: 0,
            end: text.len(),
            text: (*text).to_owned(),
            vector: Arc::from([0.6, 0.8]),
        })
        .collect()
}

/// Stores an item that has these passages.
fn store(id: &str, texts: &[&str]) -> WriteOp {
    let item = NewItem {
        content: Content {
            text: texts.join("\n\n"),
            ..Content::default()
        },
        id: Some(id.to_owned()),
        idempotency_key: None,
        on_duplicate: OnDuplicate::Return,
        timestamp: now_ms(),
        updated_at: None,
    };
    WriteOp::Store(PreparedItem {
        content_hash: item.content_hash(),
        item,
        passages: passages(texts),
    })
}

fn update(id: &str, texts: &[&str]) -> WriteOp {
    WriteOp::Update(PreparedUpdate {
        change: UpdateParams {
            id: id.to_owned(),
            text: Some(texts.join("\n\n")),
            ..UpdateParams::default()
        },
        passages: Some(passages(texts)),
    })
}

fn set_agent(id: &str) -> WriteOp {
    WriteOp::Update(PreparedUpdate {
        change: UpdateParams {
            id: id.to_owned(),
            agent: Some("another".to_owned()),
            ..UpdateParams::default()
        },
        passages: None,
    })
}

fn delete(ids: &[&str]) -> WriteOp {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    WriteOp::Delete(DeleteTarget::Ids(ids), UndoNote::default())
}

#[tokio::test]
async fn an_update_is_one_fragment_of_what_it_closes_and_then_what_it_opens() {
    let bench = Bench::new().await;
    let empty = bench.shape().await;
    assert_eq!(empty.fragments, []);
    bench
        .write(vec![
            store("a", &["zebra one", "zebra two", "lion"]),
            store("b", &["tiger"]),
        ])
        .await;
    assert_eq!(
        bench.shape().await,
        Shape {
            version: empty.version + 1,
            fragments: vec![(4, 0)],
            unindexed: 4,
        }
    );
    bench.index().await;
    assert_eq!(bench.found("zebra").await, ["a"]);

    // With the passages that it has, then with others and more of them, whatever the index covers.
    bench.write(vec![set_agent("a")]).await;
    assert_eq!(
        bench.shape().await,
        Shape {
            version: empty.version + 3,
            fragments: vec![(4, 3), (6, 0)],
            unindexed: 6,
        }
    );
    assert_eq!(bench.found("zebra").await, ["a"]);
    bench.write(vec![update("a", &["ape", "bear", "cat", "dog"])]).await;
    let last = bench.written().await.pop().unwrap();
    assert_eq!(
        bench.shape().await,
        Shape {
            version: empty.version + 4,
            fragments: vec![(4, 3), (6, 3), (7, 0)],
            unindexed: 10,
        }
    );
    assert_eq!(bench.found("zebra").await, [""; 0]);
    assert_eq!(bench.found("bear").await, ["a"]);
    assert_eq!(bench.found("tiger").await, ["b"]);
    assert_eq!(bench.live().await, ["a/3/0", "a/3/1", "a/3/2", "a/3/3", "b/1/0"]);
    assert_eq!(bench.rows().await.len(), 3 + 3 + 4 + 1);
    let order = ["a/2/0", "a/2/1", "a/2/2", "a/3/0", "a/3/1", "a/3/2", "a/3/3"];
    assert_eq!(keys(&last.rows), order);
    // And as before once it is indexed.
    bench.index().await;
    assert_eq!(bench.shape().await.unindexed, 0);
    assert_eq!(bench.found("zebra").await, [""; 0]);
    assert_eq!(bench.found("bear").await, ["a"]);
}

#[tokio::test]
async fn a_change_reaches_all_the_fragments_in_which_its_rows_lie() {
    let bench = Bench::new().await;
    for id in ["a", "b", "c"] {
        bench
            .write(vec![store(id, &[id, "more"]), store(&format!("{id}2"), &[id])])
            .await;
    }
    let before = bench.shape().await;
    assert_eq!(before.fragments, [(3, 0); 3]);
    let group = vec![delete(&["a", "c2"]), set_agent("b"), store("d", &["new"])];
    let outcome = bench.write(group).await;
    assert_eq!(
        bench.shape().await,
        Shape {
            version: before.version + 1,
            fragments: vec![(3, 2), (3, 2), (3, 1), (2 + 1 + 2 + 1 + 2, 0)],
            unindexed: 9 + 3,
        }
    );
    let live = ["a2/1/0", "b/2/0", "b/2/1", "b2/1/0", "c/1/0", "c/1/1", "d/1/0"];
    assert_eq!(bench.live().await, live);
    // The deletion is known by its rows.
    let Ok(OpOutcome::Deleted(deleted)) = &outcome.items[0] else {
        panic!("{outcome:?}");
    };
    let deletion = deleted.deletion.clone().unwrap();
    let undone = WriteOp::Undelete(UndeleteTarget::Deletion(deletion));
    bench.write(vec![undone]).await;
    let live = [
        "a/2/0", "a/2/1", "a2/1/0", "b/2/0", "b/2/1", "b2/1/0", "c/1/0", "c/1/1", "c2/2/0", "d/1/0",
    ];
    assert_eq!(bench.live().await, live);
    assert_eq!(bench.shape().await.version, before.version + 2);
}

#[tokio::test]
async fn a_fragment_goes_with_the_last_of_its_rows() {
    let bench = Bench::new().await;
    bench.write(vec![store("a", &["zebra"]), store("b", &["lion"])]).await;
    bench.write(vec![store("c", &["tiger"])]).await;
    bench.index().await;
    let before = bench.shape().await;
    bench.write(vec![delete(&["a"])]).await;
    assert_eq!(bench.shape().await.fragments, [(2, 1), (1, 0), (1, 0)]);
    bench.write(vec![delete(&["b"])]).await;
    assert_eq!(bench.shape().await.fragments, [(1, 0), (1, 0), (1, 0)]);
    assert_eq!(bench.found("zebra lion tiger").await, ["c"]);
    // All that there is, by a filter.
    let all = WriteOp::Delete(DeleteTarget::Matching(Filter::default()), UndoNote::default());
    bench.write(vec![all]).await;
    assert_eq!(
        bench.shape().await,
        Shape {
            version: before.version + 3,
            fragments: vec![(1, 0); 3],
            unindexed: 3,
        }
    );
    assert_eq!(bench.live().await, [""; 0]);
    assert_eq!(bench.found("zebra lion tiger").await, [""; 0]);
    // An id goes on with the revision after its last.
    bench.write(vec![store("a", &["zebra again"])]).await;
    assert_eq!(bench.live().await, ["a/2/0"]);
    assert_eq!(bench.found("zebra").await, ["a"]);
}

#[tokio::test]
async fn a_purge_leaves_a_tombstone_of_all_revisions_and_keeps_nothing_in_memory() {
    let bench = Bench::new().await;
    bench
        .write(vec![store("a", &["zebra", "lion"]), store("b", &["tiger"])])
        .await;
    bench.write(vec![set_agent("a")]).await;
    bench.index().await;
    let before = bench.shape().await;
    {
        let mut guard = bench.access.lock(&bench.project, false).await.unwrap();
        let table = guard.table().unwrap();
        assert_eq!(table.purge(&["a".to_owned()]).await.unwrap(), ["a"]);
    }
    assert!(bench.written().await.is_empty());
    let after = Shape {
        version: before.version + 1,
        fragments: vec![(3, 2), (1, 0)],
        unindexed: 1,
    };
    assert_eq!(bench.shape().await, after);
    let rows = BTreeMap::from([("a/3/0".to_owned(), false), ("b/1/0".to_owned(), true)]);
    assert_eq!(bench.rows().await, rows);
    assert_eq!(bench.found("zebra lion tiger").await, ["b"]);
    // Purged again, it removes nothing, and its id goes on after the tombstone.
    {
        let mut guard = bench.access.lock(&bench.project, false).await.unwrap();
        let table = guard.table().unwrap();
        assert_eq!(table.purge(&["a".to_owned()]).await.unwrap(), ["a"]);
        assert_eq!(table.lance_version().await.unwrap(), after.version);
        table.erase_removed().await.unwrap();
    }
    assert_eq!(bench.rows().await, rows);
    bench.write(vec![store("a", &["zebra"])]).await;
    assert_eq!(bench.live().await, ["a/4/0", "b/1/0"]);
}

#[tokio::test]
async fn rows_that_have_moved_are_not_taken_out_by_the_places_that_they_had() {
    let bench = Bench::new().await;
    bench
        .write(vec![
            store("a", &["zebra"]),
            store("b", &["lion"]),
            store("c", &["tiger"]),
        ])
        .await;
    let stale = bench.view().await.placed_rows(filter::live(None)).await.unwrap();
    let times = vec![now_ms(); stale.rows.num_rows()];
    bench.write(vec![delete(&["a"])]).await;
    let mut guard = bench.access.lock(&bench.project, false).await.unwrap();
    let table = guard.table().unwrap();
    // One of them is deleted, then the others lie in another file.
    for _ in 0..2 {
        let version = table.lance_version().await.unwrap();
        let changed = table.change(&stale, &times, &[]).await;
        assert!(matches!(changed, Err(KnowledgeError::Internal { .. })), "{changed:?}");
        assert_eq!(table.lance_version().await.unwrap(), version);
        table.maintain(Step::Rewrite { thorough: true }).await.unwrap();
    }
    // Nor is anything answered that was not written.
    let version = table.lance_version().await.unwrap();
    assert!(table.append(&[]).await.is_err());
    assert_eq!(table.lance_version().await.unwrap(), version);
    drop(guard);
    assert_eq!(bench.live().await, ["b/1/0", "c/1/0"]);
}

#[tokio::test]
async fn what_was_written_is_what_lies_on_disk() {
    let bench = Bench::new().await;
    bench
        .write(vec![store("a", &["zebra", "lion"]), store("b", &["tiger"])])
        .await;
    bench.write(vec![set_agent("a"), delete(&["b"])]).await;
    bench.write(vec![store("c", &["ape"])]).await;
    let written = bench.written().await;
    assert_eq!(written.len(), 3);
    assert!(bench.written().await.is_empty());
    let view = bench.view().await;
    let fragments = view.dataset().fragments();
    // All rows of the first have left it.
    assert_eq!(fragments.len(), 2);
    for (fragment, written) in fragments.iter().zip(&written[1..]) {
        assert_eq!(fragment.files[0].path, written.file);
        let mut scanner = view.dataset().scan();
        scanner.with_fragments(vec![fragment.clone()]);
        let stream = scanner.try_into_stream().await.unwrap();
        let read: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        assert_eq!(concat_batches(&written.rows.schema(), &read).unwrap(), written.rows);
    }
}
