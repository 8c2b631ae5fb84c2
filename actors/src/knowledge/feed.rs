//! What changes in projects, told to whoever subscribes.
//!
//! A subscription pulls: it waits until a project that it listens to has changed, takes what follows its cursor, and gives
//! it to its subscriber, who keeps it in a bounded queue. So nothing is buffered for a slow subscriber, the writer never
//! waits for one, and the replay after a restart is the same thing as the live feed. What the last commits have changed
//! is in memory; what is further back, and texts that are not in memory any more, the readers read from the table. A
//! subscriber that takes nothing for [`LAG_PATIENCE`] gets one [`Event::Lagged`] with the cursor to resume from, and its
//! feed ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::Knowledge;
use super::cursor::{Cursor, Sent};
use crate::deadline::Deadline;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::Listener;
use crate::store::view::changes::Change;
use crate::store::view::recent::Recent;
use crate::store::view::replay::Replay;

/// How long a full queue is waited for before the subscriber counts as lagging.
const LAG_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between tries to put a change into a full queue.
const FULL_PAUSE: Duration = Duration::from_millis(20);
/// Time for one query of changes.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a query that failed; it doubles with each failure in a row.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The longest such pause.
const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Texts that are read at once: one may have a megabyte.
const TEXTS_AT_ONCE: usize = 32;
/// Projects that are opened side by side.
const OPENED_AT_ONCE: usize = 8;

/// Whose changes a feed tells.
#[derive(Clone, Debug)]
pub enum Scope {
    /// One project's, which need not exist yet.
    One(ProjectName),
    /// Those of all projects, also of those to come.
    Every,
}

/// What a subscriber is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// An item has changed.
    Changed {
        /// Its project.
        project: &'a ProjectName,
        /// How.
        change: &'a Change,
        /// Resumes the feed behind this change.
        cursor: String,
    },
    /// The feed ends.
    Lagged {
        /// Resumes it.
        cursor: String,
        /// Whether what was told before need not be so any more: the subscriber has to read the present first.
        resync: bool,
    },
}

/// Why a subscriber does not take an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It is gone.
    Gone,
    /// It can never take this one; the feed goes on.
    TooLarge,
    /// Its queue is full.
    Full,
}

/// Who is told.
pub trait Subscriber: Send + Sync {
    /// Takes an event, or not; does not wait.
    ///
    /// # Errors
    /// Why not.
    fn take(&self, event: &Event<'_>) -> Result<(), NotTaken>;
}

/// A feed that has not begun.
pub struct Feed {
    knowledge: Knowledge,
    cursor: Cursor,
    /// Whether it is not known any more where its subscriber was.
    is_gone: bool,
    /// Whether changes carry texts.
    with_text: bool,
    listener: Listener,
    /// Projects that are to be looked at.
    due: BTreeSet<ProjectName>,
    /// Projects that could not be read, and when they are tried again. The others go on.
    postponed: BTreeMap<ProjectName, Postponed>,
}

impl Knowledge {
    /// A feed of what follows `cursor`, or of what changes from now on.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] for a cursor that is none. Those of the store, for a feed of one project.
    pub async fn feed(&self, scope: Scope, cursor: Option<&str>, with_text: bool) -> KnowledgeResult<Feed> {
        // Before the present is looked at, so that nothing falls between the two.
        let listener = self.store.listen(match &scope {
            Scope::One(project) => Some(project.clone()),
            Scope::Every => None,
        });
        let known = match cursor {
            Some(text) => {
                let sent = Sent::decode(text).ok_or_else(|| {
                    KnowledgeError::invalid(
                        "cursor",
                        "`cursor` must be one that a feed has given; leave it out to begin now",
                    )
                })?;
                Some(self.find(sent).await?)
            }
            None => None,
        };
        let is_gone = matches!(known, Some(None));
        let mut cursor = match known.flatten() {
            Some(cursor) => cursor,
            None => self.present(&scope).await?,
        };
        self.keep_short(&mut cursor).await;
        Ok(Feed {
            knowledge: self.clone(),
            due: self.projects_of(&scope).into_iter().collect(),
            cursor,
            is_gone,
            with_text,
            listener,
            postponed: BTreeMap::new(),
        })
    }

