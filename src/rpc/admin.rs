//! `admin.*` and `rpc.*`: the daemon about itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::{ItemFilter, KnowledgeKind, NewItem, OnDuplicate, ProjectName, SearchMode, now_ms};
use ccod_actors::embedder::Lane;
use ccod_actors::error::KnowledgeError;
use ccod_actors::reader::Projects;
use ccod_actors::routes::PartState;
use ccod_actors::store::view::SearchRequest;
use ccod_actors::writer::ExclusiveTask;
use ccod_protocol::api::{self, HealthStatus};
use ccod_protocol::error::WireError;
use serde_json::Value;

use super::{App, Call, SERVED, convert, store, wire_error};

/// The project of `health {deep:true}`: made, searched and removed by each probe, shown nowhere.
pub(crate) const HEALTH_PROJECT: &str = "ccod-health-probe";

/// Time between the answer to `admin.shutdown` and the shutdown, so that the answer gets out.
const SHUTDOWN_DELAY: Duration = Duration::from_millis(20);

/// Says whether the daemon works.
pub(crate) async fn health(app: Arc<App>, call: Call<api::Health>) -> Result<api::HealthResult, WireError> {
    let (mut status, mut reasons) = health_of(&app).await;
    if call.params.deep
        && let Err(error) = probe(&app, &call).await
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
    let routes = app.routes();
    let mut reasons: Vec<String> = routes
        .parts
        .iter()
        .filter_map(|(part, status)| match &status.state {
            PartState::Running => None,
            PartState::Restarting { reason } => Some(format!("{part} restarting: {reason}")),
            PartState::Degraded { reason } => Some(format!("{part} degraded: {reason}")),
            PartState::Stopped => Some(format!("{part} stopped")),
        })
        .collect();
    reasons.extend(routes.writer.iter().flat_map(|writer| writer.troubles()));
    reasons.extend(app.store.troubles().await);
    let status = if routes.stopping {
        HealthStatus::Stopping
    } else if reasons.is_empty() {
        HealthStatus::Ok
    } else {
        HealthStatus::Degraded
    };
    (status, reasons)
}

/// Stores an item through the whole daemon, finds it, and removes it: in a project of its own.
async fn probe(app: &App, call: &Call<api::Health>) -> Result<(), KnowledgeError> {
    let project = ProjectName::parse(HEALTH_PROJECT, "project_id")?;
    let deadline = call.deadline();
    let routes = app.routes();
    let (writer, embedder) = (routes.writer()?, routes.embedder()?);
    let text = format!(
        "health probe {:08x}: the quick brown fox jumps over the lazy dog",
        rand_word()
    );
    let item = NewItem {
        text: text.clone(),
        kind: KnowledgeKind::System,
        agent: Some("ccod".to_owned()),
        session_id: None,
        metadata: serde_json::Map::new(),
        id: None,
        idempotency_key: None,
        on_duplicate: OnDuplicate::Store,
        timestamp: now_ms(),
        updated_at: None,
    };
    let prepared = store::prepare(embedder, item, Lane::Interactive, deadline, call.origin()).await?;
    let reply = writer.store(project.clone(), vec![prepared], None, deadline).await?;
    let stored = match reply.items.into_iter().next() {
        Some(item) => item?,
        None => return Err(KnowledgeError::internal("the writer gave no answer")),
    };
    let request = SearchRequest {
        vector: Some(embedder.embed_query(&text, deadline, call.origin()).await?),
        query: text,
        mode: SearchMode::Hybrid,
        filter: ItemFilter::default(),
        limit: 1,
        offset: 0,
        threshold: None,
        min_similarity: 0.0,
        at: None,
    };
    let found = routes
        .readers
        .search(Projects::Named(vec![project.clone()]), request, deadline)
        .await;
    // Removed whatever the search said.
    writer.drop_project(project, deadline).await?;
    if found?.hits.first().is_some_and(|hit| hit.item.id == stored.id) {
        Ok(())
    } else {
        Err(KnowledgeError::internal("what was stored was not found"))
    }
}

/// Tells two probes apart; nothing depends on its quality.
fn rand_word() -> u32 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.subsec_nanos())
}

/// Describes the daemon.
pub(crate) async fn status(app: Arc<App>, call: Call<api::Status>) -> Result<api::StatusResult, WireError> {
    describe(&app, call.deadline()).await
}

