//! What has changed since a commit that is further back, read from the table.
//!
//! A replay reads the table's commit numbers once and then each commit by the places of its rows, in the order of the
//! commits and some at a time. So it costs what there is to tell, however long ago it begins. Texts are read by
//! themselves, a few at a time, and only for who wants them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use lance::dataset::ProjectionRequest;
use lancedb::datafusion::logical_expr::lit;
use lancedb::expr::col;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::table::rows::{RowReader, row_key};
use crate::store::table::schema::column;
use crate::store::view::changes::{CHANGE_COLUMNS, Change, ChangeRow, changes_of};
use crate::store::view::{ProjectView, filter, row_id};

/// Rows of a plan: 16 bytes each. Where more has changed, the plan is made again behind them.
const PLANNED: usize = 1 << 18;
/// Rows that are read at once, but for a commit that has more.
const ROWS_AT_ONCE: usize = 1_024;
/// How long a replay goes on with the version that it began with, which can't be removed meanwhile. Then it takes the
/// present one.
const LONGEST: Duration = Duration::from_secs(5);

/// The changes after one commit, of one version of a table. See the module.
#[derive(Debug)]
pub struct Replay {
    view: Arc<ProjectView>,
    begun: Instant,
    /// The history that the numbers are of.
    epoch: i64,
    /// The commits of the rows, with the rows' places, in order. A row that was opened and closed is here twice.
    planned: Vec<(i64, u64)>,
    after: i64,
    until: i64,
}

/// Some changes of a replay.
#[derive(Clone, Debug, Default)]
pub struct ReplayedChanges {
    /// In the order of the commits, without their texts.
    pub changes: Vec<Change>,
    /// Where the row of each lies.
    pub places: Vec<u64>,
    /// The commit up to which this is all.
    pub until: i64,
}

/// The rows that a plan keeps: those of the first commits, where there are too many.
struct Plan {
    planned: Vec<(i64, u64)>,
    most: usize,
    /// All commits before this one are there with all of their rows.
    before: i64,
}

impl Plan {
    fn new(most: usize) -> Self {
        Self {
            planned: Vec::new(),
            most,
            before: i64::MAX,
        }
    }

    fn add(&mut self, commit: i64, place: u64) {
        if commit < self.before {
            self.planned.push((commit, place));
            if self.planned.len() > self.most * 2 {
                self.cut();
            }
        }
    }

    /// Keeps the first commits, the very first in any case.
    fn cut(&mut self) {
        if self.planned.len() <= self.most {
            return;
        }
        let (_, (last, _), _) = self.planned.select_nth_unstable(self.most);
        let last = *last;
        let first = self.planned.iter().map(|(commit, _)| *commit).min().unwrap_or(last);
        self.before = last.max(first + 1);
        self.planned.retain(|(commit, _)| *commit < self.before);
        // One commit that is larger than the plan is kept whole.
        self.most = self.most.max(self.planned.len());
    }

    fn finish(mut self, until: i64) -> (Vec<(i64, u64)>, i64) {
        self.cut();
        self.planned.sort_unstable();
        (self.planned, until.min(self.before.saturating_sub(1)))
    }
}

impl Replay {
    /// Finds out what a version has changed after commit `after`. `epoch` is that of its history
    /// ([`crate::store::Lineage::epoch`]).
    pub(crate) async fn plan(view: Arc<ProjectView>, after: i64, epoch: i64) -> KnowledgeResult<Self> {
        Self::plan_of(view, after, epoch, PLANNED).await
    }

    pub(crate) async fn plan_of(view: Arc<ProjectView>, after: i64, epoch: i64, most: usize) -> KnowledgeResult<Self> {
        view.check_shape()?;
        let newest = view.sequence();
        let is_within = |commit: i64| commit > after && commit <= newest;
        let within = |name: &str| col(name).gt(lit(after)).and(col(name).lt_eq(lit(newest)));
        let predicate = filter::first_passage().and(within(column::VALID_FROM).or(within(column::VALID_TO)));
        let mut scanner = view.scan(&[column::VALID_FROM, column::VALID_TO], predicate)?;
        scanner.with_row_id();
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let mut plan = Plan::new(most);
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                let place = row_id(&batch, row)?;
                let (from, to) = (rows.int(column::VALID_FROM, row)?, rows.int(column::VALID_TO, row)?);
                for commit in from.into_iter().chain(to).filter(|commit| is_within(*commit)) {
                    plan.add(commit, place);
                }
            }
        }
        drop(stream);
        let (planned, until) = plan.finish(newest);
        Ok(Self {
            view,
            begun: Instant::now(),
            epoch,
            planned,
            after,
            until,
        })
    }

    /// Whether it can go on behind commit `after` of this history.
    pub(crate) fn goes_on_after(&self, after: i64, epoch: i64) -> bool {
        self.epoch == epoch && after >= self.after && after < self.until && !self.is_over()
    }

    /// Whether its version has been held for long enough.
    pub(crate) fn is_over(&self) -> bool {
        self.begun.elapsed() > LONGEST
    }

    /// The changes that follow commit `after`, as many as are read at once.
    pub(crate) async fn changes(&self, after: i64) -> KnowledgeResult<ReplayedChanges> {
        self.changes_in_parts_of(after, ROWS_AT_ONCE).await
    }

    /// As [`Replay::changes`], of as many commits as have so many rows, or of one.
    pub(crate) async fn changes_in_parts_of(&self, after: i64, most: usize) -> KnowledgeResult<ReplayedChanges> {
        let first = self.planned.partition_point(|(commit, _)| *commit <= after);
        let following = &self.planned[first..];
        let (until, following) = match following.get(most) {
            None => (self.until, following),
            Some((cut, _)) => {
                // Whole commits, and one at least.
                let until = (cut - 1).max(following[0].0);
                (
                    until,
                    &following[..following.partition_point(|(commit, _)| *commit <= until)],
                )
            }
        };
        let mut places: Vec<u64> = following.iter().map(|(_, place)| *place).collect();
        places.sort_unstable();
        places.dedup();
        let rows = self.rows(&places).await?;
        let mut found = changes_of(&rows, after, until);
        self.view.tell_undeletes(&mut found).await?;
        let (changes, places) = found.into_iter().map(|found| (found.change, found.place)).unzip();
        Ok(ReplayedChanges { changes, places, until })
    }

    async fn rows(&self, places: &[u64]) -> KnowledgeResult<Vec<ChangeRow>> {
        let mut read = Vec::with_capacity(places.len());
        for some in places.chunks(ROWS_AT_ONCE) {
            let batch = self.view.take_columns(some, &CHANGE_COLUMNS).await?;
            let rows = RowReader(&batch);
            for (row, place) in some.iter().enumerate() {
                read.push(ChangeRow::read(&rows, row, *place)?);
            }
        }
        Ok(read)
    }

    /// Reads the texts of changes whose rows lie at `places`, as [`Replay::changes`] gives them.
    pub(crate) async fn read_texts(&self, changes: &mut [Change], places: &[u64]) -> KnowledgeResult<()> {
        let wanted: Vec<(usize, u64)> = changes
            .iter()
            .zip(places)
            .enumerate()
            .filter_map(|(number, (change, place))| change.has_text().then_some((number, *place)))
            .collect();
        let places: Vec<u64> = wanted.iter().map(|(_, place)| *place).collect();
        if places.is_empty() {
            return Ok(());
        }
        let batch = self.view.take_columns(&places, &[column::TEXT]).await?;
        let rows = RowReader(&batch);
        for (row, (number, _)) in wanted.iter().enumerate() {
            changes[*number].text = Some(rows.text(column::TEXT, row)?.unwrap_or_default().to_owned());
        }
        Ok(())
    }
}

