//! From a command to the daemon and back: finds the socket, starts the daemon if none runs, calls a method, and turns
//! errors into an exit code and advice.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use ccod_protocol::api::{self, METHODS, Method, MethodInfo};
use ccod_protocol::client::{CallOptions, Client, ClientError};
use ccod_protocol::error::{ErrorKind, WireError};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{Context, launch, output, raw};
use ccod::program::exit::{self, CliError, CliResult, Exit};

/// Member of an error's `data` that has the name which was probably meant.
const NEAREST: &str = "nearest";

/// Which project a call is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope<'a> {
    /// None, or all: the method's own default.
    None,
    /// This one.
    Project(&'a str),
}

impl<'a> Scope<'a> {
    /// The project named, or none.
    pub(crate) fn of(name: Option<&'a str>) -> Self {
        name.map_or(Self::None, Scope::Project)
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    client: Client,
    timeout: Option<Duration>,
    /// `--json`: a program reads along.
    json: bool,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum NoConnection {
    /// Nothing listens there.
    Absent,
    /// Something else is wrong; starting a daemon would not help.
    Failed(CliError),
}

/// Connects to the socket `path`.
pub(crate) async fn connect(path: &Path) -> Result<Client, NoConnection> {
    Client::connect(path).await.map_err(|error| match error {
        ClientError::NotRunning { .. } => NoConnection::Absent,
        other => NoConnection::Failed(client_error(&other)),
    })
}

impl Daemon {
    /// Connects, after starting the daemon if none runs and the command line allows it.
    pub(crate) async fn open(context: &Context) -> CliResult<Self> {
        let socket = context.loaded.config.socket_path();
        let client = match connect(&socket).await {
            Ok(client) => client,
            Err(NoConnection::Failed(error)) => return Err(error),
            Err(NoConnection::Absent) if context.no_start => {
                return Err(
                    CliError::new(Exit::Unavailable, format!("no daemon listens on {}", socket.display()))
                        .fix("run `ccoctl daemon start`, or leave out --no-start"),
                );
            }
            Err(NoConnection::Absent) => {
                let launched = launch::launch(context, &[]).await?;
                // Said once, to a person, who should not be surprised by a process that stays. Scripts know.
                if launched.spawned && io::stderr().is_terminal() {
                    output::message("started the daemon; `ccoctl daemon stop` ends it");
                }
                launched.client
            }
        };
        Ok(Self::over(client, context))
    }

    /// The connection `client` with the flags of `context`.
    pub(crate) fn over(client: Client, context: &Context) -> Self {
        Self {
            client,
            timeout: context.timeout,
            json: context.output.json,
        }
    }

    /// Calls the method `M`.
    pub(crate) async fn call<M: Method>(&self, scope: Scope<'_>, parameters: &M::Params) -> CliResult<M::Result> {
        self.client
            .call::<M>(parameters, self.options(scope))
            .await
            .map_err(|error| call_error(M::NAME, &error))
    }

    /// Calls the method `M`, which may take long: shows its progress on a terminal, and has the daemon cancel it on
    /// Ctrl-C. The daemon's answer to that is the result; a second Ctrl-C does not wait for it.
    pub(crate) async fn call_long<M: Method>(&self, scope: Scope<'_>, parameters: &M::Params) -> CliResult<M::Result> {
        let line = Progress::detect(self.json);
        let mut interrupts =
            signal(SignalKind::interrupt()).map_err(|error| CliError::io("listen for Ctrl-C", &error))?;
        let cancel = CancellationToken::new();
        let call = self
            .client
            .call_watched::<M>(parameters, self.options(scope), cancel.cancelled(), |progress| {
                line.show(&progress);
            });
        let impatient = async {
            interrupts.recv().await;
            if !self.json {
                line.say("cancelling; Ctrl-C again does not wait for it");
            }
            cancel.cancel();
            interrupts.recv().await;
        };
        tokio::select! {
            biased;
            answer = call => answer.map_err(|error| call_error(M::NAME, &error)),
            () = impatient => Err(
                CliError::new(Exit::Retry, "stopped waiting before the daemon answered")
                    .fix("the daemon cancels the call; see what was done before you try again"),
            ),
        }
    }

    fn options(&self, scope: Scope<'_>) -> CallOptions {
        CallOptions {
            project_id: match scope {
                Scope::None => None,
                Scope::Project(project) => Some(project.to_owned()),
            },
            timeout: self.timeout,
            ..CallOptions::default()
        }
    }

    /// Calls any method with these parameters, an object or an array. `--timeout` becomes its deadline, also where they
    /// are an array.
    pub(crate) async fn call_raw(
        &self,
        method: &str,
        mut parameters: Box<RawValue>,
    ) -> CliResult<impl Serialize + use<>> {
        if let Some(timeout) = self.timeout {
            parameters = raw::with_timeout(method, parameters, timeout);
        }
        self.client
            .call_json(method, parameters)
            .await
            .map_err(|error| call_error(method, &error))
    }
}

/// What to say about an error of a call of `method`, and the exit code.
pub(crate) fn call_error(method: &str, error: &ClientError) -> CliError {
    match error {
        // This command line knows the method, so the daemon is the older one.
        ClientError::Rpc(error) if error.kind() == ErrorKind::MethodNotFound && api::method_info(method).is_some() => {
            let mut error = error.clone().with_fix(
                "run `ccoctl daemon stop`, then the command again, which starts the new daemon; one that systemd or \
                 launchd runs is restarted there",
            );
            error.message =
                format!("the daemon that is running does not know `{method}`: it is older than this ccoctl");
            wire_error(&error)
        }
        // The daemon compares whole names. People leave the group out, as the commands do.
        ClientError::Rpc(error)
            if error.kind() == ErrorKind::MethodNotFound && !error.data.extra.contains_key(NEAREST) =>
        {
            let mut error = error.clone();
            if let Some(name) = with_its_group(method) {
                let named = WireError::method_not_found(method, Some(name));
                error.message = named.message;
                error.data.extra.extend(named.data.extra);
            }
            wire_error(&error)
        }
        // Without an answer the outcome is unknown, but a method that writes nothing has none.
        ClientError::Closed | ClientError::Timeout { .. } => {
            let writes = api::method_info(method).is_none_or(|row| row.writes);
            let mut unanswered = client_error(error);
            unanswered.message.push_str(if writes {
                "; a write may have happened: repeat it with the same id or key"
            } else {
                "; nothing that is stored was changed, and it can be repeated"
            });
            unanswered
        }
        other => client_error(other),
    }
}

/// The whole name of a method that was named without its group: `knowledge.search` for `search`. For a slip of the
/// keyboard only if the method changes nothing, for what is suggested may be called.
fn with_its_group(name: &str) -> Option<&'static str> {
    /// Shorter words are too much like each other.
    const LEAST: usize = 5;
    let lower = name.to_lowercase().replace('-', "_");
    let own = |row: &MethodInfo| row.name.rsplit('.').next().unwrap_or_default();
    let meant = METHODS.iter().find(|row| own(row) == lower);
    let slip = || {
        let harmless = |row: &&MethodInfo| !row.writes && row.name != api::method::ADMIN_SHUTDOWN;
        // Most names are far from every method in length alone, and the measure is quadratic in it.
        METHODS.iter().filter(harmless).find(|row| {
            let own = own(row);
            own.len() >= LEAST && own.len().abs_diff(lower.len()) <= 1 && strsim::damerau_levenshtein(own, &lower) == 1
        })
    };
    meant.or_else(slip).map(|row| row.name)
}

/// What to say about an error of the client, and the exit code.
pub(crate) fn client_error(error: &ClientError) -> CliError {
    // The client's own messages say what to do as well, so only a few need advice.
    match error {
        ClientError::Rpc(error) => wire_error(error),
        ClientError::Connect { path, source } if exit::lacks_descriptors(source) => {
            CliError::io(format_args!("connect to {}", path.display()), source)
        }
        ClientError::NotRunning { .. } | ClientError::Connect { .. } => {
            CliError::new(Exit::Unavailable, error.to_string())
        }
        ClientError::Permission { .. } => CliError::new(Exit::Permission, error.to_string()),
        ClientError::PathTooLong { .. } => CliError::new(Exit::Config, error.to_string()),
        ClientError::Closed | ClientError::Lagged { .. } => {
            CliError::new(Exit::Retry, error.to_string()).fix("run `ccoctl daemon status`, then try again")
        }
        // `ccoctl status` would get no answer either, so it is not suggested.
        ClientError::Timeout { .. } => CliError::new(Exit::Retry, error.to_string()).fix(
            "try again, or give more time with --timeout; if the daemon's log reports a lack of file descriptors, close programs \
             that are connected to it, or raise its limit (LimitNOFILE of the systemd unit, SoftResourceLimits of the \
             launchd agent, or ulimit -n) and start it again",
        ),
        ClientError::Unexpected(_) => CliError::new(Exit::Failed, error.to_string())
            .fix("if ccoctl was upgraded, run `ccoctl daemon stop` and try again"),
    }
}

fn wire_error(error: &WireError) -> CliError {
    let retry = error
        .data
        .retry_after_ms
        .map(|milliseconds| format!("try again in {milliseconds} ms"));
    CliError {
        exit: Exit::from_rpc(error.code, error.data.retryable),
        message: error.message.clone(),
        fix: error.data.fix.clone().or(retry),
        rpc: serde_json::to_value(error).ok().map(Box::new),
        done: None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn every_error_of_the_client_has_its_exit_code() {
        let path = PathBuf::from("/run/x.sock");
        let source = || io::Error::from(io::ErrorKind::PermissionDenied);
        let cases = [
            (
                ClientError::NotRunning {
                    path: path.clone(),
                    source: source(),
                },
                Exit::Unavailable,
            ),
            (
                ClientError::Permission {
                    path: path.clone(),
                    source: source(),
                },
                Exit::Permission,
            ),
            (ClientError::PathTooLong { path: path.clone() }, Exit::Config),
            (ClientError::Connect { path, source: source() }, Exit::Unavailable),
            (ClientError::Closed, Exit::Retry),
            (
                ClientError::Timeout {
                    after: Duration::from_secs(1),
                },
                Exit::Retry,
            ),
            (ClientError::Unexpected("x".to_owned()), Exit::Failed),
            (ClientError::Rpc(WireError::not_found("x")), Exit::Failed),
        ];
        for (error, exit) in cases {
            assert_eq!(client_error(&error).exit, exit, "{error}");
        }
    }

    #[test]
    fn a_missing_answer_says_what_the_method_may_have_done() {
        for error in [
            ClientError::Closed,
            ClientError::Timeout {
                after: Duration::from_secs(1),
            },
        ] {
            for (method, told) in [
                ("admin.health", "nothing that is stored was changed"),
                ("knowledge.search", "nothing that is stored was changed"),
                ("knowledge.query", "nothing that is stored was changed"),
                ("knowledge.store", "a write may have happened"),
                ("admin.restore", "a write may have happened"),
                ("of.another_daemon", "a write may have happened"),
            ] {
                let unanswered = call_error(method, &error);
                assert_eq!(unanswered.exit, Exit::Retry);
                assert!(unanswered.message.contains(told), "{method}: {unanswered}");
                // It would get no answer either.
                assert!(!unanswered.to_string().contains("ccoctl health"), "{unanswered}");
            }
        }
    }

    #[test]
    fn a_lack_of_file_descriptors_says_how_to_get_more() {
        let error = client_error(&ClientError::Connect {
            path: PathBuf::from("/run/x.sock"),
            source: io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32),
        });
        assert_eq!(error.exit, Exit::Retry);
        assert!(
            error.fix.as_deref().is_some_and(|fix| fix.contains("ulimit -n")),
            "{error}"
        );
    }

    #[test]
    fn a_method_that_only_the_daemon_does_not_know_means_an_older_daemon() {
        let unknown = |method| ClientError::Rpc(WireError::method_not_found(method, Some("knowledge.update")));
        let older = call_error("knowledge.purge", &unknown("knowledge.purge"));
        assert_eq!(older.exit, Exit::Usage);
        assert!(older.message.contains("older"), "{older}");
        assert!(
            older
                .fix
                .as_deref()
                .is_some_and(|fix| fix.contains("ccoctl daemon stop"))
        );
        let json = older.rpc.expect("kept for --json");
        assert_eq!(json["code"], -32601);
        assert!(
            json["data"]["fix"]
                .as_str()
                .is_some_and(|fix| fix.contains("daemon stop"))
        );
        // A name that nobody knows is the caller's mistake.
        let mistaken = call_error("knowledge.updaet", &unknown("knowledge.updaet"));
        assert!(
            mistaken.message.contains("did you mean `knowledge.update`?"),
            "{mistaken}"
        );
        assert_eq!(mistaken.fix, None);
    }

    #[test]
    fn a_method_without_its_group_gets_its_whole_name_suggested() {
        let told = |method: &str| call_error(method, &ClientError::Rpc(WireError::method_not_found(method, None)));
        for (given, meant) in [
            ("search", "knowledge.search"),
            ("Search", "knowledge.search"),
            ("serch", "knowledge.search"),
            ("store-batch", "knowledge.store_batch"),
            ("delete", "knowledge.delete"),
            ("embed", "embedding.embed"),
            ("healht", "admin.health"),
            ("discover", "rpc.discover"),
        ] {
            let error = told(given);
            assert_eq!(error.exit, Exit::Usage);
            assert!(error.message.contains(&format!("did you mean `{meant}`?")), "{error}");
            assert_eq!(error.rpc.expect("kept for --json")["data"]["nearest"], meant);
        }
        // What changes something is not suggested for what is only like it, and nothing for what is like nothing.
        for given in ["delet", "shutdwon", "lst", "find", "sql.search", ""] {
            let error = told(given);
            assert!(error.message.contains("`rpc.discover` lists the methods"), "{error}");
        }
    }

    #[test]
    fn the_fix_is_the_daemons_or_the_time_to_wait() {
        let busy = wire_error(&WireError::busy("the queue is full", 50));
        assert_eq!(busy.exit, Exit::Retry);
        assert_eq!(busy.fix.as_deref(), Some("try again in 50 ms"));
        let wrong = wire_error(&WireError::invalid_params("limit", "`limit` must be from 1 to 100"));
        assert_eq!(wrong.exit, Exit::BadData);
        assert_eq!(wrong.message, "`limit` must be from 1 to 100");
        assert_eq!(wrong.fix, None);
        let json = wrong.rpc.expect("kept for --json");
        assert_eq!(json["data"]["parameter"], "limit");
    }
}
