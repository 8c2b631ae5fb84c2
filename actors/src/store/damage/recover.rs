//! What is done before a table is opened: see [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::domain::{ProjectName, now_ms};
use crate::error::KnowledgeResult;
use crate::store::damage::files::{DATA, missing_files, name_some};
use crate::store::damage::files::{INDICES, damaged_fragments, fragment_files};
use crate::store::damage::gaps::GapsFile;
use crate::store::damage::manifest::{VERSIONS, Version, list_versions, read_version};
use crate::store::damage::set_aside::{Remains, SET_ASIDE, SetAside, entries_of};
use crate::store::disk::{self, sync_directory};
use crate::store::error::file_error;
use crate::store::table::durable::made_durably;
use crate::store::table::holds_table;
use crate::store::table::lineage::Lineage;
use crate::store::write::configuration_damage;

/// File in [`VERSIONS`] that names the newest version; only a hint, which a missing file does not hurt.
pub(super) const VERSION_HINT: &str = "latest_version_hint.json";
/// Directories of a table that files are written into.
pub(super) const WRITTEN_DIRECTORIES: [&str; 4] = [DATA, VERSIONS, "_transactions", "_deletions"];

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
        opened = Some((version.number, made_durably(&manifest)));
        break;
    }
    let Some((opened, durably)) = opened else {
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
        // Where commits are made durable before they are answered, a power cut tears none: it was damaged later, and
        // may have been answered.
        set_versions_aside(project, directory, table, &torn, opened, durably)?;
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
    for path in disk::entries(directory)? {
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
    if !disk::exists(table)? {
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
    aside.report(
        project,
        Remains {
            what: what.clone(),
            lost: true,
            details: serde_json::Value::Null,
        },
    )?;
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
    lost: bool,
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
    aside.report(
        project,
        Remains {
            what,
            lost,
            details: serde_json::json!(files),
        },
    )?;
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

#[cfg(test)]
mod tests {
    use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
    use arrow_schema::{DataType, Field, Schema};
    use lance::dataset::{WriteMode, WriteParams};
    use tempfile::TempDir;

    use std::collections::BTreeMap;
    use std::fs::File;
    use std::sync::Arc;

    use lance::Dataset;

    use super::*;
    use crate::store::damage::files::{inspect, unreadable_fragments};
    use crate::store::damage::gaps::{GAPS_FILE, GapsFile, gaps};
    use crate::store::damage::manifest::MAGIC;
    use crate::store::damage::set_aside::{discard_set_aside, set_aside_so_far};
    use crate::store::table::durable::{Durability, DurableCommitHandler};
    use crate::store::table::table_damage::{DamagedFragment, TableDamage};

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
        let damage = inspect(&dataset, &numbers.table(), &BTreeMap::new()).await.unwrap();
        assert_eq!(damage.fragments.keys().collect::<Vec<_>>(), [&1]);
        assert!(damage.describe()[0].contains("is missing"), "{damage:?}");
        // Reading them finds the same one.
        let unreadable = unreadable_fragments(&dataset, &BTreeMap::new()).await.unwrap();
        assert_eq!(unreadable.keys().collect::<Vec<_>>(), [&1]);
        assert!(
            unreadable_fragments(&dataset, &damage.fragments)
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
        let damage = TableDamage {
            gaps: kept.gaps.clone(),
            ..TableDamage::default()
        };
        let lost: Vec<i64> = (0..15).filter(|number| damage.lost(*number)).collect();
        assert_eq!(lost, [8, 9]);
        assert_eq!(damage.floor(), 10);
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
