//! The cache behind Lance's two: as Lance's own it is bounded in bytes and keeps what is used, but it can also be
//! swept of what has not been used for a while.
//!
//! Upkeep replaces index segments and fragments all the time, and Lance's keys do not tell which table or file an
//! entry belongs to. In a cache that only drops entries when it is full, the entries of what was replaced stay, with
//! the deleted files that they hold open, until the bound is reached. So every pruning of old versions sweeps.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lance::session::{CacheSpec, Session};
use lance_core::cache::{CacheBackend, CacheCodec, CacheEntry, InternalCacheKey};
use parking_lot::RwLock;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder as Hasher, OptionsBuilder, Weighter};

/// The caches that all projects share. Lance tells tables apart by place and version number alone, so what
/// puts another table in the same place begins new ones; views of before keep those they were made with.
pub(super) struct SharedSession {
    pub(super) index_cache_bytes: usize,
    pub(super) metadata_cache_bytes: usize,
    pub(super) current: RwLock<Caches>,
}

#[derive(Clone)]
pub(super) struct Caches {
    pub(super) session: Arc<Session>,
    pub(super) behind: [Arc<SweptCache>; 2],
}

impl Caches {
    pub(super) fn new(index_cache_bytes: usize, metadata_cache_bytes: usize) -> Self {
        let behind = [index_cache_bytes, metadata_cache_bytes].map(|bytes| Arc::new(SweptCache::new(bytes)));
        let [index, metadata] = behind.clone().map(|cache| CacheSpec::Backend(cache));
        let registry = Arc::new(lancedb::ObjectStoreRegistry::default());
        Self {
            session: Arc::new(Session::with_cache_backends(index, metadata, registry)),
            behind,
        }
    }
}

impl SharedSession {
    pub(super) fn new(index_cache_bytes: usize, metadata_cache_bytes: usize) -> Self {
        Self {
            index_cache_bytes,
            metadata_cache_bytes,
            current: RwLock::new(Caches::new(index_cache_bytes, metadata_cache_bytes)),
        }
    }

    pub(super) fn caches(&self) -> Caches {
        self.current.read().clone()
    }

    pub(super) fn current(&self) -> Arc<Session> {
        self.caches().session
    }

