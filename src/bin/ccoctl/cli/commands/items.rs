//! `store`, `list`, `get`, `stats` and `projects`.

use std::collections::BTreeMap;

use chrono::Utc;
use clap::{Args, Subcommand};
use serde_json::Value;

use ccod::program::exit::{CliResult, Exit};
use ccod_protocol::api::{
    self, GetParams, GetResult, Item, KnowledgeType, ListParams, OnDuplicate, Order, ProjectSummary, ProjectsParams,
    StatsParams, StatsResult, StoreParams, StoreResult, StoreStatus, format_time, parse_time,
};

use super::filters::FilterArgs;
use super::project::ProjectArg;
use crate::cli::connect::{Daemon, Scope};
use crate::cli::output::{self, Align, Output, Style, Table};
use crate::cli::text::{parse_metadata, text_to_store};
use crate::cli::{Context, when};

/// Commands about items as they are.
#[derive(Debug, Subcommand)]
pub(crate) enum ItemsCommand {
    /// Store one item; prints its id
    Store(StoreArgs),
    /// List items, newest first
    List(ListArgs),
    /// Show items by id
    Get(GetArgs),
    /// Count items
    Stats(StatsArgs),
    /// List the projects
    Projects,
}

/// Runs one of them.
pub(crate) async fn run(context: &Context, command: ItemsCommand) -> CliResult {
    match command {
        ItemsCommand::Store(arguments) => store(context, arguments).await,
        ItemsCommand::List(arguments) => list(context, arguments).await,
        ItemsCommand::Get(arguments) => get(context, arguments).await,
        ItemsCommand::Stats(arguments) => stats(context, arguments).await,
        ItemsCommand::Projects => projects(context).await,
    }
}

/// Arguments of `store`.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// What to keep; `-` reads standard input
    #[arg(allow_hyphen_values = true)]
    pub(crate) text: String,
    /// What kind of knowledge it is: decision, architecture, implementation, configuration, credential, issue,
    /// pattern, general or system
    #[arg(
        long = "type",
        value_name = "T",
        default_value = "general",
        hide_default_value = false
    )]
    knowledge_type: KnowledgeType,
    /// Who learned it
    #[arg(long, value_name = "A")]
    agent: Option<String>,
    /// In which session
    #[arg(long, value_name = "S")]
    session: Option<String>,
    /// Facts about it, as a JSON object
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
    /// The id to use; made up if absent
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Repeating a store with the same key stores once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// What to do when the same content is there: return its id, or store it again
    #[arg(long, value_name = "WHAT", default_value = "return")]
    on_duplicate: OnDuplicate,
    #[command(flatten)]
    project: ProjectArg,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filters: FilterArgs,
    /// newest or oldest first
    #[arg(long, value_name = "ORDER", default_value = "newest")]
    order: Order,
    /// At most this many items
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on where a page ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    #[command(flatten)]
    project: ProjectArg,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Ids of items
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    project: ProjectArg,
}

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// The project; that of the current repository if absent
    #[arg(long, value_name = "P", conflicts_with = "all_projects")]
    project: Option<String>,
    /// Count every project
    #[arg(long)]
    all_projects: bool,
}

/// `ccoctl store`.
pub(crate) async fn store(context: &Context, arguments: StoreArgs) -> CliResult {
    let project = arguments.project.find(context)?;
    let parameters = StoreParams {
        metadata: parse_metadata(arguments.metadata.as_deref())?,
        text: text_to_store(arguments.text)?,
        knowledge_type: arguments.knowledge_type,
        agent: arguments.agent,
        session_id: arguments.session,
        id: arguments.id,
        idempotency_key: arguments.idempotency_key,
        on_duplicate: arguments.on_duplicate,
    };
    let daemon = Daemon::open(context).await?;
    let stored = daemon.call::<api::Store>(Scope::Project(&project), &parameters).await?;
    context.output.print_done(&stored, &stored.id, store_summary(&stored))?;
    Ok(Exit::Ok)
}

fn store_summary(stored: &StoreResult) -> String {
    let StoreResult {
        project_id,
        status,
        passages,
        redactions,
        ..
    } = stored;
    let mut summary = match status {
        StoreStatus::Stored => format!(
            "stored in project {project_id} ({})",
            output::counted((*passages).into(), "passage", "passages")
        ),
        StoreStatus::Duplicate => format!("already in project {project_id}; nothing was added"),
    };
    for redaction in redactions {
        summary.push_str(&format!(
            "\nredacted {} in {} ({})",
            output::counted(redaction.count, "secret", "secrets"),
            redaction.field,
            redaction.detector
        ));
    }
    summary
}

