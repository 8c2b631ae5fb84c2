//! `knowledge.subscribe` and `unsubscribe`: the change feed.

use std::sync::Arc;

use ccod_actors::domain::format_time;
use ccod_actors::knowledge::feed::{Event, NotTaken, Scope, Subscriber};
use ccod_actors::store::view::changes::ChangeKind;
use ccod_protocol::api::{self, ChangeOp, ChangedNotification, KNOWLEDGE_CHANGED};
use ccod_protocol::context::{Notifier, NotifyError};
use ccod_protocol::error::WireError;
use tokio::sync::oneshot;

use super::{App, Call, Failure, convert};

/// Opens a feed on the caller's connection. It begins once the answer has its place among the lines that go out: a
/// subscriber learns the id of its subscription before the first change.
pub(crate) async fn subscribe(
    app: Arc<App>,
    call: Call<api::Subscribe>,
) -> Result<(api::SubscribeResult, oneshot::Sender<()>), Failure> {
    let scope = if call.every_project {
        Scope::Every
    } else {
        Scope::One(call.project())
    };
    let feed = app
        .knowledge
        .feed(scope, call.params.cursor.as_deref(), call.params.with_text)
        .await?;
    let (subscription, ended) = call.context.subscriptions.open()?;
    let result = api::SubscribeResult {
        subscription: subscription.clone(),
        cursor: feed.cursor(),
    };
    let connection = Connection {
        subscription,
        notifier: call.context.notifier.clone(),
    };
    let subscriptions = call.context.subscriptions.clone();
    let (queued, answered) = oneshot::channel();
    tokio::spawn(async move {
        // Without an answer nobody knows of the feed.
        if answered.await.is_ok() {
            feed.run(&connection, &ended).await;
        }
        // Where the subscriber has ended the feed, it is gone already.
        let _was_open = subscriptions.close(&connection.subscription);
    });
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

/// A subscriber: the connection that has asked.
struct Connection {
    subscription: String,
    notifier: Notifier,
}

impl Subscriber for Connection {
    fn take(&self, event: &Event<'_>) -> Result<(), NotTaken> {
        let notification = ChangedNotification {
            subscription: self.subscription.clone(),
            result: wire_change(event),
        };
        let taken = self.notifier.notify(KNOWLEDGE_CHANGED, &notification);
        taken.map_err(|error| match error {
            NotifyError::Closed => NotTaken::Gone,
            NotifyError::Unwritable => NotTaken::TooLarge,
            NotifyError::Full => NotTaken::Full,
        })
    }
}

fn wire_change(event: &Event<'_>) -> api::Change {
    match event {
        Event::Lagged { cursor, resync } => api::Change {
            cursor: cursor.clone(),
            op: ChangeOp::Lagged,
            id: None,
            project_id: None,
            knowledge_type: None,
            agent: None,
            text: None,
            version: None,
            timestamp: None,
            resync: *resync,
        },
        Event::Changed {
            project,
            change,
            cursor,
        } => {
            let gone = change.kind == ChangeKind::Purge;
            api::Change {
                cursor: cursor.clone(),
                op: match change.kind {
                    ChangeKind::Store => ChangeOp::Store,
                    ChangeKind::Update => ChangeOp::Update,
                    ChangeKind::Delete => ChangeOp::Delete,
                    ChangeKind::Undelete => ChangeOp::Undelete,
                    ChangeKind::Purge => ChangeOp::Purge,
                },
                id: Some(change.id.clone()),
                project_id: Some(project.to_string()),
                knowledge_type: (!gone).then_some(change.knowledge_type),
                agent: change.agent.clone(),
                text: change.text.clone(),
                version: Some(convert::version(change.sequence)),
                timestamp: Some(format_time(change.updated_at)),
                resync: false,
            }
        }
    }
}
