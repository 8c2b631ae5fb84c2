//! What lies in the data directory: the projects, and what is not a project.
//!
//! Whatever lies there, the daemon starts. What cannot be a project is left alone and reported; what is a project and
//! cannot be read is known all the same, so that each use of it says why.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lance_table::io::commit::ManifestNamingScheme;

use crate::domain::{PROBE_PREFIX, ProjectName};
use crate::store::disk;
use crate::store::error::lacks_descriptors;
use crate::store::table::{EMPTY_LINK, MEND_LINK, MOUNT, is_link, table_directory};

/// What is shown in place of a project's name where it may be any of them.
const ANY: &str = "*";

/// What to do about other things that are not served.
const MAKE_READABLE: &str = "make it a directory that this user can read";
const RENAME: &str = "rename the directory to use it";
const RENAME_TO: &str = "rename the directory to letters, digits, '.', '_' and '-'";
const REMOVE_LINK: &str = "remove the link";
const MOVE_AWAY: &str = "move it away";
const READ_AGAIN: &str = "it is read again with the next health check";

/// Something in the data directory that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftAside {
    /// Its name, if it is one that a project can have: using that name is refused.
    pub(crate) name: Option<String>,
    /// What it is called where projects are listed: its name on disk, or `*` where it may be any of them.
    pub(crate) shown: String,
    /// What it is, why it is not served, and what to do.
    pub(crate) reason: String,
    /// What to do, by itself.
    pub(crate) fix: &'static str,
    /// Whether it may hold knowledge: then it is reported wherever projects are (see [`super::inventory`]).
    pub(crate) holds_knowledge: bool,
    /// Whether it is a project, out of reach for now, and not something beside one.
    pub(crate) is_project: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) projects: Vec<ProjectName>,
    pub(crate) left_aside: Vec<LeftAside>,
}

/// A directory that may be a project's.
struct Candidate {
    name: ProjectName,
    directory: PathBuf,
    known: bool,
    /// Of the table's directory; none where it cannot be looked into.
    table: Option<Metadata>,
}

/// Looks through the data directory. Of names that differ only in case one is a project: the one that `is_known`, else
/// the one whose table this daemon has written, else the older one. Blocks for the reading of one directory.
pub(crate) fn look(knowledge: &Path, is_known: impl Fn(&ProjectName) -> bool) -> Found {
    let mut found = Found::default();
    let entries = match fs::read_dir(knowledge) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return found,
        Err(error) if lacks_descriptors(&error) => {
            tracing::warn!(%error, "the data directory cannot be looked through now");
            return found;
        }
        Err(error) => {
            found.left_aside.push(LeftAside {
                name: None,
                shown: ANY.to_owned(),
                is_project: false,
                reason: format!(
                    "{} cannot be read ({error}), so no project is known; {MAKE_READABLE}",
                    knowledge.display()
                ),
                fix: MAKE_READABLE,
                holds_knowledge: true,
            });
            return found;
        }
    };
    let mut candidates: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                found.left_aside.push(unlisted(knowledge, &error));
                continue;
            }
        };
        match candidate(&entry.path(), &is_known) {
            Some(Ok(candidate)) => candidates.entry(candidate.name.folded()).or_default().push(candidate),
            Some(Err(left_aside)) => found.left_aside.push(left_aside),
            None => {}
        }
    }

    let mut chosen = Vec::new();
    for mut alike in candidates.into_values() {
        if alike.len() > 1 {
            alike.sort_by_cached_key(|candidate| {
                let created = candidate.table.as_ref().and_then(|table| table.created().ok());
                (
                    !candidate.known,
                    !is_written_by_us(&candidate.directory),
                    created.unwrap_or(SystemTime::UNIX_EPOCH),
                    Reverse(candidate.name.to_string()),
                )
            });
        }
        let mut alike = alike.into_iter();
        let Some(first) = alike.next() else { continue };
        found.left_aside.extend(alike.map(|other| LeftAside {
            reason: format!(
                "{} is left aside: its name differs from that of project {} only in case; {RENAME}",
                other.directory.display(),
                first.name
            ),
            fix: RENAME,
            name: Some(other.name.to_string()),
            shown: other.name.to_string(),
            is_project: false,
            holds_knowledge: true,
        }));
        chosen.push(first);
    }

    // A directory that links make appear under several names is one project: two would write it behind each other's
    // back.
    chosen.sort_by_cached_key(|candidate| {
        let is_link = is_link(&candidate.directory);
        (!candidate.known, is_link, candidate.name.to_string())
    });
    let mut places: HashMap<(u64, u64), ProjectName> = HashMap::new();
    for candidate in chosen {
        if let Some(table) = &candidate.table {
            let place = (table.dev(), table.ino());
            if let Some(project) = places.get(&place) {
                found.left_aside.push(LeftAside {
                    reason: format!(
                        "{} is left aside: it is the directory of project {project} under another name; {REMOVE_LINK}",
                        candidate.directory.display()
                    ),
                    fix: REMOVE_LINK,
                    name: Some(candidate.name.to_string()),
                    shown: candidate.name.to_string(),
                    is_project: false,
                    holds_knowledge: false,
                });
                continue;
            }
            places.insert(place, candidate.name.clone());
        }
        found.projects.push(candidate.name);
    }
    found
}

