//! Incoming stores: admitted and being embedded, not yet with the writer.
//!
//! A single store spends most of its time in the embedder. If the writer committed each as it came out, 64
//! clients would make a version for every few items. So the writer expects a store from before it is embedded, and
//! holds a group open for a moment while others are incoming (see `WriterState::hold`). Nothing depends on an
//! [`IncomingStore`]: dropping one only wakes the lane.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use ractor::ActorRef;

use super::WriterMessage;
use crate::domain::ProjectName;

/// How many stores are incoming, by project.
#[derive(Debug, Default)]
pub(crate) struct IncomingStores(Mutex<HashMap<ProjectName, usize>>);

impl IncomingStores {
    /// How many stores of this project are incoming.
    pub(crate) fn of(&self, project: &ProjectName) -> usize {
        let counts = self.0.lock();
        counts.get(project).copied().unwrap_or(0)
    }

    fn add(&self, project: &ProjectName) {
        let mut counts = self.0.lock();
        *counts.entry(project.clone()).or_default() += 1;
    }

    fn remove(&self, project: &ProjectName) {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get_mut(project) {
            *count -= 1;
            if *count == 0 {
                counts.remove(project);
            }
        }
    }
}

/// One store that the writer expects. See the module.
#[derive(Debug)]
pub struct IncomingStore {
    incoming: Arc<IncomingStores>,
    project: ProjectName,
    writer: ActorRef<WriterMessage>,
    arrived: bool,
}

impl IncomingStore {
    pub(super) fn new(incoming: Arc<IncomingStores>, project: ProjectName, writer: ActorRef<WriterMessage>) -> Self {
        incoming.add(&project);
        Self {
            incoming,
            project,
            writer,
            arrived: false,
        }
    }

    /// The store has reached the writer, which looks at the lane itself.
    pub(super) fn arrived(mut self) {
        self.arrived = true;
    }
}

impl Drop for IncomingStore {
    fn drop(&mut self) {
        self.incoming.remove(&self.project);
        if !self.arrived {
            // Failed or abandoned: a group may be waiting for it. A writer that has ended waits for nothing.
            self.writer.cast(WriterMessage::Nudge(self.project.clone())).ok();
        }
    }
}
