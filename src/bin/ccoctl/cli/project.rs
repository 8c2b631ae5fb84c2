//! The project of a command without `--project`.
//!
//! A project is a repository: all worktrees of one share its git common directory and so its project. The name is the
//! repository's base name, because people type it. The first repository to use a name keeps it, and another one of the
//! same name gets a suffix made from its path, so two checkouts called `api` never mix their knowledge. Claims are kept
//! in `$CCO_HOME/projects.json`; if they cannot be read, no project is guessed.
//!
//! Git's files are read directly: spawning `git` would cost more than the whole request.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use ccod_protocol::api::{DEFAULT_PROJECT, PROJECT_NAME_MAX};

use super::output;
use super::state_file::{Found, StateFile};
use ccod::program::exit::{CliError, CliResult, Exit};

/// Hex digits of the path's hash that tell repositories of one name apart.
const SUFFIX_DIGITS: usize = 6;

/// The project of the directory `start`, claiming its name in `home`.
///
/// # Errors
/// 78 when the project is not known: a guess could be the name of another repository.
pub(crate) fn detect(home: &Path, start: &Path) -> CliResult<String> {
    let repository = git_common_dir(start).map_err(|problem| {
        CliError::new(
            Exit::Config,
            format!("the repository of {} cannot be determined: {problem}", start.display()),
        )
        .fix("name the project with --project, or mend the repository (`git status` says what git thinks of it)")
    })?;
    let Some(repository) = repository else {
        // No repository can claim it.
        return Ok(DEFAULT_PROJECT.to_owned());
    };
    let file = StateFile::at(home.join("projects.json"));
    let found = read_claims(&file)?;
    if let Some(reason) = &found.mended
        && io::stderr().is_terminal()
    {
        output::message(reason);
    }
    let own = found.claims.own_of(&repository);
    match own {
        Some(name) if found.mended.is_none() => return Ok(name.to_owned()),
        _ => {}
    }
    match (claim(home, &file, &repository), own) {
        (Ok(claimed), _) => claimed,
        // A home that cannot be written to (a sandbox): the name is known, only the file is not mended.
        (Err(_), Some(name)) => Ok(name.to_owned()),
        // Unless it is recorded, the next repository would get the name as well.
        (Err(error), None) => Err(CliError::new(
            Exit::Config,
            format!(
                "{} cannot be written ({error}); it says which repository has which project, and {} is not in it yet",
                file.path().display(),
                repository.display()
            ),
        )
        .fix(
            "name the project with --project, or run the command once where that can be written: outside of the \
             sandbox, with a free disk",
        )),
    }
}

/// `path`, with the system's error.
fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}

