//! The flags of the daemon, which `ccoctl daemon run` and `ccoctl daemon start` pass on to `ccod`.

use clap::Args;

use crate::config::Overrides;

/// Flags that override the daemon's configuration.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// full: an acknowledged write survives power loss; fast: a crash of the daemon only
    #[arg(long, value_name = "D")]
    durability: Option<String>,
    /// error, warn, info, debug, trace, or a filter
    #[arg(long = "log", value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any value of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl RunArgs {
    /// Adds these flags to `overrides`.
    pub fn add_to(&self, overrides: &mut Overrides) {
        overrides.durability.clone_from(&self.durability);
        overrides.log_level.clone_from(&self.log_level);
        overrides.log_format.clone_from(&self.log_format);
        overrides.set.clone_from(&self.set);
    }

    /// These flags as a command line has them.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<String> {
        let Self {
            durability,
            log_level,
            log_format,
            set,
        } = self;
        let mut arguments = Vec::new();
        let named = [
            ("--durability", durability),
            ("--log", log_level),
            ("--log-format", log_format),
        ];
        for (flag, value) in named {
            if let Some(value) = value {
                arguments.push(format!("{flag}={value}"));
            }
        }
        arguments.extend(set.iter().map(|assignment| format!("--set={assignment}")));
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_start_reach_run() {
        let arguments = RunArgs {
            durability: Some("fast".to_owned()),
            log_level: Some("info,ccod=debug".to_owned()),
            log_format: None,
            set: vec!["limits.max_connections=9".to_owned()],
        };
        assert_eq!(
            arguments.to_arguments(),
            [
                "--durability=fast",
                "--log=info,ccod=debug",
                "--set=limits.max_connections=9"
            ]
        );
        let mut overrides = Overrides::default();
        arguments.add_to(&mut overrides);
        assert_eq!(overrides.durability.as_deref(), Some("fast"));
        assert_eq!(overrides.set.len(), 1);
    }
}
