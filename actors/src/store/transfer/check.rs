//! Whether a copied table can be read and has the rows that it should have.

use std::path::Path;

use futures::TryStreamExt;
use lance::dataset::builder::DatasetBuilder;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::{is_passing, read_error, told};
use crate::store::guarded::guarded;
use crate::store::table::table_directory;
use crate::store::transfer::archive::BackupProject;
use crate::store::transfer::place::bad_path;

/// Bytes of each cache that reads a copy back once.
const CHECK_CACHE_BYTES: usize = 8 << 20;

/// Opens a copied table by itself and counts its rows; `thorough` reads every one of them, all columns.
pub(crate) async fn check_table(knowledge: &Path, project: &BackupProject, thorough: bool) -> KnowledgeResult<()> {
    if project.needs_migration.is_some() {
        return Ok(());
    }
    let table = table_directory(&knowledge.join(&project.project_id));
    let unusable = |reason: String| {
        KnowledgeError::internal(format!(
            "the copy of project {} cannot be read back: {reason}; verify the project",
            project.project_id
        ))
    };
    let place = table
        .to_str()
        .ok_or_else(|| bad_path("the path must be UTF-8"))?
        .to_owned();
    let counted = guarded(async move {
        fail::fail_point!("backup::read_back", |errno| {
            let errno = errno.and_then(|number| number.parse().ok()).unwrap_or_default();
            Err(lance::Error::io_source(Box::new(std::io::Error::from_raw_os_error(
                errno,
            ))))
        });
        let session = crate::store::caches::Caches::new(CHECK_CACHE_BYTES, CHECK_CACHE_BYTES).session;
        let dataset = DatasetBuilder::from_uri(place).with_session(session).load().await?;
        if !thorough {
            return dataset.count_rows(None).await;
        }
        let mut stream = dataset.scan().try_into_stream().await?;
        let mut rows = 0;
        while let Some(batch) = stream.try_next().await? {
            rows += batch.num_rows();
        }
        Ok::<usize, lance::Error>(rows)
    })
    .await;
    match counted {
        Ok(Ok(rows)) if rows as u64 == project.rows => Ok(()),
        Ok(Ok(rows)) => Err(unusable(format!("it has {rows} rows instead of {}", project.rows))),
        Ok(Err(error)) if is_passing(&error) => Err(of_the_moment(read_error(error))),
        Ok(Err(error)) => Err(unusable(told(&error))),
        Err(unfinished) => Err(unusable(told(&unfinished))),
    }
}

/// An error that says nothing about what is stored: another try may succeed.
pub(super) fn of_the_moment(error: KnowledgeError) -> KnowledgeError {
    match error {
        KnowledgeError::Internal { message } | KnowledgeError::Unreadable { message } => KnowledgeError::Unavailable {
            part: "what is to be copied",
            reason: message,
        },
        error => error,
    }
}
