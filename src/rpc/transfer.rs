//! `admin.backup`, `admin.restore`, `admin.export` and `admin.import`: knowledge in and out of files, while
//! everything else goes on.
//!
//! These are read and written with the rights of the daemon, so only the user that it runs as may name them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ccod_actors::admission::{Admission, Permit};
use ccod_actors::deadline::Deadline;
use ccod_actors::domain::{NewItem, ProjectName, now_ms, parse_time};
use ccod_actors::embedder::Lane;
use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::store::transfer::{
    ASIDE, BackupRequest, KNOWLEDGE, NewPlace, Watcher, new_place, open_regular, partial_beside,
};
use ccod_actors::writer::{ItemOutcome, PreparedItem, WriterHandle};
use ccod_protocol::api::{self, Params as _};
use ccod_protocol::context::CallContext;
use ccod_protocol::error::{ErrorKind, Executed, WireError};
use futures::future::join_all;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::{App, Call, Failure, must_exist, store, wire_error};
use crate::transfer::{Entries, Entry, Format};

/// Items that an export reads at once: at the largest size of a text, some tens of megabytes.
const EXPORT_ITEMS: usize = 32;
/// Items that an import embeds and stores together: enough for full batches and one commit.
const IMPORT_ITEMS: usize = 64;
/// Bytes of text after which such a group is not filled any more.
const IMPORT_BYTES: usize = 2 << 20;
/// Problems that the answer of an import names; the others are counted.
const IMPORT_PROBLEMS: usize = 20;
/// Bytes that the escapes of JSON make of one, at most.
const ESCAPED_BYTES: u64 = 6;
/// Bytes of an item in a file besides its text and metadata, at most.
const ITEM_OVERHEAD_BYTES: u64 = 64 << 10;
/// Bytes of a file that are read at once; its format is known by the first of them.
const READ_BYTES: usize = 64 << 10;
/// Imports that run at once; more wait. They share the bulk lane of the embedder, so that more of them would not be
/// done sooner.
const IMPORTS: u32 = 2;
/// Backups and restores that run at once; more wait. Each holds a thread for as long as it copies, and all file work
/// of the daemon shares a few of those.
const COPIES: u32 = 2;
/// Pause where the writer has no room for a single item.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// A call that waits for long work.
struct CallWatcher {
    context: CallContext,
    /// What was last told, in percent: each is told once.
    told: Mutex<Option<(u64, String)>>,
}

impl CallWatcher {
    fn new(context: &CallContext) -> Arc<Self> {
        Arc::new(Self {
            context: context.clone(),
            told: Mutex::new(None),
        })
    }
}

impl Watcher for CallWatcher {
    fn progress(&self, done: u64, total: u64, message: &str) {
        let percent = u128::from(done) * 100 / u128::from(total.max(1));
        let percent = u64::try_from(percent).unwrap_or(u64::MAX);
        let mut told = self.told.lock();
        if told
            .as_ref()
            .is_some_and(|(before, of)| *before == percent && of == message)
        {
            return;
        }
        *told = Some((percent, message.to_owned()));
        self.context.progress(done, Some(total), message);
    }

