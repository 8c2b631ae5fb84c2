//! Names of projects.

use std::fmt;

use crate::Invalid;

/// The project of a call that names none.
pub const DEFAULT_PROJECT: &str = "default";
/// Longest project name, in characters (all of them ASCII).
pub const PROJECT_NAME_MAX: usize = 100;
/// How the names of the projects of health probes begin. No caller can give such a name ([`ProjectName::parse`]), so a
/// directory of such a name is never a user's.
pub const PROBE_PREFIX: &str = ".health-";

/// A checked project name: `[A-Za-z0-9][A-Za-z0-9._-]{0,99}`. It becomes the name of a directory, so it cannot be a
/// path to elsewhere. The daemon's own projects have names that begin with a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectName(String);

impl ProjectName {
    /// Checks `name`.
    ///
    /// # Errors
    /// Names `parameter` and the rule.
    pub fn parse(name: &str, parameter: &str) -> Result<Self, Invalid> {
        let bytes = name.as_bytes();
        let begins_well = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
        let goes_on_well = bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
        if begins_well && goes_on_well && bytes.len() <= PROJECT_NAME_MAX {
            return Ok(Self(name.to_owned()));
        }
        Err(Invalid::new(
            parameter,
            format!(
                "`{parameter}` must be a project name: 1 to {PROJECT_NAME_MAX} of A-Z a-z 0-9 . _ -, beginning with a \
                 letter or digit"
            ),
        ))
    }

    /// A name of the daemon's own, for the project of one health probe.
    #[must_use]
    pub fn of_probe(number: u64) -> Self {
        Self(format!("{PROBE_PREFIX}{number:016x}"))
    }

    /// Whether the project is one of the daemon's own: it is never listed, and no caller can name it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.0.starts_with('.')
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as compared for collisions: names equal but for case are one project on some file systems.
    #[must_use]
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl Default for ProjectName {
    fn default() -> Self {
        Self(DEFAULT_PROJECT.to_owned())
    }
}

impl fmt::Display for ProjectName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_names_are_never_paths() {
        for good in [
            "a",
            "default",
            "cc-orchestra",
            "v1.2_x",
            "9lives",
            "A.b_c-9",
            &"x".repeat(100),
        ] {
            assert_eq!(ProjectName::parse(good, "project_id").unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-a",
            "_a",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(101),
        ] {
            let error = ProjectName::parse(bad, "project_id").expect_err(bad);
            assert_eq!(error.parameter, "project_id");
        }
    }

    #[test]
    fn no_caller_can_name_a_project_of_the_daemon() {
        let (one, other) = (ProjectName::of_probe(1), ProjectName::of_probe(2));
        assert_ne!(one, other);
        assert!(one.is_own() && one.as_str().starts_with(PROBE_PREFIX));
        assert!(ProjectName::parse(one.as_str(), "project_id").is_err());
        for legal in ["health", "ccod-health-probe", "knowledge-manager-test"] {
            assert!(!ProjectName::parse(legal, "project_id").unwrap().is_own());
        }
    }
}
