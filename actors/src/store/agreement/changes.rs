//! What feeds are told: the last commits from memory as from the table, and the table in any parts.

use std::sync::Arc;

use futures::FutureExt;
use rand::Rng;

use super::{Project, open};
use crate::domain::ProjectName;
use crate::store::view::changes::Change;
use crate::store::view::recent::Recent;
use crate::store::view::replay::Replay;
use crate::store::{Listener, ProjectView};

/// All that follows a commit, read in parts of so many rows after plans of so many, with the texts.
async fn replayed(view: &Arc<ProjectView>, after: i64, planned: usize, rows: usize) -> Vec<Change> {
    let (mut after, mut told) = (after, Vec::new());
    let mut replay: Option<Replay> = None;
    while after < view.sequence() {
        let goes_on = replay.take().filter(|replay| replay.goes_on_after(after, 0));
        let current = match goes_on {
            Some(current) => current,
            None => Replay::plan_of(Arc::clone(view), after, 0, planned).await.unwrap(),
        };
        let mut found = current.changes_in_parts_of(after, rows).await.unwrap();
        current.read_texts(&mut found.changes, &found.places).await.unwrap();
        assert!(found.until > after && found.changes.len() == found.places.len());
        assert!(
            found
                .changes
                .iter()
                .all(|change| change.sequence > after && change.sequence <= found.until)
        );
        after = found.until;
        told.extend(found.changes);
        replay = Some(current);
    }
    told
}

impl Project {
    /// Answers whether memory knew anything of the last commits.
    pub(super) async fn check_changes(&mut self) -> bool {
        let Some(view) = self.view().await else { return false };
        let store = Arc::clone(self.access.store());
        let epoch = store.lineage(&self.name).unwrap().epoch;
        let whole = replayed(&view, 0, 1 << 18, 1_024).await;
        for (planned, rows) in [(1, 1), (3, 2), (7, 1_024)] {
            assert_eq!(replayed(&view, 0, planned, rows).await, whole, "{:?}", self.steps);
        }
        // Wherever the rows lie, and whether the item has been changed since or not.
        let mut read = whole.clone();
        read.iter_mut().for_each(|change| change.text = None);
        view.read_texts(&mut read).await.unwrap();
        assert_eq!(read, whole, "{:?}", self.steps);
        view.without_index().read_texts(&mut read).await.unwrap();
        assert_eq!(read, whole, "{:?}", self.steps);
        assert!(whole.iter().all(|change| change.has_text() == change.text.is_some()));

        let newest = view.sequence();
        assert_eq!(store.recent_changes(&self.name, newest, epoch), Recent::Nothing);
        assert_eq!(store.recent_changes(&self.name, newest, epoch + 1), Recent::Elsewhere);
        let mut known = false;
        for after in [newest - 1, newest - 2, self.random.random_range(0..=newest)] {
            let Recent::Changes(found) = store.recent_changes(&self.name, after.max(0), epoch) else {
                continue;
            };
            known = true;
            let following = whole
                .iter()
                .filter(|change| change.sequence > after && change.sequence <= found.until);
            let following: Vec<Change> = following
                .map(|change| Change {
                    text: None,
                    ..change.clone()
                })
                .collect();
            assert_eq!(found.changes, following, "after {after} {:?}", self.steps);
        }
        known
    }
}

fn heard(listener: &Listener) -> Vec<String> {
    let changed = listener.changed().now_or_never().unwrap_or_default();
    changed.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_commit_wakes_the_feeds_of_its_project_and_upkeep_wakes_none() {
    let home = tempfile::tempdir().unwrap();
    let mut project = Project::new(open(home.path()), "woken", 5);
    let store = Arc::clone(project.access.store());
    let other = ProjectName::parse("other", "project_id").unwrap();
    let (own, other, every) = (
        store.listen(Some(project.name.clone())),
        store.listen(Some(other)),
        store.listen(None),
    );
    for _ in 0..13 {
        project.fill(2).await;
        assert_eq!(
            (heard(&own), heard(&every)),
            (vec!["woken".to_owned()], vec!["woken".to_owned()])
        );
    }
    let before = project.view().await.unwrap();
    project.upkeep(true).await;
    let after = project.view().await.unwrap();
    assert!(after.lance_version() > before.lance_version() && after.fragments() < before.fragments());
    drop(before);
    // Removing old versions publishes nothing at all.
    {
        let known = project.access.project(&project.name).unwrap();
        let mut guard = project.access.lock(&known, false).await.unwrap();
        guard.table().unwrap().prune().await.unwrap();
        assert!(Arc::ptr_eq(&guard.publish().await.unwrap(), &after));
    }
    assert_eq!((heard(&own).len(), heard(&other).len(), heard(&every).len()), (0, 0, 0));
    // Who is up with the project still is, and what it is told next is in memory.
    let stands_at = after.sequence();
    assert_eq!(store.recent_changes(&project.name, stands_at, 0), Recent::Nothing);
    project.fill(1).await;
    let Recent::Changes(found) = store.recent_changes(&project.name, stands_at, 0) else {
        panic!("the table would have to be asked");
    };
    assert_eq!((found.changes.len(), found.until), (1, stands_at + 1));
}

#[tokio::test]
async fn nothing_of_what_was_purged_stays_among_the_last_commits() {
    let home = tempfile::tempdir().unwrap();
    let mut project = Project::new(open(home.path()), "purged", 6);
    project.fill(3).await;
    let store = Arc::clone(project.access.store());
    assert!(matches!(store.recent_changes(&project.name, 0, 0), Recent::Changes(_)));
    let ids = project.live[..1].to_vec();
    project.purge(&ids).await;
    let newest = project.view().await.unwrap().sequence();
    for after in 0..newest {
        assert_eq!(store.recent_changes(&project.name, after, 0), Recent::Elsewhere);
    }
    assert!(!project.check_changes().await);
}
