//! What the daemon has from its environment: the variables that LanceDB reads, and limits of the process.

use ccod::program::exit::{CliError, CliResult, Exit};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Has a write beyond the limit of a file's size (`ulimit -f`) fail, as one on a full disk does. As a signal it would
/// end the daemon without a word.
pub(crate) fn ignore_file_size_signal() -> CliResult<()> {
    // SAFETY: to ignore a signal installs no handler, so there is no code that could be run at a wrong moment.
    #[allow(unsafe_code)]
    let ignored = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    ignored
        .map(drop)
        .map_err(|error| CliError::io("ignore the signal SIGXFSZ", &error.into()))
}

/// Sets what LanceDB reads from the environment and from nowhere else. Values that the user has set are kept.
pub(crate) fn prepare_for_lance() -> CliResult<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut defaults = vec![
        // Bytes that one scan may read ahead; its default of 2 GiB is made for servers.
        ("LANCE_DEFAULT_IO_BUFFER_SIZE", "67108864"),
        // Rewriting indices of older versions is the daemon's decision, not a side effect of opening a table.
        ("LANCE_AUTO_MIGRATION", "false"),
    ];
    match std::env::var("LANCE_CPU_THREADS") {
        // LanceDB takes all cores but two, which leaves a small machine with a single thread, on which index
        // builds can wait for themselves.
        Err(_) if cores < 4 => defaults.push(("LANCE_CPU_THREADS", "2")),
        Err(_) => {}
        // LanceDB panics on it, much later.
        Ok(threads) if threads.parse::<usize>().is_ok_and(|threads| threads > 0) => {}
        Ok(threads) => {
            return Err(CliError::new(
                Exit::Config,
                format!("LANCE_CPU_THREADS is `{threads}`, which is not a number of threads"),
            )
            .fix("unset it, or set it to 2 or more"));
        }
    }
    for (name, value) in defaults {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread exists yet: this runs before the runtime is built, and nothing before
            // it spawns a thread. That is all `set_var` asks for.
            #[allow(unsafe_code)]
            unsafe {
                std::env::set_var(name, value);
            }
        }
    }
    Ok(())
}
