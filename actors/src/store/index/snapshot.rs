//! The index of one version of a table.
//!
//! It is read from the table once. The index of any other version follows from what differs between the two: manifests
//! list the fragments of a version, a fragment's rows never change, and which of them are deleted is a file that the
//! manifest names. So the difference is complete whatever made the other version, and whoever made it need not say
//! what it did. Two things only save reading: the rows that the writer has just written are still at hand
//! ([`WrittenFragment`]), and a compaction leaves rows in their order, so they move and are not read again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use ccod_index::{Builder, Change, Index, Precision, Row, Tokens};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::ProjectionRequest;
use lance::dataset::scanner::Scanner;
use lance::dataset::transaction::Operation;
use lance_table::format::Fragment;
use lancedb::expr::col;

use super::rows::{COLUMNS, columns_with_texts, for_each_live, scanned_addresses};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::table::keyword_index::Analyser;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::{column, vector_dimensions};
use crate::store::table::table_damage::TableDamage;
use crate::store::table::written::WrittenFragment;

/// Tables of fewer rows have an index of exact cosines, with 16 bits and more for each component. Of more rows that
/// would be a gigabyte for each million: those have one byte for each component and their signs, by which a search
/// passes over most rows, and the cosines of the best are read from the table.
pub(super) const EXACT_BELOW_ROWS: u64 = 300_000;

/// Tables of fewer rows are read with the words of their texts. Those of more rows take longer to be analysed than to be
/// read: their words follow in the background, and until then LanceDB's keyword index is asked.
const WORDS_AT_ONCE_BELOW_ROWS: u64 = 500;

/// The index of one version of a table, as far as it can be read.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) index: Index,
    dataset: Arc<Dataset>,
    damage: Arc<TableDamage>,
}

/// What has become of the fragments of a table from one version to another.
#[derive(Default)]
struct Difference {
    /// Rows that have other addresses now, in pairs.
    moved: Vec<(u64, u64)>,
    /// Addresses that are gone; not all of them need have been live.
    removed: Vec<u64>,
    /// Fragments with new rows.
    added: Vec<Fragment>,
}

impl Snapshot {
    pub(super) fn is_of(&self, dataset: &Arc<Dataset>, damage: &Arc<TableDamage>) -> bool {
        Arc::ptr_eq(&self.dataset, dataset) && self.damage.fragments.keys().eq(damage.fragments.keys())
    }

    /// Lance's number of the version.
    pub(super) fn version(&self) -> u64 {
        self.dataset.version().version
    }

    /// Rows of the table that are not deleted, closed ones too.
    pub(super) fn rows(&self) -> u64 {
        rows_of(&self.dataset)
    }

    /// Reads the index from a table; with the words of a few rows, or without them.
    pub(super) async fn read(dataset: &Arc<Dataset>, damage: &Arc<TableDamage>) -> KnowledgeResult<Self> {
        Self::read_with(dataset, damage, rows_of(dataset) < WORDS_AT_ONCE_BELOW_ROWS).await
    }

    async fn read_with(dataset: &Arc<Dataset>, damage: &Arc<TableDamage>, with_words: bool) -> KnowledgeResult<Self> {
        let mut analyser = with_words.then(Analyser::new).transpose()?;
        let precision = match rows_of(dataset) {
            0..EXACT_BELOW_ROWS => Precision::Exact,
            _ => Precision::Coarse,
        };
        let mut builder = Builder::new(dimensions(dataset)?, precision);
        let fragments: Vec<Fragment> = readable(dataset, damage).into_values().cloned().collect();
        for_each_row_of(dataset, fragments, analyser.as_mut(), |row| builder.add(row)).await?;
        Ok(Self {
            index: builder.finish(),
            dataset: Arc::clone(dataset),
            damage: Arc::clone(damage),
        })
    }

