//! The table of the methods that a daemon serves.
//!
//! ```no_run
//! # use ccod_protocol::{Methods, WireError, api};
//! let mut table = Methods::default();
//! table.serve::<api::Unsubscribe, _, _>(|call, context| async move {
//!     Ok::<_, WireError>(context.subscriptions.close(&call.params.subscription))
//! });
//! ```
//!
//! A method is registered with its type: the name, the other names and the decoding of the parameters come from
//! there. Its result is written straight into the bytes that are sent. The result of a read is not written further
//! than an answer may be long; that of a write is, because it says what was done.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

use crate::api::{self, Method, MethodInfo};
use crate::context::{CallContext, single_line};
use crate::error::{Executed, WireError};
use crate::limits::Limits;
use crate::params::{Bounds, Decoded, decode_within};

/// The methods by name.
#[derive(Default)]
pub struct Methods {
    /// Each method under each of its names.
    entries: BTreeMap<&'static str, Arc<Entry>>,
    names: Vec<&'static str>,
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Methods").field("names", &self.names).finish()
    }
}

impl Methods {
    /// Serves `M`. The handler gets the decoded parameters; what cannot be decoded never reaches it.
    ///
    /// # Panics
    /// If one of the names of `M` is served already.
    pub fn serve<M, F, E>(&mut self, handler: impl Fn(Decoded<M::Params>, CallContext) -> F + Send + Sync + 'static)
    where
        M: Method,
        F: Future<Output = Result<M::Result, E>> + Send + 'static,
        E: Into<WireError>,
    {
        self.register::<M, _, _>(move |call, context| {
            handler(call, context).map(|ended| ended.map(|result| (result, None)))
        });
    }

    /// Serves `M`, whose notifications come after its answer. With the result the handler returns a sender: it is sent
    /// to once the answer is queued for the caller, and dropped if the answer is never queued.
    ///
    /// # Panics
    /// As [`Self::serve`].
    pub fn serve_notifying<M, F, E>(
        &mut self,
        handler: impl Fn(Decoded<M::Params>, CallContext) -> F + Send + Sync + 'static,
    ) where
        M: Method,
        F: Future<Output = Result<(M::Result, oneshot::Sender<()>), E>> + Send + 'static,
        E: Into<WireError>,
    {
        self.register::<M, _, _>(move |call, context| {
            handler(call, context).map(|ended| ended.map(|(result, queued)| (result, Some(queued))))
        });
    }

    /// Serves a method that has no type, or with another result than its type's: the handler gets the parameters as
    /// JSON. For tests of what surrounds a method.
    ///
    /// # Panics
    /// If the name is served already.
    pub fn serve_raw<F, T, E>(
        &mut self,
        name: &'static str,
        handler: impl Fn(Option<Box<str>>, CallContext) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: Into<WireError>,
    {
        let handler = Arc::new(handler);
        let handler: Handler = Arc::new(move |params, context, sizes: Sizes| {
            let handler = Arc::clone(&handler);
            let call = async move {
                let result = handler(params, context).await.map_err(Into::into)?;
                Reply::new(&result, None, sizes)
            };
            call.boxed()
        });
        self.insert(name, api::method_info(name).copied(), handler);
        self.names.push(name);
    }

    /// The methods that are served, in the order in which they were registered; not their other names.
    #[must_use]
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Every name that a method answers to.
    pub(crate) fn all_names(&self) -> impl Iterator<Item = &'static str> {
        self.entries.keys().copied()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.get(name)
    }

    /// Registers `M`. With the result its handler may return a sender, as for [`Self::serve_notifying`].
    fn register<M, F, E>(&mut self, handler: impl Fn(Decoded<M::Params>, CallContext) -> F + Send + Sync + 'static)
    where
        M: Method,
        F: Future<Output = Result<(M::Result, Option<oneshot::Sender<()>>), E>> + Send + 'static,
        E: Into<WireError>,
    {
        let handler = Arc::new(handler);
        let handler: Handler = Arc::new(move |params, context, sizes: Sizes| {
            let handler = Arc::clone(&handler);
            let call = async move {
                let decoded = decode_within::<M>(params.as_deref(), sizes.bounds)?;
                let (result, queued) = handler(decoded, context).await.map_err(Into::into)?;
                Reply::new(&result, queued, sizes)
            };
            call.boxed()
        });
        for name in std::iter::once(&M::NAME).chain(M::OTHER_NAMES) {
            self.insert(name, Some(MethodInfo::of::<M>()), Arc::clone(&handler));
        }
        self.names.push(M::NAME);
    }

    fn insert(&mut self, name: &'static str, info: Option<MethodInfo>, handler: Handler) {
        let entry = Arc::new(Entry { name, info, handler });
        let before = self.entries.insert(name, entry);
        assert!(before.is_none(), "`{name}` is registered twice");
    }
}

/// Everything a handler does is inside the future, the work before its first await as well, so that a panic of it is
/// caught with the future.
type Handler =
    Arc<dyn Fn(Option<Box<str>>, CallContext, Sizes) -> BoxFuture<'static, Result<Reply, WireError>> + Send + Sync>;

/// A method under one of its names.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// None for a method that the contract does not know.
    info: Option<MethodInfo>,
    handler: Handler,
}

impl Entry {
    /// How long a call without `timeout_ms` may take that has this many bytes of parameters.
    pub(crate) fn default_timeout(&self, params_bytes: usize) -> Duration {
        match &self.info {
            Some(info) => info.default_timeout(params_bytes),
            None => Duration::from_millis(api::UNKNOWN_METHOD_TIMEOUT_MS),
        }
    }

