//! `status`, `health`, `rpc`, `config` and `completions`.

use clap::{Args, Subcommand};
use clap_complete::Shell;
use serde_json::Value;
use serde_json::value::RawValue;

use ccod::config::options;
use ccod::program::exit::{CliError, CliResult, Exit};
use ccod_protocol::api::{self, HealthParams, HealthStatus, StatusParams, StatusResult};

use crate::cli::connect::{Daemon, Scope};
use crate::cli::output::{self, Align, Output, Style, Table};
use crate::cli::text::text_or_stdin;
use crate::cli::{Context, grammar, when};

/// Commands about the daemon and this program.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Say whether the daemon works
    Health(HealthArgs),
    /// Describe the daemon, its parts and its projects
    Status,
    /// Print the daemon's numbers as Prometheus text
    Metrics,
    /// Call any method; prints its result as it is
    Rpc(RpcArgs),
    /// Show the configuration
    #[command(subcommand, arg_required_else_help = true)]
    Config(ConfigCommand),
    /// Print completions for a shell
    Completions(CompletionsArgs),
}

/// Runs one of them.
pub(crate) async fn run(context: &Context, command: AdminCommand) -> CliResult {
    match command {
        AdminCommand::Health(arguments) => health(context, &arguments).await,
        AdminCommand::Status => status(context).await,
        AdminCommand::Metrics => metrics(context).await,
        AdminCommand::Rpc(arguments) => rpc(context, arguments).await,
        AdminCommand::Config(command) => config(context, &command),
        AdminCommand::Completions(arguments) => completions(&arguments),
    }
}

/// Arguments of `health`.
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Prove it by a real write, search and delete in a project of its own
    #[arg(long)]
    deep: bool,
}

/// Arguments of `rpc`.
#[derive(Debug, Args)]
pub(crate) struct RpcArgs {
    /// Name of the method, such as knowledge.search
    method: String,
    /// Parameters: an object or an array; `-` reads standard input [default: {}]
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    parameters: Option<String>,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

/// Commands of `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every value and where it came from
    Show,
}

/// `ccoctl status`.
pub(crate) async fn status(context: &Context) -> CliResult {
    let daemon = Daemon::open(context).await?;
    let status = daemon.call::<api::Status>(Scope::None, &StatusParams {}).await?;
    context.output.answer(
        &status,
        || render_status(&context.output, &status),
        || output::project_errors(&status.errors),
    )?;
    Ok(Exit::Ok)
}

fn paint_health(output: &Output, status: HealthStatus) -> String {
    match status {
        HealthStatus::Ok => output.paint(Style::Good, "ok"),
        HealthStatus::Starting => output.paint(Style::Warning, "starting"),
        HealthStatus::Degraded => output.paint(Style::Warning, "degraded"),
        HealthStatus::Stopping => output.paint(Style::Warning, "stopping"),
    }
}

