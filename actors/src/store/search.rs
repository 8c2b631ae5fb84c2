//! A search over one project or several: legs on one view of each, fused, then the page loaded.
//!
//! The results of a query are one sequence, and a page is a part of it, whatever its offset and limit. Fusion
//! depends on how deep the legs are read (a passage that the keyword leg has not reached counts as one without
//! a word in common), so they are read in rounds of fixed depth: what the first round finds is ranked and keeps
//! its place, what the next one finds besides goes behind it, and so on until the page is filled. The first
//! round is all that most searches need.

use std::collections::HashSet;
use std::sync::Arc;

use crate::domain::{ProjectName, SearchHit, SearchMode};
use crate::error::KnowledgeResult;
use crate::store::fusion::{RankedItem, fuse};
use crate::store::legs::{Leg, LegKind};
use crate::store::view::{ProjectView, SearchRequest};

/// Passages that each leg fetches in the first round; each further round fetches twice as many as the one
/// before. Several passages of one item collapse into one result, and fusion needs depth to see that both legs
/// agree.
const FIRST_ROUND_PASSAGES: usize = 100;
/// Items that each leg has after the first round, unless there are fewer; twice as many after each further one.
/// A leg whose passages are of fewer items reads on.
const FIRST_ROUND_ITEMS: usize = 10;
/// Rounds that double. Later ones are as large as the last of these.
const DOUBLINGS: usize = 6;

/// What a search found.
#[derive(Clone, Debug, Default)]
pub struct SearchOutcome {
    /// The results of the page, best first.
    pub hits: Vec<SearchHit>,
    /// How was really searched: less than was asked for where no project could be searched that way.
    pub mode: SearchMode,
    /// The commit of each project that was searched, in the order of the views.
    pub versions: Vec<(String, i64)>,
    /// Why less was done than was asked for, if so.
    pub degraded: Option<String>,
    /// Whether there may be results behind this page.
    pub more: bool,
    /// The versions that the next page has to read; filled in by the readers where there is more.
    pub page_versions: Vec<PageVersion>,
}

/// A version of a project that the pages of a search read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageVersion {
    /// The project.
    pub project: ProjectName,
    /// Lance's own version, which also counts maintenance: it moves rows.
    pub version: u64,
    /// The history that it is of ([`Lineage::epoch`](crate::store::Lineage)).
    pub epoch: i64,
}

/// Searches `views`. All legs of one project read the same version; cosines compare across projects, so the
/// legs are joined before they are ranked.
///
/// `model` embedded the query. A project whose vectors come from another model is searched by keywords alone
/// in hybrid mode, and refused in vector mode: distances between models mean nothing.
pub async fn search(
    views: &[Arc<ProjectView>],
    request: &SearchRequest,
    model: &str,
) -> KnowledgeResult<SearchOutcome> {
    let keywords_only = SearchRequest {
        vector: None,
        ..request.clone()
    };
    let mut degraded: Vec<String> = Vec::new();
    let mut used = Legs::default();
    let mut requests = Vec::with_capacity(views.len());
    for view in views {
        view.check_searchable(request.at)?;
        degraded.extend(view.degraded());
        let own = match view.check_model(model) {
            Err(mismatch) if request.vector.is_some() => {
                if request.mode != SearchMode::Hybrid {
                    return Err(mismatch);
                }
                degraded.push(mismatch.to_string());
                &keywords_only
            }
            _ => request,
        };
        used.vector |= own.vector.is_some() && own.mode != SearchMode::Text;
        used.text |= own.mode != SearchMode::Vector && view.condition().keyword_index.is_none();
        requests.push((view.as_ref(), own));
    }
    let mode = used.mode(request.mode);
    let mut ranking = Ranking {
        mode,
        threshold: request.threshold,
        vector_leg: Leg::new(LegKind::Vector, requests.iter().copied()),
        text_leg: Leg::new(LegKind::Text, requests.iter().copied()),
        items: Vec::new(),
        ranked: HashSet::new(),
        rounds: 0,
        is_cut: false,
    };
    let end = request.offset.saturating_add(request.limit);
    while !ranking.has_ended() && ranking.items.len() < end {
        ranking.next_round().await?;
    }
    let more = ranking.items.len() > end || !ranking.has_ended();
    let page: Vec<RankedItem> = ranking
        .items
        .into_iter()
        .skip(request.offset)
        .take(request.limit)
        .collect();

    let mut slots: Vec<Option<SearchHit>> = vec![None; page.len()];
    for (source, view) in views.iter().enumerate() {
        let (places, own): (Vec<usize>, Vec<RankedItem>) = page
            .iter()
            .enumerate()
            .filter(|(_, item)| item.source == source)
            .map(|(place, item)| (place, item.clone()))
            .unzip();
        for (place, hit) in places.into_iter().zip(view.load_hits(&own).await?) {
            slots[place] = hit;
        }
    }
    Ok(SearchOutcome {
        hits: slots.into_iter().flatten().collect(),
        mode,
        versions: views
            .iter()
            .map(|view| (view.project().to_string(), view.sequence()))
            .collect(),
        degraded: (!degraded.is_empty()).then(|| degraded.join("; ")),
        more,
        page_versions: Vec::new(),
    })
}

