//! The verification of one project.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use futures::TryStreamExt;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_io::local::to_local_path;
use lance_table::format::Fragment;
use lancedb::datafusion::logical_expr::lit;
use lancedb::expr::col;
use tokio::sync::mpsc;

use super::rows::Rows;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::damage::{look_up, open_again, read_keyword_index, read_vector_index, table_path};
use crate::store::error::damage as damage_of;
use crate::store::error::{is_passing, read_error};
use crate::store::guarded::{Guarded, guarded};
use crate::store::table::keyword_index;
use crate::store::table::schema::{TableShape, column};
use crate::store::table::table_damage;
use crate::store::view::ProjectView;
use crate::store::write::{ERASING_MARK, TEXT_INDEX, configuration_damage};
use crate::store::{Lineage, Store, damage, disk};

/// Rows of one batch: some 2 MiB with vectors.
const BATCH_ROWS: usize = 512;
/// Rows, spread over the table, whose words are looked up in the keyword index.
pub(super) const PROBED_ROWS: u64 = 200;
/// Versions of a project that are read before it is given up, where they are taken away meanwhile.
const VERSIONS_READ: usize = 5;
/// Flaws that are listed for each project; the others are counted.
pub(super) const MAX_FLAWS: usize = 1_000;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What and where: the file, or the row by its key.
    pub problem: String,
    /// What to do about it.
    pub fix: &'static str,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Rows that were read.
    pub rows: u64,
    /// What is wrong.
    pub flaws: Vec<Flaw>,
}

/// What to do about a damaged file.
const FIX_FILE: &str = "stop the daemon and put the file back from a backup, or restore the project; otherwise the \
                        daemon goes on without it and sets what is left of it aside with the next store";
/// What to do about a damaged row.
pub(super) const FIX_ROW: &str = "store the item again and delete this one, or restore the project from a backup";
/// What to do about a damaged index.
const FIX_INDEX: &str = "restart the daemon: it rebuilds a damaged index";

/// What to do about an index in memory that does not agree with its table.
const FIX_MEMORY: &str = "nothing is lost, and it has been made again from the table; please report it with the log of \
                          the daemon, for it should not happen";

/// What to do about a damaged configuration of a table.
const FIX_CONFIGURATION: &str = "restore the project from a backup; until then it can be read and exported";

/// The flaws so far.
#[derive(Debug, Default)]
pub(super) struct Flaws {
    pub(super) listed: Vec<Flaw>,
    pub(super) more: usize,
}

impl Flaws {
    pub(super) fn add(&mut self, problem: impl Into<String>, fix: &'static str) {
        if self.listed.len() < MAX_FLAWS {
            let problem = problem.into();
            self.listed.push(Flaw { problem, fix });
        } else {
            self.more += 1;
        }
    }

    pub(super) fn into_list(mut self) -> Vec<Flaw> {
        if self.more > 0 {
            self.listed.push(Flaw {
                problem: format!("and {} more like these", self.more),
                fix: "mend these first and verify again",
            });
        }
        self.listed
    }
}

/// Reads everything of a project; none where there is no such project. `progress` is told the rows read so far and
/// all there are; when `is_over` says so, it ends with [`KnowledgeError::Cancelled`].
///
/// It holds the version that it reads, but a purge and a restore take the files of a version away after a while,
/// whoever reads it. What was found then is not a flaw, and it reads again, at the version that there is now.
///
/// # Errors
/// [`KnowledgeError::Unavailable`] where that happens again and again.
pub async fn verify(
    store: &Store,
    project: &ProjectName,
    mut progress: impl FnMut(u64, u64),
    is_over: impl Fn() -> bool,
) -> KnowledgeResult<Option<Verified>> {
    let mut removed = "";
    for _ in 0..VERSIONS_READ {
        store.view(project).await?;
        let lineage = store.lineage(project)?;
        let Some(view) = store.view(project).await? else {
            return Ok(None);
        };
        let verified = verify_view(&view, &mut progress, &is_over).await;
        let whole = verified.as_ref().is_ok_and(|verified| verified.flaws.is_empty());
        if whole || matches!(verified, Err(KnowledgeError::Cancelled)) {
            return verified.map(Some);
        }
        if let Some(how) = taken_away(store, &view, lineage).await? {
            tracing::info!(%project, version = view.lance_version(), ?how, "the version was removed while it was verified");
            removed = match how {
                TakenAway::Replaced | TakenAway::Purged => "were removed meanwhile, by purges or restores",
                TakenAway::Missing => "have lost their files",
            };
            continue;
        }
        return verified.map(Some);
    }
    Err(KnowledgeError::Unavailable {
        part: "verification",
        reason: format!("the versions of project {project} that it read {removed}"),
    })
}

