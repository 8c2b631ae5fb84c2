//! From the record alone: was everything that an acknowledged write needs on disk before its answer went out?
//!
//! For each write, the version of its table that first contains it is found (by its rows, read from all files that
//! ever were), and then checked step by step: every file that version names was synced, data and name, before the
//! manifest could be seen; the manifest was synced before that; and its name, and those of all directories above
//! it, were on disk before the answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ccod_actors::lance::Dataset;
use ccod_actors::lance::dataset::fragment::FileFragment;
use ccod_actors::lance::index::DatasetIndexExt;
use ccod_actors::store::table::rows::RowReader;
use ccod_actors::store::table::schema::{TABLE_NAME, column};
use futures::TryStreamExt;

use super::disk::{Disk, Inode, Operation, Place};
use super::trace::Log;
use crate::proof::journal::{Journal, Request, State};

/// When what was synced. Places in the log stand for moments.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The moments when a file's data changed.
    writes: HashMap<Inode, Vec<usize>>,
    /// The syncs of a file or directory: from when to when.
    syncs: HashMap<Inode, Vec<(usize, usize)>>,
    /// When a place got an inode, and which directories' syncs make that durable.
    names: HashMap<Place, Vec<(usize, Inode, Vec<Inode>)>>,
    /// The places that a directory has had.
    directories: HashMap<Inode, Vec<(usize, Place)>>,
}

impl History {
    /// Reads the steps.
    pub(crate) fn of(operations: &[Operation]) -> Self {
        let mut history = Self::default();
        let mut open = HashMap::new();
        for (now, operation) in operations.iter().enumerate() {
            match operation {
                Operation::Create { inode, place } | Operation::Link { inode, place } => {
                    history.named(now, place, *inode, vec![place.0]);
                }
                Operation::MakeDirectory { inode, place } => history.named(now, place, *inode, vec![place.0]),
                Operation::Rename { inode, from, to } => history.named(now, to, *inode, vec![from.0, to.0]),
                Operation::Exchange {
                    places: [(one, at_one), (other, at_other)],
                } => {
                    history.named(now, one, *at_other, vec![one.0, other.0]);
                    history.named(now, other, *at_one, vec![one.0, other.0]);
                }
                Operation::Write { inode, .. } | Operation::Truncate { inode, .. } => {
                    history.writes.entry(*inode).or_default().push(now);
                }
                Operation::SyncBegins { ticket, inode } => {
                    open.insert(*ticket, (now, *inode));
                }
                Operation::SyncEnded { ticket } => {
                    if let Some((begun, inode)) = open.remove(ticket) {
                        history.syncs.entry(inode).or_default().push((begun, now));
                    }
                }
                Operation::Remove { .. } | Operation::Acknowledged { .. } => {}
            }
        }
        history
    }

    fn named(&mut self, now: usize, place: &Place, inode: Inode, synced_by: Vec<Inode>) {
        self.names
            .entry(place.clone())
            .or_default()
            .push((now, inode, synced_by));
        self.directories.entry(inode).or_default().push((now, place.clone()));
    }

    /// Whether a file's data, as it was last written before `moment`, was on disk at `moment`.
    fn data_is_durable(&self, inode: Inode, moment: usize) -> bool {
        let written = self
            .writes
            .get(&inode)
            .into_iter()
            .flatten()
            .filter(|written| **written < moment)
            .max();
        match written {
            None => true, // Empty, and so it is on disk.
            Some(written) => self
                .syncs
                .get(&inode)
                .into_iter()
                .flatten()
                .any(|(begun, ended)| begun > written && *ended < moment),
        }
    }

    /// When a place got this inode, if it had it at `moment`.
    fn named_at(&self, place: &Place, inode: Inode, moment: usize) -> Option<(usize, &[Inode])> {
        self.names
            .get(place)?
            .iter()
            .rev()
            .find(|(named, held, _)| *named <= moment && *held == inode)
            .map(|(named, _, synced_by)| (*named, synced_by.as_slice()))
    }

    /// Whether the name `place` of `inode` was on disk at `moment`.
    fn name_is_durable(&self, place: &Place, inode: Inode, moment: usize) -> bool {
        let Some((named, synced_by)) = self.named_at(place, inode, moment) else {
            return false;
        };
        synced_by.iter().any(|directory| {
            let syncs = self.syncs.get(directory).into_iter().flatten();
            syncs
                .into_iter()
                .any(|(begun, ended)| *begun > named && *ended < moment)
        })
    }

