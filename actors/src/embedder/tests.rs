//! The embedder as a whole: with the real model, and with engines that wait, fail or panic on demand.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use ccod_model::tokenize::TokenizedText;
use ccod_model::{EmbedEngine, EngineError, ModelCell};
use ractor::concurrency::JoinHandle;
use ractor::{Actor, ActorRef, ActorStatus};

use super::actor::*;
use super::config::EmbedderConfig;
use super::handle::*;
use super::planner::Lane;
use crate::deadline::Deadline;
use crate::error::{Executed, KnowledgeError, KnowledgeResult};

const ORIGIN: u64 = 1;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

// ---------------------------------------------------------------------------------------------------------
// The real model.

fn bundled() -> Arc<ModelCell> {
    static CELL: OnceLock<Arc<ModelCell>> = OnceLock::new();
    Arc::clone(CELL.get_or_init(|| Arc::new(ModelCell::bundled().expect("the bundled model is readable"))))
}

// ---------------------------------------------------------------------------------------------------------
// Engines that do what a test wants.

/// What a fake engine does and has seen; shared by all engines that are built for it.
struct Script {
    /// Passes that may run; each one takes one.
    permits: Mutex<usize>,
    permit_added: Condvar,
    /// Sizes of the passes that have started.
    started: Mutex<Vec<usize>>,
    /// First content token of every text that was run.
    seen: Mutex<Vec<u32>>,
    built: AtomicUsize,
    fail_to_build: AtomicBool,
    /// Passes that panic before the next good one.
    panics: AtomicUsize,
    /// Texts with this first content token make their batch fail.
    poison: AtomicU64,
}

impl Script {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Mutex::new(permits),
            permit_added: Condvar::new(),
            started: Mutex::new(Vec::new()),
            seen: Mutex::new(Vec::new()),
            built: AtomicUsize::new(0),
            fail_to_build: AtomicBool::new(false),
            panics: AtomicUsize::new(0),
            poison: AtomicU64::new(u64::MAX),
        })
    }

    fn open(&self) {
        *self.permits.lock().unwrap() = usize::MAX;
        self.permit_added.notify_all();
    }

    fn num_started(&self) -> usize {
        self.started.lock().unwrap().len()
    }

    /// The vectors of a fake engine tell which text they belong to.
    fn vector_of(text: &TokenizedText) -> Vec<f32> {
        vec![first_token(text) as f32, text.len() as f32]
    }

    fn cell(self: &Arc<Self>) -> Arc<ModelCell> {
        let script = Arc::clone(self);
        Arc::new(ModelCell::custom(
            "fake@0",
            2,
            256,
            Box::new(move || {
                if script.fail_to_build.load(Ordering::SeqCst) {
                    return Err(EngineError::Load("no such model".to_owned()));
                }
                script.built.fetch_add(1, Ordering::SeqCst);
                Ok(Box::new(FakeEngine(Arc::clone(&script))))
            }),
        ))
    }
}

fn first_token(text: &TokenizedText) -> u32 {
    text.ids()[1]
}

struct FakeEngine(Arc<Script>);

impl EmbedEngine for FakeEngine {
    fn embed(&mut self, batch: &[&TokenizedText]) -> Result<Vec<Vec<f32>>, EngineError> {
        let script = &self.0;
        script.started.lock().unwrap().push(batch.len());
        let mut permits = script.permits.lock().unwrap();
        while *permits == 0 {
            permits = script.permit_added.wait(permits).unwrap();
        }
        *permits -= 1;
        drop(permits);
        if script
            .panics
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            panic!("the script asks for a panic");
        }
        let poison = script.poison.load(Ordering::SeqCst);
        if batch.iter().any(|text| u64::from(first_token(text)) == poison) {
            return Err(EngineError::Compute("poison".to_owned()));
        }
        script
            .seen
            .lock()
            .unwrap()
            .extend(batch.iter().map(|text| first_token(text)));
        Ok(batch.iter().map(|text| Script::vector_of(text)).collect())
    }

    fn identity(&self) -> &str {
        "fake@0"
    }

    fn dimensions(&self) -> usize {
        2
    }

    fn max_tokens(&self) -> usize {
        256
    }
}

