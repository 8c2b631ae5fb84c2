//! The vector index on disk: when a table has one, and that searches through it answer as one that reads all vectors.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lance::index::DatasetIndexExt;

use super::*;
use crate::store::index::ViewIndex;
use crate::store::table::table_damage::TableDamage;
use crate::store::table::vector_index::VECTOR_INDEX;
use crate::store::upkeep::{Debt, Step};

/// No index fits into memory.
const NOTHING: u64 = 1;

fn project_on_disk(home: &Path, name: &str, seed: u64) -> Project {
    let mut project = Project::new(open_with(home, NOTHING), name, seed);
    project.resident_bytes = NOTHING;
    project
}

/// The same version, asked as if it had no vector index.
fn flat(view: &ProjectView) -> Arc<ProjectView> {
    let damage = TableDamage {
        vector_index: Some("not asked".to_owned()),
        ..(**view.damage()).clone()
    };
    Arc::new(ProjectView::new(
        view.project().clone(),
        Arc::clone(view.dataset()),
        view.shape().clone(),
        view.sequence(),
        Arc::new(damage),
        ViewIndex::default(),
    ))
}

/// The directories of the segments of a version's vector index.
async fn segments(view: &ProjectView) -> BTreeSet<PathBuf> {
    let segments = view.dataset().load_indices_by_name(VECTOR_INDEX).await.unwrap();
    let indices = Path::new(view.dataset().uri()).join("_indices");
    segments
        .iter()
        .map(|segment| indices.join(segment.uuid.to_string()))
        .collect()
}

impl Project {
    async fn maintain(&mut self, step: Step) -> bool {
        let project = self.access.project(&self.name).unwrap();
        let mut guard = self.access.lock(&project, true).await.unwrap();
        let changed = guard.table().unwrap().maintain(step).await.unwrap();
        guard.publish().await.unwrap();
        changed
    }

    async fn debt(&self) -> Debt {
        let project = self.access.project(&self.name).unwrap();
        let mut guard = self.access.lock(&project, true).await.unwrap();
        guard.table().unwrap().debt().await.unwrap()
    }

    async fn is_due(&self, step: Step) -> bool {
        due_steps(&self.debt().await, Pace::Quiet).contains(&step)
    }

    /// Asks for everything both ways. True if there is an index to ask.
    async fn check_vectors(&mut self) -> bool {
        let Some(view) = self.view().await else { return false };
        assert!(view.index().await.unwrap().is_none());
        let flat = flat(&view);
        for filter in [Filter::default(), self.filter()] {
            self.check_search(&view, &flat, &filter, SearchMode::Vector).await;
            self.check_search(&view, &flat, &filter, SearchMode::Hybrid).await;
        }
        !segments(&view).await.is_empty()
    }

    /// Stores items of one passage with these vectors, some thousand at once.
    async fn store_vectors(&mut self, vectors: &[Vec<f32>]) {
        for vectors in vectors.chunks(2_048) {
            let group = vectors.iter().map(|vector| {
                let WriteOp::Store(mut item) = self.store() else {
                    unreachable!()
                };
                let text: String = item.passages[0].text.clone();
                item.passages.truncate(1);
                item.passages[0].vector = vector.clone().into();
                item.item.content.text = text;
                item.content_hash = item.item.content_hash();
                WriteOp::Store(item)
            });
            let group = group.collect();
            self.commit(group).await;
        }
    }

    fn nearest_to(&self, vector: &[f32], limit: usize, offset: usize) -> SearchRequest {
        SearchRequest {
            query: String::new(),
            vector: Some(Arc::from(vector)),
            mode: SearchMode::Vector,
            filter: Filter::default(),
            limit,
            offset,
            threshold: None,
            min_similarity: -1.0,
            at: None,
            except: None,
            text_budget: None,
            max_answer_bytes: EVERYTHING,
            keywords_ahead: None,
        }
    }
}