    /// The place of a directory at `moment`.
    fn place_of(&self, directory: Inode, moment: usize) -> Option<&Place> {
        let places = self.directories.get(&directory)?;
        places
            .iter()
            .rev()
            .find(|(named, _)| *named <= moment)
            .map(|(_, place)| place)
    }

    /// When a file could be found by its present path: when it and all directories above it had their names. A
    /// table that was put together elsewhere and moved into place is seen from then on.
    fn visible_at(&self, file: &Named, moment: usize) -> usize {
        let mut seen = self
            .named_at(&file.place, file.inode, moment)
            .map_or(moment, |(named, _)| named);
        let mut directory = file.place.0;
        while let Some(place) = self.place_of(directory, moment) {
            seen = seen.max(
                self.named_at(place, directory, moment)
                    .map_or(moment, |(named, _)| named),
            );
            directory = place.0;
        }
        seen
    }

    /// The directories above `inode` up to (and without) `top` whose names were not on disk at `moment`.
    fn loose_above(&self, mut inode: Inode, top: Inode, moment: usize) -> Vec<String> {
        let mut loose = Vec::new();
        while inode != top && inode != 0 {
            let Some(place) = self.place_of(inode, moment) else {
                break;
            };
            if !self.name_is_durable(place, inode, moment) {
                loose.push(place.1.to_string());
            }
            inode = place.0;
        }
        loose
    }
}

/// A file that a version names.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// Its path in the table.
    path: PathBuf,
    place: Place,
    inode: Inode,
}

/// One version of a table, as its manifest and rows tell it.
#[derive(Debug)]
pub(crate) struct Version {
    /// Lance's number.
    pub(crate) number: u64,
    manifest: Named,
    files: Vec<Named>,
    /// For each item with rows the write that is live, if one is.
    items: BTreeMap<u64, Option<u64>>,
}

/// All versions that a table ever had, in order.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// The versions.
    pub(crate) versions: Vec<Version>,
}

/// Everything that was ever found in a directory, by name.
fn ever(operations: &[Operation]) -> HashMap<Inode, BTreeMap<Arc<str>, Inode>> {
    let mut ever: HashMap<Inode, BTreeMap<Arc<str>, Inode>> = HashMap::new();
    let mut put = |(directory, name): &Place, inode: Inode| {
        ever.entry(*directory).or_default().insert(Arc::clone(name), inode);
    };
    for operation in operations {
        match operation {
            Operation::Create { inode, place }
            | Operation::MakeDirectory { inode, place }
            | Operation::Link { inode, place }
            | Operation::Rename { inode, to: place, .. } => put(place, *inode),
            Operation::Exchange {
                places: [(one, at_one), (other, at_other)],
            } => {
                put(one, *at_other);
                put(other, *at_one);
            }
            _ => {}
        }
    }
    ever
}

/// Reads all tables that there ever were, by the inode of their directory. `scratch` is an empty directory.
pub(crate) async fn read_tables(log: &Log, scratch: &Path) -> Result<HashMap<Inode, Table>, String> {
    let ever = ever(&log.operations);
    let name = format!("{TABLE_NAME}.lance");
    let roots: HashSet<Inode> = ever
        .values()
        .filter_map(|names| names.get(name.as_str()).copied())
        .collect();
    let mut tables = HashMap::new();
    for root in roots {
        let directory = scratch.join(root.to_string());
        let mut files = HashMap::new();
        lay_out(log, &ever, root, &directory, Path::new(""), &mut files)?;
        let table = read_table(&directory, &files)
            .await
            .map_err(|error| format!("the table in {}: {error}", directory.display()))?;
        tables.insert(root, table);
    }
    Ok(tables)
}

