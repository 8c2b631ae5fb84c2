//! The drop-in for the old `knowledge-manager`: the same commands, the same output, without its log lines.
//!
//! Scripts and agents parse this output, so it does not depend on the terminal: `store` prints one line,
//! `search`, `stats` and `test` print indented JSON, as the old tool did. Scores are higher for better hits,
//! where the old tool printed distances.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Serialize;

use ccod::program::exit::{CliError, CliResult, Exit};
use ccod_protocol::api::{
    self, HealthParams, HealthStatus, KnowledgeType, Metadata, SearchHit, SearchParams, StatsParams, StatsResult,
    StoreParams, format_time,
};

use crate::cli::Context;
use crate::cli::connect::{Daemon, Scope};
use crate::cli::text::check_not_blank;

/// Agent of items without one, as in the old tool.
const DEFAULT_AGENT: &str = "cli";

/// Hits of a search without a limit.
const DEFAULT_LIMIT: u32 = 10;

/// Most hits that the daemon gives at once; the old tool had no limit, so a larger number is lowered and not refused.
const MAX_HITS: u32 = 100;

/// Commands of `knowledge-manager`.
#[derive(Debug, Subcommand)]
pub(crate) enum LegacyCommand {
    /// Store a text; prints `Stored with ID: <id>`
    Store {
        /// What to keep
        #[arg(allow_hyphen_values = true)]
        text: String,
        /// What kind of knowledge it is
        #[arg(id = "km_type", value_name = "TYPE", default_value = "general", value_parser = parse_type)]
        knowledge_type: KnowledgeType,
        /// Who learned it
        #[arg(id = "km_agent", value_name = "AGENT", default_value = DEFAULT_AGENT)]
        agent: String,
    },
    /// Find items; prints a JSON array
    Search {
        /// What to look for
        #[arg(allow_hyphen_values = true)]
        query: String,
        /// At most this many
        #[arg(id = "km_limit", value_name = "LIMIT", default_value_t = DEFAULT_LIMIT, value_parser = parse_limit)]
        limit: u32,
    },
    /// Count items; prints a JSON object
    Stats,
    /// Store, search and remove in a project of its own; prints what it found
    Test,
}

// Scripts pass the words by position, `store "$TEXT" "$TYPE" "$AGENT"`: an empty word counts as absent, as the old tool
// took it.

fn parse_type(text: &str) -> Result<KnowledgeType, String> {
    match text.trim() {
        "" => Ok(KnowledgeType::General),
        word => word.parse().map_err(|error| format!("{error}")),
    }
}

fn parse_limit(text: &str) -> Result<u32, String> {
    match text.trim() {
        "" => Ok(DEFAULT_LIMIT),
        number => number
            .parse()
            .ok()
            .filter(|limit| *limit > 0)
            .ok_or_else(|| "takes a number from 1 on".to_owned()),
    }
}

/// A hit as the old tool printed it.
#[derive(Debug, Serialize)]
struct Hit {
    id: String,
    text: String,
    #[serde(rename = "type")]
    knowledge_type: KnowledgeType,
    project_id: String,
    session_id: Option<String>,
    agent: Option<String>,
    timestamp: String,
    metadata: Metadata,
    score: f32,
}

impl From<SearchHit> for Hit {
    fn from(hit: SearchHit) -> Self {
        Self {
            id: hit.id,
            text: hit.text,
            knowledge_type: hit.knowledge_type,
            project_id: hit.project_id,
            session_id: hit.session_id,
            agent: hit.agent,
            timestamp: format_time(hit.timestamp),
            metadata: hit.metadata,
            score: hit.score,
        }
    }
}

/// The counts as the old tool printed them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    repository: String,
    total_records: u64,
    by_type: BTreeMap<String, u64>,
    by_agent: BTreeMap<String, u64>,
    by_project: BTreeMap<String, u64>,
    oldest_record: Option<String>,
    newest_record: Option<String>,
}

impl Stats {
    fn new(repository: &str, stats: StatsResult) -> Self {
        Self {
            repository: repository.to_owned(),
            total_records: stats.total,
            by_type: stats.by_type,
            by_agent: stats.by_agent,
            by_project: stats.by_project,
            oldest_record: stats.oldest,
            newest_record: stats.newest,
        }
    }
}

/// The result of `test`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TestReport {
    success: bool,
    /// Items that were removed for good: the one that was stored, if all went well.
    purged: u32,
    status: HealthStatus,
    reasons: Vec<String>,
    note: &'static str,
}

