//! A search over one project or several: legs on one view of each, fused, then the page loaded.
//!
//! The results of a query are one sequence, and a page is a part of it, whatever its offset and limit. Fusion
//! depends on how deep the legs are read (a passage that the keyword leg has not reached counts as one without
//! a word in common), so they are read in rounds of fixed depth: what the first round finds is ranked and keeps
//! its place, what the next one finds besides goes behind it, and so on until the page is filled. The first
//! round is all that most searches need. The rankings of the last searches are remembered for their next pages.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};

use lance::Dataset;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::domain::{Hit, ProjectName, SearchMode};
use crate::error::KnowledgeResult;
use crate::store::table::table_damage::TableDamage;
use crate::store::view::fusion::{RankedItem, fuse};
use crate::store::view::gather::{AnswerBudget, ITEMS_AT_ONCE};
use crate::store::view::legs::{Leg, LegKind, Target};
use crate::store::view::{ProjectView, SearchRequest};

/// Passages that each leg fetches in the first round; each further round fetches twice as many as the one
/// before. Several passages of one item collapse into one result, and fusion needs depth to see that both legs
/// agree.
pub(super) const FIRST_ROUND_PASSAGES: usize = 100;
/// Items that each leg has after the first round, unless there are fewer; twice as many after each further one.
/// A leg whose passages are of fewer items reads on.
const FIRST_ROUND_ITEMS: usize = 10;
/// Rounds that double. Later ones are as large as the last of these.
const DOUBLINGS: usize = 6;

/// Rankings that are remembered. One of a few hundred items takes some 100 KB.
const POOLS: usize = 32;
/// Items of the longest ranking that is remembered.
const POOL_ITEMS: usize = 4_000;

/// What a search found.
#[derive(Clone, Debug, Default)]
pub struct SearchOutcome {
    /// The results of the page, best first.
    pub hits: Vec<Hit>,
    /// How was really searched: less than was asked for where no project could be searched that way.
    pub mode: SearchMode,
    /// The commit of each project that was searched, in the order of the views.
    pub versions: Vec<(String, i64)>,
    /// Results of the page that the request's budget of text has left out.
    pub omitted: u64,
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

/// Searches `views` once, with nothing remembered. See [`search_in`].
pub async fn search(
    views: &[Arc<ProjectView>],
    request: &SearchRequest,
    model: &str,
) -> KnowledgeResult<SearchOutcome> {
    search_in(&Pools::default(), views, request, model).await
}

/// Searches `views`. All legs of one project read the same version; cosines compare across projects, so the
/// legs are joined before they are ranked.
///
/// `model` embedded the query. A project whose vectors come from another model is searched by keywords alone
/// in hybrid mode, and refused in vector mode: distances between models mean nothing.
pub async fn search_in(
    pools: &Pools,
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
    let mut targets = Vec::with_capacity(views.len());
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
        used.text |= own.mode != SearchMode::Vector && view.damage().keyword_index.is_none();
        targets.push((view.as_ref(), own));
    }
    let mode = used.mode(request.mode);
    let key = PoolKey::new(views, request, model);
    let mut ranking = pools.take(&key).unwrap_or_else(|| Ranking::new(mode, views.len()));
    let end = request.offset.saturating_add(request.limit);
    while !ranking.has_ended() && ranking.items.len() < end {
        ranking.next_round(&targets, request.threshold).await?;
    }
    let more = ranking.items.len() > end || !ranking.has_ended();
    let page: Vec<RankedItem> = ranking
        .items
        .iter()
        .skip(request.offset)
        .take(request.limit)
        .filter(|item| request.except.as_ref() != Some(&item.id))
        .cloned()
        .collect();
    if more || request.offset > 0 {
        pools.put(key, ranking);
    }

