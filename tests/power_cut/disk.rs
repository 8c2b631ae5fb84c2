//! A file system that keeps what it promises and nothing more. Pure.
//!
//! What POSIX promises, and what every journalling file system holds:
//! - The data of a file is on disk as of its last completed fsync; of what was written later, anything from
//!   nothing to all may be.
//! - A name is on disk once its directory was synced after it was made. Until then each change of a directory
//!   has happened or has not, whatever happened to the others. A rename changes two names at once or neither.
//! - To sync a file does not sync its name, to sync a directory not the files in it.
//!
//! A sync covers what was complete when it began, and holds from when it ended.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;

/// Names a file or a directory for its whole life, whatever it is called. The root is 0.
pub(crate) type Inode = usize;
/// Names a sync that is under way.
pub(crate) type Ticket = usize;

/// A name in a directory.
pub(crate) type Place = (Inode, Arc<str>);

/// One step of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A new, empty file.
    Create { inode: Inode, place: Place },
    /// A new, empty directory.
    MakeDirectory { inode: Inode, place: Place },
    /// Data at a place of a file.
    Write {
        inode: Inode,
        offset: usize,
        bytes: Arc<[u8]>,
    },
    /// The file has this length now.
    Truncate { inode: Inode, length: usize },
    /// A further name.
    Link { inode: Inode, place: Place },
    /// Another name; what had it before is gone.
    Rename { inode: Inode, from: Place, to: Place },
    /// Two names change places.
    Exchange { places: [(Place, Inode); 2] },
    /// A name less.
    Remove { place: Place },
    /// A sync of a file or directory begins.
    SyncBegins { ticket: Ticket, inode: Inode },
    /// It has ended.
    SyncEnded { ticket: Ticket },
    /// An answer goes out: the JSON-RPC id of the request.
    Acknowledged { id: String },
}

impl Operation {
    /// Whether a cut after it can leave something that a cut before it cannot.
    pub(crate) fn changes_the_disk(&self) -> bool {
        !matches!(self, Self::SyncBegins { .. })
    }
}

/// What of a cut's uncertainties comes true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing that was not synced is there.
    Lost,
    /// Everything is there: the state that kill -9 leaves.
    Kept,
    /// Every name is there, and of the data only what was synced: the files of zero length.
    NamesOnly,
    /// Each change of a directory and the data of each file by a throw of the dice.
    Random,
}

/// What lies under a path after a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A directory.
    Directory,
    /// A file with this data.
    File(Arc<Vec<u8>>),
}

/// What a cut leaves: the state of the disk, by path below the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    /// What there is.
    pub(crate) entries: BTreeMap<PathBuf, Entry>,
    /// The same for the same content.
    pub(crate) fingerprint: u64,
}

#[derive(Clone, Debug)]
struct File {
    data: Arc<Vec<u8>>,
    /// Grows with every change of the data.
    change: u64,
    synced: Arc<Vec<u8>>,
    synced_change: u64,
}

#[derive(Clone, Debug)]
enum Node {
    File(File),
    Directory,
}

/// A change of directories that is not known to be on disk.
#[derive(Clone, Debug)]
struct Pending {
    number: u64,
    changes: Vec<(Place, Option<Inode>)>,
    durable: bool,
}

/// What a sync covers.
#[derive(Clone, Debug)]
enum Sync {
    File {
        inode: Inode,
        data: Arc<Vec<u8>>,
        change: u64,
    },
    Directory {
        inode: Inode,
        before: u64,
    },
}

type Tree = HashMap<Inode, BTreeMap<Arc<str>, Inode>>;

/// The disk. See the module.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    nodes: HashMap<Inode, Node>,
    /// The names as a running process sees them.
    names: Tree,
    /// The names that are on disk for certain.
    durable: Tree,
    /// The changes since, oldest first.
    pending: VecDeque<Pending>,
    next_change: u64,
    syncs: HashMap<Ticket, Sync>,
}

fn set(tree: &mut Tree, (directory, name): &Place, inode: Option<Inode>) {
    let names = tree.entry(*directory).or_default();
    match inode {
        Some(inode) => names.insert(Arc::clone(name), inode),
        None => names.remove(name),
    };
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            nodes: HashMap::from([(0, Node::Directory)]),
            names: Tree::new(),
            durable: Tree::new(),
            pending: VecDeque::new(),
            next_change: 0,
            syncs: HashMap::new(),
        }
    }
}

