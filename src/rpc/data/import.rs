//! `admin.import`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::{NewItem, ProjectName, now_ms, parse_time};
use ccod_actors::embedder::Lane;
use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::store::transfer::{Watcher, open_regular};
use ccod_actors::writer::{ItemOutcome, PreparedItem, WriterHandle};
use ccod_protocol::api::{self, Params as _};
use ccod_protocol::error::{ErrorKind, Executed, WireError};
use futures::future::join_all;
use sha2::{Digest, Sha256};

use super::long::{CallWatcher, bad_path, blocking, check_owner, turn};
use crate::rpc::{App, Call, Failure, ingest};
use crate::transfer::{Entries, Entry, Format};

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
/// Pause where the writer has no room for a single item.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

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
        let mut item = ingest::new_item(params, &self.app.config.items)?;
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
            let prepared = ingest::prepare(embedder, item, Lane::Bulk, deadline, origin).await;
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
}
