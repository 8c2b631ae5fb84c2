//! All stored data: `backup`, `restore`, `export`, `import`, `verify` and `optimize`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use ccod::program::exit::{CliError, CliResult, Exit};
use ccod_protocol::api::{
    self, BackupParams, ExportParams, ImportParams, ImportProblem, ImportResult, OptimizeParams, OptimizeResult,
    RestoreParams, RestoreResult, VerifyParams, VerifyResult,
};

use super::project::ProjectArg;
use crate::cli::Context;
use crate::cli::confirm::{self, Consent};
use crate::cli::connect::{Daemon, Scope};
use crate::cli::output::{self, Output, Style};

/// Commands about all stored data.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Write a consistent copy of all projects
    Backup(BackupArgs),
    /// Replace projects by those of a backup; keeps the old ones aside
    Restore(RestoreArgs),
    /// Write a project's items to a file
    Export(ExportArgs),
    /// Store the items of an export
    Import(ImportArgs),
    /// Read all stored data and say what is wrong: 0 if nothing is, 1 if something is
    Verify(ProjectsArgs),
    /// Do the maintenance that is due
    Optimize(ProjectsArgs),
}

/// Runs one of them.
pub(crate) async fn run(context: &Context, command: DataCommand) -> CliResult {
    match command {
        DataCommand::Backup(arguments) => backup(context, arguments).await,
        DataCommand::Restore(arguments) => restore(context, arguments).await,
        DataCommand::Export(arguments) => export(context, arguments).await,
        DataCommand::Import(arguments) => import(context, arguments).await,
        DataCommand::Verify(arguments) => verify(context, arguments).await,
        DataCommand::Optimize(arguments) => optimize(context, arguments).await,
    }
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Where to
    path: PathBuf,
    #[command(flatten)]
    projects: ProjectsArgs,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Where the backup is
    path: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Only this project of the backup; all if absent
    #[arg(long, value_name = "P")]
    project: Option<String>,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Where to
    path: PathBuf,
    /// jsonl (one item a line) or markdown (to read) [default: by the name of the file, else jsonl]
    #[arg(long, value_name = "FORMAT", value_parser = ["jsonl", "markdown"])]
    format: Option<String>,
    #[command(flatten)]
    project: ProjectArg,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Where from: an export, in either format
    path: PathBuf,
    /// Count; import nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    project: ProjectArg,
}

/// Arguments of `verify` and `optimize`, and one of `backup`.
#[derive(Debug, Args)]
pub(crate) struct ProjectsArgs {
    /// Only this project; all if absent
    #[arg(long, value_name = "P")]
    project: Option<String>,
}

/// `path` as the daemon needs it: absolute, for the daemon has another current directory, and text, for JSON has no
/// bytes.
fn absolute(path: &Path) -> CliResult<String> {
    if path.as_os_str() == "-" {
        return Err(CliError::new(
            Exit::Usage,
            "`-` does not stand for standard input or output here: the daemon reads and writes the file",
        )
        .fix("give a path, such as export.jsonl; ./- is a file of that name"));
    }
    let whole = std::path::absolute(path)
        .map_err(|error| CliError::io(format_args!("make {} absolute", path.display()), &error))?;
    whole.into_os_string().into_string().map_err(|name| {
        CliError::new(
            Exit::BadData,
            format!("the path {} is not UTF-8", name.to_string_lossy()),
        )
        .fix("choose another path")
    })
}

fn listed(projects: &[String]) -> String {
    let count = output::counted(projects.len() as u64, "project", "projects");
    if projects.is_empty() {
        count
    } else {
        format!("{count} ({})", projects.join(", "))
    }
}

/// `ccoctl backup`.
pub(crate) async fn backup(context: &Context, arguments: BackupArgs) -> CliResult {
    let parameters = BackupParams {
        path: absolute(&arguments.path)?,
    };
    let daemon = Daemon::open(context).await?;
    let written = daemon
        .call_long::<api::Backup>(Scope::of(arguments.projects.project.as_deref()), &parameters)
        .await?;
    let summary = format!(
        "backed up {} of {} ({}){}",
        output::counted(written.items, "item", "items"),
        listed(&written.projects),
        output::bytes(written.bytes),
        warnings(&[written.warnings.as_slice(), &written.lost].concat())
    );
    context.output.print_done(&written, &written.path, summary)?;
    // Each warning is about a project that is not in the backup: a script that keeps one must not take it for complete.
    Ok(if written.warnings.is_empty() {
        Exit::Ok
    } else {
        Exit::BadData
    })
}

/// The warnings for a person beside the result, as further lines of a message.
fn warnings(warnings: &[String]) -> String {
    warnings
        .iter()
        .map(|warning| format!("\nwarning: {}", output::one_line(warning, 4096)))
        .collect()
}

