//! `admin.verify`: reads everything of one project, or of all, and reports what is wrong.

use std::sync::Arc;

use ccod_actors::error::KnowledgeError;
use ccod_actors::store::verify::verify as verify_project;
use ccod_protocol::api;
use ccod_protocol::error::{Executed, WireError};
use tokio::sync::Semaphore;

use crate::rpc::{App, Call, Failure, must_exist};

/// One at a time: it reads as fast as the disk gives, and two would only be in each other's way.
static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);
/// When a caller who was refused may try again, in milliseconds.
const RETRY_AFTER_MS: u64 = 1_000;

/// What to do about a project that cannot be read at all.
const FIX: &str = "restore it from a backup, or move its directory away";

/// Verifies projects. It runs in the call's own task, on a view of each project, so neither readers nor the writer
/// wait for it.
pub(crate) async fn verify(app: Arc<App>, call: Call<api::Verify>) -> Result<api::VerifyResult, Failure> {
    let Ok(_turn) = ONE_AT_A_TIME.try_acquire() else {
        return Err(WireError::busy("another admin.verify is running", RETRY_AFTER_MS).into());
    };
    let names = match &call.project {
        Some(project) => {
            must_exist(&app, project).await?;
            vec![project.clone()]
        }
        None => {
            let projects = app.store().projects();
            projects.iter().map(|project| project.name().clone()).collect()
        }
    };
    let mut result = api::VerifyResult::default();
    if call.project.is_none() {
        let not_served = app.store().not_served().await.into_iter();
        result.findings.extend(not_served.map(|left| api::Finding {
            project_id: left.project,
            problem: left.reason,
            fix: Some(left.fix.to_owned()),
        }));
    }
    for name in names {
        let finding = |problem: String, fix: Option<&str>| api::Finding {
            project_id: name.to_string(),
            problem,
            fix: fix.map(str::to_owned),
        };
        match app.store().view(&name).await {
            Ok(Some(_)) => {}
            Ok(None) => continue,
            Err(error) => {
                if is_of_the_daemon(&error) {
                    return Err(error.into());
                }
                let fix = is_of_the_data(&error).then_some(FIX);
                result
                    .findings
                    .push(finding(format!("the project cannot be opened: {error}"), fix));
                result.projects.push(name.to_string());
                continue;
            }
        }
        let read_before = result.rows;
        let progress = |done: u64, total: u64| {
            let message = format!("project {name}");
            call.context
                .progress(read_before + done, Some(read_before + total), &message);
        };
        let verified = match verify_project(app.store(), &name, progress, || call.context.is_over()).await {
            Ok(Some(verified)) => verified,
            Ok(None) => continue, // Gone meanwhile.
            Err(_) if call.context.is_over() => {
                let error = match call.context.remaining().is_zero() {
                    true => WireError::deadline_exceeded(Executed::No),
                    false => WireError::cancelled(Executed::No),
                };
                return Err(error.into());
            }
            // This error is about one project and says nothing about the others.
            Err(error) if is_of_the_data(&error) => {
                result
                    .findings
                    .push(finding(format!("the project cannot be read: {error}"), Some(FIX)));
                result.projects.push(name.to_string());
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        result.rows += verified.rows;
        result.findings.extend(
            verified
                .flaws
                .into_iter()
                .map(|flaw| finding(flaw.problem, Some(flaw.fix))),
        );
        result.projects.push(name.to_string());
    }
    result.ok = result.findings.is_empty();
    Ok(result)
}

/// Whether the stored data may be the cause of an error.
fn is_of_the_data(error: &KnowledgeError) -> bool {
    matches!(
        error,
        KnowledgeError::Unreadable { .. } | KnowledgeError::Internal { .. }
    )
}

/// Whether an error says nothing about any project, but about the daemon or its machine: then nothing can be verified
/// now. A report that a project is damaged might make its owner throw it away.
fn is_of_the_daemon(error: &KnowledgeError) -> bool {
    matches!(
        error,
        KnowledgeError::NoDescriptors
            | KnowledgeError::Unavailable { .. }
            | KnowledgeError::Busy { .. }
            | KnowledgeError::DeadlineExceeded { .. }
            | KnowledgeError::Cancelled
            | KnowledgeError::ShuttingDown
    )
}