    /// The words of rows that the index was made without, `limit` rows at most.
    ///
    /// # Errors
    /// Where their texts cannot be read.
    pub(super) async fn missing_words(&self, limit: usize) -> KnowledgeResult<Vec<(u64, Tokens)>> {
        let mut addresses = self.index.addresses_without_words(limit);
        addresses.sort_unstable();
        let projection = ProjectionRequest::from_columns([column::PASSAGE_TEXT], self.dataset.schema());
        let batch = self
            .dataset
            .take_rows(&addresses, projection)
            .await
            .map_err(read_error)?;
        if batch.num_rows() != addresses.len() {
            return Err(KnowledgeError::internal("rows of the index are not in its table"));
        }
        let (rows, mut analyser) = (RowReader(&batch), Analyser::new()?);
        let words = addresses.into_iter().enumerate();
        words
            .map(|(place, address)| {
                Ok((
                    address,
                    analyser.words(rows.required_text(column::PASSAGE_TEXT, place)?),
                ))
            })
            .collect()
    }

    /// The same version with the words of rows that were read from `source`, which may be a version before or after.
    ///
    /// # Errors
    /// Where there are more rows than words can be kept of.
    pub(super) fn with_words(&self, source: &Self, words: &[(u64, Tokens)]) -> KnowledgeResult<Self> {
        let (own, other) = (
            readable(&self.dataset, &self.damage),
            readable(&source.dataset, &source.damage),
        );
        // A fragment's rows never change, but a table that was restored may have another fragment of the same number.
        let is_same = |address: u64| {
            let id = address >> 32;
            let files = own.get(&id).map(|fragment| &fragment.files);
            files.is_some() && files == other.get(&id).map(|fragment| &fragment.files)
        };
        let rows = words.iter().filter(|(address, _)| is_same(*address));
        let index = self.index.with_words(rows.map(|(address, words)| (*address, words)));
        Ok(Self {
            index: index.map_err(KnowledgeError::internal)?,
            dataset: Arc::clone(&self.dataset),
            damage: Arc::clone(&self.damage),
        })
    }

    /// The index of another version of the same table, made from this one. `written` are rows that are at hand.
    pub(super) async fn at(
        &self,
        dataset: &Arc<Dataset>,
        damage: &Arc<TableDamage>,
        written: &[WrittenFragment],
    ) -> KnowledgeResult<Self> {
        if dimensions(dataset)? != self.index.dimensions() {
            return Self::read(dataset, damage).await;
        }
        let difference = self.difference(dataset, damage).await?;
        let mut index = self.index.clone();
        let live = |address: &u64| index.at(*address).is_some();
        let moved: Vec<(u64, u64)> = difference.moved.into_iter().filter(|(old, _)| live(old)).collect();
        let removed: Vec<u64> = difference.removed.into_iter().filter(live).collect();
        if !moved.is_empty() || !removed.is_empty() {
            let change = Change {
                added: &[],
                removed: &removed,
                moved: &moved,
            };
            index = index.apply(&change).map_err(KnowledgeError::internal)?;
        }
        let mut builder = Builder::of(&index);
        let mut unread = Vec::new();
        let mut analyser = match self.index.precision() {
            Precision::Exact => Some(Analyser::new()?),
            Precision::Coarse => None,
        };
        for fragment in difference.added {
            match written.iter().find(|written| written.is(&fragment)) {
                Some(written) => {
                    let address = |place: usize| Some(address(fragment.id, place as u32));
                    for_each_live(&written.rows, analyser.as_mut(), address, |row| builder.add(row))?;
                }
                None => unread.push(fragment),
            }
        }
        // Few rows are read with their words, many without, as in the beginning.
        let unread_rows: u64 = unread
            .iter()
            .map(|fragment| fragment.num_rows().unwrap_or(0) as u64)
            .sum();
        let analyser = analyser.as_mut().filter(|_| unread_rows < WORDS_AT_ONCE_BELOW_ROWS);
        for_each_row_of(dataset, unread, analyser, |row| builder.add(row)).await?;
        Ok(Self {
            index: builder.finish(),
            dataset: Arc::clone(dataset),
            damage: Arc::clone(damage),
        })
    }