/// `ccoctl restore`.
pub(crate) async fn restore(context: &Context, arguments: RestoreArgs) -> CliResult {
    let parameters = RestoreParams {
        path: absolute(&arguments.path)?,
    };
    if Consent::detect(arguments.yes).must_ask("replace whole projects by those of the backup", None)? {
        let question = restore_question(&parameters.path, arguments.project.as_deref());
        if !confirm::ask(&question)? {
            return Err(confirm::declined());
        }
    }
    let daemon = Daemon::open(context).await?;
    let restored = daemon
        .call_long::<api::Restore>(Scope::of(arguments.project.as_deref()), &parameters)
        .await?;
    context.output.print_done(
        &restored,
        &restored.projects.join("\n"),
        format_args!("{}{}", restore_summary(&restored), warnings(&restored.warnings)),
    )?;
    Ok(Exit::Ok)
}

fn restore_question(path: &str, project: Option<&str>) -> String {
    let path = output::one_line(path, 4096);
    match project {
        Some(name) => format!("Replace project {name} by that of {path}? The present one is kept aside."),
        None => format!("Replace whole projects by those of {path}? The present ones are kept aside."),
    }
}

fn restore_summary(restored: &RestoreResult) -> String {
    let mut summary = format!(
        "restored {} of {}",
        output::counted(restored.items, "item", "items"),
        listed(&restored.projects)
    );
    if !restored.kept_aside.is_empty() {
        summary.push_str("\nwhat was there before is kept; remove it once the restored data is right:");
        for path in &restored.kept_aside {
            summary.push_str(&format!("\n  {}", output::one_line(path, 4096)));
        }
    }
    summary
}

/// `ccoctl export`.
pub(crate) async fn export(context: &Context, arguments: ExportArgs) -> CliResult {
    let project = arguments.project.find(context)?;
    let parameters = ExportParams {
        path: absolute(&arguments.path)?,
        format: arguments.format,
    };
    let daemon = Daemon::open(context).await?;
    let written = daemon
        .call_long::<api::Export>(Scope::Project(&project), &parameters)
        .await?;
    let summary = format!(
        "exported {} of project {project} ({}){}",
        output::counted(written.items, "item", "items"),
        output::bytes(written.bytes),
        output::degraded(&written.degraded)
    );
    context.output.print_done(&written, &written.path, summary)?;
    // A script that keeps the file must not take it for complete.
    Ok(if written.degraded.is_none() {
        Exit::Ok
    } else {
        Exit::BadData
    })
}

/// `ccoctl import`.
pub(crate) async fn import(context: &Context, arguments: ImportArgs) -> CliResult {
    let project = arguments.project.find(context)?;
    let parameters = ImportParams {
        path: absolute(&arguments.path)?,
        dry_run: arguments.dry_run,
    };
    let daemon = Daemon::open(context).await?;
    let imported = daemon
        .call_long::<api::Import>(Scope::Project(&project), &parameters)
        .await?;
    // A script that ignores the counts has to learn that something was left out.
    let exit = if imported.skipped.is_empty() {
        Exit::Ok
    } else {
        Exit::BadData
    };
    let text = render_import(&context.output, &imported);
    let mut summary: String = imported
        .problems
        .iter()
        .map(|problem| problem_line(problem) + "\n")
        .collect();
    if !imported.dry_run {
        summary.push_str(&format!("imported into project {project}"));
        context.output.print_done(&imported, &text, summary)?;
        return Ok(exit);
    }
    summary.push_str("a dry run: nothing was imported; leave out --dry-run to do it");
    context.output.answer(&imported, || text, || summary)?;
    Ok(exit)
}

fn render_import(output: &Output, imported: &ImportResult) -> String {
    let mut fields = vec![
        ("imported", imported.imported.to_string()),
        ("duplicates", imported.duplicates.to_string()),
    ];
    if !imported.skipped.is_empty() {
        fields.push(("skipped", counts(&imported.skipped)));
    }
    output::fields(output, &fields)
}

fn problem_line(problem: &ImportProblem) -> String {
    let id = problem
        .id
        .as_deref()
        .map_or_else(String::new, |id| format!(" ({})", output::one_line(id, 256)));
    format!(
        "line {}{id}: {}",
        problem.line,
        output::one_line(&problem.message, 4096)
    )
}