/// What an entry of the data directory is: maybe a project, something that is left aside, or nothing to speak of.
fn candidate(path: &Path, is_known: &impl Fn(&ProjectName) -> bool) -> Option<Result<Candidate, LeftAside>> {
    let file_name = path.file_name()?;
    if file_name.as_encoded_bytes().starts_with(b".") {
        return None; // Of the daemon itself; no caller's project is named so.
    }
    let name = file_name
        .to_str()
        .and_then(|name| ProjectName::parse(name, "project_id").ok());
    let table = fs::metadata(table_directory(path));
    let Some(name) = name else {
        return table.is_ok().then(|| {
            Err(LeftAside {
                name: None,
                shown: file_name.to_string_lossy().into_owned(),
                is_project: false,
                reason: format!(
                    "{} is left aside: no project can have that name; {RENAME_TO}",
                    path.display()
                ),
                fix: RENAME_TO,
                holds_knowledge: true,
            })
        });
    };
    let left_aside = |what: &str, fix: &'static str, is_project: bool| {
        Some(Err(LeftAside {
            name: Some(name.to_string()),
            shown: name.to_string(),
            reason: format!("{} is left aside: {what}; {fix}", path.display()),
            fix,
            holds_knowledge: is_project,
            is_project,
        }))
    };
    let table = match table {
        Ok(table) if table.is_dir() => Some(table),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if is_link(path) && fs::metadata(path).is_err() {
                return left_aside("it is a link to nothing", MEND_LINK, true);
            }
            if is_link(path) && !is_link(&table_directory(path)) {
                return left_aside(&format!("it is {EMPTY_LINK}"), MOUNT, true);
            }
            if !is_link(&table_directory(path)) {
                return None; // Nothing was stored in it yet.
            }
            None // A table that is out of reach; who opens it is told so.
        }
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return left_aside("it is a file where a project's directory is expected", MOVE_AWAY, false);
        }
        // It may hold knowledge; who opens it is told what is wrong.
        Ok(_) | Err(_) => None,
    };
    Some(Ok(Candidate {
        known: is_known(&name),
        directory: path.to_path_buf(),
        name,
        table,
    }))
}

/// Entries of the data directory that the system did not name.
fn unlisted(knowledge: &Path, error: &std::io::Error) -> LeftAside {
    LeftAside {
        name: None,
        shown: ANY.to_owned(),
        is_project: false,
        reason: format!(
            "{} cannot be read to its end ({error}), so projects in it may be unknown; {READ_AGAIN}",
            knowledge.display()
        ),
        fix: READ_AGAIN,
        holds_knowledge: true,
    }
}

/// Whether this daemon has written the table, and not the old tool, which names versions otherwise. One that cannot be
/// looked into counts as ours: it is not passed over for another of its name.
fn is_written_by_us(project_directory: &Path) -> bool {
    let Ok(entries) = disk::entries(&table_directory(project_directory).join("_versions")) else {
        return true;
    };
    let names = entries.iter().filter_map(|entry| entry.file_name()?.to_str());
    names
        .filter_map(ManifestNamingScheme::detect_scheme)
        .any(|scheme| scheme == ManifestNamingScheme::V2)
}