impl Disk {
    /// The file or directory of this name in a directory.
    pub(crate) fn lookup(&self, directory: Inode, name: &str) -> Option<Inode> {
        self.names.get(&directory)?.get(name).copied()
    }

    /// The data of a file as a running process sees it.
    pub(crate) fn data(&self, inode: Inode) -> Option<&Arc<Vec<u8>>> {
        match self.nodes.get(&inode)? {
            Node::File(file) => Some(&file.data),
            Node::Directory => None,
        }
    }

    /// Takes one step.
    pub(crate) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create { inode, place } => {
                let empty = Arc::new(Vec::new());
                let file = File {
                    data: Arc::clone(&empty),
                    change: 0,
                    synced: empty,
                    synced_change: 0,
                };
                self.nodes.insert(*inode, Node::File(file));
                self.change(vec![(place.clone(), Some(*inode))]);
            }
            Operation::MakeDirectory { inode, place } => {
                self.nodes.insert(*inode, Node::Directory);
                self.change(vec![(place.clone(), Some(*inode))]);
            }
            Operation::Write { inode, offset, bytes } => self.edit(*inode, |data| {
                let end = offset + bytes.len();
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[*offset..end].copy_from_slice(bytes);
            }),
            Operation::Truncate { inode, length } => self.edit(*inode, |data| data.resize(*length, 0)),
            Operation::Link { inode, place } => self.change(vec![(place.clone(), Some(*inode))]),
            Operation::Rename { inode, from, to } => {
                self.change(vec![(from.clone(), None), (to.clone(), Some(*inode))]);
            }
            Operation::Exchange {
                places: [(one, at_one), (other, at_other)],
            } => {
                self.change(vec![(one.clone(), Some(*at_other)), (other.clone(), Some(*at_one))]);
            }
            Operation::Remove { place } => self.change(vec![(place.clone(), None)]),
            Operation::SyncBegins { ticket, inode } => {
                let sync = match self.nodes.get(inode) {
                    Some(Node::File(file)) => Sync::File {
                        inode: *inode,
                        data: Arc::clone(&file.data),
                        change: file.change,
                    },
                    _ => Sync::Directory {
                        inode: *inode,
                        before: self.next_change,
                    },
                };
                self.syncs.insert(*ticket, sync);
            }
            Operation::SyncEnded { ticket } => match self.syncs.remove(ticket) {
                Some(Sync::File { inode, data, change }) => {
                    if let Some(Node::File(file)) = self.nodes.get_mut(&inode)
                        && change >= file.synced_change
                    {
                        file.synced = data;
                        file.synced_change = change;
                    }
                }
                Some(Sync::Directory { inode, before }) => self.sync_directory(inode, before),
                None => {}
            },
            Operation::Acknowledged { .. } => {}
        }
    }

    fn edit(&mut self, inode: Inode, edit: impl FnOnce(&mut Vec<u8>)) {
        if let Some(Node::File(file)) = self.nodes.get_mut(&inode) {
            edit(Arc::make_mut(&mut file.data));
            file.change += 1;
        }
    }

    fn change(&mut self, changes: Vec<(Place, Option<Inode>)>) {
        for (place, inode) in &changes {
            set(&mut self.names, place, *inode);
        }
        self.pending.push_back(Pending {
            number: self.next_change,
            changes,
            durable: false,
        });
        self.next_change += 1;
    }

    fn sync_directory(&mut self, directory: Inode, before: u64) {
        for pending in &mut self.pending {
            let touches = pending.changes.iter().any(|((parent, _), _)| *parent == directory);
            pending.durable |= touches && pending.number < before;
        }
        while self.pending.front().is_some_and(|pending| pending.durable) {
            if let Some(pending) = self.pending.pop_front() {
                for (place, inode) in &pending.changes {
                    set(&mut self.durable, place, *inode);
                }
            }
        }
    }

    /// What a cut at this moment leaves.
    pub(crate) fn cut(&self, fate: Fate, dice: &mut StdRng) -> Image {
        let mut tree = self.durable.clone();
        for pending in &self.pending {
            let happened = pending.durable
                || match fate {
                    Fate::Lost => false,
                    Fate::Kept | Fate::NamesOnly => true,
                    Fate::Random => dice.random_bool(0.5),
                };
            if happened {
                for (place, inode) in &pending.changes {
                    set(&mut tree, place, *inode);
                }
            }
        }
        // One file may have several names; it has one fate.
        let mut fates: HashMap<Inode, Arc<Vec<u8>>> = HashMap::new();
        let mut entries = BTreeMap::new();
        let mut fingerprint = Fingerprint::default();
        let mut seen = BTreeSet::from([0]);
        let mut directories = vec![(0, PathBuf::new())];
        while let Some((directory, path)) = directories.pop() {
            for (name, inode) in tree.get(&directory).into_iter().flatten() {
                let path = path.join(&**name);
                fingerprint.add(path.as_os_str().as_encoded_bytes());
                match self.nodes.get(inode) {
                    Some(Node::File(file)) => {
                        let data = fates.entry(*inode).or_insert_with(|| file.after_cut(fate, dice));
                        fingerprint.add(&data.len().to_le_bytes());
                        // Equal length means equal data but for files that are rewritten in place.
                        fingerprint.add(&inode.to_le_bytes());
                        entries.insert(path, Entry::File(Arc::clone(data)));
                    }
                    Some(Node::Directory) if seen.insert(*inode) => {
                        entries.insert(path.clone(), Entry::Directory);
                        directories.push((*inode, path));
                    }
                    _ => {}
                }
            }
        }
        Image {
            entries,
            fingerprint: fingerprint.0,
        }
    }
}

