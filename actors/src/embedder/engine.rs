//! The engine: what turns token ids into vectors, on an operating system thread of its own.
//!
//! A forward pass is milliseconds of pure computation, so it never runs on the async runtime. The actor hands
//! one batch at a time to the [`EngineThread`] and gets one [`EngineReport`] back; in between it stays
//! responsive. The thread owns the engine, and guarantees that every batch is reported, however the engine
//! fails:
//!
//! * an error is narrowed down by bisection, so that only the text that causes it fails;
//! * a panic fails the texts without a vector with a retryable error, and the engine is rebuilt from the cached
//!   weights for the next batch;
//! * an engine that cannot be loaded fails the batch with the reason, and loading is tried again later.
//!
//! An engine that has nothing to do for a while gives back the memory of its last passes, and after a longer while the
//! model is given up until it is needed again.

use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ccod_model::tokenize::TokenizedText;
use ccod_model::{EmbedEngine, EngineError, ModelCell};
use thiserror::Error;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::{memory, panics};

/// Name of this part of the daemon in [`KnowledgeError::Unavailable`].
pub(super) const PART: &str = "embedder";

/// How long a failed load is remembered. Until then requests fail at once with the same reason; a model
/// directory on a dead network mount is not waited for by each of them.
const LOAD_RETRY_AFTER: Duration = Duration::from_secs(5);

/// How long an engine has nothing to do before it gives back what its last passes took.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(5);

/// A batch for the engine thread.
#[derive(Debug)]
pub struct EngineJob {
    /// The number that the report will carry.
    pub batch: u64,
    /// The texts; none means: just load the model.
    pub texts: Vec<TokenizedText>,
}

/// What became of a batch.
pub struct EngineReport {
    /// The job's number.
    pub batch: u64,
    /// One outcome per text, in the job's order.
    pub outcomes: Vec<KnowledgeResult<Arc<[f32]>>>,
    /// Forward passes that this took: one, more when errors were narrowed down, none when loading failed.
    pub forward_passes: u64,
    /// Whether the engine panicked.
    pub panicked: bool,
    /// Time in the engine, without loading.
    pub busy: Duration,
}

/// Shows counts only; vectors reveal the texts they come from.
impl fmt::Debug for EngineReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EngineReport")
            .field("batch", &self.batch)
            .field("texts", &self.outcomes.len())
            .field("forward_passes", &self.forward_passes)
            .field("panicked", &self.panicked)
            .finish_non_exhaustive()
    }
}

/// The handle of the engine thread. Dropping it ends the thread after the batch in hand.
pub struct EngineThread {
    jobs: mpsc::Sender<EngineJob>,
}

/// The engine thread is gone; only a panic outside the engine can cause that.
#[derive(Debug, Error)]
#[error("the engine thread is gone")]
pub struct EngineGone;

impl EngineThread {
    /// Starts the thread. `report` is called on it once per job. After `unload_after` without one the model is given up;
    /// none keeps it.
    pub fn spawn(
        model: Arc<ModelCell>,
        unload_after: Option<Duration>,
        report: impl Fn(EngineReport) + Send + 'static,
    ) -> std::io::Result<Self> {
        // Unbounded by type, but the actor never has more than one job out.
        let (jobs, inbox) = mpsc::channel::<EngineJob>();
        std::thread::Builder::new()
            .name("ccod-engine".to_owned())
            .spawn(move || {
                let mut worker = Worker {
                    model,
                    engine: None,
                    load_failed: None,
                    retry_load_after: LOAD_RETRY_AFTER,
                };
                while let Some(job) = worker.next(&inbox, unload_after) {
                    report(worker.run(&job));
                }
            })?;
        Ok(Self { jobs })
    }

    /// Hands over a batch.
    pub fn submit(&self, job: EngineJob) -> Result<(), EngineGone> {
        self.jobs.send(job).map_err(|_| EngineGone)
    }
}

/// State of the engine thread.
struct Worker {
    model: Arc<ModelCell>,
    engine: Option<Box<dyn EmbedEngine>>,
    load_failed: Option<(Instant, KnowledgeError)>,
    retry_load_after: Duration,
}

/// Outcomes of a batch as they come in; a slot stays empty until the outcome of its text is known.
struct Progress {
    outcomes: Vec<Option<KnowledgeResult<Arc<[f32]>>>>,
    forward_passes: u64,
}

