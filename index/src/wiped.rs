//! Memory that is overwritten before it is freed: codes of vectors, ids, agents, sessions, metadata.

use std::hint::black_box;
use std::ops::{Deref, DerefMut};

use crate::bytes::allocation;

/// A growing array that overwrites what it drops: the whole when it is dropped or moves to a larger place, the end
/// when it is cut.
#[derive(Debug)]
pub(crate) struct Wiped<T: Copy + Default>(Vec<T>);

impl<T: Copy + Default> Wiped<T> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push_all(&mut self, values: &[T]) {
        self.reserve(values.len());
        self.0.extend_from_slice(values);
    }

    pub(crate) fn push_filled(&mut self, count: usize, value: T) {
        self.reserve(count);
        self.0.resize(self.0.len() + count, value);
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        if let Some(end) = self.0.get_mut(len..) {
            wipe(end);
            self.0.truncate(len);
        }
    }

    /// Puts `values` in the place of those from `start` to `end`.
    pub(crate) fn replace(&mut self, start: usize, end: usize, values: &[T]) {
        if values.len() == end - start {
            self.0[start..end].copy_from_slice(values);
            return;
        }
        let mut next = Self(Vec::with_capacity(self.0.len() - (end - start) + values.len()));
        next.push_all(&self.0[..start]);
        next.push_all(values);
        next.push_all(&self.0[end..]);
        *self = next;
    }

    /// By hand: a vector that grows by itself leaves its old place as it is.
    fn reserve(&mut self, more: usize) {
        let needed = self.0.len() + more;
        if needed > self.0.capacity() {
            self.reserve_total(needed.max(self.0.capacity() * 3 / 2));
        }
    }

    /// Makes place for exactly `capacity` values in all, if there is less.
    pub(crate) fn reserve_total(&mut self, capacity: usize) {
        if capacity > self.0.capacity() {
            let mut next = Self(Vec::with_capacity(capacity));
            next.0.extend_from_slice(&self.0);
            *self = next;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        allocation(self.0.capacity() * size_of::<T>())
    }
}

impl<T: Copy + Default> Clone for Wiped<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Copy + Default> Deref for Wiped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Copy + Default> DerefMut for Wiped<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Copy + Default> Drop for Wiped<T> {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

pub(crate) fn wipe<T: Copy + Default>(values: &mut [T]) {
    values.fill(T::default());
    // The compiler must take the values for read here, or it would leave out writes to what is freed next.
    black_box(values);
}

/// Lists of values, one after the other in one array.
#[derive(Clone, Debug)]
pub(crate) struct Lists<T: Copy + Default> {
    /// Where each list ends in `values`.
    ends: Vec<u32>,
    values: Wiped<T>,
}

impl<T: Copy + Default> Lists<T> {
    pub(crate) const fn new() -> Self {
        Self {
            ends: Vec::new(),
            values: Wiped::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    fn start(&self, list: usize) -> usize {
        if list == 0 { 0 } else { self.ends[list - 1] as usize }
    }

    pub(crate) fn get(&self, list: usize) -> &[T] {
        &self.values[self.start(list)..self.ends[list] as usize]
    }

    pub(crate) fn push(&mut self, list: &[T]) {
        self.values.push_all(list);
        self.ends.push(self.values.len() as u32);
    }

    pub(crate) fn set(&mut self, place: usize, list: &[T]) {
        let (start, end) = (self.start(place), self.ends[place] as usize);
        self.values.replace(start, end, list);
        for later in &mut self.ends[place..] {
            *later = (*later as usize - (end - start) + list.len()) as u32;
        }
    }

    pub(crate) fn pop(&mut self) {
        if let Some(last) = self.ends.len().checked_sub(1) {
            self.values.truncate(self.start(last));
            self.ends.truncate(last);
        }
    }

    /// All values of all lists, in order.
    pub(crate) fn values(&self) -> &[T] {
        &self.values
    }

    /// The list in which the value at `position` of [`Self::values`] stands.
    pub(crate) fn list_of(&self, position: usize) -> usize {
        self.ends.partition_point(|end| *end as usize <= position)
    }

    pub(crate) fn bytes(&self) -> usize {
        allocation(self.ends.capacity() * size_of::<u32>()) + self.values.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_any_length_are_replaced_and_cut() {
        let mut lists = Lists::new();
        for list in [&b"one"[..], b"", b"three"] {
            lists.push(list);
        }
        lists.set(1, b"twenty-two");
        lists.set(0, b"1");
        assert_eq!(
            (0..3).map(|list| lists.get(list)).collect::<Vec<_>>(),
            [&b"1"[..], b"twenty-two", b"three"]
        );
        assert_eq!((lists.list_of(0), lists.list_of(1), lists.list_of(11)), (0, 1, 2));
        lists.set(1, b"");
        assert_eq!((lists.list_of(0), lists.list_of(1)), (0, 2));
        lists.pop();
        assert_eq!((lists.len(), lists.values()), (2, &b"1"[..]));
    }
}
