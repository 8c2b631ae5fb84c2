//! `knowledge.subscribe`: the change feed.
//!
//! A subscription pulls: it waits until some view is published, asks the readers what changed after its
//! cursor, and puts the changes into the connection's bounded queue. So nothing is buffered for a slow
//! subscriber, the writer never waits for one, and the replay after a restart is the same thing as the live
//! feed. A subscriber that does not read for [`LAG_PATIENCE`] gets one `lagged` with the cursor to resume from,
//! and its subscription ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::{ProjectName, format_time, hex, unhex};
use ccod_actors::error::KnowledgeError;
use ccod_actors::store::Lineage;
use ccod_actors::store::view::changes::{Change, ChangeKind};
use ccod_protocol::api::{self, ChangeOp, ChangedNotification, KNOWLEDGE_CHANGED};
use ccod_protocol::context::{Notifier, NotifyError, Subscriptions};
use ccod_protocol::error::WireError;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{App, Call, Failure, convert};

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

/// One project, or all of them.
#[derive(Clone, Debug)]
enum Scope {
    One(ProjectName),
    Every,
}

impl Scope {
    fn projects(&self, app: &App) -> Vec<ProjectName> {
        match self {
            Self::One(project) => vec![project.clone()],
            Self::Every => app
                .store
                .projects()
                .iter()
                .map(|project| project.name().clone())
                .collect(),
        }
    }
}

