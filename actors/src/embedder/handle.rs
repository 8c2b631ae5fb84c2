//! The way in: what the rest of the daemon calls to get vectors.
//!
//! A handle tokenises, looks queries up in the cache, takes a permit for the tokens, and only then sends a
//! message, so what waits in the actor is bounded. Interactive requests are refused at once when their lane is
//! full; bulk requests wait at the door, slice by slice, until their deadline, and of each connection at most
//! one waits there.
//!
//! Large requests are bulk, whatever method brings them: a request of more tokens than
//! [`EmbedderConfig::interactive_request_tokens`] would fill the interactive lane, and everybody else would be
//! refused until it is done. As bulk it enters in slices and searches go between its passages.
//!
//! [`EmbedderShared`] is what survives a restart of the actor; a handle is that plus the current actor.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ccod_model::ModelCell;
use ccod_model::tokenize::{Passage, TextTokenizer, TokenizedText};
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use ractor::ActorRef;
use ractor::rpc::CallResult;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::actor::{EmbedderMessage, EmbedderStats, actor_gone, deadline_exceeded};
use super::config::EmbedderConfig;
use super::engine::unavailable;
use super::planner::Lane;
use super::turns::Turns;
use crate::admission::{Admission, Permit};
use crate::deadline::Deadline;
use crate::error::{KnowledgeError, KnowledgeResult};

/// Longest text that the cache keeps, in bytes: queries are short, and long ones do not come twice.
const MAX_CACHED_BYTES: usize = 2 * 1024;

/// Longest text that is tokenised on the spot, in bytes; a longer one would hold up the runtime's thread for
/// more than a fraction of a millisecond and goes to the blocking pool.
const MAX_INLINE_BYTES: usize = 4 * 1024;

/// Longest text that is tokenised as interactive work, in bytes: the longest query. A longer one takes the turn
/// of bulk work, whatever method brought it.
const MAX_INTERACTIVE_BYTES: usize = 16 * 1024;

/// Bytes that one job on the blocking pool tokenises of a list of texts, so that the lists of several callers
/// alternate.
const TOKENIZED_TOGETHER_BYTES: usize = 64 * 1024;

/// Texts tokenised at once on the blocking pool, for each lane. Tokenising outruns the engine by far, so one is
/// enough; it is one for each, or a query would wait until a batch is tokenised.
const TOKENIZING_TASKS: usize = 1;

/// The actor answers for its statistics between two messages, in microseconds; this is for one that hangs.
const STATS_TIMEOUT: Duration = Duration::from_secs(1);

type Entries = LruCache<[u8; 32], Arc<[f32]>>;