    /// Whether it is served when everything is in use: see [`Method::OPERATOR`].
    pub(crate) fn is_operators(&self) -> bool {
        self.info.is_some_and(|info| info.operator)
    }

    /// Whether it may change what is stored.
    pub(crate) fn writes(&self) -> bool {
        // A method that no row names might do anything.
        self.info.is_none_or(|info| info.writes)
    }

    /// Calls the method.
    ///
    /// # Errors
    /// What the handler says, -32602 for parameters that cannot be decoded, -32008 for the result of a read that is
    /// longer than `limits` allow.
    pub(crate) fn call(
        &self,
        params: Option<Box<str>>,
        context: CallContext,
        limits: &Limits,
    ) -> BoxFuture<'static, Result<Reply, WireError>> {
        let sizes = Sizes {
            bounds: Bounds::from(limits),
            limit: limits.max_response_bytes,
            writes: self.writes(),
        };
        (self.handler)(params, context, sizes)
    }
}

/// How large the parameters and the result of a call may be.
#[derive(Clone, Copy)]
struct Sizes {
    bounds: Bounds,
    /// See [`Limits::max_response_bytes`].
    limit: usize,
    /// Whether the result is written whatever its size.
    writes: bool,
}

/// What is around a result in a line whose id is one digit.
const ENVELOPE_BYTES: usize = r#"{"jsonrpc":"2.0","id":0,"result":}"#.len();

/// What a method answers.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The result, on one line.
    pub(crate) json: Bytes,
    /// Sent to once the answer is queued for the caller.
    pub(crate) queued: Option<oneshot::Sender<()>>,
}

impl Reply {
    fn new<T: Serialize>(result: &T, queued: Option<oneshot::Sender<()>>, sizes: Sizes) -> Result<Self, WireError> {
        let most = match sizes.writes {
            true => usize::MAX,
            false => sizes.limit.saturating_sub(ENVELOPE_BYTES),
        };
        let mut json = UpTo { json: Vec::new(), most };
        match serde_json::to_writer(&mut json, result) {
            Ok(()) => {
                // It is held until it is sent, so the spare capacity of the buffer is freed.
                json.json.shrink_to_fit();
                let json = single_line(json.json);
                Ok(Self { json, queued })
            }
            Err(error) if error.is_io() => Err(WireError::response_too_large(sizes.limit)),
            Err(_) => {
                let error = WireError::internal("the result cannot be written as JSON");
                Err(match sizes.writes {
                    true => error.with_executed(Executed::Yes),
                    false => error,
                })
            }
        }
    }

    /// Whether it is longer than an answer may be.
    pub(crate) fn is_too_large(&self, limit_bytes: usize) -> bool {
        self.json.len() + ENVELOPE_BYTES > limit_bytes
    }
}

/// JSON that is written, up to a length.
struct UpTo {
    json: Vec<u8>,
    most: usize,
}

impl io::Write for UpTo {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.json.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.json.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn limits() -> Limits {
        Limits {
            max_response_bytes: 1024,
            ..Limits::default()
        }
    }

    async fn call(methods: &Methods, name: &str, params: &str) -> Result<Reply, WireError> {
        let context = CallContext::detached(Duration::from_secs(60));
        let entry = methods.get(name).expect("it is served");
        entry.call(Some(params.into()), context, &limits()).await
    }