impl ProjectView {
    /// Reads the texts of changes, wherever their rows lie by now: mostly they are the live ones, and in memory. One
    /// whose row is gone stays without.
    pub(crate) async fn read_texts(&self, changes: &mut [Change]) -> KnowledgeResult<()> {
        let index = self.index_at_hand();
        let mut live = Vec::new();
        let mut others = HashMap::new();
        for (number, change) in changes.iter().enumerate().filter(|(_, change)| change.has_text()) {
            let entries = index.as_ref().map(|index| index.get(&change.id)).unwrap_or_default();
            let is_first = |entry: &&ccod_index::Entry<'_>| entry.passage == 0 && entry.revision == change.revision;
            match entries.iter().find(is_first) {
                Some(entry) => live.push((number, entry.address)),
                None => {
                    others.insert(row_key(&change.id, change.revision, 0), number);
                }
            }
        }
        let places: Vec<u64> = live.iter().map(|(_, place)| *place).collect();
        for (stored, (number, _)) in self.shown_items(&places).await?.into_iter().zip(&live) {
            changes[*number].text = Some(stored.item.text);
        }
        let keys: Vec<&str> = others.keys().map(String::as_str).collect();
        let Some(predicate) = filter::any_of(column::ROW_KEY, &keys) else {
            return Ok(());
        };
        let scanner = self.scan(&[column::ROW_KEY, column::TEXT], predicate)?;
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                if let Some(number) = others.get(rows.required_text(column::ROW_KEY, row)?) {
                    changes[*number].text = Some(rows.text(column::TEXT, row)?.unwrap_or_default().to_owned());
                }
            }
        }
        Ok(())
    }

    /// `columns` of the rows at these places, in their order.
    async fn take_columns(&self, places: &[u64], columns: &[&str]) -> KnowledgeResult<arrow_array::RecordBatch> {
        let projection = ProjectionRequest::from_columns(self.present(columns), self.dataset.schema());
        let batch = self.dataset.take_rows(places, projection).await.map_err(read_error)?;
        if batch.num_rows() != places.len() {
            return Err(KnowledgeError::internal(format!(
                "{} rows were asked for and {} came back",
                places.len(),
                batch.num_rows()
            )));
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(rows: &[(i64, u64)], most: usize) -> (Vec<(i64, u64)>, i64) {
        let mut plan = Plan::new(most);
        for (commit, place) in rows {
            plan.add(*commit, *place);
        }
        plan.finish(100)
    }

    #[test]
    fn a_plan_keeps_the_first_commits_and_each_whole() {
        let rows: Vec<(i64, u64)> = (0..90).map(|place| (90 - place as i64 / 3, place)).collect();
        let (all, until) = planned(&rows, 90);
        assert_eq!((all.len(), until), (90, 100));
        assert!(all.is_sorted());
        for most in [1, 2, 3, 4, 10, 89] {
            let (first, until) = planned(&rows, most);
            assert!(until >= 61 && first.len() >= 3, "{most}");
            let mut expected: Vec<(i64, u64)> = rows.iter().copied().filter(|(commit, _)| *commit <= until).collect();
            expected.sort_unstable();
            assert_eq!(first, expected, "{most}");
        }
        // The same whichever way the table has them.
        let reversed: Vec<(i64, u64)> = rows.iter().copied().rev().collect();
        for most in [3, 10] {
            let (first, until) = planned(&reversed, most);
            let kept = first.len();
            assert!(kept >= 3 && first.iter().all(|(commit, _)| *commit <= until), "{most}");
        }
        assert_eq!(planned(&[], 3), (Vec::new(), 100));
    }
}
