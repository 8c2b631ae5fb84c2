//! Looks for what is damaged in the table of a project, and saves what can be read of it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::error::KnowledgeResult;
use crate::store::damage;
use crate::store::project::Project;
use crate::store::project::damage_ledger::Searched;
use crate::store::table::schema::TableShape;
use crate::store::table::table_directory;
use crate::store::view::ProjectView;
use crate::store::write::{WriteTable, current_dataset};

/// Whether there is no manifest where the table lay, but at most what a write has left that found nothing.
fn has_no_version(table: &Path) -> bool {
    match std::fs::read_dir(table.join("_versions")) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

impl Project {
    /// Saves what can be read of damaged fragments at once: left out whole, they would take it along.
    pub(super) async fn salvage(&self, table: &mut WriteTable) {
        if !matches!(table.shape(), TableShape::Current { .. }) {
            return;
        }
        if table.damage().is_sound() || table.damage().configuration.is_some() {
            return;
        }
        match table.repair(self.directory(), true).await {
            Ok(()) => self.damage.note_salvage(),
            // The writer tries again; until then they are left out.
            Err(error) => tracing::error!(project = %self.name(), %error, "a damaged table could not be repaired"),
        }
        self.record.add_notes(table.take_notes());
    }

    /// After a read of `view` has failed: looks for what is damaged, all fragments and, with the words that were
    /// searched for, the indices. True if the next view is another one, so that the read is worth repeating.
    pub(in crate::store) async fn reexamine(&self, view: &ProjectView, query: Option<&str>) -> KnowledgeResult<bool> {
        let mut examined = self.damage.examined().await;
        let same = |now: Arc<ProjectView>| now.lance_version() == view.lance_version() && now.damage() == view.damage();
        if !self.published().is_some_and(same) {
            return Ok(true); // Somebody else has found it, or it is another version by now.
        }
        let location = table_directory(self.directory());
        if has_no_version(&location) {
            // Nothing is damaged, it is somewhere else: whoever opens it next says so.
            let mut guard = self.lock_table().await;
            *guard = None;
            self.clear_view();
            return Ok(true);
        }
        let version = view.lance_version();
        if examined.is_some_and(|searched| searched.covers(version)) {
            return Ok(false);
        }
        tracing::warn!(project = %self.name(), version, "a read failed, looking for what is damaged");
        let plain = damage::inspect(view.dataset(), &location, &BTreeMap::new()).await?;
        let mut found = plain.fragments;
        // Those whose files are gone are not read: they would count as ones of which something can be saved, and what
        // saves it takes them out of the table, though their files may be put back.
        let mut known = view.damage().fragments.clone();
        known.extend(found.clone());
        found.extend(damage::unreadable_fragments(view.dataset(), &known).await?);
        found.retain(|id, _| !view.damage().fragments.contains_key(id));
        let (mut keyword_index, mut vector_index) = (plain.keyword_index, plain.vector_index);
        if found.is_empty() && keyword_index.is_none() && vector_index.is_none() {
            keyword_index = damage::keyword_index_damage(view, query).await;
            vector_index = damage::vector_index_damage(view).await;
        }
        *examined = Some(Searched::now(version));
        if found.is_empty() && keyword_index.is_none() && vector_index.is_none() {
            return Ok(false);
        }
        self.damage.remember(&found);
        let mut guard = self.lock_table().await;
        if guard.is_none() {
            *guard = self.open_table().await?;
        }
        let Some(table) = guard.as_mut() else { return Ok(true) };
        let mut damage = (**table.damage()).clone();
        damage.fragments.extend(found);
        // The writer may have rebuilt it since.
        if current_dataset(table.lancedb()).await?.version().version == version {
            damage.keyword_index = keyword_index.or(damage.keyword_index);
            damage.vector_index = vector_index.or(damage.vector_index);
        }
        for what in damage.describe() {
            tracing::error!(project = %self.name(), "{what}");
        }
        table.set_damage(damage);
        self.number_after_losses(table, version).await?;
        self.salvage(table).await;
        let view = table.view().await?;
        self.set_view(view);
        Ok(true)
    }
}