    fn check(&self) -> KnowledgeResult<()> {
        if self.context.remaining().is_zero() {
            Err(KnowledgeError::DeadlineExceeded { executed: Executed::No })
        } else if self.context.cancelled.is_cancelled() {
            Err(KnowledgeError::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// Refuses every user but the daemon's own, and root, whom no file is closed to anyway: the daemon's rights are
/// not for lending.
fn check_owner(context: &CallContext) -> Result<(), Failure> {
    let uid = context.peer.uid;
    if uid == nix::unistd::geteuid().as_raw() || uid == 0 {
        return Ok(());
    }
    Err(WireError::new(
        ErrorKind::Forbidden,
        "only the user that the daemon runs as may have it read and write files",
    )
    .into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> KnowledgeResult<T> + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work)
        .await
        .map_err(KnowledgeError::internal)?;
    Ok(done?)
}

/// The places of long work with files.
#[derive(Debug)]
pub(crate) struct Turns {
    imports: Admission,
    copies: Admission,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            imports: Admission::new("the queue of imports", IMPORTS, 1_000),
            copies: Admission::new("the queue of backups and restores", COPIES, 1_000),
        }
    }
}

/// Waits for a place, as long as the caller does.
async fn turn(places: &Admission, context: &CallContext, others: &str) -> Result<Permit, Failure> {
    if let Ok(turn) = places.try_acquire(1) {
        return Ok(turn);
    }
    context.progress(0, None, &format!("waiting for other {others}"));
    tokio::select! {
        biased;
        () = context.cancelled.cancelled() => Err(WireError::cancelled(Executed::No).into()),
        turn = places.acquire(1, Deadline::at(context.deadline)) => Ok(turn?),
    }
}

fn bad_path(message: impl std::fmt::Display) -> KnowledgeError {
    KnowledgeError::of_path(message)
}

/// Copies projects as they are at one moment.
pub(crate) async fn backup(app: Arc<App>, call: Call<api::Backup>) -> Result<api::BackupResult, Failure> {
    check_owner(&call.context)?;
    let _turn = turn(&app.turns.copies, &call.context, "backups and restores").await?;
    let (path, knowledge_dir) = (
        PathBuf::from(&call.params.path),
        app.store.config().knowledge_dir.clone(),
    );
    blocking(move || {
        let place = new_place(&path, &knowledge_dir, NewPlace::Directory)?;
        check_outside_own(&place, &knowledge_dir)
    })
    .await?;
    let request = BackupRequest {
        path: PathBuf::from(&call.params.path),
        project: call.project.clone(),
    };
    let report = app.store.back_up(request, CallWatcher::new(&call.context)).await?;
    tracing::info!(path = %report.path.display(), bytes = report.bytes, "backed up");
    Ok(api::BackupResult {
        path: report.path.display().to_string(),
        items: report.backup.projects.iter().map(|project| project.items).sum(),
        projects: report
            .backup
            .projects
            .into_iter()
            .map(|project| project.project_id)
            .collect(),
        bytes: report.bytes,
        warnings: report.warnings,
        lost: report.lost,
    })
}

/// Replaces projects by those of a backup.
pub(crate) async fn restore(app: Arc<App>, call: Call<api::Restore>) -> Result<api::RestoreResult, Failure> {
    check_owner(&call.context)?;
    // Known before the copying, which takes long.
    app.routes().writer()?;
    let _turn = turn(&app.turns.copies, &call.context, "backups and restores").await?;
    let watcher = CallWatcher::new(&call.context);
    let path = PathBuf::from(&call.params.path);
    let staged = app
        .store
        .stage(path.clone(), call.project.clone(), watcher.clone())
        .await?;
    let alone = app.store.alone().await;
    // The last moment to turn back.
    watcher.check()?;
    let report = app
        .routes()
        .writer()?
        .with_access(move |access| async move {
            let report = access.put_in_place(staged).await;
            drop(alone);
            report
        })
        .await
        .map_err(|error| match error {
            KnowledgeError::ShuttingDown | KnowledgeError::Unavailable { .. } => wire_error(error),
            // It may have been halfway: the next start finishes what was begun.
            error => wire_error(error).with_executed(Executed::Unknown),
        })?;
    tracing::info!(path = %path.display(), kept_aside = ?report.kept_aside, "restored");
    Ok(api::RestoreResult {
        items: report.projects.iter().map(|project| project.items).sum(),
        projects: report.projects.into_iter().map(|project| project.project_id).collect(),
        kept_aside: report
            .kept_aside
            .iter()
            .map(|place| place.display().to_string())
            .collect(),
        warnings: report.warnings,
    })
}

/// A file that is being written, beside the place that it will have. Removed in any case: what is published has
/// another name by then.
struct PartialFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl PartialFile {
    fn beside(place: &Path) -> KnowledgeResult<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = partial_beside(place);
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| unwritable(&path, &error))?;
        Ok(Self { path, file, bytes: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> KnowledgeResult<()> {
        self.bytes += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|error| unwritable(&self.path, &error))
    }

    /// Gives it its name, unless something has come to have that meanwhile. It is on disk then.
    fn publish(self, place: &Path) -> KnowledgeResult<u64> {
        let publish = || {
            self.file.sync_all()?;
            match std::fs::hard_link(&self.path, place) {
                Ok(()) => {}
                // A file system without hard links.
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    if std::fs::symlink_metadata(place).is_ok() {
                        return Err(error);
                    }
                    std::fs::rename(&self.path, place)?;
                }
                Err(error) => return Err(error),
            }
            match place.parent() {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        publish().map_err(|error| unwritable(place, &error))?;
        Ok(self.bytes)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "an unfinished export could not be removed");
            }
            _ => {}
        }
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> KnowledgeError {
    bad_path(format!("{} cannot be written: {error}", path.display()))
}

/// Directories of the home in which the daemon and the command line keep files, besides that of the projects.
const OWN_DIRECTORIES: [&str; 3] = ["run", crate::program::ENGINE_DIRECTORY, ASIDE];

fn home_of(knowledge_dir: &Path) -> Option<PathBuf> {
    knowledge_dir.parent().and_then(|home| home.canonicalize().ok())
}

/// Refuses a place among the files that are the daemon's or the command line's own. Other directories of the home
/// belong to whoever has made them.
fn check_outside_own(place: &Path, knowledge_dir: &Path) -> KnowledgeResult<()> {
    let Some(home) = home_of(knowledge_dir) else {
        return Ok(());
    };
    let own = OWN_DIRECTORIES.map(|directory| home.join(directory));
    let is_in = |directory: &Path| {
        place.starts_with(directory)
            || directory
                .canonicalize()
                .is_ok_and(|directory| place.starts_with(directory))
    };
    if place == home.join(KNOWLEDGE) || own.iter().any(|directory| is_in(directory)) {
        return Err(among_own(place));
    }
    Ok(())
}

/// As [`check_outside_own`] for a single file: directly in the home it would be taken for one of the daemon's own, now
/// or later.
fn check_outside_home(place: &Path, knowledge_dir: &Path) -> KnowledgeResult<()> {
    check_outside_own(place, knowledge_dir)?;
    match home_of(knowledge_dir) {
        Some(home) if place.parent() == Some(home.as_path()) => Err(among_own(place)),
        _ => Ok(()),
    }
}

fn among_own(place: &Path) -> KnowledgeError {
    bad_path(format!(
        "{} lies among the files of the daemon's home; choose a place outside",
        place.display()
    ))
}

/// Writes the live items of a project to a file.
pub(crate) async fn export(app: Arc<App>, call: Call<api::Export>) -> Result<api::ExportResult, Failure> {
    check_owner(&call.context)?;
    let watcher = CallWatcher::new(&call.context);
    if call.params.path.ends_with('/') {
        return Err(WireError::invalid_params("path", "`path` must name a file, not a directory").into());
    }
    let path = PathBuf::from(&call.params.path);
    let format = match &call.params.format {
        Some(name) => Format::named(name)
            .ok_or_else(|| WireError::invalid_params("format", "`format` must be `jsonl` or `markdown`"))?,
        None => Format::of_path(&path).unwrap_or(Format::Jsonl),
    };
    let knowledge_dir = app.store.config().knowledge_dir.clone();
    let (place, mut file) = blocking(move || {
        let place = new_place(&path, &knowledge_dir, NewPlace::File)?;
        check_outside_home(&place, &knowledge_dir)?;
        let file = PartialFile::beside(&place)?;
        Ok((place, file))
    })
    .await?;

    if let Some(project) = &call.project {
        must_exist(&app, project).await?;
    }
    // One version from the first item to the last, whatever is stored meanwhile.
    let _turn = app.store.reading_for_long().await;
    let view = app.store.view(&call.project()).await?;
    let degraded = view.as_ref().and_then(|view| view.degraded());
    let mut written = 0;
    if let Some(view) = view {
        let rows = view.item_rows().await?;
        let total = rows.len() as u64;
        for rows in rows.chunks(EXPORT_ITEMS) {
            watcher.check()?;
            let mut bytes = Vec::new();
            for stored in view.items_at(rows).await? {
                format
                    .write(&stored.item, written == 0, &mut bytes)
                    .map_err(KnowledgeError::internal)?;
                written += 1;
            }
            file = blocking(move || {
                file.append(&bytes)?;
                Ok(file)
            })
            .await?;
            watcher.progress(written, total, "exporting");
        }
    }
    watcher.check()?;
    let target = place.clone();
    let bytes = blocking(move || file.publish(&target)).await?;
    Ok(api::ExportResult {
        path: place.display().to_string(),
        format: format.as_str().to_owned(),
        items: written,
        bytes,
        degraded,
    })
}

/// Stores the items of a file.
pub(crate) async fn import(app: Arc<App>, call: Call<api::Import>) -> Result<api::ImportResult, Failure> {
    check_owner(&call.context)?;
    let watcher = CallWatcher::new(&call.context);
    let limits = &app.config.items;
    let most_bytes = ESCAPED_BYTES * (limits.max_text_bytes + limits.max_metadata_bytes) + ITEM_OVERHEAD_BYTES;
    let most_bytes = usize::try_from(most_bytes).unwrap_or(usize::MAX);
    let path = PathBuf::from(&call.params.path);
    let _turn = turn(&app.turns.imports, &call.context, "imports").await?;
    let counter: Arc<dyn Watcher> = watcher.clone();
    let mut source = blocking(move || ImportSource::open(&path, most_bytes, counter)).await?;
    let mut total = 0;
    let mut groups = source.groups()?;
    loop {
        let (left, group) = groups.next().await?;
        if group.is_empty() {
            source.converted = left.entries.converted();
            break;
        }
        total += group.len() as u64;
        groups = left;
    }

    let mut import = Import::begin(&app, &call).await?;
    let mut reading = tokio::spawn(source.groups()?.next());
    let mut done = 0;
    loop {
        let read = (&mut reading)
            .await
            .map_err(|error| KnowledgeError::internal(error).into())
            .flatten();
        let (left, group) = read.map_err(|error| import.interrupted(error))?;
        if group.is_empty() {
            return Ok(import.result);
        }
        // Read one group ahead of the one that is stored.
        reading = tokio::spawn(left.next());
        let entries = group.len() as u64;
        let stored = tokio::select! {
            biased;
            () = call.context.cancelled.cancelled() => Err(watcher.check().err().unwrap_or(KnowledgeError::Cancelled)),
            stored = import.batch(group) => stored,
        };
        if let Err(error) = stored {
            return Err(import.interrupted(error.into()).into());
        }
        done += entries;
        watcher.progress(done, total, "importing");
    }
}

/// A file that is read for as long as somebody waits for what is in it.
struct WatchedFile {
    file: File,
    watcher: Arc<dyn Watcher>,
}

impl WatchedFile {
    /// Why it could not be read on.
    fn error(watcher: &dyn Watcher, error: &std::io::Error) -> KnowledgeError {
        let unreadable = || bad_path(format!("the file cannot be read: {error}"));
        watcher.check().err().unwrap_or_else(unreadable)
    }
}

impl Read for WatchedFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.watcher.check().map_err(std::io::Error::other)?;
        self.file.read(buffer)
    }
}

