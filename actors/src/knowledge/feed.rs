//! What changes in projects, told to whoever subscribes.
//!
//! A subscription pulls: it waits until some view is published, asks the readers what changed after its cursor, and gives
//! the changes to its subscriber, who keeps them in a bounded queue. So nothing is buffered for a slow subscriber, the
//! writer never waits for one, and the replay after a restart is the same thing as the live feed. A subscriber that takes
//! nothing for [`LAG_PATIENCE`] gets one [`Event::Lagged`] with the cursor to resume from, and its feed ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Knowledge;
use crate::deadline::Deadline;
use crate::domain::{ProjectName, hex, unhex};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::Lineage;
use crate::store::view::changes::Change;

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

/// Where a feed stands: the newest commit that was sent, of each project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cursor(BTreeMap<String, Position>);

/// Where a feed stands in one project: at a commit of one of its histories ([`Lineage::epoch`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    commit: i64,
    epoch: i64,
}

impl Cursor {
    /// Opaque to callers: hexadecimal of `<project>/<commit>` lines, with `/<epoch>` where a project was restored.
    fn encode(&self) -> String {
        let plain: Vec<String> = self
            .0
            .iter()
            .map(|(project, position)| match position {
                Position { commit, epoch: 0 } => format!("{project}/{commit}"),
                Position { commit, epoch } => format!("{project}/{commit}/{epoch}"),
            })
            .collect();
        // Of a daemon without projects it is a cursor too, and no empty one: an empty one is what somebody has who has
        // lost it.
        let plain = if plain.is_empty() {
            "\n".to_owned()
        } else {
            plain.join("\n")
        };
        hex(plain.as_bytes())
    }

    fn decode(text: &str) -> Option<Self> {
        let plain = String::from_utf8(unhex(text)?).ok()?;
        plain
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| {
                let mut parts = line.split('/');
                let project = parts.next()?.to_owned();
                let position = Position {
                    commit: parts.next()?.parse().ok()?,
                    epoch: parts.next().map_or(Some(0), |epoch| epoch.parse().ok())?,
                };
                parts.next().is_none().then_some((project, position))
            })
            .collect::<Option<_>>()
            .map(Self)
    }

    fn of(&self, project: &ProjectName) -> Position {
        self.0.get(project.as_str()).copied().unwrap_or_default()
    }

    fn advance(&mut self, project: &ProjectName, commit: i64, lineage: Lineage) {
        let position = Position {
            commit,
            epoch: lineage.epoch,
        };
        self.0.insert(project.to_string(), position);
    }
}

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
    scope: Scope,
    cursor: Cursor,
    publications: watch::Receiver<u64>,
    /// Projects that could not be read, and when they are tried again. The others go on.
    postponed: BTreeMap<ProjectName, Postponed>,
}

impl Knowledge {
    /// A feed of what follows `cursor`, or of what changes from now on.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] for a cursor that is none. Those of the store, for a feed of one project.
    pub async fn feed(&self, scope: Scope, cursor: Option<&str>) -> KnowledgeResult<Feed> {
        // Taken before the present is looked at, so that nothing falls between the two.
        let publications = self.store.publications();
        let cursor = match cursor {
            Some(text) => Cursor::decode(text).ok_or_else(|| {
                KnowledgeError::invalid(
                    "cursor",
                    "`cursor` must be one that a feed has given; leave it out to begin now",
                )
            })?,
            None => self.present(&scope).await?,
        };
        Ok(Feed {
            knowledge: self.clone(),
            scope,
            cursor,
            publications,
            postponed: BTreeMap::new(),
        })
    }

