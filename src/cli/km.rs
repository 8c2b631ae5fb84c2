//! The drop-in for the old `knowledge-manager`: the same commands, the same output, without its log lines.
//!
//! Scripts and agents parse this output, so it does not depend on the terminal: `store` prints one line,
//! `search`, `stats` and `test` print indented JSON, as the old tool did. Scores are higher for better hits,
//! where the old tool printed distances.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::Utc;
use clap::Subcommand;
use serde::Serialize;

use ccod_protocol::api::{
    self, Filters, KnowledgeType, ListParams, Metadata, OnDuplicate, PurgeParams, SearchHit, SearchParams, StatsParams,
    StatsResult, StoreParams,
};

use super::connect::{Daemon, Scope};
use super::exit::{CliError, CliResult, Exit};
use super::{Context, knowledge, project};

/// Agent of items that name none, as the old tool had it.
const DEFAULT_AGENT: &str = "cli";

/// Hits of a search that names no limit.
const DEFAULT_LIMIT: u32 = 10;

/// Most hits that the daemon gives at once; the old tool had no limit, so more is cut down and not refused.
const MAX_HITS: u32 = 100;

/// The text that `test` stores and looks for.
const TEST_TEXT: &str = "The knowledge manager keeps what agents learn and finds it again by its meaning.";

/// A question in other words than [`TEST_TEXT`].
const TEST_QUERY: &str = "how do agents find again what they have learned before";

/// Age from which what lies in the project of `test` was left by a run that is over, not by one beside it.
const TEST_LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// Commands of `knowledge-manager`.
#[derive(Debug, Subcommand)]
pub(crate) enum KmCommand {
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
    /// Store, search, count and purge in a project of its own; prints what it found
    Test,
}

// Scripts pass the words by position, `store "$TEXT" "$TYPE" "$AGENT"`: an empty one is one that was not given, as
// it was for the old tool.

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
        let SearchHit {
            id,
            text,
            knowledge_type,
            project_id,
            session_id,
            agent,
            timestamp,
            metadata,
            score,
            ..
        } = hit;
        Self {
            id,
            text,
            knowledge_type,
            project_id,
            session_id,
            agent,
            timestamp,
            metadata,
            score,
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

/// What `test` found out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TestReport {
    success: bool,
    project: String,
    stored_id: String,
    found_first: bool,
    total_records: u64,
    purged: u64,
    note: &'static str,
}

/// Runs a command of `knowledge-manager`.
pub(crate) async fn run(context: &Context, command: KmCommand) -> CliResult {
    if let KmCommand::Test = command {
        return test(context).await;
    }
    if let KmCommand::Store { text, .. } = &command {
        knowledge::check_not_blank(text)?;
    }
    let project = context.project(None)?;
    let daemon = Daemon::open(context).await?;
    match command {
        KmCommand::Store {
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
        KmCommand::Search { query, limit } => {
            let hits = search(&daemon, &project, query, limit.min(MAX_HITS)).await?;
            print(context, &hits)?;
        }
        KmCommand::Stats => print(context, &stats(&daemon, &project).await?)?,
        KmCommand::Test => {}
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

/// Stores a sentence, asks for it in other words, and purges it, whatever came out.
///
/// Each run has an item of its own, so that runs side by side do not purge each other's. All items of the project
/// have the same text, so the best hit may be another run's.
async fn test(context: &Context) -> CliResult {
    let project = project::TEST_PROJECT;
    let daemon = Daemon::open(context).await?;
    let parameters = StoreParams {
        text: TEST_TEXT.to_owned(),
        knowledge_type: KnowledgeType::System,
        agent: Some(DEFAULT_AGENT.to_owned()),
        on_duplicate: OnDuplicate::Store,
        ..StoreParams::default()
    };
    let stored_id = store(&daemon, project, &parameters).await?;
    let tried = async {
        let hits = search(&daemon, project, TEST_QUERY.to_owned(), MAX_HITS).await?;
        Ok::<_, CliError>((hits, stats(&daemon, project).await?))
    }
    .await;
    let purged = purge_tests(&daemon, project, stored_id.clone()).await;
    let (hits, counted) = tried?;
    let purged = purged?;
    let found_first =
        hits.first().is_some_and(|hit| hit.text == TEST_TEXT) && hits.iter().any(|hit| hit.id == stored_id);
    let report = TestReport {
        success: found_first,
        project: project.to_owned(),
        stored_id,
        found_first,
        total_records: counted.total_records,
        purged,
        note: "what the test stored is purged",
    };
    print(context, &report)?;
    if found_first {
        return Ok(Exit::Ok);
    }
    Err(
        CliError::new(Exit::Failed, "the item that was just stored was not found by a search")
            .fix("run `ccoctl status` to see which part does not work"),
    )
}

/// Purges the item `stored_id` of a test, and what earlier tests have left; how many items that were.
async fn purge_tests(daemon: &Daemon, project: &str, stored_id: String) -> CliResult<u64> {
    let leftovers = ListParams {
        filters: Filters {
            until: Some(api::format_time(Utc::now() - TEST_LEFTOVER_AGE)),
            ..Filters::default()
        },
        // Each run clears up, so there are few; more than that go with the next runs.
        limit: 100,
        ..ListParams::default()
    };
    let left = daemon.call::<api::List>(Scope::Project(project), &leftovers).await?;
    let ids = std::iter::once(stored_id)
        .chain(left.results.into_iter().map(|item| item.id))
        .collect();
    let parameters = PurgeParams {
        ids: Some(ids),
        confirm: true,
        ..PurgeParams::default()
    };
    let purged = daemon.call::<api::Purge>(Scope::Project(project), &parameters).await?;
    Ok(purged.purged)
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
