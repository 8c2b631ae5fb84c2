//! Storing many items that come from elsewhere: what is there already is neither embedded nor stored again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ccod_words::Executed;
use futures::future::join_all;
use sha2::{Digest, Sha256};

use super::ingest::prepare;
use super::{Asked, Knowledge};
use crate::deadline::Deadline;
use crate::domain::{NewItem, ProjectName};
use crate::embedder::Lane;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::writer::{ItemOutcome, PreparedItem, WriterHandle};

/// Pause where the writer has no room for a single item.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// An import under way. Groups are given to [`Import::group`] one after the other.
pub struct Import<'a> {
    knowledge: &'a Knowledge,
    project: ProjectName,
    known: Known,
    handed_over: bool,
    dry_run: bool,
}

/// What became of an item of an import.
#[derive(Debug)]
pub enum Imported {
    /// It is stored, or would be in a dry run.
    New,
    /// It was there already.
    Duplicate,
    /// It cannot be stored: the others can.
    Refused(KnowledgeError),
}

/// What became of a group of an import.
#[derive(Debug)]
pub struct ImportedGroup {
    /// For each item, in their order; none where that is not known, or it was not its turn.
    pub items: Vec<Option<Imported>>,
    /// What ends the import: an error of the daemon or of the call.
    pub ended: Option<KnowledgeError>,
}

impl Knowledge {
    /// Begins an import into a project.
    ///
    /// # Errors
    /// [`KnowledgeError::ModelMismatch`] for a project of another model; those of the store.
    pub async fn import(&self, project: &ProjectName, dry_run: bool) -> KnowledgeResult<Import<'_>> {
        let mut known = Known::default();
        if let Some(view) = self.store.view_or_empty(project).await? {
            view.check_model(&self.store.config().model.name)?;
            view.for_each_live(|row| known.insert(Some(&row.id), &row.content_hash))
                .await?;
        }
        Ok(Import {
            knowledge: self,
            project: project.clone(),
            known,
            handed_over: false,
            dry_run,
        })
    }
}

impl Import<'_> {
    /// Whether a group is with the writer: what becomes of it is not known if nobody waits for it.
    pub fn is_handed_over(&self) -> bool {
        self.handed_over
    }

    /// Stores what is new among these.
    pub async fn group(&mut self, items: Vec<NewItem>, asked: &Asked) -> ImportedGroup {
        let mut group = ImportedGroup {
            items: Vec::with_capacity(items.len()),
            ended: None,
        };
        let mut new = Vec::new();
        for item in items {
            let content_hash = item.content_hash();
            let outcome = match self.known.standing(item.id.as_deref(), &content_hash) {
                Standing::Duplicate => Some(Imported::Duplicate),
                Standing::Conflict => {
                    let id = item.id.unwrap_or_default();
                    Some(Imported::Refused(KnowledgeError::AlreadyExists { id }))
                }
                Standing::New => {
                    // Also for what follows in this import.
                    self.known.insert(item.id.as_deref(), &content_hash);
                    if !self.dry_run {
                        new.push((group.items.len(), item));
                    }
                    self.dry_run.then_some(Imported::New)
                }
            };
            group.items.push(outcome);
        }
        if let Err(error) = self.store(new, &mut group, asked).await {
            group.ended.get_or_insert(error);
        }
        group
    }

    async fn store(
        &mut self,
        new: Vec<(usize, NewItem)>,
        group: &mut ImportedGroup,
        asked: &Asked,
    ) -> KnowledgeResult<()> {
        let routes = self.knowledge.routes();
        let (writer, embedder) = (routes.writer()?, routes.embedder()?);
        let prepared = join_all(new.into_iter().map(|(place, item)| async move {
            let prepared = prepare(embedder, item, Lane::Bulk, asked).await;
            (place, prepared)
        }))
        .await;
        let (mut places, mut items) = (Vec::new(), Vec::new());
        for (place, prepared) in prepared {
            match prepared {
                Ok(item) => {
                    places.push(place);
                    items.push(item);
                }
                // One text that the model cannot take is no reason to stop.
                Err(error @ (KnowledgeError::InvalidParameter { .. } | KnowledgeError::Internal { .. })) => {
                    group.items[place] = Some(Imported::Refused(error));
                }
                Err(error) => return Err(error),
            }
        }
        if items.is_empty() {
            return Ok(());
        }
        self.handed_over = true;
        let outcomes = write(writer, &self.project, items, asked.deadline).await;
        self.handed_over = matches!(
            &outcomes,
            Err(KnowledgeError::OutcomeUnknown
                | KnowledgeError::DeadlineExceeded {
                    executed: Executed::Unknown
                })
        );
        // All of them are told of, also those after the one that ends the import.
        for (place, outcome) in places.into_iter().zip(outcomes?) {
            group.items[place] = match outcome {
                Ok(outcome) if outcome.duplicate => Some(Imported::Duplicate),
                Ok(_) => Some(Imported::New),
                Err(
                    error @ (KnowledgeError::InvalidParameter { .. }
                    | KnowledgeError::AlreadyExists { .. }
                    | KnowledgeError::SecretRejected { .. }),
                ) => Some(Imported::Refused(error)),
                Err(error) => {
                    self.handed_over |= matches!(error.effect(), Some(Executed::Yes | Executed::Unknown));
                    group.ended.get_or_insert(error);
                    None
                }
            };
        }
        Ok(())
    }
}

