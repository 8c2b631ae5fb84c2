//! `daemon run`, `start`, `stop` and `status`.

use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use clap::Subcommand;

use ccod::config::{Config, Overrides};
use ccod::program::arguments::RunArgs;
use ccod::program::exit::{CliError, CliResult, Exit};
use ccod_protocol::api::{self, ShutdownParams, StatusParams};
use ccod_protocol::client::ClientError;
use ccod_protocol::error::ErrorKind;

use crate::cli::connect::{self, NoConnection};
use crate::cli::engine::Engine;
use crate::cli::launch::{
    Asked, MAX_POLL, MIN_POLL, START_TIMEOUT, a_lock_is_held, ask, holds_and_does_not_listen, launch,
    listens_elsewhere, of_another_home, runs_silently, serves_elsewhere,
};
use crate::cli::output::{self, Output, Style};
use crate::cli::{Context, when};

/// How long `daemon stop` waits for the socket of a daemon that has the lock before it looks elsewhere for it.
const SOCKET_PATIENCE: Duration = Duration::from_secs(3);

/// How long the end of the process may take beyond the daemon's grace.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Commands of `daemon`.
#[derive(Debug, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Run the daemon in the foreground; logs to standard error
    Run(RunArgs),
    /// Start the daemon in the background and return once its socket answers
    Start(RunArgs),
    /// Finish what was accepted and stop the daemon
    Stop,
    /// Say whether the daemon runs: 0 if it does, 69 if not
    Status,
}

/// `ccoctl daemon run`: this process becomes the daemon.
pub(crate) fn run(arguments: &RunArgs, overrides: Overrides, json: bool) -> CliResult {
    let (home, socket) = (overrides.home.clone(), overrides.socket.clone());
    // Loaded for its errors and for the home.
    let loaded = Config::load(overrides)?;
    let engine = Engine::find(&loaded.config.home)?;
    let mut command = engine.command();
    for (flag, path) in [("--home", home), ("--socket", socket)] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    if json {
        command.arg("--json");
    }
    let error = command.args(arguments.to_arguments()).exec();
    Err(engine.cannot_run(&error))
}

/// `ccoctl daemon start|stop|status`.
pub(crate) async fn control(context: &Context, command: DaemonCommand) -> CliResult {
    match command {
        DaemonCommand::Start(arguments) => start(context, &arguments).await,
        DaemonCommand::Stop => stop(context).await,
        DaemonCommand::Status => status(context).await,
        DaemonCommand::Run(_) => Ok(Exit::Ok),
    }
}

async fn start(context: &Context, arguments: &RunArgs) -> CliResult {
    let deadline = Instant::now() + context.timeout.unwrap_or(START_TIMEOUT);
    let launched = launch(context, &arguments.to_arguments()).await?;
    let spawned = launched.spawned;
    let socket = launched.client.path().to_owned();
    // Closed first: the next connection may need its place.
    drop(launched.client);
    // It has said that it serves; its process id is only for people.
    let pid = match ask::<api::Status>(&socket, &StatusParams {}, deadline).await? {
        Asked::Answered(status) => Some(status.pid),
        Asked::Absent | Asked::Silent(_) => None,
    };
    if context.output.json {
        let state = if spawned { "started" } else { "running" };
        context.output.print_json(&serde_json::json!({
            "state": state,
            "pid": pid,
            "socket": context.loaded.config.socket_path(),
            "log": context.loaded.config.log_path(),
        }))?;
    } else {
        let state = if spawned { "started" } else { "already running" };
        let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        context.output.print(&format!(
            "{}{pid} on {}",
            context.output.paint(Style::Good, state),
            context.loaded.config.socket_path().display()
        ))?;
    }
    Ok(Exit::Ok)
}

