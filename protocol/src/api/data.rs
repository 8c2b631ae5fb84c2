//! The methods that concern all stored data: `admin.backup`, `restore`, `import`, `export`, `verify` and `optimize`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::common::*;
use super::*;
use crate::error::WireError;

/// Refuses a `path` that is relative or holds a control character. Nobody puts one into a file name on purpose, and a
/// newline that a shell left at the end would name another file.
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
    /// Bytes that were freed.
    pub freed_bytes: u64,
    /// The steps that were done, by kind.
    pub steps: BTreeMap<String, u64>,
    /// Projects that could not be worked on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProjectError>,
}

/// Parameters of `admin.backup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupParams {
    /// The absolute path to write to.
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
    /// The path of the backup.
    pub path: String,
    /// The projects in it.
    pub projects: Vec<String>,
    /// How many items it holds.
    pub items: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Projects that are not in it, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Data of these projects that was lost before, so that only an older backup holds it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

/// Parameters of `admin.restore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreParams {
    /// The absolute path to read from.
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
    /// How many items these projects hold.
    pub items: u64,
    /// The paths at which the replaced projects are kept.
    pub kept_aside: Vec<String>,
    /// What to do before some of the projects can be used.
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
    /// The project.
    pub project_id: String,
    /// What is wrong there.
    pub problem: String,
    /// How to repair it.
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
    /// The absolute path to read from.
    pub path: String,
    /// Only counts; imports nothing.
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
    /// How many items were imported, or would be in a dry run.
    pub imported: u64,
    /// How many items were stored already.
    pub duplicates: u64,
    /// How many items were left out, by reason: `unreadable`, or the `kind` of the error that `knowledge.store` would
    /// have answered (`invalid_params`, `already_exists`, ...).
    pub skipped: BTreeMap<String, u64>,
    /// The first of the items that were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ImportProblem>,
    /// Whether this was a dry run, which only counts.
    pub dry_run: bool,
}

/// An item that was not imported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ImportProblem {
    /// The line of the file on which the item begins, from 1.
    pub line: u64,
    /// The id of the item, if it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Why it was left out, and what to do.
    pub message: String,
}

/// Parameters of `admin.export`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExportParams {
    /// The absolute path to write to.
    pub path: String,
    /// The format: `jsonl` or `markdown`. If absent, a path that ends in `.md` means `markdown`, any other
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
    /// The path of the file or directory.
    pub path: String,
    /// The format of the file.
    pub format: String,
    /// How many items it holds.
    pub items: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Why the result may be incomplete, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}
