//! The calls of a client.

use jsonrpsee::core::client::ClientT;
use jsonrpsee::core::client::async_client::RpcService;
use jsonrpsee::core::middleware::layer::RpcLogger;
use jsonrpsee::core::middleware::{Batch, Notification as RpcNotification, Request, RpcServiceT};
use jsonrpsee::core::traits::ToRpcParams;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::error::from_jsonrpsee;
use super::feed::next_notification;
use super::{CallOptions, Client, ClientError, MARGIN, Notification};
use crate::api::{self, Method, ProgressNotification, RPC_PROGRESS, method};
use crate::params::{TIMEOUT_MS_MAX, peek_timeout};

impl Client {
    /// Calls `M`.
    ///
    /// # Errors
    /// [`ClientError::Rpc`] with the daemon's error, or why there is no answer.
    pub async fn call<M: Method>(&self, params: &M::Params, options: CallOptions) -> Result<M::Result, ClientError> {
        let raw = with_common(params, &options)?;
        let given = options.timeout;
        let patience = given.unwrap_or_else(|| api::default_timeout(M::NAME, raw.get().len())) + MARGIN;
        let result: Box<RawValue> = self.request(M::NAME, raw, patience).await?;
        serde_json::from_str(result.get()).map_err(|error| ClientError::Unexpected(error.to_string()))
    }

    /// Calls `M`, gives its progress to `progress` as it comes, and cancels it once `cancel` is ready.
    ///
    /// A cancelled call is answered like any other, and the answer decides: the daemon's error `cancelled`,
    /// or the result if that was quicker. Progress may be lost where it comes faster than it is taken.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_watched<M: Method>(
        &self,
        params: &M::Params,
        options: CallOptions,
        cancel: impl Future<Output = ()>,
        mut progress: impl FnMut(ProgressNotification),
    ) -> Result<M::Result, ClientError> {
        let id = Arc::new(OnceLock::new());
        // Listens before it asks, as for a subscription.
        let mut notifications = self.notifications.subscribe();
        let mut tell = |notification: &Notification| {
            if notification.method == RPC_PROGRESS
                && let Ok(of_some_call) = serde_json::from_str::<ProgressNotification>(notification.params.get())
                && id.get() == Some(&of_some_call.request_id)
            {
                progress(of_some_call);
            }
        };
        let call = REQUEST_ID.scope(Arc::clone(&id), self.call::<M>(params, options));
        tokio::pin!(call, cancel);
        let mut cancelled = false;
        let mut listening = true;
        let answer = loop {
            tokio::select! {
                // The call first: it has no id, and is not on its way, before it was polled once.
                biased;
                answer = &mut call => break answer,
                received = next_notification(&mut notifications), if listening => match received {
                    Some(Ok(notification)) => tell(&notification),
                    // Later progress says more than what was lost.
                    Some(Err(_)) => {}
                    None => listening = false,
                },
                () = &mut cancel, if !cancelled => {
                    cancelled = true;
                    if let Some(id) = id.get() {
                        // Fails only with the connection, and then the call does, too.
                        self.notify(method::RPC_CANCEL, serde_json::json!({ "id": id })).await.unwrap_or_default();
                    }
                }
            }
        };
        // What came right before the answer.
        while let Ok(notification) = notifications.try_recv() {
            tell(&notification);
        }
        answer
    }

    /// Calls a method by name with parameters as they are: an object, an array, or null for none.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_raw(&self, method: &str, params: serde_json::Value) -> Result<serde_json::Value, ClientError> {
        let raw = to_raw_value(&params).map_err(|error| ClientError::Unexpected(error.to_string()))?;
        self.call_json(method, raw).await
    }

    /// As [`Client::call_raw`], for parameters that are JSON already: they are sent as they are, a key that stands
    /// there twice included.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_json(&self, method: &str, params: Box<RawValue>) -> Result<serde_json::Value, ClientError> {
        let default = || api::default_timeout(method, params.get().len());
        let patience = peek_timeout(Some(params.get())).unwrap_or_else(default) + MARGIN;
        let result: Box<RawValue> = self.request(method, params, patience).await?;
        serde_json::from_str(result.get()).map_err(|error| ClientError::Unexpected(error.to_string()))
    }

    async fn request(
        &self,
        method: &str,
        params: Box<RawValue>,
        patience: Duration,
    ) -> Result<Box<RawValue>, ClientError> {
        let params = RawParams((params.get() != "null").then_some(params));
        match tokio::time::timeout(patience, self.rpc.request(method, params)).await {
            Ok(result) => result.map_err(from_jsonrpsee),
            Err(_) => Err(ClientError::Timeout { after: patience }),
        }
    }

    /// Sends a notification: a call without an answer.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn notify(&self, method: &str, params: serde_json::Value) -> Result<(), ClientError> {
        let raw = to_raw_value(&params).map_err(|error| ClientError::Unexpected(error.to_string()))?;
        let params = RawParams((raw.get() != "null").then_some(raw));
        self.rpc.notification(method, params).await.map_err(from_jsonrpsee)
    }
}

/// Parameters with the common ones, as raw JSON.
fn with_common<P: Serialize>(params: &P, options: &CallOptions) -> Result<Box<RawValue>, ClientError> {
    #[derive(Serialize)]
    struct WithCommon<'a, P> {
        #[serde(flatten)]
        params: &'a P,
        #[serde(skip_serializing_if = "Option::is_none")]
        project_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        trace_id: Option<&'a str>,
    }
    let timeout_ms = options.timeout.map(|timeout| {
        u64::try_from(timeout.as_millis())
            .unwrap_or(TIMEOUT_MS_MAX)
            .clamp(1, TIMEOUT_MS_MAX)
    });
    to_raw_value(&WithCommon {
        params,
        project_id: options.project_id.as_deref(),
        timeout_ms,
        trace_id: options.trace_id.as_deref(),
    })
    .map_err(|error| ClientError::Unexpected(error.to_string()))
}

tokio::task_local! {
    /// Where [`Client::call_watched`] wants the id of the request that it makes.
    static REQUEST_ID: Arc<OnceLock<serde_json::Value>>;
}

/// What a request passes on its way to the transport.
pub(super) type Service = RpcLogger<NoteId<RpcService>>;

/// Notes the id that jsonrpsee gave to a request where [`REQUEST_ID`] asks for it: jsonrpsee itself does not expose
/// it.
#[derive(Clone, Debug)]
pub(super) struct NoteId<S>(pub(super) S);

impl<S: RpcServiceT + Send + Sync + Clone + 'static> RpcServiceT for NoteId<S> {
    type MethodResponse = S::MethodResponse;
    type NotificationResponse = S::NotificationResponse;
    type BatchResponse = S::BatchResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        if let (Ok(place), Ok(id)) = (REQUEST_ID.try_with(Arc::clone), serde_json::to_value(&request.id)) {
            place.get_or_init(|| id);
        }
        self.0.call(request)
    }

    fn batch<'a>(&self, batch: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        self.0.batch(batch)
    }

    fn notification<'a>(
        &self,
        notification: RpcNotification<'a>,
    ) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        self.0.notification(notification)
    }
}

struct RawParams(Option<Box<RawValue>>);

impl ToRpcParams for RawParams {
    fn to_rpc_params(self) -> Result<Option<Box<RawValue>>, serde_json::Error> {
        Ok(self.0)
    }
}
