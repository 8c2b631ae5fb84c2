//! The methods that the daemon serves: a line for each.

use std::sync::Arc;

use ccod_protocol::api::{self, Method};
use ccod_protocol::error::WireError;
use ccod_protocol::methods::Methods;
use tokio::sync::oneshot;

use super::{App, Call, admin, data, feed, items, life, search};

/// The methods that the daemon serves. One that is not among them answers -32601.
pub(crate) fn methods(app: App) -> Methods {
    let mut table = Table {
        methods: Methods::default(),
        app: Arc::new(app),
    };
    table.serve::<api::Store, _, _>(items::store);
    table.serve::<api::StoreBatch, _, _>(items::store_batch);
    table.serve::<api::Search, _, _>(search::search);
    table.serve::<api::List, _, _>(items::list);
    table.serve::<api::Get, _, _>(items::get);
    table.serve::<api::Update, _, _>(life::update);
    table.serve::<api::History, _, _>(life::history);
    table.serve::<api::Delete, _, _>(life::delete);
    table.serve::<api::Undelete, _, _>(life::undelete);
    table.serve::<api::Purge, _, _>(life::purge);
    table.serve::<api::Cleanup, _, _>(life::cleanup);
    table.serve::<api::Similar, _, _>(search::similar);
    table.serve::<api::Stats, _, _>(items::stats);
    table.serve::<api::Projects, _, _>(items::projects);
    table.serve_notifying::<api::Subscribe, _, _>(feed::subscribe);
    table.serve::<api::Unsubscribe, _, _>(feed::unsubscribe);
    table.serve::<api::Embed, _, _>(search::embed);
    table.serve::<api::Health, _, _>(admin::health);
    table.serve::<api::Status, _, _>(admin::status);
    table.serve::<api::Metrics, _, _>(admin::metrics);
    table.serve::<api::Optimize, _, _>(admin::optimize);
    table.serve::<api::Backup, _, _>(data::backup);
    table.serve::<api::Restore, _, _>(data::restore);
    table.serve::<api::Import, _, _>(data::import);
    table.serve::<api::Export, _, _>(data::export);
    table.serve::<api::Verify, _, _>(data::verify);
    table.serve::<api::Shutdown, _, _>(admin::shutdown);
    table.serve::<api::Version, _, _>(admin::version);
    table.serve::<api::Discover, _, _>(admin::discover);
    // Only here is the list complete; no call has been served yet.
    table.app.served.get_or_init(|| table.methods.names().to_vec());
    table.methods
}

/// The methods, with what their handlers can reach.
struct Table {
    methods: Methods,
    app: Arc<App>,
}

impl Table {
    fn serve<M, F, E>(&mut self, handler: fn(Arc<App>, Call<M>) -> F)
    where
        M: Method,
        F: Future<Output = Result<M::Result, E>> + Send + 'static,
        E: Into<WireError>,
    {
        let app = Arc::clone(&self.app);
        self.methods.serve::<M, _, _>(move |decoded, context| {
            let app = Arc::clone(&app);
            async move {
                let ended = handler(app, Call::of(decoded, context)?).await;
                ended.map_err(Into::<WireError>::into)
            }
        });
    }

    /// As [`Self::serve`], for a method whose notifications come after its answer.
    fn serve_notifying<M, F, E>(&mut self, handler: fn(Arc<App>, Call<M>) -> F)
    where
        M: Method,
        F: Future<Output = Result<(M::Result, oneshot::Sender<()>), E>> + Send + 'static,
        E: Into<WireError>,
    {
        let app = Arc::clone(&self.app);
        self.methods.serve_notifying::<M, _, _>(move |decoded, context| {
            let app = Arc::clone(&app);
            async move {
                let ended = handler(app, Call::of(decoded, context)?).await;
                ended.map_err(Into::<WireError>::into)
            }
        });
    }
}
