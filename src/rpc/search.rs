//! `knowledge.search` and `similar`, and `embedding.embed`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ccod_actors::domain::{Hit, ProjectName};
use ccod_actors::knowledge::search::{Found, Search};
use ccod_actors::reader::Projects;
use ccod_actors::store::view::filter::AsOf;
use ccod_actors::store::view::fusion::VECTOR_WEIGHT;
use ccod_protocol::api;
use ccod_protocol::error::WireError;
use serde_json::json;

use super::page::{self, SearchCursor};
use super::{App, Call, Failure, convert};

/// Bytes of text for one token of `budget_tokens`: the rule of thumb for English text in common language
/// models. The budget is theirs, not our model's.
const BYTES_PER_TOKEN: usize = 4;

/// Finds items.
pub(crate) async fn search(app: Arc<App>, call: Call<api::Search>) -> Result<api::SearchResult, Failure> {
    let begun = Instant::now();
    let mut projects = searched_projects(&call)?;
    let single = matches!(&projects, Projects::Named(names) if names.len() == 1);
    let at = as_of(call.params.as_of.as_ref(), &projects)?;
    let fingerprint = page::fingerprint(&call.params, &call.project());
    let cursor = match &call.params.cursor {
        Some(text) => Some(SearchCursor::of_search(text, &fingerprint)?),
        None => None,
    };
    let offset = cursor.as_ref().map_or(call.params.offset, |cursor| cursor.offset);
    // That of the parameter was checked when it was decoded.
    if offset > api::OFFSET_MAX {
        return Err(WireError::invalid_params(
            "cursor",
            format!(
                "cursor lies past the {} results that a search goes deep; narrow it by filters instead",
                api::OFFSET_MAX
            ),
        )
        .into());
    }
    if let Some(cursor) = &cursor {
        cursor.check_projects(&projects)?;
        projects = Projects::At(cursor.versions.clone());
    }
    let wanted = Search {
        query: call.params.query.clone(),
        mode: call.params.mode,
        filter: call.params.filters.clone(),
        limit: call.params.limit as usize,
        offset: offset as usize,
        threshold: call.params.threshold,
        at,
        text_budget: call
            .params
            .budget_tokens
            .map(|tokens| tokens as usize * BYTES_PER_TOKEN),
    };
    let Found { mode, outcome } = app.knowledge.search(projects, wanted, &call.asked()).await?;
    if let Some(cursor) = &cursor {
        cursor.check_mode(mode)?;
    }

    let next_cursor = outcome.more.then(|| {
        let end = offset.saturating_add(call.params.limit);
        SearchCursor::new(fingerprint, mode, end, outcome.page_versions).encode()
    });

    let (explain, trace_id) = (call.params.explain, call.context.trace_id.as_deref());
    let hits = outcome.hits.into_iter();
    let results: Vec<api::SearchHit> = hits.map(|hit| search_hit(hit, explain, trace_id)).collect();
    let versions: BTreeMap<String, u64> = outcome
        .versions
        .into_iter()
        .map(|(project, sequence)| (project, convert::version(sequence)))
        .collect();
    Ok(api::SearchResult {
        count: results.len() as u64,
        results,
        omitted: outcome.omitted,
        next_cursor,
        mode: outcome.mode,
        degraded: outcome.degraded,
        version: versions.values().copied().max().unwrap_or(0),
        versions: if single { BTreeMap::new() } else { versions },
        took_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

/// Finds what resembles an item.
pub(crate) async fn similar(app: Arc<App>, call: Call<api::Similar>) -> Result<api::SearchResult, Failure> {
    let begun = Instant::now();
    let outcome = app
        .routes()
        .readers
        .similar(
            call.project(),
            app.knowledge.within_answer(call.params.id.clone()),
            call.params.limit as usize,
            call.deadline(),
        )
        .await?;
    let results: Vec<api::SearchHit> = outcome
        .hits
        .into_iter()
        .map(|hit| search_hit(hit, false, None))
        .collect();
    Ok(api::SearchResult {
        count: results.len() as u64,
        results,
        omitted: 0,
        next_cursor: None,
        mode: api::SearchMode::Vector,
        degraded: outcome.degraded,
        version: outcome
            .versions
            .first()
            .map_or(0, |(_, sequence)| convert::version(*sequence)),
        versions: BTreeMap::new(),
        took_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

fn searched_projects(call: &Call<api::Search>) -> Result<Projects, Failure> {
    let Some(named) = &call.params.projects else {
        return Ok(Projects::Named(vec![call.project()]));
    };
    if call.project.is_some() {
        return Err(WireError::invalid_params("projects", "give `project_id` or `projects`, not both").into());
    }
    let names = named.as_slice();
    if names.iter().any(|name| name == "*") {
        return Ok(Projects::All);
    }
    if names.is_empty() {
        return Err(WireError::invalid_params(
            "projects",
            "`projects` must name at least one project, or be \"*\" for all",
        )
        .into());
    }
    let mut projects: Vec<ProjectName> = Vec::with_capacity(names.len());
    for name in names {
        let name = ProjectName::parse(name, "projects")?;
        if !projects.contains(&name) {
            projects.push(name);
        }
    }
    Ok(Projects::Named(projects))
}

fn as_of(as_of: Option<&api::AsOf>, projects: &Projects) -> Result<Option<AsOf>, Failure> {
    match as_of {
        None => Ok(None),
        Some(api::AsOf::Time(time)) => Ok(Some(AsOf::Time(*time))),
        Some(api::AsOf::Version(version)) => match projects {
            Projects::Named(names) if names.len() == 1 => {
                Ok(Some(AsOf::Commit(i64::try_from(*version).unwrap_or(i64::MAX))))
            }
            _ => Err(WireError::invalid_params(
                "as_of",
                "`as_of` takes a version only with one project, whose versions it counts; give a time instead",
            )
            .into()),
        },
    }
}

/// As the wire has it; with `explain` how it was found, for the call of this `trace_id`.
fn search_hit(hit: Hit, explain: bool, trace_id: Option<&str>) -> api::SearchHit {
    let explanation = explain.then(|| {
        let mut explanation = json!({
            "vector_rank": hit.vector_rank,
            "text_rank": hit.text_rank,
            "fusion": format!("{VECTOR_WEIGHT} * similarity + {} * bm25 / best bm25 of this search", 1.0 - VECTOR_WEIGHT),
            "revision": hit.stored.revision,
        });
        if let Some(trace_id) = trace_id {
            explanation["trace_id"] = trace_id.into();
        }
        explanation
    });
    api::SearchHit {
        score: hit.score,
        similarity: hit.similarity,
        bm25: hit.bm25,
        explain: explanation,
        ..hit.stored.item.into_hit(hit.passage)
    }
}

/// Embeds texts.
pub(crate) async fn embed(app: Arc<App>, call: Call<api::Embed>) -> Result<api::EmbedResult, Failure> {
    let asked = call.asked();
    let embedded = app.knowledge.embed(call.params.texts, &asked).await?;
    let running = &app.store().config().model;
    let model = convert::model(&running.name, running.dimensions);
    Ok(api::EmbedResult {
        embeddings: embedded.vectors.into_iter().map(|vector| vector.to_vec()).collect(),
        model: model.name,
        dimensions: model.dimensions,
        truncated: embedded.truncated,
    })
}
