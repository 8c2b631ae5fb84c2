//! What the two programs, `ccoctl` and `ccod`, have in common: exit codes and errors, the daemon's flags, and how
//! both speak on standard error.

pub mod arguments;
pub mod exit;

use std::fmt::Display;
use std::io::{self, Write as _};

use exit::CliError;

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

#[cfg(test)]
mod tests {
    use std::process::Command;

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