/// How the files of a view have gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum TakenAway {
    /// By a restore, which begins another history, or since the project was begun again.
    Replaced,
    /// By a purge.
    Purged,
    /// Nobody knows how: nothing has been put in their place.
    Missing,
}

impl TakenAway {
    /// A purge removes the manifest as well and its mark last, and publishes a version before.
    fn judge(same_history: bool, superseded: bool, has_manifest: bool, is_erasing: bool) -> Option<Self> {
        match (same_history, superseded) {
            (false, _) => Some(Self::Replaced),
            (true, true) if !has_manifest || is_erasing => Some(Self::Purged),
            (true, false) if !has_manifest => Some(Self::Missing),
            (true, _) => None,
        }
    }
}

/// How the files of a view were removed, if they were.
pub(in crate::store) async fn taken_away(
    store: &Store,
    view: &ProjectView,
    lineage: Lineage,
) -> KnowledgeResult<Option<TakenAway>> {
    store.view(view.project()).await?;
    let same_history = store.lineage(view.project())? == lineage;
    let manifest = PathBuf::from(to_local_path(&view.dataset().manifest_location().path));
    // `<project>/<table>/_versions/<manifest>`
    let directory = manifest.ancestors().nth(3).map(Path::to_path_buf).unwrap_or_default();
    // In the order of a purge backwards, so that one that ends meanwhile is not missed.
    let is_erasing = disk::exists(&directory.join(ERASING_MARK))?;
    let has_manifest = disk::exists(&manifest)?;
    let now = store.view(view.project()).await?;
    let superseded = now.is_none_or(|now| now.lance_version() != view.lance_version());
    Ok(TakenAway::judge(same_history, superseded, has_manifest, is_erasing))
}

/// Reads everything of one version.
async fn verify_view(
    view: &ProjectView,
    mut progress: impl FnMut(u64, u64),
    is_over: impl Fn() -> bool,
) -> KnowledgeResult<Verified> {
    let mut flaws = Flaws::default();
    let dataset = open_again(view).await?;
    let table = table_path(&dataset);
    let plainly_damaged = check_files(&dataset, &table, &mut flaws).await?;
    if let Some(damage) = configuration_damage(dataset.config()) {
        flaws.add(damage, FIX_CONFIGURATION);
    }

    let expected: Vec<(Fragment, u64)> = dataset
        .fragments()
        .iter()
        .map(|fragment| (fragment.clone(), fragment.num_rows().unwrap_or(0) as u64))
        .collect();
    let total: u64 = expected.iter().map(|(_, rows)| rows).sum();
    let mut rows = Rows::new(view, total);
    for (fragment, wanted) in &expected {
        if plainly_damaged.contains(&fragment.id) {
            continue; // Said already.
        }
        let before = rows.read;
        let names: Vec<&str> = fragment.files.iter().map(|file| file.path.as_str()).collect();
        let mut batches = read_batches(&dataset, fragment);
        while let Some(batch) = batches.next().await? {
            match batch {
                Ok(batch) => rows.check(&batch, &mut flaws),
                Err(reason) => {
                    flaws.add(
                        format!("data file {} cannot be read: {reason}", names.join(", ")),
                        FIX_FILE,
                    );
                    break;
                }
            }
            progress(rows.read, total);
            if is_over() {
                return Err(KnowledgeError::Cancelled);
            }
        }
        let found = rows.read - before;
        if batches.whole && found != *wanted {
            flaws.add(
                format!(
                    "data file {} holds {found} rows, the manifest says {wanted}",
                    names.join(", ")
                ),
                FIX_FILE,
            );
        }
    }
    rows.finish(&mut flaws);

    if let TableShape::Current { .. } = view.shape() {
        // Of a table that is damaged it is known that not all is in memory.
        if flaws.listed.is_empty()
            && let Some(difference) = view.check_index().await?
        {
            flaws.add(format!("the index in memory was wrong: {difference}"), FIX_MEMORY);
        }
        check_keyword_index(view, &dataset, &rows.samples, &mut flaws, &is_over).await?;
        if let Err(reason) = read_vector_index(&dataset).await? {
            flaws.add(format!("the vector index cannot be read: {reason}"), FIX_INDEX);
        }
    }
    Ok(Verified {
        rows: rows.read,
        flaws: flaws.into_list(),
    })
}

