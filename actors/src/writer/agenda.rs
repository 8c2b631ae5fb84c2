//! When the upkeep of projects that nobody writes to is next looked at: rows that expire, and steps that have failed.
//!
//! Pure: the present time is an argument. Only the next entry matters to the writer, which keeps one timer for all
//! projects.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::ProjectName;

/// Pause after a step that failed; it doubles with each failure in a row.
const FIRST_PAUSE: TimeDelta = TimeDelta::seconds(5);
/// The longest pause after a step that failed.
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(1);

/// What is to be looked at, and when.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    entries: HashMap<ProjectName, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// None while it waits only for the result of a step that has failed before.
    at: Option<DateTime<Utc>>,
    failures: u32,
}

impl Agenda {
    /// A project is in order; it is looked at again at `next`, if at all.
    pub(crate) fn in_order(&mut self, project: &ProjectName, next: Option<DateTime<Utc>>) {
        match next {
            None => {
                self.entries.remove(project);
            }
            Some(at) => {
                let entry = Entry {
                    at: Some(at),
                    failures: 0,
                };
                self.entries.insert(project.clone(), entry);
            }
        }
    }

    /// A project is due at `next`, as a look at it from outside has shown: what is known already stands.
    pub(crate) fn learned(&mut self, project: &ProjectName, next: Option<DateTime<Utc>>) {
        let Some(next) = next else { return };
        let entry = self.entries.entry(project.clone()).or_default();
        entry.at = entry.at.into_iter().chain([next]).min();
    }

    /// A step of upkeep has failed: it is tried again after a pause.
    pub(crate) fn failed(&mut self, project: &ProjectName, now: DateTime<Utc>) {
        let failures = self.entries.get(project).map_or(0, |entry| entry.failures);
        let pause = FIRST_PAUSE * 2_i32.pow(failures.min(16));
        let entry = Entry {
            at: Some(now + pause.min(LONGEST_PAUSE)),
            failures: failures.saturating_add(1),
        };
        self.entries.insert(project.clone(), entry);
    }

    /// Forgets a project.
    pub(crate) fn remove(&mut self, project: &ProjectName) {
        self.entries.remove(project);
    }

    /// Takes the projects that are due. The result of the look at each is reported afterwards.
    pub(crate) fn take_due(&mut self, now: DateTime<Utc>) -> Vec<ProjectName> {
        let mut due = Vec::new();
        for (project, entry) in &mut self.entries {
            if entry.at.is_some_and(|at| at <= now) {
                entry.at = None;
                due.push(project.clone());
            }
        }
        self.entries.retain(|_, entry| entry.at.is_some() || entry.failures > 0);
        due
    }

    /// When something is due next.
    pub(crate) fn next(&self) -> Option<DateTime<Utc>> {
        self.entries.values().filter_map(|entry| entry.at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ProjectName {
        ProjectName::parse(name, "project_id").unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn what_expires_is_looked_at_when_it_is_due() {
        let mut agenda = Agenda::default();
        assert_eq!(agenda.next(), None);
        agenda.in_order(&name("late"), Some(at(200)));
        agenda.in_order(&name("soon"), Some(at(100)));
        agenda.in_order(&name("never"), None);
        assert_eq!(agenda.next(), Some(at(100)));
        assert_eq!(agenda.take_due(at(99)), []);
        assert_eq!(agenda.take_due(at(100)), [name("soon")]);
        assert_eq!(agenda.next(), Some(at(200)));
        // Once, until something is known of it again.
        assert_eq!(agenda.take_due(at(150)), []);
        // What was replaced later is forgotten later.
        agenda.in_order(&name("late"), Some(at(300)));
        assert_eq!(agenda.take_due(at(299)), []);
        agenda.in_order(&name("late"), None);
        assert_eq!(agenda.next(), None);

        agenda.learned(&name("late"), Some(at(400)));
        agenda.learned(&name("late"), Some(at(500)));
        agenda.learned(&name("late"), None);
        assert_eq!(agenda.next(), Some(at(400)));
    }

    #[test]
    fn what_fails_is_tried_again_ever_later() {
        let mut agenda = Agenda::default();
        let project = name("web");
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..13 {
            agenda.failed(&project, now);
            let next = agenda.next().unwrap();
            pauses.push((next - now).num_seconds());
            now = next;
            assert_eq!(agenda.take_due(now), std::slice::from_ref(&project));
            assert_eq!(agenda.next(), None);
        }
        assert_eq!(pauses[..4], [5, 10, 20, 40]);
        assert_eq!(pauses[12], 3_600);
        // Once it works, the next failure is a first one.
        agenda.in_order(&project, None);
        agenda.failed(&project, now);
        assert_eq!(agenda.next(), Some(now + FIRST_PAUSE));
        agenda.remove(&project);
        assert_eq!(agenda.next(), None);
    }
}
