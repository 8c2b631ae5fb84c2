//! What a crash, a power cut or a failing disk leaves behind, and how a project is opened all the same.
//!
//! [`recover`] runs once for each project in a process, before its table is opened and with the project's lock
//! held, so nothing of it is in flight:
//!
//! - staging files of interrupted writes are removed;
//! - a newest version whose manifest cannot be read is set aside and the one before it is opened;
//! - so is one that names a data file which is missing or cut off, if the version before it is whole there and it
//!   was not made with `durability = "full"`, which its manifest tells: that is a commit that a power cut tore;
//! - any other damaged file is of no torn commit. The table is opened as it is, and reads leave
//!   out the fragments that cannot be read ([`Condition`]); the writer takes them out of the table before its next
//!   commit (see [`super::repair`]), at once where a part of their rows can still be read.
//!
//! Whatever is taken out of a table goes to `<project>/set-aside/<time>/` with a report, and is never deleted here.
//!
//! Commit numbers are never used twice. What was lost may have had numbers that clients have seen, so the numbers
//! that may be gone are kept as a [`Gap`] in `<project>/lost-commits.json`: the next commit is numbered after it,
//! and a cursor of the change feed that stands in it is told to begin anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_io::object_store::ObjectStore;
use lance_table::format::{Fragment, IndexMetadata, Manifest};
use lance_table::io::commit::{ManifestLocation, ManifestNamingScheme};
use lance_table::io::deletion::relative_deletion_file_path;
use lance_table::io::manifest::{read_manifest, read_manifest_indexes};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::domain::{ProjectName, format_time, now_ms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::panics;
use crate::store::discover::holds_table;
use crate::store::durable::made_durably;
use crate::store::error::{damage, file_error, file_read_error, is_passing, read_error};
use crate::store::restore::{LINEAGE_FILE, Lineage};
use crate::store::state::{self, sync_directory, write_durably};
use crate::store::table_directory;
use crate::store::write::configuration_damage;

/// Directory inside a project's directory for what was taken out of its table.
pub(crate) const SET_ASIDE: &str = "set-aside";
/// File inside a project's directory that keeps its [`Gap`]s.
const GAPS_FILE: &str = "lost-commits.json";
/// File inside each directory of [`SET_ASIDE`] that says what is there and why.
const REPORT_FILE: &str = "report.json";
/// Directory of the manifests inside a table.
const VERSIONS: &str = "_versions";
/// Directory of the data files inside a table.
const DATA: &str = "data";
/// Directory of the indices inside a table.
const INDICES: &str = "_indices";
/// File in [`VERSIONS`] that names the newest version; only a hint, which a missing file does not hurt.
const VERSION_HINT: &str = "latest_version_hint.json";
/// Directories of a table that files are written into.
const WRITTEN_DIRECTORIES: [&str; 4] = [DATA, VERSIONS, "_transactions", "_deletions"];
/// How every Lance file ends, manifests and data files alike.
const MAGIC: &[u8] = b"LANC";
/// Bytes of a manifest's end: where the manifest begins (8), the format's version (4), [`MAGIC`] (4).
const FOOTER_BYTES: usize = 16;
/// Damaged files that a message names; the rest is counted.
const NAMED_FILES: usize = 3;

/// What to do about a file that is missing or damaged: it does not come back, so nothing is taken out of a table
/// before somebody has decided.
pub(crate) const PUT_BACK: &str = "To save them, stop the daemon, put the file back from a backup and start it; to \
                                   give them up, write to the project (any store, update or delete), which takes them \
                                   out of the table for good";

/// What is wrong with a table that is open, and what of its history is lost. Empty in the ordinary case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Condition {
    /// Fragments that cannot be read, by id. Reads leave them out.
    pub fragments: BTreeMap<u64, DamagedFragment>,
    /// Why the keyword index cannot be used, if it cannot.
    pub keyword_index: Option<String>,
    /// What is wrong with the table's configuration, if something is: then nothing may be written, since numbers of
    /// commits would be given twice.
    pub configuration: Option<String>,
    /// Commit numbers that were lost.
    pub gaps: Vec<Gap>,
}

/// A fragment that cannot be read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DamagedFragment {
    /// Its files, relative to the table.
    pub files: Vec<String>,
    /// Rows in it, as the manifest counts them.
    pub rows: usize,
    /// Whether its files are all there, so that a part of its rows may be read all the same.
    pub salvageable: bool,
    /// What is wrong; names the file.
    pub reason: String,
}

/// Commit numbers that may have been given to what is lost: `after` is the last one that is certainly not, `until`
/// the last one that may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// The last commit before it.
    pub after: i64,
    /// The last number in it.
    pub until: i64,
    /// The damaged files that it stands for; empty for versions that were set aside.
    #[serde(default)]
    pub files: Vec<String>,
}

impl Condition {
    /// Whether everything can be read.
    pub fn is_sound(&self) -> bool {
        self.fragments.is_empty() && self.keyword_index.is_none()
    }

    /// What cannot be read now, a sentence each.
    pub fn describe(&self) -> Vec<String> {
        let mut found: Vec<String> = self
            .fragments
            .values()
            .map(|fragment| format!("{} rows cannot be read: {}", fragment.rows, fragment.reason))
            .collect();
        found.extend(
            self.keyword_index
                .iter()
                .map(|reason| format!("the keyword index cannot be used: {reason}")),
        );
        found.extend(self.configuration.clone());
        found
    }

    /// Whether somebody who has seen everything up to commit `number` may have seen what is lost.
    pub fn lost(&self, number: i64) -> bool {
        self.gaps.iter().any(|gap| number > gap.after && number <= gap.until)
    }

    /// The least number that the newest commit may be given: one after all that were lost.
    pub fn floor(&self) -> i64 {
        self.gaps.iter().map(|gap| gap.until + 1).max().unwrap_or(0)
    }
}

/// What [`recover`] did.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// For `admin.status`.
    pub(crate) notes: Vec<String>,
    /// Whether there is a table's directory without any version that can be read: the table is made anew with the
    /// next store, see [`clear_site`].
    pub(crate) vacant: bool,
    /// What that means, where there is more than an empty directory.
    pub(crate) lost: Option<String>,
}