    let (hits, omitted) = load_page(views, &page, request).await?;
    Ok(SearchOutcome {
        hits,
        omitted,
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

/// Loads the items of a page, in its order, and how many of them the request's budget of text has left out.
async fn load_page(
    views: &[Arc<ProjectView>],
    page: &[RankedItem],
    request: &SearchRequest,
) -> KnowledgeResult<(Vec<Hit>, u64)> {
    let mut answer = AnswerBudget::new(request.max_answer_bytes);
    let mut text_left = request.text_budget;
    let (mut hits, mut omitted) = (Vec::with_capacity(page.len()), 0);
    for part in page.chunks(ITEMS_AT_ONCE) {
        let mut slots: Vec<Option<Hit>> = vec![None; part.len()];
        for (source, view) in views.iter().enumerate() {
            let (places, own): (Vec<usize>, Vec<RankedItem>) = part
                .iter()
                .enumerate()
                .filter(|(_, item)| item.source == source)
                .map(|(place, item)| (place, item.clone()))
                .unzip();
            for (place, hit) in places.into_iter().zip(view.load_hits(&own).await?) {
                slots[place] = hit;
            }
        }
        for hit in slots.into_iter().flatten() {
            if let Some(left) = text_left {
                let cost = hit.stored.item.text.len();
                // At least one result, whatever the budget: an answer that is too long beats none.
                if cost > left && !hits.is_empty() {
                    omitted += 1;
                    continue;
                }
                text_left = Some(left.saturating_sub(cost));
            }
            answer.take_hit(&hit)?;
            hits.push(hit);
        }
    }
    Ok((hits, omitted))
}

/// The results of a query in their order, as far as the rounds have come.
#[derive(Debug)]
struct Ranking {
    mode: SearchMode,
    vector_leg: Leg,
    text_leg: Leg,
    items: Vec<RankedItem>,
    ranked: HashSet<(usize, String)>,
    rounds: usize,
    /// Whether a result fell below the threshold, and with it all behind it.
    is_cut: bool,
}

impl Ranking {
    fn new(mode: SearchMode, views: usize) -> Self {
        Self {
            mode,
            vector_leg: Leg::new(LegKind::Vector, views),
            text_leg: Leg::new(LegKind::Text, views),
            items: Vec::new(),
            ranked: HashSet::new(),
            rounds: 0,
            is_cut: false,
        }
    }

    fn has_ended(&self) -> bool {
        self.is_cut || (self.vector_leg.is_exhausted() && self.text_leg.is_exhausted())
    }

    /// Reads the legs on, and puts what is new behind what is there.
    async fn next_round(&mut self, targets: &[Target<'_>], threshold: Option<f32>) -> KnowledgeResult<()> {
        let doublings = self.rounds.min(DOUBLINGS);
        let (passages, items) = (FIRST_ROUND_PASSAGES << doublings, FIRST_ROUND_ITEMS << doublings);
        self.rounds += 1;
        futures::try_join!(
            self.vector_leg.deepen(targets, passages, items),
            self.text_leg.deepen(targets, passages, items)
        )?;
        let fused = fuse(self.vector_leg.found(), self.text_leg.found(), self.mode);
        self.append(fused, threshold);
        Ok(())
    }

    /// What was found later stands behind what was found before, so it is no better either, whatever fusion
    /// says of it now that the legs are deeper.
    fn append(&mut self, fused: Vec<RankedItem>, threshold: Option<f32>) {
        let least = self.items.last().map_or(1.0, |item| item.score);
        for mut item in fused {
            if !self.ranked.insert((item.source, item.id.clone())) {
                continue;
            }
            item.score = item.score.min(least);
            if threshold.is_some_and(|threshold| item.score < threshold) {
                self.is_cut = true;
                return;
            }
            self.items.push(item);
        }
    }
}

/// The rankings of the last searches that have more than one page, so that the next page goes on where the last
/// one ended: it reads no leg again, and what is equally good stays in its order. Bounded; what is not here is
/// found again.
#[derive(Debug, Default)]
pub struct Pools(Mutex<VecDeque<(PoolKey, Ranking)>>);

/// Of which search a ranking is: the same request on the same versions.
#[derive(Debug)]
struct PoolKey {
    request: [u8; 32],
    versions: Vec<(Weak<Dataset>, Weak<TableDamage>)>,
}

impl PoolKey {
    fn new(views: &[Arc<ProjectView>], request: &SearchRequest, model: &str) -> Self {
        let SearchRequest {
            query,
            vector,
            mode,
            filter,
            limit: _,
            offset: _,
            threshold,
            min_similarity,
            at,
            except: _,
            text_budget: _,
            max_answer_bytes: _,
            keywords_ahead: _,
        } = request;
        let mut digest = Sha256::new();
        let plain = format!("{model:?} {query:?} {mode:?} {filter:?} {threshold:?} {min_similarity:?} {at:?}");
        digest.update(plain);
        for component in vector.iter().flat_map(|vector| vector.iter()) {
            digest.update(component.to_le_bytes());
        }
        let version = |view: &Arc<ProjectView>| (Arc::downgrade(view.dataset()), Arc::downgrade(view.damage()));
        Self {
            request: digest.finalize().into(),
            versions: views.iter().map(version).collect(),
        }
    }

    fn is_of(&self, other: &Self) -> bool {
        let same_versions = || {
            let mut pairs = self.versions.iter().zip(&other.versions);
            pairs.all(|(own, other)| own.0.ptr_eq(&other.0) && own.1.ptr_eq(&other.1))
        };
        self.request == other.request && self.versions.len() == other.versions.len() && same_versions()
    }

    fn is_gone(&self) -> bool {
        self.versions.iter().any(|(dataset, _)| dataset.strong_count() == 0)
    }
}

impl Pools {
    /// Takes the ranking out, so that another search at the same time finds its own.
    fn take(&self, key: &PoolKey) -> Option<Ranking> {
        let mut pools = self.0.lock();
        let place = pools.iter().position(|(known, _)| known.is_of(key))?;
        pools.remove(place).map(|(_, ranking)| ranking)
    }

    fn put(&self, key: PoolKey, ranking: Ranking) {
        if ranking.items.len() > POOL_ITEMS {
            return;
        }
        let mut pools = self.0.lock();
        pools.retain(|(known, _)| !known.is_gone() && !known.is_of(&key));
        pools.push_back((key, ranking));
        if pools.len() > POOLS {
            pools.pop_front();
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
    /// How was really searched where `asked` was asked for. One leg alone is not a fusion: its scores are its own.
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
