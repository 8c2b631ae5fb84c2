//! Opens the table of a project, or creates it.

use std::sync::Arc;

use lance::index::DatasetIndexExt;
use lance_table::io::commit::CommitHandler;
use lancedb::Connection;

use crate::clock;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::damage;
use crate::store::error::{is_passing, read_error, write_error};
use crate::store::guarded::guarded;
use crate::store::project::{PUT_BACK, Project};
use crate::store::table::durable::DurableCommitHandler;
use crate::store::table::holds_table;
use crate::store::table::lineage::Lineage;
use crate::store::table::schema::TABLE_NAME;
use crate::store::table::table_damage::TableDamage;
use crate::store::table::{checked_reads, table_directory, vector_index};
use crate::store::write::{WriteTable, current_dataset};

impl Project {
    pub(super) async fn connect(&self) -> KnowledgeResult<Connection> {
        let uri = self
            .directory()
            .to_str()
            .ok_or_else(|| KnowledgeError::internal("the data directory's path is not UTF-8"))?;
        lancedb::connect(uri)
            .session(self.settings.caches.session())
            .execute()
            .await
            .map_err(read_error)
    }

    /// No table, as it is before the first store.
    ///
    /// # Errors
    /// Where there was one in this process: somebody has moved it away, or a disk is gone. To begin again in its place
    /// would keep it from coming back.
    fn unless_vanished(&self) -> KnowledgeResult<Option<WriteTable>> {
        match self.record.had_table() {
            true => Err(self.vanished()),
            false => Ok(None),
        }
    }

    fn vanished(&self) -> KnowledgeError {
        KnowledgeError::OutOfReach {
            message: format!(
                "the data of project {} is no longer in {}",
                self.name(),
                self.directory().display()
            ),
            fix: PUT_BACK,
        }
    }

    /// That the table is no longer where it was, and what to do.
    pub(in crate::store) fn vanished_told(&self) -> String {
        format!("{}; {PUT_BACK}", self.vanished())
    }

    fn commit_handler(&self) -> DurableCommitHandler {
        let handler = DurableCommitHandler::new(self.settings.durability, self.settings.lock.clone());
        handler.counting(Arc::clone(&self.publications))
    }

    /// Opens the table, if there is one. Why it cannot be opened is shown until it can be.
    pub(in crate::store) async fn open_table(&self) -> KnowledgeResult<Option<WriteTable>> {
        let opened = self.try_open_table().await;
        self.record.note_try(opened.as_ref().err());
        opened
    }

    pub(super) async fn try_open_table(&self) -> KnowledgeResult<Option<WriteTable>> {
        // Recovery may change what it finds.
        self.check_lock()?;
        clock::check()?;
        fail::fail_point!("store::open", |_| Err(KnowledgeError::Unreadable {
            message: "failpoint store::open".to_owned(),
        }));
        if !holds_table(self.directory())? {
            self.record.set_lost(self.name(), None);
            return self.unless_vanished();
        }
        let location = table_directory(self.directory());
        if !self.record.is_recovered() {
            let (name, directory, table) = (
                self.settings.name.clone(),
                self.settings.directory.clone(),
                location.clone(),
            );
            let recovered = tokio::task::spawn_blocking(move || damage::recover(&name, &directory, &table))
                .await
                .map_err(KnowledgeError::internal)??;
            self.record.add_notes(recovered.notes);
            self.record.set_lost(self.name(), recovered.lost);
            if recovered.vacant {
                return self.unless_vanished();
            }
            self.record.note_recovered();
        }
        let mut read_params = checked_reads();
        read_params.session(self.settings.caches.session());
        let handler = Arc::new(self.commit_handler());
        read_params.commit_handler = Some(Arc::clone(&handler) as Arc<dyn CommitHandler>);
        let connection = self.connect().await?;
        let opened = guarded(async move {
            connection
                .open_table(TABLE_NAME)
                .lance_read_params(read_params)
                .execute()
                .await
        })
        .await;
        let table = match opened {
            Ok(Ok(table)) => table,
            // LanceDB takes a table whose files cannot be opened now for none.
            Ok(Err(error @ lancedb::Error::TableNotFound { .. })) if !is_passing(&error) => {
                tracing::debug!(project = %self.name(), %error, "there is no table");
                return self.unless_vanished();
            }
            Ok(Err(error)) => return Err(read_error(error)),
            Err(unfinished) => {
                return Err(KnowledgeError::unreadable(format_args!(
                    "project {} cannot be opened: {unfinished}",
                    self.name()
                )));
            }
        };
        let dataset = current_dataset(&table).await?;
        let indices = dataset.load_indices().await.map_err(read_error)?;
        handler.builds_upon(&dataset, &indices)?;
        let mut damage = damage::inspect(&dataset, &location, &self.damage.remembered()).await?;
        let version = dataset.version().version;
        if self.damage.takes_search_after_write(version) {
            tracing::warn!(project = %self.name(), version, "a write failed, looking for what is damaged");
            let found = damage::unreadable_fragments(&dataset, &damage.fragments).await?;
            self.damage.remember(&found);
            damage.fragments.extend(found);
        }
        let mut taken = self.take_over(&table, &handler, &damage).await;
        if let Err(KnowledgeError::Unreadable { message }) = &taken {
            tracing::error!(project = %self.name(), error = message, "a table cannot be read, looking for what is damaged");
            let found = damage::unreadable_fragments(&dataset, &damage.fragments).await?;
            if !found.is_empty() {
                self.damage.remember(&found);
                damage.fragments.extend(found);
                taken = self.take_over(&table, &handler, &damage).await;
            }
        }
        let mut taken = taken?;
        self.record.note_table();
        let lineage = Lineage::read(self.directory())?;
        self.published.set_lineage(lineage);
        taken.continue_after(lineage.sequence);
        self.damage.set_repair_failed(false);
        self.number_after_losses(&mut taken, version).await?;
        self.salvage(&mut taken).await;
        vector_index::prewarm(&dataset, self.settings.caches.index_cache_bytes()).await;
        for what in taken.damage().describe() {
            tracing::error!(project = %self.name(), "{what}");
        }
        // From here on it is known what is committed.
        self.recent().follow(taken.next_sequence() - 1, taken.damage(), &[]);
        Ok(Some(taken))
    }

