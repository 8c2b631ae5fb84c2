//! Counts of items, kept current by each change.

use std::collections::BTreeMap;

use ccod_words::KnowledgeType;

use crate::Index;
use crate::block::{Cells, kind_of};
use crate::interner::NONE;
use crate::pages::Pages;

const PAGE: usize = 64;
const KINDS: usize = KnowledgeType::ALL.len();

/// How many live items there are. An item counts by its first passage, as the store counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Items.
    pub items: u64,
    /// Passages: rows.
    pub passages: u64,
    /// Items of each type that has any.
    pub by_kind: BTreeMap<KnowledgeType, u64>,
    /// Items of each agent; those without one under the empty name.
    pub by_agent: BTreeMap<String, u64>,
    /// When the oldest item was created, in milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// When the newest item was created, in milliseconds since 1970.
    pub newest_ms: Option<i64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Totals {
    items: u64,
    by_kind: [u64; KINDS],
    /// By the number of the agent.
    by_agent: Pages<[u32; PAGE]>,
    without_agent: u64,
    span: Option<(i64, i64)>,
    /// The oldest or the newest item went and nothing as old or as new came.
    stale: (bool, bool),
}

impl Totals {
    pub(crate) const fn new() -> Self {
        Self {
            items: 0,
            by_kind: [0; KINDS],
            by_agent: Pages::new(),
            without_agent: 0,
            span: None,
            stale: (false, false),
        }
    }

    pub(crate) fn items(&self) -> u64 {
        self.items
    }

    pub(crate) fn add(&mut self, cells: &Cells) {
        if cells.passage != 0 {
            return;
        }
        self.items += 1;
        self.by_kind[cells.kind as usize] += 1;
        if cells.agent == NONE {
            self.without_agent += 1;
        } else {
            let agent = cells.agent as usize;
            while self.by_agent.len() <= agent / PAGE {
                self.by_agent.push([0; PAGE]);
            }
            self.by_agent.get_mut(agent / PAGE)[agent % PAGE] += 1;
        }
        let time = cells.timestamp;
        let (oldest, newest) = self.span.unwrap_or((time, time));
        self.stale.0 &= time > oldest;
        self.stale.1 &= time < newest;
        self.span = Some((oldest.min(time), newest.max(time)));
    }

    pub(crate) fn remove(&mut self, cells: &Cells) {
        if cells.passage != 0 {
            return;
        }
        self.items -= 1;
        self.by_kind[cells.kind as usize] -= 1;
        if cells.agent == NONE {
            self.without_agent -= 1;
        } else {
            let agent = cells.agent as usize;
            self.by_agent.get_mut(agent / PAGE)[agent % PAGE] -= 1;
        }
        if let Some((oldest, newest)) = self.span {
            self.stale.0 |= cells.timestamp == oldest;
            self.stale.1 |= cells.timestamp == newest;
        }
    }

    /// Whether [`Self::set_span`] is due.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.0 || self.stale.1
    }

    /// Finds the oldest and the newest item in the spans of all blocks.
    pub(crate) fn set_span(&mut self, spans: impl Iterator<Item = (i64, i64)>) {
        self.span = spans.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)));
        self.stale = (false, false);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.by_agent.bytes(|_| 0)
    }
}

impl Index {
    /// Counts of the live items. O(types + agents): each change keeps them current. A change that takes the oldest or
    /// the newest item away looks for the next one in O(n / 64).
    #[must_use]
    pub fn counts(&self) -> Counts {
        let state = self.state();
        let totals = &state.totals;
        let kinds = totals.by_kind.iter().enumerate().filter(|(_, items)| **items > 0);
        let agents = totals.by_agent.iter().flatten().enumerate();
        let mut by_agent: BTreeMap<String, u64> = agents
            .filter(|(_, items)| **items > 0)
            .filter_map(|(agent, items)| Some((state.agents.text(agent as u32)?.to_owned(), u64::from(*items))))
            .collect();
        if totals.without_agent > 0 {
            *by_agent.entry(String::new()).or_default() += totals.without_agent;
        }
        Counts {
            items: totals.items,
            passages: state.len as u64,
            by_kind: kinds.map(|(kind, items)| (kind_of(kind as u8), *items)).collect(),
            by_agent,
            oldest_ms: totals.span.map(|(oldest, _)| oldest),
            newest_ms: totals.span.map(|(_, newest)| newest),
        }
    }
}