impl Worker {
    /// The next batch; none at the end. Gives back meanwhile what an engine without work need not keep.
    fn next(&mut self, inbox: &mpsc::Receiver<EngineJob>, unload_after: Option<Duration>) -> Option<EngineJob> {
        let first = unload_after.map_or(GIVE_BACK_AFTER, |unload_after| unload_after.min(GIVE_BACK_AFTER));
        match inbox.recv_timeout(first) {
            Ok(job) => return Some(job),
            Err(mpsc::RecvTimeoutError::Timeout) => memory::give_back_here(),
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
        }
        if let Some(unload_after) = unload_after.filter(|_| self.engine.is_some()) {
            match inbox.recv_timeout(unload_after.saturating_sub(first)) {
                Ok(job) => return Some(job),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.engine = None;
                    self.model.unload();
                    memory::give_back_here();
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            }
        }
        inbox.recv().ok()
    }

    fn run(&mut self, job: &EngineJob) -> EngineReport {
        let mut progress = Progress {
            outcomes: vec![None; job.texts.len()],
            forward_passes: 0,
        };
        let mut busy = Duration::ZERO;
        let mut panicked = false;
        // What the texts without an outcome fail with.
        let failure = match self.ensure_engine() {
            Err(error) => error,
            Ok(engine) => {
                let texts: Vec<&TokenizedText> = job.texts.iter().collect();
                let start = Instant::now();
                let result = panics::catch_in(|| {
                    if !texts.is_empty() {
                        embed_or_bisect(engine, &texts, 0, &mut progress);
                    }
                });
                busy = start.elapsed();
                if let Err(panic) = result {
                    panicked = true;
                    tracing::error!(texts = texts.len(), %panic, "the embedding engine failed");
                    // Its state may be broken. The weights are outside it and immutable.
                    self.engine = None;
                }
                unavailable("the engine failed while it ran this batch and was rebuilt")
            }
        };
        EngineReport {
            batch: job.batch,
            outcomes: progress
                .outcomes
                .into_iter()
                .map(|outcome| outcome.unwrap_or_else(|| Err(failure.clone())))
                .collect(),
            forward_passes: progress.forward_passes,
            panicked,
            busy,
        }
    }

    fn ensure_engine(&mut self) -> KnowledgeResult<&mut dyn EmbedEngine> {
        if self.engine.is_none() {
            if let Some((when, error)) = &self.load_failed
                && when.elapsed() < self.retry_load_after
            {
                return Err(error.clone());
            }
            let built = panics::catch_in(|| self.model.build_engine())
                .unwrap_or_else(|panic| Err(EngineError::Load(format!("loading it ended in {panic}"))));
            match built {
                Ok(engine) => {
                    self.load_failed = None;
                    self.engine = Some(engine);
                }
                Err(error) => {
                    tracing::error!(%error, "no embedding engine");
                    let error = unavailable(error);
                    self.load_failed = Some((Instant::now(), error.clone()));
                    return Err(error);
                }
            }
        }
        match &mut self.engine {
            Some(engine) => Ok(engine.as_mut()),
            None => Err(unavailable("there is no engine")),
        }
    }
}

pub(super) fn unavailable(reason: impl fmt::Display) -> KnowledgeError {
    KnowledgeError::Unavailable {
        part: PART,
        reason: reason.to_string(),
    }
}

/// Embeds `texts`, the outcomes of which start at `offset`; when that fails, each half alone, down to the
/// single text that the error belongs to.
fn embed_or_bisect(engine: &mut dyn EmbedEngine, texts: &[&TokenizedText], offset: usize, progress: &mut Progress) {
    progress.forward_passes += 1;
    match (forward(engine, texts), texts.len()) {
        (Ok(vectors), _) => {
            for (slot, vector) in progress.outcomes[offset..].iter_mut().zip(vectors) {
                *slot = Some(Ok(Arc::from(vector)));
            }
        }
        (Err(error), 1) => {
            tracing::warn!(%error, tokens = texts[0].len(), "a text could not be embedded");
            progress.outcomes[offset] = Some(Err(KnowledgeError::internal(error)));
        }
        (Err(_), num_texts) => {
            let (first, second) = texts.split_at(num_texts / 2);
            embed_or_bisect(engine, first, offset, progress);
            embed_or_bisect(engine, second, offset + first.len(), progress);
        }
    }
}