/// The file at `path`, links followed. A path without a file is not an error; a link that leads nowhere is, for its
/// target may be on a disk that is not mounted now.
fn look(path: &Path) -> Result<Option<std::fs::Metadata>, String> {
    match path.metadata() {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if is_absence(&error) => match path.symlink_metadata() {
            Err(error) if is_absence(&error) => Ok(None),
            Ok(_) => Err(format!("{} is a link to nothing", path.display())),
            Err(error) => Err(unreadable(path, &error)),
        },
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The git common directory of the repository that holds `start`, canonical, as
/// `git rev-parse --git-common-dir` finds it. None outside of a repository.
///
/// # Errors
/// When a repository is there, or may be, and cannot be read.
fn git_common_dir(start: &Path) -> Result<Option<PathBuf>, String> {
    let start = match start.canonicalize() {
        Ok(start) => start,
        // A directory that was removed meanwhile belongs to no repository.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(start, &error)),
    };
    for directory in start.ancestors() {
        let dot_git = directory.join(".git");
        let git_dir = if look(&dot_git)?.is_some_and(|found| found.is_file()) {
            // A linked worktree or a submodule: the file names the real directory.
            let text = std::fs::read_to_string(&dot_git).map_err(|error| unreadable(&dot_git, &error))?;
            let target = text
                .strip_prefix("gitdir:")
                .ok_or_else(|| format!("{} is a file that names no repository", dot_git.display()))?
                .trim_end_matches(['\n', '\r'])
                .trim_start();
            directory.join(target)
        } else if is_git_dir(&dot_git)? {
            dot_git
        } else if is_git_dir(directory)? {
            // A bare repository, or a place inside `.git` itself.
            directory.to_owned()
        } else {
            continue;
        };
        return common_dir_of(&git_dir).map(Some);
    }
    Ok(None)
}

/// The directory that a worktree shares with the others of its repository.
fn common_dir_of(git_dir: &Path) -> Result<PathBuf, String> {
    let shared = git_dir.join("commondir");
    let common = match std::fs::read_to_string(&shared) {
        Ok(text) => git_dir.join(text.trim_end_matches(['\n', '\r'])),
        Err(error) if is_absence(&error) => git_dir.to_owned(),
        Err(error) => return Err(unreadable(&shared, &error)),
    };
    common.canonicalize().map_err(|error| unreadable(&common, &error))
}

/// Whether a directory has what git itself expects of a repository.
fn is_git_dir(directory: &Path) -> Result<bool, String> {
    let head = directory.join("HEAD");
    match head.symlink_metadata() {
        Ok(_) => {}
        Err(error) if is_absence(&error) => return Ok(false),
        Err(error) => return Err(unreadable(&head, &error)),
    }
    let is = |name: &str, right: fn(&std::fs::Metadata) -> bool| {
        look(&directory.join(name)).map(|found| found.as_ref().is_some_and(right))
    };
    Ok(is("commondir", std::fs::Metadata::is_file)?
        || (is("objects", std::fs::Metadata::is_dir)? && is("refs", std::fs::Metadata::is_dir)?))
}

/// The base name of a repository: of the directory that holds `.git`, or of a bare repository without `.git`.
fn base_name(common_dir: &Path) -> String {
    let name_of = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let own_name = name_of(common_dir);
    let base = match own_name.as_str() {
        ".git" => common_dir.parent().map(name_of).unwrap_or_default(),
        bare => bare.strip_suffix(".git").unwrap_or(bare).to_owned(),
    };
    sanitise(&base)
}

/// `name` with the characters replaced that a project's name cannot have; empty if nothing is left.
fn sanitise(name: &str) -> String {
    let replaced: String = name
        .chars()
        .map(|character| match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => character,
            _ => '-',
        })
        .collect();
    let trimmed = replaced
        .trim_start_matches(|character: char| !character.is_ascii_alphanumeric())
        .trim_end_matches('-');
    // Only ASCII is left, so every index is a boundary.
    trimmed[..trimmed.len().min(PROJECT_NAME_MAX)].to_owned()
}

/// Which repository has which name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    /// Path of the git common directory by the project's name.
    claims: BTreeMap<String, String>,
}

impl Claims {
    fn holder(&self, name: &str) -> Option<&str> {
        // Names equal but for case are one name to the daemon.
        self.claims
            .iter()
            .find(|(claimed, _)| claimed.eq_ignore_ascii_case(name))
            .map(|(_, path)| path.as_str())
    }

    /// The name that `repository` has already.
    fn own_of(&self, repository: &Path) -> Option<&str> {
        let path = repository.to_string_lossy();
        self.claims
            .iter()
            .find(|(_, holder)| **holder == *path)
            .map(|(name, _)| name.as_str())
    }

    fn name_for(&self, repository: &Path) -> String {
        if let Some(name) = self.own_of(repository) {
            return name.to_owned();
        }
        let base = base_name(repository);
        let reserved = DEFAULT_PROJECT.eq_ignore_ascii_case(&base);
        if !base.is_empty() && !reserved && self.holder(&base).is_none() {
            return base;
        }
        let digest = format!("{:x}", Sha256::digest(repository.as_os_str().as_bytes()));
        let base = if base.is_empty() { "project" } else { base.as_str() };
        let with_digits = |digits: usize| {
            let kept = base.len().min(PROJECT_NAME_MAX - digits - 1);
            format!("{}-{}", &base[..kept], &digest[..digits])
        };
        // A repository may have the very name that another one gets with its digits.
        (SUFFIX_DIGITS..=digest.len())
            .map(with_digits)
            .find(|name| self.holder(name).is_none())
            .unwrap_or_else(|| with_digits(digest.len()))
    }
}

/// The claims as found.
struct FoundClaims {
    claims: Claims,
    /// Why the claims come from the copy, if they do.
    mended: Option<String>,
}

fn read_claims(file: &StateFile) -> CliResult<FoundClaims> {
    let path = file.path().display();
    let found = file.read().map_err(|error| {
        CliError::new(
            Exit::Config,
            format!("{path} cannot be read ({error}); it says which repository has which project"),
        )
        .fix("name the project with --project, or make the file readable")
    })?;
    match found {
        Found::Nothing => Ok(FoundClaims {
            claims: Claims::default(),
            mended: None,
        }),
        Found::Sound(claims) => Ok(FoundClaims { claims, mended: None }),
        Found::Copy(claims, reason) => Ok(FoundClaims {
            claims,
            mended: Some(format!(
                "{path} {reason}; its copy {} is used instead",
                file.copy_path().display()
            )),
        }),
        Found::Damaged(reason) => Err(CliError::new(
            Exit::Config,
            format!("{path} {reason}; it says which repository has which project, so none can be chosen"),
        )
        .fix(format!(
            "name the project with --project, or put the file back from a backup; without one, remove it and {}: then \
             the next repository of each name gets the project of that name",
            file.copy_path().display()
        ))),
    }
}