/// Writes everything that was ever in a directory below `target`.
fn lay_out(
    log: &Log,
    ever: &HashMap<Inode, BTreeMap<Arc<str>, Inode>>,
    directory: Inode,
    target: &Path,
    path: &Path,
    files: &mut HashMap<PathBuf, Named>,
) -> Result<(), String> {
    std::fs::create_dir_all(target.join(path)).map_err(|error| error.to_string())?;
    for (name, inode) in ever.get(&directory).into_iter().flatten() {
        let path = path.join(&**name);
        match log.end.data(*inode) {
            Some(data) => {
                std::fs::write(target.join(&path), data.as_slice()).map_err(|error| error.to_string())?;
                let place = (directory, Arc::clone(name));
                let inode = *inode;
                files.insert(path.clone(), Named { path, place, inode });
            }
            None => lay_out(log, ever, *inode, target, &path, files)?,
        }
    }
    Ok(())
}

async fn read_table(directory: &Path, files: &HashMap<PathBuf, Named>) -> Result<Table, String> {
    let text = |error: ccod_actors::lance::Error| error.to_string();
    let mut numbers: Vec<(u64, &Named)> = files
        .values()
        .filter(|file| file.path.starts_with("_versions"))
        .filter_map(|file| {
            let name = file.path.file_name()?.to_str()?.strip_suffix(".manifest")?;
            Some((u64::MAX - name.parse::<u64>().ok()?, file))
        })
        .collect();
    numbers.sort_by_key(|(number, _)| *number);
    if numbers.is_empty() {
        return Ok(Table::default());
    }
    let newest = Dataset::open(directory.to_str().ok_or("UTF-8")?).await.map_err(text)?;
    let mut fragments: HashMap<String, Vec<(u64, Option<u64>)>> = HashMap::new();
    let mut versions = Vec::new();
    for (number, manifest) in numbers {
        let dataset = newest.checkout_version(number).await.map_err(text)?;
        let mut named: Vec<PathBuf> = Vec::new();
        let mut items: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        for fragment in dataset.get_fragments() {
            let mut key = String::new();
            for file in &fragment.metadata().files {
                key.push_str(&file.path);
                named.push(Path::new("data").join(file.path.as_str()));
            }
            if let Some(deletion) = &fragment.metadata().deletion_file {
                let stem = format!("{}-{}-{}.", fragment.id(), deletion.read_version, deletion.id);
                let path = files
                    .keys()
                    .find(|path| {
                        path.starts_with("_deletions")
                            && path
                                .file_name()
                                .is_some_and(|name| name.to_string_lossy().starts_with(&stem))
                    })
                    .ok_or_else(|| format!("version {number} names the deletion file {stem}, which never was"))?;
                key.push_str(&stem);
                named.push(path.clone());
            }
            if !fragments.contains_key(&key) {
                let rows = read_fragment(&fragment).await?;
                fragments.insert(key.clone(), rows);
            }
            for (item, live) in &fragments[&key] {
                let known = items.entry(*item).or_default();
                *known = known.or(*live);
            }
        }
        for index in dataset.load_indices().await.map_err(text)?.iter() {
            let below = Path::new("_indices").join(index.uuid.to_string());
            // As the manifest lists them, or all that lie there.
            match &index.files {
                Some(listed) => named.extend(listed.iter().map(|file| below.join(&file.path))),
                None => named.extend(files.keys().filter(|path| path.starts_with(&below)).cloned()),
            }
        }
        let files = named
            .into_iter()
            .map(|path| match files.get(&path) {
                Some(file) => Ok(file.clone()),
                None => Err(format!("version {number} names {}, which never was", path.display())),
            })
            .collect::<Result<Vec<Named>, String>>()?;
        versions.push(Version {
            number,
            manifest: manifest.clone(),
            files,
            items,
        });
    }
    Ok(Table { versions })
}

/// The items of a fragment, each with its live write if it has one.
async fn read_fragment(fragment: &FileFragment) -> Result<Vec<(u64, Option<u64>)>, String> {
    let text = |error: ccod_actors::lance::Error| error.to_string();
    let mut scanner = fragment.scan();
    scanner
        .project(&[column::METADATA, column::PASSAGES, column::VALID_TO])
        .map_err(text)?;
    let stream = scanner.try_into_stream().await.map_err(text)?;
    let batches: Vec<_> = stream.try_collect().await.map_err(text)?;
    let mut rows = Vec::new();
    for batch in &batches {
        let reader = RowReader(batch);
        for row in 0..batch.num_rows() {
            if reader
                .small_int(column::PASSAGES, row)
                .map_err(|error| error.to_string())?
                == 0
            {
                continue; // What a purge leaves in an item's place.
            }
            let metadata = reader
                .required_text(column::METADATA, row)
                .map_err(|error| error.to_string())?;
            let metadata: serde_json::Value = serde_json::from_str(metadata).map_err(|error| error.to_string())?;
            let tag = |name: &str| {
                metadata[name]
                    .as_u64()
                    .ok_or_else(|| format!("metadata without {name}"))
            };
            let closed = reader.int(column::VALID_TO, row).map_err(|error| error.to_string())?;
            let live = if closed.is_none() { Some(tag("write")?) } else { None };
            rows.push((tag("item")?, live));
        }
    }
    Ok(rows)
}

