//! The caches behind Lance's two: as Lance's own they are bounded in bytes, for all projects together, and keep what is
//! used, but they know which project an entry belongs to, and can be swept of what has not been used for a while.
//!
//! Upkeep replaces index segments and fragments all the time, and Lance's keys do not tell which table or file an
//! entry belongs to. In a cache that only drops entries when it is full, the entries of what was replaced stay, with
//! the deleted files that they hold open, until the bound is reached. So every pruning of old versions sweeps, and
//! what is removed for good, replaced or closed takes its entries along. Of its own project in each case: what others
//! have in the caches is theirs.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lance::session::{CacheSpec, Session};
use lance_core::cache::{CacheBackend, CacheCodec, CacheEntry, InternalCacheKey};
use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder as Hasher, OptionsBuilder, Weighter};

/// The caches that all projects share: of index pages, and of manifests and metadata of files.
pub(super) struct SharedCaches {
    both: [Arc<SweptCache>; 2],
    /// Bytes of the first.
    index_bytes: usize,
    registry: Arc<lancedb::ObjectStoreRegistry>,
    /// Numbers that were given to sessions.
    sessions: AtomicU64,
}

/// What one project has in the caches. Lance tells tables apart by place and version number alone, so what puts
/// another table in the same place begins again ([`ProjectCaches::retire`]); views of before that go on without.
pub(super) struct ProjectCaches {
    shared: Arc<SharedCaches>,
    /// None while nobody has the project open.
    current: Mutex<Option<Caches>>,
}

/// A session of Lance, and its part of the caches.
#[derive(Clone)]
pub(super) struct Caches {
    pub(super) session: Arc<Session>,
    behind: [Arc<Part>; 2],
}

impl SharedCaches {
    /// Caches of so many bytes.
    pub(super) fn new(index_cache_bytes: usize, metadata_cache_bytes: usize) -> Self {
        Self {
            both: [index_cache_bytes, metadata_cache_bytes].map(|bytes| Arc::new(SweptCache::new(bytes))),
            index_bytes: index_cache_bytes,
            registry: Arc::default(),
            sessions: AtomicU64::new(0),
        }
    }

    fn begin(&self) -> Caches {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let behind = self.both.clone().map(|cache| {
            Arc::new(Part {
                number,
                cache,
                retired: AtomicBool::new(false),
            })
        });
        let [index, metadata] = behind.clone().map(|part| CacheSpec::Backend(part));
        let session = Session::with_cache_backends(index, metadata, Arc::clone(&self.registry));
        Caches {
            session: Arc::new(session),
            behind,
        }
    }

    /// Drops what no project has asked for in the last `idle`.
    pub(super) fn sweep(&self, idle: Duration) {
        for cache in &self.both {
            cache.sweep(None, idle);
        }
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> u64 {
        self.both.iter().map(|cache| cache.entries.weight()).sum()
    }
}

impl ProjectCaches {
    pub(super) fn new(shared: Arc<SharedCaches>) -> Self {
        Self {
            shared,
            current: Mutex::default(),
        }
    }

    /// Bytes that pages of indices may take, those of all projects together.
    pub(super) fn index_cache_bytes(&self) -> u64 {
        self.shared.index_bytes as u64
    }

    /// The session of the project's table.
    pub(super) fn session(&self) -> Arc<Session> {
        let mut current = self.current.lock();
        let current = current.get_or_insert_with(|| self.shared.begin());
        Arc::clone(&current.session)
    }

    /// Drops what has not been asked for in the last `idle`: of files that upkeep has replaced, mostly.
    pub(super) fn sweep(&self, idle: Duration) {
        if let Some(current) = &*self.current.lock() {
            for part in &current.behind {
                part.cache.sweep(Some(part.number), idle);
            }
        }
    }

    /// Drops all of it, with the removed files that it keeps open.
    pub(super) fn empty(&self) {
        if let Some(current) = &*self.current.lock() {
            for part in &current.behind {
                part.cache.empty(part.number);
            }
        }
    }

