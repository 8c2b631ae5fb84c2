//! How both programs speak on standard error.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::panic::PanicHookInfo;

use super::exit::CliError;

/// Prints a message to standard error.
pub fn message(text: impl Display) {
    // Standard error may be closed, and there is no other place for a message.
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

/// Makes the process report the place of a panic, without its message, which may quote a text, and without the
/// directories of the machine that built it. For a program without a log.
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
    #[test]
    fn a_source_file_does_not_name_the_machine_that_built_the_program() {
        let file =
            super::source_file("/home/somebody/.cargo/registry/src/index-0123456789abcdef/tokio-1.54.1/src/x.rs");
        assert_eq!(file, "tokio-1.54.1/src/x.rs");
        assert_eq!(super::source_file("src/program/mod.rs"), "src/program/mod.rs");
    }
}