    /// Reads the index from a table with the words of all rows, as far as one holds them.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub(super) async fn read_whole(dataset: &Arc<Dataset>, damage: &Arc<TableDamage>) -> KnowledgeResult<Self> {
        Self::read_with(dataset, damage, rows_of(dataset) < EXACT_BELOW_ROWS).await
    }

    /// What is in `index` other than here, if anything is: both are of the same version, and this one is whole.
    pub(super) fn difference_to(&self, index: &Index) -> Option<String> {
        let (own, other) = (self.index.len(), index.len());
        if own != other {
            return Some(format!("it holds {other} passages, the table {own}"));
        }
        let mut addresses = self.index.addresses_in(0..u64::MAX).into_iter();
        let differs = addresses.find(|address| {
            let same = self.index.at(*address) == index.at(*address);
            let same_words = index
                .words(*address)
                .is_none_or(|words| self.index.words(*address) == Some(words));
            !same || !same_words || self.index.vector(*address) != index.vector(*address)
        });
        let item = differs.and_then(|address| self.index.at(address).map(|entry| entry.id));
        item.map(|id| format!("item {id} is not in it as it is in the table"))
    }

    async fn difference(&self, dataset: &Arc<Dataset>, damage: &Arc<TableDamage>) -> KnowledgeResult<Difference> {
        let before = readable(&self.dataset, &self.damage);
        let after = readable(dataset, damage);
        let mut difference = Difference::default();
        let mut rewritten = HashSet::new();
        let is_gone = |id: &u64| !after.contains_key(id);
        if before.keys().any(is_gone) {
            rewritten = self.moved(dataset, &before, &after, &mut difference.moved).await?;
        }
        for (id, old) in &before {
            match after.get(id) {
                None if rewritten.contains(id) => {}
                Some(new) if new.files == old.files && new.deletion_file == old.deletion_file => {}
                Some(new) if new.files == old.files => {
                    let (gone, back) = self.deletions(dataset, *id).await?;
                    difference.removed.extend(gone);
                    if back {
                        // Rows that were deleted are there again: another history. Seldom, and read again.
                        difference.removed.extend(self.index.addresses_in(addresses_of(*id)));
                        difference.added.push((*new).clone());
                    }
                }
                replaced => {
                    difference.removed.extend(self.index.addresses_in(addresses_of(*id)));
                    difference.added.extend(replaced.map(|new| (*new).clone()));
                }
            }
        }
        let new = after
            .iter()
            .filter(|(id, _)| !before.contains_key(id) && !rewritten.contains(id));
        difference.added.extend(new.map(|(_, fragment)| (*fragment).clone()));
        Ok(difference)
    }

    /// Which rows of a fragment have been deleted, and whether any have come back.
    async fn deletions(&self, dataset: &Arc<Dataset>, id: u64) -> KnowledgeResult<(Vec<u64>, bool)> {
        let now = deleted(dataset, id).await?;
        // The file that says what was deleted before may be pruned by now, and the index knows: what is not in it
        // cannot go again.
        let before = deleted(&self.dataset, id).await.unwrap_or_default();
        let gone: Vec<u64> = now.difference(&before).map(|offset| address(id, *offset)).collect();
        let back = before.difference(&now).next().is_some();
        Ok((gone, back))
    }

    /// Finds out where a compaction has put rows, if a compaction has made this version, and answers which fragments it
    /// has replaced and made.
    async fn moved(
        &self,
        dataset: &Arc<Dataset>,
        before: &BTreeMap<u64, &Fragment>,
        after: &BTreeMap<u64, &Fragment>,
        moved: &mut Vec<(u64, u64)>,
    ) -> KnowledgeResult<HashSet<u64>> {
        let mut rewritten = HashSet::new();
        // Without it the rows are read, which only takes longer.
        let Ok(Some(transaction)) = dataset.read_transaction().await else {
            return Ok(rewritten);
        };
        let Operation::Rewrite { groups, .. } = transaction.operation else {
            return Ok(rewritten);
        };
        for group in groups {
            let as_before = |old: &Fragment| {
                let known = before.get(&old.id);
                known.is_some_and(|known| known.files == old.files && known.deletion_file == old.deletion_file)
            };
            let is_there = |new: &Fragment| {
                let known = after.get(&new.id);
                known.is_some_and(|known| known.files == new.files && known.deletion_file.is_none())
            };
            if !group.old_fragments.iter().all(as_before) || !group.new_fragments.iter().all(is_there) {
                continue;
            }
            let mut from = Vec::new();
            for old in &group.old_fragments {
                let Ok(deleted) = deleted(&self.dataset, old.id).await else {
                    break;
                };
                let rows = old.physical_rows.unwrap_or(0) as u32;
                from.extend(
                    (0..rows)
                        .filter(|offset| !deleted.contains(offset))
                        .map(|offset| address(old.id, offset)),
                );
            }
            let to: Vec<u64> = group
                .new_fragments
                .iter()
                .flat_map(|new| (0..new.physical_rows.unwrap_or(0) as u32).map(|offset| address(new.id, offset)))
                .collect();
            if from.len() != to.len() {
                tracing::warn!(
                    from = from.len(),
                    to = to.len(),
                    "a compaction has changed the number of rows"
                );
                continue;
            }
            moved.extend(from.into_iter().zip(to));
            rewritten.extend(
                group
                    .old_fragments
                    .iter()
                    .chain(&group.new_fragments)
                    .map(|fragment| fragment.id),
            );
        }
        Ok(rewritten)
    }
}

