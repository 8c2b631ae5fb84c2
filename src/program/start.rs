//! The runtime of a program.

use std::fs::File;
use std::io;

use super::exit::{self, CliError, CliResult};

/// Builds the runtime.
///
/// # Errors
/// When the system refuses its resources, file descriptors above all.
pub fn runtime(builder: &mut tokio::runtime::Builder) -> CliResult<tokio::runtime::Runtime> {
    /// A few more than tokio opens. Tokio panics if it gets none for its signals.
    const DESCRIPTORS: usize = 8;
    let failed = |error: io::Error| CliError::io("start the runtime", &error);
    let at_hand: io::Result<Vec<File>> = (0..DESCRIPTORS).map(|_| File::open("/dev/null")).collect();
    // Closed before tokio needs them. No other error here says anything about the runtime.
    match at_hand.map(drop) {
        Err(error) if exit::lacks_descriptors(&error) => Err(failed(error)),
        _ => builder.build().map_err(failed),
    }
}
