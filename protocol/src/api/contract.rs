//! What a method is to those who serve, call or describe it: its types and its facts.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

use super::Filter;
use crate::error::WireError;
use crate::params::{Ranges, TIMEOUT_MS_MAX};

/// One method of the wire: its name, types and the facts that the service needs before it runs.
pub trait Method: Send + Sync + 'static {
    /// The name on the wire.
    const NAME: &'static str;
    /// Other names that mean the same method.
    const OTHER_NAMES: &'static [&'static str];
    /// What the caller sends, without the common `project_id` and `timeout_ms`.
    type Params: Params;
    /// What the caller gets.
    type Result: Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static;
    /// Every parameter in the order of a positional array; also the complete list of known names.
    const POSITIONAL: &'static [&'static str];
    /// Other names of parameters, as (alias, name).
    const ALIASES: &'static [(&'static str, &'static str)];
    /// Milliseconds until the deadline when the caller gives no `timeout_ms`.
    const DEFAULT_TIMEOUT_MS: u64;
    /// Whether the method may change stored data. Decides what a missed deadline says: a read was
    /// certainly not executed to the end, of a write it is unknown.
    const WRITES: bool;
    /// What `project_id` means.
    const SCOPE: ProjectScope;
    /// Whether it is served when all connections or all calls are in use: what an operator needs then.
    const OPERATOR: bool;
    /// Whether it takes the filters of [`Filter`].
    const FILTERED: bool;
    /// Whether `id` does not name an item that exists: a store takes the id of a new item, `rpc.cancel` the id of a
    /// request.
    const FREE_ID: bool;
    /// One sentence for `rpc.discover` and the command line.
    const SUMMARY: &'static str;

    /// The ranges of the parameters, as the schema of [`Self::Params`] has them.
    fn ranges() -> &'static Ranges;
}

/// What `project_id` means to a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectScope {
    /// The project; absent means [`DEFAULT_PROJECT`](super::DEFAULT_PROJECT).
    One,
    /// As [`ProjectScope::One`], or `"*"` for every project.
    OneOrEvery,
    /// The project; absent means all of them.
    AllUnlessNamed,
    /// Nothing: the method is about the daemon or the connection.
    Nothing,
}

impl ProjectScope {
    /// Whether `project_id` may be `"*"`.
    #[must_use]
    pub const fn takes_every(self) -> bool {
        matches!(self, Self::OneOrEvery)
    }

    /// One sentence for `rpc.discover`.
    #[must_use]
    pub const fn summary(self) -> &'static str {
        match self {
            Self::One => "By name only. Absent means `default`.",
            Self::OneOrEvery => "By name only. Absent means `default`; `*` means every project.",
            Self::AllUnlessNamed => "By name only. Absent means all projects.",
            Self::Nothing => "By name only. Has no effect here.",
        }
    }
}

/// Parameters that say what a call is about, whatever the method; `id`, which is not always one of them, and the
/// filters come on top.
const TARGETS: &[&str] = &["ids", "undo_token", "projects", "subscription", "older_than_days"];

