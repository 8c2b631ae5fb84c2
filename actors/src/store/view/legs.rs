//! The legs of a search: each a sequence of items over all views that are searched, best first, which is
//! fetched as far as it is needed.
//!
//! An item stands in a leg once, with its best passage. Where one item's passages fill a fetch, the next one
//! leaves out the items that are known, so that a long text hides nobody. The sequence is the same however far
//! it is read: this is what makes the pages of a search fit together.

use std::collections::{HashSet, VecDeque};

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::view::fusion::LegHit;
use crate::store::view::{ProjectView, SearchRequest};

/// Passages of one fetch at most: bounds its memory, to some 10 MB where vectors are fetched as well.
const MOST_PASSAGES: usize = 6_400;

/// What a leg goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LegKind {
    /// The cosine.
    Vector,
    /// BM25.
    Text,
}

impl LegKind {
    fn score(self, hit: &LegHit) -> f32 {
        match self {
            Self::Vector => hit.similarity.unwrap_or(-1.0),
            Self::Text => hit.bm25.unwrap_or(0.0),
        }
    }
}

/// The passages of one fetch, best first.
#[derive(Clone, Debug, Default)]
pub(crate) struct LegPage {
    /// The passages.
    pub hits: Vec<LegHit>,
    /// Whether there are no further ones.
    pub is_last: bool,
}

/// A view with what is searched for in it.
pub(crate) type Target<'a> = (&'a ProjectView, &'a SearchRequest);

/// A leg over several views, as far as it was read. Always of the same targets.
#[derive(Debug)]
pub(crate) struct Leg {
    kind: LegKind,
    sources: Vec<Source>,
    found: Vec<LegHit>,
}

/// A leg's part in one view.
#[derive(Debug, Default)]
struct Source {
    /// Items that were fetched: the next fetch leaves them out.
    known: HashSet<String>,
    queue: Queue,
}

/// What was fetched of a view and does not stand in the leg yet: another view may have better ones that are not
/// fetched.
#[derive(Debug, Default)]
struct Queue {
    /// Best first.
    waiting: VecDeque<LegHit>,
    /// Whether nothing is left to be fetched.
    is_exhausted: bool,
}

impl Leg {
    /// A leg over so many views.
    pub(crate) fn new(kind: LegKind, views: usize) -> Self {
        Self {
            kind,
            sources: std::iter::repeat_with(Source::default).take(views).collect(),
            found: Vec::new(),
        }
    }

    /// The items so far, each with its best passage, best first.
    pub(crate) fn found(&self) -> &[LegHit] {
        &self.found
    }

    /// Whether there are no further ones.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.sources
            .iter()
            .all(|source| source.queue.is_exhausted && source.queue.waiting.is_empty())
    }

    /// Reads on by a fetch of `passages`, and by further ones until the leg has `items` items or ends.
    pub(crate) async fn deepen(
        &mut self,
        targets: &[Target<'_>],
        passages: usize,
        items: usize,
    ) -> KnowledgeResult<()> {
        let mut passages = passages.min(MOST_PASSAGES);
        while !self.is_exhausted() {
            self.fetch(targets, passages).await?;
            if self.found.len() >= items {
                break;
            }
            passages = (passages * 2).min(MOST_PASSAGES);
        }
        Ok(())
    }

    /// Fetches from each view of which nothing waits, then takes what is certain in its place.
    async fn fetch(&mut self, targets: &[Target<'_>], passages: usize) -> KnowledgeResult<()> {
        let is_one_of_many = self.sources.len() > 1;
        for (number, (source, target)) in self.sources.iter_mut().zip(targets).enumerate() {
            match source.fetch(self.kind, *target, number, passages).await {
                Ok(()) => {}
                // Its keyword index is damaged: the other projects are searched, and `degraded` says it.
                Err(KnowledgeError::Unavailable { .. }) if is_one_of_many => source.queue.is_exhausted = true,
                Err(error) => return Err(error),
            }
        }
        let queues = self.sources.iter_mut().map(|source| &mut source.queue).collect();
        self.found.extend(take_certain(self.kind, queues));
        Ok(())
    }
}

impl Source {
    async fn fetch(
        &mut self,
        kind: LegKind,
        (view, request): Target<'_>,
        number: usize,
        passages: usize,
    ) -> KnowledgeResult<()> {
        if self.queue.is_exhausted || !self.queue.waiting.is_empty() {
            return Ok(());
        }
        let page = view.leg_page(kind, request, &self.known, passages, number).await?;
        for hit in page.hits {
            if self.known.insert(hit.id.clone()) {
                self.queue.waiting.push_back(hit);
            }
        }
        // A page without a new item cannot be, and would be fetched for ever.
        self.queue.is_exhausted = page.is_last || self.queue.waiting.is_empty();
        Ok(())
    }
}

/// Takes what waits and is no worse than anything that is not fetched yet: that of a view is no better than
/// the last that was fetched of it. Pure.
fn take_certain(kind: LegKind, queues: Vec<&mut Queue>) -> Vec<LegHit> {
    let frontier = queues
        .iter()
        .filter(|queue| !queue.is_exhausted)
        .filter_map(|queue| queue.waiting.back())
        .map(|hit| kind.score(hit))
        .fold(f32::NEG_INFINITY, f32::max);
    let mut taken = Vec::new();
    for queue in queues {
        while let Some(hit) = queue.waiting.pop_front_if(|hit| kind.score(hit) >= frontier) {
            taken.push(hit);
        }
    }
    // Stable: of equals, the project that was named first goes first.
    taken.sort_by(|a, b| kind.score(b).total_cmp(&kind.score(a)));
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(source: usize, is_exhausted: bool, scores: &[f32]) -> Queue {
        let hit = |(number, score): (usize, &f32)| LegHit {
            source,
            id: format!("{source}-{number}"),
            row_id: number as u64,
            similarity: Some(*score),
            bm25: None,
        };
        Queue {
            waiting: scores.iter().enumerate().map(hit).collect(),
            is_exhausted,
        }
    }

    fn taken(queues: &mut [Queue]) -> Vec<String> {
        let taken = take_certain(LegKind::Vector, queues.iter_mut().collect());
        taken.into_iter().map(|hit| hit.id).collect()
    }

    #[test]
    fn nothing_goes_before_what_may_still_be_fetched_and_be_better() {
        // More of the first may be as good as 0.6, more of the second as good as 0.3.
        let mut queues = [queue(0, false, &[0.9, 0.6]), queue(1, false, &[0.8, 0.6, 0.5, 0.3])];
        assert_eq!(taken(&mut queues), ["0-0", "1-0", "0-1", "1-1"]);
        // The first has been read on, and that is all of it.
        queues[0] = queue(0, true, &[0.55, 0.1]);
        assert_eq!(taken(&mut queues), ["0-0", "1-2", "1-3"]);
        queues[1].is_exhausted = true;
        assert_eq!(taken(&mut queues), ["0-1"]);
    }

    #[test]
    fn one_view_waits_for_nobody() {
        assert_eq!(taken(&mut [queue(0, false, &[0.5, 0.4])]), ["0-0", "0-1"]);
        assert_eq!(taken(&mut [queue(0, true, &[])]), Vec::<String>::new());
    }
}
