//! `admin.*` and `rpc.*`: the daemon about itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ccod_actors::deadline::Deadline;
use ccod_actors::descriptors;
use ccod_actors::domain::ProjectName;
use ccod_actors::error::KnowledgeError;
use ccod_actors::routes::{PartState, PartStatus};
use ccod_protocol::api::{self, HealthStatus};
use ccod_protocol::error::WireError;
use serde_json::Value;

use super::{App, Call, Failure, convert, must_exist};

/// Time between the answer to `admin.shutdown` and the shutdown, so that the answer gets out.
const SHUTDOWN_DELAY: Duration = Duration::from_millis(20);

/// Says whether the daemon works.
pub(crate) async fn health(app: Arc<App>, call: Call<api::Health>) -> Result<api::HealthResult, Failure> {
    let (mut status, mut reasons) = health_of(&app).await;
    if call.params.deep
        && let Err(error) = app.knowledge.probe(&call.asked()).await
    {
        status = HealthStatus::Degraded;
        reasons.push(format!("the probe (store, search, delete) failed: {error}"));
    }
    Ok(api::HealthResult {
        status,
        reasons,
        uptime_ms: u64::try_from(app.started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

async fn health_of(app: &App) -> (HealthStatus, Vec<String>) {
    let troubles = app.store().troubles().await;
    let routes = app.routes();
    let of_lanes = routes.writer.iter().flat_map(|writer| writer.troubles());
    let of_descriptors = descriptors::trouble(
        app.server.descriptors_lacked_at().max(descriptors::lacked_at()),
        Instant::now(),
    );
    let troubles = of_descriptors.into_iter().chain(of_lanes).chain(troubles).collect();
    overall(&routes.parts, troubles, routes.stopping)
}

/// The daemon's state, and the reasons if it is not ok. While parts come up for the first time, and nothing else is
/// wrong, the state is `starting`. Pure.
fn overall(
    parts: &BTreeMap<&'static str, PartStatus>,
    troubles: Vec<String>,
    stopping: bool,
) -> (HealthStatus, Vec<String>) {
    let mut reasons = Vec::new();
    let mut coming_up = troubles.is_empty();
    for (part, status) in parts {
        reasons.push(match &status.state {
            PartState::Running => continue,
            PartState::Restarting { reason } if !status.has_run => format!("{part} is not up yet: {reason}"),
            PartState::Restarting { reason } => format!("{part} restarting: {reason}"),
            PartState::Degraded { reason } => format!("{part} degraded: {reason}"),
            PartState::Stopped => format!("{part} stopped"),
        });
        coming_up &= !status.has_run && matches!(status.state, PartState::Restarting { .. });
    }
    reasons.extend(troubles);
    let status = if stopping {
        HealthStatus::Stopping
    } else if reasons.is_empty() {
        HealthStatus::Ok
    } else if coming_up {
        HealthStatus::Starting
    } else {
        HealthStatus::Degraded
    };
    (status, reasons)
}

/// Describes the daemon.
pub(crate) async fn status(app: Arc<App>, call: Call<api::Status>) -> Result<api::StatusResult, Failure> {
    describe(&app, call.deadline()).await
}

async fn describe(app: &App, deadline: Deadline) -> Result<api::StatusResult, Failure> {
    let routes = app.routes();
    let model = &app.store().config().model;
    let embedder = match &routes.embedder {
        Some(embedder) => embedder.stats().await,
        None => None,
    };
    let writer = match &routes.writer {
        Some(writer) => writer.stats().await,
        None => None,
    };
    let embedder_stats = embedder.map(to_object).unwrap_or_default();
    let reader_stats = to_object(routes.readers.stats());

    let mut actors = BTreeMap::new();
    for (part, part_status) in &routes.parts {
        let mut actor = api::ActorStatus {
            restarts: part_status.restarts,
            ..api::ActorStatus::default()
        };
        (actor.state, actor.last_error) = match &part_status.state {
            PartState::Running => ("running".to_owned(), None),
            PartState::Restarting { reason } => ("restarting".to_owned(), Some(reason.clone())),
            PartState::Degraded { reason } => ("degraded".to_owned(), Some(reason.clone())),
            PartState::Stopped => ("stopped".to_owned(), None),
        };
        let numbers = match *part {
            "embedder" => &embedder_stats,
            "readers" => &reader_stats,
            _ => &to_object(writer.clone()),
        };
        spread(&mut actor, numbers);
        actors.insert((*part).to_owned(), actor);
    }

    let debts = writer.map(|stats| stats.debt).unwrap_or_default();
    let report = routes.readers.project_stats(None, true, deadline).await?;
    let mut projects = Vec::new();
    let mut errors = Vec::new();
    for failed in report.failed {
        if failed.is_project {
            projects.push(api::ProjectStatus {
                project_id: failed.project.clone(),
                bytes_on_disk: failed.bytes_on_disk,
                state: Some(convert::UNREADABLE.to_owned()),
                ..api::ProjectStatus::default()
            });
        }
        errors.push(convert::project_error(failed.project, failed.error));
    }
    for project in report.projects {
        let state = convert::project_state(&project);
        errors.extend(convert::damage_error(&project));
        // What comes from the files is current; what only the writer knows is as of its last turn.
        let mut debt = project.debt;
        if let Some(known) = debts.get(&project.project) {
            (debt.expired, debt.purge_unfinished) = (known.expired, known.purge_unfinished);
            debt.removable_versions = known.removable_versions;
        }
        projects.push(api::ProjectStatus {
            items: project.items.total,
            rows: project.rows,
            bytes_on_disk: project.bytes_on_disk,
            fragments: debt.fragments as u64,
            versions: debt.versions as u64,
            unindexed_rows: debt.unindexed_rows as u64,
            maintenance_debt: numbers_of(&to_object(&debt)),
            state,
            project_id: project.project,
        });
    }

    projects.sort_by_key(|project| project.project_id.to_ascii_lowercase());

    // Last, since the projects may have been opened only now.
    let (status, reasons) = health_of(app).await;
    let recovery = app.store().recovery().await;
    Ok(api::StatusResult {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        status,
        reasons,
        uptime_ms: u64::try_from(app.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        home: app.config.home.display().to_string(),
        socket: app.config.socket_path().display().to_string(),
        durability: app.store().config().durability,
        actors,
        model: api::ModelStatus {
            identity: convert::model(&model.name, model.dimensions),
            engine: app.model.engine_name(),
            precision: app.model.precision().to_string(),
            loaded: embedder_stats.get("loaded").and_then(Value::as_bool).unwrap_or(false),
            load_ms: embedder_stats.get("load_ms").and_then(Value::as_f64),
            max_tokens: embedder_stats
                .get("max_tokens")
                .and_then(Value::as_u64)
                .and_then(|tokens| u32::try_from(tokens).ok())
                .unwrap_or(0),
        },
        memory: memory(),
        caches: caches(app, &embedder_stats),
        limits: limits(app),
        server: to_object(app.server.snapshot()),
        projects,
        errors,
        recovery,
    })
}

/// Gives the numbers of [`status`] as Prometheus text.
pub(crate) async fn metrics(app: Arc<App>, call: Call<api::Metrics>) -> Result<api::MetricsResult, Failure> {
    let status = describe(&app, call.deadline()).await?;
    let text = super::metrics::render(&status)
        .map_err(|error| KnowledgeError::internal(format!("the metrics could not be written: {error}")))?;
    Ok(api::MetricsResult { text })
}

fn to_object(value: impl serde::Serialize) -> serde_json::Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    }
}

fn numbers_of(map: &serde_json::Map<String, Value>) -> BTreeMap<String, u64> {
    let number = |value: &Value| value.as_u64().or_else(|| value.as_bool().map(u64::from));
    map.iter()
        .filter_map(|(name, value)| Some((name.clone(), number(value)?)))
        .collect()
}

/// Spreads an actor's own numbers over the fields that `status` has for every actor.
fn spread(actor: &mut api::ActorStatus, numbers: &serde_json::Map<String, Value>) {
    for (name, value) in numbers {
        match (name.as_str(), value) {
            ("flush_causes", Value::Object(causes)) => actor.flush_causes = numbers_of(causes),
            ("queue_depth", Value::Object(depths)) => actor.queue_depth.extend(numbers_of(depths)),
            ("queued_items" | "waiting" | "busy_lanes", Value::Number(number)) => {
                actor.queue_depth.insert(name.clone(), number.as_u64().unwrap_or(0));
            }
            ("forward_passes" | "commits", Value::Number(number)) => {
                actor.batches = number.as_u64().unwrap_or(0);
                actor.counters.insert(name.clone(), actor.batches);
            }
            (_, Value::Number(number)) => {
                actor.counters.insert(name.clone(), number.as_u64().unwrap_or(0));
            }
            _ => {}
        }
    }
}

/// Memory of this process, from the kernel; zeros where the kernel does not report it.
fn memory() -> api::MemoryStatus {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    api::MemoryStatus {
        rss_bytes: kibibytes("VmRSS:") * 1024,
        peak_rss_bytes: kibibytes("VmHWM:") * 1024,
    }
}

fn caches(app: &App, embedder: &serde_json::Map<String, Value>) -> BTreeMap<String, BTreeMap<String, u64>> {
    let config = &app.config.store;
    let lance = BTreeMap::from([
        ("bytes".to_owned(), app.store().cache_bytes()),
        (
            "capacity_bytes".to_owned(),
            config.session_index_cache_bytes + config.session_metadata_cache_bytes,
        ),
    ]);
    let queries = numbers_of(embedder)
        .into_iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("cache_")?.to_owned(), value)))
        .collect();
    let resident = app.store().resident();
    let texts = resident.texts;
    let resident = BTreeMap::from([
        ("projects".to_owned(), resident.projects),
        ("passages".to_owned(), resident.passages),
        ("bytes".to_owned(), resident.bytes),
        ("capacity_bytes".to_owned(), resident.limit_bytes),
        ("evicted".to_owned(), resident.evicted),
    ]);
    let shown = BTreeMap::from([
        ("entries".to_owned(), texts.rows),
        ("bytes".to_owned(), texts.bytes),
        ("capacity_bytes".to_owned(), texts.limit_bytes),
        ("hits".to_owned(), texts.hits),
        ("misses".to_owned(), texts.misses),
    ]);
    BTreeMap::from([
        ("lance_session".to_owned(), lance),
        ("shown_items".to_owned(), shown),
        ("query_vectors".to_owned(), queries),
        ("resident_index".to_owned(), resident),
    ])
}