    pub(super) fn replace(&self) {
        *self.current.write() = Caches::new(self.index_cache_bytes, self.metadata_cache_bytes);
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

impl Weighter<InternalCacheKey, Entry> for ByBytes {
    fn weight(&self, _key: &InternalCacheKey, entry: &Entry) -> u64 {
        (size_of::<InternalCacheKey>() + entry.bytes) as u64
    }
}

/// See the module.
pub(crate) struct SweptCache {
    entries: Cache<InternalCacheKey, Entry, ByBytes>,
    capacity: usize,
    begun: Instant,
}

impl std::fmt::Debug for SweptCache {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SweptCache")
            .field("capacity", &self.capacity)
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl SweptCache {
    /// A cache of entries of `capacity` bytes in all; 0 keeps nothing.
    pub(crate) fn new(capacity: usize) -> Self {
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

    /// Drops what has not been asked for in the last `idle`.
    pub(crate) fn sweep(&self, idle: Duration) {
        let oldest = self.now().saturating_sub(milliseconds(idle));
        self.entries
            .retain(|_, entry| entry.used.load(Ordering::Relaxed) >= oldest);
    }

    /// Drops everything.
    pub(crate) fn empty(&self) {
        self.entries.clear();
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

#[async_trait]
impl CacheBackend for SweptCache {
    async fn get_resident(&self, key: &InternalCacheKey) -> Option<CacheEntry> {
        self.get(key, None).await
    }

    async fn peek_resident(&self, key: &InternalCacheKey) -> bool {
        self.entries.contains_key(key)
    }

    async fn get(&self, key: &InternalCacheKey, _codec: Option<CacheCodec>) -> Option<CacheEntry> {
        self.entries.get(key).map(|entry| self.used(&entry))
    }

    async fn insert(&self, key: &InternalCacheKey, entry: CacheEntry, size_bytes: usize, _codec: Option<CacheCodec>) {
        self.entries.insert(*key, self.entry(entry, size_bytes));
    }

    async fn get_or_insert<'a>(
        &self,
        key: &InternalCacheKey,
        loader: Pin<Box<dyn Future<Output = lance_core::Result<(CacheEntry, usize)>> + Send + 'a>>,
        _codec: Option<CacheCodec>,
    ) -> lance_core::Result<(CacheEntry, bool)> {
        match self.entries.get_value_or_guard_async(key).await {
            Ok(entry) => Ok((self.used(&entry), true)),
            // Whoever else asks for it waits for this one; if it fails, the next one loads.
            Err(place) => {
                let (value, bytes) = loader.await?;
                // Only refused if somebody emptied the cache meanwhile.
                place.insert(self.entry(Arc::clone(&value), bytes)).ok();
                Ok((value, false))
            }
        }
    }

    async fn clear(&self) {
        self.empty();
    }

    async fn num_entries(&self) -> usize {
        self.entries.len()
    }

    async fn size_bytes(&self) -> usize {
        self.approx_size_bytes()
    }

    fn approx_num_entries(&self) -> usize {
        self.entries.len()
    }

    fn approx_size_bytes(&self) -> usize {
        usize::try_from(self.entries.weight()).unwrap_or(usize::MAX)
    }

    fn capacity_bytes(&self) -> Option<usize> {
        Some(self.capacity)
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

    async fn held(cache: &SweptCache) -> Vec<u8> {
        let mut held = Vec::new();
        for number in 0..=u8::MAX {
            if cache.peek_resident(&key(number)).await {
                held.push(number);
            }
        }
        held
    }

    #[tokio::test]
    async fn a_sweep_drops_what_was_not_asked_for() {
        let cache = SweptCache::new(1 << 20);
        for number in 0..4 {
            cache.insert(&key(number), value(number), 100, None).await;
        }
        cache.sweep(Duration::from_secs(60));
        assert_eq!(held(&cache).await, [0, 1, 2, 3]);
        tokio::time::sleep(Duration::from_millis(30)).await;
        let found = cache.get(&key(2), None).await.unwrap();
        assert_eq!(found.downcast_ref::<u8>(), Some(&2));
        cache.sweep(Duration::from_millis(20));
        assert_eq!(held(&cache).await, [2]);
        cache.empty();
        assert_eq!((cache.num_entries().await, cache.size_bytes().await), (0, 0));
    }

    #[tokio::test]
    async fn it_holds_no_more_bytes_than_it_may() {
        let cache = SweptCache::new(10_000);
        for number in 0..=u8::MAX {
            cache.insert(&key(number), value(number), 500, None).await;
            assert!(cache.size_bytes().await <= 10_000);
        }
        assert!(cache.num_entries().await > 10);
        assert_eq!(cache.capacity_bytes(), Some(10_000));
    }

    #[tokio::test]
    async fn many_who_ask_for_one_entry_load_it_once() {
        let cache = Arc::new(SweptCache::new(1 << 20));
        let loads = Arc::new(AtomicUsize::new(0));
        let asking = (0..16).map(|_| {
            let (cache, loads) = (Arc::clone(&cache), Arc::clone(&loads));
            tokio::spawn(async move {
                let loader = async {
                    tokio::task::yield_now().await;
                    loads.fetch_add(1, Ordering::Relaxed);
                    Ok((value(7), 1))
                };
                cache.get_or_insert(&key(7), Box::pin(loader), None).await.unwrap()
            })
        });
        let answers: Vec<(CacheEntry, bool)> = futures::future::try_join_all(asking).await.unwrap();
        assert_eq!(answers.iter().filter(|(_, cached)| !cached).count(), 1);
        assert_eq!(loads.load(Ordering::Relaxed), 1);

        // A failure is its caller's alone; the next one loads.
        let failing = Box::pin(async { Err(lance_core::Error::invalid_input("no")) });
        assert!(cache.get_or_insert(&key(8), failing, None).await.is_err());
        let loader = Box::pin(async { Ok((value(8), 1)) });
        assert!(!cache.get_or_insert(&key(8), loader, None).await.unwrap().1);
    }
}