/// A file of items that was opened for an import.
struct ImportSource {
    file: File,
    format: Format,
    most_bytes: usize,
    watcher: Arc<dyn Watcher>,
    /// Whether the line endings of the file were found to be converted to CRLF.
    converted: bool,
}

impl ImportSource {
    /// Opens a file and tells its format.
    fn open(path: &Path, most_bytes: usize, watcher: Arc<dyn Watcher>) -> KnowledgeResult<Self> {
        let unreadable = |error: std::io::Error| bad_path(format!("{} cannot be read: {error}", path.display()));
        let file = open_regular(path).map_err(unreadable)?;
        let mut reader = BufReader::with_capacity(
            READ_BYTES,
            WatchedFile {
                file: file.try_clone().map_err(unreadable)?,
                watcher: Arc::clone(&watcher),
            },
        );
        let beginning = reader
            .fill_buf()
            .map_err(|error| WatchedFile::error(watcher.as_ref(), &error))?;
        let format = match Format::of_content(beginning) {
            Some(format) => format,
            None if beginning.trim_ascii().is_empty() => Format::of_path(path).unwrap_or(Format::Jsonl),
            None => Format::of_path(path).ok_or_else(|| {
                bad_path(format!(
                    "{} must be JSON Lines, each line beginning with `{{`, or Markdown, each item beginning with a \
                     line of `---`",
                    path.display()
                ))
            })?,
        };
        Ok(Self {
            file,
            format,
            most_bytes,
            watcher,
            converted: false,
        })
    }