fn limits(app: &App) -> serde_json::Map<String, Value> {
    let mut limits = to_object(&app.config.limits);
    limits.extend(to_object(&app.config.items));
    limits
}

/// Runs all the upkeep there is, project by project.
pub(crate) async fn optimize(app: Arc<App>, call: Call<api::Optimize>) -> Result<api::OptimizeResult, Failure> {
    let projects: Vec<ProjectName> = match &call.project {
        Some(project) => {
            must_exist(&app, project).await?;
            vec![project.clone()]
        }
        None => app
            .store()
            .projects()
            .iter()
            .map(|project| project.name().clone())
            .collect(),
    };
    let mut result = api::OptimizeResult::default();
    let total = projects.len() as u64;
    for (done, project) in projects.into_iter().enumerate() {
        if call.context.is_over() {
            return Err(WireError::cancelled(ccod_protocol::error::Executed::Unknown).into());
        }
        call.context
            .progress(done as u64, Some(total), &format!("optimizing {project}"));
        // The daemon knows this project though nothing was ever stored in it: a first store was refused, for example.
        if matches!(app.store().view(&project).await, Ok(None)) {
            continue;
        }
        let done = match app.knowledge.reclaim(&project, &call.asked()).await {
            Ok(done) => done,
            // `projects` shows it; where all projects were asked for it is not an error.
            Err(KnowledgeError::NeedsMigration { .. }) if call.project.is_none() => continue,
            Err(error) if call.project.is_none() && !is_of_the_call(&error) => {
                result.errors.push(convert::project_error(project.as_str(), error));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        result.freed_bytes += done.freed_bytes;
        for (step, count) in done.steps {
            *result.steps.entry(step).or_default() += count;
        }
        result.projects.push(project.to_string());
    }
    Ok(result)
}

/// Whether an error ends a call over several projects: the next project would get the same.
fn is_of_the_call(error: &KnowledgeError) -> bool {
    matches!(
        error,
        KnowledgeError::DeadlineExceeded { .. }
            | KnowledgeError::Cancelled
            | KnowledgeError::ShuttingDown
            | KnowledgeError::Unavailable { .. }
    )
}

/// Begins the shutdown; the answer comes first.
pub(crate) async fn shutdown(app: Arc<App>, _call: Call<api::Shutdown>) -> Result<api::ShutdownResult, Failure> {
    tracing::info!("shutdown was asked for over the socket");
    let token = app.shutdown.clone();
    tokio::spawn(async move {
        tokio::time::sleep(SHUTDOWN_DELAY).await;
        token.cancel();
    });
    Ok(api::ShutdownResult {
        stopping: true,
        grace_ms: app.config.shutdown.grace_ms,
    })
}

/// Names the version, the capabilities and the limits.
pub(crate) async fn version(app: Arc<App>, _call: Call<api::Version>) -> Result<api::VersionResult, Failure> {
    Ok(api::VersionResult {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: api::API_VERSION.to_owned(),
        capabilities: app.served().iter().map(|name| (*name).to_owned()).collect(),
        limits: limits(&app),
    })
}

/// Describes the methods that are served.
pub(crate) async fn discover(app: Arc<App>, _call: Call<api::Discover>) -> Result<Value, Failure> {
    let served = app.served().iter().copied();
    Ok(ccod_protocol::openrpc::document(env!("CARGO_PKG_VERSION"), served))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_until_each_part_has_been_up_once() {
        let restarting = || PartState::Restarting {
            reason: "injected".to_owned(),
        };
        let degraded = || PartState::Degraded {
            reason: "injected".to_owned(),
        };
        let trouble = || vec!["project web: it cannot be opened".to_owned()];
        let health = |state, has_run, troubles, stopping| {
            let status = PartStatus {
                state,
                restarts: 0,
                has_run,
            };
            let parts = BTreeMap::from([("writer", status)]);
            let (status, reasons) = overall(&parts, troubles, stopping);
            assert_eq!(reasons.is_empty(), status == HealthStatus::Ok, "{reasons:?}");
            status
        };
        assert_eq!(health(PartState::Running, true, vec![], false), HealthStatus::Ok);
        assert_eq!(health(restarting(), false, vec![], false), HealthStatus::Starting);
        assert_eq!(health(restarting(), true, vec![], false), HealthStatus::Degraded);
        assert_eq!(health(degraded(), false, vec![], false), HealthStatus::Degraded);
        assert_eq!(
            health(PartState::Running, true, trouble(), false),
            HealthStatus::Degraded
        );
        assert_eq!(health(restarting(), false, trouble(), false), HealthStatus::Degraded);
        assert_eq!(health(restarting(), false, vec![], true), HealthStatus::Stopping);
    }
}
