//! `sql.query`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Params;

/// The most rows that one SQL query gives.
pub const SQL_LIMIT_MAX: u32 = 10_000;

/// Parameters of `sql.query`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SqlParams {
    /// One SELECT over `knowledge`.
    #[schemars(length(min = 1))]
    pub sql: String,
    /// At most this many rows, 1 to 10,000.
    #[schemars(range(min = 1, max = SQL_LIMIT_MAX))]
    #[serde(default = "default_sql_limit")]
    pub limit: u32,
}

fn default_sql_limit() -> u32 {
    1_000
}

impl Params for SqlParams {}

/// Result of `sql.query`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SqlResult {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows, each with one value per column.
    pub rows: Vec<Vec<serde_json::Value>>,
    /// Whether `limit` cut rows off.
    pub truncated: bool,
}
