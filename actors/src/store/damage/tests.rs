//! Tables as crashes and failing disks leave them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
use arrow_schema::{DataType, Field, Schema};
use lance::Dataset;
use lance::dataset::{WriteMode, WriteParams};
use tempfile::TempDir;

use crate::domain::ProjectName;
use crate::error::KnowledgeResult;
use crate::store::damage::files::{DATA, damaged_fragments, inspect, unreadable_fragments};
use crate::store::damage::gaps::{GAPS_FILE, GapsFile, gaps};
use crate::store::damage::manifest::{MAGIC, VERSIONS, list_versions};
use crate::store::damage::recover::{Recovered, clear_site, recover, remove_failed_site};
use crate::store::damage::set_aside::{SET_ASIDE, discard_set_aside, entries_of, set_aside_so_far};
use crate::store::damage::staging::is_staging_name;
use crate::store::table::durable::{Durability, DurableCommitHandler};
use crate::store::table::lineage::Lineage;
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
    // A frame that fits around bytes that are not a message.
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
async fn a_project_that_begins_again_begins_another_history() {
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
async fn a_table_without_a_version_is_made_again_and_what_it_holds_is_kept() {
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
fn a_table_that_could_not_be_created_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("project");
    let table = directory.join("numbers.lance");
    // Nothing was made at all.
    remove_failed_site(&directory, &table, true).unwrap();
    let begin = || {
        for part in [VERSIONS, "_transactions", DATA] {
            fs::create_dir_all(table.join(part)).unwrap();
        }
        fs::write(table.join("_transactions/0-x.txn"), "plan").unwrap();
        fs::write(table.join(VERSIONS).join("18446744073709551614.manifest#1"), "half").unwrap();
    };
    begin();
    remove_failed_site(&directory, &table, true).unwrap();
    assert!(!directory.exists());
    // A directory that was there before stays.
    begin();
    remove_failed_site(&directory, &table, false).unwrap();
    assert!(directory.exists() && !table.exists());
    // So does everything that may be somebody's.
    begin();
    fs::write(table.join(DATA).join("a.lance"), "rows").unwrap();
    remove_failed_site(&directory, &table, true).unwrap();
    assert!(table.join(DATA).join("a.lance").exists());
    fs::remove_file(table.join(DATA).join("a.lance")).unwrap();
    fs::write(table.join(VERSIONS).join("18446744073709551614.manifest"), "whole").unwrap();
    remove_failed_site(&directory, &table, true).unwrap();
    assert!(table.join(VERSIONS).join("18446744073709551614.manifest").exists());
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