impl Version {
    /// Whether the version shows an item in this state.
    fn shows(&self, item: u64, state: &State) -> bool {
        let found = self.items.get(&item);
        match state {
            State::Live(content) => found.is_some_and(|live| *live == Some(content.write)),
            State::Deleted(_) => found.is_none_or(Option::is_none),
            State::Absent | State::Purged => found.is_none(),
        }
    }
}

/// What the check found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Acknowledged writes that were checked.
    pub(crate) writes: usize,
    /// Files whose sync was checked, over all writes.
    pub(crate) files: usize,
    /// Versions that contain a write first.
    pub(crate) versions: usize,
    /// What came too late or never.
    pub(crate) violations: Vec<String>,
}

/// Checks every acknowledged write of the journals.
pub(crate) fn check(operations: &[Operation], tables: &HashMap<Inode, Table>, journals: &[Journal]) -> Report {
    let history = History::of(operations);
    let mut requests: HashMap<String, (usize, &Request)> = HashMap::new();
    for (client, journal) in journals.iter().enumerate() {
        for request in &journal.requests {
            requests.insert(request.wire_id(), (client, request));
        }
    }
    // The version that held each client's last write to a table: its next one is in that or in a later one.
    let mut reached: HashMap<(usize, Inode), u64> = HashMap::new();
    let mut first_in: HashSet<(Inode, u64)> = HashSet::new();
    let mut report = Report::default();
    let mut disk = Disk::default();
    for (now, operation) in operations.iter().enumerate() {
        disk.apply(operation);
        let Operation::Acknowledged { id } = operation else {
            continue;
        };
        let Some((client, request)) = requests.get(id) else {
            continue;
        };
        report.writes += 1;
        let name = format!("{} ({id}, {})", request.operation, request.project);
        let Some(root) = table_of(&disk, &request.project) else {
            report
                .violations
                .push(format!("{name} was answered and its project has no table"));
            continue;
        };
        let lowest = reached.get(&(*client, root)).copied().unwrap_or(0);
        let linked = |version: &Version| {
            let manifest = &version.manifest;
            history.named_at(&manifest.place, manifest.inode, now).is_some()
        };
        let version = tables
            .get(&root)
            .into_iter()
            .flat_map(|table| &table.versions)
            .find(|version| {
                version.number >= lowest
                    && linked(version)
                    && request.changes.iter().all(|(item, state)| version.shows(*item, state))
            });
        let Some(version) = version else {
            report
                .violations
                .push(format!("{name} was answered and no version contains it"));
            continue;
        };
        reached.insert((*client, root), version.number);
        first_in.insert((root, version.number));
        let seen = history.visible_at(&version.manifest, now);
        check_version(&history, version, seen, root, now, &name, &mut report);
    }
    report.versions = first_in.len();
    report
}

/// The inode of a project's table.
fn table_of(disk: &Disk, project: &str) -> Option<Inode> {
    let table = format!("{TABLE_NAME}.lance");
    ["home", "knowledge", project, &table]
        .into_iter()
        .try_fold(0, |directory, name| disk.lookup(directory, name))
}

