//! Taking what cannot be read out of a table, so that it can be written again.
//!
//! Reads leave damaged fragments out and change nothing (see [`super`]). An update, a merge of fragments
//! or an index has to read the whole table and would fail for ever, so the writer repairs the table before it
//! commits: the rows of a damaged fragment that can still be read move to a new fragment, the damaged one leaves
//! the table, and what is left of its files is kept in `set-aside`. One commit, and nothing of it is silent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction};
use lance::dataset::{CommitBuilder, InsertBuilder, WriteDestination, WriteMode, WriteParams};
use lance_io::local::to_local_path;
use lance_table::format::Fragment;

use crate::domain::{ProjectName, metadata_terms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::damage::read_fragment;
use crate::store::damage::set_aside::{Remains, SetAside};
use crate::store::error::{read_error, write_error};
use crate::store::guarded::{finding, guarded};
use crate::store::table::rows::{RowReader, row_key};
use crate::store::table::schema::column;
use crate::store::table::table_damage::{self, DamagedFragment};
use crate::store::write::{WriteTable, current_dataset};

/// Rows that are read at once when a damaged fragment is searched for what is left of it.
const SALVAGE_ROWS: usize = 1_024;
/// Ranges of a damaged fragment that may fail to be read before the rest of it is given up: each failure halves a
/// range, so this finds some twenty damaged places.
const SALVAGE_FAILURES: usize = 256;

impl WriteTable {
    /// Takes the damaged fragments out of the table, and mends damaged indices once there are none.
    /// Those that can be read again stay. With `salvage_only`, fragments whose files are gone stay as well:
    /// somebody may put them back.
    pub(crate) async fn repair(&mut self, directory: &Path, salvage_only: bool) -> KnowledgeResult<()> {
        let damaged = self.damage().fragments.values();
        if damaged.clone().any(|fragment| fragment.salvageable || !salvage_only) {
            self.set_fragments_aside(directory, salvage_only).await?;
        }
        if !self.damage().fragments.is_empty() {
            return Ok(());
        }
        if self.damage().vector_index.is_some() {
            self.drop_damaged_vector_index().await?;
        }
        if self.damage().keyword_index.is_some() {
            self.mend_text_index().await?;
        }
        Ok(())
    }

    /// Searches read all vectors until upkeep has made another.
    async fn drop_damaged_vector_index(&mut self) -> KnowledgeResult<()> {
        self.drop_vector_index().await?;
        let mut damage = (**self.damage()).clone();
        if let Some(reason) = damage.vector_index.take() {
            tracing::warn!(project = %self.project(), %reason, "the vector index was damaged and is made again");
            self.note(format!("the vector index was damaged and is made again: {reason}"));
        }
        self.set_damage(damage);
        Ok(())
    }

    async fn set_fragments_aside(&mut self, directory: &Path, salvage_only: bool) -> KnowledgeResult<()> {
        let project = self.project().clone();
        let left = |fragment: &DamagedFragment| salvage_only && !fragment.salvageable;
        let dataset = current_dataset(self.lancedb()).await?;
        let mut damaged: BTreeMap<u64, (Fragment, DamagedFragment)> = BTreeMap::new();
        for fragment in dataset.fragments().iter() {
            let Some(known) = self.damage().fragments.get(&fragment.id) else {
                continue;
            };
            if left(known) {
                continue;
            }
            // Somebody may have put the file back.
            if read_fragment(&dataset, fragment, |_| {}).await?.is_err() {
                damaged.insert(fragment.id, (fragment.clone(), known.clone()));
            }
        }
        if !damaged.is_empty() {
            let mut salvaged = Vec::new();
            for (fragment, _) in damaged.values() {
                salvaged.extend(salvage(&dataset, &project, fragment).await?);
            }
            let salvaged = complete_revisions(&salvaged)?;
            let kept = keep_remains(&project, directory, &dataset, &damaged, &salvaged).await?;
            let removed = damaged.keys().copied().collect();
            let committed = match commit_without(&dataset, removed, salvaged).await {
                Ok(committed) => committed,
                Err(error) => {
                    // Nothing was taken out, so the report is of nothing.
                    tokio::task::spawn_blocking(move || std::fs::remove_dir_all(kept))
                        .await
                        .ok();
                    return Err(error);
                }
            };
            let wrapper = self
                .lancedb()
                .dataset()
                .ok_or_else(|| KnowledgeError::internal("the table is not stored on this machine"))?;
            wrapper.update(committed);
        }
        let mut damage = (**self.damage()).clone();
        damage.fragments.retain(|_, fragment| left(fragment));
        self.set_damage(damage);
        Ok(())
    }
}

/// Commits a version without `removed`, and with `salvaged` as a new fragment.
async fn commit_without(
    dataset: &Arc<Dataset>,
    removed: Vec<u64>,
    salvaged: Vec<RecordBatch>,
) -> KnowledgeResult<Dataset> {
    let operation = if salvaged.is_empty() {
        Operation::Delete {
            updated_fragments: Vec::new(),
            deleted_fragment_ids: removed,
            predicate: "false".to_owned(),
        }
    } else {
        let params = WriteParams {
            mode: WriteMode::Append,
            ..WriteParams::default()
        };
        let written = InsertBuilder::new(WriteDestination::Dataset(Arc::clone(dataset)))
            .with_params(&params)
            .execute_uncommitted(salvaged)
            .await
            .map_err(write_error)?;
        let Operation::Append { fragments } = written.operation else {
            return Err(KnowledgeError::internal("appending rows planned another operation"));
        };
        Operation::Update {
            removed_fragment_ids: removed,
            updated_fragments: Vec::new(),
            new_fragments: fragments,
            fields_modified: Vec::new(),
            compacted_sstables: Vec::new(),
            fields_for_preserving_frag_bitmap: Vec::new(),
            update_mode: None,
            inserted_rows_filter: None,
            updated_fragment_offsets: None,
        }
    };
    let transaction = Transaction::new(dataset.manifest().version, operation, None);
    CommitBuilder::new(Arc::clone(dataset))
        .execute(transaction)
        .await
        .map_err(write_error)
}

/// Writes the report, and keeps what is left of the files and the version that names them. Answers where.
async fn keep_remains(
    project: &ProjectName,
    directory: &Path,
    dataset: &Dataset,
    damaged: &BTreeMap<u64, (Fragment, DamagedFragment)>,
    salvaged: &[RecordBatch],
) -> KnowledgeResult<PathBuf> {
    let rows: usize = damaged.values().map(|(_, fragment)| fragment.rows).sum();
    let left: usize = salvaged.iter().map(RecordBatch::num_rows).sum();
    let reasons: Vec<&str> = damaged.values().map(|(_, fragment)| fragment.reason.as_str()).collect();
    let lost = rows.saturating_sub(left);
    let what = format!(
        "{}: {}; the rest was kept, and the table goes on without the damaged files",
        lost_of(lost, rows),
        reasons.join("; ")
    );
    tracing::error!(%project, fragments = damaged.len(), rows, salvaged = left, "{what}");
    let details: Vec<serde_json::Value> = damaged
        .values()
        .map(|(fragment, damaged)| serde_json::json!({"fragment": fragment, "damage": damaged}))
        .collect();
    let manifest = PathBuf::from(to_local_path(&dataset.manifest_location().path));
    let table = manifest.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default();
    let mut remains = vec![manifest];
    remains.extend(
        damaged
            .values()
            .flat_map(|(_, fragment)| fragment.files.iter().map(|file| table.join(file))),
    );
    let (project, directory) = (project.clone(), directory.to_path_buf());
    tokio::task::spawn_blocking(move || {
        let aside = SetAside::create(&directory)?;
        aside.report(
            &project,
            Remains {
                what,
                lost: lost > 0,
                details: serde_json::Value::Array(details),
            },
        )?;
        for file in &remains {
            aside.keep(file)?;
        }
        aside.sync()?;
        Ok(aside.path)
    })
    .await
    .map_err(KnowledgeError::internal)?
}

fn lost_of(lost: usize, rows: usize) -> String {
    let verb = if lost == 1 { "is" } else { "are" };
    format!("{lost} of {} {verb} lost", table_damage::rows(rows))
}

/// Columns that follow from the others: damage to them alone costs no row.
const DERIVED: [&str; 3] = [column::ROW_KEY, column::PROJECT_ID, column::METADATA_TERMS];

/// The rows of a damaged fragment that can be read. A range that fails is halved until the damage is found, or until
/// there is too much of it.
async fn salvage(
    dataset: &Arc<Dataset>,
    project: &ProjectName,
    fragment: &Fragment,
) -> KnowledgeResult<Vec<RecordBatch>> {
    let schema: SchemaRef = Arc::new(dataset.schema().into());
    let every: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let stored: Vec<&str> = every.iter().copied().filter(|name| !DERIVED.contains(name)).collect();
    let rows = fragment.num_rows().unwrap_or(0);
    let mut ranges: Vec<(usize, usize)> = (0..rows)
        .step_by(SALVAGE_ROWS)
        .map(|start| (start, SALVAGE_ROWS.min(rows - start)))
        .rev()
        .collect();
    let mut failures = 0;
    let mut found = Vec::new();
    while let Some((start, length)) = ranges.pop() {
        let range = (start, length);
        let mut read = read_range(dataset, fragment, &every, range).await?;
        if read.is_none() {
            read = read_range(dataset, fragment, &stored, range)
                .await?
                .and_then(|batches| {
                    batches
                        .iter()
                        .map(|batch| derive(batch, &schema, project).ok())
                        .collect()
                });
        }
        if let Some(batches) = read {
            found.extend(batches);
            continue;
        }
        failures += 1;
        if failures > SALVAGE_FAILURES {
            break;
        }
        if length > 1 {
            let half = length / 2;
            ranges.push((start + half, length - half));
            ranges.push((start, half));
        }
    }
    Ok(found)
}

/// Columns of a range of rows of a fragment, from where and how many; none if they cannot be read.
async fn read_range(
    dataset: &Arc<Dataset>,
    fragment: &Fragment,
    columns: &[&str],
    (start, length): (usize, usize),
) -> KnowledgeResult<Option<Vec<RecordBatch>>> {
    let mut scanner = dataset.scan();
    scanner
        .with_fragments(vec![fragment.clone()])
        .project(columns)
        .map_err(read_error)?
        .limit(Some(length as i64), Some(start as i64))
        .map_err(read_error)?;
    let read = guarded(async move { scanner.try_into_stream().await?.try_collect::<Vec<RecordBatch>>().await });
    Ok(finding(read.await)?.ok())
}

/// Rows in the table's schema, with the [`DERIVED`] columns made from the others.
fn derive(batch: &RecordBatch, schema: &SchemaRef, project: &ProjectName) -> KnowledgeResult<RecordBatch> {
    let rows = RowReader(batch);
    let (mut keys, mut projects) = (StringBuilder::new(), StringBuilder::new());
    let mut terms = ListBuilder::new(StringBuilder::new());
    for row in 0..batch.num_rows() {
        let revision = rows.int(column::REVISION, row)?.unwrap_or(1);
        let passage = usize::try_from(rows.small_int(column::PASSAGE, row)?).map_err(KnowledgeError::internal)?;
        keys.append_value(row_key(rows.required_text(column::ID, row)?, revision, passage));
        projects.append_value(project.as_str());
        let metadata = serde_json::from_str(rows.required_text(column::METADATA, row)?);
        for term in metadata_terms(&metadata.map_err(KnowledgeError::internal)?) {
            terms.values().append_value(term);
        }
        terms.append(true);
    }
    let derived: [(&str, ArrayRef); 3] = [
        (column::ROW_KEY, Arc::new(keys.finish())),
        (column::PROJECT_ID, Arc::new(projects.finish())),
        (column::METADATA_TERMS, Arc::new(terms.finish())),
    ];
    let columns: Option<Vec<ArrayRef>> = schema
        .fields()
        .iter()
        .map(|field| {
            let made = derived.iter().find(|(name, _)| name == field.name());
            made.map(|(_, array)| Arc::clone(array))
                .or_else(|| batch.column_by_name(field.name()).cloned())
        })
        .collect();
    let columns = columns.ok_or_else(|| KnowledgeError::internal("a column is missing"))?;
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(KnowledgeError::internal)
}

/// Of `batches`, the rows of the revisions that are all there: an item without all its passages would be shown
/// with a text that is not its own.
fn complete_revisions(batches: &[RecordBatch]) -> KnowledgeResult<Vec<RecordBatch>> {
    let mut found: BTreeMap<(String, i64), i32> = BTreeMap::new();
    let key = |rows: &RowReader<'_>, row: usize| -> KnowledgeResult<(String, i64)> {
        let id = rows.required_text(column::ID, row)?.to_owned();
        Ok((id, rows.int(column::REVISION, row)?.unwrap_or(1)))
    };
    for batch in batches {
        let rows = RowReader(batch);
        for row in 0..batch.num_rows() {
            *found.entry(key(&rows, row)?).or_default() += 1;
        }
    }
    let mut complete = Vec::new();
    for batch in batches {
        let rows = RowReader(batch);
        let mut keep = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let there = found.get(&key(&rows, row)?).copied().unwrap_or(0);
            keep.push(there >= rows.small_int(column::PASSAGES, row)?);
        }
        let mask = arrow_array::BooleanArray::from(keep);
        let kept = arrow_select::filter::filter_record_batch(batch, &mask).map_err(KnowledgeError::internal)?;
        if kept.num_rows() > 0 {
            complete.push(kept);
        }
    }
    Ok(complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_in_plain_english() {
        assert_eq!(lost_of(1, 1), "1 of 1 row is lost");
        assert_eq!(lost_of(1, 3), "1 of 3 rows is lost");
        assert_eq!(lost_of(2, 3), "2 of 3 rows are lost");
    }
}