/// Whether every file that the version names is there, with its length. Answers the fragments of which one is not.
async fn check_files(dataset: &Dataset, table: &Path, flaws: &mut Flaws) -> KnowledgeResult<HashSet<u64>> {
    let fragments = Arc::clone(dataset.fragments());
    let indices = dataset.load_indices().await.map_err(read_error)?;
    let table = table.to_path_buf();
    let found = tokio::task::spawn_blocking(move || {
        fail::fail_point!("verify::files");
        let damaged = damage::damaged_fragments(&fragments, &table);
        let indices: Vec<String> = indices
            .iter()
            .filter_map(|index| {
                let damage = damage::index_damage(index, &table)?;
                Some(format!("index {}: {damage}", index.name))
            })
            .collect();
        (damaged, indices)
    });
    let (damaged, indices) = found.await.map_err(KnowledgeError::internal)?;
    for fragment in damaged.values() {
        flaws.add(
            format!("{}: {}", table_damage::rows(fragment.rows), fragment.reason),
            FIX_FILE,
        );
    }
    for index in indices {
        flaws.add(index, FIX_INDEX);
    }
    Ok(damaged.into_keys().collect())
}

/// The rows of a fragment, as they are read.
struct Batches {
    batches: mpsc::Receiver<lance::Result<RecordBatch>>,
    task: Option<Guarded<()>>,
    /// Whether the end was reached without an error.
    whole: bool,
}

fn read_batches(dataset: &Arc<Dataset>, fragment: &Fragment) -> Batches {
    let mut scanner = dataset.scan();
    scanner.with_fragments(vec![fragment.clone()]).batch_size(BATCH_ROWS);
    let (sender, batches) = mpsc::channel(1);
    let task = guarded(async move {
        let mut stream = match scanner.try_into_stream().await {
            Ok(stream) => stream,
            Err(error) => {
                // A failed send only means that nobody wants to know any more; so below.
                sender.send(Err(error)).await.ok();
                return;
            }
        };
        loop {
            let sent = match stream.try_next().await {
                Ok(None) => return,
                Ok(Some(batch)) => sender.send(Ok(batch)).await,
                Err(error) => {
                    sender.send(Err(error)).await.ok();
                    return;
                }
            };
            if sent.is_err() {
                return;
            }
        }
    });
    Batches {
        batches,
        task: Some(task),
        whole: false,
    }
}

impl Batches {
    /// The next batch; the inner error says why there is none where there should be one.
    async fn next(&mut self) -> KnowledgeResult<Option<Result<RecordBatch, String>>> {
        match self.batches.recv().await {
            Some(Ok(batch)) => Ok(Some(Ok(batch))),
            Some(Err(error)) if is_passing(&error) => Err(read_error(error)),
            Some(Err(error)) => Ok(Some(Err(damage_of(&error)?))),
            None => {
                let Some(task) = self.task.take() else { return Ok(None) };
                match task.await {
                    Ok(()) => {
                        self.whole = true;
                        Ok(None)
                    }
                    Err(unfinished) => Ok(Some(Err(damage_of(&unfinished)?))),
                }
            }
        }
    }
}

/// Reads the keyword index whole, and looks up the words of `samples`, rows by their key, in it.
async fn check_keyword_index(
    view: &ProjectView,
    dataset: &Arc<Dataset>,
    samples: &[(String, String)],
    flaws: &mut Flaws,
    is_over: &impl Fn() -> bool,
) -> KnowledgeResult<()> {
    let indices = dataset.load_indices().await.map_err(read_error)?;
    if !indices.iter().any(|index| index.name == TEXT_INDEX) {
        flaws.add("there is no keyword index", FIX_INDEX);
        return Ok(());
    }
    if let Err(reason) = read_keyword_index(dataset).await? {
        flaws.add(format!("the keyword index cannot be read: {reason}"), FIX_INDEX);
        return Ok(());
    }
    for (key, text) in samples {
        if is_over() {
            return Err(KnowledgeError::Cancelled);
        }
        if keyword_index::query_words(text)?.is_empty() {
            continue;
        }
        let predicate = col(column::ROW_KEY).eq(lit(key.as_str()));
        match look_up(view, dataset, text, predicate).await? {
            Ok(1..) => {}
            Ok(0) => flaws.add(
                format!("row {key}: its words are not found in the keyword index"),
                FIX_INDEX,
            ),
            Err(reason) => {
                flaws.add(format!("the keyword index cannot be searched: {reason}"), FIX_INDEX);
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_is_told_where_it_is_known_to_have_taken_the_files() {
        // Same history, superseded, manifest there, mark there.
        assert_eq!(TakenAway::judge(true, false, true, false), None);
        assert_eq!(TakenAway::judge(true, true, true, false), None);
        // The purge of another version has only begun.
        assert_eq!(TakenAway::judge(true, false, true, true), None);
        assert_eq!(TakenAway::judge(true, true, true, true), Some(TakenAway::Purged));
        assert_eq!(TakenAway::judge(true, true, false, false), Some(TakenAway::Purged));
        // The directory was moved away: no other version has been published.
        assert_eq!(TakenAway::judge(true, false, false, false), Some(TakenAway::Missing));
        assert_eq!(TakenAway::judge(false, true, true, false), Some(TakenAway::Replaced));
    }
}
