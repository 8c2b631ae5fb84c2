//! `admin.import`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ccod_actors::domain::{NewItem, now_ms, parse_time};
use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::knowledge::Asked;
use ccod_actors::knowledge::import::{Import, Imported};
use ccod_actors::store::transfer::{Watcher, open_regular};
use ccod_protocol::api::{self, Params as _};
use ccod_protocol::error::{ErrorKind, Executed, WireError};

use super::long::{CallWatcher, bad_path, blocking, check_owner, turn};
use crate::rpc::{App, Call, Failure};
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

    let mut report = Report::begin(&app, &call).await?;
    let mut reading = tokio::spawn(source.groups()?.next());
    let mut done = 0;
    loop {
        let read = (&mut reading)
            .await
            .map_err(|error| KnowledgeError::internal(error).into())
            .flatten();
        let (left, group) = read.map_err(|error| report.interrupted(error))?;
        if group.is_empty() {
            return Ok(report.result);
        }
        // Read one group ahead of the one that is stored.
        reading = tokio::spawn(left.next());
        let entries = group.len() as u64;
        let stored = tokio::select! {
            biased;
            () = call.context.cancelled.cancelled() => Err(watcher.check().err().unwrap_or(KnowledgeError::Cancelled)),
            stored = report.group(group) => stored,
        };
        if let Err(error) = stored {
            return Err(report.interrupted(error.into()).into());
        }
        done += entries;
        watcher.progress(done, total, "importing");
    }
}

/// A file that is read for as long as its caller waits.
struct WatchedFile {
    file: File,
    watcher: Arc<dyn Watcher>,
}

impl WatchedFile {
    /// Why reading stopped before the end.
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
    /// Opens a file and recognises its format.
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

/// An import under way, and its report.
struct Report<'a> {
    app: &'a App,
    import: Import<'a>,
    asked: Asked,
    result: api::ImportResult,
}

/// An item of the file that was not imported.
struct LeftOut {
    /// The kind of the error, or `unreadable`.
    reason: &'static str,
    problem: api::ImportProblem,
}

impl LeftOut {
    fn refused(line: u64, id: Option<String>, error: impl Into<Failure>) -> Self {
        let error = WireError::from(error.into());
        Self {
            reason: error.kind().as_str(),
            problem: api::ImportProblem {
                line,
                id,
                message: error.message,
            },
        }
    }
}

impl<'a> Report<'a> {
    async fn begin(app: &'a App, call: &Call<api::Import>) -> KnowledgeResult<Self> {
        let dry_run = call.params.dry_run;
        Ok(Self {
            app,
            import: app.knowledge.import(&call.project(), dry_run).await?,
            asked: call.asked(),
            result: api::ImportResult {
                dry_run,
                ..api::ImportResult::default()
            },
        })
    }

    /// Stores the new items among these. An error is an error of the daemon or of the call, and ends the import.
    async fn group(&mut self, entries: Vec<Entry>) -> KnowledgeResult<()> {
        let (mut places, mut items) = (Vec::new(), Vec::new());
        let mut left_out = Vec::new();
        for Entry { line, record } in entries {
            let record = match record {
                Ok(record) => record,
                Err(message) => {
                    left_out.push(LeftOut {
                        reason: "unreadable",
                        problem: api::ImportProblem {
                            line,
                            id: None,
                            message,
                        },
                    });
                    continue;
                }
            };
            let id = record.id.clone();
            match self.item(record) {
                Ok(item) => {
                    places.push((line, id));
                    items.push(item);
                }
                Err(error) => left_out.push(LeftOut::refused(line, id, error)),
            }
        }
        let done = self.import.group(items, &self.asked).await;
        for ((line, id), outcome) in places.into_iter().zip(done.items) {
            match outcome {
                Some(Imported::New) => self.result.imported += 1,
                Some(Imported::Duplicate) => self.result.duplicates += 1,
                Some(Imported::Refused(error)) => left_out.push(LeftOut::refused(line, id, error)),
                None => {}
            }
        }
        left_out.sort_by_key(|left| left.problem.line);
        for LeftOut { reason, problem } in left_out {
            *self.result.skipped.entry(reason.to_owned()).or_default() += 1;
            if self.result.problems.len() < IMPORT_PROBLEMS {
                self.result.problems.push(problem);
            }
        }
        done.ended.map_or(Ok(()), Err)
    }

    /// Checks an item as `knowledge.store` would, and keeps its times.
    fn item(&self, record: api::Record) -> Result<NewItem, Failure> {
        let times = [("timestamp", &record.timestamp), ("updated_at", &record.updated_at)];
        let [timestamp, updated_at] =
            times.map(|(name, time)| time.as_deref().map(|text| parse_time(text, name)).transpose());
        let params = record.into_params();
        params.check()?;
        let mut item = self.app.knowledge.new_item(params)?;
        item.timestamp = timestamp?.unwrap_or(item.timestamp);
        // Always set: an item from elsewhere was not in this store at the times that it has.
        item.updated_at = updated_at?.or_else(|| Some(now_ms()));
        Ok(item)
    }

    /// The error of an import that did not come to its end.
    fn interrupted(&self, failure: Failure) -> WireError {
        let mut error = WireError::from(failure);
        let imported = self.result.imported;
        if imported > 0 || self.import.is_handed_over() {
            if error.kind() == ErrorKind::DeadlineExceeded {
                error = WireError::deadline_exceeded(Executed::Unknown);
            }
            let more = if self.import.is_handed_over() {
                ", and maybe some more"
            } else {
                ""
            };
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
