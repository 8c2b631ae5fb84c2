//! What allocations take.

/// The words before and after an allocation that an allocator keeps or rounds up to.
const OVERHEAD: usize = 16;

/// The counters of an `Arc`.
const COUNTERS: usize = 2 * size_of::<usize>();

/// What an allocation of this many bytes takes; none is made for nothing.
pub(crate) const fn allocation(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { bytes + OVERHEAD }
}

/// What a `T` in an `Arc` takes, without what it points to.
pub(crate) const fn shared<T>() -> usize {
    allocation(size_of::<T>() + COUNTERS)
}
