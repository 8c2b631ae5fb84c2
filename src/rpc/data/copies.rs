//! `admin.backup` and `admin.restore`.

use std::path::PathBuf;
use std::sync::Arc;

use ccod_actors::error::KnowledgeError;
use ccod_actors::store::transfer::{BackupRequest, NewPlace, Watcher, new_place};
use ccod_protocol::api;
use ccod_protocol::error::Executed;

use super::long::{CallWatcher, blocking, check_owner, turn};
use super::places::check_outside_own;
use crate::rpc::{App, Call, Failure, wire_error};

/// Copies projects, all as of one time.
pub(crate) async fn backup(app: Arc<App>, call: Call<api::Backup>) -> Result<api::BackupResult, Failure> {
    check_owner(&call.context)?;
    let _turn = turn(&app.turns.copies, &call.context, "backups and restores").await?;
    let (path, knowledge_dir) = (
        PathBuf::from(&call.params.path),
        app.store().config().knowledge_dir.clone(),
    );
    blocking(move || {
        let place = new_place(&path, &knowledge_dir, NewPlace::Directory)?;
        check_outside_own(&place, &knowledge_dir)
    })
    .await?;
    let request = BackupRequest {
        path: PathBuf::from(&call.params.path),
        project: call.project.clone(),
    };
    let report = app.store().back_up(request, CallWatcher::new(&call.context)).await?;
    tracing::info!(path = %report.path.display(), bytes = report.bytes, "backed up");
    Ok(api::BackupResult {
        path: report.path.display().to_string(),
        items: report.backup.projects.iter().map(|project| project.items).sum(),
        projects: report
            .backup
            .projects
            .into_iter()
            .map(|project| project.project_id)
            .collect(),
        bytes: report.bytes,
        warnings: report.warnings,
        lost: report.lost,
    })
}

/// Replaces projects by those of a backup.
pub(crate) async fn restore(app: Arc<App>, call: Call<api::Restore>) -> Result<api::RestoreResult, Failure> {
    check_owner(&call.context)?;
    // Checked before the copying, which takes long.
    app.routes().writer()?;
    let _turn = turn(&app.turns.copies, &call.context, "backups and restores").await?;
    let watcher = CallWatcher::new(&call.context);
    let path = PathBuf::from(&call.params.path);
    let staged = app
        .store()
        .stage(path.clone(), call.project.clone(), watcher.clone())
        .await?;
    let alone = app.store().alone().await;
    // From here on the restore cannot be cancelled.
    watcher.check()?;
    let report = app
        .routes()
        .writer()?
        .with_access(move |access| async move {
            let report = access.put_in_place(staged).await;
            drop(alone);
            report
        })
        .await
        .map_err(|error| match error {
            KnowledgeError::ShuttingDown | KnowledgeError::Unavailable { .. } => wire_error(error),
            // The restore may have been halfway: the next start finishes what was begun.
            error => wire_error(error).with_executed(Executed::Unknown),
        })?;
    tracing::info!(path = %path.display(), kept_aside = ?report.kept_aside, "restored");
    Ok(api::RestoreResult {
        items: report.projects.iter().map(|project| project.items).sum(),
        projects: report.projects.into_iter().map(|project| project.project_id).collect(),
        kept_aside: report
            .kept_aside
            .iter()
            .map(|place| place.display().to_string())
            .collect(),
        warnings: report.warnings,
    })
}