    /// The cursor that a subscriber has sent; none where it is not known any more what it stands for.
    async fn find(&self, sent: Sent) -> KnowledgeResult<Option<Cursor>> {
        let Some(bookmark) = sent.bookmark.clone() else {
            return Ok(Some(sent.into_cursor(BTreeMap::new())));
        };
        let marked = self
            .store
            .with_bookmarks(move |bookmarks| bookmarks.find(&bookmark))
            .await?;
        Ok(marked.map(|marked| sent.into_cursor(marked)))
    }

    /// Puts a bookmark where a cursor would name too many projects.
    async fn keep_short(&self, cursor: &mut Cursor) {
        let Some((before, changed)) = cursor.lacks_bookmark() else {
            return;
        };
        let positions = cursor.positions().clone();
        let saved = self
            .store
            .with_bookmarks(move |bookmarks| bookmarks.save(&positions, before.as_ref(), &changed));
        match saved.await {
            Ok(bookmark) => cursor.set_bookmark(bookmark),
            Err(error) => {
                tracing::warn!(%error, "a feed of all projects has long cursors, which are as good");
                cursor.stay_long();
            }
        }
    }

    async fn present(&self, scope: &Scope) -> KnowledgeResult<Cursor> {
        let view = |project: ProjectName| async move {
            let view = self.store.view_or_empty(&project).await;
            (project, view)
        };
        let views: Vec<_> = self.projects_of(scope).into_iter().map(view).collect();
        let mut views = futures::stream::iter(views).buffer_unordered(OPENED_AT_ONCE);
        let mut cursor = Cursor::default();
        while let Some((project, view)) = views.next().await {
            let view = match view {
                Ok(view) => view,
                // What one project has must not keep the others from being told of. Once it can be read, all of it is
                // told.
                Err(error) if matches!(scope, Scope::Every) => {
                    tracing::warn!(%project, %error, "a feed begins without a project");
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(view) = view {
                let epoch = self.store.lineage(&project)?.epoch;
                cursor.advance(&project, view.sequence(), epoch);
            }
        }
        Ok(cursor)
    }

    fn projects_of(&self, scope: &Scope) -> Vec<ProjectName> {
        match scope {
            Scope::One(project) => vec![project.clone()],
            Scope::Every => {
                let projects = self.store.projects();
                projects.iter().map(|project| project.name().clone()).collect()
            }
        }
    }
}

/// A project that could not be read.
struct Postponed {
    until: Instant,
    pause: Duration,
    /// The last change that was sent of a commit of which not all could be: the commit, and the item's id.
    told: Option<(i64, String)>,
}

/// What follows the cursor in one project.
struct Following {
    changes: Vec<Change>,
    /// Where they were read, with the places of their rows; none where they were in memory.
    read: Option<(Arc<Replay>, Vec<u64>)>,
    /// The commit up to which this is all.
    until: i64,
    /// The history that these numbers are of.
    epoch: i64,
    /// Whether there is nothing behind it.
    is_last: bool,
}

/// What became of one project's changes.
enum Turn {
    /// All of them are sent.
    Done,
    /// They cannot be read now.
    Failed(KnowledgeError),
}

/// Why a feed ends.
enum End {
    /// The subscriber left or unsubscribed.
    Gone,
    /// It does not read, or the cursor is of another history.
    Lagged { resync: bool },
}

impl Feed {
    /// Resumes the feed where it stands.
    pub fn cursor(&self) -> String {
        self.cursor.encode()
    }

    /// Tells `subscriber` of everything from the cursor on, until it is `ended`, leaves or lags.
    pub async fn run(mut self, subscriber: &impl Subscriber, ended: &CancellationToken) {
        let end = if self.is_gone {
            End::Lagged { resync: true }
        } else {
            tokio::select! {
                () = ended.cancelled() => return,
                end = self.follow(subscriber) => end,
            }
        };
        if let End::Lagged { resync } = end {
            self.knowledge.keep_short(&mut self.cursor).await;
            let event = Event::Lagged {
                cursor: self.cursor.encode(),
                resync,
            };
            tokio::select! {
                () = ended.cancelled() => {}
                _ = tell(subscriber, event, None) => {}
            }
        }
    }

    async fn follow(&mut self, subscriber: &impl Subscriber) -> End {
        loop {
            if let Err(end) = self.catch_up(subscriber).await {
                return end;
            }
            let retry = self.postponed.values().map(|postponed| postponed.until).min();
            let retry = async {
                match retry {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.listener.changed() => self.due.extend(changed),
                () = retry => {}
            }
        }
    }

    /// Sends everything up to the present of each project that has changed and can be read.
    async fn catch_up(&mut self, subscriber: &impl Subscriber) -> Result<(), End> {
        let now = Instant::now();
        let mut due = std::mem::take(&mut self.due);
        // Those that could not be read wait for their time, whatever happens to them meanwhile.
        due.retain(|project| !self.postponed.contains_key(project));
        let again = self.postponed.iter().filter(|(_, postponed)| postponed.until <= now);
        due.extend(again.map(|(project, _)| project.clone()));
        let due: Vec<ProjectName> = due.into_iter().collect();
        for (number, project) in due.iter().enumerate() {
            if number % OPENED_AT_ONCE == 0 {
                self.open_ahead(&due[number..(number + OPENED_AT_ONCE).min(due.len())])
                    .await;
            }
            let mut told = None;
            let before = self.postponed.get(project);
            let pause = before.map_or(RETRY_PAUSE, |before| (before.pause * 2).min(LONGEST_RETRY_PAUSE));
            let skipped = before.and_then(|before| before.told.clone());
            match self.catch_up_with(project, subscriber, skipped, &mut told).await? {
                Turn::Done => {
                    self.postponed.remove(project);
                }
                Turn::Failed(error) => {
                    tracing::debug!(%project, %error, "the feed tries again");
                    let until = Instant::now() + pause;
                    let postponed = Postponed { until, pause, told };
                    self.postponed.insert(project.clone(), postponed);
                }
            }
        }
        Ok(())
    }

    /// Opens projects side by side that the table has to be asked of. What is wrong with one is found when it is read.
    async fn open_ahead(&self, projects: &[ProjectName]) {
        let store = &self.knowledge.store;
        let is_asked = |project: &&ProjectName| {
            let position = self.cursor.of(project);
            store.recent_changes(project, position.commit, position.epoch) == Recent::Elsewhere
        };
        let opened = projects
            .iter()
            .filter(is_asked)
            .map(|project| store.view_or_empty(project));
        futures::future::join_all(opened).await;
    }

    /// Sends everything up to the present of one project, but for what was `skipped`: the changes of this commit up to
    /// this item, which are sent. `told` is set where it fails amid a commit.
    async fn catch_up_with(
        &mut self,
        project: &ProjectName,
        subscriber: &impl Subscriber,
        mut skipped: Option<(i64, String)>,
        told: &mut Option<(i64, String)>,
    ) -> Result<Turn, End> {
        let mut replay = None;
        loop {
            told.clone_from(&skipped);
            let mut following = match self.following(project, &mut replay).await? {
                Ok(Some(following)) => following,
                Ok(None) => return Ok(Turn::Done),
                Err(error) => return Ok(Turn::Failed(error)),
            };
            if let Some((commit, id)) = skipped.take() {
                following.skip(commit, &id);
            }
            if let Err(error) = self.send(project, &mut following, subscriber, told).await? {
                return Ok(Turn::Failed(error));
            }
            let until = following.until.max(self.cursor.of(project).commit);
            self.cursor.advance(project, until, following.epoch);
            if following.is_last {
                return Ok(Turn::Done);
            }
        }
    }

    /// What follows the cursor in one project: from memory, or else from the table, some of it. None where nothing does.
    async fn following(
        &mut self,
        project: &ProjectName,
        replay: &mut Option<Arc<Replay>>,
    ) -> Result<KnowledgeResult<Option<Following>>, End> {
        let position = self.cursor.of(project);
        let after = position.commit;
        match self.knowledge.store.recent_changes(project, after, position.epoch) {
            Recent::Nothing => return Ok(Ok(None)),
            Recent::Changes(found) => {
                return Ok(Ok(Some(Following {
                    changes: found.changes,
                    read: None,
                    until: found.until,
                    epoch: position.epoch,
                    is_last: false, // Whether it is costs nothing to see.
                })));
            }
            Recent::Elsewhere => {}
        }
        let readers = self.knowledge.routes().readers;
        let deadline = Deadline::after(QUERY_TIMEOUT);
        let page = match readers.changes(project.clone(), after, replay.take(), deadline).await {
            Ok(page) => page,
            // Shown by `projects`, and without changes until it is migrated.
            Err(KnowledgeError::NeedsMigration { .. }) => return Ok(Ok(None)),
            Err(error) => return Ok(Err(error)),
        };
        if page.forgotten.is_some_and(|forgotten| after < forgotten) {
            // What happened between was closed, and is no longer kept.
            self.cursor.advance(project, page.newest, page.lineage.epoch);
            return Err(End::Lagged { resync: true });
        }
        // Whoever has seen nothing yet gets all of it, whatever the history.
        let of_another_history = after > 0 && position.epoch != page.lineage.epoch;
        if of_another_history || after > page.newest || page.lost {
            // Restored, created again, or of commits that a power cut or a damaged file has taken: what the
            // subscriber has seen need not be there any more.
            self.cursor.advance(project, page.newest, page.lineage.epoch);
            return Err(End::Lagged { resync: true });
        }
        replay.clone_from(&page.replay);
        Ok(Ok(Some(Following {
            changes: page.found.changes,
            read: page.replay.map(|replay| (replay, page.found.places)),
            until: page.found.until,
            epoch: page.lineage.epoch,
            is_last: page.found.until >= page.newest,
        })))
    }

    /// Sends changes, with their texts where these are wanted. The inner error is why not all of them could be read.
    async fn send(
        &mut self,
        project: &ProjectName,
        following: &mut Following,
        subscriber: &impl Subscriber,
        told: &mut Option<(i64, String)>,
    ) -> Result<KnowledgeResult<()>, End> {
        let all = following.changes.len();
        let at_once = if self.with_text { TEXTS_AT_ONCE } else { all.max(1) };
        for first in (0..all).step_by(at_once) {
            let some = first..(first + at_once).min(all);
            if self.with_text
                && let Err(error) = self.read_texts(project, following, some.clone()).await
            {
                return Ok(Err(error));
            }
            for number in some {
                let is_last_of_commit = following
                    .changes
                    .get(number + 1)
                    .is_none_or(|next| next.sequence > following.changes[number].sequence);
                let change = &mut following.changes[number];
                // A commit is passed when its last change is sent: resuming repeats, it never leaves out.
                if is_last_of_commit {
                    self.cursor.advance(project, change.sequence, following.epoch);
                    self.knowledge.keep_short(&mut self.cursor).await;
                }
                let event = Event::Changed {
                    project,
                    change: &*change,
                    cursor: self.cursor.encode(),
                };
                tell(subscriber, event, Some(LAG_PATIENCE)).await?;
                *told = (!is_last_of_commit).then(|| (change.sequence, change.id.clone()));
                // Of those that are sent none is kept.
                change.text = None;
            }
        }
        Ok(Ok(()))
    }

    async fn read_texts(
        &self,
        project: &ProjectName,
        following: &mut Following,
        some: std::ops::Range<usize>,
    ) -> KnowledgeResult<()> {
        if !following.changes[some.clone()].iter().any(Change::has_text) {
            return Ok(());
        }
        let changes = following.changes[some.clone()].to_vec();
        let read = following.read.as_ref();
        let read = read.map(|(replay, places)| (Arc::clone(replay), places[some.clone()].to_vec()));
        let readers = self.knowledge.routes().readers;
        let deadline = Deadline::after(QUERY_TIMEOUT);
        let changes = readers.change_texts(project.clone(), changes, read, deadline).await?;
        for (change, with_text) in following.changes[some].iter_mut().zip(changes) {
            *change = with_text;
        }
        Ok(())
    }
}

impl Following {
    /// Leaves out the changes of a commit up to this item: they are sent.
    fn skip(&mut self, commit: i64, id: &str) {
        let sent = |change: &Change| (change.sequence, change.id.as_str()) <= (commit, id);
        let skipped = self.changes.partition_point(sent);
        self.changes.drain(..skipped);
        if let Some((_, places)) = &mut self.read {
            places.drain(..skipped);
        }
    }
}

/// Gives an event to the subscriber; waits for a place in its queue for as long as `patience` lasts.
async fn tell(subscriber: &impl Subscriber, event: Event<'_>, patience: Option<Duration>) -> Result<(), End> {
    let begun = Instant::now();
    loop {
        match subscriber.take(&event) {
            Ok(()) => return Ok(()),
            Err(NotTaken::Gone) => return Err(End::Gone),
            Err(NotTaken::TooLarge) => {
                tracing::warn!("a change is too large for its subscriber and was left out");
                return Ok(());
            }
            Err(NotTaken::Full) if patience.is_some_and(|patience| begun.elapsed() > patience) => {
                return Err(End::Lagged { resync: false });
            }
            Err(NotTaken::Full) => tokio::time::sleep(FULL_PAUSE).await,
        }
    }
}