/// One version on disk.
#[derive(Clone, Debug)]
struct Version {
    number: u64,
    path: PathBuf,
}

/// Cleans a project's directory after whatever happened to the last process, and steps back from versions that
/// cannot be used. Blocks; call it where that is allowed, inside a runtime. A table of the old tool is left alone.
pub(crate) fn recover(project: &ProjectName, directory: &Path, table: &Path) -> KnowledgeResult<Recovered> {
    let mut recovered = Recovered::default();
    let Some(versions) = list_versions(table)? else {
        return Ok(recovered);
    };
    let (files, bytes) = remove_staging_files(table);
    if files > 0 {
        let note = format!("{files} files ({bytes} bytes) of interrupted writes were removed");
        tracing::info!(%project, files, bytes, "files of interrupted writes were removed");
        recovered.notes.push(note);
    }

    let mut torn: Vec<(Version, String)> = Vec::new();
    let mut opened = None;
    for (place, version) in versions.iter().enumerate() {
        let manifest = match read_version(&version.path)? {
            Ok(manifest) => manifest,
            Err(reason) => {
                torn.push((version.clone(), reason));
                continue;
            }
        };
        let missing = missing_files(&manifest, table);
        // What was made durably was whole: its file was lost later, and to step back would undo what was answered.
        // The fragment is marked as damaged when the table is opened.
        let may_be_torn = !missing.is_empty() && !made_durably(&manifest);
        if may_be_torn && tears_only_itself(&missing, &versions[place + 1..])? {
            torn.push((version.clone(), name_some(&missing)));
            continue;
        }
        opened = Some(version.number);
        break;
    }
    let Some(opened) = opened else {
        recovered.vacant = true;
        if torn.is_empty() && !holds_files(table)? {
            return Ok(recovered); // A crash while the table was made: nothing was in it.
        }
        recovered.lost = Some(format!(
            "{} has no version that can be read; with the next store it is moved to {SET_ASIDE}/ and the project begins \
             anew: restore a backup before that if you have one",
            table.display()
        ));
        return Ok(recovered);
    };
    if !torn.is_empty() {
        set_versions_aside(project, directory, table, &torn, opened)?;
    }
    Ok(recovered)
}

/// What a project is at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    /// Nothing was stored in it yet.
    Nothing,
    /// Its newest version can be read and its files are there.
    Sound,
    /// Something is wrong: it has to be opened to know more.
    Unsound,
}

/// Looks at a project that is not open: reads its newest manifest and the lengths and ends of the files that it names,
/// changes nothing and keeps nothing. Blocks; call it where that is allowed, inside a runtime.
pub(crate) fn glance(directory: &Path, table: &Path) -> KnowledgeResult<Glance> {
    if !holds_table(directory)? {
        return Ok(Glance::Nothing);
    }
    GapsFile::read(directory)?;
    Lineage::read(directory)?;
    let Some(versions) = list_versions(table)? else {
        return Ok(Glance::Sound); // Of the old tool.
    };
    let Some(newest) = versions.first() else {
        return Ok(if holds_files(table)? {
            Glance::Unsound
        } else {
            Glance::Nothing
        });
    };
    let sound = match read_version(&newest.path)? {
        Ok(manifest) => {
            configuration_damage(&manifest.config).is_none() && damaged_fragments(&manifest.fragments, table).is_empty()
        }
        Err(_) => false,
    };
    Ok(if sound { Glance::Sound } else { Glance::Unsound })
}

/// Whether the version before, the first of `older` that reads well, names none of some of the `missing` files: then
/// they came with this version, and to step back from it loses nothing else.
fn tears_only_itself(missing: &BTreeMap<String, String>, older: &[Version]) -> KnowledgeResult<bool> {
    for version in older {
        if let Ok(before) = read_version(&version.path)? {
            let named: BTreeSet<String> = before
                .fragments
                .iter()
                .flat_map(|fragment| fragment_files(fragment).into_iter().map(|file| file.path))
                .collect();
            return Ok(missing.keys().any(|file| !named.contains(file)));
        }
    }
    Ok(false)
}

/// The versions of a table, newest first; none where they are named as the old tool names them.
fn list_versions(table: &Path) -> KnowledgeResult<Option<Vec<Version>>> {
    let directory = table.join(VERSIONS);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some(Vec::new())),
        Err(error) => return Err(file_read_error(&directory, error)),
    };
    let mut versions = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| file_read_error(&directory, error))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        match ManifestNamingScheme::detect_scheme(name) {
            None => {}
            Some(ManifestNamingScheme::V1) => return Ok(None),
            Some(scheme) => versions.extend(scheme.parse_version(name).map(|number| Version {
                number,
                path: entry.path(),
            })),
        }
    }
    versions.sort_by_key(|version| std::cmp::Reverse(version.number));
    Ok(Some(versions))
}

/// Reads a manifest; the inner error says why it is none. The outer one is of the file system, and says nothing
/// about the manifest.
fn read_version(path: &Path) -> KnowledgeResult<Result<Manifest, String>> {
    let bytes = fs::read(path).map_err(|error| file_read_error(path, error))?;
    if let Err(reason) = check_frame(&bytes) {
        return Ok(Err(reason.to_owned()));
    }
    // What passes for a manifest may still make Lance panic on its bytes.
    let parsed = panics::catch_in(|| Handle::current().block_on(parse(&bytes)));
    Ok(match parsed {
        Ok(Ok(manifest)) => Ok(manifest),
        Ok(Err(error)) => Err(format!("its manifest cannot be decoded: {error}")),
        Err(panic) => Err(format!("its manifest cannot be decoded: {panic}")),
    })
}