fn render_status(output: &Output, status: &StatusResult) -> String {
    let name = &status.model.identity.name;
    // A daemon of an older version does not say how exactly it computes.
    let engine = match status.model.precision.as_str() {
        "" => status.model.engine.clone(),
        precision => format!("{precision}: {}", status.model.engine),
    };
    let model = if status.model.loaded {
        let load = status
            .model
            .load_ms
            .map_or_else(String::new, |load_ms| format!(" in {load_ms:.0} ms"));
        format!("{name} ({engine}), loaded{load}")
    } else {
        format!("{name} ({engine}), not loaded yet")
    };
    let mut fields = vec![
        ("status", paint_health(output, status.status)),
        ("version", status.version.clone()),
        ("pid", status.pid.to_string()),
        ("uptime", when::span(status.uptime_ms)),
        ("home", status.home.clone()),
        ("socket", status.socket.clone()),
        ("durability", status.durability.to_string()),
        ("model", model),
        (
            "memory",
            format!(
                "{} (at most {})",
                output::bytes(status.memory.rss_bytes),
                output::bytes(status.memory.peak_rss_bytes)
            ),
        ),
    ];
    for reason in &status.reasons {
        fields.push(("because", reason.clone()));
    }
    for finding in &status.recovery {
        fields.push(("repaired", finding.clone()));
    }
    let mut text = output::fields(output, &fields);

    if !status.actors.is_empty() {
        let mut table = Table::new(&[
            ("part", Align::Left),
            ("state", Align::Left),
            ("restarts", Align::Right),
            ("waiting", Align::Right),
            ("batches", Align::Right),
        ]);
        for (name, actor) in &status.actors {
            table.row([
                name.clone(),
                actor.state.clone(),
                actor.restarts.to_string(),
                actor.queue_depth.values().sum::<u64>().to_string(),
                actor.batches.to_string(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(output));
    }
    if !status.projects.is_empty() {
        let mut table = Table::new(&[
            ("project", Align::Left),
            ("items", Align::Right),
            ("on disk", Align::Right),
            ("fragments", Align::Right),
            ("versions", Align::Right),
            ("unindexed", Align::Right),
            ("state", Align::Left),
        ]);
        for project in &status.projects {
            table.row([
                project.project_id.clone(),
                project.items.to_string(),
                output::bytes(project.bytes_on_disk),
                project.fragments.to_string(),
                project.versions.to_string(),
                project.unindexed_rows.to_string(),
                project.state.clone().unwrap_or_else(|| "ok".to_owned()),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(output));
    }
    text
}

/// `ccoctl metrics`: the text as it is, for a scraper's text file; `--json` wraps it.
pub(crate) async fn metrics(context: &Context) -> CliResult {
    let daemon = Daemon::open(context).await?;
    let metrics = daemon
        .call::<api::Metrics>(Scope::None, &api::MetricsParams::default())
        .await?;
    context
        .output
        .answer(&metrics, || metrics.text.trim_end().to_owned(), String::new)?;
    Ok(Exit::Ok)
}

/// `ccoctl health`: 0 if the daemon works or is starting, 1 if not.
pub(crate) async fn health(context: &Context, arguments: &HealthArgs) -> CliResult {
    let daemon = Daemon::open(context).await?;
    let parameters = HealthParams { deep: arguments.deep };
    let health = daemon.call::<api::Health>(Scope::None, &parameters).await?;
    context.output.answer(
        &health,
        || paint_health(&context.output, health.status),
        || health.reasons.join("\n"),
    )?;
    Ok(match health.status {
        HealthStatus::Ok | HealthStatus::Starting => Exit::Ok,
        HealthStatus::Degraded | HealthStatus::Stopping => Exit::Failed,
    })
}

/// `ccoctl rpc`.
pub(crate) async fn rpc(context: &Context, arguments: RpcArgs) -> CliResult {
    let text = text_or_stdin(arguments.parameters.unwrap_or_else(|| "{}".to_owned()))?;
    // Unchanged: the daemon judges a key that stands there twice.
    let parameters: Box<RawValue> = serde_json::from_str(&text).map_err(|error| {
        CliError::new(Exit::BadData, format!("the parameters are not JSON: {error}"))
            .fix("write an object such as '{\"query\":\"auth\"}', or - to read it from standard input")
    })?;
    if !parameters.get().starts_with(['{', '[']) {
        return Err(
            CliError::new(Exit::BadData, "the parameters must be a JSON object or array")
                .fix("write an object such as '{\"query\":\"auth\"}'"),
        );
    }
    let daemon = Daemon::open(context).await?;
    let result = daemon.call_raw(&arguments.method, parameters).await?;
    // The method may have changed something.
    context.output.print_text_done(&result, &output::json_line(&result)?)?;
    Ok(Exit::Ok)
}

/// `ccoctl config`.
pub(crate) fn config(context: &Context, command: &ConfigCommand) -> CliResult {
    let ConfigCommand::Show = command;
    let loaded = &context.loaded;
    let values = loaded.config.values();
    if context.output.json {
        let options = options();
        let option = |key: &String| options.iter().find(|option| option.key == *key);
        let listed: Vec<Value> = values
            .iter()
            .map(|(key, value)| {
                serde_json::json!({
                    "key": key,
                    "value": value,
                    "origin": loaded.origins.get(key),
                    "about": option(key).map(|option| &option.about),
                    "minimum": option(key).and_then(|option| option.minimum),
                    "maximum": option(key).and_then(|option| option.maximum),
                })
            })
            .collect();
        context.output.print_json(
            &serde_json::json!({ "file": loaded.file, "socket": loaded.config.socket_path(), "values": listed }),
        )?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(&[("key", Align::Left), ("value", Align::Left), ("from", Align::Left)]);
    for (key, value) in &values {
        let shown = match value {
            // Without a value it is the socket in the home.
            Value::Null if key == "socket" => loaded.config.socket_path().display().to_string(),
            Value::Null => "-".to_owned(),
            Value::String(text) if text.is_empty() => "\"\"".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let origin = loaded
            .origins
            .get(key)
            .map_or_else(|| "default".to_owned(), ToString::to_string);
        table.row([key.clone(), shown, origin]);
    }
    context.output.print(&table.render(&context.output))?;
    let state = if loaded.file.exists() { "" } else { " (does not exist)" };
    output::message(format_args!("file: {}{state}", loaded.file.display()));
    Ok(Exit::Ok)
}

/// `ccoctl completions`.
pub(crate) fn completions(arguments: &CompletionsArgs) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut grammar::command(), "ccoctl", &mut script);
    Output::detect(false).print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ccod_protocol::api::{ActorStatus, ProjectStatus};

    #[test]
    fn status_shows_parts_and_projects() {
        let mut status = StatusResult {
            version: "0.1.0".to_owned(),
            pid: 7,
            reasons: vec!["the writer is restarting".to_owned()],
            status: HealthStatus::Degraded,
            ..StatusResult::default()
        };
        status.actors.insert(
            "writer".to_owned(),
            ActorStatus {
                state: "restarting".to_owned(),
                restarts: 2,
                ..ActorStatus::default()
            },
        );
        status.projects.push(ProjectStatus {
            project_id: "web".to_owned(),
            items: 3,
            ..ProjectStatus::default()
        });
        let text = render_status(&Output::plain(), &status);
        assert!(text.starts_with("status      degraded\n"), "{text}");
        assert!(text.contains("because     the writer is restarting\n"), "{text}");
        assert!(
            text.contains("writer  restarting         2        0        0\n"),
            "{text}"
        );
        assert!(text.contains("web          3"), "{text}");
    }

    #[test]
    fn completions_cover_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut grammar::command(), "ccoctl", &mut script);
            let script = String::from_utf8(script).expect("utf-8");
            for word in ["search", "all-projects", "daemon"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
