//! What a project is at a glance, without opening it.

use std::path::Path;

use crate::error::KnowledgeResult;
use crate::store::damage::files::damaged_fragments;
use crate::store::damage::gaps::GapsFile;
use crate::store::damage::manifest::{list_versions, read_version};
use crate::store::damage::recover::holds_files;
use crate::store::table::holds_table;
use crate::store::table::lineage::Lineage;
use crate::store::write::configuration_damage;

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
