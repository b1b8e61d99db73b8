//! Handing out interleaved rows of one buffer to several tasks.
#![expect(
    unsafe_code,
    reason = "rows of one head are not one slice, so tasks cannot own theirs by borrowing"
)]

use std::marker::PhantomData;

/// A buffer whose disjoint ranges are written by several tasks.
pub(super) struct Scatter<'a, T> {
    start: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `range_mut`, whose callers promise that ranges in use do not overlap; what
// remains is sending elements between threads.
unsafe impl<T: Send> Sync for Scatter<'_, T> {}

impl<'a, T> Scatter<'a, T> {
    pub(super) fn new(buffer: &'a mut [T]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: PhantomData }
    }

    /// The address of an element, which need not exist.
    #[inline(always)]
    pub(super) fn at(&self, element: usize) -> *const T {
        self.start.wrapping_add(element)
    }

    /// The elements `first..first + count`; panics if they do not exist.
    ///
    /// # Safety
    ///
    /// While the result is in use, no other range that overlaps it may be.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the point of the type; callers promise disjoint ranges")]
    pub(super) unsafe fn range_mut(&self, first: usize, count: usize) -> &mut [T] {
        assert!(first <= self.len && count <= self.len - first);
        // SAFETY: the range lies in the buffer, which is borrowed mutably for 'a; the caller promises that
        // nothing else refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }
}
