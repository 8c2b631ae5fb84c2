//! A search over one project or several: legs on one view of each, fused once, then the page loaded.

use std::sync::Arc;

use crate::domain::{SearchHit, SearchMode};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::fusion::{RankedItem, fuse};
use crate::store::view::{ProjectView, SearchRequest};

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
    let mut vector_leg = Vec::new();
    let mut text_leg = Vec::new();
    for (source, view) in views.iter().enumerate() {
        let mut request = request;
        degraded.extend(view.degraded());
        if request.vector.is_some()
            && let Err(mismatch) = view.check_model(model)
        {
            if request.mode != SearchMode::Hybrid {
                return Err(mismatch);
            }
            degraded.push(mismatch.to_string());
            request = &keywords_only;
        }
        let (vector_hits, text_hits) = match view.legs(request, source).await {
            // Its keyword index is damaged: the other projects are searched, and `degraded` says it.
            Err(KnowledgeError::Unavailable { .. }) if views.len() > 1 => continue,
            found => found?,
        };
        used.vector |= request.vector.is_some() && request.mode != SearchMode::Text;
        used.text |= request.mode != SearchMode::Vector && view.condition().keyword_index.is_none();
        vector_leg.extend(vector_hits);
        text_leg.extend(text_hits);
    }
    if views.len() > 1 {
        vector_leg.sort_by(|a, b| b.similarity.unwrap_or(-1.0).total_cmp(&a.similarity.unwrap_or(-1.0)));
        text_leg.sort_by(|a, b| b.bm25.unwrap_or(0.0).total_cmp(&a.bm25.unwrap_or(0.0)));
    }

    let mode = used.mode(request.mode);
    let mut ranked = fuse(&vector_leg, &text_leg, mode);
    if let Some(threshold) = request.threshold {
        ranked.retain(|item| item.score >= threshold);
    }
    let page: Vec<RankedItem> = ranked.into_iter().skip(request.offset).take(request.limit).collect();

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
    })
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
