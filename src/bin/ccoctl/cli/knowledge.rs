//! `store`, `search`, `list`, `get`, `stats`, `projects` and `embed`.

use std::collections::BTreeMap;
use std::io::Read;

use chrono::Utc;
use clap::Args;
use serde_json::Value;

use ccod_protocol::api::{
    self, AsOf, EmbedParams, Filters, GetParams, GetResult, Item, KnowledgeType, ListParams, Metadata, MetadataFilter,
    OnDuplicate, OneOrMany, Order, ProjectsParams, SearchHit, SearchMode, SearchParams, SearchResult, StatsParams,
    StatsResult, StoreParams, StoreResult, StoreStatus, rounded_integer,
};

use super::connect::{Daemon, Scope};
use super::output::{self, Align, Output, Style, Table};
use super::{Context, when};
use ccod::program::exit::{CliError, CliResult, Exit};

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
    /// The project; that of the current repository if absent
    #[arg(long, value_name = "P")]
    project: Option<String>,
}

/// Conditions that `search`, `list`, `delete` and `cleanup` share.
#[derive(Debug, Default, Args)]
pub(crate) struct FilterArgs {
    /// Only items of this type; may be repeated
    #[arg(long = "type", value_name = "T")]
    knowledge_type: Vec<KnowledgeType>,
    /// Only items of this agent; may be repeated
    #[arg(long, value_name = "A")]
    agent: Vec<String>,
    /// Only items of this session; may be repeated
    #[arg(long, value_name = "S")]
    session: Vec<String>,
    /// Only items created at this time or later: 7d, 12h, a date, or RFC 3339
    #[arg(long, value_name = "D", value_parser = parse_moment)]
    since: Option<String>,
    /// Only items created before this time
    #[arg(long, value_name = "D", value_parser = parse_moment)]
    until: Option<String>,
    /// Only items whose metadata has this value under this key, or all of a JSON object; may be repeated
    #[arg(long = "meta", alias = "metadata", value_name = "KEY=VALUE", value_parser = parse_conditions)]
    metadata: Vec<MetadataFilter>,
}

impl FilterArgs {
    pub(crate) fn into_filters(self) -> Filters {
        Filters {
            knowledge_type: any_of(self.knowledge_type),
            agent: any_of(self.agent),
            session_id: any_of(self.session),
            since: self.since,
            until: self.until,
            metadata: self.metadata.into_iter().flatten().collect(),
        }
    }
}

/// Arguments of `search`.
#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// What to look for, in words
    #[arg(allow_hyphen_values = true)]
    query: String,
    /// At most this many hits
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
    /// Hits to leave out at the start
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u32,
    /// Go on where a page ended, whatever was written since: its `next_cursor` (shown by --json)
    #[arg(long, value_name = "CURSOR", conflicts_with = "offset")]
    cursor: Option<String>,
    /// Which evidence to use: hybrid, vector (meaning) or text (keywords)
    #[arg(long, value_name = "M", default_value = "hybrid")]
    mode: SearchMode,
    /// Leave out hits whose score is below this, 0 to 1
    #[arg(long, value_name = "X", value_parser = parse_threshold)]
    threshold: Option<f32>,
    #[command(flatten)]
    filters: FilterArgs,
    /// At most this many tokens of text in all
    #[arg(long, value_name = "N")]
    budget_tokens: Option<u32>,
    /// The project; that of the current repository if absent
    #[arg(long, value_name = "P", conflicts_with = "all_projects")]
    project: Option<String>,
    /// Search every project
    #[arg(long)]
    all_projects: bool,
    /// Search what was known then: a version of the project, or a time (7d, a date, RFC 3339)
    #[arg(long, value_name = "VERSION|TIME", value_parser = parse_as_of)]
    as_of: Option<AsOf>,
    /// Show how each score came about
    #[arg(long)]
    explain: bool,
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
    /// The project; that of the current repository if absent
    #[arg(long, value_name = "P")]
    project: Option<String>,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Ids of items
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// The project; that of the current repository if absent
    #[arg(long, value_name = "P")]
    project: Option<String>,
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

/// Arguments of `embed`.
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// The text; `-` reads standard input
    #[arg(allow_hyphen_values = true)]
    text: String,
}

