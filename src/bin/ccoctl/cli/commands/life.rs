//! The life of an item after it was stored: `update`, `history`, `delete`, `undelete`, `purge` and `cleanup`.

use chrono::Utc;
use clap::{Args, Subcommand};

use ccod::program::exit::{CliError, CliResult, Exit};
use ccod_protocol::api::{
    self, CleanupParams, CleanupResult, DeleteParams, DeleteResult, Filter, HistoryParams, KnowledgeType, PurgeParams,
    PurgeResult, Revision, UndeleteParams, UndeleteResult, UpdateParams,
};

use super::filters::FilterArgs;
use super::project::ProjectArg;
use crate::cli::confirm::{self, Consent};
use crate::cli::connect::{Daemon, Scope};
use crate::cli::output::{self, Align, Output, Table};
use crate::cli::text::{parse_metadata, text_to_store};
use crate::cli::{Context, when};

/// Ids that a question and a message show.
const SHOWN_IDS: usize = 10;

/// Commands that change, delete and bring back.
#[derive(Debug, Subcommand)]
pub(crate) enum LifeCommand {
    /// Change an item; its history keeps what it was
    Update(UpdateArgs),
    /// Show what an item was, newest first
    History(HistoryArgs),
    /// Delete items by id or by filter; prints what undoes it
    Delete(DeleteArgs),
    /// Restore deleted items
    Undelete(UndeleteArgs),
    /// Remove items for good, from every revision and version on disk
    Purge(PurgeArgs),
    /// Delete items older than a number of days; a dry run without --apply
    Cleanup(CleanupArgs),
}

/// Runs one of them.
pub(crate) async fn run(context: &Context, command: LifeCommand) -> CliResult {
    match command {
        LifeCommand::Update(arguments) => update(context, arguments).await,
        LifeCommand::History(arguments) => history(context, arguments).await,
        LifeCommand::Delete(arguments) => delete(context, arguments).await,
        LifeCommand::Undelete(arguments) => undelete(context, arguments).await,
        LifeCommand::Purge(arguments) => purge(context, arguments).await,
        LifeCommand::Cleanup(arguments) => cleanup(context, arguments).await,
    }
}

/// Arguments of `update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Id of the item
    id: String,
    #[command(flatten)]
    changes: Changes,
    #[command(flatten)]
    project: ProjectArg,
}

/// What an update changes: at least one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// The new text; `-` reads standard input
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    text: Option<String>,
    /// What kind of knowledge it is now
    #[arg(long = "type", value_name = "T")]
    knowledge_type: Option<KnowledgeType>,
    /// Who learned it
    #[arg(long, value_name = "A")]
    agent: Option<String>,
    /// In which session
    #[arg(long, value_name = "S")]
    session: Option<String>,
    /// Facts about it, as a JSON object; replaces the old ones as a whole
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Id of the item
    id: String,
    #[command(flatten)]
    project: ProjectArg,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Ids of items; or filters instead
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filters: FilterArgs,
    /// Show what would be deleted; deletes nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before deleting by filter
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    project: ProjectArg,
}

/// Arguments of `undelete`.
#[derive(Debug, Args)]
pub(crate) struct UndeleteArgs {
    /// Ids of deleted items
    #[arg(value_name = "ID", required_unless_present = "undo", conflicts_with = "undo")]
    ids: Vec<String>,
    /// What a deletion printed: restores all of it, in whatever project that was
    #[arg(long, value_name = "TOKEN")]
    undo: Option<String>,
    /// The project of the ids; that of the current repository if absent
    #[arg(long, value_name = "P")]
    project: Option<String>,
}

/// Arguments of `purge`.
#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    /// Ids of items, deleted ones included
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    project: ProjectArg,
}

/// Arguments of `cleanup`.
#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Items created longer ago than this many days
    #[arg(long, value_name = "DAYS", default_value_t = 90)]
    older_than: u32,
    #[command(flatten)]
    filters: FilterArgs,
    /// Delete them; without this it only counts
    #[arg(long)]
    apply: bool,
    /// Do not ask before deleting
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    project: ProjectArg,
}

