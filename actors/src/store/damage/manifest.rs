//! The versions of a table on disk, and the manifests that describe them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lance_io::object_store::ObjectStore;
use lance_table::format::Manifest;
use lance_table::io::commit::{ManifestLocation, ManifestNamingScheme};
use lance_table::io::manifest::{read_manifest, read_manifest_indexes};
use tokio::runtime::Handle;

use crate::error::KnowledgeResult;
use crate::panics;
use crate::store::error::file_read_error;

/// Directory of the manifests inside a table.
pub(super) const VERSIONS: &str = "_versions";
/// How every Lance file ends, manifests and data files alike.
pub(super) const MAGIC: &[u8] = b"LANC";
/// Bytes of a manifest's end: where the manifest begins (8), the format's version (4), [`MAGIC`] (4).
pub(super) const FOOTER_BYTES: usize = 16;

/// One version on disk.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) number: u64,
    pub(super) path: PathBuf,
}

/// The versions of a table, newest first; none where they are named as the old tool names them.
pub(super) fn list_versions(table: &Path) -> KnowledgeResult<Option<Vec<Version>>> {
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
pub(super) fn read_version(path: &Path) -> KnowledgeResult<Result<Manifest, String>> {
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
pub(super) fn check_frame(bytes: &[u8]) -> Result<(), &'static str> {
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
pub(super) async fn parse(bytes: &[u8]) -> lance::Result<Manifest> {
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
