//! The life of an item: `knowledge.update`, `history`, `delete`, `undelete`, `cleanup` and `purge`.

use std::sync::Arc;

use ccod_actors::clock::believed_now;
use ccod_actors::domain::{Deletion, ProjectName, format_time, now_ms};
use ccod_actors::embedder::Lane;
use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::reader::Within;
use ccod_actors::store::transfer::known_backups;
use ccod_actors::writer::{DeleteTarget, Deleted, PreparedUpdate, UndeleteTarget};
use ccod_protocol::api;
use ccod_protocol::error::WireError;
use chrono::TimeDelta;

use super::{App, Call, Failure, admin, convert, ingest, unwritten};

/// Oldest age that a cleanup takes: a hundred years.
const OLDER_THAN_DAYS_MAX: u32 = 36_500;

/// Changes an item.
pub(crate) async fn update(app: Arc<App>, call: Call<api::Update>) -> Result<api::UpdateResult, Failure> {
    let (project, deadline, origin) = (call.project(), call.deadline(), call.origin());
    let params = call.params;
    check_patch(&params, &app)?;
    let routes = app.routes();
    let writer = routes.writer()?;
    // Before the embedding, which is the dear part; the writer looks again when it is its turn, and says so if the
    // text has become another one meanwhile.
    let found = routes
        .readers
        .get(project.clone(), whole(params.id.clone()), deadline)
        .await
        .map_err(unwritten)?;
    let Some(current) = found.found.items.first() else {
        return Err(WireError::not_found_in_part(&params.id, found.degraded).into());
    };
    let embed = async |text: &str| {
        let embedder = routes.embedder()?;
        let embedded = ingest::embed_text(embedder, text, Lane::Interactive, deadline, origin).await;
        Ok::<_, Failure>(embedded.map_err(unwritten)?)
    };
    let passages = match &params.text {
        Some(text) if *text != current.item.text => Some(embed(text).await?),
        _ => None,
    };
    let mut update = PreparedUpdate {
        change: params,
        passages,
    };
    let (mut updated, mut version) = writer.update(project.clone(), update.clone(), deadline).await?;
    if let (None, Some(text)) = (&updated, &update.change.text) {
        // Somebody has changed the text meanwhile. With its own passages the update fits any.
        update.passages = Some(embed(text).await?);
        (updated, version) = writer.update(project, update, deadline).await?;
    }
    let updated = updated.ok_or_else(|| KnowledgeError::internal("an update with its passages was not made"))?;
    Ok(api::UpdateResult {
        id: updated.id,
        version: convert::version(version),
        updated_at: format_time(updated.updated_at),
        durability: app.store.config().durability,
    })
}

/// An item that is read for the daemon itself: no answer bounds it.
fn whole(id: String) -> Within<Vec<String>> {
    Within {
        wanted: vec![id],
        max_answer_bytes: usize::MAX,
    }
}

fn check_patch(params: &api::UpdateParams, app: &App) -> KnowledgeResult<()> {
    let limits = &app.config.items;
    if let Some(text) = &params.text {
        ingest::check_text(text, limits)?;
    }
    if let Some(metadata) = &params.metadata {
        ingest::check_metadata(metadata, limits)?;
    }
    Ok(())
}

/// Lists the revisions of an item.
pub(crate) async fn history(app: Arc<App>, call: Call<api::History>) -> Result<api::HistoryResult, Failure> {
    let seen = app
        .routes()
        .readers
        .history(
            call.project(),
            app.within_answer(call.params.id.clone()),
            call.deadline(),
        )
        .await?;
    let newest = seen.found.first();
    if newest.is_none_or(|newest| newest.valid_to.is_some()) {
        return Err(WireError::not_found_in_part(&call.params.id, seen.degraded).into());
    }
    Ok(api::HistoryResult {
        degraded: seen.degraded,
        revisions: seen
            .found
            .into_iter()
            .map(|stored| {
                let number = u64::try_from(stored.revision).unwrap_or(0);
                let (from, to) = (stored.valid_from, stored.valid_to);
                let to = to.map(convert::version);
                stored.item.into_revision(number, convert::version(from), to)
            })
            .collect(),
    })
}