    #[tokio::test]
    async fn a_method_answers_to_all_of_its_names_and_is_listed_once() {
        let mut methods = Methods::default();
        methods.serve::<api::Unsubscribe, _, _>(|call, _| async move {
            Ok::<_, WireError>(call.params.subscription == "sub-1")
        });
        methods.serve::<api::Version, _, _>(|_, _| async move { Err(WireError::not_found("x")) });
        methods.serve_raw("test.raw", |params, _| async move { Ok::<_, WireError>(params) });
        assert_eq!(
            methods.names(),
            [api::Unsubscribe::NAME, api::Version::NAME, "test.raw"]
        );
        for name in std::iter::once(&api::Version::NAME).chain(api::Version::OTHER_NAMES) {
            assert_eq!(
                call(&methods, name, "{}").await.unwrap_err().kind(),
                ErrorKind::NotFound
            );
        }
        let raw = call(&methods, "test.raw", "[1]").await.unwrap();
        assert_eq!(raw.json, "\"[1]\"");
        let closed = call(&methods, api::Unsubscribe::NAME, r#"{"subscription":"sub-1"}"#).await;
        assert_eq!(closed.unwrap().json, "true");
        let misspelled = call(&methods, api::Unsubscribe::NAME, r#"{"subscripton":"sub-1"}"#).await;
        assert_eq!(misspelled.unwrap_err().kind(), ErrorKind::InvalidParams);
    }

    #[test]
    #[should_panic(expected = "`rpc.version` is registered twice")]
    fn no_name_is_served_twice() {
        let mut methods = Methods::default();
        for _ in 0..2 {
            methods.serve_raw(api::Version::NAME, |_, _| async move { Ok::<_, WireError>(()) });
        }
    }

    #[tokio::test]
    async fn the_result_of_a_read_is_not_written_further_than_it_may_be_long() {
        /// A list that counts how many of its elements were written.
        struct Endless(Arc<std::sync::atomic::AtomicUsize>);

        impl Serialize for Endless {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let written = Arc::clone(&self.0);
                serializer.collect_seq((0..1_000_000).inspect(move |_| {
                    written.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }))
            }
        }

        let written = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut methods = Methods::default();
        for name in [api::Stats::NAME, api::Delete::NAME] {
            let written = Arc::clone(&written);
            methods.serve_raw(name, move |_, _| {
                let list = Endless(Arc::clone(&written));
                async move { Ok::<_, WireError>(list) }
            });
        }
        let read = call(&methods, api::Stats::NAME, "{}").await.unwrap_err();
        assert_eq!(
            (read.kind(), &read.data.extra["limit_bytes"]),
            (ErrorKind::ResponseTooLarge, &1024.into())
        );
        assert!(written.load(std::sync::atomic::Ordering::Relaxed) < 1024);
        let write = call(&methods, api::Delete::NAME, "{}").await.unwrap();
        assert!(write.is_too_large(1024) && write.json.ends_with(b",999999]"));
    }

    #[tokio::test]
    async fn a_result_fits_to_the_byte() {
        let mut methods = Methods::default();
        methods.serve_raw(api::Stats::NAME, |params, _| async move {
            let length: usize = params.unwrap_or_default().parse().unwrap_or_default();
            Ok::<_, WireError>("x".repeat(length))
        });
        let longest = 1024 - ENVELOPE_BYTES - 2;
        let fits = call(&methods, api::Stats::NAME, &longest.to_string()).await.unwrap();
        assert!(!fits.is_too_large(1024) && fits.is_too_large(1023));
        let longer = call(&methods, api::Stats::NAME, &(longest + 1).to_string()).await;
        assert_eq!(longer.unwrap_err().kind(), ErrorKind::ResponseTooLarge);
    }

    #[tokio::test]
    async fn a_result_that_is_no_json_is_a_fault_of_the_daemon() {
        let mut methods = Methods::default();
        for name in [api::Stats::NAME, api::Delete::NAME] {
            methods.serve_raw(name, |_, _| async move {
                Ok::<_, WireError>(BTreeMap::from([([1_u8, 2], 3)]))
            });
        }
        let read = call(&methods, api::Stats::NAME, "{}").await.unwrap_err();
        assert_eq!((read.kind(), read.data.executed), (ErrorKind::InternalError, None));
        let write = call(&methods, api::Delete::NAME, "{}").await.unwrap_err();
        assert_eq!(write.data.executed, Some(Executed::Yes));
    }
}