/// Whether `bytes` have the outer form of a manifest, so that decoding stays within them.
fn check_frame(bytes: &[u8]) -> Result<(), &'static str> {
    if bytes.is_empty() {
        return Err("its manifest is empty");
    }
    if !bytes.ends_with(MAGIC) {
        return Err("its manifest is cut off or overwritten");
    }
    let length = bytes.len();
    let begin = length
        .checked_sub(FOOTER_BYTES)
        .and_then(|at| bytes[at..].first_chunk::<8>())
        .map(|field| u64::from_le_bytes(*field))
        .and_then(|begin| usize::try_from(begin).ok());
    let framed = begin.and_then(|begin| {
        let prefix = bytes.get(begin..)?.first_chunk::<4>()?;
        let message = usize::try_from(u32::from_le_bytes(*prefix)).ok()?;
        Some(begin.checked_add(4)?.checked_add(message)?.checked_add(FOOTER_BYTES)? == length)
    });
    if framed == Some(true) {
        Ok(())
    } else {
        Err("its manifest is overwritten")
    }
}

/// Decodes a manifest and its list of indices from memory, so that no error of the file system can be taken for one
/// of the manifest.
async fn parse(bytes: &[u8]) -> lance::Result<Manifest> {
    let store = ObjectStore::memory();
    let path = object_store::path::Path::from("manifest");
    store.put(&path, bytes).await?;
    let size = Some(bytes.len() as u64);
    let manifest = read_manifest(&store, &path, size).await?;
    let location = ManifestLocation {
        version: manifest.version,
        path,
        size,
        naming_scheme: ManifestNamingScheme::V2,
        e_tag: None,
        identity: None,
    };
    read_manifest_indexes(&store, &location, &manifest).await?;
    Ok(manifest)
}

/// A file of a fragment.
struct FragmentFile {
    /// Relative to the table.
    path: String,
    /// Its length, where the manifest knows it.
    bytes: Option<u64>,
    /// Whether it is a data file, and so ends with [`MAGIC`].
    data: bool,
}

/// The files of a fragment that lie in its table.
fn fragment_files(fragment: &Fragment) -> Vec<FragmentFile> {
    let data = fragment.files.iter().filter(|file| file.base_id.is_none());
    let mut files: Vec<FragmentFile> = data
        .map(|file| FragmentFile {
            path: format!("{DATA}/{}", file.path),
            bytes: file.file_size_bytes.get().map(std::num::NonZero::get),
            data: true,
        })
        .collect();
    let deletions = fragment.deletion_file.iter().filter(|file| file.base_id.is_none());
    files.extend(deletions.map(|file| FragmentFile {
        path: relative_deletion_file_path(fragment.id, file),
        bytes: None,
        data: false,
    }));
    files
}

/// What is plainly wrong with a file, as far as its length and its end tell. An error of the file system other than
/// that the file is not there is left to whoever reads it.
fn file_damage(table: &Path, file: &FragmentFile) -> Option<String> {
    let path = table.join(&file.path);
    let missing = || Some(format!("{} is missing", path.display()));
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return missing(),
        Err(_) => return None,
    };
    match file.bytes {
        Some(expected) if length < expected => {
            return Some(format!("{} has {length} of {expected} bytes", path.display()));
        }
        _ if length == 0 => return Some(format!("{} is empty", path.display())),
        _ => {}
    }
    if !file.data {
        return None;
    }
    // After a power cut a file may have its length and hold zeros.
    let end = || -> io::Result<[u8; 4]> {
        let mut opened = File::open(&path)?;
        let end = file.bytes.unwrap_or(length);
        opened.seek(SeekFrom::Start(end.saturating_sub(MAGIC.len() as u64)))?;
        let mut found = [0; 4];
        opened.read_exact(&mut found)?;
        Ok(found)
    };
    match end() {
        Ok(found) if found != MAGIC => Some(format!("{} does not end as a data file does", path.display())),
        _ => None,
    }
}

/// The data and deletion files of a version that are missing or cut off, with what is wrong with each. Damaged
/// indices do not count: they can be made anew.
fn missing_files(manifest: &Manifest, table: &Path) -> BTreeMap<String, String> {
    manifest
        .fragments
        .iter()
        .flat_map(fragment_files)
        .filter_map(|file| {
            let damage = file_damage(table, &file)?;
            Some((file.path, damage))
        })
        .collect()
}

fn name_some(missing: &BTreeMap<String, String>) -> String {
    let named: Vec<&str> = missing.values().take(NAMED_FILES).map(String::as_str).collect();
    match missing.len().checked_sub(NAMED_FILES) {
        None | Some(0) => named.join(", "),
        Some(more) => format!("{}, and {more} more", named.join(", ")),
    }
}

/// The fragments of a table whose files are missing or cut off. Looks at lengths and ends, reads no data.
pub(crate) fn damaged_fragments(fragments: &[Fragment], table: &Path) -> BTreeMap<u64, DamagedFragment> {
    fragments
        .iter()
        .filter_map(|fragment| {
            let files = fragment_files(fragment);
            let reason = files.iter().find_map(|file| file_damage(table, file))?;
            Some((fragment.id, damaged(fragment, reason, false)))
        })
        .collect()
}

/// Describes a fragment as damaged.
fn damaged(fragment: &Fragment, reason: String, salvageable: bool) -> DamagedFragment {
    DamagedFragment {
        files: fragment_files(fragment).into_iter().map(|file| file.path).collect(),
        rows: fragment.num_rows().unwrap_or(0),
        salvageable,
        reason,
    }
}

/// What is plainly wrong with the files of an index, if something is.
pub(crate) fn index_damage(index: &IndexMetadata, table: &Path) -> Option<String> {
    if index.base_id.is_some() {
        return None;
    }
    let directory = table.join(INDICES).join(index.uuid.to_string());
    let Some(files) = &index.files else {
        // What cannot be looked at now is not missing.
        let missing = matches!(directory.try_exists(), Ok(false));
        return missing.then(|| format!("{} is missing", directory.display()));
    };
    files.iter().find_map(|file| {
        let path = directory.join(&file.path);
        match fs::metadata(&path) {
            Ok(found) if found.len() < file.size_bytes => Some(format!(
                "{} has {} of {} bytes",
                path.display(),
                found.len(),
                file.size_bytes
            )),
            Ok(_) => None,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Some(format!("{} is missing", path.display()))
            }
            Err(_) => None,
        }
    })
}