/// Writes one group of items. The writer refuses a group of one where it has no room, and lets others wait.
async fn write(
    writer: &WriterHandle,
    project: &ProjectName,
    items: Vec<PreparedItem>,
    deadline: Deadline,
) -> KnowledgeResult<Vec<KnowledgeResult<ItemOutcome>>> {
    while let [only] = items.as_slice() {
        match writer.store(project.clone(), vec![only.clone()], None, deadline).await {
            Ok(reply) => return Ok(reply.items),
            Err(KnowledgeError::Busy { .. }) if !deadline.expired() => tokio::time::sleep(BUSY_PAUSE).await,
            Err(error) => return Err(error),
        }
    }
    Ok(writer.store(project.clone(), items, None, deadline).await?.items)
}

/// What identities stand for, in 128 bits each: at 10^9 items, one in 10^20 chances that two are alike.
#[derive(Default)]
struct Known {
    /// Content by id.
    by_id: HashMap<u128, u128>,
    contents: HashSet<u128>,
}

/// What is known of an item before it is embedded.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    New,
    Duplicate,
    /// Its id holds other content.
    Conflict,
}

impl Known {
    fn fingerprint(text: &str) -> u128 {
        let digest = Sha256::digest(text.as_bytes());
        digest
            .iter()
            .take(16)
            .fold(0, |bits, byte| bits << 8 | u128::from(*byte))
    }

    fn insert(&mut self, id: Option<&str>, content_hash: &str) {
        let content = Self::fingerprint(content_hash);
        self.contents.insert(content);
        if let Some(id) = id {
            self.by_id.insert(Self::fingerprint(id), content);
        }
    }

    /// As the writer decides: an item is its id, or where it has none its content.
    fn standing(&self, id: Option<&str>, content_hash: &str) -> Standing {
        let content = Self::fingerprint(content_hash);
        match id {
            None if self.contents.contains(&content) => Standing::Duplicate,
            None => Standing::New,
            Some(id) => match self.by_id.get(&Self::fingerprint(id)) {
                None => Standing::New,
                Some(held) if *held == content => Standing::Duplicate,
                Some(_) => Standing::Conflict,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_its_id_or_its_content() {
        let mut known = Known::default();
        assert_eq!(known.standing(Some("a"), "h1"), Standing::New);
        known.insert(Some("a"), "h1");
        assert_eq!(known.standing(Some("a"), "h1"), Standing::Duplicate);
        assert_eq!(known.standing(Some("a"), "h2"), Standing::Conflict);
        assert_eq!(known.standing(Some("b"), "h1"), Standing::New);
        assert_eq!(known.standing(None, "h1"), Standing::Duplicate);
        assert_eq!(known.standing(None, "h2"), Standing::New);
        known.insert(None, "h2");
        assert_eq!(known.standing(None, "h2"), Standing::Duplicate);
    }
}
