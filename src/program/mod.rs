//! What the two programs, `ccoctl` and `ccod`, have in common: exit codes and errors, the daemon's flags, and how
//! both speak on standard error.

pub mod arguments;
pub mod exit;
mod speech;
mod start;

pub use speech::{message, report, tell_place_of_panics};
pub use start::runtime;

/// Directory below the home into which `ccoctl` unpacks the engine that it carries.
pub const ENGINE_DIRECTORY: &str = "engine";

/// The version of both programs. `ccoctl` runs only an engine of its own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

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