    /// The items from the first one on. One reader at a time: they share their place in the file.
    fn groups(&self) -> KnowledgeResult<EntryGroups> {
        let failed = |error: std::io::Error| WatchedFile::error(self.watcher.as_ref(), &error);
        let mut file = self.file.try_clone().map_err(failed)?;
        file.rewind().map_err(failed)?;
        let file = WatchedFile {
            file,
            watcher: Arc::clone(&self.watcher),
        };
        let reader = BufReader::with_capacity(READ_BYTES, file);
        Ok(EntryGroups {
            entries: self
                .format
                .read(reader, self.most_bytes)
                .assume_converted(self.converted),
            watcher: Arc::clone(&self.watcher),
        })
    }
}

/// Reads a file in groups of items, each in a blocking job of its own: between two groups no thread is held, however
/// long the storing takes. All file work of the daemon shares a few threads.
struct EntryGroups {
    entries: Entries<BufReader<WatchedFile>>,
    watcher: Arc<dyn Watcher>,
}

impl EntryGroups {
    /// The next group, and the reader for what follows it. An empty group is the end.
    async fn next(self) -> Result<(Self, Vec<Entry>), Failure> {
        blocking(move || self.read()).await
    }

    fn read(mut self) -> KnowledgeResult<(Self, Vec<Entry>)> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while group.len() < IMPORT_ITEMS && bytes < IMPORT_BYTES {
            let Some(entry) = self.entries.next() else { break };
            let entry = entry.map_err(|error| WatchedFile::error(self.watcher.as_ref(), &error))?;
            bytes += entry.record.as_ref().map_or(0, |record| record.text.len());
            group.push(entry);
        }
        Ok((self, group))
    }
}

