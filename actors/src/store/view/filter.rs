//! Typed filters: a request becomes an expression tree, never pasted SQL.

use chrono::{DateTime, Utc};
use lancedb::datafusion::functions_nested::expr_fn::array_has;
use lancedb::datafusion::logical_expr::{Expr, lit};
use lancedb::datafusion::scalar::ScalarValue;
use lancedb::expr::col;

use crate::domain::{Deletion, Filter, metadata_term};
use crate::store::table::schema::column;

/// A timestamp as the columns hold it.
pub fn time_literal(time: DateTime<Utc>) -> Expr {
    lit(ScalarValue::TimestampMillisecond(
        Some(time.timestamp_millis()),
        Some("UTC".into()),
    ))
}

/// A point in a project's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsOf {
    /// Just after this commit.
    Commit(i64),
    /// This time.
    Time(DateTime<Utc>),
}

/// The rows that were live as of some time, or that are live now.
pub fn live(at: Option<AsOf>) -> Expr {
    match at {
        None => col(column::VALID_TO).is_null(),
        Some(AsOf::Commit(version)) => col(column::VALID_FROM).lt_eq(lit(version)).and(
            col(column::VALID_TO)
                .is_null()
                .or(col(column::VALID_TO).gt(lit(version))),
        ),
        Some(AsOf::Time(time)) => opened_by(time).and(
            col(column::CLOSED_AT)
                .is_null()
                .or(col(column::CLOSED_AT).gt(time_literal(time))),
        ),
    }
}

/// The rows that counted at a time, as far as their beginning tells. Rows of schema 1.0 do not say since when they
/// count: a first revision since its creation, which is what its caller was told, any other since its change. Both
/// are too early for what was imported.
fn opened_by(time: DateTime<Utc>) -> Expr {
    let created = col(column::REVISION)
        .eq(lit(1_i64))
        .and(col(column::TIMESTAMP).lt_eq(time_literal(time)));
    let written = created.or(col(column::UPDATED_AT).lt_eq(time_literal(time)));
    let unknown = col(column::OPENED_AT).is_null().and(written);
    col(column::OPENED_AT).lt_eq(time_literal(time)).or(unknown)
}

/// The rows that a deletion closed: its commits at its time.
pub fn closed_by(deletion: &Deletion) -> Expr {
    let closed = || col(column::VALID_TO);
    let by_its_commits = if deletion.last == deletion.sequence {
        closed().eq(lit(deletion.sequence))
    } else {
        closed()
            .gt_eq(lit(deletion.sequence))
            .and(closed().lt_eq(lit(deletion.last)))
    };
    by_its_commits.and(col(column::CLOSED_AT).eq(time_literal(deletion.at)))
}

/// Only passage 0: one row for each item.
pub fn first_passage() -> Expr {
    col(column::PASSAGE).eq(lit(0_i32))
}

/// Any of `values` in `name`; nothing where there are none.
pub fn any_of<T: AsRef<str>>(name: &str, values: &[T]) -> Option<Expr> {
    match values {
        [] => None,
        [one] => Some(col(name).eq(lit(one.as_ref()))),
        many => Some(col(name).in_list(many.iter().map(|value| lit(value.as_ref())).collect(), false)),
    }
}

/// The rows that are live and pass `filter`.
pub fn matching(filter: &Filter, at: Option<AsOf>) -> Expr {
    let types: Vec<&str> = filter.types().iter().map(|kind| kind.as_str()).collect();
    let mut parts = vec![live(at)];
    parts.extend(any_of(column::TYPE, &types));
    parts.extend(any_of(column::AGENT, filter.agents()));
    parts.extend(any_of(column::SESSION_ID, filter.session_ids()));
    if let Some(since) = filter.since {
        parts.push(col(column::TIMESTAMP).gt_eq(time_literal(since)));
    }
    if let Some(until) = filter.until {
        parts.push(col(column::TIMESTAMP).lt(time_literal(until)));
    }
    for (key, value) in filter.metadata.iter() {
        let terms = col(column::METADATA_TERMS);
        let term = metadata_term(key, value);
        // Rows that were stored before keys were put in order have them as their caller had.
        let given = format!("{key}={value}");
        parts.push(match given == term {
            true => array_has(terms, lit(term)),
            false => array_has(terms.clone(), lit(term)).or(array_has(terms, lit(given))),
        });
    }
    parts.into_iter().reduce(Expr::and).unwrap_or_else(|| lit(true))
}