/// What of an open table is plainly damaged. `remembered` are fragments that failed to be read earlier.
pub(crate) async fn inspect(
    dataset: &Dataset,
    table: &Path,
    remembered: &BTreeMap<u64, DamagedFragment>,
) -> KnowledgeResult<Condition> {
    let indices = dataset.load_indices().await.map_err(read_error)?;
    let fragments = Arc::clone(dataset.fragments());
    let configuration = configuration_damage(dataset.config());
    let table = table.to_path_buf();
    let remembered = remembered.clone();
    tokio::task::spawn_blocking(move || {
        let mut found = damaged_fragments(&fragments, &table);
        for fragment in fragments.iter() {
            if let Some(known) = remembered.get(&fragment.id)
                && known.files == damaged(fragment, String::new(), false).files
            {
                found.entry(fragment.id).or_insert_with(|| known.clone());
            }
        }
        Condition {
            fragments: found,
            keyword_index: indices.iter().find_map(|index| index_damage(index, &table)),
            configuration,
            gaps: Vec::new(),
        }
    })
    .await
    .map_err(KnowledgeError::internal)
}

/// Reads every fragment of a table that is not in `known`, whole, and tells which cannot be read. An error that says
/// nothing about the data (no descriptor left, no memory) ends it.
pub(crate) async fn unreadable_fragments(
    dataset: &Arc<Dataset>,
    known: &BTreeMap<u64, DamagedFragment>,
) -> KnowledgeResult<BTreeMap<u64, DamagedFragment>> {
    let mut found = BTreeMap::new();
    for fragment in dataset.fragments().iter() {
        if known.contains_key(&fragment.id) {
            continue;
        }
        if let Err(reason) = read_fragment(dataset, fragment, |_| {}).await? {
            let files: Vec<String> = fragment_files(fragment).into_iter().map(|file| file.path).collect();
            let reason = format!("{} cannot be read: {reason}", files.join(", "));
            found.insert(fragment.id, damaged(fragment, reason, true));
        }
    }
    Ok(found)
}

/// Reads a fragment whole, in a task of its own, since damaged bytes can make Lance panic. The inner error says why
/// it cannot be read.
pub(crate) async fn read_fragment(
    dataset: &Arc<Dataset>,
    fragment: &Fragment,
    mut visit: impl FnMut(usize) + Send + 'static,
) -> KnowledgeResult<Result<(), String>> {
    let mut scanner = dataset.scan();
    scanner.with_fragments(vec![fragment.clone()]);
    let read = tokio::spawn(async move {
        let mut stream = scanner.try_into_stream().await?;
        while let Some(batch) = stream.try_next().await? {
            visit(batch.num_rows());
        }
        Ok::<(), lance::Error>(())
    });
    match read.await {
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(error)) if is_passing(&error) => Err(read_error(error)),
        Ok(Err(error)) => Ok(Err(damage(&error)?)),
        Err(panic) if panic.is_panic() => Ok(Err(damage(&panic)?)),
        Err(cancelled) => Err(KnowledgeError::internal(cancelled)),
    }
}

/// Removes what interrupted writes have left: nobody names these files and nothing is in flight. Answers how many
/// there were, and their bytes.
fn remove_staging_files(table: &Path) -> (usize, u64) {
    let mut directories: Vec<PathBuf> = WRITTEN_DIRECTORIES.iter().map(|name| table.join(name)).collect();
    directories.extend(
        entries_of(&table.join(INDICES))
            .into_iter()
            .filter(|path| path.is_dir()),
    );
    let (mut files, mut bytes) = (0, 0);
    for path in directories.iter().flat_map(|directory| entries_of(directory)) {
        let staged = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(is_staging_name);
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if staged && metadata.is_file() {
            match fs::remove_file(&path) {
                Ok(()) => {
                    files += 1;
                    bytes += metadata.len();
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "a leftover cannot be removed"),
            }
        }
    }
    (files, bytes)
}

fn entries_of(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map_or_else(
        |_| Vec::new(),
        |entries| entries.flatten().map(|entry| entry.path()).collect(),
    )
}

/// Whether a file of this name was being written: `.tmp…` (Lance's writer), `….tmp.…` (its copies) or `…#N` (the
/// object store's staging of `…`).
fn is_staging_name(name: &str) -> bool {
    let staged = name
        .rsplit_once('#')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    staged || name.starts_with(".tmp") || name.contains(".tmp.")
}

