//! Whole items for an answer: first where they stand, which is small, then the items themselves, some at a time, for
//! as long as the answer may still be sent. What would be refused for its size is not gathered first.

use futures::TryStreamExt;
use lancedb::datafusion::logical_expr::{Expr, lit};
use lancedb::expr::col;
use serde_json::{Map, Value};

use crate::domain::{Filter, Hit, StoredItem};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::column;
use crate::store::view::filter;
use crate::store::view::{ProjectView, resident, row_id};

/// Items that are read at once: with the largest texts some tens of megabytes.
pub(crate) const ITEMS_AT_ONCE: usize = 32;

/// What an answer may still hold. Counts less than its items take on the wire, never more, so that nothing is refused
/// that could be sent.
#[derive(Debug)]
pub(crate) struct AnswerBudget {
    limit_bytes: usize,
    left: usize,
}

impl AnswerBudget {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            left: limit_bytes,
        }
    }

    /// Counts a part of the answer.
    ///
    /// # Errors
    /// [`KnowledgeError::AnswerTooLarge`] where it does not fit.
    pub(crate) fn take(&mut self, bytes: usize) -> KnowledgeResult<()> {
        self.left = self.left.checked_sub(bytes).ok_or(KnowledgeError::AnswerTooLarge {
            limit_bytes: self.limit_bytes,
        })?;
        Ok(())
    }

    pub(crate) fn take_item(&mut self, StoredItem { item, .. }: &StoredItem) -> KnowledgeResult<()> {
        self.take(item.id.len() + item.text.len() + object_bytes(&item.metadata))
    }

    pub(crate) fn take_hit(&mut self, hit: &Hit) -> KnowledgeResult<()> {
        self.take_item(&hit.stored)?;
        self.take(hit.passage.text.len())
    }
}

/// The least that an object can take as JSON.
fn object_bytes(object: &Map<String, Value>) -> usize {
    let members = object
        .iter()
        .map(|(name, value)| name.len() + "\"\":".len() + value_bytes(value));
    "{}".len() + members.sum::<usize>()
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + "\"\"".len(),
        Value::Array(values) => "[]".len() + values.iter().map(value_bytes).sum::<usize>(),
        Value::Object(object) => object_bytes(object),
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
    }
}

/// Loads what stands at `rows`, in their order, and stops where it is more than an answer of `limit_bytes` holds.
async fn gather<F: Future<Output = KnowledgeResult<Vec<StoredItem>>>>(
    rows: &[u64],
    limit_bytes: usize,
    mut load: impl FnMut(Vec<u64>) -> F,
) -> KnowledgeResult<Vec<StoredItem>> {
    let mut budget = AnswerBudget::new(limit_bytes);
    let mut items = Vec::with_capacity(rows.len());
    for some in rows.chunks(ITEMS_AT_ONCE) {
        for item in load(some.to_vec()).await? {
            budget.take_item(&item)?;
            items.push(item);
        }
    }
    Ok(items)
}

impl ProjectView {
    /// The items at these places, in their order, if an answer of `limit_bytes` may hold them.
    pub(crate) async fn items_within(&self, rows: &[u64], limit_bytes: usize) -> KnowledgeResult<Vec<StoredItem>> {
        gather(rows, limit_bytes, |some| async move { self.shown_items(&some).await }).await
    }

