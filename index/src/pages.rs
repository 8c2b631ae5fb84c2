//! An array of pages that snapshots share.

use std::sync::Arc;

use crate::bytes::{allocation, shared};

/// Pages under a node, and nodes under a node above.
const FAN: usize = 64;

type Low<P> = Vec<Arc<P>>;
type Middle<P> = Vec<Arc<Low<P>>>;

/// Pages in a tree of three levels. A clone shares all of them; a change of one page copies that page and the two
/// nodes above it, so it costs the same whatever the length is (up to a million rows in pages of 64, the array at the
/// top has four entries).
#[derive(Debug)]
pub(crate) struct Pages<P> {
    len: usize,
    top: Vec<Arc<Middle<P>>>,
}

impl<P> Clone for Pages<P> {
    fn clone(&self) -> Self {
        Self {
            len: self.len,
            top: self.top.clone(),
        }
    }
}

impl<P> Pages<P> {
    pub(crate) const fn new() -> Self {
        Self {
            len: 0,
            top: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, page: usize) -> &P {
        &self.top[page / (FAN * FAN)][page / FAN % FAN][page % FAN]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &P> {
        let low = self.top.iter().flat_map(|middle| middle.iter());
        low.flat_map(|low| low.iter()).map(|page| &**page)
    }

    pub(crate) fn push(&mut self, page: P) {
        if self.len.is_multiple_of(FAN * FAN) {
            self.top.push(Arc::default());
        }
        let top = self.len / (FAN * FAN);
        let middle = Arc::make_mut(&mut self.top[top]);
        if self.len.is_multiple_of(FAN) {
            middle.push(Arc::default());
        }
        if let Some(low) = middle.last_mut() {
            Arc::make_mut(low).push(Arc::new(page));
            self.len += 1;
        }
    }

    pub(crate) fn pop(&mut self) {
        let Some(last) = self.len.checked_sub(1) else { return };
        self.len = last;
        if last.is_multiple_of(FAN * FAN) {
            self.top.pop();
            return;
        }
        let middle = Arc::make_mut(&mut self.top[last / (FAN * FAN)]);
        if last.is_multiple_of(FAN) {
            middle.pop();
        } else if let Some(low) = middle.last_mut() {
            Arc::make_mut(low).pop();
        }
    }

    /// What the pages take: `page_bytes` of each, and the tree.
    pub(crate) fn bytes(&self, page_bytes: impl Fn(&P) -> usize) -> usize {
        let mut bytes = allocation(self.top.capacity() * size_of::<usize>());
        for middle in &self.top {
            bytes += shared::<Middle<P>>() + allocation(middle.capacity() * size_of::<usize>());
            for low in middle.iter() {
                bytes += shared::<Low<P>>() + allocation(low.capacity() * size_of::<usize>());
            }
        }
        bytes + self.iter().map(|page| shared::<P>() + page_bytes(page)).sum::<usize>()
    }
}

impl<P: Clone> Pages<P> {
    /// A page to be changed; copied first if another snapshot has it too.
    pub(crate) fn get_mut(&mut self, page: usize) -> &mut P {
        let middle = Arc::make_mut(&mut self.top[page / (FAN * FAN)]);
        let low = Arc::make_mut(&mut middle[page / FAN % FAN]);
        Arc::make_mut(&mut low[page % FAN])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_and_go_across_the_edges_of_nodes() {
        let mut pages = Pages::new();
        for page in 0..FAN * FAN + FAN + 2 {
            pages.push(page);
        }
        let before = pages.clone();
        *pages.get_mut(FAN * FAN) = 0;
        assert_eq!((before.get(FAN * FAN), pages.get(FAN * FAN)), (&(FAN * FAN), &0));
        while pages.len() > 1 {
            pages.pop();
            assert_eq!(pages.iter().count(), pages.len());
        }
        pages.push(7);
        assert_eq!(pages.iter().collect::<Vec<_>>(), [&0, &7]);
        assert!(before.iter().copied().eq(0..before.len()));
    }
}