/// What identities stand for, in 128 bits each: at 10^9 items, one in 10^20 chances that two are alike.
#[derive(Default)]
struct Known {
    /// Content by id.
    by_id: HashMap<u128, u128>,
    contents: HashSet<u128>,
}

/// What is known of an item before it is embedded.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    New,
    Duplicate,
    /// Its id holds other content.
    Conflict,
}

impl Known {
    fn fingerprint(text: &str) -> u128 {
        let digest = Sha256::digest(text.as_bytes());
        digest
            .iter()
            .take(16)
            .fold(0, |bits, byte| bits << 8 | u128::from(*byte))
    }

    fn insert(&mut self, id: Option<&str>, content_hash: &str) {
        let content = Self::fingerprint(content_hash);
        self.contents.insert(content);
        if let Some(id) = id {
            self.by_id.insert(Self::fingerprint(id), content);
        }
    }

    /// As the writer decides: an item is its id, or where it has none its content.
    fn standing(&self, id: Option<&str>, content_hash: &str) -> Standing {
        let content = Self::fingerprint(content_hash);
        match id {
            None if self.contents.contains(&content) => Standing::Duplicate,
            None => Standing::New,
            Some(id) => match self.by_id.get(&Self::fingerprint(id)) {
                None => Standing::New,
                Some(held) if *held == content => Standing::Duplicate,
                Some(_) => Standing::Conflict,
            },
        }
    }
}

/// An import under way.
struct Import<'a> {
    app: &'a App,
    project: ProjectName,
    deadline: Deadline,
    origin: u64,
    known: Known,
    /// Whether a group is with the writer: what becomes of it is not known if nobody waits for it.
    handed_over: bool,
    result: api::ImportResult,
}

/// An item of the file that may be stored.
struct Candidate {
    line: u64,
    item: NewItem,
}

