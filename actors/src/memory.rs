//! Gives memory back to the system when the work is done.
//!
//! An allocator keeps what a thread has freed for the thread's next blocks, and only the thread itself can give it back.
//! So after a burst of work every thread that has done some is asked to. The program says how ([`give_back_by`]), since
//! it has the allocator.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static HOW: OnceLock<fn()> = OnceLock::new();
/// How often all threads were asked.
static ROUND: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The round in which this thread has last given back.
    static DONE: Cell<u64> = const { Cell::new(0) };
}

/// Says how a thread gives back what it has freed. Without, nothing is given back.
pub fn give_back_by(how: fn()) {
    // The first one stands; there is one allocator.
    HOW.set(how).ok();
}

/// Gives back what this thread has freed, and what no thread uses.
pub fn give_back_here() {
    if let Some(how) = HOW.get() {
        how();
    }
}

/// Has every thread of the runtime give back what it has freed, when it next has nothing to do.
pub async fn give_back() {
    ROUND.fetch_add(1, Ordering::Relaxed);
    // Those that wait for work already get some.
    for _ in 0..tokio::runtime::Handle::current().metrics().num_workers() {
        tokio::spawn(tokio::task::yield_now());
    }
    tokio::task::yield_now().await;
}

/// For a thread of the runtime that has nothing to do.
pub fn before_waiting() {
    let round = ROUND.load(Ordering::Relaxed);
    if DONE.replace(round) != round {
        give_back_here();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    static GIVEN: AtomicUsize = AtomicUsize::new(0);

    #[test]
    fn a_thread_gives_back_once_for_each_round_before_it_waits() {
        // Engines of other tests give back, too.
        give_back_by(|| {
            let own = std::thread::current().name() == Some("given");
            GIVEN.fetch_add(usize::from(own), Ordering::SeqCst);
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("given")
            .on_thread_park(before_waiting)
            .enable_all()
            .build()
            .unwrap();
        let given = || GIVEN.load(Ordering::SeqCst);
        assert_eq!(given(), 0);
        for round in 1..=3 {
            runtime.block_on(give_back());
            while given() < round {
                std::thread::yield_now();
            }
            // Work without a round gives nothing back.
            for _ in 0..10 {
                runtime.block_on(runtime.spawn(tokio::task::yield_now())).unwrap();
            }
            assert_eq!(given(), round);
        }
    }
}
