//! Hints of what will be read soon.
//!
//! A search reads many small pieces that lie anywhere; without hints it waits for each.

/// Bytes that memory hands over at once.
const LINE: usize = 64;

/// Asks for what the slice refers to.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    prefetch_lines(values.as_ptr().cast(), size_of_val(values).div_ceil(LINE));
}

/// Asks for the beginning of a value.
#[inline(always)]
pub(crate) fn prefetch_start<T>(value: &T, bytes: usize) {
    prefetch_lines(
        std::ptr::from_ref(value).cast(),
        bytes.min(size_of::<T>()).div_ceil(LINE),
    );
}

#[inline(always)]
fn prefetch_lines(start: *const i8, lines: usize) {
    for line in 0..lines {
        let place = start.wrapping_add(line * LINE);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instruction is a hint. It reads nothing that the program could see, and does not fail on any
        // address. All x86-64 machines have it.
        #[allow(unsafe_code)]
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place);
        }
        // There is no stable way to say it elsewhere.
        #[cfg(not(target_arch = "x86_64"))]
        let _ = place;
    }
}
