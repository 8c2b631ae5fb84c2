//! Finds out which upkeep a project needs while nobody writes to it: when the writer starts, and after a restore.
//!
//! A project that is not open is not opened for it, so that a home of many projects costs no memory: its newest
//! version is read beside everything else and forgotten again.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lancedb::expr::col;

use crate::clock::{self, believed_now};
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::caches::Caches;
use crate::store::error::read_error;
use crate::store::guarded::guarded;
use crate::store::index::{ViewIndex, dimensions, rows_of};
use crate::store::table::holds_table;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::{TableShape, column};
use crate::store::table::table_damage::TableDamage;
use crate::store::table::{dataset_shape, table_directory};
use crate::store::upkeep::{Debt, Pace, due_steps, measure};
use crate::store::view::ProjectView;
use crate::store::write::ERASING_MARK;
use crate::store::write::forgotten_at;
use crate::store::{Project, WriteAccess};

/// Bytes of each cache of a look: it reads what it reads once.
const CACHE_BYTES: usize = 1 << 20;

/// What upkeep a project needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Whether there is a step to run.
    pub due: bool,
    /// When rows are next to be forgotten.
    pub forgets_at: Option<DateTime<Utc>>,
}

impl Survey {
    fn of(debt: &Debt, forgets_at: Option<DateTime<Utc>>) -> Self {
        let debt = Debt {
            expired: forgets_at.is_some_and(|at| at <= believed_now()),
            ..debt.clone()
        };
        Self {
            due: !due_steps(&debt, Pace::Quiet).is_empty(),
            forgets_at,
        }
    }
}

impl WriteAccess {
    /// Looks at a project. Changes nothing on disk that a first read would not.
    pub async fn survey(&self, project: &Arc<Project>) -> KnowledgeResult<Survey> {
        clock::check()?;
        if project.published().is_some() {
            let guard = project.lock_table().await;
            return match guard.as_ref() {
                Some(table) if matches!(table.shape(), TableShape::Current { .. }) => {
                    Ok(Survey::of(&table.debt().await?, table.forgets_at()))
                }
                _ => Ok(Survey::default()),
            };
        }
        if !holds_table(project.directory())? {
            return Ok(Survey::default());
        }
        let name = project.name().clone();
        let place = table_directory(project.directory());
        let place = place
            .to_str()
            .ok_or_else(|| KnowledgeError::internal("the data directory's path is not UTF-8"))?
            .to_owned();
        let retention = self.store().config().retention;
        let resident = Arc::clone(&self.store().resident);
        let looked = guarded(async move {
            let session = Caches::new(CACHE_BYTES, CACHE_BYTES).session;
            let dataset = DatasetBuilder::from_uri(place)
                .with_session(session)
                .load()
                .await
                .map_err(read_error)?;
            let shape = dataset_shape(&dataset);
            if let TableShape::Foreign { .. } = shape {
                return Ok(Survey::default());
            }
            let oldest_closed = oldest_closed(name, &dataset, shape).await?;
            let forgets_at = oldest_closed.map(|oldest| forgotten_at(oldest, retention));
            // Nobody has it open, so nobody reads an older version.
            let measured = measure(&dataset, dataset.version().version).await?;
            let rows = rows_of(&dataset);
            let residence = dimensions(&dataset).map(|dimensions| resident.residence(rows, dimensions, None));
            let debt = Debt {
                vectors: measured.vectors.of(residence.unwrap_or_default()),
                ..measured
            };
            Ok(Survey::of(&debt, forgets_at))
        });
        looked.await.map_err(KnowledgeError::internal)?
    }

    /// Whether upkeep may run on a project that nobody has written to: not where it would take what is damaged out of
    /// the table, which may still be put back. A purge is finished all the same.
    ///
    /// # Errors
    /// When the project cannot be opened.
    pub async fn may_be_kept_up(&self, project: &Arc<Project>) -> KnowledgeResult<bool> {
        // Where that cannot be told, the attempt tells.
        let erasing = project.directory().join(ERASING_MARK).try_exists().unwrap_or(true);
        match project.view().await {
            Ok(Some(view)) if view.damage().configuration.is_some() => Ok(false),
            Ok(Some(view)) => Ok(erasing || view.damage().is_sound()),
            Ok(None) => Ok(erasing),
            Err(_) if erasing => Ok(true),
            Err(error) => Err(error),
        }
    }
}

async fn oldest_closed(
    project: ProjectName,
    dataset: &Dataset,
    shape: TableShape,
) -> KnowledgeResult<Option<DateTime<Utc>>> {
    let view = ProjectView::new(
        project,
        Arc::new(dataset.clone()),
        shape,
        0,
        Arc::new(TableDamage::default()),
        ViewIndex::default(),
    );
    let scanner = view.scan(&[column::CLOSED_AT], col(column::CLOSED_AT).is_not_null())?;
    let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
    let mut oldest = None;
    while let Some(batch) = stream.try_next().await.map_err(read_error)? {
        let rows = RowReader(&batch);
        for row in 0..batch.num_rows() {
            oldest = oldest
                .into_iter()
                .chain(rows.optional_time(column::CLOSED_AT, row)?)
                .min();
        }
    }
    Ok(oldest)
}