    /// Drops all of it, and begins again with the next session. Whoever has the present one keeps nothing any more.
    pub(super) fn retire(&self) {
        let Some(retired) = self.current.lock().take() else {
            return;
        };
        for part in &retired.behind {
            part.retired.store(true, Ordering::SeqCst);
            part.cache.empty(part.number);
        }
    }
}

impl Caches {
    /// Caches beside those that projects share.
    pub(super) fn new(index_cache_bytes: usize, metadata_cache_bytes: usize) -> Self {
        SharedCaches::new(index_cache_bytes, metadata_cache_bytes).begin()
    }
}

/// Bytes of an entry that the cache is laid out for; no bound.
const TYPICAL_ENTRY_BYTES: usize = 16 * 1024;

#[derive(Clone)]
struct Entry {
    value: CacheEntry,
    bytes: usize,
    /// Milliseconds after the cache's beginning when it was last asked for.
    used: Arc<AtomicU64>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Entry> for ByBytes {
    fn weight(&self, _key: &Key, entry: &Entry) -> u64 {
        (size_of::<Key>() + entry.bytes) as u64
    }
}

/// A key of Lance's, and the number of the session that it belongs to.
type Key = (u64, InternalCacheKey);

/// One of the caches that all projects share. See the module.
struct SweptCache {
    entries: Cache<Key, Entry, ByBytes>,
    capacity: usize,
    begun: Instant,
}

/// What a session has of a cache.
struct Part {
    number: u64,
    cache: Arc<SweptCache>,
    /// Whether it keeps nothing any more: the table was closed, or another is in its place.
    retired: AtomicBool,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Part")
            .field("number", &self.number)
            .field("capacity", &self.cache.capacity)
            .finish_non_exhaustive()
    }
}

impl SweptCache {
    /// A cache of entries of `capacity` bytes in all; 0 keeps nothing.
    fn new(capacity: usize) -> Self {
        let items = (capacity / TYPICAL_ENTRY_BYTES).max(32);
        // One shard: shards do not lend each other space, and what exceeds the share of one is not kept.
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(capacity as u64)
            .shards(1)
            .build()
            .expect("both capacities are set");
        let entries = Cache::with_options(options, ByBytes, Hasher::default(), DefaultLifecycle::default());
        Self {
            entries,
            capacity,
            begun: Instant::now(),
        }
    }

    /// Drops what has not been asked for in the last `idle`, of one session or of all.
    fn sweep(&self, of: Option<u64>, idle: Duration) {
        let oldest = self.now().saturating_sub(milliseconds(idle));
        self.entries.retain(|(number, _), entry| {
            of.is_some_and(|of| of != *number) || entry.used.load(Ordering::Relaxed) >= oldest
        });
    }

    /// Drops everything of a session.
    fn empty(&self, of: u64) {
        self.entries.retain(|(number, _), _| *number != of);
    }

    fn now(&self) -> u64 {
        milliseconds(self.begun.elapsed())
    }

    fn used(&self, entry: &Entry) -> CacheEntry {
        entry.used.store(self.now(), Ordering::Relaxed);
        Arc::clone(&entry.value)
    }