/// `ccoctl update`.
pub(crate) async fn update(context: &Context, arguments: UpdateArgs) -> CliResult {
    let project = arguments.project.find(context)?;
    let changes = arguments.changes;
    let parameters = UpdateParams {
        id: arguments.id,
        metadata: changes.metadata.map(|text| parse_metadata(Some(&text))).transpose()?,
        text: changes.text.map(text_to_store).transpose()?,
        knowledge_type: changes.knowledge_type,
        agent: changes.agent,
        session_id: changes.session,
    };
    let daemon = Daemon::open(context).await?;
    let updated = daemon
        .call::<api::Update>(Scope::Project(&project), &parameters)
        .await?;
    let summary = format!(
        "updated in project {project} (version {}); `ccoctl history` shows what it was before",
        updated.version
    );
    context.output.print_done(&updated, &updated.id, summary)?;
    Ok(Exit::Ok)
}

/// `ccoctl history`.
pub(crate) async fn history(context: &Context, arguments: HistoryArgs) -> CliResult {
    let project = arguments.project.find(context)?;
    let parameters = HistoryParams { id: arguments.id };
    let daemon = Daemon::open(context).await?;
    let history = daemon
        .call::<api::History>(Scope::Project(&project), &parameters)
        .await?;
    let summary = format!(
        "{} in project {project}; --json prints them whole{}",
        output::counted(history.revisions.len() as u64, "revision", "revisions"),
        output::degraded(&history.degraded)
    );
    context.output.answer(
        &history,
        || render_revisions(&context.output, &history.revisions, when::now()),
        || summary,
    )?;
    Ok(Exit::Ok)
}

fn render_revisions(output: &Output, revisions: &[Revision], now: chrono::DateTime<Utc>) -> String {
    let mut table = Table::new(&[
        ("revision", Align::Right),
        ("written", Align::Left),
        ("from", Align::Right),
        ("until", Align::Right),
        ("type", Align::Left),
        ("agent", Align::Left),
        ("text", Align::Left),
    ])
    .cut_last();
    for revision in revisions {
        table.row([
            revision.revision.to_string(),
            when::age(revision.updated_at, now),
            revision.valid_from.to_string(),
            revision
                .valid_to
                .map_or_else(|| "now".to_owned(), |version| version.to_string()),
            revision.knowledge_type.to_string(),
            revision.agent.clone().unwrap_or_else(|| "-".to_owned()),
            revision.text.clone(),
        ]);
    }
    table.render(output)
}

/// The parameters of a deletion: ids or filters, one of them.
fn deletion(ids: Vec<String>, filters: Filter, dry_run: bool) -> CliResult<DeleteParams> {
    match (ids.is_empty(), filters.is_empty()) {
        (true, true) => Err(
            CliError::new(Exit::Usage, "neither an id nor a filter says what to delete")
                .fix("give ids, or a filter such as --type or --until; nothing means nothing, not all"),
        ),
        (false, false) => Err(CliError::new(Exit::Usage, "both ids and filters say what to delete")
            .fix("give ids or filters, one of them")),
        _ => Ok(DeleteParams {
            id: None,
            ids: (!ids.is_empty()).then_some(ids),
            filters,
            dry_run,
        }),
    }
}