/// What is no number (`nan`) has no place in JSON, and would be sent as no threshold.
fn parse_threshold(text: &str) -> Result<f32, String> {
    let threshold: f32 = text.parse().map_err(|_| "takes a number from 0 to 1".to_owned())?;
    if (0.0..=1.0).contains(&threshold) {
        Ok(threshold)
    } else {
        Err("takes a number from 0 to 1".to_owned())
    }
}

fn parse_moment(text: &str) -> Result<String, String> {
    when::parse(text, when::now())
}

/// A number is a version; anything else is a time.
fn parse_as_of(text: &str) -> Result<AsOf, String> {
    match text.trim().parse() {
        Ok(version) => Ok(AsOf::Version(version)),
        Err(_) => parse_moment(text).map(AsOf::Time),
    }
}

/// `key=value`, where the value is JSON if it reads as such and a text if not; or several as a JSON object, as
/// `store` takes them.
fn parse_conditions(text: &str) -> Result<MetadataFilter, String> {
    if text.trim_start().starts_with('{') {
        if let Some(place) = rounded_integer(text) {
            return Err(too_large(&place));
        }
        let conditions: MetadataFilter =
            serde_json::from_str(text).map_err(|error| format!("is no JSON object: {error}"))?;
        // What was computed and came out as nothing must not mean all items.
        if conditions.is_empty() {
            return Err("is an empty object, which does not mean all; leave it out".to_owned());
        }
        if let Some((key, _)) = conditions.iter().find(|(_, value)| value.is_null()) {
            return Err(format!("has no value for `{key}`"));
        }
        return Ok(conditions);
    }
    let (key, value) = text.split_once('=').ok_or("takes the form KEY=VALUE")?;
    if key.trim().is_empty() {
        return Err("takes the form KEY=VALUE, and the key is empty".to_owned());
    }
    if rounded_integer(value).is_some() && serde_json::from_str::<Value>(value).is_ok() {
        return Err(too_large(key));
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok(MetadataFilter::from_iter([(key.to_owned(), value)]))
}

/// What is wrong with an integer that stands at `place`: to read it here would make it another one.
fn too_large(place: &str) -> String {
    format!("has an integer under `{place}` that needs more than 64 bits; give it as a string, in double quotes")
}

fn any_of<T>(mut values: Vec<T>) -> Option<OneOrMany<T>> {
    match values.len() {
        0 => None,
        1 => values.pop().map(OneOrMany::One),
        _ => Some(OneOrMany::Many(values)),
    }
}

/// `text`, or standard input if it is `-`.
pub(crate) fn text_or_stdin(text: String) -> CliResult<String> {
    if text != "-" {
        return Ok(text);
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .read_to_end(&mut bytes)
        .map_err(|error| CliError::io("read standard input", &error))?;
    let input = String::from_utf8(bytes)
        .map_err(|_| CliError::new(Exit::BadData, "standard input is not UTF-8").fix("convert it first (iconv)"))?;
    Ok(without_last_newline(&input).to_owned())
}

/// What was said by a pipe: the newline that ends its last line, in either form, is not part of it.
fn without_last_newline(input: &str) -> &str {
    match input.strip_suffix('\n') {
        Some(line) => line.strip_suffix('\r').unwrap_or(line),
        None => input,
    }
}

/// Refuses a text that says nothing, before a daemon is started for it.
pub(crate) fn check_not_blank(text: &str) -> CliResult<()> {
    if text.trim().is_empty() {
        return Err(
            CliError::new(Exit::BadData, "the text is empty, so there is nothing to store")
                .fix("if it comes from a variable or a pipe, see whether that holds anything"),
        );
    }
    Ok(())
}

/// As [`text_or_stdin`], and not blank.
pub(crate) fn text_to_store(text: String) -> CliResult<String> {
    let text = text_or_stdin(text)?;
    check_not_blank(&text)?;
    Ok(text)
}

pub(crate) fn parse_metadata(text: Option<&str>) -> CliResult<Metadata> {
    let Some(text) = text else {
        return Ok(Metadata::new());
    };
    let refused = |what: String| {
        CliError::new(Exit::BadData, format!("--metadata {what}")).fix("write it like '{\"file\":\"src/auth.rs\"}'")
    };
    if !text.trim_start().starts_with('{') {
        return Err(refused("is no JSON object".to_owned()));
    }
    if let Some(place) = rounded_integer(text) {
        return Err(CliError::new(
            Exit::BadData,
            format!("--metadata {}", too_large(&place)),
        ));
    }
    let members: MetadataFilter =
        serde_json::from_str(text).map_err(|error| refused(format!("is no JSON object: {error}")))?;
    let mut metadata = Metadata::new();
    for (key, value) in members {
        if metadata.contains_key(&key) {
            return Err(refused(format!("gives the key {key:?} two different values")));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// `ccoctl store`.
pub(crate) async fn store(context: &Context, arguments: StoreArgs) -> CliResult {
    let project = context.project(arguments.project.as_deref())?;
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

/// `ccoctl search`.
pub(crate) async fn search(context: &Context, arguments: SearchArgs) -> CliResult {
    let asked = arguments.mode;
    let scope_name = (!arguments.all_projects)
        .then(|| context.project(arguments.project.as_deref()))
        .transpose()?;
    let parameters = SearchParams {
        query: arguments.query,
        limit: arguments.limit,
        offset: arguments.offset,
        mode: arguments.mode,
        threshold: arguments.threshold,
        filters: arguments.filters.into_filters(),
        budget_tokens: arguments.budget_tokens,
        projects: arguments.all_projects.then(|| OneOrMany::One("*".to_owned())),
        as_of: arguments.as_of,
        explain: arguments.explain,
        cursor: arguments.cursor,
    };
    let daemon = Daemon::open(context).await?;
    let found = daemon
        .call::<api::Search>(Scope::of(scope_name.as_deref()), &parameters)
        .await?;
    if context.output.json {
        context.output.print_json(&found)?;
        return Ok(Exit::Ok);
    }
    if !found.results.is_empty() {
        let view = HitView {
            with_project: scope_name.is_none(),
            explain: arguments.explain,
            first_rank: u64::from(arguments.offset) + 1,
        };
        context
            .output
            .print(&render_hits(&context.output, &found.results, view, when::now()))?;
    }
    output::message(search_summary(&found, asked, scope_name.as_deref()));
    Ok(Exit::Ok)
}

/// What to show of a hit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HitView {
    with_project: bool,
    explain: bool,
    first_rank: u64,
}

impl Default for HitView {
    fn default() -> Self {
        Self {
            with_project: false,
            explain: false,
            first_rank: 1,
        }
    }
}

pub(crate) fn render_hits(output: &Output, hits: &[SearchHit], view: HitView, now: chrono::DateTime<Utc>) -> String {
    let type_width = hits
        .iter()
        .map(|hit| hit.knowledge_type.as_str().len())
        .max()
        .unwrap_or(0);
    let ages: Vec<String> = hits.iter().map(|hit| when::age(&hit.timestamp, now)).collect();
    let age_width = ages.iter().map(|age| age.chars().count()).max().unwrap_or(0);
    let last_rank = view.first_rank + hits.len() as u64 - 1;
    let rank_width = last_rank.to_string().len();
    let indent = rank_width + 2;
    let mut text = String::new();
    for (rank, (hit, age)) in (view.first_rank..).zip(hits.iter().zip(&ages)) {
        let score = output.paint(Style::Strong, &format!("{:.3}", hit.score));
        let age = output.paint(Style::Faint, &format!("{age:<age_width$}"));
        let id = output.paint(Style::Name, &output::one_line(&hit.id, 256));
        text.push_str(&format!(
            "{rank:>rank_width$}. {score}  {:<type_width$}  {age}  {id}",
            hit.knowledge_type
        ));
        if view.with_project {
            text.push_str(&format!(
                "  {}",
                output.paint(Style::Faint, &format!("[{}]", hit.project_id))
            ));
        }
        text.push('\n');
        let pad = " ".repeat(indent);
        if view.explain {
            let number = |value: Option<f32>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
            let mut line = format!("similarity {}  bm25 {}", number(hit.similarity), number(hit.bm25));
            if let Some(explanation) = &hit.explain {
                line.push_str(&format!("  {explanation}"));
            }
            text.push_str(&format!("{pad}{}\n", output.paint(Style::Faint, &line)));
        }
        text.push_str(&format!("{pad}{}\n", output.excerpt(&hit.passage.text, indent)));
    }
    text
}

pub(crate) fn search_summary(found: &SearchResult, asked: SearchMode, project: Option<&str>) -> String {
    let place = project.map_or_else(|| "all projects".to_owned(), |name| format!("project {name}"));
    let mut summary = if found.results.is_empty() {
        format!("nothing found in {place}")
    } else {
        format!("{} in {place}", output::counted(found.count, "hit", "hits"))
    };
    summary.push_str(&format!(" ({}, {:.1} ms)", found.mode, found.took_ms));
    if found.omitted > 0 {
        summary.push_str(&format!("; {} more left out by the token budget", found.omitted));
    }
    if let Some(reason) = &found.degraded {
        if found.mode == asked {
            summary.push_str(&format!("\nnote: {reason}"));
        } else {
            summary.push_str(&format!("\nnote: searched by {} only: {reason}", found.mode));
        }
    }
    summary
}

/// `ccoctl list`.
pub(crate) async fn list(context: &Context, arguments: ListArgs) -> CliResult {
    let project = context.project(arguments.project.as_deref())?;
    let parameters = ListParams {
        filters: arguments.filters.into_filters(),
        order: arguments.order,
        limit: arguments.limit,
        cursor: arguments.cursor,
    };
    let daemon = Daemon::open(context).await?;
    let page = daemon.call::<api::List>(Scope::Project(&project), &parameters).await?;
    if context.output.json {
        context.output.print_json(&page)?;
        return Ok(Exit::Ok);
    }
    if !page.results.is_empty() {
        context
            .output
            .print(&render_items(&context.output, &page.results, when::now()))?;
    }
    let shown = page.results.len() as u64;
    let mut summary = format!(
        "{shown} of {} in project {project}",
        output::counted(page.total, "item", "items")
    );
    if let Some(cursor) = &page.next_cursor {
        summary.push_str(&format!("; next page: --cursor {cursor}"));
    }
    output::message(summary);
    Ok(Exit::Ok)
}

fn render_items(output: &Output, items: &[Item], now: chrono::DateTime<Utc>) -> String {
    let mut table = Table::new(&[
        ("age", Align::Left),
        ("type", Align::Left),
        ("agent", Align::Left),
        ("id", Align::Left),
        ("text", Align::Left),
    ]);
    let longest_id = items.iter().map(|item| item.id.chars().count()).max().unwrap_or(0);
    // Age, type and agent take about 44 columns with the gaps; the text has what is left of the line.
    let room = output.rest_of_line(longest_id + 44);
    for item in items {
        table.row([
            when::age(&item.timestamp, now),
            item.knowledge_type.to_string(),
            item.agent.clone().unwrap_or_else(|| "-".to_owned()),
            item.id.clone(),
            output::one_line(&item.text, room),
        ]);
    }
    table.render(output)
}

/// `ccoctl get`.
pub(crate) async fn get(context: &Context, arguments: GetArgs) -> CliResult {
    let project = context.project(arguments.project.as_deref())?;
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
    let (items, missing) = match got {
        GetResult::One(item) => (vec![*item], Vec::new()),
        GetResult::Many { results, missing } => (results, missing),
    };
    if !context.output.json && !items.is_empty() {
        let texts: Vec<String> = items.iter().map(|item| render_item(&context.output, item)).collect();
        context.output.print(&texts.join("\n"))?;
    }
    if missing.is_empty() {
        return Ok(Exit::Ok);
    }
    if !context.output.json {
        output::message(format_args!("not in project {project}: {}", missing.join(", ")));
    }
    Ok(Exit::Failed)
}

fn render_item(output: &Output, item: &Item) -> String {
    let mut fields = vec![
        ("id", output.paint(Style::Name, &output::one_line(&item.id, 256))),
        ("type", item.knowledge_type.to_string()),
        ("project", item.project_id.clone()),
        ("created", item.timestamp.clone()),
    ];
    if item.updated_at != item.timestamp {
        fields.push(("updated", item.updated_at.clone()));
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
    if context.output.json {
        context.output.print_json(&counted)?;
    } else {
        let text = render_stats(&context.output, &counted, scope_name.as_deref());
        context.output.print(&text)?;
        output::project_errors(&counted.errors);
    }
    Ok(Exit::Ok)
}

fn render_stats(output: &Output, stats: &StatsResult, project: Option<&str>) -> String {
    let counts = |counts: &BTreeMap<String, u64>| {
        let mut sorted: Vec<_> = counts.iter().collect();
        sorted.sort_by(|left, right| right.1.cmp(left.1).then(left.0.cmp(right.0)));
        let words: Vec<String> = sorted
            .into_iter()
            .map(|(name, count)| match output::one_line(name, 60).as_str() {
                // Items that name no agent.
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
    if context.output.json {
        context.output.print_json(&listed)?;
        return Ok(Exit::Ok);
    }
    let projects = listed.projects;
    if projects.is_empty() {
        output::message("no projects yet; the first `ccoctl store` makes one");
        return Ok(Exit::Ok);
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
            project.project_id,
            project.total.to_string(),
            output::bytes(project.bytes_on_disk),
            project
                .newest
                .map_or_else(|| "-".to_owned(), |newest| when::age(&newest, when::now())),
            project.state.unwrap_or_else(|| "ok".to_owned()),
        ]);
    }
    context.output.print(&table.render(&context.output))?;
    output::project_errors(&listed.errors);
    Ok(Exit::Ok)
}

/// `ccoctl embed`.
pub(crate) async fn embed(context: &Context, arguments: EmbedArgs) -> CliResult {
    let parameters = EmbedParams {
        texts: vec![text_or_stdin(arguments.text)?],
    };
    let daemon = Daemon::open(context).await?;
    let embedded = daemon.call::<api::Embed>(Scope::None, &parameters).await?;
    if context.output.json {
        context.output.print_json(&embedded)?;
        return Ok(Exit::Ok);
    }
    if let Some(vector) = embedded.embeddings.first() {
        context.output.print_json(vector)?;
    }
    let mut summary = format!("{} dimensions, model {}", embedded.dimensions, embedded.model);
    if !embedded.truncated.is_empty() {
        summary.push_str("; the text is longer than the model takes, only its beginning counts");
    }
    output::message(summary);
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ccod_protocol::api::{Passage, Redaction};
    use chrono::DateTime;
    use serde_json::json;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2025-03-10T12:00:00Z")
            .expect("valid")
            .with_timezone(&Utc)
    }

    fn hit(id: &str, score: f32, text: &str) -> SearchHit {
        SearchHit {
            id: id.to_owned(),
            text: text.to_owned(),
            passage: Passage {
                text: text.to_owned(),
                start: 0,
                end: text.len() as u64,
                index: 0,
            },
            knowledge_type: KnowledgeType::Issue,
            project_id: "web".to_owned(),
            session_id: None,
            agent: None,
            timestamp: "2025-03-07T12:00:00.000Z".to_owned(),
            metadata: Metadata::new(),
            score,
            similarity: Some(0.5),
            bm25: None,
            explain: None,
        }
    }

    #[test]
    fn hits_are_ranked_lines_with_an_excerpt() {
        let hits = [
            hit("issue-1-aa", 0.9123, "first\nline"),
            hit("issue-2-bb", 0.5, "second"),
        ];
        assert_eq!(
            render_hits(&Output::plain(), &hits, HitView::default(), now()),
            "1. 0.912  issue  3d ago  issue-1-aa\n   first line\n2. 0.500  issue  3d ago  issue-2-bb\n   second\n"
        );
    }

    #[test]
    fn explain_shows_both_legs_and_all_projects_the_project() {
        let view = HitView {
            with_project: true,
            explain: true,
            first_rank: 10,
        };
        assert_eq!(
            render_hits(&Output::plain(), &[hit("x", 0.5, "t")], view, now()),
            "10. 0.500  issue  3d ago  x  [web]\n    similarity 0.500  bm25 -\n    t\n"
        );
    }

    #[test]
    fn a_degraded_search_says_so() {
        let found = SearchResult {
            results: Vec::new(),
            count: 0,
            omitted: 2,
            next_cursor: None,
            mode: SearchMode::Text,
            degraded: Some("the model is loading".to_owned()),
            version: 1,
            versions: BTreeMap::new(),
            took_ms: 1.25,
        };
        assert_eq!(
            search_summary(&found, SearchMode::Hybrid, Some("web")),
            "nothing found in project web (text, 1.2 ms); 2 more left out by the token budget\n\
             note: searched by text only: the model is loading"
        );
        let found = SearchResult {
            omitted: 0,
            degraded: Some("project web: 3 rows cannot be read".to_owned()),
            ..found
        };
        assert_eq!(
            search_summary(&found, SearchMode::Text, None),
            "nothing found in all projects (text, 1.2 ms)\nnote: project web: 3 rows cannot be read"
        );
    }

    #[test]
    fn items_that_name_no_agent_are_counted_under_no_name() {
        let mut stats = StatsResult::default();
        stats.by_agent.extend([(String::new(), 3), ("planner".to_owned(), 4)]);
        let text = render_stats(&Output::plain(), &stats, Some("web"));
        assert!(text.contains("by agent  planner 4, (none) 3\n"), "{text}");
    }

    #[test]
    fn a_text_that_says_nothing_is_refused() {
        for blank in ["", "  ", "\n\t"] {
            assert_eq!(check_not_blank(blank).expect_err(blank).exit, Exit::BadData);
        }
        check_not_blank(" a ").expect("accepted");
    }

    #[test]
    fn redactions_are_told() {
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
    fn the_end_of_the_last_line_is_not_part_of_a_text() {
        for (input, text) in [
            ("x", "x"),
            ("x\n", "x"),
            ("x\r\n", "x"),
            ("x\n\n", "x\n"),
            ("a\r\nb\r\n", "a\r\nb"),
            ("x\r", "x\r"),
            ("\r\n", ""),
        ] {
            assert_eq!(without_last_newline(input), text, "{input:?}");
        }
    }

    #[test]
    fn metadata_must_be_an_object() {
        for refused in ["[1]", "", "1", r#"{"a":1,"a":2}"#, "{"] {
            assert_eq!(parse_metadata(Some(refused)).expect_err("refused").exit, Exit::BadData);
        }
        let rounded = parse_metadata(Some(r#"{"a":{"b":18446744073709551616}}"#)).expect_err("refused");
        assert_eq!(rounded.exit, Exit::BadData);
        assert!(rounded.message.contains("`a.b`"), "{rounded}");
        assert_eq!(parse_metadata(Some("{\"a\":1}")).expect("accepted").len(), 1);
        assert!(parse_metadata(None).expect("none").is_empty());
    }

    #[test]
    fn metadata_filters_take_json_or_text() {
        let conditions = |text| parse_conditions(text).map(|filter| serde_json::to_value(&filter).expect("serialises"));
        assert_eq!(conditions("a=1"), Ok(json!({"a": 1})));
        assert_eq!(conditions("a=b=c"), Ok(json!({"a": "b=c"})));
        assert_eq!(conditions(r#"{"a":1,"b":"x"}"#), Ok(json!({"a": 1, "b": "x"})));
        for refused in ["", "a", "{a}", "{}", "=x", " =x", "="] {
            assert!(conditions(refused).is_err(), "{refused:?}");
        }
        // Rounded, it would be another one; as text it is what it is.
        for refused in ["a=18446744073709551616", r#"{"a":18446744073709551616}"#] {
            assert!(
                conditions(refused).is_err_and(|reason| reason.contains("`a`")),
                "{refused}"
            );
        }
        for kept in [
            r#"a="18446744073709551616""#,
            "a=18446744073709551616 of them",
            r#"{"a":"b=18446744073709551616"}"#,
        ] {
            assert!(conditions(kept).is_ok(), "{kept}");
        }
    }

    #[test]
    fn no_condition_on_metadata_is_dropped() {
        let filters = FilterArgs {
            metadata: ["tag=a", "tag=b", r#"{"tag":"c","n":1}"#]
                .map(|text| parse_conditions(text).expect("accepted"))
                .into(),
            ..FilterArgs::default()
        }
        .into_filters();
        assert_eq!(
            serde_json::to_value(&filters).expect("serialises"),
            json!({"metadata": [{"tag": "a", "n": 1}, {"tag": "b"}, {"tag": "c"}]})
        );
    }

    #[test]
    fn the_past_is_a_version_or_a_time() {
        assert_eq!(parse_as_of("12"), Ok(AsOf::Version(12)));
        assert_eq!(
            parse_as_of("2025-01-31"),
            Ok(AsOf::Time("2025-01-31T00:00:00.000Z".to_owned()))
        );
        assert!(parse_as_of("7d").is_ok_and(|moment| matches!(moment, AsOf::Time(_))));
        assert!(parse_as_of("-1").is_err() && parse_as_of("once").is_err());
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
            timestamp: "t".to_owned(),
            updated_at: "t".to_owned(),
            metadata: Metadata::new(),
            passages: 1,
        };
        assert_eq!(
            render_item(&Output::plain(), &item),
            "id       x\ntype     pattern\nproject  web\ncreated  t\nagent    a\n\none\ntwo\n"
        );
    }
}