/// A running embedder.
struct Rig {
    handle: EmbedderHandle,
    actor: ActorRef<EmbedderMessage>,
    task: JoinHandle<()>,
}

impl Rig {
    async fn start(model: Arc<ModelCell>, config: EmbedderConfig) -> Self {
        let shared = EmbedderShared::new(config, model);
        let (actor, task) = Actor::spawn(None, Embedder, EmbedderArgs::new(&shared))
            .await
            .expect("the embedder starts");
        Self {
            handle: EmbedderHandle::new(actor.clone(), &shared),
            actor,
            task,
        }
    }

    async fn fake(script: &Arc<Script>) -> Self {
        Self::start(script.cell(), EmbedderConfig::default()).await
    }

    /// Texts that fake engines can tell apart.
    fn text(&self, number: usize) -> TokenizedText {
        const WORDS: [&str; 8] = ["zero", "one", "two", "three", "four", "five", "six", "seven"];
        let tokenizer = self.handle.shared().model().tokenizer().unwrap();
        tokenizer.encode_query(&format!("{} x", WORDS[number]))
    }

    fn embed(
        &self,
        texts: Vec<TokenizedText>,
        lane: Lane,
        deadline: Deadline,
    ) -> JoinHandle<KnowledgeResult<Vec<Arc<[f32]>>>> {
        let handle = self.handle.clone();
        ractor::concurrency::spawn(async move { handle.embed_passages(texts, lane, deadline, ORIGIN).await })
    }

    async fn stats(&self) -> EmbedderStats {
        self.handle.stats().await.expect("the embedder runs")
    }

    /// Returns once `holds` is true of the statistics, which it will be whatever else happens.
    async fn until(&self, holds: impl Fn(&EmbedderStats) -> bool) {
        while !holds(&self.stats().await) {
            tokio::task::yield_now().await;
        }
    }

    async fn stop(self) {
        self.actor.stop(None);
        self.task.await.expect("the embedder ends");
    }
}

