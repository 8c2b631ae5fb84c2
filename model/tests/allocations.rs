//! What a pass of the 8-bit engine allocates once it is warm: the vectors that it gives, and next to nothing else.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use ccod_model::{ModelCell, PrecisionChoice};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// Safety: everything is passed on as it is.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_pass_allocates_its_vectors_alone() {
    let cell = ModelCell::bundled().unwrap().with_precision(PrecisionChoice::Int8);
    let tokenizer = cell.tokenizer().unwrap();
    let mut engine = cell.build_engine().unwrap();
    let short = tokenizer.encode_query("how many connections does the pool keep");
    let long = tokenizer.encode_query(&"the pool keeps few connections, for each of them costs memory. ".repeat(14));
    // One thread, parts that end with texts, and a text in two parts.
    for batch in [vec![&short], vec![&short; 32], vec![&long; 3]] {
        // Which thread has the longest text may differ, so more than once.
        for _ in 0..3 {
            engine.embed(&batch).unwrap();
        }
        let before = ALLOCATED.load(Ordering::Relaxed);
        let vectors = engine.embed(&batch).unwrap();
        let allocated = ALLOCATED.load(Ordering::Relaxed) - before;
        let given = vectors.len() * (384 * size_of::<f32>() + size_of::<Vec<f32>>());
        // Besides, a task for each thread and layer. The states alone would be 10 times as much.
        assert!(allocated < given + 16 * 1024, "{allocated} bytes for {given}");
    }
}
