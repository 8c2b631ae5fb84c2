//! What a panic costs: the lane it happened in, for a while.
//!
//! A panic in one project's work says nothing about the other projects, so it does not end the writer. The lane
//! pauses for a moment that doubles, with what waits in it. More panics within the window than the policy allows
//! mean that repeating does not help: then the lane refuses its work until the next try, and `admin.health` names
//! the project. See [`crate::restart`] for the policy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::domain::ProjectName;
use crate::error::KnowledgeError;
use crate::restart::{Restart, RestartPolicy, RestartTracker};

/// What a lane's task did when it panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// A group of writes, or a purge.
    Writes,
    /// Upkeep. Writes go on without it.
    Upkeep,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Upkeep => "upkeep",
        }
    }
}

/// The panics of one kind of work in one lane, and what follows from them.
#[derive(Debug)]
pub(super) struct Setbacks {
    tracker: RestartTracker,
    /// Until when it pauses, and whether it is degraded meanwhile.
    pause: Option<(Instant, bool)>,
}

impl Setbacks {
    pub(super) fn new(policy: RestartPolicy) -> Self {
        Self {
            tracker: RestartTracker::new(policy),
            pause: None,
        }
    }

    /// Takes note of a panic at `now`.
    pub(super) fn panicked(&mut self, now: Instant) -> Restart {
        let restart = self.tracker.failed(now);
        self.pause = Some((now + restart.after, restart.degraded));
        restart
    }

    /// Whether it pauses at `now`. True in the second place if it is degraded.
    pub(super) fn pauses(&self, now: Instant) -> Option<Pause> {
        self.pause
            .filter(|(until, _)| now < *until)
            .map(|(until, degraded)| Pause {
                left: until - now,
                degraded,
            })
    }
}

/// A pause that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) left: Duration,
    /// Whether nothing is accepted meanwhile.
    pub(super) degraded: bool,
}

impl Pause {
    /// The error of a write that is refused meanwhile.
    pub(super) fn refusal(self, project: &ProjectName) -> KnowledgeError {
        KnowledgeError::ReadOnly {
            reason: format!(
                "writes to project {project} have failed unexpectedly several times in a row and are tried again in \
                 {} s; see the daemon's log; other projects are not concerned",
                self.left.as_secs() + 1
            ),
        }
    }
}

/// The projects whose work is refused or put off now, for `admin.health`.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Mutex<BTreeMap<(ProjectName, Work), Instant>>);

impl Troubles {
    /// Notes that this work of a project is degraded until then.
    pub(super) fn add(&self, project: &ProjectName, work: Work, until: Instant) {
        let mut noted = self.0.lock();
        noted.insert((project.clone(), work), until);
    }

    /// A sentence each, of those whose pause has not ended at `now`.
    pub(super) fn sentences(&self, now: Instant) -> Vec<String> {
        let mut noted = self.0.lock();
        noted.retain(|_, until| now < *until);
        noted
            .iter()
            .map(|((project, work), until)| {
                format!(
                    "project {project}: its {} failed unexpectedly several times in a row, the next try is in {} s; \
                     see the daemon's log",
                    work.name(),
                    (*until - now).as_secs() + 1
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_pause_a_lane_and_repeated_ones_close_it_until_the_next_try() {
        let policy = RestartPolicy::default();
        let mut setbacks = Setbacks::new(policy);
        let begun = Instant::now();
        assert_eq!(setbacks.pauses(begun), None);
        for number in 0..policy.max_restarts {
            let restart = setbacks.panicked(begun);
            assert!(!restart.degraded, "the first {number} are followed by prompt tries");
            assert_eq!(setbacks.pauses(begun).map(|pause| pause.degraded), Some(false));
            assert_eq!(setbacks.pauses(begun + restart.after), None);
        }
        assert!(setbacks.panicked(begun).degraded);
        let just_before = begun + policy.degraded_retry - Duration::from_millis(1);
        assert_eq!(setbacks.pauses(just_before).map(|pause| pause.degraded), Some(true));
        assert_eq!(setbacks.pauses(begun + policy.degraded_retry), None);
    }

    #[test]
    fn health_names_a_project_for_as_long_as_it_is_closed() {
        let troubles = Troubles::default();
        let begun = Instant::now();
        let project = ProjectName::default();
        troubles.add(&project, Work::Writes, begun + Duration::from_secs(60));
        troubles.add(&project, Work::Upkeep, begun + Duration::from_secs(5));
        assert_eq!(troubles.sentences(begun).len(), 2);
        let left = troubles.sentences(begun + Duration::from_secs(5));
        assert!(
            left.len() == 1 && left[0].contains("project default: its writes"),
            "{left:?}"
        );
        assert!(troubles.sentences(begun + Duration::from_secs(60)).is_empty());
    }
}