/// `seen` is when the version could be found, `answered` when the answer went out.
fn check_version(
    history: &History,
    version: &Version,
    seen: usize,
    root: Inode,
    answered: usize,
    name: &str,
    report: &mut Report,
) {
    let number = version.number;
    let mut wrong = |what: String| report.violations.push(format!("{name}, version {number}: {what}"));
    let manifest = &version.manifest;
    if !history.data_is_durable(manifest.inode, seen) {
        wrong("the manifest could be seen before it was synced".to_owned());
    }
    if !history.name_is_durable(&manifest.place, manifest.inode, answered) {
        wrong("the answer went out before the manifest's name was synced".to_owned());
    }
    let above = history.loose_above(manifest.place.0, 0, answered);
    if !above.is_empty() {
        wrong(format!(
            "the answer went out before these directories' names were synced: {above:?}"
        ));
    }
    for file in &version.files {
        if !history.data_is_durable(file.inode, seen) {
            wrong(format!(
                "{} was not synced before the manifest could be seen",
                file.path.display()
            ));
        }
        if !history.name_is_durable(&file.place, file.inode, seen) {
            wrong(format!(
                "the name {} was not synced before the manifest could be seen",
                file.path.display()
            ));
        }
        let above = history.loose_above(file.place.0, root, seen);
        if !above.is_empty() {
            wrong(format!(
                "{} lies in directories whose names were not synced: {above:?}",
                file.path.display()
            ));
        }
    }
    report.files += version.files.len() + 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(directory: Inode, name: &str) -> Place {
        (directory, name.into())
    }

    /// A table with one data file, committed and answered in the right order.
    fn commit() -> Vec<Operation> {
        let sync = |ticket, inode| [Operation::SyncBegins { ticket, inode }, Operation::SyncEnded { ticket }];
        let mut steps = vec![
            Operation::MakeDirectory {
                inode: 1,
                place: place(0, "table"),
            },
            Operation::MakeDirectory {
                inode: 2,
                place: place(1, "data"),
            },
            Operation::MakeDirectory {
                inode: 3,
                place: place(1, "_versions"),
            },
            Operation::Create {
                inode: 4,
                place: place(2, "tmp"),
            },
            Operation::Write {
                inode: 4,
                offset: 0,
                bytes: b"rows".as_slice().into(),
            },
            Operation::Rename {
                inode: 4,
                from: place(2, "tmp"),
                to: place(2, "a"),
            },
        ];
        for (ticket, inode) in [(1, 4), (2, 2), (3, 1)] {
            steps.extend(sync(ticket, inode));
        }
        steps.push(Operation::Create {
            inode: 5,
            place: place(3, "1#1"),
        });
        steps.push(Operation::Write {
            inode: 5,
            offset: 0,
            bytes: b"manifest".as_slice().into(),
        });
        steps.extend(sync(4, 5));
        steps.push(Operation::Link {
            inode: 5,
            place: place(3, "1"),
        });
        for (ticket, inode) in [(5, 3), (6, 0)] {
            steps.extend(sync(ticket, inode));
        }
        steps.push(Operation::Acknowledged { id: "w0".to_owned() });
        steps
    }

    fn violations(steps: &[Operation]) -> usize {
        let version = Version {
            number: 1,
            manifest: Named {
                path: "_versions/1".into(),
                place: place(3, "1"),
                inode: 5,
            },
            files: vec![Named {
                path: "data/a".into(),
                place: place(2, "a"),
                inode: 4,
            }],
            items: BTreeMap::new(),
        };
        let history = History::of(steps);
        let linked = steps
            .iter()
            .position(|step| matches!(step, Operation::Link { .. }))
            .unwrap();
        let mut report = Report::default();
        check_version(&history, &version, linked, 1, steps.len() - 1, "test", &mut report);
        report.violations.len()
    }

    #[test]
    fn each_sync_is_needed_and_needed_in_time() {
        let steps = commit();
        assert_eq!(violations(&steps), 0);
        for left_out in 1..=6 {
            let without: Vec<Operation> = steps
                .iter()
                .filter(|step| !matches!(step, Operation::SyncEnded { ticket } if *ticket == left_out))
                .cloned()
                .collect();
            assert!(violations(&without) > 0, "without sync {left_out}");
        }
        // A sync that ends after the answer, or that began before what it is to cover, is none.
        let mut late = steps.clone();
        let answer = late.len() - 1;
        late.swap(answer, answer - 1);
        let answered = History::of(&late);
        assert!(!answered.name_is_durable(&place(0, "table"), 1, answer - 1));
        let mut early = steps;
        let begins = early
            .iter()
            .position(|step| matches!(step, Operation::SyncBegins { ticket: 4, .. }))
            .unwrap();
        early.swap(begins, begins - 1);
        assert!(violations(&early) > 0);
    }
}