/// Vectors of recent queries, by the hashes of their texts: a query may quote what is later purged. Bounded by number of
/// entries.
#[derive(Debug)]
pub struct QueryCache {
    /// None when the cache is switched off.
    entries: Option<Mutex<Entries>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl QueryCache {
    /// A cache of at most `capacity` vectors; 0 keeps none.
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: NonZeroUsize::new(capacity).map(|capacity| Mutex::new(LruCache::new(capacity))),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The vector of `text`, if it is known; counts a hit or a miss.
    pub fn get(&self, text: &str) -> Option<Arc<[f32]>> {
        let found = self.lock().and_then(|mut entries| entries.get(&key(text)).cloned());
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        // A count for the status; nothing is ordered by it.
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps the vector of `text`, unless the text is too long to come again.
    pub fn insert(&self, text: &str, vector: Arc<[f32]>) {
        if text.len() <= MAX_CACHED_BYTES
            && let Some(mut entries) = self.lock()
        {
            entries.put(key(text), vector);
        }
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        if let Some(mut entries) = self.lock() {
            entries.clear();
        }
    }

    /// Hits and misses so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// Number of vectors kept now.
    pub fn len(&self) -> usize {
        self.lock().map_or(0, |entries| entries.len())
    }

    /// Whether it keeps nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> Option<MutexGuard<'_, Entries>> {
        self.entries.as_ref().map(|entries| entries.lock())
    }
}

fn key(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// What all handles share and what survives a restart of the actor. Cloning shares it.
#[derive(Clone, Debug)]
pub struct EmbedderShared {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: EmbedderConfig,
    model: Arc<ModelCell>,
    interactive: Admission,
    bulk: Admission,
    cache: QueryCache,
    tokenizing_interactive: Semaphore,
    tokenizing_bulk: Semaphore,
    /// Of each connection one text at a time waits to be tokenised as bulk.
    tokenizing_turns: Turns,
    /// Of each connection one slice at a time waits at the bulk door.
    bulk_turns: Turns,
}

impl EmbedderShared {
    /// Budgets and cache for one model. `config` should have passed [`EmbedderConfig::validate`].
    pub fn new(config: EmbedderConfig, model: Arc<ModelCell>) -> Self {
        let inner = Inner {
            interactive: Admission::new(
                "the embedder's queue",
                config.interactive_queue_tokens,
                config.retry_after_ms,
            ),
            bulk: Admission::new(
                "the embedder's queue for large texts and batches",
                config.bulk_queue_tokens,
                config.retry_after_ms,
            ),
            cache: QueryCache::new(config.query_cache),
            tokenizing_interactive: Semaphore::new(TOKENIZING_TASKS),
            tokenizing_bulk: Semaphore::new(TOKENIZING_TASKS),
            tokenizing_turns: Turns::default(),
            bulk_turns: Turns::default(),
            config,
            model,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The model.
    pub fn model(&self) -> &Arc<ModelCell> {
        &self.inner.model
    }

    /// The limits.
    pub fn config(&self) -> &EmbedderConfig {
        &self.inner.config
    }

    /// The cache of query vectors.
    pub fn cache(&self) -> &QueryCache {
        &self.inner.cache
    }

    /// Tokens in use in the interactive and in the bulk lane.
    pub fn tokens_in_use(&self) -> (u32, u32) {
        (self.inner.interactive.in_use(), self.inner.bulk.in_use())
    }

    /// Runs `work`, which loads the tokenizer or is long, on the blocking pool, in the turn of its lane.
    async fn tokenize<T: Send + 'static>(
        &self,
        lane: Lane,
        origin: u64,
        work: impl FnOnce(&TextTokenizer) -> T + Send + 'static,
    ) -> KnowledgeResult<T> {
        let (_own_turn, tasks) = match lane {
            Lane::Interactive => (None, &self.inner.tokenizing_interactive),
            Lane::Bulk => (
                Some(self.inner.tokenizing_turns.wait(origin).await),
                &self.inner.tokenizing_bulk,
            ),
        };
        // The semaphore is never closed.
        let _task = tasks.acquire().await.map_err(unavailable)?;
        let model = Arc::clone(&self.inner.model);
        tokio::task::spawn_blocking(move || Ok(work(&model.tokenizer().map_err(unavailable)?)))
            .await
            .map_err(KnowledgeError::internal)?
    }
}

/// Embeds texts through one embedder actor. Cheap to clone. Once that actor is gone, every call answers
/// [`KnowledgeError::Unavailable`]; the supervisor then publishes a handle to the next one.
#[derive(Clone, Debug)]
pub struct EmbedderHandle {
    actor: ActorRef<EmbedderMessage>,
    shared: EmbedderShared,
}

impl EmbedderHandle {
    /// A handle to `actor`.
    pub fn new(actor: ActorRef<EmbedderMessage>, shared: &EmbedderShared) -> Self {
        Self {
            actor,
            shared: shared.clone(),
        }
    }

    /// What is shared with the other handles.
    pub fn shared(&self) -> &EmbedderShared {
        &self.shared
    }

    /// Name and hash of the model.
    pub fn model_identity(&self) -> &str {
        self.shared.inner.model.identity()
    }

    /// Length of the vectors.
    pub fn dimensions(&self) -> usize {
        self.shared.inner.model.dimensions()
    }

    /// Tokenises a query; what is over the model's limit is cut off, and the result says so.
    pub async fn encode(&self, text: &str) -> KnowledgeResult<TokenizedText> {
        if text.len() <= MAX_INLINE_BYTES
            && let Some(tokenizer) = self.shared.inner.model.loaded_tokenizer()
        {
            return Ok(tokenizer.encode_query(text));
        }
        let owned = text.to_owned();
        // Whatever its length, no more than the model's limit is read of it. An origin does not matter here.
        self.shared
            .tokenize(Lane::Interactive, 0, move |tokenizer| tokenizer.encode_query(&owned))
            .await
    }

    /// Tokenises texts of which each is embedded as one, in order, as bulk work of `origin`; what is over the
    /// model's limit is cut off, and the results say so.
    pub async fn encode_all(&self, texts: Vec<String>, origin: u64) -> KnowledgeResult<Vec<TokenizedText>> {
        let mut encoded = Vec::with_capacity(texts.len());
        let mut texts = texts.into_iter().peekable();
        while texts.peek().is_some() {
            let (mut group, mut bytes) = (Vec::new(), 0);
            while let Some(text) = texts.next_if(|_| bytes < TOKENIZED_TOGETHER_BYTES) {
                bytes += text.len().min(TOKENIZED_TOGETHER_BYTES);
                group.push(text);
            }
            let encode = move |tokenizer: &TextTokenizer| -> Vec<TokenizedText> {
                group.iter().map(|text| tokenizer.encode_query(text)).collect()
            };
            encoded.extend(self.shared.tokenize(Lane::Bulk, origin, encode).await?);
        }
        Ok(encoded)
    }

    /// Splits a text into passages that fit the model, in order; see [`TextTokenizer::passages`]. Only a short
    /// text of the interactive lane is split on the spot: a batch of short ones would add up to one long hold of
    /// the runtime's thread.
    pub async fn passages(&self, text: &str, lane: Lane, origin: u64) -> KnowledgeResult<Vec<Passage>> {
        let lane = if text.len() > MAX_INTERACTIVE_BYTES {
            Lane::Bulk
        } else {
            lane
        };
        if lane == Lane::Interactive
            && text.len() <= MAX_INLINE_BYTES
            && let Some(tokenizer) = self.shared.inner.model.loaded_tokenizer()
        {
            return Ok(tokenizer.passages(text));
        }
        let owned = text.to_owned();
        self.shared
            .tokenize(lane, origin, move |tokenizer| tokenizer.passages(&owned))
            .await
    }

    /// The unit vector of a query, from the cache if it is there. What is over the model's token limit is not
    /// read. Errors: busy (the lane is full), deadline, unavailable, or internal when this text cannot be
    /// embedded.
    pub async fn embed_query(&self, text: &str, deadline: Deadline, origin: u64) -> KnowledgeResult<Arc<[f32]>> {
        if let Some(vector) = self.shared.inner.cache.get(text) {
            return Ok(vector);
        }
        let tokens = self.encode(text).await?;
        let vectors = self
            .embed_passages(vec![tokens], Lane::Interactive, deadline, origin)
            .await?;
        let [vector] =
            <[_; 1]>::try_from(vectors).map_err(|_| KnowledgeError::internal("one text gave more than one vector"))?;
        self.shared.inner.cache.insert(text, Arc::clone(&vector));
        Ok(vector)
    }

    /// The unit vectors of texts, in order; all of them or an error. In the interactive lane a full queue is
    /// refused at once; in the bulk lane the request waits for free tokens, in slices, until its deadline. A request of
    /// more than [`EmbedderConfig::interactive_request_tokens`] is bulk, even where `lane` is interactive. `origin` is a
    /// number per connection: origins share the bulk lane fairly.
    pub async fn embed_passages(
        &self,
        texts: Vec<TokenizedText>,
        lane: Lane,
        deadline: Deadline,
        origin: u64,
    ) -> KnowledgeResult<Vec<Arc<[f32]>>> {
        let tokens = count_tokens(&texts);
        match lane {
            Lane::Interactive if tokens <= self.largest_interactive() => {
                let permit = self.shared.inner.interactive.try_acquire(tokens)?;
                self.call(texts, lane, deadline, origin, permit).await
            }
            Lane::Interactive | Lane::Bulk => {
                let mut vectors = Vec::with_capacity(texts.len());
                for slice in slices(texts, self.shared.inner.config.bulk_slice_tokens) {
                    let permit = self.enter_bulk(count_tokens(&slice), deadline, origin).await?;
                    vectors.extend(self.call(slice, Lane::Bulk, deadline, origin, permit).await?);
                }
                Ok(vectors)
            }
        }
    }

    fn largest_interactive(&self) -> u32 {
        let inner = &self.shared.inner;
        let longest_text = u32::try_from(inner.model.max_tokens()).unwrap_or(u32::MAX);
        inner.config.interactive_request_tokens.max(longest_text)
    }

    /// Waits for free tokens in the bulk lane, after the others of this origin.
    async fn enter_bulk(&self, tokens: u32, deadline: Deadline, origin: u64) -> KnowledgeResult<Permit> {
        let inner = &self.shared.inner;
        let turn = inner.bulk_turns.wait(origin);
        let Ok(_turn) = tokio::time::timeout_at(deadline.instant().into(), turn).await else {
            return Err(deadline_exceeded());
        };
        inner.bulk.acquire(tokens, deadline).await
    }

    /// Counters and depths; none when the actor is gone.
    pub async fn stats(&self) -> Option<EmbedderStats> {
        let result = self.actor.call(EmbedderMessage::Stats, Some(STATS_TIMEOUT)).await;
        let mut stats = answer(result).ok()?;
        (stats.cache_hits, stats.cache_misses) = self.shared.inner.cache.counts();
        Some(stats)
    }

    /// Finishes what was accepted; afterwards the actor refuses everything as shutting down. False when the
    /// actor went away before it was done. Waits for as long as that takes; the caller bounds it.
    pub async fn drain(&self) -> bool {
        answer(self.actor.call(EmbedderMessage::Drain, None).await).is_ok()
    }

    async fn call(
        &self,
        texts: Vec<TokenizedText>,
        lane: Lane,
        deadline: Deadline,
        origin: u64,
        permit: Permit,
    ) -> KnowledgeResult<Vec<Arc<[f32]>>> {
        let remaining = deadline.remaining();
        if remaining.is_zero() {
            return Err(deadline_exceeded());
        }
        let result = self
            .actor
            .call(
                |reply| EmbedderMessage::Embed {
                    texts,
                    lane,
                    origin,
                    deadline,
                    permit,
                    reply,
                },
                Some(remaining),
            )
            .await;
        answer(result)?
    }
}

/// Maps what ractor can make of a call. Nothing here writes, so nothing is ever half done.
fn answer<T>(result: Result<CallResult<T>, ractor::MessagingErr<EmbedderMessage>>) -> KnowledgeResult<T> {
    match result {
        Ok(CallResult::Success(answer)) => Ok(answer),
        Ok(CallResult::Timeout) => Err(deadline_exceeded()),
        // The actor crashed while it held the request, or was gone before.
        Ok(CallResult::SenderError) | Err(_) => Err(actor_gone()),
    }
}

fn count_tokens(texts: &[TokenizedText]) -> u32 {
    let tokens: usize = texts.iter().map(TokenizedText::len).sum();
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// Cuts a request into consecutive parts of at most `max_tokens`, or of one text.
fn slices(texts: Vec<TokenizedText>, max_tokens: u32) -> Vec<Vec<TokenizedText>> {
    let mut slices = Vec::new();
    let mut slice: Vec<TokenizedText> = Vec::new();
    let mut tokens = 0;
    for text in texts {
        if !slice.is_empty() && tokens + text.len() > max_tokens as usize {
            slices.push(std::mem::take(&mut slice));
            tokens = 0;
        }
        tokens += text.len();
        slice.push(text);
    }
    if !slice.is_empty() {
        slices.push(slice);
    }
    slices
}