    /// The live items with these ids, in no particular order.
    ///
    /// # Errors
    /// [`KnowledgeError::AnswerTooLarge`] where they are more than `limit_bytes`.
    pub async fn get(&self, ids: &[String], limit_bytes: usize) -> KnowledgeResult<Vec<StoredItem>> {
        self.check_shape()?;
        if let Some(index) = self.index().await? {
            return self.items_within(&resident::places_of(&index, ids), limit_bytes).await;
        }
        let Some(wanted) = filter::any_of(column::ID, ids) else {
            return Ok(Vec::new());
        };
        let predicate = wanted.and(filter::live(None)).and(filter::first_passage());
        let mut scanner = self.scan(&[column::ID], predicate)?;
        scanner.with_row_id();
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let mut places = Vec::new();
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            for row in 0..batch.num_rows() {
                places.push(row_id(&batch, row)?);
            }
        }
        places.sort_unstable();
        self.items_within(&places, limit_bytes).await
    }

    /// All revisions of an item that are kept, newest first; none if it is unknown or purged.
    ///
    /// # Errors
    /// [`KnowledgeError::AnswerTooLarge`] where they are more than `limit_bytes`.
    pub async fn history(&self, id: &str, limit_bytes: usize) -> KnowledgeResult<Vec<StoredItem>> {
        self.check_shape()?;
        // What a purge leaves has no passages.
        let predicate = col(column::ID)
            .eq(lit(id))
            .and(filter::first_passage())
            .and(col(column::PASSAGES).gt(lit(0_i32)));
        let mut scanner = self.scan(&[column::REVISION], predicate)?;
        scanner.with_row_id();
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let mut places = Vec::new();
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            for row in 0..batch.num_rows() {
                let revision = RowReader(&batch).int(column::REVISION, row)?.unwrap_or(1);
                places.push((revision, row_id(&batch, row)?));
            }
        }
        places.sort_by_key(|(revision, _)| std::cmp::Reverse(*revision));
        let places: Vec<u64> = places.into_iter().map(|(_, place)| place).collect();
        self.items_within(&places, limit_bytes).await
    }

    /// The ids of the live items that are in `ids`, sorted.
    ///
    /// # Errors
    /// [`KnowledgeError::AnswerTooLarge`] where they are more than `limit_bytes`.
    pub async fn live_ids(&self, ids: &[String], limit_bytes: usize) -> KnowledgeResult<Vec<String>> {
        self.check_shape()?;
        if let Some(index) = self.index().await? {
            return resident::live_ids(&index, ids, limit_bytes);
        }
        match filter::any_of(column::ID, ids) {
            None => Ok(Vec::new()),
            Some(wanted) => self.ids_of(wanted.and(filter::live(None)), limit_bytes).await,
        }
    }

    /// The ids of the live items that pass `filter`, sorted.
    ///
    /// # Errors
    /// [`KnowledgeError::AnswerTooLarge`] where they are more than `limit_bytes`.
    pub async fn matching_ids(&self, filter: &Filter, limit_bytes: usize) -> KnowledgeResult<Vec<String>> {
        self.check_shape()?;
        if let Some(index) = self.index().await? {
            return resident::matching_ids(&index, filter, limit_bytes);
        }
        self.ids_of(filter::matching(filter, None), limit_bytes).await
    }

    async fn ids_of(&self, predicate: Expr, limit_bytes: usize) -> KnowledgeResult<Vec<String>> {
        self.check_shape()?;
        let scanner = self.scan(&[column::ID], predicate.and(filter::first_passage()))?;
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let mut budget = AnswerBudget::new(limit_bytes);
        let mut ids = Vec::new();
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                let id = rows.required_text(column::ID, row)?;
                budget.take(id.len() + "\"\"".len())?;
                ids.push(id.to_owned());
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use serde_json::json;

    use super::*;
    use crate::domain::Item;

    fn item(id: u64, text_bytes: usize, metadata: &Value) -> StoredItem {
        StoredItem {
            item: Item {
                id: format!("general-{id}"),
                text: "x".repeat(text_bytes),
                passages: 1,
                metadata: metadata.as_object().unwrap().clone(),
                ..Item::default()
            },
            revision: 1,
            ..StoredItem::default()
        }
    }

    #[tokio::test]
    async fn what_an_answer_has_no_room_for_is_not_read() {
        const KIB: usize = 1024;
        let rows: Vec<u64> = (0..1_000).collect();
        let mut read = 0;
        let load = |some: Vec<u64>| {
            read += some.len();
            ready(Ok(some.iter().map(|row| item(*row, KIB, &json!({}))).collect()))
        };
        let refused = gather(&rows, 100 * KIB, load).await;
        assert!(
            matches!(refused, Err(KnowledgeError::AnswerTooLarge { limit_bytes }) if limit_bytes == 100 * KIB),
            "{refused:?}"
        );
        assert_eq!(read, 4 * ITEMS_AT_ONCE);

        let load = |some: Vec<u64>| ready(Ok(some.iter().map(|row| item(*row, KIB, &json!({}))).collect()));
        let all = gather(&rows, 2_000 * KIB, load).await.unwrap();
        let places: Vec<String> = rows.iter().map(|row| format!("general-{row}")).collect();
        assert!(all.iter().map(|stored| &stored.item.id).eq(&places), "in their order");
    }

    #[test]
    fn an_item_never_counts_more_than_it_takes_on_the_wire() {
        for metadata in [
            json!({}),
            json!({"a": 1, "b": null, "c": true, "d": "text", "e": []}),
            json!({"list": [1, "two", null, {"three": [{}, [], ""]}], "\"quoted\"": "\n\u{1}状"}),
        ] {
            let stored = item(7, 100, &metadata);
            let Item { id, text, metadata, .. } = &stored.item;
            let wire = json!({"id": id, "text": text, "metadata": metadata}).to_string();
            let mut budget = AnswerBudget::new(wire.len());
            budget.take_item(&stored).unwrap();
            assert!(wire.len() - budget.left > 100);
        }
    }
}