impl<'a> Import<'a> {
    async fn begin(app: &'a App, call: &Call<api::Import>) -> KnowledgeResult<Self> {
        let project = call.project();
        let mut known = Known::default();
        if let Some(view) = app.store.view_or_empty(&project).await? {
            view.check_model(&app.store.config().model.name)?;
            view.for_each_live(|row| known.insert(Some(&row.id), &row.content_hash))
                .await?;
        }
        Ok(Self {
            app,
            project,
            deadline: call.deadline(),
            origin: call.origin(),
            known,
            handed_over: false,
            result: api::ImportResult {
                dry_run: call.params.dry_run,
                ..api::ImportResult::default()
            },
        })
    }

    /// Stores what is new among these. An error is one of the daemon or the call: it ends the import.
    async fn batch(&mut self, entries: Vec<Entry>) -> KnowledgeResult<()> {
        let mut candidates = Vec::new();
        for Entry { line, record } in entries {
            let record = match record {
                Ok(record) => record,
                Err(reason) => {
                    self.skip("unreadable", line, None, reason);
                    continue;
                }
            };
            let id = record.id.clone();
            let item = match self.item(record) {
                Ok(item) => item,
                Err(error) => {
                    self.refuse(line, id, error);
                    continue;
                }
            };
            let content_hash = item.content_hash();
            match self.known.standing(item.id.as_deref(), &content_hash) {
                Standing::Duplicate => self.result.duplicates += 1,
                Standing::Conflict => {
                    let id = id.unwrap_or_default();
                    self.refuse(line, Some(id.clone()), KnowledgeError::AlreadyExists { id });
                }
                Standing::New => {
                    // Also for what follows in this file.
                    self.known.insert(item.id.as_deref(), &content_hash);
                    candidates.push(Candidate { line, item });
                }
            }
        }
        if self.result.dry_run {
            self.result.imported += candidates.len() as u64;
            return Ok(());
        }
        self.store(candidates).await
    }

    /// Checks an item as `knowledge.store` would, and keeps its times.
    fn item(&self, record: api::Record) -> Result<NewItem, Failure> {
        let times = [("timestamp", &record.timestamp), ("updated_at", &record.updated_at)];
        let [timestamp, updated_at] =
            times.map(|(name, time)| time.as_deref().map(|text| parse_time(text, name)).transpose());
        let params = record.into_params();
        params.check()?;
        let mut item = store::new_item(params, &self.app.config.items)?;
        item.timestamp = timestamp?.unwrap_or(item.timestamp);
        // Always set: what comes from elsewhere was not here at its times.
        item.updated_at = updated_at?.or_else(|| Some(now_ms()));
        Ok(item)
    }

    async fn store(&mut self, candidates: Vec<Candidate>) -> KnowledgeResult<()> {
        let routes = self.app.routes();
        let (writer, embedder) = (routes.writer()?, routes.embedder()?);
        let (deadline, origin) = (self.deadline, self.origin);
        let prepared = join_all(candidates.into_iter().map(|candidate| async move {
            let Candidate { line, item } = candidate;
            let id = item.id.clone();
            let prepared = store::prepare(embedder, item, Lane::Bulk, deadline, origin).await;
            (line, id, prepared)
        }))
        .await;
        let (mut places, mut items) = (Vec::new(), Vec::new());
        for (line, id, prepared) in prepared {
            match prepared {
                Ok(item) => {
                    places.push((line, id));
                    items.push(item);
                }
                // One text that the model cannot take is no reason to stop.
                Err(error @ (KnowledgeError::InvalidParameter { .. } | KnowledgeError::Internal { .. })) => {
                    self.refuse(line, id, error);
                }
                Err(error) => return Err(error),
            }
        }
        if items.is_empty() {
            return Ok(());
        }
        self.handed_over = true;
        let outcomes = write(writer, &self.project, items, deadline).await;
        self.handed_over = matches!(
            &outcomes,
            Err(KnowledgeError::OutcomeUnknown
                | KnowledgeError::DeadlineExceeded {
                    executed: Executed::Unknown
                })
        );
        let outcomes = outcomes?;
        // All of them are counted, also those after the one that ends the import.
        let mut fatal = None;
        for ((line, id), outcome) in places.into_iter().zip(outcomes) {
            match outcome {
                Ok(outcome) if outcome.duplicate => self.result.duplicates += 1,
                Ok(_) => self.result.imported += 1,
                Err(
                    error @ (KnowledgeError::InvalidParameter { .. }
                    | KnowledgeError::AlreadyExists { .. }
                    | KnowledgeError::SecretRejected { .. }),
                ) => self.refuse(line, id, error),
                Err(error) => {
                    self.handed_over |= matches!(error.effect(), Some(Executed::Yes | Executed::Unknown));
                    fatal.get_or_insert(error);
                }
            }
        }
        fatal.map_or(Ok(()), Err)
    }

