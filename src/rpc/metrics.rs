//! The numbers of `admin.status` as metrics. They are built again for each scrape: nothing is counted twice, and what
//! is gone (a project, a queue) leaves no line behind.

use std::fmt;
use std::sync::atomic::AtomicU64;

use ccod_protocol::api::{HealthStatus, StatusResult};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serde_json::Value;

type Labels = Vec<(&'static str, String)>;

/// Counters of the parts that go up and down, or never change.
const LEVELS: [&str; 4] = ["capacity", "idle", "load_ms", "max_tokens"];
/// Numbers of the socket that go up and down.
const SERVER_LEVELS: [&str; 3] = ["connections_open", "in_flight", "bytes_buffered"];

/// The metrics at the time of the call, in OpenMetrics' text format, which Prometheus reads.
pub(crate) fn render(status: &StatusResult) -> Result<String, fmt::Error> {
    let mut metrics = Metrics(Registry::with_prefix("ccod"));
    metrics.daemon(status);
    metrics.parts(status);
    metrics.caches(status);
    metrics.server(status);
    metrics.projects(status);
    let mut text = String::new();
    encode(&mut text, &metrics.0)?;
    Ok(text)
}

struct Metrics(Registry);

impl Metrics {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        self.0.register(name, help, gauge);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }

    fn gauges(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }

    fn counters(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }

    fn daemon(&mut self, status: &StatusResult) {
        let build = Info::new(vec![
            ("version", status.version.clone()),
            ("model", status.model.identity.name.clone()),
            ("engine", status.model.engine.clone()),
            ("precision", status.model.precision.clone()),
            ("durability", status.durability.to_string()),
        ]);
        self.0.register("build", "What the daemon is", build);
        let healthy = f64::from(u8::from(status.status == HealthStatus::Ok));
        self.gauge(
            "healthy",
            "1 if everything works, 0 if admin.health has reasons",
            healthy,
        );
        self.gauge(
            "uptime_seconds",
            "Seconds since the start",
            status.uptime_ms as f64 / 1e3,
        );
        let memory = [
            ("rss", status.memory.rss_bytes),
            ("peak_rss", status.memory.peak_rss_bytes),
        ];
        self.gauges(
            "memory_bytes",
            "Memory of the process",
            memory.map(|(kind, bytes)| (vec![("kind", kind.to_owned())], bytes as f64)),
        );
        self.gauge(
            "recovery_findings",
            "What recovery did, and what was found that is not served; admin.status has the words",
            status.recovery.len() as f64,
        );
    }

    fn parts(&mut self, status: &StatusResult) {
        let part = |name: &String| ("part", name.clone());
        let running = |state: &str| f64::from(u8::from(state == "running"));
        let parts = || status.actors.iter();
        self.gauges(
            "part_running",
            "1 if the part works",
            parts().map(|(name, actor)| (vec![part(name)], running(&actor.state))),
        );
        self.counters(
            "part_restarts",
            "Restarts",
            parts().map(|(name, actor)| (vec![part(name)], actor.restarts)),
        );
        self.counters(
            "part_batches",
            "Batches: commits of the writer, forward passes of the embedder",
            parts().map(|(name, actor)| (vec![part(name)], actor.batches)),
        );
        self.gauges(
            "part_queue_depth",
            "What waits",
            parts().flat_map(|(name, actor)| {
                let depths = actor.queue_depth.iter();
                depths.map(move |(queue, depth)| (vec![part(name), ("queue", queue.clone())], *depth as f64))
            }),
        );
        self.counters(
            "part_flushes",
            "Batches by what made them go",
            parts().flat_map(|(name, actor)| {
                let causes = actor.flush_causes.iter();
                causes.map(move |(cause, count)| (vec![part(name), ("cause", cause.clone())], *count))
            }),
        );
        let numbers = || {
            parts().flat_map(|(name, actor)| {
                let counters = actor.counters.iter();
                counters.map(move |(what, count)| (what.as_str(), vec![part(name), ("what", what.clone())], *count))
            })
        };
        self.counters(
            "part_events",
            "What the parts count since they were started",
            numbers()
                .filter(|(what, ..)| !LEVELS.contains(what))
                .map(|(_, labels, count)| (labels, count)),
        );
        self.gauges(
            "part_levels",
            "Other numbers of the parts",
            numbers()
                .filter(|(what, ..)| LEVELS.contains(what))
                .map(|(_, labels, count)| (labels, count as f64)),
        );
    }

    fn caches(&mut self, status: &StatusResult) {
        let of = |wanted: &'static str| {
            status.caches.iter().filter_map(move |(cache, numbers)| {
                let number = numbers.get(wanted)?;
                Some((vec![("cache", cache.clone())], *number))
            })
        };
        let level = |wanted| of(wanted).map(|(labels, number)| (labels, number as f64));
        self.gauges("cache_bytes", "Bytes in the cache", level("bytes"));
        self.gauges(
            "cache_capacity_bytes",
            "The most bytes that may be",
            level("capacity_bytes"),
        );
        self.counters("cache_hits", "What was in the cache", of("hits"));
        self.counters("cache_misses", "What was not", of("misses"));
        self.gauges("cache_projects", "Projects with a part in the cache", level("projects"));
        self.gauges("cache_passages", "Passages in the cache", level("passages"));
        self.counters(
            "cache_evictions",
            "How often a project's part gave way to others",
            of("evicted"),
        );
    }

    fn server(&mut self, status: &StatusResult) {
        for (name, value) in &status.server {
            match value {
                Value::Number(number) if SERVER_LEVELS.contains(&name.as_str()) => {
                    let level = number.as_f64().unwrap_or_default();
                    self.gauge(&format!("server_{name}"), "Of the socket, now", level);
                }
                Value::Number(number) => {
                    let count = number.as_u64().unwrap_or_default();
                    let name = name.strip_suffix("_total").unwrap_or(name);
                    self.counter(&format!("server_{name}"), "Of the socket, since the start", count);
                }
                _ => {}
            }
        }
        let errors = status.server.get("errors").and_then(Value::as_object);
        let errors = errors.into_iter().flatten();
        self.counters(
            "server_errors",
            "Error answers by code",
            errors.map(|(code, count)| (vec![("code", code.clone())], count.as_u64().unwrap_or_default())),
        );
    }

    fn projects(&mut self, status: &StatusResult) {
        let label = |name: &str| ("project", name.to_owned());
        let of = |number: fn(&ccod_protocol::api::ProjectStatus) -> u64| {
            let projects = status.projects.iter();
            projects.map(move |project| (vec![label(&project.project_id)], number(project) as f64))
        };
        let failed = status.errors.iter();
        self.gauges(
            "project_unreadable",
            "1 for each project that cannot be read, as a whole or in part; admin.status says why",
            failed.map(|failed| (vec![label(&failed.project_id)], 1.0)),
        );
        self.gauges("project_items", "Live items", of(|project| project.items));
        self.gauges(
            "project_rows",
            "Rows, with further passages and closed ones",
            of(|project| project.rows),
        );
        self.gauges(
            "project_disk_bytes",
            "Bytes on disk",
            of(|project| project.bytes_on_disk),
        );
        self.gauges(
            "project_fragments",
            "Fragments of the table",
            of(|project| project.fragments),
        );
        self.gauges("project_versions", "Versions on disk", of(|project| project.versions));
        let debt = status.projects.iter().flat_map(|project| {
            let kinds = project.maintenance_debt.iter();
            kinds.map(|(kind, debt)| {
                let labels = vec![label(&project.project_id), ("kind", kind.clone())];
                (labels, *debt as f64)
            })
        });
        self.gauges("project_maintenance_debt", "Upkeep that is due, by kind", debt);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ccod_protocol::api::{ActorStatus, ProjectStatus};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_numbers_of_a_status_become_lines() {
        let named = |name: &str, number: u64| BTreeMap::from([(name.to_owned(), number)]);
        let server = json!({"requests": 7, "connections_open": 2, "connections_total": 5, "errors": {"-32602": 3}});
        let status = StatusResult {
            status: HealthStatus::Ok,
            version: "1.2.3".to_owned(),
            actors: BTreeMap::from([(
                "writer".to_owned(),
                ActorStatus {
                    state: "running".to_owned(),
                    restarts: 4,
                    queue_depth: named("queued_items", 9),
                    counters: named("items", 11),
                    ..ActorStatus::default()
                },
            )]),
            server: server.as_object().cloned().unwrap(),
            projects: vec![ProjectStatus {
                project_id: "a \"b\"\n".to_owned(),
                items: 12,
                maintenance_debt: named("unindexed_rows", 13),
                ..ProjectStatus::default()
            }],
            ..StatusResult::default()
        };
        let text = render(&status).unwrap();
        for line in [
            r#"ccod_healthy 1.0"#,
            r#"ccod_part_restarts_total{part="writer"} 4"#,
            r#"ccod_part_queue_depth{part="writer",queue="queued_items"} 9.0"#,
            r#"ccod_part_events_total{part="writer",what="items"} 11"#,
            "ccod_server_requests_total 7",
            "ccod_server_connections_open 2.0",
            "ccod_server_connections_total 5",
            r#"ccod_server_errors_total{code="-32602"} 3"#,
            r#"ccod_project_items{project="a \"b\"\n"} 12.0"#,
            r#"ccod_project_maintenance_debt{project="a \"b\"\n",kind="unindexed_rows"} 13.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(text.contains(r#"version="1.2.3""#), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
