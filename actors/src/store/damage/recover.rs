//! What is done before a table is opened: see [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::domain::{ProjectName, now_ms};
use crate::error::KnowledgeResult;
use crate::store::damage::files::{fragment_files, missing_files, name_some};
use crate::store::damage::gaps::GapsFile;
use crate::store::damage::manifest::{VERSIONS, Version, list_versions, read_version};
use crate::store::damage::set_aside::{Remains, SET_ASIDE, SetAside};
use crate::store::damage::staging::{TRANSACTIONS, remove_staging_files};
use crate::store::disk::{self, sync_directory};
use crate::store::error::file_error;
use crate::store::table::durable::made_durably;
use crate::store::table::lineage::Lineage;

/// File in [`VERSIONS`] that names the newest version; only a hint, which a missing file does not hurt.
const VERSION_HINT: &str = "latest_version_hint.json";

/// What [`recover`] did.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// For `admin.status`.
    pub(crate) notes: Vec<String>,
    /// Whether there is a table's directory without any version that can be read: the table is made again with the
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
             empty: restore a backup before that if you have one",
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

/// Whether there is any file in a directory or below it, the version hint aside.
pub(super) fn holds_files(directory: &Path) -> KnowledgeResult<bool> {
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

/// Clears the place of a new table where [`recover`] found none that can be read: empty directories are removed,
/// anything else is set aside as a whole. Does nothing where there is no directory. Blocks.
pub(crate) fn clear_site(project: &ProjectName, directory: &Path, table: &Path) -> KnowledgeResult<()> {
    if !disk::exists(table)? {
        return Ok(());
    }
    if !holds_files(table)? {
        fs::remove_dir_all(table).map_err(|error| file_error("removed", table, error))?;
        return sync_directory(directory);
    }
    // The numbers of what is lost are not known, so they begin again, as another history: whoever has followed this
    // one is told so. First of all, for once the table is away nothing tells any more that there was one.
    let before = Lineage::read(directory)?;
    Lineage {
        epoch: now_ms().timestamp_millis().max(before.epoch + 1),
        sequence: before.sequence,
    }
    .replace(directory)?;
    let aside = SetAside::create(directory)?;
    let what = format!(
        "no version of the table could be read; it was moved here as a whole, and project {project} began empty"
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

/// Removes what is left of a table that could not be created, as long as it has no version and no data: the files of
/// the interrupted write, and the directories that are empty then. With `is_new`, also the directory of the project.
/// Blocks.
pub(crate) fn remove_failed_site(directory: &Path, table: &Path, is_new: bool) -> KnowledgeResult<()> {
    if disk::exists(table)? {
        if !list_versions(table)?.is_some_and(|versions| versions.is_empty()) {
            return Ok(());
        }
        remove_staging_files(table);
        // What a commit was to do is written before the version that does it.
        for plan in disk::entries(&table.join(TRANSACTIONS))? {
            if plan.extension().is_some_and(|end| end == "txn") {
                fs::remove_file(&plan).map_err(|error| file_error("removed", &plan, error))?;
            }
        }
        if holds_files(table)? {
            return Ok(());
        }
        fs::remove_dir_all(table).map_err(|error| file_error("removed", table, error))?;
    }
    if is_new {
        match fs::remove_dir(directory) {
            // Never made, or somebody has put something there.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {}
            removed => removed.map_err(|error| file_error("removed", directory, error))?,
        }
    }
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