/// The length of the vectors of a table.
pub(crate) fn dimensions(dataset: &Dataset) -> KnowledgeResult<usize> {
    let schema: arrow_schema::Schema = dataset.schema().into();
    vector_dimensions(&schema)
        .and_then(|dimensions| usize::try_from(dimensions).ok())
        .ok_or_else(|| KnowledgeError::internal("the table has no vector column"))
}

/// Rows of a table that are not deleted, closed ones too.
pub(crate) fn rows_of(dataset: &Dataset) -> u64 {
    let fragments = dataset.fragments().iter();
    fragments.map(|fragment| fragment.num_rows().unwrap_or(0) as u64).sum()
}

/// The fragments that can be read, by id.
fn readable<'a>(dataset: &'a Dataset, damage: &TableDamage) -> BTreeMap<u64, &'a Fragment> {
    let fragments = dataset.fragments().iter();
    let sound = fragments.filter(|fragment| !damage.fragments.contains_key(&fragment.id));
    sound.map(|fragment| (fragment.id, fragment)).collect()
}

/// Where Lance has a row.
fn address(fragment: u64, offset: u32) -> u64 {
    fragment << 32 | u64::from(offset)
}

/// The addresses that the rows of a fragment may have.
fn addresses_of(fragment: u64) -> std::ops::Range<u64> {
    fragment << 32..(fragment + 1) << 32
}

/// The offsets of the rows of a fragment that are deleted.
async fn deleted(dataset: &Arc<Dataset>, id: u64) -> KnowledgeResult<HashSet<u32>> {
    let Some(fragment) = usize::try_from(id).ok().and_then(|id| dataset.get_fragment(id)) else {
        return Err(KnowledgeError::internal("a fragment is missing in its own version"));
    };
    let deleted = fragment.get_deletion_vector().await.map_err(read_error)?;
    Ok(deleted.iter().flat_map(|deleted| deleted.iter()).collect())
}

/// Calls `take` with every live row of these fragments.
async fn for_each_row_of<E: std::fmt::Display>(
    dataset: &Arc<Dataset>,
    fragments: Vec<Fragment>,
    mut analyser: Option<&mut Analyser>,
    mut take: impl FnMut(&Row<'_>) -> Result<(), E>,
) -> KnowledgeResult<()> {
    if fragments.is_empty() {
        return Ok(());
    }
    let mut scanner: Scanner = dataset.scan();
    scanner
        .with_fragments(fragments)
        .project(&match analyser {
            Some(_) => columns_with_texts(),
            None => COLUMNS.to_vec(),
        })
        .map_err(read_error)?
        .filter_expr(col(column::VALID_TO).is_null())
        .with_row_id();
    let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
    while let Some(batch) = stream.try_next().await.map_err(read_error)? {
        let addresses = scanned_addresses(&batch)?;
        let address = |place: usize| addresses.get(place).copied();
        for_each_live(&batch, analyser.as_deref_mut(), address, &mut take)?;
        // A large table must not keep a thread of the runtime for itself.
        tokio::task::yield_now().await;
    }
    Ok(())
}