    /// Reads what the writer keeps in memory of a table.
    pub(super) async fn take_over(
        &self,
        table: &lancedb::Table,
        handler: &Arc<DurableCommitHandler>,
        damage: &TableDamage,
    ) -> KnowledgeResult<WriteTable> {
        let opened = WriteTable::opened(
            self.settings.name.clone(),
            (table.clone(), Arc::clone(handler)),
            self.settings.retention,
            damage.clone(),
            self.held().clone(),
            self.recent().clone(),
            Arc::clone(&self.keeper),
        );
        match guarded(opened).await {
            Ok(opened) => opened,
            Err(unfinished) => Err(KnowledgeError::unreadable(format_args!(
                "project {} cannot be read: {unfinished}",
                self.name()
            ))),
        }
    }

    /// Takes care that no commit number is given twice: what was lost had some.
    pub(super) async fn number_after_losses(&self, table: &mut WriteTable, version: u64) -> KnowledgeResult<()> {
        self.record.add_notes(table.take_notes());
        let damage = (**table.damage()).clone();
        let (directory, last, damaged) = (
            self.settings.directory.clone(),
            table.next_sequence() - 1,
            damage.fragments.clone(),
        );
        let gaps = tokio::task::spawn_blocking(move || damage::gaps(&directory, last, &damaged, version))
            .await
            .map_err(KnowledgeError::internal)??;
        table.set_damage(TableDamage { gaps, ..damage });
        Ok(())
    }

    /// Creates the table with its keyword index. A try that fails leaves no empty directories behind.
    pub(super) async fn create_table(&self) -> KnowledgeResult<WriteTable> {
        let is_new = !self.directory().exists();
        let created = self.try_create_table().await;
        if created.is_err() {
            let (directory, table) = (self.settings.directory.clone(), table_directory(self.directory()));
            let removed = tokio::task::spawn_blocking(move || damage::remove_failed_site(&directory, &table, is_new));
            if let Ok(Err(error)) = removed.await {
                tracing::warn!(project = %self.name(), %error, "what is left of a table that could not be created stays");
            }
        }
        created
    }

    async fn try_create_table(&self) -> KnowledgeResult<WriteTable> {
        std::fs::create_dir_all(self.directory()).map_err(write_error)?;
        let (name, directory, table) = (
            self.settings.name.clone(),
            self.settings.directory.clone(),
            table_directory(self.directory()),
        );
        tokio::task::spawn_blocking(move || damage::clear_site(&name, &directory, &table))
            .await
            .map_err(KnowledgeError::internal)??;
        self.record.set_lost(self.name(), None);
        let handler = Arc::new(self.commit_handler());
        let connection = self.connect().await?;
        WriteTable::create(
            &connection,
            &self.settings.model,
            handler,
            self.settings.caches.session(),
        )
        .await?;
        // Opened as any other table is: the index is made there.
        self.open_table()
            .await?
            .ok_or_else(|| KnowledgeError::internal(format!("project {} was created and cannot be found", self.name())))
    }
}