/// `ccoctl list`.
pub(crate) async fn list(context: &Context, arguments: ListArgs) -> CliResult {
    let project = arguments.project.find(context)?;
    let parameters = ListParams {
        filters: arguments.filters.into_filters(),
        order: arguments.order,
        limit: arguments.limit,
        cursor: arguments.cursor,
    };
    let daemon = Daemon::open(context).await?;
    let page = daemon.call::<api::List>(Scope::Project(&project), &parameters).await?;
    let shown = page.results.len() as u64;
    let mut summary = format!(
        "{shown} of {} in project {project}",
        output::counted(page.total, "item", "items")
    );
    if let Some(cursor) = &page.next_cursor {
        summary.push_str(&format!("; next page: --cursor {cursor}"));
    }
    context.output.answer(
        &page,
        || render_items(&context.output, &page.results, when::now()),
        || summary + &output::degraded(&page.degraded),
    )?;
    Ok(Exit::Ok)
}

fn render_items(output: &Output, items: &[Item], now: chrono::DateTime<Utc>) -> String {
    if items.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("age", Align::Left),
        ("type", Align::Left),
        ("agent", Align::Left),
        ("id", Align::Left),
        ("text", Align::Left),
    ])
    .cut_last();
    for item in items {
        table.row([
            when::age(item.timestamp, now),
            item.knowledge_type.to_string(),
            item.agent.clone().unwrap_or_else(|| "-".to_owned()),
            item.id.clone(),
            item.text.clone(),
        ]);
    }
    table.render(output)
}

/// `ccoctl get`.
pub(crate) async fn get(context: &Context, arguments: GetArgs) -> CliResult {
    let project = arguments.project.find(context)?;
    let mut ids = arguments.ids;
    let parameters = if ids.len() == 1 {
        GetParams {
            id: ids.pop(),
            ids: None,
        }
    } else {
        GetParams {
            id: None,
            ids: Some(ids),
        }
    };
    let daemon = Daemon::open(context).await?;
    let got = daemon.call::<api::Get>(Scope::Project(&project), &parameters).await?;
    if context.output.json {
        context.output.print_json(&got)?;
    }
    let (items, missing, degraded) = match got {
        GetResult::One(item) => (vec![*item], Vec::new(), None),
        GetResult::Many {
            results,
            missing,
            degraded,
        } => (results, missing, degraded),
    };
    if !context.output.json && !items.is_empty() {
        let texts: Vec<String> = items.iter().map(|item| render_item(&context.output, item)).collect();
        context.output.print(&texts.join("\n"))?;
    }
    if missing.is_empty() {
        return Ok(Exit::Ok);
    }
    if !context.output.json {
        output::message(format_args!(
            "not in project {project}: {}{}",
            missing.join(", "),
            output::degraded(&degraded)
        ));
    }
    Ok(Exit::Failed)
}

fn render_item(output: &Output, item: &Item) -> String {
    let mut fields = vec![
        ("id", output.paint(Style::Name, &output::one_line(&item.id, 256))),
        ("type", item.knowledge_type.to_string()),
        ("project", item.project_id.clone()),
        ("created", format_time(item.timestamp)),
    ];
    if item.updated_at != item.timestamp {
        fields.push(("updated", format_time(item.updated_at)));
    }
    if let Some(agent) = &item.agent {
        fields.push(("agent", output::one_line(agent, 256)));
    }
    if let Some(session) = &item.session_id {
        fields.push(("session", output::one_line(session, 256)));
    }
    if !item.metadata.is_empty() {
        fields.push(("metadata", Value::Object(item.metadata.clone()).to_string()));
    }
    format!(
        "{}\n{}\n",
        output::fields(output, &fields),
        output::printable(&item.text)
    )
}

/// `ccoctl stats`.
pub(crate) async fn stats(context: &Context, arguments: StatsArgs) -> CliResult {
    let scope_name = (!arguments.all_projects)
        .then(|| context.project(arguments.project.as_deref()))
        .transpose()?;
    let daemon = Daemon::open(context).await?;
    let counted = daemon
        .call::<api::Stats>(Scope::of(scope_name.as_deref()), &StatsParams {})
        .await?;
    context.output.answer(
        &counted,
        || render_stats(&context.output, &counted, scope_name.as_deref()),
        || output::project_errors(&counted.errors),
    )?;
    Ok(Exit::Ok)
}

