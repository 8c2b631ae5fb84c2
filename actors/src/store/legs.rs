//! The legs of a search: each a sequence of items over all views that are searched, best first, which is
//! fetched as far as it is needed.
//!
//! An item stands in a leg once, with its best passage. Where one item's passages fill a fetch, the next one
//! leaves out the items that are known, so that a long text hides nobody. The sequence is the same however far
//! it is read: this is what makes the pages of a search fit together.

use std::collections::{HashSet, VecDeque};

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::fusion::LegHit;
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
#[derive(Debug, Default)]
pub(crate) struct LegPage {
    /// The passages.
    pub hits: Vec<LegHit>,
    /// Whether there are no further ones.
    pub is_last: bool,
}

/// A leg over several views.
pub(crate) struct Leg<'a> {
    kind: LegKind,
    sources: Vec<Source<'a>>,
    found: Vec<LegHit>,
}

/// A leg's part in one view.
struct Source<'a> {
    number: usize,
    view: &'a ProjectView,
    request: &'a SearchRequest,
    /// Items that were fetched: the next fetch leaves them out.
    known: HashSet<String>,
    /// Those of them that do not stand in the leg yet: another view may have better ones that are not fetched.
    waiting: VecDeque<LegHit>,
    is_exhausted: bool,
}

impl<'a> Leg<'a> {
    /// A leg over these views, each with its request.
    pub(crate) fn new(kind: LegKind, views: impl Iterator<Item = (&'a ProjectView, &'a SearchRequest)>) -> Self {
        let sources = views
            .enumerate()
            .map(|(number, (view, request))| Source {
                number,
                view,
                request,
                known: HashSet::new(),
                waiting: VecDeque::new(),
                is_exhausted: false,
            })
            .collect();
        Self {
            kind,
            sources,
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
            .all(|source| source.is_exhausted && source.waiting.is_empty())
    }

    /// Reads on by a fetch of `passages`, and by further ones until the leg has `items` items or ends.
    pub(crate) async fn deepen(&mut self, passages: usize, items: usize) -> KnowledgeResult<()> {
        let mut passages = passages.min(MOST_PASSAGES);
        while !self.is_exhausted() {
            self.fetch(passages).await?;
            if self.found.len() >= items {
                break;
            }
            passages = (passages * 2).min(MOST_PASSAGES);
        }
        Ok(())
    }

    /// Fetches from each view of which nothing waits, then takes what is certain in its place.
    async fn fetch(&mut self, passages: usize) -> KnowledgeResult<()> {
        let is_one_of_many = self.sources.len() > 1;
        for source in &mut self.sources {
            match source.fetch(self.kind, passages).await {
                Ok(()) => {}
                // Its keyword index is damaged: the other projects are searched, and `degraded` says it.
                Err(KnowledgeError::Unavailable { .. }) if is_one_of_many => source.is_exhausted = true,
                Err(error) => return Err(error),
            }
        }
        let taken = take_certain(self.kind, &mut self.sources);
        self.found.extend(taken);
        Ok(())
    }
}

impl Source<'_> {
    async fn fetch(&mut self, kind: LegKind, passages: usize) -> KnowledgeResult<()> {
        if self.is_exhausted || !self.waiting.is_empty() {
            return Ok(());
        }
        let page = self
            .view
            .leg_page(kind, self.request, &self.known, passages, self.number)
            .await?;
        for hit in page.hits {
            if self.known.insert(hit.id.clone()) {
                self.waiting.push_back(hit);
            }
        }
        // A page without a new item cannot be, and would be fetched for ever.
        self.is_exhausted = page.is_last || self.waiting.is_empty();
        Ok(())
    }
}

/// Takes what waits and is no worse than anything that is not fetched yet: that of a view is no better than
/// the last that was fetched of it. Pure.
fn take_certain(kind: LegKind, sources: &mut [Source<'_>]) -> Vec<LegHit> {
    let frontier = sources
        .iter()
        .filter(|source| !source.is_exhausted)
        .filter_map(|source| source.waiting.back())
        .map(|hit| kind.score(hit))
        .fold(f32::NEG_INFINITY, f32::max);
    let mut taken = Vec::new();
    for source in sources {
        while let Some(hit) = source.waiting.pop_front_if(|hit| kind.score(hit) >= frontier) {
            taken.push(hit);
        }
    }
    // Stable: of equals, the project that was named first goes first.
    taken.sort_by(|a, b| kind.score(b).total_cmp(&kind.score(a)));
    taken
}
