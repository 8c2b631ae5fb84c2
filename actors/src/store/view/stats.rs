//! Counts of a view.

use std::sync::Arc;

use crate::domain::ItemStats;
use crate::error::KnowledgeResult;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::TableShape;
use crate::store::table::schema::column;
use crate::store::view::{ProjectView, filter, resident};
use std::collections::BTreeMap;

impl ProjectView {
    /// Counts the live items. Computed once for each view.
    pub async fn stats(&self) -> KnowledgeResult<Arc<ItemStats>> {
        self.stats
            .get_or_try_init(|| async { self.compute_stats().await.map(Arc::new) })
            .await
            .cloned()
    }

    async fn compute_stats(&self) -> KnowledgeResult<ItemStats> {
        if let TableShape::Foreign { .. } = self.shape {
            return Ok(ItemStats {
                total: self.row_count().await? as u64,
                ..ItemStats::default()
            });
        }
        if let Some(index) = self.index().await? {
            return Ok(resident::stats(&index));
        }
        let columns = [column::PASSAGE, column::TYPE, column::AGENT, column::TIMESTAMP];
        let mut stats = ItemStats::default();
        let mut by_kind: BTreeMap<String, u64> = BTreeMap::new();
        let mut by_agent: BTreeMap<String, u64> = BTreeMap::new();
        for batch in Self::collect(&self.scan(&columns, filter::live(None))?).await? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                stats.passages += 1;
                if rows.small_int(column::PASSAGE, row)? != 0 {
                    continue;
                }
                stats.total += 1;
                *by_kind
                    .entry(rows.required_text(column::TYPE, row)?.to_owned())
                    .or_default() += 1;
                *by_agent
                    .entry(rows.text(column::AGENT, row)?.unwrap_or_default().to_owned())
                    .or_default() += 1;
                let time = rows.time(column::TIMESTAMP, row)?;
                stats.oldest = Some(stats.oldest.map_or(time, |oldest| oldest.min(time)));
                stats.newest = Some(stats.newest.map_or(time, |newest| newest.max(time)));
            }
        }
        stats.by_kind = by_kind;
        stats.by_agent = by_agent;
        Ok(stats)
    }
}
