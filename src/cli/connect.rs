//! From a command to the daemon and back: finds the socket, starts the daemon if none runs, calls a method, and
//! turns what went wrong into an exit code and advice.

use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use ccod_protocol::api::{self, Method};
use ccod_protocol::client::{Client, ClientError};
use ccod_protocol::error::WireError;

use super::exit::{CliError, CliResult, Exit};
use super::{Context, daemon};

/// How much longer than the daemon's own deadline a command waits for its answer: the daemon answers a missed
/// deadline itself, so this only ends the wait for one that is stuck.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

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
}

/// The result of a call: as it came, to print it whole, and typed on demand.
#[derive(Debug)]
pub(crate) struct Reply<R> {
    /// The result as it came.
    pub(crate) json: Value,
    result: PhantomData<R>,
}

impl<R: serde::de::DeserializeOwned> Reply<R> {
    /// The result, typed.
    pub(crate) fn decode(&self) -> CliResult<R> {
        R::deserialize(&self.json).map_err(|error| {
            CliError::new(Exit::Failed, format!("cannot read the daemon's answer: {error}"))
                .fix("the daemon has another version; run `ccoctl daemon stop`, then try again")
        })
    }
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
    Client::connect(path).await.map_err(|error| no_connection(&error, path))
}

fn no_connection(error: &ClientError, path: &Path) -> NoConnection {
    let Some(io_error) = error.as_io() else {
        return NoConnection::Failed(
            CliError::new(Exit::Unavailable, format!("cannot talk to {}: {error}", path.display()))
                .fix("check that the socket belongs to ccod; `ccoctl config show` says where the path comes from"),
        );
    };
    match io_error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => NoConnection::Absent,
        io::ErrorKind::PermissionDenied => NoConnection::Failed(
            CliError::new(
                Exit::Permission,
                format!("not allowed to connect to {}: {io_error}", path.display()),
            )
            .fix(
                "if this runs in a sandbox, allow this Unix socket in its settings; otherwise the socket belongs to \
                 another user: set --home or --socket to your own",
            ),
        ),
        _ => NoConnection::Failed(
            CliError::new(
                Exit::Unavailable,
                format!("cannot connect to {}: {io_error}", path.display()),
            )
            .fix("run `ccoctl daemon status`"),
        ),
    }
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
            Err(NoConnection::Absent) => daemon::launch(context, &[]).await?.client,
        };
        Ok(Self {
            client,
            timeout: context.timeout,
        })
    }

    /// The connection `client` with the time limit of `context`.
    pub(crate) fn over(client: Client, context: &Context) -> Self {
        Self {
            client,
            timeout: context.timeout,
        }
    }

    /// Calls the method `M`.
    pub(crate) async fn call<M: Method>(
        &self,
        scope: Scope<'_>,
        parameters: &M::Params,
    ) -> CliResult<Reply<M::Result>> {
        let mut parameters = serde_json::to_value(parameters)
            .map_err(|error| CliError::new(Exit::BadData, format!("cannot send the parameters: {error}")))?;
        if let (Scope::Project(project), Some(members)) = (scope, parameters.as_object_mut()) {
            members.insert("project_id".to_owned(), Value::from(project));
        }
        Ok(Reply {
            json: self.call_raw(M::NAME, parameters).await?,
            result: PhantomData,
        })
    }

    /// Calls any method.
    pub(crate) async fn call_raw(&self, method: &str, mut parameters: Value) -> CliResult<Value> {
        let mut limit = api::default_timeout(method);
        if let (Some(timeout), Some(members)) = (self.timeout, parameters.as_object_mut()) {
            let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
            members.entry("timeout_ms").or_insert(Value::from(milliseconds));
        }
        if let Some(milliseconds) = parameters.get("timeout_ms").and_then(Value::as_u64) {
            limit = Duration::from_millis(milliseconds);
        }
        let answer = tokio::time::timeout(limit + ANSWER_MARGIN, self.client.call_raw(method, parameters));
        match answer.await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(call_error(&error)),
            Err(_) => Err(CliError::new(
                Exit::Retry,
                format!("the daemon did not answer {method} within {} s", (limit + ANSWER_MARGIN).as_secs()),
            )
            .fix("run `ccoctl status`; a write may have been carried out: repeat it with the same --id or key")),
        }
    }
}

fn call_error(error: &ClientError) -> CliError {
    match error.as_wire() {
        Some(error) => wire_error(error),
        None => CliError::new(Exit::Retry, format!("the connection to the daemon broke: {error}"))
            .fix("try again; `ccoctl daemon status` says whether it runs"),
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
        rpc: serde_json::to_value(error).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