/// Whether there is any file in a directory or below it, the version hint aside.
fn holds_files(directory: &Path) -> KnowledgeResult<bool> {
    for path in state::entries(directory)? {
        let holds = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => holds_files(&path)?,
            _ => path.file_name().is_none_or(|name| name != VERSION_HINT),
        };
        if holds {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes room for a new table where [`recover`] found none that can be read: empty directories are removed,
/// anything else is set aside as a whole. Does nothing where there is no directory. Blocks.
pub(crate) fn clear_site(project: &ProjectName, directory: &Path, table: &Path) -> KnowledgeResult<()> {
    if !state::exists(table)? {
        return Ok(());
    }
    if !holds_files(table)? {
        fs::remove_dir_all(table).map_err(|error| file_error("removed", table, error))?;
        return sync_directory(directory);
    }
    // The numbers of what is lost are not known, so they begin anew, as another history: whoever has followed this
    // one is told so. First of all, for once the table is away nothing tells any more that there was one.
    let before = Lineage::read(directory)?;
    Lineage {
        epoch: now_ms().timestamp_millis().max(before.epoch + 1),
        sequence: before.sequence,
    }
    .replace(directory)?;
    let aside = SetAside::create(directory)?;
    let what = format!(
        "no version of the table could be read; it was moved here as a whole, and project {project} began anew"
    );
    aside.report(project, &what, &serde_json::Value::Null)?;
    let name = table.file_name().unwrap_or_default();
    aside.take(table, Path::new(name))?;
    aside.sync()?;
    sync_directory(directory)?;
    tracing::error!(%project, set_aside = %aside.path.display(), "{what}");
    Ok(())
}

/// Moves torn versions out of a table, newest first, so that a crash in between leaves a table that the next start
/// goes on with.
fn set_versions_aside(
    project: &ProjectName,
    directory: &Path,
    table: &Path,
    torn: &[(Version, String)],
    opened: u64,
) -> KnowledgeResult<()> {
    // First of all: once the versions are gone, nothing tells any more that numbers were used.
    let mut kept = GapsFile::read(directory)?;
    kept.pending = kept.pending.saturating_add(torn.len() as i64);
    kept.write(directory)?;

    let aside = SetAside::create(directory)?;
    let reasons: Vec<String> = torn
        .iter()
        .map(|(version, reason)| format!("version {} was torn: {reason}", version.number))
        .collect();
    let what = format!(
        "{}; version {opened} was opened, and what at most {} commits after it had stored is lost",
        reasons.join("; "),
        torn.len()
    );
    let files: Vec<String> = torn
        .iter()
        .map(|(version, _)| version.path.display().to_string())
        .collect();
    aside.report(project, &what, &serde_json::json!(files))?;
    for (version, reason) in torn {
        let name = version.path.file_name().unwrap_or_default();
        aside.take(&version.path, Path::new(name))?;
        tracing::error!(
            %project,
            version = version.number,
            %reason,
            set_aside = %aside.path.display(),
            "a torn version was set aside"
        );
    }
    let versions = table.join(VERSIONS);
    match fs::remove_file(versions.join(VERSION_HINT)) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        // Lance looks for itself where the hint is wrong.
        Err(error) => tracing::debug!(%project, %error, "the version hint was left"),
    }
    aside.sync()?;
    sync_directory(&versions)
}

/// A new directory of [`SET_ASIDE`].
pub(crate) struct SetAside {
    /// Where it is.
    pub(crate) path: PathBuf,
}

/// What [`REPORT_FILE`] holds.
#[derive(Serialize, Deserialize)]
struct Report {
    time: String,
    project: String,
    what: String,
    details: serde_json::Value,
}

impl SetAside {
    /// Makes the directory, named by the time.
    pub(crate) fn create(project_directory: &Path) -> KnowledgeResult<Self> {
        let parent = project_directory.join(SET_ASIDE);
        fs::create_dir_all(&parent).map_err(|error| file_error("created", &parent, error))?;
        let time = now_ms().format("%Y%m%dT%H%M%S%.3fZ").to_string();
        for attempt in 0.. {
            let name = if attempt == 0 {
                time.clone()
            } else {
                format!("{time}-{attempt}")
            };
            let path = parent.join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(file_error("created", &path, error)),
            }
        }
        Err(KnowledgeError::internal("no name is left for a directory"))
    }

    /// Writes what is there and why.
    pub(crate) fn report(&self, project: &ProjectName, what: &str, details: &serde_json::Value) -> KnowledgeResult<()> {
        let report = Report {
            time: format_time(now_ms()),
            project: project.to_string(),
            what: what.to_owned(),
            details: details.clone(),
        };
        let text = serde_json::to_vec_pretty(&report).map_err(KnowledgeError::internal)?;
        write_durably(&self.path.join(REPORT_FILE), &text)
    }

    /// Moves a file or a directory here.
    pub(crate) fn take(&self, from: &Path, name: &Path) -> KnowledgeResult<()> {
        fs::rename(from, self.path.join(name)).map_err(|error| file_error("set aside", from, error))
    }

    /// Keeps a file here that stays where it is as well; one that is missing is left out.
    pub(crate) fn keep(&self, from: &Path) -> KnowledgeResult<()> {
        let Some(name) = from.file_name() else { return Ok(()) };
        let to = self.path.join(name);
        let kept = match fs::hard_link(from, &to) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // A file system without hard links.
            Err(_) => fs::copy(from, &to).map(drop),
            Ok(()) => Ok(()),
        };
        kept.map_err(|error| file_error("set aside", from, error))
    }

    /// Makes it durable.
    pub(crate) fn sync(&self) -> KnowledgeResult<()> {
        for path in self.path.ancestors().take(3) {
            sync_directory(path)?;
        }
        Ok(())
    }
}

/// What lies in a project's [`SET_ASIDE`], a sentence for each directory, oldest first. Blocks.
pub(crate) fn set_aside_so_far(project_directory: &Path) -> Vec<String> {
    let entries = match state::entries(&project_directory.join(SET_ASIDE)) {
        Ok(entries) => entries,
        Err(error) => return vec![format!("what was set aside is not known: {error}")],
    };
    let mut found: Vec<(PathBuf, String)> = entries
        .into_iter()
        .filter(|path| path.is_dir())
        .map(|path| {
            let report: Option<Report> = fs::read(path.join(REPORT_FILE))
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok());
            let told = match report {
                Some(report) => format!("{}: {} (kept in {})", report.time, report.what, path.display()),
                None => format!(
                    "something was set aside, without a report that can be read (kept in {})",
                    path.display()
                ),
            };
            (path, told)
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, told)| told).collect()
}

/// The tables that were set aside as a whole, because no version of them could be read, and are still there. Blocks.
pub(crate) fn tables_set_aside(project_directory: &Path) -> Vec<PathBuf> {
    let Some(name) = table_directory(project_directory).file_name().map(ToOwned::to_owned) else {
        return Vec::new();
    };
    let directories = entries_of(&project_directory.join(SET_ASIDE));
    let mut tables: Vec<PathBuf> = directories
        .into_iter()
        .map(|directory| directory.join(&name))
        .filter(|table| fs::symlink_metadata(table).is_ok())
        .collect();
    tables.sort();
    tables
}

/// Removes the files in a project's [`SET_ASIDE`], for a purge: nobody knows what they still hold, whoever has put them
/// there. The reports stay, and what links lead to. What cannot be removed is in the way of nothing else; the first
/// such error is told. Blocks.
pub(crate) fn discard_set_aside(project_directory: &Path) -> KnowledgeResult<()> {
    let is_directory = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let root = project_directory.join(SET_ASIDE);
    let mut outcome = Ok(());
    if fs::metadata(&root).is_ok_and(|found| !found.is_dir()) {
        return remove(&root);
    }
    for path in state::entries(&root)? {
        let discarded = if is_directory(&path) {
            discard_directory(&path)
        } else {
            remove(&path)
        };
        outcome = outcome.and(discarded);
    }
    outcome
}