    async fn present(&self, scope: &Scope) -> KnowledgeResult<Cursor> {
        let mut cursor = Cursor::default();
        for project in self.projects_of(scope) {
            let view = match self.store.view_or_empty(&project).await {
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
                let lineage = self.store.lineage(&project)?;
                cursor.advance(&project, view.sequence(), lineage);
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
        let end = tokio::select! {
            () = ended.cancelled() => return,
            end = self.follow(subscriber) => end,
        };
        if let End::Lagged { resync } = end {
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
            self.publications.borrow_and_update();
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
                changed = self.publications.changed() => if changed.is_err() {
                    return End::Gone; // The store is gone: the daemon stops.
                },
                () = retry => {}
            }
        }
    }

    /// Sends everything up to the present of each project that can be read.
    async fn catch_up(&mut self, subscriber: &impl Subscriber) -> Result<(), End> {
        for project in self.knowledge.projects_of(&self.scope) {
            let before = self.postponed.get(&project);
            if before.is_some_and(|postponed| Instant::now() < postponed.until) {
                continue;
            }
            match self.catch_up_with(&project, subscriber).await? {
                Turn::Done => {
                    self.postponed.remove(&project);
                }
                Turn::Failed(error) => {
                    tracing::debug!(%project, %error, "the feed tries again");
                    let before = self.postponed.get(&project);
                    let pause = before.map_or(RETRY_PAUSE, |before| (before.pause * 2).min(LONGEST_RETRY_PAUSE));
                    let until = Instant::now() + pause;
                    self.postponed.insert(project, Postponed { until, pause });
                }
            }
        }
        Ok(())
    }

    /// Sends everything up to the present of one project.
    async fn catch_up_with(&mut self, project: &ProjectName, subscriber: &impl Subscriber) -> Result<Turn, End> {
        loop {
            let position = self.cursor.of(project);
            let after = position.commit;
            // Of all projects one has changed, mostly: the others take no reader's time.
            if self.knowledge.store.stands_at(project, after, position.epoch) {
                return Ok(Turn::Done);
            }
            let readers = self.knowledge.routes().readers;
            let page = match readers
                .changes(project.clone(), after, Deadline::after(QUERY_TIMEOUT))
                .await
            {
                Ok(page) => page,
                // Shown by `projects`, and without changes until it is migrated.
                Err(KnowledgeError::NeedsMigration { .. }) => return Ok(Turn::Done),
                Err(error) => return Ok(Turn::Failed(error)),
            };
            if page.forgotten.is_some_and(|forgotten| after < forgotten) {
                // What happened between was closed, and is no longer kept.
                self.cursor.advance(project, page.newest, page.lineage);
                return Err(End::Lagged { resync: true });
            }
            // Whoever has seen nothing yet gets all of it, whatever the history.
            let of_another_history = after > 0 && position.epoch != page.lineage.epoch;
            if of_another_history || after > page.newest || page.lost {
                // Restored, created again, or of commits that a power cut or a damaged file has taken: what the
                // subscriber has seen need not be there any more.
                self.cursor.advance(project, page.newest, page.lineage);
                return Err(End::Lagged { resync: true });
            }
            let mut changes = page.changes.into_iter().peekable();
            while let Some(change) = changes.next() {
                // A commit is passed when its last change is sent: resuming repeats, it never leaves out.
                if changes.peek().is_none_or(|next| next.sequence > change.sequence) {
                    self.cursor.advance(project, change.sequence, page.lineage);
                }
                let event = Event::Changed {
                    project,
                    change: &change,
                    cursor: self.cursor.encode(),
                };
                tell(subscriber, event, Some(LAG_PATIENCE)).await?;
            }
            self.cursor.advance(project, page.until.max(after), page.lineage);
            if page.until >= page.newest {
                return Ok(Turn::Done);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_the_wire() {
        let mut cursor = Cursor::default();
        assert!(!cursor.encode().is_empty());
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor.clone()));
        for (project, commit) in [("default", 7), ("a.b-c_d", i64::MAX)] {
            cursor.advance(
                &ProjectName::parse(project, "project_id").unwrap(),
                commit,
                Lineage::default(),
            );
        }
        let restored = Lineage {
            epoch: 1_795_362_864_593,
            sequence: 3,
        };
        cursor.advance(&ProjectName::parse("web", "project_id").unwrap(), 9, restored);
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        for bad in ["zz", "616", "ä", "6161"] {
            assert_eq!(Cursor::decode(bad), None, "{bad}");
        }
    }
}