/// The name of `repository`, recorded. The outer error is one of writing.
fn claim(home: &Path, file: &StateFile, repository: &Path) -> io::Result<CliResult<String>> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home)?;
    let _lock = file.lock()?;
    // Read again under the lock: another command may have claimed the name meanwhile.
    let mut claims = match read_claims(file) {
        Ok(found) => found.claims,
        Err(error) => return Ok(Err(error)),
    };
    let name = claims.name_for(repository);
    claims
        .claims
        .insert(name.clone(), repository.to_string_lossy().into_owned());
    file.write(&claims)?;
    Ok(Ok(name))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn detect(home: &Path, start: &Path) -> String {
        super::detect(home, start).expect("a project")
    }

    fn claims_path(home: &Path) -> PathBuf {
        home.join("projects.json")
    }

    fn git(directory: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(directory)
            // A commit hook may run the tests: its repository is not the one under test.
            .env_remove("GIT_DIR")
            .env_remove("GIT_WORK_TREE")
            .env_remove("GIT_INDEX_FILE")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .args(["-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"])
            .args(arguments)
            .output()
            .expect("git runs");
        assert!(
            output.status.success(),
            "git {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("utf-8").trim().to_owned()
    }

    fn repository(path: &Path) {
        std::fs::create_dir_all(path).expect("directory");
        git(path, &["init", "-q"]);
        git(path, &["commit", "-q", "--allow-empty", "-m", "first"]);
    }

    /// What git says, to compare with.
    fn git_says(directory: &Path) -> PathBuf {
        PathBuf::from(git(
            directory,
            &["rev-parse", "--path-format=absolute", "--git-common-dir"],
        ))
        .canonicalize()
        .expect("exists")
    }

    #[test]
    fn worktrees_subdirectories_and_the_repository_agree() {
        let root = tempfile::tempdir().expect("tempdir");
        let main = root.path().join("statushub");
        repository(&main);
        let worktree = root.path().join("fix-login");
        git(&main, &["worktree", "add", "-q", worktree.to_str().expect("utf-8")]);
        let nested = worktree.join("src/deep");
        std::fs::create_dir_all(&nested).expect("directory");
        let inside = main.join(".git/objects");
        let home = root.path().join("home");
        for place in [&main, &worktree, &nested, &inside] {
            assert_eq!(git_common_dir(place), Ok(Some(git_says(place))), "{}", place.display());
            assert_eq!(detect(&home, place), "statushub");
        }
    }

    #[test]
    fn bare_repositories_and_submodules_have_their_own_name() {
        let root = tempfile::tempdir().expect("tempdir");
        let library = root.path().join("library");
        repository(&library);
        let bare = root.path().join("mirror.git");
        git(
            root.path(),
            &["clone", "-q", "--bare", "library", bare.to_str().expect("utf-8")],
        );
        let parent = root.path().join("parent");
        repository(&parent);
        git(
            &parent,
            &[
                "submodule",
                "--quiet",
                "add",
                library.to_str().expect("utf-8"),
                "vendored",
            ],
        );
        let home = root.path().join("home");
        assert_eq!(detect(&home, &bare), "mirror");
        let submodule = parent.join("vendored");
        assert_eq!(git_common_dir(&submodule), Ok(Some(git_says(&submodule))));
        assert_eq!(detect(&home, &submodule), "vendored");
        assert_eq!(detect(&home, &parent), "parent");
    }

    #[test]
    fn a_second_repository_of_a_name_gets_a_suffix_and_keeps_it() {
        let root = tempfile::tempdir().expect("tempdir");
        let first = root.path().join("one/api");
        let second = root.path().join("two/API");
        repository(&first);
        repository(&second);
        let home = root.path().join("home");
        assert_eq!(detect(&home, &first), "api");
        let name = detect(&home, &second);
        assert_eq!(name.len(), "API-".len() + SUFFIX_DIGITS);
        assert!(name.starts_with("API-"), "{name}");
        assert_eq!(detect(&home, &second), name);
        assert_eq!(detect(&home, &first), "api");
        use std::os::unix::fs::PermissionsExt;
        let mode = claims_path(&home).metadata().expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn damaged_claims_are_not_guessed_at() {
        let root = tempfile::tempdir().expect("tempdir");
        let (first, second) = (root.path().join("one/api"), root.path().join("two/api"));
        repository(&first);
        repository(&second);
        let home = root.path().join("home");
        let names = [detect(&home, &first), detect(&home, &second)];
        assert_ne!(names[0], names[1]);
        let (path, copy) = (claims_path(&home), home.join("projects.json.bak"));
        let whole = std::fs::read(&path).expect("read");
        let damages: [Option<&[u8]>; 5] = [
            None,
            Some(b""),
            Some(&[0; 64]),
            Some(&whole[..whole.len() - 4]),
            Some(b"{}"),
        ];
        let damage = |path: &Path, bytes: Option<&[u8]>| match bytes {
            Some(bytes) => std::fs::write(path, bytes).expect("written"),
            None => std::fs::remove_file(path).expect("removed"),
        };
        for bytes in damages {
            // The copy says the same, and the file is mended by it, whichever repository comes first.
            for places in [[&second, &first], [&first, &second]] {
                damage(&path, bytes);
                for place in places {
                    let expected = if place == &first { &names[0] } else { &names[1] };
                    assert_eq!(&detect(&home, place), expected, "{bytes:?}");
                }
                assert_eq!(std::fs::read(&path).expect("read"), whole);
            }
        }
        for bytes in damages.into_iter().flatten() {
            std::fs::write(&path, bytes).expect("written");
            std::fs::write(&copy, bytes).expect("written");
            for place in [&first, &second] {
                let error = super::detect(&home, place).expect_err("refused");
                assert_eq!(error.exit, Exit::Config);
                assert!(error.fix.is_some_and(|fix| fix.contains("--project")));
            }
            assert_eq!(
                std::fs::read(&path).expect("read"),
                bytes,
                "kept for whoever can mend it"
            );
        }
        let outside = root.path().join("outside");
        std::fs::create_dir(&outside).expect("directory");
        assert_eq!(detect(&home, &outside), "default");
    }

    fn refused(home: &Path, start: &Path) -> CliError {
        let error = super::detect(home, start).expect_err("refused");
        assert_eq!(error.exit, Exit::Config, "{error}");
        assert!(
            error.fix.as_deref().is_some_and(|fix| fix.contains("--project")),
            "{error}"
        );
        error
    }

    /// Files of git, as far as they are looked at.
    fn pretend_repository(path: &Path) {
        for part in ["objects", "refs"] {
            std::fs::create_dir_all(path.join(".git").join(part)).expect("directory");
        }
        std::fs::write(path.join(".git/HEAD"), "ref: refs/heads/main\n").expect("written");
    }

    #[test]
    fn a_claim_that_cannot_be_recorded_is_not_a_claim() {
        let root = tempfile::tempdir().expect("tempdir");
        let [known, new] = ["a/web", "b/web"].map(|name| root.path().join(name));
        for path in [&known, &new] {
            pretend_repository(path);
        }
        // What is in the way of the draft, and of the lock. Root may write into a directory that forbids it.
        for obstacle in ["projects.json.tmp", "projects.json.lock"] {
            let home = root.path().join(obstacle);
            std::fs::create_dir_all(home.join(obstacle)).expect("directory");
            for place in [&known, &new] {
                let error = refused(&home, place);
                assert!(error.message.contains(obstacle), "{error}");
            }
            std::fs::remove_dir(home.join(obstacle)).expect("removed");
            assert_eq!(detect(&home, &known), "web");
            // One's own is known without writing.
            if obstacle.ends_with("lock") {
                std::fs::remove_file(home.join(obstacle)).expect("removed");
            }
            std::fs::create_dir(home.join(obstacle)).expect("directory");
            assert_eq!(detect(&home, &known), "web");
            refused(&home, &new);
            // Also where only the copy says so.
            std::fs::write(claims_path(&home), "").expect("written");
            assert_eq!(detect(&home, &known), "web");
            refused(&home, &new);
        }
    }

    #[test]
    fn claims_behind_links_to_nothing_are_not_absent() {
        let root = tempfile::tempdir().expect("tempdir");
        let place = root.path().join("b/web");
        pretend_repository(&place);
        let home = root.path().join("home");
        std::fs::create_dir(&home).expect("directory");
        for (name, disk) in [("projects.json", "disk/p"), ("projects.json.bak", "disk/b")] {
            std::os::unix::fs::symlink(root.path().join(disk), home.join(name)).expect("linked");
        }
        refused(&home, &place);
        std::fs::remove_file(claims_path(&home)).expect("removed");
        refused(&home, &place);
        std::fs::remove_file(home.join("projects.json.bak")).expect("removed");
        assert_eq!(detect(&home, &place), "web");
    }

    #[test]
    fn a_repository_that_cannot_be_read_is_not_the_default_project() {
        let root = tempfile::tempdir().expect("tempdir");
        let home = root.path().join("home");
        let place = root.path().join("web");
        std::fs::create_dir(&place).expect("directory");
        let dot_git = place.join(".git");
        for text in [
            &b"gitdir: \xff\n"[..],
            b"",
            b"elsewhere\n",
            b"gitdir: ../gone/.git/worktrees/web\n",
        ] {
            std::fs::write(&dot_git, text).expect("written");
            let error = refused(&home, &place);
            assert!(error.message.contains("web"), "{error}");
        }
        std::fs::remove_file(&dot_git).expect("removed");
        for target in [".git", "/nowhere/web.git"] {
            std::os::unix::fs::symlink(target, &dot_git).expect("linked");
            refused(&home, &place);
            std::fs::remove_file(&dot_git).expect("removed");
        }
        pretend_repository(&place);
        std::fs::create_dir(dot_git.join("commondir")).expect("directory");
        refused(&home, &place);
        assert!(!home.exists());
    }

    #[test]
    fn a_name_with_digits_that_another_repository_has_is_not_shared() {
        let mut claims = Claims::default();
        claims.claims.insert("web".to_owned(), "/one/web/.git".to_owned());
        let path = Path::new("/two/web/.git");
        let usual = claims.name_for(path);
        claims.claims.insert(usual.clone(), format!("/three/{usual}/.git"));
        let other = claims.name_for(path);
        assert!(other.len() == usual.len() + 1 && other.starts_with(&usual), "{other}");
    }

    #[test]
    fn claims_at_the_same_moment_all_stay() {
        let root = tempfile::tempdir().expect("tempdir");
        let home = root.path().join("home");
        let places: Vec<PathBuf> = (0..12)
            .map(|number| root.path().join(format!("{number}/api")))
            .collect();
        for place in &places {
            repository(place);
        }
        let claimed: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = places
                .iter()
                .map(|place| scope.spawn(|| detect(&home, place)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("claimed"))
                .collect()
        });
        let different: std::collections::BTreeSet<&String> = claimed.iter().collect();
        assert_eq!(different.len(), places.len(), "{claimed:?}");
        for (place, name) in places.iter().zip(&claimed) {
            assert_eq!(&detect(&home, place), name);
        }
    }

    #[test]
    fn outside_a_repository_it_is_the_default_and_nothing_is_written() {
        let root = tempfile::tempdir().expect("tempdir");
        let home = root.path().join("home");
        // A `.git` that is not a repository does not count.
        std::fs::create_dir_all(root.path().join("plain/.git")).expect("directory");
        assert_eq!(detect(&home, &root.path().join("plain")), "default");
        assert!(!home.exists());
    }

    #[test]
    fn a_repository_called_default_does_not_take_the_default_project() {
        let claims = Claims::default();
        let name = claims.name_for(Path::new("/src/default/.git"));
        assert!(name.starts_with("default-"), "{name}");
    }

    #[test]
    fn names_become_valid() {
        assert_eq!(sanitise("my repo (old)"), "my-repo--old");
        assert_eq!(sanitise(".dotfiles"), "dotfiles");
        assert_eq!(sanitise("../evil"), "evil");
        assert_eq!(sanitise("a".repeat(140).as_str()).len(), PROJECT_NAME_MAX);
        assert_eq!(sanitise("知识"), "");
        let name = Claims::default().name_for(Path::new("/src/知识/.git"));
        assert!(name.starts_with("project-"), "{name}");
    }

    #[test]
    fn a_long_claimed_name_leaves_room_for_the_suffix() {
        let long = "x".repeat(120);
        let mut claims = Claims::default();
        let first = claims.name_for(Path::new(&format!("/one/{long}/.git")));
        claims.claims.insert(first.clone(), format!("/one/{long}/.git"));
        let second = claims.name_for(Path::new(&format!("/two/{long}/.git")));
        assert_eq!(first.len(), PROJECT_NAME_MAX);
        assert_eq!(second.len(), PROJECT_NAME_MAX);
        assert_ne!(first, second);
    }
}