    fn refuse(&mut self, line: u64, id: Option<String>, error: impl Into<Failure>) {
        let error = WireError::from(error.into());
        self.skip(error.kind().as_str(), line, id, error.message);
    }

    fn skip(&mut self, reason: &str, line: u64, id: Option<String>, message: String) {
        *self.result.skipped.entry(reason.to_owned()).or_default() += 1;
        if self.result.problems.len() < IMPORT_PROBLEMS {
            self.result.problems.push(api::ImportProblem { line, id, message });
        }
    }

    /// The error of an import that did not come to its end.
    fn interrupted(&self, failure: Failure) -> WireError {
        let mut error = WireError::from(failure);
        let imported = self.result.imported;
        if imported > 0 || self.handed_over {
            if error.kind() == ErrorKind::DeadlineExceeded {
                error = WireError::deadline_exceeded(Executed::Unknown);
            }
            let more = if self.handed_over { ", and maybe some more" } else { "" };
            error.message = format!(
                "{} ({imported} items were imported before{more}; import the file again to go on, what is there \
                 already is passed over)",
                error.message
            );
            error = error.with_executed(Executed::Unknown);
        }
        error.with_extra("imported", imported)
    }
}

/// Writes one group of items. The writer refuses a group of one where it has no room, and lets others wait.
async fn write(
    writer: &WriterHandle,
    project: &ProjectName,
    items: Vec<PreparedItem>,
    deadline: Deadline,
) -> KnowledgeResult<Vec<KnowledgeResult<ItemOutcome>>> {
    while let [only] = items.as_slice() {
        match writer.store(project.clone(), vec![only.clone()], None, deadline).await {
            Ok(reply) => return Ok(reply.items),
            Err(KnowledgeError::Busy { .. }) if !deadline.expired() => tokio::time::sleep(BUSY_PAUSE).await,
            Err(error) => return Err(error),
        }
    }
    Ok(writer.store(project.clone(), items, None, deadline).await?.items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_its_id_or_its_content() {
        let mut known = Known::default();
        assert_eq!(known.standing(Some("a"), "h1"), Standing::New);
        known.insert(Some("a"), "h1");
        assert_eq!(known.standing(Some("a"), "h1"), Standing::Duplicate);
        assert_eq!(known.standing(Some("a"), "h2"), Standing::Conflict);
        assert_eq!(known.standing(Some("b"), "h1"), Standing::New);
        assert_eq!(known.standing(None, "h1"), Standing::Duplicate);
        assert_eq!(known.standing(None, "h2"), Standing::New);
        known.insert(None, "h2");
        assert_eq!(known.standing(None, "h2"), Standing::Duplicate);
    }

    #[test]
    fn an_export_replaces_nothing_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out.jsonl");
        let entries = || std::fs::read_dir(directory.path()).unwrap().count();

        let mut file = PartialFile::beside(&place).unwrap();
        file.append(b"first").unwrap();
        assert_eq!((file.publish(&place).unwrap(), entries()), (5, 1));

        let mut file = PartialFile::beside(&place).unwrap();
        file.append(b"second").unwrap();
        assert!(file.publish(&place).is_err());
        assert_eq!(
            (std::fs::read(&place).unwrap().as_slice(), entries()),
            (b"first".as_slice(), 1)
        );

        drop(PartialFile::beside(&place).unwrap());
        assert_eq!(entries(), 1);
    }
}