/// Removes what is in one directory of [`SET_ASIDE`], the report aside.
fn discard_directory(directory: &Path) -> KnowledgeResult<()> {
    let mut outcome = Ok(());
    let mut removed = false;
    for path in state::entries(directory)? {
        if path.file_name().is_some_and(|name| name == REPORT_FILE) {
            continue;
        }
        let gone = remove(&path);
        removed |= gone.is_ok();
        outcome = outcome.and(gone);
    }
    let path = directory.join(REPORT_FILE);
    let report = fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice::<Report>(&text).ok());
    if let (true, Some(mut report)) = (removed, report) {
        report.what.push_str("; a purge has removed the files");
        let text = serde_json::to_vec_pretty(&report).map_err(KnowledgeError::internal)?;
        write_durably(&path, &text)?;
        sync_directory(directory)?;
    }
    outcome
}

/// Removes whatever is at `path`, for good; of a link the link.
fn remove(path: &Path) -> KnowledgeResult<()> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let gone = match is_directory {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match gone {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file_error("removed", path, error)),
        _ => path.parent().map_or(Ok(()), sync_directory),
    }
}

/// What [`GAPS_FILE`] holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct GapsFile {
    gaps: Vec<Gap>,
    /// Versions that were set aside, each with one commit at most, before it was known which number came last.
    #[serde(default)]
    pending: i64,
}

impl GapsFile {
    fn read(project_directory: &Path) -> KnowledgeResult<Self> {
        let path = project_directory.join(GAPS_FILE);
        let remedy = format!(
            "it holds the commit numbers that were lost: {}, once the damaged file is removed",
            state::begin_another_history(&project_directory.join(LINEAGE_FILE))
        );
        Ok(state::read(&path, &remedy)?.unwrap_or_default())
    }

    fn write(&self, project_directory: &Path) -> KnowledgeResult<()> {
        state::write(&project_directory.join(GAPS_FILE), self)
    }

    /// Gives what is lost its numbers. `last` is the highest number that was read, `damage` what could not be,
    /// `version` the table's, which bounds the commits that there can have been. True if something is new.
    fn resolve(&mut self, last: i64, damage: &BTreeMap<u64, DamagedFragment>, version: u64) -> bool {
        let mut last = self.gaps.iter().map(|gap| gap.until + 1).fold(last, i64::max);
        let mut changed = false;
        if self.pending > 0 {
            let until = last.saturating_add(self.pending);
            self.gaps.push(Gap {
                after: last,
                until,
                files: Vec::new(),
            });
            self.pending = 0;
            last = until.saturating_add(1);
            changed = true;
        }
        let known: BTreeSet<&String> = self.gaps.iter().flat_map(|gap| &gap.files).collect();
        let fresh: Vec<String> = damage
            .values()
            .flat_map(|fragment| &fragment.files)
            .filter(|file| !known.contains(*file))
            .cloned()
            .collect();
        if !fresh.is_empty() {
            self.gaps.push(Gap {
                after: last,
                until: last.saturating_add(i64::try_from(version).unwrap_or(i64::MAX)),
                files: fresh,
            });
            changed = true;
        }
        changed
    }
}

/// The gaps in a project's commit numbers, with those that have just come to be. Blocks.
pub(crate) fn gaps(
    project_directory: &Path,
    last: i64,
    damage: &BTreeMap<u64, DamagedFragment>,
    version: u64,
) -> KnowledgeResult<Vec<Gap>> {
    let mut kept = GapsFile::read(project_directory)?;
    if kept.resolve(last, damage, version)
        && let Err(error) = kept.write(project_directory)
    {
        // Nothing can be committed either, so no number is given before this succeeds after a restart.
        tracing::warn!(%error, "lost commit numbers could not be written down");
    }
    Ok(kept.gaps)
}

#[cfg(test)]
mod tests {
    use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
    use arrow_schema::{DataType, Field, Schema};
    use lance::dataset::{WriteMode, WriteParams};
    use tempfile::TempDir;

    use super::*;
    use crate::store::durable::{Durability, DurableCommitHandler};

    /// A project's directory with a table of one number for each commit.
    struct Numbers {
        directory: TempDir,
    }

    impl Numbers {
        async fn with(commits: i64) -> Self {
            let numbers = Self {
                directory: tempfile::tempdir().unwrap(),
            };
            for commit in 1..=commits {
                numbers.append(commit).await;
            }
            numbers
        }

        fn table(&self) -> PathBuf {
            self.directory.path().join("numbers.lance")
        }

        async fn append(&self, number: i64) {
            self.append_as(number, None).await;
        }

