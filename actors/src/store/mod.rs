//! The store: one LanceDB database for each project under `knowledge/`.
//!
//! [`Store`] opens projects on first use and hands out [`ProjectView`]s, which can only be queried. What
//! writes is [`WriteTable`], and it is reached through [`WriteAccess`] alone, of which [`Store::open`] gives
//! exactly one: the supervisor keeps it for the writer. So exclusive write access holds by type.
//!
//! The parts, each of which may use those before it and none of those after it:
//!
//! | part | what is in it |
//! |---|---|
//! | [`error`], `guarded`, `disk`, [`disk_space`], [`lock`], `caches` | what errors mean; reading what may be damaged; files of state; space to write; the lock of the data directory |
//! | [`table`] | what lies on disk: schema, rows, identities, keyword index, durable commits |
//! | [`index`] | the live rows of each open project in memory, at the version that readers see |
//! | [`view`] | what readers see: one immutable version of a table, and all queries on it |
//! | [`mod@write`] | what the writer does to a table: append, change, purge, forget |
//! | [`upkeep`] | debts of a table, and the steps that pay them |
//! | [`damage`] | what cannot be read: found, left out, set aside, repaired, reported |
//! | [`bookmarks`] | where feeds stand in many projects |
//! | `discover`, `project`, `projects`, `access`, `inventory`, `survey`, [`verify`] | one project, all of them, the right to write, what state each is in |
//! | [`transfer`] | backup and restore |

mod access;
#[cfg(test)]
mod agreement;
pub mod bookmarks;
mod caches;
pub mod damage;
mod discover;
mod disk;
pub mod disk_space;
pub mod error;
mod guarded;
pub mod index;
mod inventory;
pub mod lock;
mod project;
mod projects;
mod survey;
mod swap;
pub mod table;
pub mod transfer;
pub mod upkeep;
pub mod verify;
pub mod view;
pub mod write;

pub use access::{WriteAccess, WriteGuard};
pub use inventory::NotServed;
pub use lock::{StoreLock, StoreLockError};
pub use project::{Counts, Listener, Project};
pub use projects::{Store, StoreConfig};
pub use table::durable::Durability;
pub use table::lineage::Lineage;
pub use table::schema::ModelIdentity;
pub use view::ProjectView;
pub use write::{WriteTable, Written};

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    /// The parts in their order; those of one line may use each other.
    const ORDER: [&[&str]; 11] = [
        &["error", "guarded", "disk", "lock", "caches", "swap"],
        &["table"],
        &["index"],
        &["view"],
        // What is asked in SQL comes here.
        &["sql"],
        &["write"],
        &["upkeep"],
        &["damage"],
        &[
            "bookmarks",
            "discover",
            "disk_space",
            "project",
            "projects",
            "access",
            "inventory",
            "survey",
            "verify",
        ],
        // And tables of the old tool here.
        &["transfer", "migrate"],
        // Tests of several parts.
        &["agreement"],
    ];

    fn rank(part: &str) -> Option<usize> {
        ORDER.iter().position(|parts| parts.contains(&part))
    }

    fn files(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                files(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn no_part_uses_one_that_comes_after_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
        let mut found = Vec::new();
        files(&root, &mut found);
        let mut uses = 0;
        let mut wrong = Vec::new();
        for path in found {
            let relative = path.strip_prefix(&root).unwrap().with_extension("");
            let own_part = relative.iter().next().unwrap().to_str().unwrap().to_owned();
            let Some(own) = rank(&own_part) else {
                assert_eq!(own_part, "mod", "{} is in no part", path.display());
                continue;
            };
            let text = std::fs::read_to_string(&path).unwrap();
            let production = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            for part in production.split("crate::store::").skip(1) {
                let name: String = part
                    .chars()
                    .take_while(|next| next.is_alphanumeric() || *next == '_')
                    .collect();
                let Some(used) = rank(&name) else { continue };
                uses += 1;
                if used > own {
                    wrong.push(format!("{} uses {name}", relative.display()));
                }
            }
        }
        assert!(uses > 100, "{uses}");
        assert_eq!(wrong, [""; 0]);
    }
}
