//! What concerns all that is stored: `admin.backup`, `restore`, `import`, `export`, `verify` and `optimize`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::common::*;
use super::*;
use crate::error::WireError;

/// What every `path` must be. Nobody names a file on purpose so that no line can show it, and a newline at the end of
/// what a shell has put together would name another one.
fn check_path(path: &str) -> Result<(), WireError> {
    if path.contains(char::is_control) {
        return Err(WireError::invalid_params(
            "path",
            "`path` holds a control character (such as a newline, a tab or NUL); leave it out",
        ));
    }
    if !path.starts_with('/') {
        return Err(out_of_range(
            "path",
            "an absolute path, for the daemon does not know your working directory",
        ));
    }
    Ok(())
}

/// Parameters of `admin.optimize`: none; without `project_id` it means all projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OptimizeParams {}

impl Params for OptimizeParams {}

/// Result of `admin.optimize`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OptimizeResult {
    /// The projects that were worked on.
    pub projects: Vec<String>,
    /// Space that was freed.
    pub freed_bytes: u64,
    /// What was done, by kind.
    pub steps: BTreeMap<String, u64>,
    /// Projects that could not be worked on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProjectError>,
}

/// Parameters of `admin.backup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupParams {
    /// Where to, absolute.
    pub path: String,
}

impl Params for BackupParams {
    fn check(&self) -> Result<(), WireError> {
        check_path(&self.path)
    }
}

/// Result of `admin.backup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BackupResult {
    /// Where it is.
    pub path: String,
    /// The projects in it.
    pub projects: Vec<String>,
    /// Items in it.
    pub items: u64,
    /// Its size.
    pub bytes: u64,
    /// Projects that are not in it, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What of those that are in it was lost before, so that only an older backup holds it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

/// Parameters of `admin.restore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreParams {
    /// Where from, absolute.
    pub path: String,
}

impl Params for RestoreParams {
    fn check(&self) -> Result<(), WireError> {
        check_path(&self.path)
    }
}

/// Result of `admin.restore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RestoreResult {
    /// The projects that were replaced or added.
    pub projects: Vec<String>,
    /// Items in them.
    pub items: u64,
    /// Where the old ones are kept.
    pub kept_aside: Vec<String>,
    /// What has to be done before some of them can be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Parameters of `admin.verify`: none; without `project_id` it means all projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyParams {}

impl Params for VerifyParams {}

/// Something that a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Finding {
    /// Where.
    pub project_id: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Result of `admin.verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VerifyResult {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// The projects that were read.
    pub projects: Vec<String>,
    /// Rows that were read.
    pub rows: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Parameters of `admin.import`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImportParams {
    /// Where from, absolute.
    pub path: String,
    /// Counts, but imports nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

impl Params for ImportParams {
    fn check(&self) -> Result<(), WireError> {
        check_path(&self.path)
    }
}

/// Result of `admin.import`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ImportResult {
    /// Items that were imported, or would be.
    pub imported: u64,
    /// Items that were there already.
    pub duplicates: u64,
    /// Items that were left out, by reason: `unreadable`, or the `kind` of the error that `knowledge.store` would
    /// have answered (`invalid_params`, `already_exists`, ...).
    pub skipped: BTreeMap<String, u64>,
    /// The first of those that were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ImportProblem>,
    /// Whether it only counted.
    pub dry_run: bool,
}

/// An item that was not imported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ImportProblem {
    /// Where it begins in the file, in lines from 1.
    pub line: u64,
    /// Its id, if it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Why, and what to do.
    pub message: String,
}

/// Parameters of `admin.export`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExportParams {
    /// Where to, absolute.
    pub path: String,
    /// In which format: `jsonl` or `markdown`. If absent, a path that ends in `.md` means `markdown`, any other
    /// `jsonl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

impl Params for ExportParams {
    fn check(&self) -> Result<(), WireError> {
        check_path(&self.path)?;
        match self.format.as_deref() {
            None | Some("jsonl" | "markdown") => Ok(()),
            Some(_) => Err(out_of_range("format", "`jsonl` or `markdown`")),
        }
    }
}

/// Result of `admin.export`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExportResult {
    /// Where it is.
    pub path: String,
    /// In which format it is.
    pub format: String,
    /// Items in it.
    pub items: u64,
    /// Its size.
    pub bytes: u64,
    /// Why it may be less than was stored, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}