async fn found(view: &Arc<ProjectView>, request: &SearchRequest) -> Vec<String> {
    let outcome = search(std::slice::from_ref(view), request, MODEL).await.unwrap();
    outcome.hits.into_iter().map(|hit| hit.stored.item.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_are_answered_through_the_vector_index_as_without_it() {
    let mut asked = 0;
    for seed in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home");
        for place in ["home", "elsewhere"] {
            std::fs::create_dir(directory.path().join(place)).unwrap();
        }
        let mut project = project_on_disk(&home, "random", seed);
        project.fill(8).await;
        for number in 0..40 {
            if number % 3 == 0 {
                project.steps.push("index vectors".to_owned());
                project.maintain(Step::IndexVectors).await;
            }
            project.step(&home).await;
            asked += usize::from(project.check_vectors().await);
        }
        let store = Arc::clone(project.access.store());
        let verified = verify(&store, &project.name, |_, _| {}, || false).await.unwrap();
        assert_eq!(verified.unwrap().flaws, []);
    }
    assert!(asked > 20, "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_has_a_vector_index_where_it_is_too_large_for_memory_and_only_there() {
    let home = tempfile::tempdir().unwrap();
    let mut project = project_on_disk(home.path(), "large", 1);
    let directions: Vec<Vec<f32>> = (0..40).map(|_| project.vector()).collect();
    let around = |project: &mut Project| -> Vec<f32> {
        let direction = &directions[project.random.random_range(0..directions.len())];
        let noise = project.vector();
        direction.iter().zip(noise).map(|(x, y)| x + y * 0.8).collect()
    };
    let vectors =
        |project: &mut Project, number: usize| -> Vec<Vec<f32>> { (0..number).map(|_| around(project)).collect() };
    let first = vectors(&mut project, 16_383);
    project.store_vectors(&first).await;
    assert!(!project.is_due(Step::IndexVectors).await);
    let second = vectors(&mut project, 1);
    project.store_vectors(&second).await;
    assert!(project.is_due(Step::IndexVectors).await);
    assert!(project.maintain(Step::IndexVectors).await);
    assert!(!project.is_due(Step::IndexVectors).await);
    assert!(!project.maintain(Step::IndexVectors).await);

    // A tail that is worth it becomes a segment of its own beside the large one.
    let tail = vectors(&mut project, 1_023);
    project.store_vectors(&tail).await;
    assert!(!project.is_due(Step::IndexVectors).await);
    let view = project.view().await.unwrap();
    let (flat_view, mut same, mut deep) = (flat(&view), 0, 0);
    for number in 0..30 {
        let query = around(&mut project);
        let request = project.nearest_to(&query, 10, 0);
        let exact = found(&flat_view, &request).await;
        let own = found(&view, &request).await;
        same += own.iter().filter(|id| exact.contains(id)).count();
        if number >= 5 {
            continue;
        }
        // A page is a part of one sequence, also where the index is asked by filter first.
        let whole = found(&view, &project.nearest_to(&query, 1_500, 0)).await;
        assert_eq!(whole[..10], own);
        assert_eq!(BTreeSet::from_iter(&whole).len(), 1_500);
        let page = found(&view, &project.nearest_to(&query, 100, 1_400)).await;
        assert_eq!(page, whole[1_400..]);
        let exact = found(&flat_view, &project.nearest_to(&query, 1_500, 0)).await;
        let exact: BTreeSet<&String> = exact.iter().collect();
        deep += whole.iter().filter(|id| exact.contains(id)).count();
    }
    assert!(same >= 297, "{same} of 300");
    assert!(deep >= 1_500 * 5 * 95 / 100, "{deep}");
    // Whoever has a version has the lock of the store with it.
    drop((view, flat_view));
    let one_more = vectors(&mut project, 1);
    project.store_vectors(&one_more).await;
    assert!(project.is_due(Step::IndexVectors).await);
    assert!(project.maintain(Step::IndexVectors).await);
    let debt = project.debt().await.vectors;
    assert_eq!((debt.segment_rows, debt.unindexed_rows), (vec![16_384, 1_024], 0));

    let view = project.view().await.unwrap();
    let before = segments(&view).await;
    drop(view);
    // Opened with a larger bound, it is answered from memory, and needs the index no more.
    let elsewhere = tempfile::tempdir().unwrap();
    drop(std::mem::replace(&mut project.access, open(elsewhere.path())));
    project.access = open(home.path());
    let view = project.view().await.unwrap();
    assert_eq!(segments(&view).await, before);
    assert!(view.index().await.unwrap().is_some());
    let query = around(&mut project);
    let request = project.nearest_to(&query, 10, 0);
    assert_eq!(found(&view, &request).await, found(&flat(&view), &request).await);
    assert!(project.is_due(Step::DropVectors).await);
    assert!(project.maintain(Step::DropVectors).await);
    assert!(!project.is_due(Step::DropVectors).await && !project.is_due(Step::IndexVectors).await);
    assert!(segments(&project.view().await.unwrap()).await.is_empty());
}

#[tokio::test]
async fn a_purge_leaves_no_file_of_the_vector_index() {
    let home = tempfile::tempdir().unwrap();
    let mut project = project_on_disk(home.path(), "purged", 3);
    project.fill(20).await;
    assert!(project.maintain(Step::IndexVectors).await);
    let before = segments(&project.view().await.unwrap()).await;
    assert!(!before.is_empty() && before.iter().all(|segment| segment.exists()));
    let ids = project.live[..3].to_vec();
    project.purge(&ids).await;
    {
        let own = project.access.project(&project.name).unwrap();
        let mut guard = project.access.lock(&own, false).await.unwrap();
        let patience = std::time::Duration::ZERO;
        guard.table().unwrap().finish_erasing(patience).await.unwrap();
    }
    assert!(before.iter().all(|segment| !segment.exists()));
    assert!(!project.check_vectors().await);
    assert!(project.maintain(Step::IndexVectors).await);
    assert!(project.check_vectors().await);
}

#[tokio::test]
async fn what_stands_for_purged_items_alone_is_not_indexed() {
    let home = tempfile::tempdir().unwrap();
    let mut project = project_on_disk(home.path(), "stones", 6);
    project.fill(5).await;
    let ids = project.live.clone();
    project.purge(&ids).await;
    assert!(!project.maintain(Step::IndexVectors).await);
    project.fill(5).await;
    assert!(project.maintain(Step::IndexVectors).await);
    assert!(project.check_vectors().await);
}

#[tokio::test]
async fn what_a_kill_leaves_of_a_segment_that_was_being_made_harms_nothing_and_goes() {
    let home = tempfile::tempdir().unwrap();
    let mut project = project_on_disk(home.path(), "killed", 7);
    project.fill(20).await;
    assert!(project.maintain(Step::IndexVectors).await);
    let segment = segments(&project.view().await.unwrap()).await.pop_first().unwrap();
    // Files are written first, then named by the commit: one of them whole, one cut off.
    let left = segment.with_file_name("0b8d5cf0-6a0b-4c6e-8a35-0d1c2b3a4f5e");
    std::fs::create_dir(&left).unwrap();
    for (number, entry) in std::fs::read_dir(&segment).unwrap().enumerate() {
        let path = entry.unwrap().path();
        let content = std::fs::read(&path).unwrap();
        let whole = if number == 0 { content.len() } else { content.len() / 2 };
        std::fs::write(left.join(path.file_name().unwrap()), &content[..whole]).unwrap();
    }
    let own = project.access.project(&project.name).unwrap();
    project.access.forget(&own).await;
    assert!(project.check_vectors().await);
    assert!(project.view().await.unwrap().damage().is_sound());
    project.fill(2).await;
    assert!(project.maintain(Step::IndexVectors).await);
    assert!(project.maintain(Step::Prune).await);
    assert!(!left.exists() && project.check_vectors().await);
}

#[tokio::test]
async fn a_vector_index_that_has_lost_a_file_is_not_asked_and_made_again() {
    for found_by_a_read in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let mut project = project_on_disk(home.path(), "damaged", 4);
        project.fill(20).await;
        assert!(project.maintain(Step::IndexVectors).await);
        let view = project.view().await.unwrap();
        let [segment] = &Vec::from_iter(segments(&view).await)[..] else {
            panic!("one segment")
        };
        let file = std::fs::read_dir(segment).unwrap().next().unwrap().unwrap().path();
        std::fs::remove_file(&file).unwrap();
        let store = Arc::clone(project.access.store());
        let verified = verify(&store, &project.name, |_, _| {}, || false)
            .await
            .unwrap()
            .unwrap();
        let [flaw, ..] = &verified.flaws[..] else {
            panic!("it was not found")
        };
        assert!(flaw.problem.contains(VECTOR_INDEX), "{flaw:?}");
        let own = project.access.project(&project.name).unwrap();
        if found_by_a_read {
            assert!(own.reexamine(&view, None).await.unwrap());
        } else {
            project.access.forget(&own).await;
        }
        drop(view);
        assert!(!project.check_vectors().await);
        assert!(project.view().await.unwrap().damage().is_sound());
        assert!(project.maintain(Step::IndexVectors).await);
        assert!(project.check_vectors().await);
    }
}

#[tokio::test]
async fn a_search_says_so_where_a_damaged_vector_index_is_still_there() {
    let home = tempfile::tempdir().unwrap();
    let mut project = project_on_disk(home.path(), "told", 5);
    project.fill(20).await;
    assert!(project.maintain(Step::IndexVectors).await);
    let view = project.view().await.unwrap();
    let query = project.vector();
    let request = project.nearest_to(&query, 10, 0);
    let whole = search(std::slice::from_ref(&view), &request, MODEL).await.unwrap();
    assert_eq!(whole.degraded, None);
    let outcome = search(std::slice::from_ref(&flat(&view)), &request, MODEL)
        .await
        .unwrap();
    assert_eq!(outcome.hits.len(), whole.hits.len());
    let degraded = outcome.degraded.unwrap();
    assert!(
        degraded.contains("the vector index cannot be used, and searches read all vectors: not asked"),
        "{degraded}"
    );
}