/// Opens a feed on the caller's connection. It begins when the sender is told, which is once the answer has its place
/// among the lines that go out: a subscriber learns the id of its subscription before the first change.
pub(crate) async fn subscribe(
    app: Arc<App>,
    call: Call<api::Subscribe>,
) -> Result<(api::SubscribeResult, oneshot::Sender<()>), Failure> {
    let scope = if call.every_project {
        Scope::Every
    } else {
        Scope::One(call.project())
    };
    // Taken before the present is looked at, so that nothing falls between the two.
    let publications = app.store.publications();
    let mut cursor = Cursor::default();
    match &call.params.cursor {
        Some(text) => {
            cursor = Cursor::decode(text).ok_or_else(|| {
                WireError::invalid_params(
                    "cursor",
                    "`cursor` must be one that a feed has given; leave it out to begin now",
                )
            })?;
        }
        None => {
            for project in scope.projects(&app) {
                let view = match app.store.view_or_empty(&project).await {
                    Ok(view) => view,
                    // What one project has must not keep the others from being told of. Once it can be read, all of it
                    // is told.
                    Err(error) if matches!(scope, Scope::Every) => {
                        tracing::warn!(%project, %error, "a feed begins without a project");
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
                if let Some(view) = view {
                    let lineage = app.store.lineage(&project)?;
                    cursor.advance(&project, view.sequence(), lineage);
                }
            }
        }
    }
    let (subscription, ended) = call.context.subscriptions.open()?;
    let result = api::SubscribeResult {
        subscription: subscription.clone(),
        cursor: cursor.encode(),
    };
    let feed = Feed {
        app: Arc::clone(&app),
        scope,
        cursor,
        with_text: call.params.with_text,
        subscription,
        notifier: call.context.notifier.clone(),
        ended,
        postponed: BTreeMap::new(),
    };
    let (queued, answered) = oneshot::channel();
    feed.begin_after(answered, publications, call.context.subscriptions.clone());
    Ok((result, queued))
}

/// Ends a feed.
pub(crate) async fn unsubscribe(_app: Arc<App>, call: Call<api::Unsubscribe>) -> Result<bool, Failure> {
    if call.context.subscriptions.close(&call.params.subscription) {
        Ok(true)
    } else {
        Err(WireError::invalid_params(
            "subscription",
            "`subscription` must be one of this connection that has not ended",
        )
        .into())
    }
}

struct Feed {
    app: Arc<App>,
    scope: Scope,
    cursor: Cursor,
    with_text: bool,
    subscription: String,
    notifier: Notifier,
    ended: CancellationToken,
    /// Projects that could not be read, and when they are tried again. The others go on meanwhile.
    postponed: BTreeMap<ProjectName, Postponed>,
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
    /// Runs the feed once `answered`, or drops it where there is no answer: then nobody knows of it.
    fn begin_after(
        self,
        answered: oneshot::Receiver<()>,
        publications: watch::Receiver<u64>,
        subscriptions: Subscriptions,
    ) {
        tokio::spawn(async move {
            let subscription = self.subscription.clone();
            if answered.await.is_ok() {
                self.run(publications).await;
            }
            // Already gone where the subscriber ended it.
            let _was_open = subscriptions.close(&subscription);
        });
    }

    async fn run(mut self, mut publications: watch::Receiver<u64>) {
        let ended = self.ended.clone();
        let work = async {
            loop {
                publications.borrow_and_update();
                self.catch_up().await?;
                let retry = self.postponed.values().map(|postponed| postponed.until).min();
                let retry = async {
                    match retry {
                        Some(until) => tokio::time::sleep_until(until.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = publications.changed() => if changed.is_err() {
                        return Err::<(), End>(End::Gone); // The store is gone: the daemon stops.
                    },
                    () = retry => {}
                }
            }
        };
        let end = tokio::select! {
            () = ended.cancelled() => return,
            result = work => result.err().unwrap_or(End::Gone),
        };
        if let End::Lagged { resync } = end {
            let change = api::Change {
                cursor: self.cursor.encode(),
                op: ChangeOp::Lagged,
                id: None,
                project_id: None,
                knowledge_type: None,
                agent: None,
                text: None,
                version: None,
                timestamp: None,
                resync,
            };
            tokio::select! {
                () = ended.cancelled() => {}
                _ = self.send(change, None) => {}
            }
        }
    }

    /// Sends everything up to the present of each project that can be read.
    async fn catch_up(&mut self) -> Result<(), End> {
        for project in self.scope.projects(&self.app) {
            let before = self.postponed.get(&project);
            if before.is_some_and(|postponed| Instant::now() < postponed.until) {
                continue;
            }
            match self.catch_up_with(&project).await? {
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
    async fn catch_up_with(&mut self, project: &ProjectName) -> Result<Turn, End> {
        loop {
            let position = self.cursor.of(project);
            let after = position.commit;
            // Of all projects one has changed, mostly: the others take no reader's time.
            if self.app.store.stands_at(project, after, position.epoch) {
                return Ok(Turn::Done);
            }
            let readers = self.app.routes().readers;
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
                // Restored, made anew, or of commits that a power cut or a damaged file has taken: what the
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
                let change = self.wire_change(project, change);
                self.send(change, Some(LAG_PATIENCE)).await?;
            }
            self.cursor.advance(project, page.until.max(after), page.lineage);
            if page.until >= page.newest {
                return Ok(Turn::Done);
            }
        }
    }

    fn wire_change(&self, project: &ProjectName, change: Change) -> api::Change {
        let gone = change.kind == ChangeKind::Purge;
        api::Change {
            cursor: self.cursor.encode(),
            op: match change.kind {
                ChangeKind::Store => ChangeOp::Store,
                ChangeKind::Update => ChangeOp::Update,
                ChangeKind::Delete => ChangeOp::Delete,
                ChangeKind::Undelete => ChangeOp::Undelete,
                ChangeKind::Purge => ChangeOp::Purge,
            },
            id: Some(change.stored.item.id),
            project_id: Some(project.to_string()),
            knowledge_type: (!gone).then_some(change.stored.item.knowledge_type),
            agent: change.stored.item.agent,
            text: (self.with_text && !gone && change.kind != ChangeKind::Delete).then_some(change.stored.item.text),
            version: Some(convert::version(change.sequence)),
            timestamp: Some(format_time(change.stored.item.updated_at)),
            resync: false,
        }
    }

    /// Puts a change into the connection's queue; waits for room for as long as `patience` lasts.
    async fn send(&self, change: api::Change, patience: Option<Duration>) -> Result<(), End> {
        let notification = ChangedNotification {
            subscription: self.subscription.clone(),
            result: change,
        };
        let begun = Instant::now();
        loop {
            match self.notifier.notify(KNOWLEDGE_CHANGED, &notification) {
                Ok(()) => return Ok(()),
                Err(NotifyError::Closed) => return Err(End::Gone),
                Err(NotifyError::Unwritable) => {
                    tracing::warn!(
                        subscription = self.subscription,
                        "a change is over the response limit and was left out"
                    );
                    return Ok(());
                }
                Err(NotifyError::Full) if patience.is_some_and(|patience| begun.elapsed() > patience) => {
                    return Err(End::Lagged { resync: false });
                }
                Err(NotifyError::Full) => tokio::time::sleep(FULL_PAUSE).await,
            }
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
