//! Closes a project that nobody uses: what it has in memory and its open files are freed, and the next use opens it as
//! the first one did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::Project;
use crate::domain::ItemStats;
use crate::store::Store;
use crate::store::upkeep::Debt;
use crate::store::view::ProjectView;

/// When a project was last used.
#[derive(Debug, Default)]
pub(super) struct LastUse(AtomicU64);

/// What was counted of a version of a project.
#[derive(Clone, Debug)]
pub struct Counts {
    /// Its items.
    pub items: Arc<ItemStats>,
    /// Its rows, closed ones and further passages included.
    pub rows: u64,
    /// Upkeep that is still to be done, as far as its files show.
    pub debt: Debt,
    /// Its newest commit.
    pub version: i64,
    /// Model of its vectors; none where the table has another shape.
    pub model: Option<String>,
    /// What is in the way of searching and writing it, if something is.
    pub needs_migration: Option<String>,
}

/// While somebody only looks at a project: that is no use of it, and keeps nothing open.
#[derive(Debug)]
pub struct Look<'a> {
    project: &'a Project,
    used: u64,
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        // A use meanwhile is lost by this, and at worst the project is closed a little early.
        self.project.used.0.store(self.used, Ordering::Relaxed);
    }
}

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

impl LastUse {
    /// It is used now.
    pub(super) fn now(&self) {
        let milliseconds = u64::try_from(BEGINNING.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.store(milliseconds, Ordering::Relaxed);
    }

    fn elapsed(&self) -> Duration {
        let then = Duration::from_millis(self.0.load(Ordering::Relaxed));
        BEGINNING.elapsed().saturating_sub(then)
    }
}

impl Project {
    /// At which commit it was closed, if it was because nobody used it, and is closed still.
    pub(in crate::store) fn resting(&self) -> Option<i64> {
        self.published.resting()
    }

    /// What until the end of the look happens to it is no use of it.
    pub fn look(&self) -> Look<'_> {
        let used = self.used.0.load(Ordering::Relaxed);
        Look { project: self, used }
    }

    /// Keeps what was counted, for when it is closed.
    pub fn keep_counts(&self, counts: &Counts) {
        *self.counts.lock() = Some(counts.clone());
    }

    /// What was last counted of it, if it was closed since nobody uses it, and stands where it was counted.
    pub fn counts_at_rest(&self) -> Option<Counts> {
        let resting = self.resting()?;
        let counts = self.counts.lock().clone();
        counts.filter(|counts| counts.version == resting)
    }

    /// Closes it if nobody has used it for `idle`: not while a version of it is read, or kept for the next page of a
    /// search, and not while something is wrong with it, which only an open project can report. True if it was open.
    pub(in crate::store) fn close_unused(&self, idle: Duration) -> bool {
        if self.used.elapsed() < idle {
            return false;
        }
        // Somebody writes, or opens it.
        let Ok(mut table) = self.table.try_lock() else {
            return false;
        };
        let view = self.published();
        let Some(open) = table.as_ref() else {
            // A reader that was late may have made an index of it again.
            if view.is_none() && self.keeper.bytes() > 0 {
                self.forget_memory();
            }
            return false;
        };
        let damage = open.damage();
        let in_order = damage.is_sound() && damage.configuration.is_none() && damage.gaps.is_empty();
        let in_order = in_order && self.unerased().is_none() && !self.is_suspended();
        if !in_order || self.is_read(view.as_ref()) {
            return false;
        }
        // Whoever takes the view at this moment reads it to its end; its version is known to be read.
        match view.map(|view| view.sequence()) {
            Some(commit) => self.published.rest(commit),
            None => self.clear_view(),
        }
        *table = None;
        drop(table);
        self.forget_memory();
        self.caches().retire();
        tracing::debug!(project = %self.name(), "closed, since nobody uses it");
        true
    }

    fn is_read(&self, view: Option<&Arc<ProjectView>>) -> bool {
        // One is published, the other is the caller's.
        view.is_some_and(|view| Arc::strong_count(view) > 2 || self.held().is_read_beside(view))
    }
}

impl Store {
    /// Closes the projects that nobody has used for `idle`, and drops what the caches hold and nobody has asked for in
    /// that time. Answers how many projects were closed.
    pub async fn close_unused(&self, idle: Duration) -> usize {
        // A backup counts on the projects that it has opened.
        let Ok(_no_transfer) = self.transfers.try_write() else {
            return 0;
        };
        let mut closed = 0;
        for project in self.projects() {
            closed += usize::from(project.close_unused(idle));
            tokio::task::yield_now().await;
        }
        self.caches.sweep(idle);
        closed
    }
}
