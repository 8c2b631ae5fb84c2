//! Where requests go: the present actors, as the supervisor last published them.
//!
//! The supervisor is not on the request path. A handler takes the routes from a `watch` channel, finds the
//! part that it needs, or the reason why it is away.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::embedder::EmbedderHandle;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::reader::ReaderPool;
use crate::writer::WriterHandle;

/// State of one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum PartState {
    /// At work.
    Running,
    /// Failed a moment ago; it will soon be back.
    Restarting {
        /// The failure.
        reason: String,
    },
    /// Failed too often; tried again once in a while.
    Degraded {
        /// The first failure of the series: the later ones may be its consequences.
        reason: String,
    },
    /// Ended by a shutdown.
    Stopped,
}

/// State and history of one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartStatus {
    /// State.
    #[serde(flatten)]
    pub state: PartState,
    /// Restarts since the daemon started.
    pub restarts: u64,
    /// Whether it has been at work since the daemon started.
    pub has_run: bool,
}

/// The present actors. Cheap to clone.
#[derive(Clone)]
pub struct Routes {
    /// The writer, unless it is away.
    pub writer: Option<WriterHandle>,
    /// The embedder, unless it is away.
    pub embedder: Option<EmbedderHandle>,
    /// The readers.
    pub readers: ReaderPool,
    /// Every part by name: `writer`, `embedder`, `readers`.
    pub parts: BTreeMap<&'static str, PartStatus>,
    /// Whether a shutdown has begun.
    pub stopping: bool,
}

impl Routes {
    /// The writer, or why there is none.
    pub fn writer(&self) -> KnowledgeResult<&WriterHandle> {
        self.writer.as_ref().ok_or_else(|| match self.reason("writer") {
            (true, reason) => KnowledgeError::ReadOnly {
                reason: format!("the writer has failed repeatedly ({reason}); see the log, it is tried again"),
            },
            (false, reason) => KnowledgeError::Unavailable { part: "writer", reason },
        })
    }

    /// The embedder, or why there is none.
    pub fn embedder(&self) -> KnowledgeResult<&EmbedderHandle> {
        self.embedder.as_ref().ok_or_else(|| KnowledgeError::Unavailable {
            part: "embedder",
            reason: self.reason("embedder").1,
        })
    }

    fn reason(&self, part: &str) -> (bool, String) {
        match self.parts.get(part).map(|status| &status.state) {
            Some(PartState::Degraded { reason }) => (true, reason.clone()),
            Some(PartState::Restarting { reason }) => (false, format!("it is restarting after: {reason}")),
            Some(PartState::Stopped) => (false, "the daemon is shutting down".to_owned()),
            Some(PartState::Running) | None => (false, "it is starting".to_owned()),
        }
    }
}