async fn describe(app: &App, deadline: Deadline) -> Result<api::StatusResult, WireError> {
    let routes = app.routes();
    let model = &app.store.config().model;
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
    let mut projects = Vec::new();
    for project in routes.readers.project_stats(None, deadline).await.map_err(wire_error)? {
        if project.project == HEALTH_PROJECT {
            continue;
        }
        // What its files tell is of now; what only the writer knows is of its last turn.
        let mut debt = project.debt;
        if let Some(known) = debts.get(&project.project) {
            (debt.expired, debt.purge_unfinished) = (known.expired, known.purge_unfinished);
        }
        projects.push(api::ProjectStatus {
            items: project.items.total,
            rows: project.items.passages,
            bytes_on_disk: project.bytes_on_disk,
            fragments: debt.fragments as u64,
            versions: debt.versions as u64,
            unindexed_rows: debt.unindexed_rows as u64,
            maintenance_debt: numbers_of(&to_object(&debt)),
            state: project.needs_migration.map(|_| "needs_migration".to_owned()),
            project_id: project.project,
        });
    }

    // Last, since the projects may have been opened only now.
    let (status, reasons) = health_of(app).await;
    let recovery = app.store.recovery().await;
    Ok(api::StatusResult {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        status,
        reasons,
        uptime_ms: u64::try_from(app.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        home: app.config.home.display().to_string(),
        socket: app.config.socket_path().display().to_string(),
        durability: convert::durability(app.store.config().durability),
        actors,
        model: api::ModelStatus {
            identity: convert::model(&model.name, model.dimensions),
            engine: "candle, cpu".to_owned(),
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
        recovery,
    })
}

/// Gives the numbers of [`status`] as Prometheus text.
pub(crate) async fn metrics(app: Arc<App>, call: Call<api::Metrics>) -> Result<api::MetricsResult, WireError> {
    let status = describe(&app, call.deadline()).await?;
    let text = super::metrics::render(&status).map_err(|error| {
        wire_error(KnowledgeError::internal(format!(
            "the metrics could not be written: {error}"
        )))
    })?;
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

/// Memory of this process, from the kernel; zeros where it does not tell.
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
        ("bytes".to_owned(), app.store.cache_bytes()),
        (
            "capacity_bytes".to_owned(),
            config.session_index_cache_bytes + config.session_metadata_cache_bytes,
        ),
    ]);
    let queries = numbers_of(embedder)
        .into_iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("cache_")?.to_owned(), value)))
        .collect();
    BTreeMap::from([
        ("lance_session".to_owned(), lance),
        ("query_vectors".to_owned(), queries),
    ])
}

fn limits(app: &App) -> serde_json::Map<String, Value> {
    let mut limits = to_object(&app.config.limits);
    limits.extend(to_object(&app.config.items));
    limits
}

/// Runs all the upkeep there is, project by project.
pub(crate) async fn optimize(app: Arc<App>, call: Call<api::Optimize>) -> Result<api::OptimizeResult, WireError> {
    let projects: Vec<ProjectName> = match &call.project {
        Some(project) => vec![project.clone()],
        None => app
            .store
            .projects()
            .iter()
            .map(|project| project.name().clone())
            .collect(),
    };
    let mut result = api::OptimizeResult::default();
    let total = projects.len() as u64;
    for (done, project) in projects.into_iter().enumerate() {
        if call.context.is_over() {
            return Err(WireError::cancelled(ccod_protocol::error::Executed::Unknown));
        }
        call.context
            .progress(done as u64, Some(total), &format!("optimizing {project}"));
        let (freed, steps) = match reclaim(&app, &project, call.deadline()).await {
            Ok(done) => done,
            // Shown by `projects`; with all projects asked for it is not an error.
            Err(KnowledgeError::NeedsMigration { .. }) if call.project.is_none() => continue,
            Err(error) => return Err(wire_error(error)),
        };
        result.freed_bytes += freed;
        for (step, count) in steps {
            *result.steps.entry(step).or_default() += count;
        }
        result.projects.push(project.to_string());
    }
    Ok(result)
}

/// Runs all the upkeep of one project. Gives back the bytes that it freed on disk and the steps it took.
pub(crate) async fn reclaim(
    app: &App,
    project: &ProjectName,
    deadline: ccod_actors::deadline::Deadline,
) -> Result<(u64, BTreeMap<String, u64>), KnowledgeError> {
    let before = bytes_on_disk(app, project).await?;
    let routes = app.routes();
    let outcome = routes
        .writer()?
        .exclusive(project.clone(), ExclusiveTask::Optimize, deadline)
        .await?;
    let after = bytes_on_disk(app, project).await?;
    Ok((before.saturating_sub(after), outcome.steps))
}

async fn bytes_on_disk(app: &App, project: &ProjectName) -> Result<u64, KnowledgeError> {
    match app.store.projects().iter().find(|known| known.name() == project) {
        Some(known) => known.bytes_on_disk().await,
        None => Ok(0),
    }
}

/// Begins the shutdown; the answer comes first.
pub(crate) async fn shutdown(app: Arc<App>, _call: Call<api::Shutdown>) -> Result<api::ShutdownResult, WireError> {
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
pub(crate) async fn version(app: Arc<App>, _call: Call<api::Version>) -> Result<api::VersionResult, WireError> {
    Ok(api::VersionResult {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: api::API_VERSION.to_owned(),
        capabilities: SERVED.iter().map(|name| (*name).to_owned()).collect(),
        limits: limits(&app),
    })
}

/// Describes the methods that are served.
pub(crate) async fn discover(_app: Arc<App>, _call: Call<api::Discover>) -> Result<Value, WireError> {
    Ok(ccod_protocol::discover::openrpc(env!("CARGO_PKG_VERSION"), SERVED))
}
