//! `sql.query`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::*;
use super::*;
use crate::error::WireError;

/// The most rows that one SQL query gives.
pub const SQL_LIMIT_MAX: u32 = 10_000;

/// Parameters of `sql.query`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SqlParams {
    /// One SELECT over `knowledge`.
    pub sql: String,
    /// At most this many rows, 1 to 10,000.
    #[serde(default = "default_sql_limit")]
    pub limit: u32,
}

fn default_sql_limit() -> u32 {
    1_000
}

impl Params for SqlParams {
    fn check(&self) -> Result<(), WireError> {
        check_text("sql", &self.sql)?;
        check_limit(self.limit, SQL_LIMIT_MAX)
    }
}

/// Result of `sql.query`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SqlResult {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows, each with one value per column.
    pub rows: Vec<Vec<serde_json::Value>>,
    /// Whether `limit` cut rows off.
    pub truncated: bool,
}
