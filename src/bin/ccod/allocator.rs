//! The allocator of the daemon: mimalloc, and what is freed is overwritten.
//!
//! The daemon lives for weeks on many threads with large buffers that come and go (texts, batches, query results).
//! mimalloc gives such memory back to the system, of which the C library's allocator keeps most.
//!
//! A purge promises that nothing holds what it has removed. What we keep can be overwritten where it is dropped, but
//! requests, answers, rows and files pass through hundreds of buffers of crates that know nothing of that. So every
//! block is overwritten as it is freed, whoever had it.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;
use std::sync::atomic::{Ordering, compiler_fence};

use mimalloc::MiMalloc;

#[allow(unsafe_code)]
unsafe extern "C" {
    /// Bytes that the block at `block` has, at least as many as were asked for.
    fn mi_usable_size(block: *const c_void) -> usize;
    /// Gives back what the calling thread keeps for its next blocks, and, with `force`, what no thread uses.
    fn mi_collect(force: bool);
}

/// See the module.
#[global_allocator]
static ALLOCATOR: Wiping<MiMalloc> = Wiping(MiMalloc);

/// Gives back what the calling thread has freed, and what no thread uses.
pub(crate) fn give_back() {
    #[allow(unsafe_code)]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        mi_collect(true);
    }
}

/// An allocator that knows how large its blocks really are.
trait Measured: GlobalAlloc {
    /// Bytes of the block at `block`.
    ///
    /// # Safety
    ///
    /// `block` was allocated by this allocator and not freed since.
    #[allow(unsafe_code)]
    unsafe fn usable_size(&self, block: *mut u8) -> usize;
}

#[allow(unsafe_code)]
impl Measured for MiMalloc {
    unsafe fn usable_size(&self, block: *mut u8) -> usize {
        // SAFETY: the caller's promise is what mimalloc asks for.
        unsafe { mi_usable_size(block.cast()) }
    }
}

/// Overwrites what is freed, and leaves the rest to `A`.
struct Wiping<A>(A);

// SAFETY: blocks come from `A` and go back to it with the layout that they have; in between nothing is done to them that
// their owner could not do.
#[allow(unsafe_code)]
unsafe impl<A: Measured> GlobalAlloc for Wiping<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller has promised.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller has promised.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is the caller's until here, with so many bytes, and `A` gets it as it has given it.
        unsafe {
            wipe(block, layout.size());
            self.0.dealloc(block, layout);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let old_size = layout.size();
        // SAFETY: the block is the caller's, with `old_size` bytes of content and as many as `A` says in all. What is
        // copied fits into both blocks, which are two. The caller has promised that `new_size` makes a layout.
        unsafe {
            let usable = self.0.usable_size(block);
            if new_size <= usable && new_size >= usable / 2 {
                if new_size < old_size {
                    wipe(block.add(new_size), old_size - new_size);
                }
                return block;
            }
            // Not `A`'s own: it would leave what the block holds where that was.
            let moved = self
                .0
                .alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !moved.is_null() {
                block.copy_to_nonoverlapping(moved, old_size.min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Overwrites `bytes` bytes at `block`.
///
/// # Safety
///
/// They are the caller's to write.
#[allow(unsafe_code)]
unsafe fn wipe(block: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { block.write_bytes(0, bytes) };
    // What follows frees the block, and must not make the writing look useless.
    compiler_fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use std::alloc::System;
    use std::cell::RefCell;

    use super::*;

    /// Keeps what is in the blocks that it gets back.
    #[derive(Default)]
    struct Watched {
        freed: RefCell<Vec<Vec<u8>>>,
    }

    /// Each block has more bytes than were asked for, by this much.
    const SPARE: usize = 16;

    #[allow(unsafe_code)]
    // SAFETY: blocks of the system, with a number in front of each that says how large it is.
    unsafe impl GlobalAlloc for Watched {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let usable = layout.size() + SPARE;
            // SAFETY: a layout of more than no bytes; the number fits into what is before the block.
            unsafe {
                let whole = System.alloc(Layout::from_size_align(usable + SPARE, SPARE).unwrap());
                whole.cast::<usize>().write(usable);
                whole.add(SPARE)
            }
        }

        unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
            // SAFETY: the block comes from above.
            unsafe {
                let usable = self.usable_size(block);
                // The spare bytes were never written.
                let content = std::slice::from_raw_parts(block, usable - SPARE);
                self.freed.borrow_mut().push(content.to_vec());
                System.dealloc(
                    block.sub(SPARE),
                    Layout::from_size_align(usable + SPARE, SPARE).unwrap(),
                );
            }
        }
    }

    #[allow(unsafe_code)]
    impl Measured for Watched {
        unsafe fn usable_size(&self, block: *mut u8) -> usize {
            // SAFETY: the number lies before the block.
            unsafe { block.sub(SPARE).cast::<usize>().read() }
        }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    fn resized(sizes: &[usize]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let allocator = Wiping(Watched::default());
        #[allow(unsafe_code)]
        // SAFETY: each block is used within the size that it has, and freed once.
        let content = unsafe {
            let mut size = sizes[0];
            let mut block = allocator.alloc(layout(size));
            block.write_bytes(7, size);
            for next in &sizes[1..] {
                block = allocator.realloc(block, layout(size), *next);
                if *next > size {
                    block.add(size).write_bytes(7, next - size);
                }
                size = *next;
            }
            let content = std::slice::from_raw_parts(block, size).to_vec();
            allocator.dealloc(block, layout(size));
            content
        };
        (allocator.0.freed.take(), content)
    }

    #[test]
    fn what_is_freed_is_overwritten_also_where_a_block_moves_grows_or_shrinks() {
        for sizes in [
            &[100][..],
            &[100, 110],
            &[100, 1_000, 5_000],
            &[100, 90, 60],
            &[1_000, 10],
            &[10, 20, 40, 25, 80, 8],
        ] {
            let (freed, content) = resized(sizes);
            assert_eq!(content, vec![7; *sizes.last().unwrap()], "{sizes:?}");
            assert!(!freed.is_empty());
            for block in freed {
                assert!(block.iter().all(|byte| *byte == 0), "{sizes:?}: {block:?}");
            }
        }
    }

    #[test]
    fn the_allocator_of_the_program_knows_the_size_of_its_blocks() {
        for size in [1, 100, 10_000, 1 << 20] {
            #[allow(unsafe_code)]
            // SAFETY: a block of its own, freed once.
            unsafe {
                let block = ALLOCATOR.alloc(layout(size));
                assert!(ALLOCATOR.0.usable_size(block) >= size);
                ALLOCATOR.dealloc(block, layout(size));
            }
        }
        give_back();
    }
}