/// Removes what health probes have left that are not `in_use`. What cannot be removed is tried again by the next.
pub(crate) fn remove_left_probes(knowledge: &Path, in_use: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(knowledge).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PROBE_PREFIX)) else {
            continue;
        };
        if in_use(name) {
            continue;
        }
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
            _ => fs::remove_file(entry.path()),
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %entry.path().display(), %error, "what a health probe left cannot be removed");
            }
            _ => tracing::info!(path = %entry.path().display(), "what a health probe left was removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::store::table::holds_table;

    /// A directory of projects: each with a table of this daemon or, where the name ends with `~`, of the old tool.
    fn knowledge(projects: &[&str]) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        for project in projects {
            let (name, manifest) = match project.strip_suffix('~') {
                Some(name) => (name, "1.manifest"),
                None => (*project, "18446744073709551614.manifest"),
            };
            let versions = table_directory(&home.path().join(name)).join("_versions");
            fs::create_dir_all(&versions).unwrap();
            fs::write(versions.join(manifest), "").unwrap();
        }
        home
    }

    fn names(found: &Found) -> Vec<&str> {
        let mut names: Vec<&str> = found.projects.iter().map(ProjectName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn of_names_that_differ_in_case_one_is_a_project() {
        let home = knowledge(&["Web~", "web", "API", "api", "other"]);
        let found = look(home.path(), |name| name.as_str() == "API");
        assert_eq!(names(&found), ["API", "other", "web"]);
        assert_eq!(found.left_aside.len(), 2);
        assert!(found.left_aside.iter().all(|left| left.holds_knowledge), "{found:?}");
        let told = format!("{:?}", found.left_aside);
        assert!(
            told.contains("Web is left aside") && told.contains("project API"),
            "{told}"
        );
        // The same at each start.
        for _ in 0..3 {
            assert_eq!(
                names(&look(home.path(), |_| false)),
                names(&look(home.path(), |_| false))
            );
        }
    }

    #[test]
    fn what_is_no_project_is_told_of_and_in_nobodys_way() {
        let home = knowledge(&["web", "not a name", ".health-x"]);
        let at = |name: &str| home.path().join(name);
        fs::write(at("notes.txt"), "").unwrap();
        fs::write(at(".DS_Store"), "").unwrap();
        fs::create_dir(at("empty")).unwrap();
        symlink(at("gone"), at("dangling")).unwrap();
        symlink(at("web"), at("again")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();
        fs::create_dir(at("strange")).unwrap();
        fs::write(table_directory(&at("strange")), "").unwrap();
        let found = look(home.path(), |_| false);
        // A table that is a file, and a link that leads to itself, are known, so that using them says what is wrong.
        assert_eq!(names(&found), ["loop", "strange", "web"]);
        let mut left: Vec<(Option<&str>, bool)> = found
            .left_aside
            .iter()
            .map(|left| (left.name.as_deref(), left.holds_knowledge))
            .collect();
        left.sort_unstable();
        let expected = [
            (None, true),
            (Some("again"), false),
            (Some("dangling"), true),
            (Some("notes.txt"), false),
        ];
        assert_eq!(left, expected);
        assert!(holds_table(&at("web")).unwrap() && !holds_table(&at("empty")).unwrap());
        for out_of_reach in ["strange", "loop", "dangling"] {
            assert!(holds_table(&at(out_of_reach)).is_err(), "{out_of_reach}");
        }

        let none = look(&at("nowhere"), |_| false);
        assert!(none.projects.is_empty() && none.left_aside.is_empty());
        let no_directory = look(&at("notes.txt"), |_| false);
        assert!(no_directory.left_aside[0].holds_knowledge);
    }

    #[test]
    fn only_left_probes_are_removed() {
        let home = knowledge(&["web", ".health-1", ".health-2", ".other"]);
        remove_left_probes(home.path(), |name| name == ".health-2");
        let mut left: Vec<String> = fs::read_dir(home.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".health-2", ".other", "web"]);
    }
}