async fn stop(context: &Context) -> CliResult {
    let config = &context.loaded.config;
    let answer_by = Instant::now() + context.timeout.unwrap_or(START_TIMEOUT);
    let grace_ms = loop {
        match connect_to_stop(context).await? {
            ToStop::Listens => {}
            ToStop::Ended => {
                report_state(&context.output, "stopped", "stopped")?;
                return Ok(Exit::Ok);
            }
            ToStop::None => {
                report_state(&context.output, "stopped", "no daemon was running")?;
                return Ok(Exit::Ok);
            }
        }
        let socket = config.socket_path();
        match ask::<api::Shutdown>(&socket, &ShutdownParams {}, answer_by).await? {
            Asked::Answered(stopping) => break stopping.grace_ms,
            // Somebody else has asked for the end.
            Asked::Silent(ClientError::Rpc(error)) if error.kind() == ErrorKind::ShuttingDown => break 0,
            Asked::Silent(error) => return Err(runs_silently(&socket, &error.to_string())),
            // It has ended in between: the lock says so.
            Asked::Absent => {}
        }
    };
    // The daemon's own value, for it may run with another configuration than this command reads.
    let grace_ms = match grace_ms {
        0 => config.shutdown.grace_ms,
        told => told,
    };
    let patience = Duration::from_millis(grace_ms) + STOP_PATIENCE;
    let deadline = Instant::now() + context.timeout.unwrap_or(patience);
    let mut poll = MIN_POLL;
    while a_lock_is_held(config) {
        if Instant::now() >= deadline {
            return Err(
                CliError::new(Exit::Retry, "the daemon is still finishing what it accepted")
                    .fix("wait and run `ccoctl daemon status`, or send the process SIGTERM twice to end it at once"),
            );
        }
        tokio::time::sleep(poll).await;
        poll = (poll * 2).min(MAX_POLL);
    }
    report_state(&context.output, "stopped", "stopped")?;
    Ok(Exit::Ok)
}

/// The daemon that `daemon stop` finds.
enum ToStop {
    /// A daemon that can be asked to stop.
    Listens,
    /// A daemon that has ended meanwhile.
    Ended,
    /// None.
    None,
}

/// Looks for the daemon that is to be stopped. A daemon that has a lock and does not listen is starting, makes a removed
/// run directory again, or is about to end because somebody else has stopped it. So this waits for it, as long as that
/// may take.
async fn connect_to_stop(context: &Context) -> CliResult<ToStop> {
    let config = &context.loaded.config;
    let socket = config.socket_path();
    let begun = Instant::now();
    let patience = Duration::from_millis(config.shutdown.grace_ms) + STOP_PATIENCE;
    let deadline = begun + context.timeout.unwrap_or(patience);
    let mut held = false;
    loop {
        match connect::connect(&socket).await {
            Ok(_) => return Ok(ToStop::Listens),
            Err(NoConnection::Failed(error)) => return Err(error),
            Err(NoConnection::Absent) => {}
        }
        if !a_lock_is_held(config) {
            return Ok(if held { ToStop::Ended } else { ToStop::None });
        }
        held = true;
        if let Some(error) = of_another_home(config) {
            return Err(error);
        }
        if begun.elapsed() >= SOCKET_PATIENCE && serves_elsewhere(config, deadline).await {
            return Err(listens_elsewhere(config));
        }
        if Instant::now() >= deadline {
            return Err(holds_and_does_not_listen(config));
        }
        tokio::time::sleep(MAX_POLL).await;
    }
}

fn report_state(output: &Output, state: &str, text: &str) -> CliResult<()> {
    if output.json {
        output.print_json(&serde_json::json!({ "state": state }))
    } else {
        output.print(text)
    }
}

async fn status(context: &Context) -> CliResult {
    let socket = context.loaded.config.socket_path();
    let deadline = Instant::now() + context.timeout.unwrap_or(START_TIMEOUT);
    let status = match ask::<api::Status>(&socket, &StatusParams {}, deadline).await? {
        Asked::Answered(status) => status,
        Asked::Absent => {
            report_state(
                &context.output,
                "stopped",
                &format!("not running (no daemon on {})", socket.display()),
            )?;
            return Ok(Exit::Unavailable);
        }
        // It runs, and its error is all that is known.
        Asked::Silent(error) => {
            if context.output.json {
                context.output.print_json(&serde_json::json!({
                    "state": "running",
                    "reasons": [error.to_string()],
                    "socket": socket,
                }))?;
            } else {
                let running = context.output.paint(Style::Good, "running");
                context.output.print(&format!("{running} on {}", socket.display()))?;
                output::message(error.to_string());
            }
            return Ok(Exit::Ok);
        }
    };
    if context.output.json {
        context.output.print_json(&serde_json::json!({
            "state": "running",
            "status": status.status,
            "reasons": status.reasons,
            "pid": status.pid,
            "version": status.version,
            "uptime_ms": status.uptime_ms,
            "socket": socket,
        }))?;
    } else {
        context.output.print(&format!(
            "{} (pid {}, version {}, up {}) on {}",
            context.output.paint(Style::Good, "running"),
            status.pid,
            status.version,
            when::span(status.uptime_ms),
            socket.display()
        ))?;
        for reason in &status.reasons {
            output::message(reason);
        }
    }
    Ok(Exit::Ok)
}