impl File {
    fn after_cut(&self, fate: Fate, dice: &mut StdRng) -> Arc<Vec<u8>> {
        match fate {
            Fate::Kept => Arc::clone(&self.data),
            Fate::Lost | Fate::NamesOnly => Arc::clone(&self.synced),
            Fate::Random if self.change == self.synced_change => Arc::clone(&self.data),
            Fate::Random => match dice.random_range(0..3) {
                0 => Arc::clone(&self.synced),
                1 => Arc::clone(&self.data),
                // Some of what was appended since; a file that was changed before its end is old or new.
                _ if self.data.starts_with(&self.synced) => {
                    let length = dice.random_range(self.synced.len()..=self.data.len());
                    Arc::new(self.data[..length].to_vec())
                }
                _ => Arc::clone(&self.data),
            },
        }
    }
}

/// FNV-1a; what is fed to it is ours.
struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn place(directory: Inode, name: &str) -> Place {
        (directory, name.into())
    }

    fn write(inode: Inode, offset: usize, text: &str) -> Operation {
        Operation::Write {
            inode,
            offset,
            bytes: text.as_bytes().into(),
        }
    }

    fn sync(ticket: Ticket, inode: Inode) -> [Operation; 2] {
        [Operation::SyncBegins { ticket, inode }, Operation::SyncEnded { ticket }]
    }

    fn disk(operations: impl IntoIterator<Item = Operation>) -> Disk {
        let mut disk = Disk::default();
        for operation in operations {
            disk.apply(&operation);
        }
        disk
    }

    fn text(disk: &Disk, fate: Fate) -> String {
        let image = disk.cut(fate, &mut StdRng::seed_from_u64(1));
        let entries = image.entries.into_iter().map(|(path, entry)| match entry {
            Entry::Directory => format!("{}/", path.display()),
            Entry::File(data) => format!("{}={}", path.display(), String::from_utf8_lossy(&data)),
        });
        entries.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn neither_data_nor_name_survive_without_a_sync() {
        let unsynced = vec![
            Operation::Create {
                inode: 1,
                place: place(0, "a"),
            },
            write(1, 0, "data"),
        ];
        assert_eq!(text(&disk(unsynced.clone()), Fate::Lost), "");
        assert_eq!(text(&disk(unsynced.clone()), Fate::NamesOnly), "a=");
        assert_eq!(text(&disk(unsynced.clone()), Fate::Kept), "a=data");

        // The file is synced, its name is not.
        let mut file = unsynced.clone();
        file.extend(sync(1, 1));
        assert_eq!(text(&disk(file.clone()), Fate::Lost), "");
        assert_eq!(text(&disk(file.clone()), Fate::NamesOnly), "a=data");

        // The name is synced, the data is not.
        let mut name = unsynced;
        name.extend(sync(1, 0));
        assert_eq!(text(&disk(name), Fate::Lost), "a=");

        file.extend(sync(2, 0));
        file.push(write(1, 4, "more"));
        assert_eq!(text(&disk(file.clone()), Fate::Lost), "a=data");
        assert_eq!(text(&disk(file), Fate::Kept), "a=datamore");
    }

    #[test]
    fn a_rename_is_undone_until_a_directory_of_it_is_synced() {
        let mut operations = vec![
            Operation::Create {
                inode: 1,
                place: place(0, "tmp"),
            },
            write(1, 0, "new"),
        ];
        operations.extend(sync(1, 1));
        operations.extend(sync(2, 0));
        operations.push(Operation::Rename {
            inode: 1,
            from: place(0, "tmp"),
            to: place(0, "final"),
        });
        assert_eq!(text(&disk(operations.clone()), Fate::Lost), "tmp=new");
        assert_eq!(text(&disk(operations.clone()), Fate::Kept), "final=new");
        operations.extend(sync(3, 0));
        assert_eq!(text(&disk(operations), Fate::Lost), "final=new");
    }

    #[test]
    fn a_directory_in_an_unsynced_directory_is_lost_with_all_in_it() {
        let mut operations = vec![
            Operation::MakeDirectory {
                inode: 1,
                place: place(0, "d"),
            },
            Operation::Create {
                inode: 2,
                place: place(1, "f"),
            },
            write(2, 0, "x"),
        ];
        operations.extend(sync(1, 2));
        operations.extend(sync(2, 1));
        assert_eq!(text(&disk(operations.clone()), Fate::Lost), "");
        operations.extend(sync(3, 0));
        assert_eq!(text(&disk(operations), Fate::Lost), "d/ d/f=x");
    }

    #[test]
    fn a_sync_covers_what_was_complete_when_it_began() {
        let operations = [
            Operation::Create {
                inode: 1,
                place: place(0, "a"),
            },
            Operation::SyncBegins { ticket: 1, inode: 0 },
            Operation::Create {
                inode: 2,
                place: place(0, "b"),
            },
        ];
        let mut disk = disk(operations);
        assert_eq!(text(&disk, Fate::Lost), "", "it has not ended");
        disk.apply(&Operation::SyncEnded { ticket: 1 });
        assert_eq!(text(&disk, Fate::Lost), "a=");
    }

    #[test]
    fn a_removed_name_may_come_back_and_a_link_keeps_the_data() {
        let mut operations = vec![Operation::Create {
            inode: 1,
            place: place(0, "a#1"),
        }];
        operations.push(write(1, 0, "m"));
        operations.extend(sync(1, 1));
        operations.push(Operation::Link {
            inode: 1,
            place: place(0, "a"),
        });
        operations.extend(sync(2, 0));
        operations.push(Operation::Remove { place: place(0, "a#1") });
        let disk = disk(operations);
        assert_eq!(text(&disk, Fate::Lost), "a=m a#1=m");
        assert_eq!(text(&disk, Fate::Kept), "a=m");
    }

    #[test]
    fn the_dice_reach_what_lies_between_the_extremes() {
        let mut operations = Vec::new();
        for inode in 1..=4 {
            operations.push(Operation::Create {
                inode,
                place: place(0, &format!("f{inode}")),
            });
            operations.push(write(inode, 0, "0123456789"));
        }
        let disk = disk(operations);
        let mut dice = StdRng::seed_from_u64(7);
        let (mut partial_names, mut partial_data) = (false, false);
        for _ in 0..100 {
            let image = disk.cut(Fate::Random, &mut dice);
            partial_names |= (1..4).contains(&image.entries.len());
            partial_data |= image
                .entries
                .values()
                .any(|entry| matches!(entry, Entry::File(data) if (1..10).contains(&data.len())));
        }
        assert!(partial_names && partial_data);
    }
}