/// What a parameter type offers besides its fields: a check of rules that its schema cannot express.
pub trait Params: Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static {
    /// Refuses values that break a rule, naming the parameter and the rule. The ranges that attributes on the fields
    /// give are [`Method::ranges`], and are checked before this.
    ///
    /// # Errors
    /// -32602 with the parameter's name.
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// The facts of one row of the table, without its types: what the service and `rpc.discover` look up by name.
#[derive(Clone, Copy)]
pub struct MethodInfo {
    /// See [`Method::NAME`].
    pub name: &'static str,
    /// See [`Method::OTHER_NAMES`].
    pub other_names: &'static [&'static str],
    /// See [`Method::POSITIONAL`].
    pub positional: &'static [&'static str],
    /// See [`Method::ALIASES`].
    pub aliases: &'static [(&'static str, &'static str)],
    /// See [`Method::DEFAULT_TIMEOUT_MS`].
    pub default_timeout_ms: u64,
    /// See [`Method::WRITES`].
    pub writes: bool,
    /// See [`Method::SCOPE`].
    pub scope: ProjectScope,
    /// See [`Method::OPERATOR`].
    pub operator: bool,
    /// See [`Method::FILTERED`].
    pub filtered: bool,
    /// See [`Method::FREE_ID`].
    pub free_id: bool,
    /// See [`Method::SUMMARY`].
    pub summary: &'static str,
    /// Says whether parameters (JSON) would be accepted, by the default limits.
    pub check_params: fn(&str) -> Result<(), WireError>,
    /// Writes the schema of the parameters.
    pub params_schema: fn(&mut SchemaGenerator) -> Schema,
    /// Writes the schema of the result.
    pub result_schema: fn(&mut SchemaGenerator) -> Schema,
    /// Reads a result as the typed client does.
    #[cfg(test)]
    pub(crate) check_result: fn(&str) -> Result<(), serde_json::Error>,
}

impl std::fmt::Debug for MethodInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MethodInfo")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl MethodInfo {
    /// The facts of `M`.
    #[must_use]
    pub const fn of<M: Method>() -> Self {
        Self {
            name: M::NAME,
            other_names: M::OTHER_NAMES,
            positional: M::POSITIONAL,
            aliases: M::ALIASES,
            default_timeout_ms: M::DEFAULT_TIMEOUT_MS,
            writes: M::WRITES,
            scope: M::SCOPE,
            operator: M::OPERATOR,
            filtered: M::FILTERED,
            free_id: M::FREE_ID,
            summary: M::SUMMARY,
            check_params: |json| crate::params::decode_str::<M>(Some(json)).map(drop),
            params_schema: |generator| generator.subschema_for::<M::Params>(),
            result_schema: |generator| generator.subschema_for::<M::Result>(),
            #[cfg(test)]
            check_result: |json| serde_json::from_str::<M::Result>(json).map(drop),
        }
    }

    /// How long a call with this many bytes of parameters may take when the caller says nothing. A write gets its time
    /// and [`WRITE_US_PER_BYTE`] for each byte, [`TIMEOUT_MS_MAX`] at most: a large text takes as long to embed as many
    /// short ones.
    #[must_use]
    pub fn default_timeout(&self, params_bytes: usize) -> Duration {
        let base = Duration::from_millis(self.default_timeout_ms);
        if self.default_timeout_ms != WRITE {
            return base;
        }
        let bytes = u64::try_from(params_bytes).unwrap_or(u64::MAX);
        let grown = base.saturating_add(Duration::from_micros(bytes.saturating_mul(WRITE_US_PER_BYTE)));
        grown.min(Duration::from_millis(TIMEOUT_MS_MAX))
    }

    /// Whether `parameter` says which items or projects a call is about: a filter or a target, where nothing never
    /// means all.
    #[must_use]
    pub fn selects(&self, parameter: &str) -> bool {
        if parameter == "project_id" {
            return true;
        }
        let target = TARGETS.contains(&parameter)
            || (parameter == "id" && !self.free_id)
            || (self.filtered && Filter::NAMES.contains(&parameter));
        target && self.positional.contains(&parameter)
    }
}

/// Reads answer in milliseconds; ten seconds mean that something is stuck.
pub(super) const READ: u64 = 10_000;
/// A single write waits for its embedding and one durable commit.
pub(super) const WRITE: u64 = 60_000;
/// Microseconds by which the default deadline of a single write grows with each byte of its parameters. The
/// longest text of what costs most (a megabyte of base64, six hundred thousand tokens) then has nearly ten
/// minutes, which a slow laptop that does something else besides keeps.
pub const WRITE_US_PER_BYTE: u64 = 500;
/// Work in proportion to the data: batches, maintenance, backups.
pub(super) const LONG: u64 = 600_000;