/// `ccoctl delete`.
pub(crate) async fn delete(context: &Context, arguments: DeleteArgs) -> CliResult {
    let parameters = deletion(arguments.ids, arguments.filters.into_filters(), arguments.dry_run)?;
    let by_filter = parameters.ids.is_none();
    // Before the daemon counts the items: whether a script may do this does not depend on them.
    let must_ask = by_filter
        && !arguments.dry_run
        && Consent::detect(arguments.yes).must_ask("delete all items that meet the filter", Some("--dry-run"))?;
    let project = arguments.project.find(context)?;
    let scope = Scope::Project(&project);
    let daemon = Daemon::open(context).await?;
    let mut counted = None;
    if must_ask {
        let look = DeleteParams {
            dry_run: true,
            ..parameters.clone()
        };
        let would = daemon.call::<api::Delete>(scope, &look).await?;
        if would.deleted == 0 {
            return report_deletion(context, &parameters, &would, None, &project);
        }
        output::message(shown_ids(&would.ids, would.deleted));
        let items = output::counted(would.deleted, "item", "items");
        if !confirm::ask(&format!("Delete {items} from project {project}?"))? {
            return Err(confirm::declined());
        }
        counted = Some(would.deleted);
    }
    let deleted = daemon.call::<api::Delete>(scope, &parameters).await?;
    report_deletion(context, &parameters, &deleted, counted, &project)
}

fn report_deletion(
    context: &Context,
    asked: &DeleteParams,
    deleted: &DeleteResult,
    counted: Option<u64>,
    project: &str,
) -> CliResult {
    let summary = delete_summary(asked, deleted, counted, project);
    if !asked.dry_run {
        let token = deleted.undo_token.as_deref().unwrap_or_default();
        context.output.print_done(deleted, token, summary)?;
        return Ok(Exit::Ok);
    }
    context.output.answer(deleted, || lines(&deleted.ids), || summary)?;
    Ok(Exit::Ok)
}

/// Ids, one a line, without characters that act on a terminal.
fn lines(ids: &[String]) -> String {
    ids.iter()
        .map(|id| output::one_line(id, 256))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The first of `ids`, and how many of `count` are not shown.
fn shown_ids(ids: &[String], count: u64) -> String {
    let shown = &ids[..ids.len().min(SHOWN_IDS)];
    let mut text = shown
        .iter()
        .map(|id| format!("  {}", output::one_line(id, 256)))
        .collect::<Vec<_>>()
        .join("\n");
    let left = count.saturating_sub(shown.len() as u64);
    if left > 0 {
        text.push_str(&format!("\n  and {left} more"));
    }
    text
}

/// Those of `asked` that are not in `done`, once each.
fn not_among<'a>(asked: &'a [String], done: &[String]) -> Vec<&'a str> {
    let done: std::collections::HashSet<&str> = done.iter().map(String::as_str).collect();
    let mut missing: Vec<&str> = Vec::new();
    for id in asked {
        if !done.contains(id.as_str()) && !missing.contains(&id.as_str()) {
            missing.push(id);
        }
    }
    missing
}

/// The token knows its project, so the command works from everywhere.
fn undo_command(token: &str) -> String {
    format!("ccoctl undelete --undo {token}")
}

fn delete_summary(asked: &DeleteParams, deleted: &DeleteResult, counted: Option<u64>, project: &str) -> String {
    let items = output::counted(deleted.deleted, "item", "items");
    let mut summary = match (asked.dry_run, deleted.deleted) {
        (true, _) => format!("would delete {items} from project {project}; nothing was deleted"),
        (false, 0) => format!("nothing to delete in project {project}"),
        (false, _) => format!("deleted {items} from project {project}"),
    };
    if let Some(counted) = counted.filter(|counted| *counted != deleted.deleted) {
        summary.push_str(&format!(" ({counted} when you were asked)"));
    }
    if let Some(ids) = &asked.ids {
        let missing = not_among(ids, &deleted.ids);
        if !missing.is_empty() {
            summary.push_str(&format!("\nnot there: {}", missing.join(", ")));
        }
    }
    if let Some(token) = &deleted.undo_token {
        summary.push_str(&format!("\nundo: {}", undo_command(token)));
    }
    summary + &output::degraded(&deleted.degraded)
}

