//! Reading everything of a project and comparing it with what it says of itself.
//!
//! The table is opened a second time, at the view's version and with caches of its own, so that every byte comes
//! from the disk. Fragments are read one after another, batch by batch; what is remembered across batches are
//! fingerprints, some 30 bytes for each row.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, RecordBatch};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::index::DatasetIndexExt;
use lance::session::Session;
use lance_index::scalar::FullTextSearchQuery;
use lance_index::{FtsPrewarmOptions, PrewarmOptions};
use lance_io::local::to_local_path;
use lance_table::format::Fragment;
use lancedb::datafusion::logical_expr::lit;
use lancedb::expr::col;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::domain::{KnowledgeKind, ProjectName, content_hash, metadata_terms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::{damage, is_passing, read_error};
use crate::store::rows::{RowReader, row_key};
use crate::store::schema::{TableShape, column};
use crate::store::view::ProjectView;
use crate::store::write::{ERASING_MARK, TEXT_INDEX, configuration_damage};
use crate::store::{Lineage, Store, checked_reads, filter, fulltext, recovery, state};

/// Rows of one batch: some 2 MiB with vectors.
const BATCH_ROWS: usize = 512;
/// Caches of the second opening: enough for the metadata of one file at a time and a chunk of the index.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// How far the length of a vector may be from 1.
const UNIT_TOLERANCE: f64 = 1e-3;
/// Rows, spread over the table, whose words are looked up in the keyword index.
const PROBED_ROWS: u64 = 200;
/// Versions of a project that are read before it is given up, where they are taken away meanwhile.
const VERSIONS_READ: usize = 5;
/// Flaws that are listed for each project; the others are counted.
const MAX_FLAWS: usize = 1_000;

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
const FIX_ROW: &str = "store the item again and delete this one, or restore the project from a backup";
/// What to do about a damaged keyword index.
const FIX_INDEX: &str = "restart the daemon: it makes a damaged keyword index anew";

/// What to do about a damaged configuration of a table.
const FIX_CONFIGURATION: &str = "restore the project from a backup; until then it can be read and exported";

/// The flaws so far.
#[derive(Debug, Default)]
struct Flaws {
    listed: Vec<Flaw>,
    more: usize,
}

impl Flaws {
    fn add(&mut self, problem: impl Into<String>, fix: &'static str) {
        if self.listed.len() < MAX_FLAWS {
            let problem = problem.into();
            self.listed.push(Flaw { problem, fix });
        } else {
            self.more += 1;
        }
    }

    fn into_list(mut self) -> Vec<Flaw> {
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
/// whoever reads it. What was found then is no flaw, and it reads again, at the version that there is now.
///
/// # Errors
/// [`KnowledgeError::Unavailable`] where that happens again and again.
pub async fn verify(
    store: &Store,
    project: &ProjectName,
    mut progress: impl FnMut(u64, u64),
    is_over: impl Fn() -> bool,
) -> KnowledgeResult<Option<Verified>> {
    for _ in 0..VERSIONS_READ {
        store.view(project).await?;
        let lineage = store.lineage(project)?;
        let Some(view) = store.view(project).await? else {
            return Ok(None);
        };
        let verified = verify_view(&view, &mut progress, &is_over).await;
        match &verified {
            Ok(verified) if verified.flaws.is_empty() => {}
            Err(KnowledgeError::Cancelled) => {}
            _ if is_taken_away(store, &view, lineage).await? => {
                tracing::info!(%project, version = view.lance_version(), "the version was removed while it was verified");
                continue;
            }
            _ => {}
        }
        return verified.map(Some);
    }
    Err(KnowledgeError::Unavailable {
        part: "verification",
        reason: format!("the versions of project {project} that it read were removed meanwhile, by purges or restores"),
    })
}

/// Whether the files of a view were removed: by a restore, which begins another history, or by a purge, which removes
/// the manifest as well and its mark last.
pub(super) async fn is_taken_away(store: &Store, view: &ProjectView, lineage: Lineage) -> KnowledgeResult<bool> {
    store.view(view.project()).await?;
    if store.lineage(view.project())? != lineage {
        return Ok(true);
    }
    let manifest = PathBuf::from(to_local_path(&view.dataset().manifest_location().path));
    if !state::exists(&manifest)? {
        return Ok(true);
    }
    // `<project>/<table>/_versions/<manifest>`
    let directory = manifest.ancestors().nth(3).map(Path::to_path_buf).unwrap_or_default();
    let superseded = store
        .view(view.project())
        .await?
        .is_none_or(|now| now.lance_version() != view.lance_version());
    Ok(superseded && state::exists(&directory.join(ERASING_MARK))?)
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
        check_keyword_index(view, &dataset, &rows.samples, &mut flaws, &is_over).await?;
    }
    Ok(Verified {
        rows: rows.read,
        flaws: flaws.into_list(),
    })
}

/// The view's version with caches of its own.
async fn open_again(view: &ProjectView) -> KnowledgeResult<Arc<Dataset>> {
    let registry = Arc::new(lancedb::ObjectStoreRegistry::default());
    let session = Arc::new(Session::new(CACHE_BYTES, CACHE_BYTES, registry));
    let builder = DatasetBuilder::from_uri(view.dataset().uri())
        .with_read_params(checked_reads())
        .with_version(view.lance_version())
        .with_session(session);
    // A task of its own: damaged bytes can make Lance panic.
    match tokio::spawn(async move { builder.load().await }).await {
        Ok(Ok(dataset)) => Ok(Arc::new(dataset)),
        Ok(Err(error)) => Err(read_error(error)),
        Err(panic) => Err(KnowledgeError::unreadable(format_args!(
            "project {} cannot be opened: {panic}",
            view.project()
        ))),
    }
}

/// Where a table lies.
fn table_path(dataset: &Dataset) -> PathBuf {
    // `<table>/_versions/<manifest>`
    let manifest = PathBuf::from(to_local_path(&dataset.manifest_location().path));
    manifest.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default()
}

/// Whether every file that the version names is there, with its length. Answers the fragments of which one is not.
async fn check_files(dataset: &Dataset, table: &Path, flaws: &mut Flaws) -> KnowledgeResult<HashSet<u64>> {
    let fragments = Arc::clone(dataset.fragments());
    let indices = dataset.load_indices().await.map_err(read_error)?;
    let table = table.to_path_buf();
    let found = tokio::task::spawn_blocking(move || {
        fail::fail_point!("verify::files");
        let damaged = recovery::damaged_fragments(&fragments, &table);
        let indices: Vec<String> = indices
            .iter()
            .filter_map(|index| {
                let damage = recovery::index_damage(index, &table)?;
                Some(format!("index {}: {damage}", index.name))
            })
            .collect();
        (damaged, indices)
    });
    let (damaged, indices) = found.await.map_err(KnowledgeError::internal)?;
    for fragment in damaged.values() {
        flaws.add(format!("{} rows: {}", fragment.rows, fragment.reason), FIX_FILE);
    }
    for index in indices {
        flaws.add(index, FIX_INDEX);
    }
    Ok(damaged.into_keys().collect())
}

/// The rows of a fragment, read by a task of its own, since damaged bytes can make Lance panic.
struct Batches {
    batches: mpsc::Receiver<lance::Result<RecordBatch>>,
    task: Option<tokio::task::JoinHandle<()>>,
    /// Whether the end was reached without an error.
    whole: bool,
}

fn read_batches(dataset: &Arc<Dataset>, fragment: &Fragment) -> Batches {
    let mut scanner = dataset.scan();
    scanner.with_fragments(vec![fragment.clone()]).batch_size(BATCH_ROWS);
    let (sender, batches) = mpsc::channel(1);
    let task = tokio::spawn(async move {
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
            Some(Err(error)) => Ok(Some(Err(damage(&error)?))),
            None => {
                let Some(task) = self.task.take() else { return Ok(None) };
                match task.await {
                    Ok(()) => {
                        self.whole = true;
                        Ok(None)
                    }
                    Err(panic) => Ok(Some(Err(damage(&panic)?))),
                }
            }
        }
    }
}

/// What is remembered of the rows.
struct Rows {
    project: String,
    ours: bool,
    read: u64,
    /// One of so many rows is looked up in the keyword index.
    sample_every: u64,
    samples: Vec<(String, String)>,
    keys: HashSet<u64>,
    /// Items that have a live revision.
    live: HashSet<u64>,
    /// Revisions of which not all passages have come yet; most come together, so there are few.
    open: HashMap<(u64, i64), OpenRevision>,
}

struct OpenRevision {
    id: String,
    passages: i32,
    seen: i32,
    /// Fingerprint of what its passages have in common.
    common: u64,
}

fn fingerprint(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Rows {
    fn new(view: &ProjectView, total: u64) -> Self {
        Self {
            project: view.project().to_string(),
            ours: matches!(view.shape(), TableShape::Current { .. }),
            read: 0,
            sample_every: (total / PROBED_ROWS).max(1),
            samples: Vec::new(),
            keys: HashSet::new(),
            live: HashSet::new(),
            open: HashMap::new(),
        }
    }

    fn check(&mut self, batch: &RecordBatch, flaws: &mut Flaws) {
        for row in 0..batch.num_rows() {
            if self.ours {
                let mut problems = Vec::new();
                if let Err(error) = self.check_row(batch, row, &mut problems) {
                    problems.push(error.to_string());
                }
                let rows = RowReader(batch);
                let key = rows
                    .text(column::ROW_KEY, row)
                    .ok()
                    .flatten()
                    .unwrap_or("without a key");
                for problem in problems {
                    flaws.add(format!("row {key}: {problem}"), FIX_ROW);
                }
            }
            self.read += 1;
        }
    }

    /// Adds what is wrong with a row to `problems`. An error is a column that cannot be read as what it should be.
    fn check_row(&mut self, batch: &RecordBatch, row: usize, problems: &mut Vec<String>) -> KnowledgeResult<()> {
        let rows = RowReader(batch);
        let id = rows.required_text(column::ID, row)?;
        let revision = rows.int(column::REVISION, row)?.unwrap_or(0);
        let passage = rows.small_int(column::PASSAGE, row)?;
        let passages = rows.small_int(column::PASSAGES, row)?;
        let key = rows.required_text(column::ROW_KEY, row)?;
        if key != row_key(id, revision, usize::try_from(passage).unwrap_or(usize::MAX)) {
            problems.push(format!(
                "its key does not fit its id, revision {revision} and passage {passage}"
            ));
        }
        if !self.keys.insert(fingerprint(key)) {
            problems.push("its key occurs twice".to_owned());
        }
        // What a purge leaves: an id, without content.
        let tombstone = passages == 0 && passage == 0;
        if revision < 1 || passage < 0 || (passage >= passages && !tombstone) {
            problems.push(format!(
                "revision {revision}, passage {passage} of {passages} cannot be"
            ));
        }

        let valid_from = rows.int(column::VALID_FROM, row)?.unwrap_or(0);
        let valid_to = rows.int(column::VALID_TO, row)?;
        if valid_from < 1 || valid_to.is_some_and(|valid_to| valid_to < valid_from) {
            problems.push(format!("it cannot be valid from commit {valid_from} to {valid_to:?}"));
        }
        let project = rows.required_text(column::PROJECT_ID, row)?;
        if project != self.project {
            problems.push(format!("it says that it belongs to project {project}"));
        }
        rows.time(column::TIMESTAMP, row)?;
        rows.time(column::UPDATED_AT, row)?;
        if tombstone {
            if valid_to.is_none() {
                problems.push("it was purged and is live".to_owned());
            }
            return Ok(());
        }
        check_metadata(&rows, row, problems)?;
        check_text(&rows, row, passage, problems)?;
        check_vector(batch, row, problems)?;

        if passage == 0 && valid_to.is_none() && !self.live.insert(fingerprint(id)) {
            problems.push("the item has another live revision".to_owned());
        }
        let hash = rows.required_text(column::CONTENT_HASH, row)?;
        let first = rows.text(column::KEY_HASH, row)?;
        if first.is_some_and(|first| first.len() != hash.len() || (revision == 1 && first != hash)) {
            problems.push("it does not say with which content its item was first stored".to_owned());
        }
        self.count_passage(
            id,
            revision,
            passages,
            fingerprint((hash, valid_from, valid_to)),
            problems,
        );
        if self.read.is_multiple_of(self.sample_every) {
            let text = rows.required_text(column::PASSAGE_TEXT, row)?;
            self.samples.push((key.to_owned(), text.to_owned()));
        }
        Ok(())
    }

    fn count_passage(&mut self, id: &str, revision: i64, passages: i32, common: u64, problems: &mut Vec<String>) {
        let place = (fingerprint(id), revision);
        let open = self.open.entry(place).or_insert_with(|| OpenRevision {
            id: id.to_owned(),
            passages,
            seen: 0,
            common,
        });
        if open.common != common || open.passages != passages {
            problems.push("it disagrees with another passage of its revision".to_owned());
        }
        open.seen += 1;
        if open.seen >= open.passages {
            self.open.remove(&place);
        }
    }

    /// What can be said once all rows were read.
    fn finish(&self, flaws: &mut Flaws) {
        let mut incomplete: Vec<_> = self.open.iter().collect();
        incomplete.sort_by(|(a, left), (b, right)| (&left.id, a.1).cmp(&(&right.id, b.1)));
        for ((_, revision), open) in incomplete {
            flaws.add(
                format!(
                    "item {}, revision {revision}: {} of {} passages are there",
                    open.id, open.seen, open.passages
                ),
                FIX_ROW,
            );
        }
    }
}

fn check_metadata(rows: &RowReader<'_>, row: usize, problems: &mut Vec<String>) -> KnowledgeResult<()> {
    let text = rows.required_text(column::METADATA, row)?;
    let Ok(metadata) = serde_json::from_str::<Map<String, Value>>(text) else {
        problems.push("its metadata is not a JSON object".to_owned());
        return Ok(());
    };
    let terms = rows
        .0
        .column_by_name(column::METADATA_TERMS)
        .and_then(|array| array.as_list_opt::<i32>())
        .ok_or_else(|| KnowledgeError::internal("column metadata_terms is not a list"))?;
    let stored: Vec<String> = if terms.is_null(row) {
        Vec::new()
    } else {
        let list = terms.value(row);
        list.as_string_opt::<i32>()
            .ok_or_else(|| KnowledgeError::internal("column metadata_terms is not of texts"))?
            .iter()
            .flatten()
            .map(str::to_owned)
            .collect()
    };
    if stored != metadata_terms(&metadata) {
        problems.push("its metadata cannot be filtered by: the terms are those of other metadata".to_owned());
    }
    Ok(())
}

/// The text stands in passage 0; the content's hash can be checked there.
fn check_text(rows: &RowReader<'_>, row: usize, passage: i32, problems: &mut Vec<String>) -> KnowledgeResult<()> {
    let text = rows.text(column::TEXT, row)?;
    let passage_text = rows.required_text(column::PASSAGE_TEXT, row)?;
    let kind = rows.required_text(column::TYPE, row)?;
    let Ok(kind) = kind.parse::<KnowledgeKind>() else {
        problems.push(format!("its type `{kind}` is not known"));
        return Ok(());
    };
    if passage != 0 {
        return Ok(());
    }
    let Some(text) = text else {
        problems.push("it has no text".to_owned());
        return Ok(());
    };
    let agent = rows.text(column::AGENT, row)?;
    if content_hash(kind, agent, text) != rows.required_text(column::CONTENT_HASH, row)? {
        problems.push("its text, type and agent are not those that were stored (content hash)".to_owned());
    }
    let start = rows
        .int(column::START, row)?
        .and_then(|start| usize::try_from(start).ok());
    let end = rows.int(column::END, row)?.and_then(|end| usize::try_from(end).ok());
    let cut = start.zip(end).is_some_and(|(start, end)| {
        let length = end.saturating_sub(start);
        text.chars().skip(start).take(length).eq(passage_text.chars())
    });
    if !cut {
        problems.push("its first passage is not a part of its text".to_owned());
    }
    Ok(())
}

fn check_vector(batch: &RecordBatch, row: usize, problems: &mut Vec<String>) -> KnowledgeResult<()> {
    let vectors = batch
        .column_by_name(column::VECTOR)
        .and_then(|array| array.as_fixed_size_list_opt())
        .ok_or_else(|| KnowledgeError::internal("column vector is not a list"))?;
    if vectors.is_null(row) {
        problems.push("it has no vector".to_owned());
        return Ok(());
    }
    let vector = vectors.value(row);
    let values = vector
        .as_primitive_opt::<Float32Type>()
        .ok_or_else(|| KnowledgeError::internal("column vector is not of floats"))?;
    if values.null_count() > 0 || values.values().iter().any(|value| !value.is_finite()) {
        problems.push("its vector holds values that are no numbers".to_owned());
        return Ok(());
    }
    let squares: f64 = values.values().iter().map(|value| f64::from(*value).powi(2)).sum();
    let length = squares.sqrt();
    if (length - 1.0).abs() > UNIT_TOLERANCE {
        problems.push(format!("its vector has length {length:.4}, not 1"));
    }
    Ok(())
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
        if !fulltext::has_terms(text)? {
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

/// Reads the keyword index from end to end. The inner error says why it cannot be read.
async fn read_keyword_index(dataset: &Arc<Dataset>) -> KnowledgeResult<Result<(), String>> {
    let dataset = Arc::clone(dataset);
    let read = tokio::spawn(async move {
        // To read it whole is the point; what does not fit into the cache need not stay.
        let options = PrewarmOptions::Fts(FtsPrewarmOptions::new().best_effort());
        dataset.prewarm_index_with_options(TEXT_INDEX, &options).await
    });
    settle(read.await)
}

/// Searches for the words of `query` among the rows that pass `predicate` and can be read; how many were found, one
/// at most. The inner error says why it failed.
async fn look_up(
    view: &ProjectView,
    dataset: &Arc<Dataset>,
    query: &str,
    predicate: lancedb::datafusion::logical_expr::Expr,
) -> KnowledgeResult<Result<usize, String>> {
    let damaged = &view.condition().fragments;
    let readable = dataset
        .fragments()
        .iter()
        .filter(|fragment| !damaged.contains_key(&fragment.id));
    let search = FullTextSearchQuery::new(query.to_owned())
        .with_column(column::PASSAGE_TEXT.to_owned())
        .map_err(read_error)?
        .limit(Some(1));
    let mut scanner = dataset.scan();
    // Else Lance logs a warning about the columns for each row that is looked up.
    scanner.disable_scoring_autoprojection();
    scanner
        .with_fragments(readable.cloned().collect())
        .project(&[column::ROW_KEY])
        .map_err(read_error)?
        .filter_expr(predicate)
        .prefilter(true)
        .full_text_search(search)
        .map_err(read_error)?
        .limit(Some(1), None)
        .map_err(read_error)?;
    let read = tokio::spawn(async move {
        let batches: Vec<RecordBatch> = scanner.try_into_stream().await?.try_collect().await?;
        Ok(batches.iter().map(RecordBatch::num_rows).sum())
    });
    settle(read.await)
}

/// An error of this moment is one; an error of the data, or a panic over it, is a finding.
fn settle<T>(read: Result<lance::Result<T>, tokio::task::JoinError>) -> KnowledgeResult<Result<T, String>> {
    match read {
        Ok(Ok(value)) => Ok(Ok(value)),
        Ok(Err(error)) if is_passing(&error) => Err(read_error(error)),
        Ok(Err(error)) => Ok(Err(damage(&error)?)),
        Err(panic) if panic.is_panic() => Ok(Err(damage(&panic)?)),
        Err(cancelled) => Err(KnowledgeError::internal(cancelled)),
    }
}

/// Why the keyword index of a view cannot be used, if it cannot: reads it, and searches for the words that a search
/// has failed on. None where that could not be found out.
pub(crate) async fn keyword_index_damage(view: &ProjectView, query: Option<&str>) -> Option<String> {
    let look = async {
        let dataset = open_again(view).await?;
        let indices = dataset.load_indices().await.map_err(read_error)?;
        let table = table_path(&dataset);
        let plain = indices.iter().find_map(|index| recovery::index_damage(index, &table));
        if plain.is_some() || !indices.iter().any(|index| index.name == TEXT_INDEX) {
            return Ok(plain);
        }
        if let Err(reason) = read_keyword_index(&dataset).await? {
            return Ok(Some(reason));
        }
        let Some(query) = query else { return Ok(None) };
        Ok::<_, KnowledgeError>(look_up(view, &dataset, query, filter::live(None)).await?.err())
    };
    look.await.unwrap_or_else(|error| {
        tracing::warn!(project = %view.project(), %error, "the keyword index could not be examined");
        None
    })
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::domain::{NewItem, OnDuplicate, now_ms};
    use crate::store::rows::{EmbeddedPassage, NewRevision, build_batch};
    use crate::store::schema::table_schema;

    fn item(text: &str) -> NewItem {
        NewItem {
            text: text.to_owned(),
            kind: KnowledgeKind::General,
            agent: Some("tester".to_owned()),
            session_id: None,
            metadata: Map::from_iter([("k".to_owned(), Value::from("v"))]),
            id: None,
            idempotency_key: None,
            on_duplicate: OnDuplicate::Return,
            timestamp: now_ms(),
            updated_at: None,
        }
    }

    fn passage(text: &str, start: usize, vector: [f32; 2]) -> EmbeddedPassage {
        EmbeddedPassage {
            start,
            end: start + text.chars().count(),
            text: text.to_owned(),
            vector: Arc::from(vector),
        }
    }

    /// The problems of rows that `change` has made other than they should be.
    fn problems(project: &str, change: impl Fn(&mut NewRevision<'_>)) -> Vec<String> {
        let item = item("größte of all");
        let hash = item.content_hash();
        let passages = [passage("größte", 0, [0.6, 0.8]), passage("of all", 7, [1.0, 0.0])];
        let mut revision = NewRevision {
            id: "a",
            revision: 1,
            item: &item,
            content_hash: &hash,
            passages: &passages,
            updated_at: now_ms(),
            valid_from: 3,
            key_hash: None,
            opened_at: now_ms(),
        };
        change(&mut revision);
        let batch = build_batch(&table_schema(2, "model"), project, &[revision]).unwrap();
        let mut rows = Rows {
            project: "p".to_owned(),
            ours: true,
            read: 0,
            sample_every: 1,
            samples: Vec::new(),
            keys: HashSet::new(),
            live: HashSet::new(),
            open: HashMap::new(),
        };
        let mut flaws = Flaws::default();
        rows.check(&batch, &mut flaws);
        rows.finish(&mut flaws);
        assert_eq!(rows.read as usize, batch.num_rows());
        flaws.into_list().into_iter().map(|flaw| flaw.problem).collect()
    }

    #[test]
    fn rows_as_they_are_stored_have_no_flaw() {
        assert_eq!(problems("p", |_| {}), Vec::<String>::new());
    }

    #[test]
    fn each_flaw_is_found_and_names_its_row() {
        let first = |project: &str, change: &dyn Fn(&mut NewRevision<'_>), wanted: &str| {
            let found = problems(project, change);
            assert!(
                found
                    .iter()
                    .any(|problem| problem.starts_with("row a/") && problem.contains(wanted)),
                "{wanted}: {found:?}"
            );
        };
        first("other", &|_| {}, "belongs to project other");
        first("p", &|revision| revision.content_hash = "0000", "content hash");
        first("p", &|revision| revision.valid_from = 0, "cannot be valid");
        let off = [passage("größte", 0, [0.6, 0.9]), passage("of all", 7, [1.0, 0.0])];
        let off: &'static [EmbeddedPassage] = Box::leak(Box::new(off));
        first("p", &|revision| revision.passages = off, "has length 1.08");
        let zero: &'static [EmbeddedPassage] = Box::leak(Box::new([passage("größte", 0, [0.0, 0.0])]));
        first("p", &|revision| revision.passages = zero, "has length 0.0000");
        let nan: &'static [EmbeddedPassage] = Box::leak(Box::new([passage("größte", 0, [f32::NAN, 0.0])]));
        first("p", &|revision| revision.passages = nan, "no numbers");
        let elsewhere: &'static [EmbeddedPassage] = Box::leak(Box::new([passage("größte", 1, [0.6, 0.8])]));
        first("p", &|revision| revision.passages = elsewhere, "not a part of its text");
    }

    #[test]
    fn rows_that_belong_together_are_compared() {
        let item = item("one two");
        let hash = item.content_hash();
        let passages = [passage("one", 0, [0.6, 0.8]), passage("two", 4, [1.0, 0.0])];
        let revision = |number: i64, valid_from: i64| NewRevision {
            id: "a",
            revision: number,
            item: &item,
            content_hash: &hash,
            passages: &passages,
            updated_at: now_ms(),
            valid_from,
            key_hash: None,
            opened_at: now_ms(),
        };
        let schema = table_schema(2, "model");
        let batch = build_batch(&schema, "p", &[revision(1, 1), revision(2, 2)]).unwrap();
        let mut rows = Rows {
            project: "p".to_owned(),
            ours: true,
            read: 0,
            sample_every: 1,
            samples: Vec::new(),
            keys: HashSet::new(),
            live: HashSet::new(),
            open: HashMap::new(),
        };
        let mut flaws = Flaws::default();
        // The last passage of the second revision is missing, and the first row comes twice.
        rows.check(&batch.slice(0, 3), &mut flaws);
        rows.check(&batch.slice(0, 1), &mut flaws);
        rows.finish(&mut flaws);
        let found: Vec<String> = flaws.into_list().into_iter().map(|flaw| flaw.problem).collect();
        for wanted in [
            "row a/2/0: the item has another live revision",
            "row a/1/0: its key occurs twice",
            "item a, revision 2: 1 of 2 passages are there",
        ] {
            assert!(found.iter().any(|problem| problem == wanted), "{wanted}: {found:?}");
        }
        assert_eq!(rows.samples.len(), 4);
    }

    #[test]
    fn flaws_are_bounded_and_the_rest_is_counted() {
        let mut flaws = Flaws::default();
        for number in 0..MAX_FLAWS + 7 {
            flaws.add(number.to_string(), FIX_ROW);
        }
        let listed = flaws.into_list();
        assert_eq!(listed.len(), MAX_FLAWS + 1);
        assert_eq!(listed[MAX_FLAWS].problem, "and 7 more like these");
    }
}
