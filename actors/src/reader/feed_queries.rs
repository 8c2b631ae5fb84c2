//! What the change feeds read from a table.

use std::sync::Arc;

use super::answers::ChangePage;
use super::queries::on_view;
use crate::domain::ProjectName;
use crate::error::KnowledgeResult;
use crate::store::view::changes::Change;
use crate::store::view::replay::{Replay, ReplayedChanges};
use crate::store::{Lineage, Store};

/// What changed in a project after a commit, the next part of it. `replay` is that of the part before.
pub(super) async fn change_page(
    store: &Store,
    project: &ProjectName,
    after: i64,
    replay: Option<Arc<Replay>>,
) -> KnowledgeResult<ChangePage> {
    let page = on_view(store, project, move |view| {
        let replay = replay.clone();
        async move {
            let newest = view.sequence();
            let mut page = ChangePage {
                found: ReplayedChanges {
                    until: newest,
                    ..ReplayedChanges::default()
                },
                replay: None,
                newest,
                forgotten: view.horizon()?.map(|horizon| horizon.sequence),
                lineage: Lineage::default(),
                lost: view.damage().lost(after),
            };
            // Whoever stands where nothing can follow is not told anything.
            if newest > after && !page.lost && page.forgotten.is_none_or(|forgotten| after >= forgotten) {
                let epoch = store.lineage(project)?.epoch;
                let replay = match replay.filter(|replay| replay.goes_on_after(after, epoch)) {
                    Some(replay) => replay,
                    None => Arc::new(Replay::plan(view, after, epoch).await?),
                };
                page.found = replay.changes(after).await?;
                page.replay = Some(replay);
            }
            Ok(page)
        }
    });
    let Some(page) = page.await?.found else {
        return Ok(ChangePage::default());
    };
    // After the view: a restore between the two then shows as the new history, which is the safe side.
    let lineage = store.lineage(project)?;
    Ok(ChangePage { lineage, ..page })
}

/// The same changes with their texts. `read` is where they were read, with the places of their rows. One whose row is
/// gone by now stays without its text.
pub(super) async fn change_texts(
    store: &Store,
    project: &ProjectName,
    changes: Vec<Change>,
    read: Option<(Arc<Replay>, Vec<u64>)>,
) -> KnowledgeResult<Vec<Change>> {
    let (wanted, read) = (&changes, &read);
    let found = on_view(store, project, move |view| async move {
        let mut changes = wanted.clone();
        match read.as_ref().filter(|(replay, _)| !replay.is_over()) {
            Some((replay, places)) => replay.read_texts(&mut changes, places).await?,
            None => view.read_texts(&mut changes).await?,
        }
        Ok(changes)
    });
    let found = found.await?.found;
    Ok(found.unwrap_or(changes))
}