/// `ccoctl undelete`.
pub(crate) async fn undelete(context: &Context, arguments: UndeleteArgs) -> CliResult {
    let by_ids = arguments.undo.is_none();
    // A token names its project.
    let project = match arguments.project {
        None if by_ids => Some(context.project(None)?),
        named => named,
    };
    let parameters = UndeleteParams {
        undo_token: arguments.undo,
        ids: by_ids.then_some(arguments.ids),
    };
    let daemon = Daemon::open(context).await?;
    let undeleted = daemon
        .call::<api::Undelete>(Scope::of(project.as_deref()), &parameters)
        .await?;
    // An undo may meet items that were purged or stored again since. That is not a failure: the others are back.
    let missing = if by_ids { undeleted.missing.as_slice() } else { &[] };
    context
        .output
        .print_done(&undeleted, &lines(&undeleted.ids), undelete_summary(&undeleted))?;
    Ok(if missing.is_empty() { Exit::Ok } else { Exit::Failed })
}

fn undelete_summary(undeleted: &UndeleteResult) -> String {
    let items = output::counted(undeleted.restored, "item", "items");
    let mut summary = format!("restored {items}");
    if !undeleted.present.is_empty() {
        summary.push_str(&format!("\nthere already: {}", undeleted.present.join(", ")));
    }
    if !undeleted.missing.is_empty() {
        summary.push_str(&format!(
            "\nnot restored: {} (never stored, no longer kept, or another item has the id by now)",
            undeleted.missing.join(", ")
        ));
    }
    summary + &output::degraded(&undeleted.degraded)
}

/// `ccoctl purge`.
pub(crate) async fn purge(context: &Context, arguments: PurgeArgs) -> CliResult {
    let project = arguments.project.find(context)?;
    let ids = arguments.ids;
    if Consent::detect(arguments.yes).must_ask("remove items for good", None)? {
        output::message(shown_ids(&ids, ids.len() as u64));
        let items = output::counted(ids.len() as u64, "item", "items");
        let question = format!("Purge {items} from project {project}? Every revision goes; this cannot be undone.");
        if !confirm::ask(&question)? {
            return Err(confirm::declined());
        }
    }
    let parameters = PurgeParams {
        ids: Some(ids.clone()),
        confirm: true,
        ..PurgeParams::default()
    };
    let daemon = Daemon::open(context).await?;
    let purged = daemon
        .call_long::<api::Purge>(Scope::Project(&project), &parameters)
        .await?;
    let missing = not_among(&ids, &purged.ids);
    context
        .output
        .print_done(&purged, &lines(&purged.ids), purge_summary(&purged, &missing, &project))?;
    // A person who purges wants to know that the item is gone: a mistyped id must not look like success.
    Ok(if missing.is_empty() { Exit::Ok } else { Exit::Failed })
}

fn purge_summary(purged: &PurgeResult, missing: &[&str], project: &str) -> String {
    let items = output::counted(purged.purged, "item", "items");
    let mut summary = format!("purged {items} from project {project}");
    if !missing.is_empty() {
        summary.push_str(&format!("\nnot there: {}", missing.join(", ")));
    }
    if !purged.backups.is_empty() {
        summary.push_str("\nthese backups may still hold what was purged; remove them, or make them again:");
        for path in &purged.backups {
            summary.push_str(&format!("\n  {}", output::one_line(path, 4096)));
        }
    }
    summary + &output::degraded(&purged.degraded)
}

/// `ccoctl cleanup`.
pub(crate) async fn cleanup(context: &Context, arguments: CleanupArgs) -> CliResult {
    let must_ask = arguments.apply
        && Consent::detect(arguments.yes).must_ask("delete all items of that age", Some("leaving out --apply"))?;
    let project = arguments.project.find(context)?;
    let scope = Scope::Project(&project);
    let look = CleanupParams {
        older_than_days: arguments.older_than,
        filters: arguments.filters.into_filters(),
        dry_run: true,
    };
    let parameters = CleanupParams {
        dry_run: !arguments.apply,
        ..look.clone()
    };
    let daemon = Daemon::open(context).await?;
    if must_ask {
        let would = daemon.call_long::<api::Cleanup>(scope, &look).await?;
        if would.deleted == 0 {
            // Without items there is nothing to ask, and nothing more to do.
            let nothing = CleanupResult {
                dry_run: false,
                ..would
            };
            return report_cleanup(context, &nothing, &project);
        }
        let items = output::counted(would.deleted, "item", "items");
        let question = format!(
            "Delete {items} older than {} from project {project}?",
            output::counted(arguments.older_than.into(), "day", "days")
        );
        if !confirm::ask(&question)? {
            return Err(confirm::declined());
        }
    }
    let cleaned = daemon.call_long::<api::Cleanup>(scope, &parameters).await?;
    report_cleanup(context, &cleaned, &project)
}

