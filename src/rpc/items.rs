//! `knowledge.store`, `store_batch`, `list`, `get`, `stats` and `projects`.

use std::collections::HashMap;
use std::sync::Arc;

use ccod_actors::domain::{self, format_time};
use ccod_actors::reader::StatsReport;
use ccod_actors::store::view::ListRequest;
use ccod_protocol::api::{self, BatchItem, BatchItemError, StoreStatus};
use ccod_protocol::error::WireError;
use chrono::{DateTime, Utc};

use super::{App, Call, Failure, convert};

/// Stores one item.
pub(crate) async fn store(app: Arc<App>, call: Call<api::Store>) -> Result<api::StoreResult, Failure> {
    let (project, asked) = (call.project(), call.asked());
    let (outcome, version) = app.knowledge.store(&project, call.params, &asked).await?;
    Ok(api::StoreResult {
        id: outcome.id,
        project_id: project.to_string(),
        status: if outcome.duplicate {
            StoreStatus::Duplicate
        } else {
            StoreStatus::Stored
        },
        timestamp: format_time(outcome.timestamp),
        passages: outcome.passages,
        redactions: Vec::new(),
        version: convert::version(version),
        durability: app.store().config().durability,
    })
}

/// Stores many items; those that fail are named, the others are stored.
pub(crate) async fn store_batch(app: Arc<App>, call: Call<api::StoreBatch>) -> Result<api::StoreBatchResult, Failure> {
    let (project, asked) = (call.project(), call.asked());
    let items = call.params.items.into_iter().map(|item| match item {
        BatchItem::Valid(params) => Ok(*params),
        BatchItem::Invalid(error) => Err(Failure::from(error)),
    });
    let stored = app.knowledge.store_batch(&project, items.collect(), &asked).await?;
    let mut result = api::StoreBatchResult {
        ids: Vec::with_capacity(stored.items.len()),
        stored: 0,
        duplicates: 0,
        failed: 0,
        errors: Vec::new(),
        version: convert::version(stored.version),
        durability: app.store().config().durability,
    };
    for (index, outcome) in stored.items.into_iter().enumerate() {
        match outcome {
            Ok(outcome) => {
                if outcome.duplicate {
                    result.duplicates += 1;
                } else {
                    result.stored += 1;
                }
                result.ids.push(Some(outcome.id));
            }
            Err(failure) => {
                let error = WireError::from(failure);
                result.failed += 1;
                result.ids.push(None);
                result.errors.push(BatchItemError {
                    index,
                    code: error.code,
                    message: error.message,
                });
            }
        }
    }
    Ok(result)
}

/// Lists items, a page at a time.
pub(crate) async fn list(app: Arc<App>, call: Call<api::List>) -> Result<api::ListResult, Failure> {
    let newest_first = call.params.order == api::Order::Newest;
    let request = ListRequest {
        filter: call.params.filters.clone(),
        newest_first,
        limit: call.params.limit as usize,
        after: match &call.params.cursor {
            Some(cursor) => Some(decode_cursor(cursor, newest_first)?),
            None => None,
        },
        max_answer_bytes: app.config.limits.max_response_bytes,
    };
    let page = app
        .routes()
        .readers
        .list(call.project(), request, call.deadline())
        .await?;
    let next_cursor = page
        .found
        .items
        .last()
        .filter(|_| page.found.more)
        .map(|last| encode_cursor(&last.item, newest_first));
    Ok(api::ListResult {
        results: page.found.items.into_iter().map(|stored| stored.item).collect(),
        total: page.found.total,
        next_cursor,
        degraded: page.degraded,
    })
}

/// A cursor names the last item of a page, so that what is stored or deleted meanwhile moves no page. Opaque
/// to callers: hexadecimal of `<order><milliseconds>/<id>`.
fn encode_cursor(last: &api::Item, newest_first: bool) -> String {
    let order = if newest_first { 'n' } else { 'o' };
    let plain = format!("{order}{}/{}", last.timestamp.timestamp_millis(), last.id);
    domain::hex(plain.as_bytes())
}

fn decode_cursor(cursor: &str, newest_first: bool) -> Result<(DateTime<Utc>, String), WireError> {
    let parse = || {
        let plain = String::from_utf8(domain::unhex(cursor)?).ok()?;
        let order = if newest_first { 'n' } else { 'o' };
        let (milliseconds, id) = plain.strip_prefix(order)?.split_once('/')?;
        let time = DateTime::from_timestamp_millis(milliseconds.parse().ok()?)?;
        Some((time, id.to_owned()))
    };
    parse().ok_or_else(|| {
        WireError::invalid_params(
            "cursor",
            "`cursor` must be a `next_cursor` of a list in the same order; begin again without it",
        )
    })
}