/// Runs a command of `knowledge-manager`.
pub(crate) async fn run(context: &Context, command: LegacyCommand) -> CliResult {
    if let LegacyCommand::Test = command {
        return test(context).await;
    }
    if let LegacyCommand::Store { text, .. } = &command {
        check_not_blank(text)?;
    }
    let project = context.project(None)?;
    let daemon = Daemon::open(context).await?;
    match command {
        LegacyCommand::Store {
            text,
            knowledge_type,
            agent,
        } => {
            let agent = if agent.trim().is_empty() {
                DEFAULT_AGENT.to_owned()
            } else {
                agent
            };
            let parameters = StoreParams {
                text,
                knowledge_type,
                agent: Some(agent),
                ..StoreParams::default()
            };
            let stored = store(&daemon, &project, &parameters).await?;
            let result = serde_json::json!({ "id": stored, "project_id": project });
            context
                .output
                .print_text_done(&result, &format!("Stored with ID: {stored}"))?;
        }
        LegacyCommand::Search { query, limit } => {
            let hits = search(&daemon, &project, query, limit.min(MAX_HITS)).await?;
            print(context, &hits)?;
        }
        LegacyCommand::Stats => print(context, &stats(&daemon, &project).await?)?,
        LegacyCommand::Test => {}
    }
    Ok(Exit::Ok)
}

/// Indented, as the old tool did, or on one line with `--json`.
fn print(context: &Context, value: &impl Serialize) -> CliResult<()> {
    if context.output.json {
        return context.output.print_json(value);
    }
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::new(Exit::Failed, format!("cannot print the result: {error}")))?;
    context.output.print(&text)
}

async fn store(daemon: &Daemon, project: &str, parameters: &StoreParams) -> CliResult<String> {
    let stored = daemon.call::<api::Store>(Scope::Project(project), parameters).await?;
    Ok(stored.id)
}

async fn search(daemon: &Daemon, project: &str, query: String, limit: u32) -> CliResult<Vec<Hit>> {
    let parameters = SearchParams {
        query,
        limit,
        ..SearchParams::default()
    };
    let found = daemon.call::<api::Search>(Scope::Project(project), &parameters).await?;
    Ok(found.results.into_iter().map(Hit::from).collect())
}

async fn stats(daemon: &Daemon, project: &str) -> CliResult<Stats> {
    let counted = daemon
        .call::<api::Stats>(Scope::Project(project), &StatsParams {})
        .await?;
    Ok(Stats::new(project, counted))
}

/// The daemon's own deep health check: it stores, searches and removes, in a project that is nobody's.
async fn test(context: &Context) -> CliResult {
    let daemon = Daemon::open(context).await?;
    let health = daemon
        .call::<api::Health>(Scope::None, &HealthParams { deep: true })
        .await?;
    let success = health.status == HealthStatus::Ok;
    let report = TestReport {
        success,
        purged: u32::from(success),
        status: health.status,
        reasons: health.reasons,
        note: "stored, searched and removed in a project of its own; nothing else was touched",
    };
    print(context, &report)?;
    if success {
        return Ok(Exit::Ok);
    }
    Err(CliError::new(Exit::Failed, "the daemon does not work as it should")
        .fix("`reasons` say what is wrong; `ccoctl status` shows more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_have_the_old_names() {
        let mut result = StatsResult {
            total: 2,
            newest: Some("n".to_owned()),
            ..StatsResult::default()
        };
        result.by_type.insert("issue".to_owned(), 2);
        let json = serde_json::to_string(&Stats::new("web", result)).expect("serialises");
        assert_eq!(
            json,
            r#"{"repository":"web","totalRecords":2,"byType":{"issue":2},"byAgent":{},"byProject":{},"oldestRecord":null,"newestRecord":"n"}"#
        );
    }

    #[test]
    fn hits_have_the_old_names() {
        let hit = Hit {
            id: "i".to_owned(),
            text: "t".to_owned(),
            knowledge_type: KnowledgeType::Issue,
            project_id: "p".to_owned(),
            session_id: None,
            agent: Some("a".to_owned()),
            timestamp: "z".to_owned(),
            metadata: Metadata::new(),
            score: 0.5,
        };
        assert_eq!(
            serde_json::to_string(&hit).expect("serialises"),
            r#"{"id":"i","text":"t","type":"issue","project_id":"p","session_id":null,"agent":"a","timestamp":"z","metadata":{},"score":0.5}"#
        );
    }
}