/// Deletes items by id or filter.
pub(crate) async fn delete(app: Arc<App>, call: Call<api::Delete>) -> Result<api::DeleteResult, Failure> {
    let target = match (&call.params.id, &call.params.ids) {
        (Some(id), _) => DeleteTarget::Ids(vec![id.clone()]),
        (None, Some(ids)) => DeleteTarget::Ids(convert::ids(ids)),
        (None, None) => DeleteTarget::Matching(call.params.filters.clone()),
    };
    let project = call.project();
    if call.params.dry_run {
        return would_delete(&app, &call, target).await;
    }
    let done = delete_now(&app, project, target, &call).await?;
    Ok(api::DeleteResult {
        deleted: done.deleted.ids.len() as u64,
        ids: done.deleted.ids,
        undo_token: done.deleted.deletion.map(|deletion| deletion.token()),
        version: convert::version(done.version),
        degraded: done.degraded,
    })
}

async fn would_delete(app: &App, call: &Call<api::Delete>, target: DeleteTarget) -> Result<api::DeleteResult, Failure> {
    let target = app.within_answer(target);
    let seen = app
        .routes()
        .readers
        .matching(call.project(), target, call.deadline())
        .await?;
    Ok(api::DeleteResult {
        deleted: seen.found.ids.len() as u64,
        ids: seen.found.ids,
        undo_token: None,
        version: convert::version(seen.found.version),
        degraded: seen.degraded,
    })
}

/// What a delete has done.
#[derive(Default)]
struct Done {
    deleted: Deleted,
    version: i64,
    /// What of the project could not be read when it began, if something could not.
    degraded: Option<String>,
}

async fn delete_now<M: api::Method>(
    app: &App,
    project: ProjectName,
    target: DeleteTarget,
    call: &Call<M>,
) -> Result<Done, Failure> {
    // A project comes to be with its first store, not with a delete.
    let Some(view) = app.store.view(&project).await.map_err(unwritten)? else {
        return Ok(Done::default());
    };
    let degraded = view.degraded();
    drop(view);
    let routes = app.routes();
    let writer = routes.writer()?;
    let (deleted, version) = writer
        .delete(project, target, call.deadline(), &call.context.cancelled)
        .await?;
    Ok(Done {
        deleted,
        version,
        degraded,
    })
}

/// Brings deleted items back.
pub(crate) async fn undelete(app: Arc<App>, call: Call<api::Undelete>) -> Result<api::UndeleteResult, Failure> {
    let (project, target) = match (&call.params.undo_token, &call.params.ids) {
        (Some(token), _) => {
            let deletion = Deletion::parse(token)?;
            // The token names its project, so the caller need not; what contradicts it is a mistake.
            if call.project.as_ref().is_some_and(|named| *named != deletion.project) {
                return Err(WireError::invalid_params(
                    "undo_token",
                    format!(
                        "`undo_token` is of project {}; leave `project_id` out",
                        deletion.project
                    ),
                )
                .into());
            }
            if believed_now() - deletion.at > app.store.config().retention {
                return Err(WireError::expired("the undo token").into());
            }
            (deletion.project.clone(), UndeleteTarget::Deletion(deletion))
        }
        (None, ids) => (
            call.project(),
            UndeleteTarget::Ids(convert::ids(ids.as_deref().unwrap_or_default())),
        ),
    };
    let Some(view) = app.store.view(&project).await.map_err(unwritten)? else {
        return Ok(api::UndeleteResult::default());
    };
    if let UndeleteTarget::Deletion(deletion) = &target
        && view
            .horizon()
            .map_err(unwritten)?
            .is_some_and(|horizon| deletion.sequence <= horizon.sequence)
    {
        return Err(WireError::expired("the undo token").into());
    }
    let lineage = app.store.lineage(&project)?;
    if let UndeleteTarget::Deletion(deletion) = &target
        && lineage.epoch > 0
        && deletion.sequence <= lineage.sequence
    {
        // What it deleted was in the project that a restore has moved aside.
        return Err(WireError::expired("the undo token").into());
    }
    let degraded = view.degraded();
    drop(view);
    let routes = app.routes();
    let writer = routes.writer()?;
    let (items, version) = writer.undelete(project, target, call.deadline()).await?;
    Ok(api::UndeleteResult {
        restored: items.restored.len() as u64,
        ids: items.restored,
        present: items.present,
        missing: items.missing,
        version: convert::version(version),
        degraded,
    })
}