    fn entry(&self, value: CacheEntry, bytes: usize) -> Entry {
        Entry {
            value,
            bytes,
            used: Arc::new(AtomicU64::new(self.now())),
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Part {
    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// After an entry was put in: it may have come after all others were dropped.
    fn drop_if_retired(&self, key: &InternalCacheKey) {
        if self.is_retired() {
            self.cache.entries.remove(&(self.number, *key));
        }
    }
}

#[async_trait]
impl CacheBackend for Part {
    async fn get_resident(&self, key: &InternalCacheKey) -> Option<CacheEntry> {
        self.get(key, None).await
    }

    async fn peek_resident(&self, key: &InternalCacheKey) -> bool {
        self.cache.entries.contains_key(&(self.number, *key))
    }

    async fn get(&self, key: &InternalCacheKey, _codec: Option<CacheCodec>) -> Option<CacheEntry> {
        let found = self.cache.entries.get(&(self.number, *key));
        found.map(|entry| self.cache.used(&entry))
    }

    async fn insert(&self, key: &InternalCacheKey, entry: CacheEntry, size_bytes: usize, _codec: Option<CacheCodec>) {
        let entry = self.cache.entry(entry, size_bytes);
        self.cache.entries.insert((self.number, *key), entry);
        self.drop_if_retired(key);
    }

    async fn get_or_insert<'a>(
        &self,
        key: &InternalCacheKey,
        loader: Pin<Box<dyn Future<Output = lance_core::Result<(CacheEntry, usize)>> + Send + 'a>>,
        _codec: Option<CacheCodec>,
    ) -> lance_core::Result<(CacheEntry, bool)> {
        match self.cache.entries.get_value_or_guard_async(&(self.number, *key)).await {
            Ok(entry) => Ok((self.cache.used(&entry), true)),
            // Whoever else asks for it waits for this one; if it fails, the next one loads.
            Err(place) => {
                let (value, bytes) = loader.await?;
                // Only refused if somebody emptied the cache meanwhile.
                place.insert(self.cache.entry(Arc::clone(&value), bytes)).ok();
                self.drop_if_retired(key);
                Ok((value, false))
            }
        }
    }

    async fn clear(&self) {
        self.cache.empty(self.number);
    }

    /// Of all sessions, as the next ones.
    async fn num_entries(&self) -> usize {
        self.cache.entries.len()
    }

    async fn size_bytes(&self) -> usize {
        self.approx_size_bytes()
    }

    fn approx_num_entries(&self) -> usize {
        self.cache.entries.len()
    }

    fn approx_size_bytes(&self) -> usize {
        usize::try_from(self.cache.entries.weight()).unwrap_or(usize::MAX)
    }

    fn capacity_bytes(&self) -> Option<usize> {
        Some(self.cache.capacity)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn key(number: u8) -> InternalCacheKey {
        InternalCacheKey::from_bytes([number; 16])
    }

    fn value(number: u8) -> CacheEntry {
        Arc::new(number)
    }

    fn part(caches: &SharedCaches) -> Arc<Part> {
        Arc::clone(&caches.begin().behind[0])
    }

    async fn held(part: &Part) -> Vec<u8> {
        let mut held = Vec::new();
        for number in 0..=u8::MAX {
            if part.peek_resident(&key(number)).await {
                held.push(number);
            }
        }
        held
    }

    #[tokio::test]
    async fn a_sweep_drops_what_was_not_asked_for() {
        let caches = SharedCaches::new(1 << 20, 0);
        let part = part(&caches);
        for number in 0..4 {
            part.insert(&key(number), value(number), 100, None).await;
        }
        caches.sweep(Duration::from_secs(60));
        assert_eq!(held(&part).await, [0, 1, 2, 3]);
        tokio::time::sleep(Duration::from_millis(30)).await;
        let found = part.get(&key(2), None).await.unwrap();
        assert_eq!(found.downcast_ref::<u8>(), Some(&2));
        caches.sweep(Duration::from_millis(20));
        assert_eq!(held(&part).await, [2]);
        part.clear().await;
        assert_eq!((part.num_entries().await, part.size_bytes().await), (0, 0));
    }

    #[tokio::test]
    async fn what_one_project_drops_stays_to_the_others_and_what_is_retired_keeps_nothing() {
        let shared = Arc::new(SharedCaches::new(1 << 20, 1 << 20));
        let projects = [0, 1].map(|_| ProjectCaches::new(Arc::clone(&shared)));
        let parts = || {
            projects.each_ref().map(|project| {
                project.session();
                Arc::clone(&project.current.lock().as_ref().unwrap().behind[0])
            })
        };
        let [one, other] = parts();
        for part in [&one, &other] {
            part.insert(&key(1), value(part.number as u8), 100, None).await;
        }
        let found = other.get(&key(1), None).await.unwrap();
        assert_eq!(found.downcast_ref::<u8>(), Some(&(other.number as u8)));
        tokio::time::sleep(Duration::from_millis(5)).await;
        projects[0].sweep(Duration::ZERO);
        assert_eq!((held(&one).await, held(&other).await), (vec![], vec![1]));
        one.insert(&key(2), value(2), 100, None).await;
        projects[0].empty();
        assert_eq!((held(&one).await, held(&other).await), (vec![], vec![1]));

        // A restore, or the end of a pause: who still reads the table of before finds nothing, and leaves nothing.
        let before = projects[0].session();
        one.insert(&key(3), value(3), 100, None).await;
        projects[0].retire();
        one.insert(&key(4), value(4), 100, None).await;
        let loader = Box::pin(async { Ok((value(5), 1)) });
        one.get_or_insert(&key(5), loader, None).await.unwrap();
        assert_eq!((held(&one).await, held(&other).await), (vec![], vec![1]));
        assert!(!Arc::ptr_eq(&before, &projects[0].session()));
        let [next, same] = parts();
        assert_eq!(same.number, other.number);
        next.insert(&key(3), value(3), 100, None).await;
        assert_eq!(held(&next).await, [3]);
    }

    #[tokio::test]
    async fn all_projects_together_hold_no_more_bytes_than_they_may() {
        let caches = SharedCaches::new(10_000, 0);
        let parts = [part(&caches), part(&caches)];
        for number in 0..=u8::MAX {
            let part = &parts[usize::from(number % 2)];
            part.insert(&key(number), value(number), 500, None).await;
            assert!(part.size_bytes().await <= 10_000);
            assert_eq!(caches.bytes(), part.size_bytes().await as u64);
        }
        assert!(parts[0].num_entries().await > 10);
        assert_eq!(parts[0].capacity_bytes(), Some(10_000));
    }

    #[tokio::test]
    async fn many_who_ask_for_one_entry_load_it_once() {
        let part = part(&SharedCaches::new(1 << 20, 0));
        let loads = Arc::new(AtomicUsize::new(0));
        let asking = (0..16).map(|_| {
            let (part, loads) = (Arc::clone(&part), Arc::clone(&loads));
            tokio::spawn(async move {
                let loader = async {
                    tokio::task::yield_now().await;
                    loads.fetch_add(1, Ordering::Relaxed);
                    Ok((value(7), 1))
                };
                part.get_or_insert(&key(7), Box::pin(loader), None).await.unwrap()
            })
        });
        let answers: Vec<(CacheEntry, bool)> = futures::future::try_join_all(asking).await.unwrap();
        assert_eq!(answers.iter().filter(|(_, cached)| !cached).count(), 1);
        assert_eq!(loads.load(Ordering::Relaxed), 1);

        // A failure is its caller's alone; the next one loads.
        let failing = Box::pin(async { Err(lance_core::Error::invalid_input("no")) });
        assert!(part.get_or_insert(&key(8), failing, None).await.is_err());
        let loader = Box::pin(async { Ok((value(8), 1)) });
        assert!(!part.get_or_insert(&key(8), loader, None).await.unwrap().1);
    }
}
