//! Searching by meaning and by words, and embedding for others.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use super::{Asked, Knowledge};
use crate::domain::{Filter, SearchMode};
use crate::embedder::Lane;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::reader::{Projects, Within};
use crate::store::view::filter::AsOf;
use crate::store::view::search::SearchOutcome;
use crate::store::view::{KeywordsAhead, SearchRequest};

/// What is searched for.
#[derive(Clone, Debug)]
pub struct Search {
    /// The text.
    pub query: String,
    /// How.
    pub mode: SearchMode,
    /// Among which items.
    pub filter: Filter,
    /// Results of the page, at most.
    pub limit: usize,
    /// Results before the page.
    pub offset: usize,
    /// Least score of a result.
    pub threshold: Option<f32>,
    /// As things were then.
    pub at: Option<AsOf>,
    /// Bytes of text in all results, at most.
    pub text_budget: Option<usize>,
}

/// What a search has found.
#[derive(Debug)]
pub struct Found {
    /// How it was searched as far as the embedder is concerned: without it a hybrid search is one by words. The next page
    /// must be searched in the same way.
    pub mode: SearchMode,
    /// The results. `degraded` also says why the embedder was not used.
    pub outcome: SearchOutcome,
}

/// Vectors of texts.
#[derive(Debug)]
pub struct Embedded {
    /// One for each text, in their order.
    pub vectors: Vec<Arc<[f32]>>,
    /// The texts that are longer than the model takes, by number: their vectors are of their beginnings.
    pub truncated: Vec<usize>,
}

impl Knowledge {
    /// Searches. A hybrid search goes on by words alone while the embedder is away, and says so.
    ///
    /// # Errors
    /// Those of the embedder, where meaning was asked for alone, and of the readers.
    pub async fn search(&self, projects: Projects, search: Search, asked: &Asked) -> KnowledgeResult<Found> {
        let routes = self.routes();
        let mut request = SearchRequest {
            query: search.query,
            vector: None,
            mode: search.mode,
            filter: search.filter,
            limit: search.limit,
            offset: search.offset,
            threshold: search.threshold,
            min_similarity: match search.mode {
                // By meaning alone, nothing is cut but by the threshold that the caller sets.
                SearchMode::Vector => -1.0,
                SearchMode::Hybrid | SearchMode::Text => self.limits.min_similarity,
            },
            at: search.at,
            except: None,
            text_budget: search.text_budget,
            max_answer_bytes: self.limits.max_answer_bytes,
            keywords_ahead: None,
        };
        let mut away = None;
        if request.mode != SearchMode::Text {
            let (embedded, ahead) = self.embed_and_look_up(&projects, &request, asked).await;
            match embedded {
                Ok(embedded) => request.vector = Some(embedded),
                // Keywords still find something, and the caller is told.
                Err(error @ KnowledgeError::Unavailable { .. }) if request.mode == SearchMode::Hybrid => {
                    request.mode = SearchMode::Text;
                    away = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
            request.keywords_ahead = ahead.map(Arc::new);
        }
        let mode = request.mode;
        let mut outcome = routes.readers.search(projects, request, asked.deadline).await?;
        outcome.degraded = both(away, outcome.degraded);
        Ok(Found { mode, outcome })
    }

    /// Embeds the query, and looks up its words meanwhile where they are wanted too.
    async fn embed_and_look_up(
        &self,
        projects: &Projects,
        request: &SearchRequest,
        asked: &Asked,
    ) -> (KnowledgeResult<Arc<[f32]>>, Option<KeywordsAhead>) {
        let routes = self.routes();
        let embedder = match routes.embedder() {
            Ok(embedder) => embedder,
            Err(error) => return (Err(error), None),
        };
        let mut embedding = pin!(embedder.embed_query(&request.query, asked.deadline, asked.origin));
        // A vector that is remembered is there at once. Later pages have the words of the first.
        let waits = request.mode == SearchMode::Hybrid && !matches!(projects, Projects::At(_));
        if !waits {
            return (embedding.await, None);
        }
        match futures::poll!(&mut embedding) {
            Poll::Ready(embedded) => (embedded, None),
            Poll::Pending => {
                let ahead = routes
                    .readers
                    .keywords_ahead(projects.clone(), request.clone(), asked.deadline);
                futures::join!(embedding, ahead)
            }
        }
    }

    /// What is read for an answer, as far as it can be sent.
    pub fn within_answer<T>(&self, wanted: T) -> Within<T> {
        Within {
            wanted,
            max_answer_bytes: self.limits.max_answer_bytes,
        }
    }

    /// Embeds texts, as they are: nothing is split.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] for too many or too long ones; those of the embedder.
    pub async fn embed(&self, texts: Vec<String>, asked: &Asked) -> KnowledgeResult<Embedded> {
        let most = self.limits.max_batch;
        let count = texts.len();
        if count > most {
            return Err(KnowledgeError::invalid(
                "texts",
                format!("`texts` must be at most {most} texts, this list has {count}; send it in parts"),
            ));
        }
        let most_bytes = self.limits.max_text_bytes;
        if let Some(index) = texts.iter().position(|text| text.len() as u64 > most_bytes) {
            return Err(KnowledgeError::invalid(
                "texts",
                format!("`texts` must be of at most {most_bytes} bytes each, number {index} is longer"),
            ));
        }
        let routes = self.routes();
        let embedder = routes.embedder()?;
        let tokens = match texts.as_slice() {
            [only] => embedder.encode(only).await.map(|tokens| vec![tokens]),
            _ => embedder.encode_all(texts, asked.origin).await,
        }?;
        let numbered = tokens.iter().enumerate();
        let truncated = numbered.filter(|(_, text)| text.truncated()).map(|(index, _)| index);
        let truncated = truncated.collect();
        let lane = if count > 1 { Lane::Bulk } else { Lane::Interactive };
        let vectors = embedder
            .embed_passages(tokens, lane, asked.deadline, asked.origin)
            .await?;
        Ok(Embedded { vectors, truncated })
    }
}

/// Two reasons as one.
fn both(first: Option<String>, second: Option<String>) -> Option<String> {
    match (first, second) {
        (Some(first), Some(second)) => Some(format!("{first}; {second}")),
        (first, second) => first.or(second),
    }
}