/// `name 3, other 1`.
fn counts(counts: &BTreeMap<String, u64>) -> String {
    counts
        .iter()
        .map(|(name, count)| format!("{} {count}", output::one_line(name, 200)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `ccoctl verify`: 0 if nothing is wrong, 1 if something is.
pub(crate) async fn verify(context: &Context, arguments: ProjectsArgs) -> CliResult {
    let daemon = Daemon::open(context).await?;
    let verified = daemon
        .call_long::<api::Verify>(Scope::of(arguments.project.as_deref()), &VerifyParams {})
        .await?;
    let summary = format!(
        "read {} of {}",
        output::counted(verified.rows, "row", "rows"),
        listed(&verified.projects)
    );
    context
        .output
        .answer(&verified, || render_verify(&context.output, &verified), || summary)?;
    Ok(if is_sound(&verified) { Exit::Ok } else { Exit::Failed })
}

fn is_sound(verified: &VerifyResult) -> bool {
    verified.ok && verified.findings.is_empty()
}

fn render_verify(output: &Output, verified: &VerifyResult) -> String {
    if is_sound(verified) {
        return output.paint(Style::Good, "ok");
    }
    let mut text = format!(
        "{}\n",
        output.paint(
            Style::Warning,
            &output::counted(verified.findings.len() as u64, "problem", "problems")
        )
    );
    for finding in &verified.findings {
        text.push_str(&format!(
            "{}: {}\n",
            output.paint(Style::Name, &output::one_line(&finding.project_id, 100)),
            output::one_line(&finding.problem, 4096)
        ));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("  fix: {}\n", output::one_line(fix, 4096)));
        }
    }
    text
}

/// `ccoctl optimize`.
pub(crate) async fn optimize(context: &Context, arguments: ProjectsArgs) -> CliResult {
    let daemon = Daemon::open(context).await?;
    let optimized = daemon
        .call_long::<api::Optimize>(Scope::of(arguments.project.as_deref()), &OptimizeParams {})
        .await?;
    context.output.print_done(
        &optimized,
        &render_optimize(&context.output, &optimized),
        output::project_errors(&optimized.errors),
    )?;
    Ok(if optimized.errors.is_empty() {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

fn render_optimize(output: &Output, optimized: &OptimizeResult) -> String {
    let steps = if optimized.steps.is_empty() {
        "nothing was due".to_owned()
    } else {
        counts(&optimized.steps)
    };
    output::fields(
        output,
        &[
            ("projects", listed(&optimized.projects)),
            ("steps", steps),
            ("freed", output::bytes(optimized.freed_bytes)),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hyphen_is_not_a_file() {
        assert_eq!(absolute(Path::new("-")).expect_err("refused").exit, Exit::Usage);
        assert!(absolute(Path::new("./-")).expect("a file").ends_with("/-"));
    }
    use ccod_protocol::api::Finding;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn paths_reach_the_daemon_whole() {
        assert_eq!(
            absolute(Path::new("/backups/monday")).expect("absolute"),
            "/backups/monday"
        );
        let here = std::env::current_dir().expect("somewhere");
        assert_eq!(
            absolute(Path::new("./out.jsonl")).expect("absolute"),
            here.join("out.jsonl").to_str().expect("utf-8")
        );
        let error = absolute(Path::new(OsStr::from_bytes(b"/x/\xff"))).expect_err("refused");
        assert_eq!(error.exit, Exit::BadData);
    }

    #[test]
    fn findings_fail_a_verification() {
        let sound = VerifyResult {
            ok: true,
            projects: vec!["web".to_owned()],
            rows: 7,
            findings: Vec::new(),
        };
        assert!(is_sound(&sound));
        assert_eq!(render_verify(&Output::plain(), &sound), "ok");
        let broken = VerifyResult {
            ok: false,
            findings: vec![Finding {
                project_id: "web".to_owned(),
                problem: "the fragment 3 cannot be read".to_owned(),
                fix: Some("restore a backup".to_owned()),
            }],
            ..sound
        };
        assert!(!is_sound(&broken));
        assert_eq!(
            render_verify(&Output::plain(), &broken),
            "1 problem\nweb: the fragment 3 cannot be read\n  fix: restore a backup\n"
        );
    }

    #[test]
    fn a_restore_says_where_the_old_data_is() {
        let restored = RestoreResult {
            projects: vec!["a".to_owned(), "b".to_owned()],
            items: 3,
            kept_aside: vec!["/home/x/.cco/aside/a".to_owned()],
            ..RestoreResult::default()
        };
        assert_eq!(
            restore_summary(&restored),
            "restored 3 items of 2 projects (a, b)\n\
             what was there before is kept; remove it once the restored data is right:\n  /home/x/.cco/aside/a"
        );
    }

    #[test]
    fn an_import_says_what_it_left_out() {
        let mut imported = ImportResult {
            imported: 5,
            duplicates: 1,
            ..ImportResult::default()
        };
        assert_eq!(
            render_import(&Output::plain(), &imported),
            "imported    5\nduplicates  1\n"
        );
        imported.skipped.insert("without text".to_owned(), 2);
        assert!(render_import(&Output::plain(), &imported).ends_with("skipped     without text 2\n"));
        let mut problem = ImportProblem {
            line: 7,
            id: None,
            message: "it is not a JSON object".to_owned(),
        };
        assert_eq!(problem_line(&problem), "line 7: it is not a JSON object");
        problem.id = Some("issue-1".to_owned());
        assert_eq!(problem_line(&problem), "line 7 (issue-1): it is not a JSON object");
    }

    #[test]
    fn optimize_says_when_nothing_was_due() {
        let text = render_optimize(&Output::plain(), &OptimizeResult::default());
        assert_eq!(text, "projects  0 projects\nsteps     nothing was due\nfreed     0 B\n");
    }
}
