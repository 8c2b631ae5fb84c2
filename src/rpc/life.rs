//! The life of an item: `knowledge.update`, `history`, `delete`, `undelete`, `cleanup` and `purge`.

use std::sync::Arc;

use ccod_actors::domain::{format_time, now_ms};
use ccod_actors::knowledge::delete::Undelete;
use ccod_actors::store::transfer::known_backups;
use ccod_actors::writer::DeleteTarget;
use ccod_protocol::api;
use ccod_protocol::error::WireError;
use chrono::TimeDelta;

use super::{App, Call, Failure, convert};

/// Changes an item.
pub(crate) async fn update(app: Arc<App>, call: Call<api::Update>) -> Result<api::UpdateResult, Failure> {
    let (project, asked) = (call.project(), call.asked());
    let (updated, version) = app.knowledge.update(&project, call.params, &asked).await?;
    Ok(api::UpdateResult {
        id: updated.id,
        version: convert::version(version),
        updated_at: format_time(updated.updated_at),
        durability: app.store().config().durability,
    })
}

/// Lists the revisions of an item.
pub(crate) async fn history(app: Arc<App>, call: Call<api::History>) -> Result<api::HistoryResult, Failure> {
    let seen = app
        .routes()
        .readers
        .history(
            call.project(),
            app.knowledge.within_answer(call.params.id.clone()),
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
    let done = app.knowledge.delete(&project, target, &call.asked()).await?;
    Ok(api::DeleteResult {
        deleted: done.items.ids.len() as u64,
        ids: done.items.ids,
        undo_token: done.items.deletion.map(|deletion| deletion.token()),
        version: convert::version(done.version),
        degraded: done.degraded,
    })
}

async fn would_delete(app: &App, call: &Call<api::Delete>, target: DeleteTarget) -> Result<api::DeleteResult, Failure> {
    let target = app.knowledge.within_answer(target);
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

/// Brings deleted items back.
pub(crate) async fn undelete(app: Arc<App>, call: Call<api::Undelete>) -> Result<api::UndeleteResult, Failure> {
    let undelete = match (&call.params.undo_token, &call.params.ids) {
        (Some(token), _) => Undelete::Token {
            token: token.clone(),
            project: call.project.clone(),
        },
        (None, ids) => Undelete::Ids {
            ids: convert::ids(ids.as_deref().unwrap_or_default()),
            project: call.project(),
        },
    };
    let done = app.knowledge.undelete(undelete, &call.asked()).await?;
    Ok(api::UndeleteResult {
        restored: done.items.restored.len() as u64,
        ids: done.items.restored,
        present: done.items.present,
        missing: done.items.missing,
        version: convert::version(done.version),
        degraded: done.degraded,
    })
}

/// Deletes what is older than a number of days, then frees what can be freed.
pub(crate) async fn cleanup(app: Arc<App>, call: Call<api::Cleanup>) -> Result<api::CleanupResult, Failure> {
    let project = call.project();
    let mut filter = call.params.filters.clone();
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
    let done = app.knowledge.clean_up(&project, filter, &call.asked()).await?;
    let deleted = done.deleted;
    Ok(api::CleanupResult {
        deleted: deleted.items.ids.len() as u64,
        freed_bytes: done.freed_bytes,
        dry_run: false,
        undo_token: deleted.items.deletion.map(|deletion| deletion.token()),
        warnings: done.warning.into_iter().collect(),
        degraded: deleted.degraded,
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
    let purged = app.knowledge.purge(&project, ids, &call.asked()).await?;
    Ok(api::PurgeResult {
        purged: purged.ids.len() as u64,
        ids: purged.ids,
        degraded: purged.degraded,
        backups: known_backups(&app.config.home, project.as_str()),
    })
}
