//! The actor itself.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::message::{EmbedderArgs, EmbedderMessage, send};
use super::state::EmbedderActorState;
use crate::embedder::engine::EngineThread;
use crate::error::PartFailure;

/// The embedder actor. Spawned by the supervisor:
/// `Actor::spawn_linked(None, Embedder, EmbedderArgs { config, model }, supervisor_cell)`.
#[derive(Debug)]
pub struct Embedder;

impl Actor for Embedder {
    type Msg = EmbedderMessage;
    type State = EmbedderActorState;
    type Arguments = EmbedderArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        fail::fail_point!("embedder::pre_start", |message: Option<String>| {
            Err(PartFailure::new(message.unwrap_or_default()).into())
        });
        let EmbedderArgs { config, model } = args;
        let reports_to = myself.clone();
        let engine = EngineThread::spawn(Arc::clone(&model), config.unload_after, move |report| {
            // A failed send means that the actor is gone, and with it everybody who waited for this batch.
            if reports_to.cast(EmbedderMessage::BatchFinished(report)).is_err() {
                tracing::debug!("a batch finished after its actor had stopped");
            }
        })
        .map_err(PartFailure::new)?;
        let mut state = EmbedderActorState::new(model, engine, &config);
        if config.warm {
            state.submit(Vec::new(), Vec::new())?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            EmbedderMessage::Embed {
                texts,
                lane,
                origin,
                deadline,
                permit,
                reply,
            } => {
                state.accept(texts, lane, origin, deadline, permit, reply);
                state.run_next()
            }
            EmbedderMessage::BatchFinished(report) => {
                state.finish(report)?;
                state.run_next()
            }
            EmbedderMessage::Drain(reply) => {
                state.draining = true;
                state.planner.start_draining();
                state.drains.push(reply);
                state.run_next()
            }
            EmbedderMessage::Stats(reply) => {
                send(reply, state.stats());
                Ok(())
            }
        }
    }
}