        /// As the daemon commits, with this durability; as Lance does where there is none.
        async fn append_as(&self, number: i64, durability: Option<Durability>) {
            let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
            let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(vec![number]))]);
            let mode = if self.table().exists() {
                WriteMode::Append
            } else {
                WriteMode::Create
            };
            let handler = |durability| {
                let lock = crate::store::StoreLock::acquire(self.directory.path()).unwrap();
                Arc::new(DurableCommitHandler::new(durability, lock)) as _
            };
            let params = WriteParams {
                mode,
                commit_handler: durability.map(handler),
                ..WriteParams::default()
            };
            let reader = RecordBatchIterator::new([batch], schema);
            Dataset::write(reader, self.table().to_str().unwrap(), Some(params))
                .await
                .unwrap();
        }

        async fn recover(&self) -> KnowledgeResult<Recovered> {
            let (directory, table) = (self.directory.path().to_path_buf(), self.table());
            tokio::task::spawn_blocking(move || {
                recover(
                    &ProjectName::parse("numbers", "project_id").unwrap(),
                    &directory,
                    &table,
                )
            })
            .await
            .unwrap()
        }

        fn manifest(&self, version: u64) -> PathBuf {
            self.table()
                .join(format!("{VERSIONS}/{:020}.manifest", u64::MAX - version))
        }

        fn set_aside(&self) -> Vec<String> {
            set_aside_so_far(self.directory.path())
        }

        async fn numbers(&self) -> (u64, Vec<i64>) {
            use arrow_array::cast::AsArray;
            let dataset = Dataset::open(self.table().to_str().unwrap()).await.unwrap();
            let batch = dataset.scan().try_into_batch().await.unwrap();
            let numbers = batch["n"].as_primitive::<arrow_array::types::Int64Type>();
            (dataset.version().version, numbers.values().to_vec())
        }

        /// The data file that commit `number` wrote.
        async fn data_file(&self, number: usize) -> PathBuf {
            let dataset = Dataset::open(self.table().to_str().unwrap()).await.unwrap();
            self.table()
                .join(DATA)
                .join(&dataset.fragments()[number - 1].files[0].path)
        }
    }

    #[tokio::test]
    async fn a_sound_table_is_left_as_it_is() {
        let numbers = Numbers::with(3).await;
        let recovered = numbers.recover().await.unwrap();
        assert!(recovered.notes.is_empty() && !recovered.vacant);
        assert_eq!(numbers.numbers().await, (3, vec![1, 2, 3]));
        assert!(!numbers.directory.path().join(SET_ASIDE).exists());
        assert!(!numbers.directory.path().join(GAPS_FILE).exists());
    }

    #[tokio::test]
    async fn torn_manifests_are_set_aside_whatever_is_left_of_them() {
        let length = 40;
        let mut garbage = vec![0xa5; length];
        garbage.extend_from_slice(MAGIC);
        // A frame that fits around bytes that are no message.
        let mut framed = 32_u32.to_le_bytes().to_vec();
        framed.extend([0xff; 32]);
        framed.extend([0; 12]);
        framed.extend_from_slice(MAGIC);
        for torn in [Vec::new(), b"half".to_vec(), garbage, framed] {
            let numbers = Numbers::with(3).await;
            fs::write(numbers.manifest(3), &torn).unwrap();
            numbers.recover().await.unwrap();
            assert_eq!(numbers.numbers().await, (2, vec![1, 2]));
            let told = numbers.set_aside();
            assert!(told.len() == 1 && told[0].contains("version 3 was torn"), "{told:?}");
            // The numbers go on after what may be lost.
            let kept = gaps(numbers.directory.path(), 2, &BTreeMap::new(), 2).unwrap();
            assert_eq!((kept[0].after, kept[0].until), (2, 3));
            numbers.append(4).await;
            assert_eq!(numbers.numbers().await, (3, vec![1, 2, 4]));
            // The next start finds nothing to do, and still tells what was.
            numbers.recover().await.unwrap();
            assert_eq!(numbers.set_aside().len(), 1);
            // A purge leaves no files there.
            discard_set_aside(numbers.directory.path()).unwrap();
            let told = numbers.set_aside();
            assert!(
                told[0].contains("version 3 was torn") && told[0].contains("purge"),
                "{told:?}"
            );
            let left = entries_of(&entries_of(&numbers.directory.path().join(SET_ASIDE))[0]);
            assert_eq!(left.len(), 1, "{left:?}");
        }
    }

    #[tokio::test]
    async fn several_torn_versions_are_stepped_back_from() {
        let numbers = Numbers::with(4).await;
        fs::write(numbers.manifest(4), "").unwrap();
        fs::write(numbers.manifest(3), "").unwrap();
        numbers.recover().await.unwrap();
        assert_eq!(numbers.numbers().await, (2, vec![1, 2]));
        let kept = gaps(numbers.directory.path(), 2, &BTreeMap::new(), 2).unwrap();
        assert_eq!((kept[0].after, kept[0].until), (2, 4));
    }

    #[tokio::test]
    async fn a_commit_whose_own_file_is_gone_is_torn() {
        for damage in ["missing", "cut", "zeros"] {
            let numbers = Numbers::with(3).await;
            let file = numbers.data_file(3).await;
            let length = fs::metadata(&file).unwrap().len();
            match damage {
                "missing" => fs::remove_file(&file).unwrap(),
                "cut" => File::options()
                    .write(true)
                    .open(&file)
                    .unwrap()
                    .set_len(length / 2)
                    .unwrap(),
                _ => fs::write(&file, vec![0; length as usize]).unwrap(),
            }
            numbers.recover().await.unwrap();
            assert_eq!(numbers.numbers().await, (2, vec![1, 2]), "{damage}");
        }
    }

    #[tokio::test]
    async fn a_commit_that_was_made_durably_is_never_stepped_back_from() {
        for (durability, opened) in [(Some(Durability::Full), 3), (Some(Durability::Fast), 2), (None, 2)] {
            let numbers = Numbers::with(1).await;
            // The one before tells nothing of this one, whichever way it was made.
            numbers.append_as(2, Some(Durability::Full)).await;
            numbers.append_as(3, durability).await;
            fs::remove_file(numbers.data_file(3).await).unwrap();
            numbers.recover().await.unwrap();
            let dataset = Dataset::open(numbers.table().to_str().unwrap()).await.unwrap();
            assert_eq!(dataset.version().version, opened, "{durability:?}");
            let damaged = damaged_fragments(dataset.fragments(), &numbers.table());
            assert_eq!(damaged.len(), usize::from(opened == 3), "{durability:?}: {damaged:?}");
            assert_eq!(numbers.set_aside().len(), usize::from(opened == 2));
        }
    }

    #[tokio::test]
    async fn damaged_files_of_state_are_refused() {
        let numbers = Numbers::with(2).await;
        let directory = numbers.directory.path();
        let known = || gaps(directory, 2, &BTreeMap::new(), 2);
        assert_eq!(known().unwrap(), Vec::new());
        for damaged in ["", "\0\0\0", "{\"gaps\":[{\"after\":2", "{}"] {
            fs::write(directory.join(GAPS_FILE), damaged).unwrap();
            let error = known().unwrap_err().to_string();
            assert!(
                error.contains("lost-commits.json is damaged") && error.contains("restored.json"),
                "{error}"
            );
            // Nor is it written over by a version that is set aside.
            fs::write(numbers.manifest(2), "").unwrap();
            assert!(numbers.recover().await.is_err());
            assert_eq!(fs::read(directory.join(GAPS_FILE)).unwrap(), damaged.as_bytes());
        }
        assert!(numbers.set_aside().is_empty());
    }

    #[tokio::test]
    async fn a_project_that_begins_anew_begins_another_history() {
        let numbers = Numbers::with(1).await;
        let directory = numbers.directory.path();
        let name = ProjectName::parse("numbers", "project_id").unwrap();
        let before = Lineage {
            epoch: i64::MAX - 1,
            sequence: 7,
        };
        before.replace(directory).unwrap();
        fs::write(numbers.manifest(1), "").unwrap();
        assert!(numbers.recover().await.unwrap().vacant);
        clear_site(&name, directory, &numbers.table()).unwrap();
        let after = Lineage::read(directory).unwrap();
        assert_eq!((after.epoch, after.sequence), (i64::MAX, 7));
        // Where there was nothing, nothing ends.
        fs::create_dir_all(numbers.table().join(VERSIONS)).unwrap();
        clear_site(&name, directory, &numbers.table()).unwrap();
        assert_eq!(Lineage::read(directory).unwrap(), after);
    }

    #[tokio::test]
    async fn an_old_file_that_is_gone_costs_its_fragment_alone() {
        let numbers = Numbers::with(3).await;
        let file = numbers.data_file(2).await;
        fs::remove_file(&file).unwrap();
        let recovered = numbers.recover().await.unwrap();
        assert!(!recovered.vacant && numbers.set_aside().is_empty());
        let dataset = Arc::new(Dataset::open(numbers.table().to_str().unwrap()).await.unwrap());
        let condition = inspect(&dataset, &numbers.table(), &BTreeMap::new()).await.unwrap();
        assert_eq!(condition.fragments.keys().collect::<Vec<_>>(), [&1]);
        assert!(condition.describe()[0].contains("is missing"), "{condition:?}");
        // Reading them finds the same one.
        let unreadable = unreadable_fragments(&dataset, &BTreeMap::new()).await.unwrap();
        assert_eq!(unreadable.keys().collect::<Vec<_>>(), [&1]);
        assert!(
            unreadable_fragments(&dataset, &condition.fragments)
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn leftovers_are_removed_and_nothing_else() {
        let numbers = Numbers::with(2).await;
        let table = numbers.table();
        let manifest = numbers.manifest(3);
        let staged = [
            table.join("data/.tmpAb12Cd"),
            PathBuf::from(format!("{}#1", manifest.display())),
            table.join("_transactions/2-x.txn#7"),
        ];
        for path in &staged {
            fs::write(path, "leftover").unwrap();
        }
        let other = table.join("data/not-mine.txt");
        fs::write(&other, "kept").unwrap();
        let recovered = numbers.recover().await.unwrap();
        assert!(
            recovered.notes[0].starts_with("3 files (24 bytes)"),
            "{:?}",
            recovered.notes
        );
        assert!(staged.iter().all(|path| !path.exists()) && other.exists());
        assert_eq!(numbers.numbers().await, (2, vec![1, 2]));
    }

    #[tokio::test]
    async fn a_table_without_a_version_is_made_anew_and_what_it_holds_is_kept() {
        let project = ProjectName::parse("numbers", "project_id").unwrap();
        let numbers = Numbers::with(0).await;
        fs::create_dir_all(numbers.table().join(VERSIONS)).unwrap();
        let recovered = numbers.recover().await.unwrap();
        assert!(recovered.vacant && recovered.lost.is_none());
        clear_site(&project, numbers.directory.path(), &numbers.table()).unwrap();
        assert!(!numbers.table().exists() && numbers.set_aside().is_empty());

        let numbers = Numbers::with(2).await;
        for version in [1, 2] {
            fs::write(numbers.manifest(version), "").unwrap();
        }
        let recovered = numbers.recover().await.unwrap();
        assert!(
            recovered.lost.as_ref().is_some_and(|it| it.contains("no version")),
            "{recovered:?}"
        );
        assert!(numbers.table().exists(), "reading moves nothing");
        clear_site(&project, numbers.directory.path(), &numbers.table()).unwrap();
        assert!(!numbers.table().exists());
        let kept = entries_of(&numbers.directory.path().join(SET_ASIDE));
        assert_eq!(entries_of(&kept[0].join("numbers.lance/data")).len(), 2);
    }

    #[test]
    fn a_table_of_the_old_tool_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let versions = directory.path().join(VERSIONS);
        fs::create_dir(&versions).unwrap();
        fs::write(versions.join("5.manifest"), "").unwrap();
        assert!(list_versions(directory.path()).unwrap().is_none());
    }

    #[test]
    fn lost_numbers_are_never_given_again() {
        let mut kept = GapsFile {
            pending: 2,
            ..GapsFile::default()
        };
        assert!(kept.resolve(7, &BTreeMap::new(), 30));
        let condition = Condition {
            gaps: kept.gaps.clone(),
            ..Condition::default()
        };
        let lost: Vec<i64> = (0..15).filter(|number| condition.lost(*number)).collect();
        assert_eq!(lost, [8, 9]);
        assert_eq!(condition.floor(), 10);
        assert!(!kept.resolve(7, &BTreeMap::new(), 30), "once is enough");

        // A damaged fragment may hold the newest rows: as many numbers may be lost as there were versions.
        let fragment = DamagedFragment {
            files: vec!["data/a.lance".to_owned()],
            rows: 1,
            salvageable: false,
            reason: String::new(),
        };
        let damage = BTreeMap::from([(3, fragment)]);
        assert!(kept.resolve(7, &damage, 30));
        assert_eq!((kept.gaps[1].after, kept.gaps[1].until), (10, 40));
        assert!(!kept.resolve(7, &damage, 31), "the same damage makes no further gap");
    }

    #[test]
    fn staging_names_are_told_from_others() {
        for name in [".tmpX1y2Z3", "18446744073709551612.manifest#1", "a.lance.tmp.0f"] {
            assert!(is_staging_name(name), "{name}");
        }
        for name in ["18446744073709551612.manifest", "a.lance", "a#b.lance", "x#"] {
            assert!(!is_staging_name(name), "{name}");
        }
    }
}
