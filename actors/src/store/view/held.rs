//! Which versions of a table are still read, or kept for the next page of a search: upkeep leaves them alone.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::view::ProjectView;

/// How long a version is kept for the next page after the last one was read.
const PAGE_TIME: Duration = Duration::from_secs(300);
/// Versions of one project that are kept for pages.
const PAGE_VERSIONS: usize = 8;
/// How far a version may be behind the newest and still be kept for pages. While much is written each commit is
/// a version, and all between a kept one and the newest stay on disk with it.
const PAGE_LAG: u64 = 128;

/// The versions of one table that readers hold. Kept by the project, so that a table that is reopened after a
/// failure prunes nothing from under a reader of the one before. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldVersions(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    /// Versions with the views that were published of them, oldest first.
    published: VecDeque<(u64, Weak<ProjectView>)>,
    /// Those that are kept for pages, and when they were last read.
    pages: VecDeque<(Instant, Arc<ProjectView>)>,
}

impl Held {
    fn forget(&mut self, now: Instant) {
        let newest = self.published.back().map_or(0, |(version, _)| *version);
        self.pages.retain(|(read, view)| {
            let is_recent = now.saturating_duration_since(*read) < PAGE_TIME;
            is_recent && view.lance_version().saturating_add(PAGE_LAG) >= newest
        });
        self.published.retain(|(_, view)| view.strong_count() > 0);
    }
}

impl HeldVersions {
    fn with<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.0.lock())
    }

    /// Notes that a view of this version is given to readers.
    pub(crate) fn add(&self, version: u64, view: &Arc<ProjectView>) {
        self.with(|held| {
            held.published.push_back((version, Arc::downgrade(view)));
            held.forget(Instant::now());
        });
    }

    /// The oldest version that somebody reads or that is kept for pages.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.with(|held| {
            held.forget(Instant::now());
            held.published.iter().map(|(version, _)| *version).min()
        })
    }

    /// Keeps a view for the next page, for [`PAGE_TIME`] from now; of too many the one that was not read for
    /// longest goes.
    pub(crate) fn keep_for_pages(&self, view: &Arc<ProjectView>) {
        self.with(|held| {
            held.pages.retain(|(_, kept)| !Arc::ptr_eq(kept, view));
            held.pages.push_back((Instant::now(), Arc::clone(view)));
            if held.pages.len() > PAGE_VERSIONS {
                held.pages.pop_front();
            }
        });
    }

    /// The view of a version that somebody reads or that is kept for pages.
    pub(crate) fn find(&self, version: u64) -> Option<Arc<ProjectView>> {
        self.with(|held| {
            held.forget(Instant::now());
            let of_version = held.published.iter().rev().filter(|(number, _)| *number == version);
            of_version.filter_map(|(_, view)| view.upgrade()).next()
        })
    }

    /// Whether another view than the `present` one is read, or any is kept for pages.
    pub(crate) fn is_read_beside(&self, present: &Arc<ProjectView>) -> bool {
        self.with(|held| {
            held.forget(Instant::now());
            let mut published = held.published.iter();
            !held.pages.is_empty() || published.any(|(_, view)| view.as_ptr() != Arc::as_ptr(present))
        })
    }

    /// Lets go of what is kept for pages.
    pub(crate) fn release_pages(&self) {
        let released = self.with(|held| std::mem::take(&mut held.pages));
        drop(released); // Outside the lock.
    }
}
