//! `ccod`: the daemon, in the foreground. `ccoctl daemon run` and `ccoctl daemon start` run it; so may a service
//! manager.

// The optimised build lays out the futures of a whole query here.
#![recursion_limit = "256"]

mod allocator;
mod detach;
mod environment;
mod logging;

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ccod::config::{Config, Overrides};
use ccod::daemon::{End, StartError};
use ccod::log_file::LogFile;
use ccod::program::arguments::RunArgs;
use ccod::program::exit::{CliError, CliResult, Exit};
use ccod::program::{self, VERSION};
use ccod_actors::store::StoreLockError;
use ccod_actors::{memory, panics};
use clap::Parser;
use nix::fcntl::{Flock, FlockArg};

/// Threads for blocking file work. The store's reads are short; tokio's default of 512 is memory for nothing.
const BLOCKING_THREADS: usize = 16;

/// How long the end of the process waits for threads that are still busy once the daemon has shut down.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(1);

#[derive(Debug, Parser)]
#[command(
    name = "ccod",
    version,
    about = "The knowledge daemon of CCO; `ccoctl` starts it and talks to it",
    max_term_width = 100
)]
struct Arguments {
    /// Directory of everything the daemon keeps [default: ~/.cco]
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Socket of the daemon [default: run/ccod.sock in the home]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print an error as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
    /// Leave the terminal's session (`ccoctl daemon start` passes it)
    #[arg(long, hide = true)]
    detached: bool,
    /// The version that the caller expects (`ccoctl` passes its own)
    #[arg(long, value_name = "VERSION", hide = true)]
    expect: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    match run(arguments) {
        Ok(exit) => exit.into(),
        Err(error) => {
            program::report("ccod", &error, json);
            error.exit.into()
        }
    }
}

fn run(arguments: Arguments) -> CliResult {
    if arguments.detached {
        detach::from_parent();
    }
    panics::install_hook();
    environment::ignore_file_size_signal()?;
    let _in_use = hold_own_file();
    if let Some(expected) = &arguments.expect
        && expected != VERSION
    {
        return Err(CliError::new(
            Exit::Config,
            format!("this is ccod {VERSION}, and it was started by ccoctl {expected}"),
        )
        .fix("install both programs from one release"));
    }
    let mut overrides = Overrides {
        home: arguments.home,
        socket: arguments.socket,
        ..Overrides::default()
    };
    arguments.run.add_to(&mut overrides);
    let loaded = Config::load(overrides)?;
    let log_path = loaded.config.log_path();
    let log = match &loaded.config.log.file {
        Some(path) => Some(
            LogFile::redirect(path).map_err(|error| CliError::io(format_args!("open {}", path.display()), &error))?,
        ),
        None => LogFile::behind_stderr(&log_path),
    };
    logging::init(&loaded.config.log, log.clone())?;
    environment::prepare_for_lance()?;
    memory::give_back_by(allocator::give_back);

    let runtime = program::runtime(
        tokio::runtime::Builder::new_multi_thread()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("ccod")
            .on_thread_park(memory::before_waiting)
            .enable_all(),
    )?;
    let ended = runtime.block_on(ccod::daemon::run(loaded.config, log));
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    match ended {
        Ok(End::Finished) => Ok(Exit::Ok),
        // Not a failure: a service manager must not start again what was asked to stop.
        Ok(End::Unfinished) => Err(CliError::new(
            Exit::Retry,
            "stopped before everything that was accepted was finished",
        )
        .fix("the log says what was left; writes that were acknowledged are safe, the others may be repeated")),
        Ok(End::Failed) => Err(CliError::new(Exit::Failed, "the daemon could not go on").fix("the log says why")),
        Err(error) => Err(start_error(&error)),
    }
}

/// Why the daemon did not start. `ccoctl daemon start` reads the exit codes.
fn start_error(error: &StartError) -> CliError {
    match error {
        StartError::Endpoint(error) => error.into(),
        StartError::Access(error) => error.into(),
        StartError::Home(error) => error.into(),
        StartError::Store(error) => {
            let exit = match error {
                StoreLockError::Held { .. } => Exit::Retry,
                StoreLockError::NoFile(_) => Exit::Permission,
                StoreLockError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                    Exit::Permission
                }
                _ => Exit::Failed,
            };
            CliError::new(exit, error.to_string())
        }
        // With the causes: this is the line that a failed start leaves in the log.
        StartError::Other(error) => CliError::new(Exit::Failed, format!("{error:#}")),
    }
}

/// Locks this program's own file, shared, if `ccoctl` has unpacked it: another `ccoctl` removes what no daemon runs.
/// A failure costs nothing but that.
fn hold_own_file() -> Option<Flock<std::fs::File>> {
    let path = std::env::current_exe().ok()?;
    if path.parent().and_then(Path::parent)?.file_name()? != ccod::program::ENGINE_DIRECTORY {
        return None;
    }
    let file = std::fs::File::open(&path).ok()?;
    // Only our own is worth a descriptor for the life of the daemon.
    if file.metadata().ok()?.uid() != nix::unistd::getuid().as_raw() {
        return None;
    }
    Flock::lock(file, FlockArg::LockSharedNonblock).ok()
}