/// Gets one item, or several with the missing ones named.
pub(crate) async fn get(app: Arc<App>, call: Call<api::Get>) -> Result<api::GetResult, Failure> {
    let wanted = match (&call.params.id, &call.params.ids) {
        (Some(id), _) => vec![id.clone()],
        (None, ids) => convert::ids(ids.as_deref().unwrap_or_default()),
    };
    let found = app
        .routes()
        .readers
        .get(
            call.project(),
            app.knowledge.within_answer(wanted.clone()),
            call.deadline(),
        )
        .await?;
    let items = found.found.items.into_iter().map(|stored| stored.item);
    let mut by_id: HashMap<String, api::Item> = items.map(|item| (item.id.clone(), item)).collect();
    if let Some(id) = &call.params.id {
        return match by_id.remove(id) {
            Some(item) => Ok(api::GetResult::One(Box::new(item))),
            None => Err(WireError::not_found_in_part(id, found.degraded).into()),
        };
    }
    let mut results = Vec::with_capacity(wanted.len());
    let mut missing = Vec::new();
    for id in wanted {
        match by_id.remove(&id) {
            Some(item) => results.push(item),
            None => missing.push(id),
        }
    }
    Ok(api::GetResult::Many {
        results,
        missing,
        degraded: found.degraded,
    })
}

/// The projects' counts.
async fn project_stats<M: api::Method>(app: &App, call: &Call<M>) -> Result<StatsReport, Failure> {
    let readers = app.routes().readers;
    let counted = readers
        .project_stats(call.project.clone(), false, call.deadline())
        .await;
    Ok(counted?)
}

/// Counts items.
pub(crate) async fn stats(app: Arc<App>, call: Call<api::Stats>) -> Result<api::StatsResult, Failure> {
    let running = &app.store().config().model;
    let mut result = api::StatsResult {
        model: convert::model(&running.name, running.dimensions),
        ..api::StatsResult::default()
    };
    let (mut oldest, mut newest) = (None, None);
    if let Some(project) = &call.project {
        // A project that does not exist has no items; a name that differs only in case is a mistake and gets an error.
        app.knowledge.exists(project).await?;
    }
    let report = project_stats(&app, &call).await?;
    for failed in report.failed {
        result.bytes_on_disk += failed.bytes_on_disk;
        result.errors.push(convert::project_error(failed.project, failed.error));
    }
    for project in report.projects {
        result.errors.extend(convert::damage_error(&project));
        result.bytes_on_disk += project.bytes_on_disk;
        if project.needs_migration.is_some() {
            continue; // Its rows are not items yet; `projects` shows it.
        }
        let items = project.items;
        result.total += items.total;
        result.passages += items.passages;
        result.by_project.insert(project.project, items.total);
        for (kind, count) in &items.by_kind {
            *result.by_type.entry(kind.clone()).or_default() += count;
        }
        for (agent, count) in &items.by_agent {
            *result.by_agent.entry(agent.clone()).or_default() += count;
        }
        oldest = earlier(oldest, items.oldest);
        newest = later(newest, items.newest);
    }
    result.oldest = oldest.map(format_time);
    result.newest = newest.map(format_time);
    let reasons: Vec<&str> = result.errors.iter().map(|error| error.message.as_str()).collect();
    result.degraded = (!reasons.is_empty()).then(|| reasons.join("; "));
    Ok(result)
}

fn earlier(a: Option<DateTime<Utc>>, b: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    a.into_iter().chain(b).min()
}

fn later(a: Option<DateTime<Utc>>, b: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    a.into_iter().chain(b).max()
}

/// Lists the projects.
pub(crate) async fn projects(app: Arc<App>, call: Call<api::Projects>) -> Result<api::ProjectsResult, Failure> {
    let report = project_stats(&app, &call).await?;
    let mut errors: Vec<_> = report.projects.iter().filter_map(convert::damage_error).collect();
    let read = report.projects.into_iter().map(|project| api::ProjectSummary {
        state: convert::project_state(&project),
        project_id: project.project,
        total: project.items.total,
        bytes_on_disk: project.bytes_on_disk,
        newest: project.items.newest.map(format_time),
    });
    let mut projects: Vec<api::ProjectSummary> = read.collect();
    for failed in report.failed {
        if failed.is_project {
            projects.push(api::ProjectSummary {
                project_id: failed.project.clone(),
                bytes_on_disk: failed.bytes_on_disk,
                state: Some(convert::UNREADABLE.to_owned()),
                ..api::ProjectSummary::default()
            });
        }
        errors.push(convert::project_error(failed.project, failed.error));
    }
    projects.sort_by_key(|project| project.project_id.to_ascii_lowercase());
    Ok(api::ProjectsResult { projects, errors })
}
