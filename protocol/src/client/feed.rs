//! The notifications of a client, and the change feeds made of them.

use futures::Stream;
use serde_json::value::RawValue;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::broadcast;

use super::{CallOptions, Client, ClientError};
use crate::api::{self, Change, ChangedNotification, KNOWLEDGE_CHANGED, SubscribeParams, UnsubscribeParams};

/// A notification that the daemon sent.
#[derive(Clone, Debug)]
pub struct Notification {
    /// Its name.
    pub method: String,
    /// Its parameters, as they came.
    pub params: Box<RawValue>,
}

impl Client {
    /// Every notification from now on, of whatever subscription or call. Ends with the connection.
    pub fn notifications(&self) -> impl Stream<Item = Result<Arc<Notification>, ClientError>> + Send + Unpin + 'static {
        let receiver = self.notifications.subscribe();
        Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
            let item = next_notification(&mut receiver).await?;
            Some((item, receiver))
        }))
    }

    /// Starts the change feed.
    ///
    /// # Errors
    /// As [`Client::call`]; `expired` if the cursor is too old.
    pub async fn subscribe(&self, params: &SubscribeParams, options: CallOptions) -> Result<Subscription, ClientError> {
        // Listens before it asks: the first change may come right behind the answer.
        let receiver = self.notifications.subscribe();
        let answer = self.call::<api::Subscribe>(params, options).await?;
        let id = answer.subscription.clone();
        let changes = futures::stream::unfold((receiver, id), |(mut receiver, id)| async move {
            loop {
                let item = match next_notification(&mut receiver).await? {
                    Err(error) => Err(error),
                    Ok(notification) if notification.method == KNOWLEDGE_CHANGED => {
                        match serde_json::from_str::<ChangedNotification>(notification.params.get()) {
                            Ok(changed) if changed.subscription == id => Ok(changed.result),
                            Ok(_) => continue,
                            Err(error) => Err(ClientError::Unexpected(error.to_string())),
                        }
                    }
                    Ok(_) => continue,
                };
                return Some((item, (receiver, id)));
            }
        });
        Ok(Subscription {
            id: answer.subscription,
            cursor: answer.cursor,
            changes: Box::pin(changes),
        })
    }

    /// Ends a change feed. False if it had ended already.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn unsubscribe(&self, subscription: &Subscription) -> Result<bool, ClientError> {
        let params = UnsubscribeParams {
            subscription: subscription.id.clone(),
        };
        self.call::<api::Unsubscribe>(&params, CallOptions::default()).await
    }
}

pub(super) async fn next_notification(
    receiver: &mut broadcast::Receiver<Arc<Notification>>,
) -> Option<Result<Arc<Notification>, ClientError>> {
    match receiver.recv().await {
        Ok(notification) => Some(Ok(notification)),
        Err(broadcast::error::RecvError::Lagged(missed)) => Some(Err(ClientError::Lagged { missed })),
        Err(broadcast::error::RecvError::Closed) => None,
    }
}

/// A change feed: a stream of changes. Dropping it stops listening; [`Client::unsubscribe`] ends it at the daemon as
/// well.
pub struct Subscription {
    /// Its name on the connection.
    pub id: String,
    /// Where it began.
    pub cursor: String,
    changes: Pin<Box<dyn Stream<Item = Result<Change, ClientError>> + Send>>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Stream for Subscription {
    type Item = Result<Change, ClientError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.changes.as_mut().poll_next(context)
    }
}