/// One forward pass, checked: a vector that is not finite would poison every distance it takes part in.
fn forward(engine: &mut dyn EmbedEngine, texts: &[&TokenizedText]) -> Result<Vec<Vec<f32>>, EngineError> {
    fail::fail_point!("engine::forward", |message: Option<String>| {
        Err(EngineError::Compute(message.unwrap_or_default()))
    });
    let vectors = engine.embed(texts)?;
    if vectors.len() != texts.len() {
        return Err(EngineError::Compute(format!(
            "{} texts gave {} vectors",
            texts.len(),
            vectors.len()
        )));
    }
    let dimensions = engine.dimensions();
    let is_sound = |vector: &Vec<f32>| vector.len() == dimensions && vector.iter().all(|value| value.is_finite());
    if vectors.iter().all(is_sound) {
        Ok(vectors)
    } else {
        Err(EngineError::Compute(
            "a vector has the wrong length or is not finite".to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Gives what it is told to.
    struct Fixed(Vec<Vec<f32>>);

    impl EmbedEngine for Fixed {
        fn embed(&mut self, _batch: &[&TokenizedText]) -> Result<Vec<Vec<f32>>, EngineError> {
            Ok(self.0.clone())
        }

        fn identity(&self) -> &str {
            "fixed@0"
        }

        fn dimensions(&self) -> usize {
            2
        }

        fn max_tokens(&self) -> usize {
            256
        }
    }

    fn worker(
        retry_load_after: Duration,
        build: impl Fn() -> Result<Vec<Vec<f32>>, EngineError> + Send + Sync + 'static,
    ) -> Worker {
        let factory = move || build().map(|vectors| Box::new(Fixed(vectors)) as Box<dyn EmbedEngine>);
        Worker {
            model: Arc::new(ModelCell::custom("fixed@0", 2, 256, Box::new(factory))),
            engine: None,
            load_failed: None,
            retry_load_after,
        }
    }

    fn run_one(worker: &mut Worker) -> KnowledgeResult<Arc<[f32]>> {
        let tokenizer = worker.model.tokenizer().unwrap();
        let mut report = worker.run(&EngineJob {
            batch: 1,
            texts: vec![tokenizer.encode_query("text")],
        });
        assert_eq!((report.batch, report.outcomes.len()), (1, 1));
        report.outcomes.remove(0)
    }

    #[test]
    fn vectors_that_are_not_sound_are_not_passed_on() {
        for vectors in [
            vec![vec![f32::NAN, 0.0]],
            vec![vec![f32::INFINITY, 0.0]],
            vec![vec![1.0]],
            vec![],
            vec![vec![1.0, 0.0]; 2],
        ] {
            let mut worker = worker(Duration::ZERO, move || Ok(vectors.clone()));
            assert!(matches!(run_one(&mut worker), Err(KnowledgeError::Internal { .. })));
        }
        let mut worker = worker(Duration::ZERO, || Ok(vec![vec![0.6, 0.8]]));
        assert_eq!(run_one(&mut worker).unwrap().as_ref(), [0.6, 0.8]);
    }

    #[test]
    fn a_failed_load_is_tried_again_but_not_at_once() {
        for (retry_after, num_loads) in [(Duration::ZERO, 3), (Duration::from_secs(3600), 1)] {
            let loads = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&loads);
            let mut worker = worker(retry_after, move || {
                // The second kind of failure: the loader itself breaks.
                assert_ne!(counter.fetch_add(1, Ordering::SeqCst), 1, "the loader breaks");
                Err(EngineError::Load("not there".to_owned()))
            });
            for _ in 0..3 {
                assert!(matches!(
                    run_one(&mut worker),
                    Err(KnowledgeError::Unavailable { part: PART, .. })
                ));
            }
            assert_eq!(loads.load(Ordering::SeqCst), num_loads);
        }
    }

    #[test]
    fn a_model_that_nobody_needs_is_given_up_and_loaded_again() {
        let loads = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&loads);
        let factory = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(Fixed(vec![vec![0.6, 0.8]])) as Box<dyn EmbedEngine>)
        };
        let model = Arc::new(ModelCell::custom("fixed@0", 2, 256, Box::new(factory)));
        let (reported, reports) = mpsc::channel();
        let thread = EngineThread::spawn(Arc::clone(&model), Some(Duration::from_millis(20)), move |report| {
            reported.send(report.outcomes.len()).unwrap();
        })
        .unwrap();
        for load in 1..=2 {
            let texts = vec![model.tokenizer().unwrap().encode_query("text")];
            thread.submit(EngineJob { batch: load, texts }).unwrap();
            assert_eq!(reports.recv().unwrap(), 1);
            assert_eq!(loads.load(Ordering::SeqCst) as u64, load);
            while model.load_time().is_some() {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(model.loaded_tokenizer().is_none());
        }
    }

    #[test]
    fn a_job_without_texts_just_loads() {
        let mut worker = worker(Duration::ZERO, || Ok(vec![]));
        let report = worker.run(&EngineJob {
            batch: 7,
            texts: Vec::new(),
        });
        assert_eq!((report.forward_passes, report.panicked), (0, false));
        assert!(worker.engine.is_some());
    }
}