/// The results of a query in their order, as far as the rounds have come.
struct Ranking<'a> {
    mode: SearchMode,
    threshold: Option<f32>,
    vector_leg: Leg<'a>,
    text_leg: Leg<'a>,
    items: Vec<RankedItem>,
    ranked: HashSet<(usize, String)>,
    rounds: usize,
    /// Whether a result fell below the threshold, and with it all behind it.
    is_cut: bool,
}

impl Ranking<'_> {
    fn has_ended(&self) -> bool {
        self.is_cut || (self.vector_leg.is_exhausted() && self.text_leg.is_exhausted())
    }

    /// Reads the legs on, and puts what is new behind what is there.
    async fn next_round(&mut self) -> KnowledgeResult<()> {
        let doublings = self.rounds.min(DOUBLINGS);
        let (passages, items) = (FIRST_ROUND_PASSAGES << doublings, FIRST_ROUND_ITEMS << doublings);
        self.rounds += 1;
        futures::try_join!(
            self.vector_leg.deepen(passages, items),
            self.text_leg.deepen(passages, items)
        )?;
        let fused = fuse(self.vector_leg.found(), self.text_leg.found(), self.mode);
        self.append(fused);
        Ok(())
    }

    /// What was found later stands behind what was found before, so it is no better either, whatever fusion
    /// says of it now that the legs are deeper.
    fn append(&mut self, fused: Vec<RankedItem>) {
        let least = self.items.last().map_or(1.0, |item| item.score);
        for mut item in fused {
            if !self.ranked.insert((item.source, item.id.clone())) {
                continue;
            }
            item.score = item.score.min(least);
            if self.threshold.is_some_and(|threshold| item.score < threshold) {
                self.is_cut = true;
                return;
            }
            self.items.push(item);
        }
    }
}

/// The evidence that could be used in at least one project.
#[derive(Clone, Copy, Debug, Default)]
struct Legs {
    vector: bool,
    text: bool,
}

impl Legs {
    /// How was really searched where `asked` was asked for. One leg alone is no fusion: its scores are its own.
    fn mode(self, asked: SearchMode) -> SearchMode {
        match (asked, self.vector, self.text) {
            (SearchMode::Hybrid, true, false) => SearchMode::Vector,
            (SearchMode::Hybrid, false, true) => SearchMode::Text,
            _ => asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_the_one_that_was_really_used() {
        let mode = |vector, text, asked| Legs { vector, text }.mode(asked);
        assert_eq!(mode(true, true, SearchMode::Hybrid), SearchMode::Hybrid);
        assert_eq!(mode(true, false, SearchMode::Hybrid), SearchMode::Vector);
        assert_eq!(mode(false, true, SearchMode::Hybrid), SearchMode::Text);
        // No project at all: nothing was left out.
        assert_eq!(mode(false, false, SearchMode::Hybrid), SearchMode::Hybrid);
        assert_eq!(mode(true, false, SearchMode::Vector), SearchMode::Vector);
        assert_eq!(mode(false, true, SearchMode::Text), SearchMode::Text);
    }
}
