//! The beginning of the keyword leg, read while the query is still being embedded.
//!
//! A hybrid search needs a vector for its other leg, and to make one takes longer than to find words. So the words are
//! looked up meanwhile. What is found is good for the versions of the projects that it was found in: where the search
//! then reads another, it looks itself.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use lance::Dataset;

use crate::error::KnowledgeResult;
use crate::store::table::table_damage::TableDamage;
use crate::store::view::legs::LegPage;
use crate::store::view::search::FIRST_ROUND_PASSAGES;
use crate::store::view::{ProjectView, SearchRequest};

/// What the keyword leg of a search begins with, in some versions of projects. See the module.
#[derive(Clone, Debug, Default)]
pub struct KeywordsAhead(Vec<Part>);

#[derive(Clone, Debug)]
struct Part {
    dataset: Weak<Dataset>,
    damage: Weak<TableDamage>,
    page: LegPage,
}

impl KeywordsAhead {
    /// Looks up the words of a search in `views`, as the search will. What cannot be looked up is left to the search,
    /// which says why.
    pub async fn look_up(views: &[Arc<ProjectView>], request: &SearchRequest) -> Self {
        let mut parts = Vec::with_capacity(views.len());
        for view in views {
            if let Ok(Some(page)) = beginning(view, request).await {
                parts.push(Part {
                    dataset: Arc::downgrade(view.dataset()),
                    damage: Arc::downgrade(view.damage()),
                    page,
                });
            }
        }
        Self(parts)
    }

    /// What was found in a version, if it was looked up there and as far as a fetch of `passages` goes.
    pub(super) fn page_of(&self, view: &ProjectView, passages: usize) -> Option<LegPage> {
        let is_of = |part: &&Part| {
            let dataset = std::ptr::eq(part.dataset.as_ptr(), Arc::as_ptr(view.dataset()));
            dataset && std::ptr::eq(part.damage.as_ptr(), Arc::as_ptr(view.damage()))
        };
        let part = self.0.iter().find(is_of).filter(|_| passages == FIRST_ROUND_PASSAGES)?;
        Some(part.page.clone())
    }
}

async fn beginning(view: &ProjectView, request: &SearchRequest) -> KnowledgeResult<Option<LegPage>> {
    if request.at.is_some() || view.damage().keyword_index.is_some() {
        return Ok(None);
    }
    let Some(index) = view.index().await? else {
        return Ok(None);
    };
    let matching = index.matching(&request.filter);
    view.keyword_page(&matching, &request.query, &HashSet::new(), FIRST_ROUND_PASSAGES)
        .await
        .map(Some)
}
