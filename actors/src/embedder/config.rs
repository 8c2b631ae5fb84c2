//! The limits of the embedder.

use std::time::Duration;

/// Limits of the embedder. The defaults suit a laptop's CPU; `docs/performance.md` has the measurements.
#[derive(Clone, Debug)]
pub struct EmbedderConfig {
    /// Load the model when the actor starts instead of at the first request. Off: most sessions of the daemon
    /// begin with commands that need no vectors, and loading takes a fraction of a second.
    pub warm: bool,
    /// Time without a text to embed after which the model is given up until the next one; none keeps it.
    pub unload_after: Option<Duration>,
    /// Texts per forward pass at most. Beyond some dozens nothing gets faster, only the wait longer.
    pub max_batch: usize,
    /// Cost of a forward pass at most, in tokens. It bounds how long queries that arrive together wait for each
    /// other, and the memory of a pass. A CPU does as many tokens a second at 256 as at 1,000, and fewer beyond.
    pub batch_tokens: usize,
    /// Cost of a bulk pass at most while somebody asks, in tokens: the delay that a query meets when it arrives
    /// during one. At 64 a CPU lacks a fifth of its throughput at 128, and a query waits for half as long.
    pub bulk_quantum_tokens: usize,
    /// Time without interactive texts after which bulk gets whole batches.
    pub quiet: Duration,
    /// Tokens of interactive requests that may be queued or running; more is refused as busy. Some seconds of
    /// work: what would wait longer is better refused at once.
    pub interactive_queue_tokens: u32,
    /// Tokens of one request that may be interactive; a larger one is bulk, whatever method brought it. Some four
    /// passages: a request that takes longer than a few queries must neither fill the lane nor hold them up. One text
    /// that the model takes whole may always be.
    pub interactive_request_tokens: u32,
    /// Tokens of bulk requests that may be queued or running; more waits at the door. Enough to keep the engine
    /// busy for minutes, and a few megabytes.
    pub bulk_queue_tokens: u32,
    /// Tokens of one slice of a bulk request. A request larger than that enters slice by slice, so that it
    /// neither needs the whole budget at once nor keeps others out until its end.
    pub bulk_slice_tokens: u32,
    /// Entries of the cache of query vectors; each takes its text and, at 384 dimensions, 1.5 KiB. 0 switches
    /// it off.
    pub query_cache: usize,
    /// When a refused request should be tried again, in milliseconds.
    pub retry_after_ms: u64,
    /// Batches without bulk, while bulk waits, after which bulk gets half a batch.
    pub max_bulk_skips: u32,
    /// Time without bulk, while bulk waits, after which bulk gets half a batch.
    pub max_bulk_wait: Duration,
}

impl Default for EmbedderConfig {
    fn default() -> Self {
        Self {
            warm: false,
            unload_after: None,
            max_batch: 32,
            batch_tokens: 512,
            bulk_quantum_tokens: 64,
            quiet: Duration::from_secs(10),
            interactive_queue_tokens: 16 * 1024,
            interactive_request_tokens: 1024,
            bulk_queue_tokens: 256 * 1024,
            bulk_slice_tokens: 8 * 1024,
            query_cache: 1024,
            retry_after_ms: 250,
            max_bulk_skips: 4,
            max_bulk_wait: Duration::from_secs(2),
        }
    }
}

impl EmbedderConfig {
    /// Checks the limits against each other and against the model's token limit; the message names the culprit.
    pub fn validate(&self, max_tokens: usize) -> Result<(), String> {
        if self.max_batch == 0 {
            return Err("max_batch must be at least 1".to_owned());
        }
        if self.batch_tokens < max_tokens {
            return Err(format!(
                "batch_tokens must be at least {max_tokens}, the model's limit per text"
            ));
        }
        if self.bulk_quantum_tokens == 0 || self.bulk_quantum_tokens > self.batch_tokens {
            return Err("bulk_quantum_tokens must be between 1 and batch_tokens".to_owned());
        }
        if self.interactive_queue_tokens == 0 || self.bulk_slice_tokens == 0 {
            return Err("interactive_queue_tokens and bulk_slice_tokens must be at least 1".to_owned());
        }
        if self.bulk_slice_tokens > self.bulk_queue_tokens {
            return Err("bulk_slice_tokens must be at most bulk_queue_tokens".to_owned());
        }
        Ok(())
    }
}
