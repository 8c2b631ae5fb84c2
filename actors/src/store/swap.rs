//! Puts staged projects in the place of others by renames, so that what a crash interrupts is finished by the next start.
//!
//! Before the first rename, a file says durably what is to be done: from then on a crash does not undo it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::disk::{self, create_directory, create_file, fsync_directory};

/// Directory of a home that keeps what a restore replaced.
pub const ASIDE: &str = "aside";
/// How the directory of a restore under way begins.
const STAGING_PREFIX: &str = ".restore-";
/// File of such a directory that says what is to be done. Its being there means that it will be.
const INTENT_FILE: &str = "intent.json";

/// The home that a knowledge directory belongs to.
pub(crate) fn home_of(knowledge_dir: &Path) -> PathBuf {
    knowledge_dir.parent().unwrap_or(knowledge_dir).to_path_buf()
}

/// What is to be renamed. Written before the first rename.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Intent {
    /// Name of the directory below `aside/` for what is replaced.
    pub(super) aside: String,
    pub(super) projects: Vec<String>,
}

impl Intent {
    pub(super) fn write(&self, staging: &Path) -> io::Result<()> {
        let draft = staging.join("intent.draft");
        let mut file = create_file(&draft)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&draft, staging.join(INTENT_FILE))?;
        fsync_directory(staging)
    }

    pub(super) fn read(staging: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(staging.join(INTENT_FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remove(staging: &Path) -> io::Result<()> {
        match std::fs::remove_file(staging.join(INTENT_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fsync_directory(staging),
        }
    }
}

/// The directory of a restore under way. Removed when the restore ends, unless something is left to finish.
pub(super) struct Staging {
    pub(super) path: PathBuf,
    pub(super) unfinished: bool,
}

impl Staging {
    pub(super) fn new(knowledge: &Path) -> io::Result<Self> {
        let path = knowledge.join(format!("{STAGING_PREFIX}{:08x}", rand::random::<u32>()));
        create_directory(&path)?;
        Ok(Self {
            path,
            unfinished: false,
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.unfinished {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "what a restore left could not be removed, the next start tries again");
        }
    }
}

/// Notes what is to be done, does it, and where that fails undoes it. Where the old directories are now.
pub(super) fn swap_or_undo(staging: &mut Staging, knowledge: &Path, intent: &Intent) -> KnowledgeResult<Vec<PathBuf>> {
    // A panic leaves all of it to the next start.
    staging.unfinished = true;
    let mut unfinished = false;
    let swapped = try_swap(&staging.path, &mut unfinished, knowledge, intent);
    staging.unfinished = unfinished;
    swapped
}

/// `unfinished` becomes true where the next start has to go on.
fn try_swap(staging: &Path, unfinished: &mut bool, knowledge: &Path, intent: &Intent) -> KnowledgeResult<Vec<PathBuf>> {
    let failed = |error: &io::Error| {
        KnowledgeError::internal(format!(
            "the restored projects could not be put in place ({error}); nothing was changed"
        ))
    };
    let halfway = |error: &io::Error, second: &io::Error| {
        KnowledgeError::internal(format!(
            "the restore stopped halfway ({error}; {second}); start the daemon again, it then finishes the restore"
        ))
    };
    if let Err(error) = intent.write(staging) {
        // It may be there all the same, and would be carried out.
        let removed = Intent::remove(staging);
        *unfinished = removed.is_err();
        return Err(removed.map_or_else(|second| halfway(&error, &second), |()| failed(&error)));
    }
    fail::fail_point!("restore::intended", |_| {
        *unfinished = true;
        Err(KnowledgeError::internal("failpoint restore::intended"))
    });
    let mut renames = Vec::new();
    let swapped = swap(staging, knowledge, intent, &mut renames);
    let outcome = match swapped {
        Ok(kept) => Ok(kept),
        Err(error) => {
            let undone = renames.iter().rev().try_for_each(|(from, to)| {
                std::fs::rename(to, from)?;
                from.parent().map_or(Ok(()), fsync_directory)
            });
            match undone {
                Ok(()) => Err(error),
                Err(second) => {
                    *unfinished = true;
                    return Err(halfway(&error, &second));
                }
            }
        }
    };
    match (outcome, Intent::remove(staging)) {
        (outcome, Ok(())) => outcome.map_err(|error| failed(&error)),
        (Err(error), Err(second)) => {
            *unfinished = true;
            Err(halfway(&error, &second))
        }
        (Ok(kept), Err(error)) => {
            // The next start does it again, which does nothing where all is in place.
            *unfinished = true;
            tracing::warn!(%error, "what a restore left could not be removed, the next start tries again");
            Ok(kept)
        }
    }
}

/// Puts every staged project in its place and what was there aside. Can be repeated: what is done already is
/// passed over. Each rename is durable before the next.
fn swap(
    staging: &Path,
    knowledge: &Path,
    intent: &Intent,
    renames: &mut Vec<(PathBuf, PathBuf)>,
) -> io::Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    for project in &intent.projects {
        let (fresh, place) = (staging.join(project), knowledge.join(project));
        if std::fs::symlink_metadata(&fresh).is_err() {
            continue;
        }
        if std::fs::symlink_metadata(&place).is_ok() {
            let aside = aside_root(knowledge)?.join(&intent.aside);
            create_directory(&aside)?;
            aside.parent().map_or(Ok(()), fsync_directory)?;
            let old = unused(aside.join(project));
            std::fs::rename(&place, &old)?;
            renames.push((place.clone(), old.clone()));
            kept.push(old);
            fsync_directory(&aside)?;
            fsync_directory(knowledge)?;
        }
        std::fs::rename(&fresh, &place)?;
        renames.push((fresh, place));
        fsync_directory(knowledge)?;
        fsync_directory(staging)?;
    }
    Ok(kept)
}

/// The directory for what is replaced: in the home, or among the projects where these lie on a file system of
/// their own, for a rename cannot leave it.
fn aside_root(knowledge: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let home = home_of(knowledge);
    let same_file_system = std::fs::metadata(&home)?.dev() == std::fs::metadata(knowledge)?.dev();
    let root = if same_file_system {
        home.join(ASIDE)
    } else {
        knowledge.join(format!(".{ASIDE}"))
    };
    create_directory(&root)?;
    root.parent().map_or(Ok(()), fsync_directory)?;
    Ok(root)
}

/// `path`, or it with a number where that is taken.
fn unused(path: PathBuf) -> PathBuf {
    let mut candidate = path.clone();
    let mut number = 2;
    while std::fs::symlink_metadata(&candidate).is_ok() {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!("-{number}"));
        candidate = path.with_file_name(name);
        number += 1;
    }
    candidate
}

/// What became of the interrupted restores, a sentence each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finished {
    /// What was finished.
    pub(crate) done: Vec<String>,
    /// What could not be, and is tried again by the next start.
    pub(crate) failed: Vec<String>,
    /// The projects that the next start will put in place. What is written to them before would be moved aside.
    pub(crate) awaited: Vec<ProjectName>,
}

/// Finishes the restores that a crash interrupted, and removes what those left that had not begun to change
/// anything. Runs before the store knows a project.
pub(crate) fn finish_interrupted(knowledge: &Path) -> Finished {
    let mut finished = Finished::default();
    let stagings = match disk::entries(knowledge) {
        Ok(entries) => entries,
        Err(error) => {
            finished.failed.push(error.to_string());
            return finished;
        }
    };
    for staging in stagings {
        let name = staging.file_name().unwrap_or_default().to_string_lossy();
        let is_no_directory = std::fs::metadata(&staging).is_ok_and(|found| !found.is_dir());
        if !name.starts_with(STAGING_PREFIX) || is_no_directory {
            continue;
        }
        match finish(&staging, knowledge) {
            Ok(told) => finished.done.extend(told),
            Err(error) => {
                let what = format!(
                    "the restore in {} could not be finished ({error}), so some of its projects may be missing or as \
                     before it; the next start tries again, or move that directory away and restore again",
                    staging.display()
                );
                tracing::error!("{what}");
                finished.failed.push(what);
                if !matches!(Intent::read(&staging), Ok(None)) {
                    finished.awaited.extend(staged_projects(&staging));
                }
            }
        }
    }
    finished
}

/// The projects that still wait in the directory of a restore.
fn staged_projects(staging: &Path) -> Vec<ProjectName> {
    let entries = disk::entries(staging).unwrap_or_else(|error| {
        tracing::error!(%error, "the projects of an unfinished restore are not known");
        Vec::new()
    });
    let names = entries
        .iter()
        .filter(|entry| std::fs::metadata(entry).map_or(true, |found| found.is_dir()));
    names
        .filter_map(|entry| ProjectName::parse(entry.file_name()?.to_str()?, "project_id").ok())
        .collect()
}

fn finish(staging: &Path, knowledge: &Path) -> io::Result<Option<String>> {
    let mut told = None;
    if let Some(intent) = Intent::read(staging)? {
        let kept = swap(staging, knowledge, &intent, &mut Vec::new())?;
        let mut what = format!(
            "a restore of {} was interrupted and was finished",
            intent.projects.join(", ")
        );
        if !kept.is_empty() {
            let kept: Vec<String> = kept.iter().map(|path| path.display().to_string()).collect();
            what.push_str(&format!("; what was there before is kept in {}", kept.join(", ")));
        }
        tracing::warn!("{what}");
        told = Some(what);
        Intent::remove(staging)?;
    }
    std::fs::remove_dir_all(staging)?;
    fsync_directory(knowledge)?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A home whose projects hold one file each, which says what they are.
    struct Home(tempfile::TempDir);

    impl Home {
        fn new(projects: &[&str]) -> Self {
            let home = Self(tempfile::tempdir().unwrap());
            create_directory(&home.knowledge()).unwrap();
            for project in projects {
                mark(&home.knowledge().join(project), "old");
            }
            home
        }

        fn knowledge(&self) -> PathBuf {
            self.0.path().join("knowledge")
        }

        fn staging(&self) -> PathBuf {
            self.knowledge().join(".restore-00000001")
        }

        fn aside(&self, project: &str) -> PathBuf {
            self.0.path().join("aside/t").join(project)
        }

        /// A restore of `projects` that has come as far as `renames`.
        fn interrupted(&self, projects: &[&str], renames: usize) {
            for project in projects {
                mark(&self.staging().join(project), "new");
            }
            let intent = intent(projects);
            intent.write(&self.staging()).unwrap();
            let mut left = renames;
            for project in projects {
                let place = self.knowledge().join(project);
                if left > 0 && place.exists() {
                    create_directory(&self.0.path().join("aside/t")).unwrap();
                    std::fs::rename(&place, self.aside(project)).unwrap();
                    left -= 1;
                }
                if left > 0 {
                    std::fs::rename(self.staging().join(project), &place).unwrap();
                    left -= 1;
                }
            }
            assert_eq!(left, 0);
        }

        fn held(&self, project: &str) -> Option<String> {
            read_mark(&self.knowledge().join(project))
        }
    }

    fn intent(projects: &[&str]) -> Intent {
        Intent {
            aside: "t".to_owned(),
            projects: projects.iter().map(|project| (*project).to_owned()).collect(),
        }
    }

    fn mark(directory: &Path, what: &str) {
        create_directory(directory).unwrap();
        std::fs::write(directory.join("mark"), what).unwrap();
    }

    fn read_mark(directory: &Path) -> Option<String> {
        std::fs::read_to_string(directory.join("mark")).ok()
    }

    #[test]
    fn a_restore_that_had_not_begun_leaves_nothing() {
        let home = Home::new(&["a"]);
        mark(&home.staging().join("a"), "new");
        // A draft is not yet an intent.
        std::fs::write(home.staging().join("intent.draft"), "{").unwrap();
        assert!(finish_interrupted(&home.knowledge()).failed.is_empty());
        assert_eq!(home.held("a").as_deref(), Some("old"));
        assert!(!home.staging().exists() && !home.0.path().join("aside").exists());
    }

    #[test]
    fn a_restore_is_finished_from_wherever_it_was_interrupted() {
        // Two renames for each project that was there, one for each that was not.
        for renames in 0..=5 {
            let home = Home::new(&["a", "b", "untouched"]);
            home.interrupted(&["a", "b", "c"], renames);
            let Finished {
                done: told,
                failed,
                awaited,
            } = finish_interrupted(&home.knowledge());
            assert_eq!((failed, awaited), (Vec::<String>::new(), Vec::new()));
            assert!(told.len() == 1 && told[0].contains("a, b, c"), "{told:?}");
            for project in ["a", "b", "c"] {
                assert_eq!(home.held(project).as_deref(), Some("new"), "{project} after {renames}");
            }
            for project in ["a", "b"] {
                assert_eq!(read_mark(&home.aside(project)).as_deref(), Some("old"), "{renames}");
            }
            assert!(!home.aside("c").exists());
            assert_eq!(home.held("untouched").as_deref(), Some("old"));
            assert!(!home.staging().exists());
            // Once is enough, and again does nothing.
            assert!(finish_interrupted(&home.knowledge()).done.is_empty());
            assert_eq!(home.held("a").as_deref(), Some("new"));
        }
    }

    #[test]
    fn what_was_done_before_is_not_done_again() {
        // All was in place, only the intent was left; then the project went on, and another one was removed.
        let home = Home::new(&[]);
        home.interrupted(&["a", "b"], 2);
        mark(&home.knowledge().join("a"), "newer");
        std::fs::remove_dir_all(home.knowledge().join("b")).unwrap();
        assert!(finish_interrupted(&home.knowledge()).failed.is_empty());
        assert_eq!(home.held("a").as_deref(), Some("newer"));
        assert_eq!(home.held("b"), None);
    }

    #[test]
    fn a_damaged_intent_is_told_and_nothing_is_touched() {
        let home = Home::new(&["a"]);
        home.interrupted(&["a"], 0);
        std::fs::write(home.staging().join(INTENT_FILE), "{").unwrap();
        let finished = finish_interrupted(&home.knowledge());
        assert!(finished.done.is_empty());
        assert!(finished.failed[0].contains(".restore-00000001"), "{finished:?}");
        assert_eq!(finished.awaited, [ProjectName::parse("a", "project_id").unwrap()]);
        assert_eq!(home.held("a").as_deref(), Some("old"));
        assert_eq!(read_mark(&home.staging().join("a")).as_deref(), Some("new"));
    }

    #[test]
    fn what_fails_halfway_is_undone() {
        let home = Home::new(&["a", "b"]);
        for project in ["a", "b"] {
            mark(&home.staging().join(project), "new");
        }
        // The second project's old directory cannot be put aside: its place is a file's.
        let mut staging = Staging {
            path: home.staging(),
            unfinished: false,
        };
        let blocked = Intent {
            aside: "t".to_owned(),
            projects: vec!["a".to_owned(), "b/mark".to_owned()],
        };
        std::fs::write(home.staging().join("b/mark"), "new").unwrap();
        create_directory(&home.0.path().join("aside/t")).unwrap();
        let error = swap_or_undo(&mut staging, &home.knowledge(), &blocked).unwrap_err();
        assert!(error.to_string().contains("nothing was changed"), "{error}");
        assert_eq!(home.held("a").as_deref(), Some("old"));
        assert_eq!(home.held("b").as_deref(), Some("old"));
        assert!(!staging.unfinished && !home.staging().join(INTENT_FILE).exists());
    }

    #[test]
    fn nothing_that_was_kept_aside_is_overwritten() {
        let home = Home::new(&["a"]);
        mark(&home.aside("a"), "older");
        home.interrupted(&["a"], 0);
        assert!(finish_interrupted(&home.knowledge()).failed.is_empty());
        assert_eq!(read_mark(&home.aside("a")).as_deref(), Some("older"));
        assert_eq!(read_mark(&home.aside("a-2")).as_deref(), Some("old"));
    }
}
