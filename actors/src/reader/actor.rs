//! One reader.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::job::ReadJob;
use crate::store::Store;

/// Runs one query at a time.
pub struct Reader;

impl Actor for Reader {
    type Msg = ReadJob;
    type State = Arc<Store>;
    type Arguments = Arc<Store>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        store: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        fail::fail_point!("reader::pre_start", |_| Err(crate::error::PartFailure::new(
            "failpoint reader::pre_start"
        )
        .into()));
        Ok(store)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        job: Self::Msg,
        store: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        fail::fail_point!("reader::handle");
        job.run(Arc::clone(store)).await;
        Ok(())
    }
}