fn report_cleanup(context: &Context, cleaned: &CleanupResult, project: &str) -> CliResult {
    let (text, summary) = (
        render_cleanup(&context.output, cleaned),
        cleanup_summary(cleaned, project),
    );
    if !cleaned.dry_run {
        context.output.print_done(cleaned, &text, summary)?;
        return Ok(Exit::Ok);
    }
    context.output.answer(cleaned, || text, || summary)?;
    Ok(Exit::Ok)
}

fn render_cleanup(output: &Output, cleaned: &CleanupResult) -> String {
    let mut fields = vec![
        ("items", cleaned.deleted.to_string()),
        ("space", output::bytes(cleaned.freed_bytes)),
    ];
    if let Some(token) = &cleaned.undo_token {
        fields.push(("undo", token.clone()));
    }
    output::fields(output, &fields)
}

fn cleanup_summary(cleaned: &CleanupResult, project: &str) -> String {
    let items = output::counted(cleaned.deleted, "item", "items");
    if cleaned.dry_run {
        let note = output::degraded(&cleaned.degraded);
        return format!("would delete {items} from project {project}; nothing was deleted, --apply does it{note}");
    }
    let mut summary = format!("deleted {items} from project {project}");
    if let Some(token) = &cleaned.undo_token {
        summary.push_str(&format!("\nundo: {}", undo_command(token)));
    }
    for warning in &cleaned.warnings {
        summary.push_str(&format!("\nwarning: {}", output::one_line(warning, 4096)));
    }
    summary + &output::degraded(&cleaned.degraded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ccod_protocol::api::{Metadata, OneOrMany};

    fn ids(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn issues() -> Filter {
        Filter {
            knowledge_type: Some(OneOrMany::One(KnowledgeType::Issue)),
            ..Filter::default()
        }
    }

    #[test]
    fn a_deletion_is_by_ids_or_by_filter() {
        let by_ids = deletion(ids(&["a", "b"]), Filter::default(), false).expect("accepted");
        assert_eq!((by_ids.ids, by_ids.dry_run), (Some(ids(&["a", "b"])), false));
        let by_filter = deletion(Vec::new(), issues(), true).expect("accepted");
        assert_eq!(
            (by_filter.ids, by_filter.filters, by_filter.dry_run),
            (None, issues(), true)
        );
        for refused in [
            deletion(Vec::new(), Filter::default(), false),
            deletion(ids(&["a"]), issues(), false),
        ] {
            let error = refused.expect_err("refused");
            assert_eq!(error.exit, Exit::Usage);
            assert!(error.fix.is_some());
        }
    }

    #[test]
    fn a_deletion_says_how_to_undo_it_and_what_was_not_there() {
        let asked = deletion(ids(&["a", "b", "x", "x"]), Filter::default(), false).expect("accepted");
        let deleted = DeleteResult {
            deleted: 2,
            ids: ids(&["a", "b"]),
            undo_token: Some("5f".to_owned()),
            version: 7,
            degraded: None,
        };
        assert_eq!(
            delete_summary(&asked, &deleted, None, "web"),
            "deleted 2 items from project web\nnot there: x\nundo: ccoctl undelete --undo 5f"
        );
    }

    #[test]
    fn a_deletion_by_filter_says_if_the_count_has_changed() {
        let asked = deletion(Vec::new(), issues(), false).expect("accepted");
        let deleted = DeleteResult {
            deleted: 3,
            ids: ids(&["a", "b", "c"]),
            undo_token: None,
            version: 7,
            degraded: None,
        };
        assert_eq!(
            delete_summary(&asked, &deleted, Some(2), "web"),
            "deleted 3 items from project web (2 when you were asked)"
        );
        let nothing = DeleteResult {
            deleted: 0,
            ids: Vec::new(),
            ..deleted
        };
        assert_eq!(
            delete_summary(&asked, &nothing, None, "web"),
            "nothing to delete in project web"
        );
    }

    #[test]
    fn a_dry_run_says_that_it_was_one() {
        let asked = deletion(Vec::new(), issues(), true).expect("accepted");
        let would = DeleteResult {
            deleted: 1,
            ids: ids(&["a"]),
            undo_token: None,
            version: 7,
            degraded: None,
        };
        assert_eq!(
            delete_summary(&asked, &would, None, "web"),
            "would delete 1 item from project web; nothing was deleted"
        );
        let cleaned = CleanupResult {
            deleted: 2,
            freed_bytes: 1536,
            dry_run: true,
            undo_token: None,
            warnings: Vec::new(),
            degraded: None,
        };
        assert_eq!(render_cleanup(&Output::plain(), &cleaned), "items  2\nspace  1.5 KiB\n");
        assert_eq!(
            cleanup_summary(&cleaned, "web"),
            "would delete 2 items from project web; nothing was deleted, --apply does it"
        );
        let damaged = CleanupResult {
            degraded: Some("project web: 3 rows cannot be read".to_owned()),
            ..cleaned
        };
        assert!(cleanup_summary(&damaged, "web").ends_with("\nnote: project web: 3 rows cannot be read"));
    }

    #[test]
    fn a_question_shows_some_ids_and_counts_the_rest() {
        let many: Vec<String> = (0..12).map(|number| format!("id-{number}")).collect();
        let text = shown_ids(&many, 40);
        assert_eq!(text.lines().count(), SHOWN_IDS + 1);
        assert!(
            text.starts_with("  id-0\n") && text.ends_with("\n  and 30 more"),
            "{text}"
        );
        assert_eq!(shown_ids(&ids(&["a\u{1b}[2J"]), 1), "  a [2J");
    }

    #[test]
    fn an_undo_says_what_it_could_not_restore() {
        let undeleted = UndeleteResult {
            restored: 1,
            ids: ids(&["a"]),
            present: ids(&["b"]),
            missing: ids(&["x"]),
            version: 9,
            degraded: None,
        };
        assert_eq!(
            undelete_summary(&undeleted),
            "restored 1 item\nthere already: b\n\
             not restored: x (never stored, no longer kept, or another item has the id by now)"
        );
    }

    #[test]
    fn a_purge_names_the_backups_that_still_hold_it() {
        let purged = PurgeResult {
            purged: 1,
            ids: ids(&["a"]),
            backups: ids(&["/backups/monday"]),
            degraded: None,
        };
        assert_eq!(
            purge_summary(&purged, &["x"], "web"),
            "purged 1 item from project web\nnot there: x\n\
             these backups may still hold what was purged; remove them, or make them again:\n  /backups/monday"
        );
    }

    #[test]
    fn revisions_are_lines() {
        let now = chrono::DateTime::parse_from_rfc3339("2025-03-10T12:00:00Z")
            .expect("valid")
            .with_timezone(&Utc);
        let revision = |number, valid_to| Revision {
            revision: number,
            text: format!("text {number}"),
            knowledge_type: KnowledgeType::Issue,
            agent: None,
            session_id: None,
            metadata: Metadata::new(),
            updated_at: now - chrono::TimeDelta::days(3),
            valid_from: 5 + number,
            valid_to,
        };
        assert_eq!(
            render_revisions(&Output::plain(), &[revision(2, None), revision(1, Some(7))], now),
            "revision  written  from  until  type   agent  text\n       \
             2  3d ago      7    now  issue  -      text 2\n       \
             1  3d ago      6      7  issue  -      text 1\n"
        );
    }
}
