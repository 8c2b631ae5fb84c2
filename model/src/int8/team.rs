//! The threads of the 8-bit engine.

use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::EngineError;

/// Threads at most. What a pass has to do is done in milliseconds by as many, and others want to work too.
const MAX_THREADS: usize = 8;

/// Threads that each work alone: a pool of one for each, because a product that finds itself in a larger pool divides
/// itself up once more. They sleep when they have nothing to do.
pub(super) struct Team {
    members: Vec<ThreadPool>,
}

impl Team {
    /// As many threads as there are processors for, up to a limit.
    pub(super) fn new() -> Result<Self, EngineError> {
        let size = available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        Self::of(size)
    }

    pub(super) fn of(size: usize) -> Result<Self, EngineError> {
        let members: Result<Vec<_>, _> = (0..size.max(1))
            .map(|number| {
                ThreadPoolBuilder::new()
                    .num_threads(1)
                    .thread_name(move |_| format!("ccod-embed-{number}"))
                    .build()
            })
            .collect();
        Ok(Self {
            members: members.map_err(|error| EngineError::Load(format!("threads of the engine: {error}")))?,
        })
    }

    pub(super) fn size(&self) -> usize {
        self.members.len()
    }

    /// Runs `work` on each of `tasks` at the same time, a thread for each, and returns when all are done: with the first
    /// error, if there is one. There must not be more tasks than threads. Panics are passed on.
    pub(super) fn run<T: Send>(
        &self,
        mut tasks: impl ExactSizeIterator<Item = T>,
        work: &(impl Fn(T) -> Result<(), EngineError> + Sync),
    ) -> Result<(), EngineError> {
        assert!(tasks.len() <= self.size(), "a thread for each task");
        run_on(&self.members, &mut tasks, work)
    }
}

fn run_on<T: Send>(
    members: &[ThreadPool],
    tasks: &mut dyn ExactSizeIterator<Item = T>,
    work: &(impl Fn(T) -> Result<(), EngineError> + Sync),
) -> Result<(), EngineError> {
    let (Some((member, others)), Some(task)) = (members.split_first(), tasks.next()) else {
        return Ok(());
    };
    if tasks.len() == 0 {
        return member.install(|| work(task));
    }
    let mut outcome = Ok(());
    let rest = member.in_place_scope(|scope| {
        scope.spawn(|_| outcome = work(task));
        run_on(others, tasks, work)
    });
    outcome.and(rest)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn all_tasks_run_at_once_and_each_in_a_pool_of_one() {
        let team = Team::of(3).unwrap();
        let meeting = Barrier::new(3);
        let mut numbers = [1, 2, 3];
        team.run(numbers.iter_mut(), &|number| {
            assert_eq!(rayon::current_num_threads(), 1);
            // Nobody passes who is not met by the others.
            meeting.wait();
            *number *= 10;
            Ok(())
        })
        .unwrap();
        assert_eq!(numbers, [10, 20, 30]);
        team.run([0u8; 0].into_iter(), &|_| panic!("there is no task")).unwrap();
    }

    #[test]
    fn errors_and_panics_come_back_after_all_are_done() {
        let team = Team::of(3).unwrap();
        let mut done = [false; 3];
        let outcome = team.run(done.iter_mut().enumerate(), &|(number, done)| {
            *done = true;
            match number {
                1 => Err(EngineError::Compute("the second".to_owned())),
                _ => Ok(()),
            }
        });
        assert_eq!(outcome, Err(EngineError::Compute("the second".to_owned())));
        assert_eq!(done, [true; 3]);
        for culprit in 0..3 {
            let broken = catch_unwind(AssertUnwindSafe(|| {
                team.run(0..3, &|number| {
                    assert_ne!(number, culprit, "broken");
                    Ok(())
                })
            }));
            assert!(broken.is_err());
        }
        team.run(0..3, &|_| Ok(())).unwrap();
    }
}
