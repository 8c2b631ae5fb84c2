//! What the two programs, `ccoctl` and `ccod`, have in common: exit codes and errors, the daemon's flags, and how
//! both speak on standard error.

pub mod arguments;
pub mod exit;

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write as _};
use std::panic::PanicHookInfo;

use exit::{CliError, CliResult};

/// Directory below the home into which `ccoctl` unpacks the engine that it carries.
pub const ENGINE_DIRECTORY: &str = "engine";

/// The version of both programs. `ccoctl` runs only an engine of its own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints a message to standard error.
pub fn message(text: impl Display) {
    // Nobody may be listening there, and there is no other place to say so.
    writeln!(io::stderr().lock(), "{text}").unwrap_or_default();
}

/// Prints why `program` failed, as one line of JSON or as prose.
pub fn report(program: &str, error: &CliError, json: bool) {
    if json {
        message(error.to_json());
    } else {
        message(format_args!("{program}: {error}"));
    }
}

/// Builds the runtime.
///
/// # Errors
/// When the system refuses what it needs, file descriptors above all.
pub fn runtime(builder: &mut tokio::runtime::Builder) -> CliResult<tokio::runtime::Runtime> {
    /// A few more than tokio opens. It panics where it gets none for its signals.
    const DESCRIPTORS: usize = 8;
    let failed = |error: io::Error| CliError::io("start the runtime", &error);
    let at_hand: io::Result<Vec<File>> = (0..DESCRIPTORS).map(|_| File::open("/dev/null")).collect();
    // Given back before they are needed. Nothing else that may fail here says anything about the runtime.
    match at_hand.map(drop) {
        Err(error) if exit::lacks_descriptors(&error) => Err(failed(error)),
        _ => builder.build().map_err(failed),
    }
}

/// Has the process tell where it panics, and neither what is said there, which may quote a text, nor where it was built.
/// For a program without a log.
pub fn tell_place_of_panics() {
    std::panic::set_hook(Box::new(|panic: &PanicHookInfo<'_>| {
        let place = panic.location().map_or_else(
            || "an unknown place".to_owned(),
            |location| format!("{}:{}", source_file(location.file()), location.line()),
        );
        message(format_args!(
            "this is a defect of the program, at {place}; please report it with what you did"
        ));
    }));
}

/// A source file without the directories of the machine that the program was built on.
fn source_file(path: &str) -> &str {
    const REGISTRY: &str = "/registry/src/";
    path.split_once(REGISTRY)
        .and_then(|(_, of_registry)| of_registry.split_once('/'))
        .map_or(path, |(_, of_crate)| of_crate)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn a_source_file_does_not_name_the_machine_that_built_the_program() {
        let file =
            super::source_file("/home/somebody/.cargo/registry/src/index-0123456789abcdef/tokio-1.54.1/src/x.rs");
        assert_eq!(file, "tokio-1.54.1/src/x.rs");
        assert_eq!(super::source_file("src/program/mod.rs"), "src/program/mod.rs");
    }

    #[test]
    fn the_command_line_has_no_engine_in_its_tree() {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let output = Command::new(cargo)
            .args(["tree", "--offline", "--locked", "-p", "ccod", "--no-default-features"])
            .args(["-e", "normal", "--prefix", "none"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{output:?}");
        let tree = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(tree.contains("ccod-protocol"), "{tree}");
        for heavy in [
            "lance",
            "candle",
            "arrow",
            "datafusion",
            "tokenizers",
            "ccod-actors",
            "hyper ",
        ] {
            assert!(!tree.lines().any(|line| line.starts_with(heavy)), "{heavy} in:\n{tree}");
        }
    }
}