fn render_stats(output: &Output, stats: &StatsResult, project: Option<&str>) -> String {
    let counts = |counts: &BTreeMap<String, u64>| {
        let mut sorted: Vec<_> = counts.iter().collect();
        sorted.sort_by(|left, right| right.1.cmp(left.1).then(left.0.cmp(right.0)));
        let words: Vec<String> = sorted
            .into_iter()
            .map(|(name, count)| match output::one_line(name, 60).as_str() {
                // Items without an agent.
                "" => format!("(none) {count}"),
                name => format!("{name} {count}"),
            })
            .collect();
        if words.is_empty() {
            "-".to_owned()
        } else {
            words.join(", ")
        }
    };
    let time = |time: &Option<String>| time.clone().unwrap_or_else(|| "-".to_owned());
    let mut fields = vec![
        ("project", project.unwrap_or("all").to_owned()),
        ("items", output.paint(Style::Strong, &stats.total.to_string())),
        ("passages", stats.passages.to_string()),
        ("by type", counts(&stats.by_type)),
        ("by agent", counts(&stats.by_agent)),
    ];
    if project.is_none() {
        fields.push(("by project", counts(&stats.by_project)));
    }
    fields.extend([
        ("oldest", time(&stats.oldest)),
        ("newest", time(&stats.newest)),
        ("on disk", output::bytes(stats.bytes_on_disk)),
        ("model", stats.model.name.clone()),
    ]);
    output::fields(output, &fields)
}

/// `ccoctl projects`.
pub(crate) async fn projects(context: &Context) -> CliResult {
    let daemon = Daemon::open(context).await?;
    let listed = daemon.call::<api::Projects>(Scope::None, &ProjectsParams {}).await?;
    let message = match (listed.projects.is_empty(), listed.errors.is_empty()) {
        (true, true) => "no projects yet; the first `ccoctl store` makes one".to_owned(),
        _ => output::project_errors(&listed.errors),
    };
    context.output.answer(
        &listed,
        || render_projects(&context.output, &listed.projects, when::now()),
        || message,
    )?;
    Ok(Exit::Ok)
}

fn render_projects(output: &Output, projects: &[ProjectSummary], now: chrono::DateTime<Utc>) -> String {
    if projects.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("project", Align::Left),
        ("items", Align::Right),
        ("on disk", Align::Right),
        ("newest", Align::Left),
        ("state", Align::Left),
    ]);
    for project in projects {
        table.row([
            project.project_id.clone(),
            project.total.to_string(),
            output::bytes(project.bytes_on_disk),
            project
                .newest
                .as_deref()
                .and_then(|newest| parse_time(newest, "newest").ok())
                .map_or_else(|| "-".to_owned(), |newest| when::age(newest, now)),
            project.state.clone().unwrap_or_else(|| "ok".to_owned()),
        ]);
    }
    table.render(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ccod_protocol::api::{Metadata, Redaction};

    #[test]
    fn items_that_name_no_agent_are_counted_under_no_name() {
        let mut stats = StatsResult::default();
        stats.by_agent.extend([(String::new(), 3), ("planner".to_owned(), 4)]);
        let text = render_stats(&Output::plain(), &stats, Some("web"));
        assert!(text.contains("by agent  planner 4, (none) 3\n"), "{text}");
    }

    #[test]
    fn redactions_are_reported() {
        let stored = StoreResult {
            id: "x".to_owned(),
            project_id: "web".to_owned(),
            status: StoreStatus::Stored,
            timestamp: String::new(),
            passages: 2,
            redactions: vec![Redaction {
                detector: "aws-key".to_owned(),
                field: "text".to_owned(),
                count: 1,
            }],
            version: 3,
            durability: api::Durability::Full,
        };
        assert_eq!(
            store_summary(&stored),
            "stored in project web (2 passages)\nredacted 1 secret in text (aws-key)"
        );
    }

    #[test]
    fn an_item_shows_its_whole_text() {
        let item = Item {
            id: "x".to_owned(),
            text: "one\ntwo".to_owned(),
            knowledge_type: KnowledgeType::Pattern,
            project_id: "web".to_owned(),
            session_id: None,
            agent: Some("a".to_owned()),
            timestamp: parse_time("2025-03-10", "timestamp").expect("a date"),
            updated_at: parse_time("2025-03-10", "updated_at").expect("a date"),
            metadata: Metadata::new(),
            passages: 1,
        };
        assert_eq!(
            render_item(&Output::plain(), &item),
            "id       x\ntype     pattern\nproject  web\ncreated  2025-03-10T00:00:00.000Z\nagent    a\n\none\ntwo\n"
        );
    }
}
