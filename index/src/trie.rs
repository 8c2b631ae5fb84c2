//! A map from hashes to row numbers that snapshots share.

use std::sync::Arc;

use crate::bytes::{allocation, shared};

const FAN: usize = 16;

/// Entries of a leaf before it is divided: small enough to be copied and read through at once.
const LEAF_MAX: usize = 48;

/// Entries of a leaf at which it may be worth joining it with its neighbours.
const LEAF_MIN: usize = 2;

/// Levels until the 32 bits of a tag are used up.
const DEPTH_MAX: u32 = 8;

/// Numbers under tags (hashes of 32 bits); a tag may have several. Whoever looks a key up compares the keys behind the
/// numbers that it finds. A clone shares all nodes; a change copies one leaf and the nodes above it: O(log n).
#[derive(Clone, Debug)]
pub(crate) struct Trie {
    root: Arc<Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Vec<Entry>),
    /// One child for each value of the next four bits of the tag.
    Branch(Vec<Arc<Node>>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    tag: u32,
    number: u32,
}

fn child_of(tag: u32, depth: u32) -> usize {
    (tag >> (4 * depth)) as usize % FAN
}

impl Trie {
    pub(crate) fn new() -> Self {
        Self {
            root: Arc::new(Node::Leaf(Vec::new())),
        }
    }

    fn leaf(&self, tag: u32) -> &[Entry] {
        let (mut node, mut depth) = (&self.root, 0);
        loop {
            match &**node {
                Node::Leaf(entries) => return entries,
                Node::Branch(children) => node = &children[child_of(tag, depth)],
            }
            depth += 1;
        }
    }

    /// The numbers under a tag.
    pub(crate) fn numbers(&self, tag: u32) -> impl Iterator<Item = u32> {
        let entries = self.leaf(tag).iter();
        entries.filter(move |entry| entry.tag == tag).map(|entry| entry.number)
    }

    pub(crate) fn insert(&mut self, tag: u32, number: u32) {
        insert(&mut self.root, Entry { tag, number }, 0);
    }

    pub(crate) fn remove(&mut self, tag: u32, number: u32) {
        remove(&mut self.root, Entry { tag, number }, 0);
    }

    pub(crate) fn replace(&mut self, tag: u32, old: u32, new: u32) {
        let (mut node, mut depth) = (&mut self.root, 0);
        loop {
            match Arc::make_mut(node) {
                Node::Leaf(entries) => {
                    let old = Entry { tag, number: old };
                    if let Some(entry) = entries.iter_mut().find(|entry| **entry == old) {
                        entry.number = new;
                    }
                    return;
                }
                Node::Branch(children) => node = &mut children[child_of(tag, depth)],
            }
            depth += 1;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        fn of(node: &Node) -> usize {
            shared::<Node>()
                + match node {
                    Node::Leaf(entries) => allocation(entries.capacity() * size_of::<Entry>()),
                    Node::Branch(children) => {
                        allocation(children.capacity() * size_of::<usize>())
                            + children.iter().map(|child| of(child)).sum::<usize>()
                    }
                }
        }
        of(&self.root)
    }
}

fn insert(node: &mut Arc<Node>, entry: Entry, depth: u32) {
    match Arc::make_mut(node) {
        Node::Branch(children) => insert(&mut children[child_of(entry.tag, depth)], entry, depth + 1),
        Node::Leaf(entries) if entries.len() < LEAF_MAX || depth == DEPTH_MAX => {
            // A full leaf grows by a little, not by as much again: most leaves never become full.
            if entries.len() == entries.capacity() {
                entries.reserve_exact(4.max(entries.len() / 8));
            }
            entries.push(entry);
        }
        Node::Leaf(entries) => {
            let mut parts = vec![Vec::new(); FAN];
            for entry in entries.iter().chain([&entry]) {
                parts[child_of(entry.tag, depth)].push(*entry);
            }
            let leaves = parts.into_iter().map(|mut part| {
                part.shrink_to_fit();
                Arc::new(Node::Leaf(part))
            });
            *node = Arc::new(Node::Branch(leaves.collect()));
        }
    }
}

/// Whether the node is a leaf with next to nothing in it now.
fn remove(node: &mut Arc<Node>, entry: Entry, depth: u32) -> bool {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            if let Some(place) = entries.iter().position(|other| *other == entry) {
                entries.swap_remove(place);
            }
            entries.len() <= LEAF_MIN
        }
        Node::Branch(children) => {
            let is_small = remove(&mut children[child_of(entry.tag, depth)], entry, depth + 1);
            if is_small && let Some(entries) = joined(children) {
                let is_small = entries.len() <= LEAF_MIN;
                *node = Arc::new(Node::Leaf(entries));
                return is_small;
            }
            false
        }
    }
}

/// The entries of all children, if all are leaves and one leaf has place for them and some more.
fn joined(children: &[Arc<Node>]) -> Option<Vec<Entry>> {
    let leaves = || {
        children.iter().map(|child| match &**child {
            Node::Leaf(entries) => Some(entries),
            Node::Branch(_) => None,
        })
    };
    let mut count = 0;
    for leaf in leaves() {
        count += leaf?.len();
        if count > LEAF_MAX / 2 {
            return None;
        }
    }
    Some(leaves().flatten().flatten().copied().collect())
}

/// The tag of a number: neighbours are spread.
pub(crate) fn tag_of_number(number: u64) -> u32 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 32;
    (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(trie: &Trie, tag: u32) -> Vec<u32> {
        let mut numbers: Vec<u32> = trie.numbers(tag).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn numbers_are_found_replaced_and_removed() {
        let mut trie = Trie::new();
        for number in 0..20_000 {
            trie.insert(tag_of_number(number), number as u32);
        }
        let before = trie.clone();
        for number in 0..20_000 {
            assert!(numbers(&trie, tag_of_number(number)).contains(&(number as u32)));
            trie.replace(tag_of_number(number), number as u32, 30_000 + number as u32);
        }
        for number in 0..20_000 {
            trie.remove(tag_of_number(number), 30_000 + number as u32);
        }
        assert!(matches!(&*trie.root, Node::Leaf(entries) if entries.is_empty()));
        assert_eq!(numbers(&before, tag_of_number(7)), [7]);
    }

    #[test]
    fn a_tag_has_any_count_of_numbers() {
        let mut trie = Trie::new();
        for number in 0..1_000 {
            trie.insert(0xabcd_0123, number);
            trie.insert(0xabcd_0124, number);
        }
        trie.remove(0xabcd_0123, 500);
        assert_eq!(numbers(&trie, 0xabcd_0123).len(), 999);
        assert_eq!(numbers(&trie, 0xabcd_0124), (0..1_000).collect::<Vec<_>>());
        assert!(numbers(&trie, 0xabcd_0125).is_empty());
    }
}
