//! `search`, `similar` and `embed`.

use chrono::Utc;
use clap::{Args, Subcommand};

use ccod::program::exit::{CliResult, Exit};
use ccod_protocol::api::{
    self, AsOf, EmbedParams, OneOrMany, SearchHit, SearchMode, SearchParams, SearchResult, SimilarParams,
};

use super::filters::{FilterArgs, parse_time};
use super::project::ProjectArg;
use crate::cli::connect::{Daemon, Scope};
use crate::cli::output::{self, Output, Style};
use crate::cli::text::text_or_stdin;
use crate::cli::{Context, when};

/// Commands that find.
#[derive(Debug, Subcommand)]
pub(crate) enum SearchCommand {
    /// Find items by meaning, by keyword or both
    Search(Box<SearchArgs>),
    /// Find items that resemble one
    Similar(SimilarArgs),
    /// Embed a text; prints its vector
    Embed(EmbedArgs),
}

/// Runs one of them.
pub(crate) async fn run(context: &Context, command: SearchCommand) -> CliResult {
    match command {
        SearchCommand::Search(arguments) => search(context, *arguments).await,
        SearchCommand::Similar(arguments) => similar(context, arguments).await,
        SearchCommand::Embed(arguments) => embed(context, arguments).await,
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

/// Arguments of `similar`.
#[derive(Debug, Args)]
pub(crate) struct SimilarArgs {
    /// Id of the item to compare with
    id: String,
    /// At most this many hits
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
    #[command(flatten)]
    project: ProjectArg,
}

/// Arguments of `embed`.
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// The text; `-` reads standard input
    #[arg(allow_hyphen_values = true)]
    text: String,
}

/// Refuses `nan` too: JSON cannot hold it, so it would be sent as an absent threshold.
fn parse_threshold(text: &str) -> Result<f32, String> {
    let threshold: f32 = text.parse().map_err(|_| "takes a number from 0 to 1".to_owned())?;
    if (0.0..=1.0).contains(&threshold) {
        Ok(threshold)
    } else {
        Err("takes a number from 0 to 1".to_owned())
    }
}

/// A number is a version; anything else is a time.
fn parse_as_of(text: &str) -> Result<AsOf, String> {
    match text.trim().parse() {
        Ok(version) => Ok(AsOf::Version(version)),
        Err(_) => parse_time(text).map(AsOf::Time),
    }
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
    let view = HitView {
        with_project: scope_name.is_none(),
        explain: arguments.explain,
        first_rank: u64::from(arguments.offset) + 1,
    };
    context.output.answer(
        &found,
        || render_hits(&context.output, &found.results, view, when::now()),
        || search_summary(&found, asked, scope_name.as_deref()),
    )?;
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
    if hits.is_empty() {
        return String::new();
    }
    let type_width = hits
        .iter()
        .map(|hit| hit.knowledge_type.as_str().len())
        .max()
        .unwrap_or(0);
    let ages: Vec<String> = hits.iter().map(|hit| when::age(hit.timestamp, now)).collect();
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

/// `ccoctl similar`.
pub(crate) async fn similar(context: &Context, arguments: SimilarArgs) -> CliResult {
    let project = arguments.project.find(context)?;
    let parameters = SimilarParams {
        id: arguments.id,
        limit: arguments.limit,
    };
    let daemon = Daemon::open(context).await?;
    let found = daemon
        .call::<api::Similar>(Scope::Project(&project), &parameters)
        .await?;
    context.output.answer(
        &found,
        || render_hits(&context.output, &found.results, HitView::default(), when::now()),
        || search_summary(&found, SearchMode::Vector, Some(&project)),
    )?;
    Ok(Exit::Ok)
}

/// `ccoctl embed`.
pub(crate) async fn embed(context: &Context, arguments: EmbedArgs) -> CliResult {
    let parameters = EmbedParams {
        texts: vec![text_or_stdin(arguments.text)?],
    };
    let daemon = Daemon::open(context).await?;
    let embedded = daemon.call::<api::Embed>(Scope::None, &parameters).await?;
    let mut summary = format!("{} dimensions, model {}", embedded.dimensions, embedded.model);
    if !embedded.truncated.is_empty() {
        summary.push_str("; the text is longer than the model takes, only its beginning counts");
    }
    let vector = embedded.embeddings.first().map(output::json_line).transpose()?;
    context
        .output
        .answer(&embedded, || vector.unwrap_or_default(), || summary)?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use ccod_protocol::api::{Item, KnowledgeType, Passage};
    use chrono::DateTime;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2025-03-10T12:00:00Z")
            .expect("valid")
            .with_timezone(&Utc)
    }

    fn hit(id: &str, score: f32, text: &str) -> SearchHit {
        let item = Item {
            id: id.to_owned(),
            text: text.to_owned(),
            knowledge_type: KnowledgeType::Issue,
            project_id: "web".to_owned(),
            timestamp: parse_time("2025-03-07T12:00:00Z").expect("a time"),
            ..Item::default()
        };
        let passage = Passage {
            text: text.to_owned(),
            start: 0,
            end: text.len() as u64,
            index: 0,
        };
        SearchHit {
            score,
            similarity: Some(0.5),
            ..item.into_hit(passage)
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
    fn the_past_is_a_version_or_a_time() {
        assert_eq!(parse_as_of("12"), Ok(AsOf::Version(12)));
        let time = parse_as_of("2025-01-31").expect("a time");
        assert_eq!(
            serde_json::to_value(time).expect("serialises"),
            "2025-01-31T00:00:00.000Z"
        );
        assert!(parse_as_of("7d").is_ok_and(|as_of| matches!(as_of, AsOf::Time(_))));
        assert!(parse_as_of("-1").is_err() && parse_as_of("once").is_err());
    }
}