#[tokio::test]
async fn requests_that_arrive_during_a_pass_share_the_next_one() {
    let script = Script::new(0);
    let rig = Rig::fake(&script).await;
    let first = rig.embed(vec![rig.text(0)], Lane::Interactive, soon());
    rig.until(|stats| stats.state == EmbedderState::Busy).await;
    let others: Vec<_> = (0..63)
        .map(|number| rig.embed(vec![rig.text(number % 8)], Lane::Interactive, soon()))
        .collect();
    rig.until(|stats| stats.requests == 64).await;
    script.open();
    assert_eq!(
        first.await.unwrap().unwrap()[0].as_ref(),
        Script::vector_of(&rig.text(0))
    );
    for (number, other) in others.into_iter().enumerate() {
        let vectors = other.await.unwrap().unwrap();
        assert_eq!(vectors[0].as_ref(), Script::vector_of(&rig.text(number % 8)));
    }
    assert_eq!(*script.started.lock().unwrap(), [1, 32, 31]);
    let stats = rig.stats().await;
    assert_eq!((stats.forward_passes, stats.texts), (3, 64));
    assert_eq!(stats.flush_causes["engine_idle"], 2);
    assert_eq!(stats.flush_causes["texts_full"], 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_real_engine_coalesces_concurrent_queries() {
    let rig = Rig::start(bundled(), EmbedderConfig::default()).await;
    let queries: Vec<String> = (0..64).map(|number| format!("question number {number}")).collect();
    let answers: Vec<_> = queries
        .iter()
        .map(|query| {
            let (handle, query) = (rig.handle.clone(), query.clone());
            tokio::spawn(async move { handle.embed_query(&query, soon(), ORIGIN).await })
        })
        .collect();
    let mut engine = bundled().build_engine().unwrap();
    for (query, answer) in queries.iter().zip(answers) {
        let vector = answer.await.unwrap().unwrap();
        let tokens = rig.handle.encode(query).await.unwrap();
        let alone = engine.embed(&[&tokens]).unwrap().remove(0);
        assert!(vector.iter().zip(&alone).all(|(one, other)| (one - other).abs() < 1e-4));
    }
    let stats = rig.stats().await;
    assert_eq!(stats.texts, 64);
    assert!(stats.forward_passes < 64, "{}", stats.forward_passes);
    assert!(stats.loaded && stats.load_ms.is_some());
    rig.stop().await;
}

#[tokio::test]
async fn the_model_loads_at_the_first_request_or_when_warm() {
    let script = Script::new(usize::MAX);
    let rig = Rig::fake(&script).await;
    assert!(!rig.stats().await.loaded);
    assert_eq!(script.built.load(Ordering::SeqCst), 0);
    rig.handle.embed_query("a", soon(), ORIGIN).await.unwrap();
    assert!(rig.stats().await.loaded);
    rig.stop().await;

    let script = Script::new(usize::MAX);
    let config = EmbedderConfig {
        warm: true,
        ..EmbedderConfig::default()
    };
    let rig = Rig::start(script.cell(), config).await;
    rig.until(|stats| stats.loaded && stats.state == EmbedderState::Idle)
        .await;
    assert_eq!(script.num_started(), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_poisonous_text_fails_alone() {
    let script = Script::new(0);
    let rig = Rig::fake(&script).await;
    script
        .poison
        .store(u64::from(first_token(&rig.text(3))), Ordering::SeqCst);
    let first = rig.embed(vec![rig.text(0)], Lane::Interactive, soon());
    rig.until(|stats| stats.state == EmbedderState::Busy).await;
    let others: Vec<_> = (1..8)
        .map(|number| rig.embed(vec![rig.text(number)], Lane::Interactive, soon()))
        .collect();
    rig.until(|stats| stats.requests == 8).await;
    script.open();
    first.await.unwrap().unwrap();
    for (index, other) in others.into_iter().enumerate() {
        match (index + 1, other.await.unwrap()) {
            (3, outcome) => assert!(matches!(outcome, Err(KnowledgeError::Internal { .. }))),
            (number, outcome) => assert_eq!(outcome.unwrap()[0].as_ref(), Script::vector_of(&rig.text(number))),
        }
    }
    let stats = rig.stats().await;
    assert_eq!((stats.texts, stats.failed_texts), (7, 1));
    assert!(stats.forward_passes > 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_failed_request_takes_its_other_texts_along() {
    let script = Script::new(usize::MAX);
    let rig = Rig::fake(&script).await;
    script
        .poison
        .store(u64::from(first_token(&rig.text(0))), Ordering::SeqCst);
    // More texts than a batch takes: the rest must not run once the first has failed.
    let texts = (0..100).map(|number| rig.text(number % 8)).collect();
    let outcome = rig.embed(texts, Lane::Interactive, soon()).await.unwrap();
    assert!(matches!(outcome, Err(KnowledgeError::Internal { .. })));
    rig.until(|stats| stats.state == EmbedderState::Idle).await;
    let stats = rig.stats().await;
    assert_eq!(stats.texts + stats.failed_texts, 32);
    assert!(stats.queue_depth.values().all(|depth| *depth == 0));
    rig.stop().await;
}

#[tokio::test]
async fn a_panic_fails_its_batch_only_and_the_engine_is_rebuilt() {
    let script = Script::new(usize::MAX);
    let rig = Rig::fake(&script).await;
    for _ in 0..3 {
        script.panics.store(1, Ordering::SeqCst);
        let outcome = rig.embed(vec![rig.text(1)], Lane::Interactive, soon()).await.unwrap();
        assert!(matches!(
            outcome,
            Err(KnowledgeError::Unavailable { part: "embedder", .. })
        ));
        let outcome = rig.embed(vec![rig.text(1)], Lane::Interactive, soon()).await.unwrap();
        assert_eq!(outcome.unwrap()[0].as_ref(), Script::vector_of(&rig.text(1)));
    }
    assert_eq!(rig.stats().await.engine_panics, 3);
    assert_eq!(script.built.load(Ordering::SeqCst), 4);
    rig.stop().await;
}

#[tokio::test]
async fn two_panics_in_a_row_end_the_actor_and_everybody_is_answered() {
    let script = Script::new(0);
    let rig = Rig::fake(&script).await;
    script.panics.store(2, Ordering::SeqCst);
    let first = rig.embed(vec![rig.text(0)], Lane::Interactive, soon());
    rig.until(|stats| stats.state == EmbedderState::Busy).await;
    // Three batches' worth: one for the second panic, the rest is in the queue when the actor ends.
    let others: Vec<_> = (0..96)
        .map(|_| rig.embed(vec![rig.text(1)], Lane::Interactive, soon()))
        .collect();
    rig.until(|stats| stats.requests == 97).await;
    script.open();
    for request in std::iter::once(first).chain(others) {
        assert!(matches!(
            request.await.unwrap(),
            Err(KnowledgeError::Unavailable { part: "embedder", .. })
        ));
    }
    rig.task.await.unwrap();
    assert_eq!(rig.actor.get_status(), ActorStatus::Stopped);
    // A handle to an actor that is gone answers, too, and no budget is lost.
    assert!(matches!(
        rig.handle.embed_query("later", soon(), ORIGIN).await,
        Err(KnowledgeError::Unavailable { .. })
    ));
    assert!(rig.handle.stats().await.is_none());
    assert_eq!(rig.handle.shared().tokens_in_use(), (0, 0));
}

#[tokio::test]
async fn abandoned_requests_never_reach_the_engine() {
    let script = Script::new(0);
    let rig = Rig::fake(&script).await;
    let first = rig.embed(vec![rig.text(0)], Lane::Interactive, soon());
    rig.until(|stats| stats.state == EmbedderState::Busy).await;
    for lane in [Lane::Interactive, Lane::Bulk] {
        let abandoned = rig.embed(vec![rig.text(1), rig.text(2)], lane, soon());
        let requests = rig.stats().await.requests;
        rig.until(|stats| stats.requests > requests || abandoned.is_finished())
            .await;
        abandoned.abort();
        assert!(abandoned.await.is_err());
    }
    let last = rig.embed(vec![rig.text(3)], Lane::Bulk, soon());
    rig.until(|stats| stats.requests == 4).await;
    script.open();
    first.await.unwrap().unwrap();
    last.await.unwrap().unwrap();
    let expected: Vec<u32> = [0, 3].map(|number| first_token(&rig.text(number))).into();
    assert_eq!(*script.seen.lock().unwrap(), expected);
    assert_eq!(rig.stats().await.abandoned_texts, 4);
    assert_eq!(rig.handle.shared().tokens_in_use(), (0, 0));
    rig.stop().await;
}

#[tokio::test]
async fn a_request_that_expires_in_the_queue_is_answered_and_never_runs() {
    let script = Script::new(0);
    let rig = Rig::fake(&script).await;
    let first = rig.embed(vec![rig.text(0)], Lane::Interactive, soon());
    rig.until(|stats| stats.state == EmbedderState::Busy).await;
    let late = Deadline::after(Duration::from_millis(20));
    let outcome = rig.embed(vec![rig.text(1)], Lane::Interactive, late).await.unwrap();
    assert!(matches!(
        outcome,
        Err(KnowledgeError::DeadlineExceeded { executed: Executed::No })
    ));
    script.open();
    first.await.unwrap().unwrap();
    assert_eq!(script.seen.lock().unwrap().len(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_full_interactive_lane_is_refused_at_once() {
    let script = Script::new(0);
    let config = EmbedderConfig {
        interactive_queue_tokens: 8,
        ..EmbedderConfig::default()
    };
    let rig = Rig::start(script.cell(), config).await;
    // Four tokens each.
    let accepted: Vec<_> = (0..2)
        .map(|number| rig.embed(vec![rig.text(number)], Lane::Interactive, soon()))
        .collect();
    rig.until(|stats| stats.requests == 2).await;
    assert!(matches!(
        rig.handle.embed_query("one more", soon(), ORIGIN).await,
        Err(KnowledgeError::Busy {
            retry_after_ms: 250,
            ..
        })
    ));
    script.open();
    for request in accepted {
        request.await.unwrap().unwrap();
    }
    rig.handle.embed_query("one more", soon(), ORIGIN).await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn a_bulk_request_larger_than_the_whole_budget_enters_in_slices() {
    let script = Script::new(usize::MAX);
    let config = EmbedderConfig {
        bulk_queue_tokens: 40,
        bulk_slice_tokens: 20,
        ..EmbedderConfig::default()
    };
    let rig = Rig::start(script.cell(), config).await;
    let texts: Vec<TokenizedText> = (0..200).map(|number| rig.text(number % 8)).collect();
    let expected: Vec<Vec<f32>> = texts.iter().map(Script::vector_of).collect();
    let requests: Vec<_> = (0..4).map(|_| rig.embed(texts.clone(), Lane::Bulk, soon())).collect();
    for request in requests {
        let vectors = request.await.unwrap().unwrap();
        assert!(
            vectors
                .iter()
                .zip(&expected)
                .all(|(vector, expected)| vector.as_ref() == expected)
        );
        assert_eq!(vectors.len(), 200);
    }
    // One that waits for free tokens for ever fails at its deadline.
    *script.permits.lock().unwrap() = 0;
    let blocking: Vec<_> = (0..2).map(|_| rig.embed(texts.clone(), Lane::Bulk, soon())).collect();
    rig.until(|_| rig.handle.shared().tokens_in_use().1 == 40).await;
    let late = Deadline::after(Duration::from_millis(20));
    assert!(matches!(
        rig.embed(texts, Lane::Bulk, late).await.unwrap(),
        Err(KnowledgeError::DeadlineExceeded { .. })
    ));
    script.open();
    for request in blocking {
        request.await.unwrap().unwrap();
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_drain_finishes_what_was_accepted_and_refuses_the_rest() {
    let script = Script::new(0);
    let rig = Rig::fake(&script).await;
    let accepted: Vec<_> = (0..80)
        .map(|number| {
            let lane = if number % 2 == 0 { Lane::Interactive } else { Lane::Bulk };
            rig.embed(vec![rig.text(number % 8)], lane, soon())
        })
        .collect();
    rig.until(|stats| stats.requests == 80).await;
    let handle = rig.handle.clone();
    let drain = tokio::spawn(async move { handle.drain().await });
    rig.until(|stats| stats.state == EmbedderState::Draining).await;
    assert!(matches!(
        rig.embed(vec![rig.text(0)], Lane::Bulk, soon()).await.unwrap(),
        Err(KnowledgeError::ShuttingDown)
    ));
    assert!(!drain.is_finished());
    script.open();
    assert!(drain.await.unwrap());
    for request in accepted {
        request.await.unwrap().unwrap();
    }
    assert!(rig.stats().await.flush_causes["drain"] > 0);
    // An idle embedder drains at once.
    assert!(rig.handle.drain().await);
    rig.stop().await;
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_reported_with_its_reason() {
    let script = Script::new(usize::MAX);
    script.fail_to_build.store(true, Ordering::SeqCst);
    let rig = Rig::fake(&script).await;
    for _ in 0..3 {
        let outcome = rig.handle.embed_query("a", soon(), ORIGIN).await;
        let Err(KnowledgeError::Unavailable { part, reason }) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(part, "embedder");
        assert!(reason.contains("no such model"), "{reason}");
    }
    assert!(!rig.stats().await.loaded);
    rig.stop().await;
}

#[tokio::test]
async fn a_repeated_query_is_answered_from_the_cache() {
    let script = Script::new(usize::MAX);
    let rig = Rig::fake(&script).await;
    let first = rig.handle.embed_query("again", soon(), ORIGIN).await.unwrap();
    let second = rig.handle.embed_query("again", soon(), ORIGIN).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    let stats = rig.stats().await;
    assert_eq!((stats.cache_hits, stats.cache_misses), (1, 1));
    assert_eq!(stats.forward_passes, 1);
    rig.stop().await;
}

#[test]
fn the_cache_is_bounded_and_can_be_switched_off() {
    let vector: Arc<[f32]> = Arc::from(vec![1.0]);
    let cache = QueryCache::new(2);
    assert!(cache.is_empty());
    for text in ["a", "b", "c"] {
        cache.insert(text, Arc::clone(&vector));
    }
    cache.insert(&"long ".repeat(1000), Arc::clone(&vector));
    assert_eq!(cache.len(), 2);
    assert!(cache.get("a").is_none());
    assert!(cache.get("c").is_some());
    let off = QueryCache::new(0);
    off.insert("a", vector);
    assert!(off.get("a").is_none());
}

#[tokio::test]
async fn long_texts_are_split_off_the_runtime() {
    let script = Script::new(usize::MAX);
    let rig = Rig::fake(&script).await;
    let text = "A sentence of some words. ".repeat(5_000);
    let passages = rig.handle.passages(&text, Lane::Interactive, ORIGIN).await.unwrap();
    assert!(passages.len() > 50);
    assert!(rig.handle.encode(&text).await.unwrap().truncated());
    assert!(!rig.handle.encode("short").await.unwrap().truncated());
    rig.stop().await;
}

#[tokio::test]
async fn a_large_request_is_bulk_and_keeps_nobody_out() {
    let script = Script::new(0);
    let rig = Rig::fake(&script).await;
    let passage = rig.handle.encode(&"word ".repeat(300)).await.unwrap();
    assert_eq!(passage.len(), 256);
    // More than the whole interactive lane takes: as interactive work it would leave no tokens for anybody.
    let text = vec![passage; 100];
    let in_all: u32 = text.iter().map(|passage| passage.len() as u32).sum();
    let config = rig.handle.shared().config();
    assert!(in_all > config.interactive_queue_tokens);
    let (slice, interactive) = (config.bulk_slice_tokens, config.interactive_request_tokens);
    let large = rig.embed(text.clone(), Lane::Interactive, soon());
    rig.until(|stats| stats.requests == 1).await;
    let (in_use, bulk_in_use) = rig.handle.shared().tokens_in_use();
    assert_eq!(in_use, 0);
    assert!(bulk_in_use > interactive && bulk_in_use <= slice, "{bulk_in_use}");
    // Searches and stores of others are taken meanwhile, and run before the rest of it.
    let small: Vec<_> = (0..8)
        .map(|number| rig.embed(vec![rig.text(number)], Lane::Interactive, soon()))
        .collect();
    rig.until(|stats| stats.queue_depth["interactive_texts"] == 8).await;
    script.open();
    for request in small {
        request.await.unwrap().unwrap();
    }
    let vectors = large.await.unwrap().unwrap();
    assert_eq!(vectors.len(), text.len());
    let seen = script.seen.lock().unwrap().clone();
    let word = first_token(&text[0]);
    let after_the_last_small = seen.iter().rev().take_while(|seen| **seen == word).count();
    assert!(
        after_the_last_small > 90,
        "{after_the_last_small} of 100 passages ran after them"
    );
    assert_eq!(rig.handle.shared().tokens_in_use(), (0, 0));
    // Four passages are not large.
    *script.permits.lock().unwrap() = 0;
    let four = rig.embed(text[..4].to_vec(), Lane::Interactive, soon());
    rig.until(|stats| stats.requests > 8 && stats.state == EmbedderState::Busy)
        .await;
    assert_eq!(rig.handle.shared().tokens_in_use(), (1024, 0));
    script.open();
    four.await.unwrap().unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn many_requests_of_one_connection_wait_at_the_bulk_door_once() {
    let script = Script::new(0);
    // Room for two texts of four tokens.
    let config = EmbedderConfig {
        bulk_queue_tokens: 8,
        bulk_slice_tokens: 8,
        max_batch: 1,
        ..EmbedderConfig::default()
    };
    let rig = Rig::start(script.cell(), config).await;
    let batch: Vec<_> = (0..50)
        .map(|_| rig.embed(vec![rig.text(0)], Lane::Bulk, soon()))
        .collect();
    rig.until(|stats| stats.requests == 2).await;
    let handle = rig.handle.clone();
    let text = rig.text(7);
    let other_word = first_token(&text);
    let other = tokio::spawn(async move { handle.embed_passages(vec![text], Lane::Bulk, soon(), ORIGIN + 1).await });
    // Until it waits at the door: the statistics are asked for again and again in between.
    for _ in 0..50 {
        rig.stats().await;
        tokio::task::yield_now().await;
    }
    script.open();
    other.await.unwrap().unwrap();
    for request in batch {
        request.await.unwrap().unwrap();
    }
    let seen = script.seen.lock().unwrap().clone();
    let place = seen.iter().position(|word| *word == other_word).unwrap();
    assert!(place <= 4, "it ran as number {place} of {}", seen.len());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_long_text_that_is_tokenised_holds_up_no_search() {
    let rig = Rig::fake(&Script::new(usize::MAX)).await;
    rig.handle.encode("loads the tokenizer").await.unwrap();
    let long = "some words, and more of them. ".repeat(200_000);
    let bulk = tokio::spawn({
        let handle = rig.handle.clone();
        async move { handle.passages(&long, Lane::Interactive, ORIGIN).await.unwrap().len() }
    });
    let batch = tokio::spawn({
        let handle = rig.handle.clone();
        let texts = vec!["a text of a batch ".repeat(20); 2_000];
        async move { handle.encode_all(texts, ORIGIN).await.unwrap().len() }
    });
    let query = "a query that is too long to be tokenised on the spot ".repeat(200);
    for _ in 0..3 {
        rig.handle.encode(&query).await.unwrap();
    }
    assert!(!bulk.is_finished() || !batch.is_finished());
    assert!(bulk.await.unwrap() > 1_000);
    assert_eq!(batch.await.unwrap(), 2_000);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_random_failures_every_request_is_answered_once_and_correctly() {
    let script = Script::new(usize::MAX);
    let rig = Rig::fake(&script).await;
    script
        .poison
        .store(u64::from(first_token(&rig.text(7))), Ordering::SeqCst);
    let mut requests = Vec::new();
    // A fixed pseudo-random sequence: multiples of an odd number modulo a power of two.
    for step in 0..400usize {
        let random = step * 40_503 % 65_536;
        let numbers: Vec<usize> = (0..=random % 5).map(|index| (random / 7 + index) % 8).collect();
        let texts: Vec<TokenizedText> = numbers.iter().map(|number| rig.text(*number)).collect();
        let lane = if random % 3 == 0 { Lane::Bulk } else { Lane::Interactive };
        let poisoned = numbers.contains(&7);
        let expected: Vec<Vec<f32>> = texts.iter().map(Script::vector_of).collect();
        let request = rig.embed(texts, lane, soon());
        if random % 11 == 0 {
            request.abort();
        }
        requests.push((request, poisoned, expected));
    }
    for (request, poisoned, expected) in requests {
        match request.await {
            Err(aborted) => assert!(aborted.is_cancelled()),
            Ok(Ok(vectors)) => {
                assert!(!poisoned);
                let vectors: Vec<Vec<f32>> = vectors.iter().map(|vector| vector.to_vec()).collect();
                assert_eq!(vectors, expected);
            }
            Ok(Err(error)) => {
                assert!(poisoned, "{error}");
                assert!(matches!(error, KnowledgeError::Internal { .. }));
            }
        }
    }
    rig.until(|stats| stats.state == EmbedderState::Idle).await;
    assert_eq!(rig.handle.shared().tokens_in_use(), (0, 0));
    rig.stop().await;
}

#[test]
fn the_default_limits_are_valid_and_bad_ones_are_named() {
    EmbedderConfig::default().validate(256).unwrap();
    let bad = EmbedderConfig {
        batch_tokens: 100,
        ..EmbedderConfig::default()
    };
    assert!(bad.validate(256).unwrap_err().contains("batch_tokens"));
}