/// Deletes what is older than a number of days, then frees what can be freed.
pub(crate) async fn cleanup(app: Arc<App>, call: Call<api::Cleanup>) -> Result<api::CleanupResult, Failure> {
    let project = call.project();
    let mut filter = call.params.filters.clone();
    if call.params.older_than_days > OLDER_THAN_DAYS_MAX {
        return Err(WireError::invalid_params(
            "older_than_days",
            format!("`older_than_days` must be at most {OLDER_THAN_DAYS_MAX}"),
        )
        .into());
    }
    let cutoff = now_ms() - TimeDelta::days(i64::from(call.params.older_than_days));
    filter.until = Some(filter.until.map_or(cutoff, |until| until.min(cutoff)));
    if call.params.dry_run {
        let seen = app
            .routes()
            .readers
            .matching_size(project, filter, call.deadline())
            .await?;
        return Ok(api::CleanupResult {
            deleted: seen.found.items,
            freed_bytes: seen.found.bytes,
            dry_run: true,
            undo_token: None,
            warnings: Vec::new(),
            degraded: seen.degraded,
        });
    }
    let done = delete_now(&app, project.clone(), DeleteTarget::Matching(filter), &call).await?;
    // They are deleted: whatever becomes of the rest, the caller gets the undo token.
    let reclaimed = tokio::select! {
        biased;
        reclaimed = admin::reclaim(&app, &project, call.deadline()) => reclaimed.map_err(|error| error.to_string()),
        () = call.context.cancelled.cancelled() => Err("the call was cancelled".to_owned()),
        () = tokio::time::sleep(call.context.remaining()) => Err("the deadline passed".to_owned()),
    };
    let (freed_bytes, warnings) = match reclaimed {
        Ok((freed_bytes, _)) => (freed_bytes, Vec::new()),
        Err(reason) => {
            tracing::warn!(%project, %reason, "a cleanup has deleted and could not free the space");
            let what = if done.deleted.ids.is_empty() {
                "there was nothing to delete, and space"
            } else {
                "the items are deleted, but their space"
            };
            let warning = format!(
                "{what} could not be freed now ({reason}); upkeep frees it in time, and admin.optimize at once"
            );
            (0, vec![warning])
        }
    };
    Ok(api::CleanupResult {
        deleted: done.deleted.ids.len() as u64,
        freed_bytes,
        dry_run: false,
        undo_token: done.deleted.deletion.map(|deletion| deletion.token()),
        warnings,
        degraded: done.degraded,
    })
}

/// Removes every trace of items.
pub(crate) async fn purge(app: Arc<App>, call: Call<api::Purge>) -> Result<api::PurgeResult, Failure> {
    if call.params.secrets {
        return Err(WireError::invalid_params(
            "secrets",
            "this version cannot find secrets yet; name the items by `id` or `ids`",
        )
        .into());
    }
    let ids = match (&call.params.id, &call.params.ids) {
        (Some(id), _) => vec![id.clone()],
        (None, ids) => convert::ids(ids.as_deref().unwrap_or_default()),
    };
    let project = call.project();
    let Some(view) = app.store.view(&project).await.map_err(unwritten)? else {
        return Ok(api::PurgeResult::default());
    };
    let mut degraded = view.degraded();
    drop(view);
    let routes = app.routes();
    let writer = routes.writer()?;
    let purged = writer.purge(project.clone(), ids, call.deadline()).await?;
    if purged.is_empty() {
        let aside = app.store.set_aside(&project).await?;
        let aside = aside.map(|place| {
            format!(
                "{} is left as it is, for nothing was purged; it may hold what was taken out of the project before: \
                 remove it if it may hold what is to go",
                place.display()
            )
        });
        let told: Vec<String> = degraded.into_iter().chain(aside).collect();
        degraded = (!told.is_empty()).then(|| told.join("; "));
    }
    Ok(api::PurgeResult {
        purged: purged.len() as u64,
        ids: purged,
        degraded,
        backups: known_backups(&app.config.home, project.as_str()),
    })
}
