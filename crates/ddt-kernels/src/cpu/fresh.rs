//! Results that tasks fill, each its own part, without a pass over all of it before.
#![expect(unsafe_code, reason = "a vector's length is set when every part of it has been written")]

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::element::Element;

/// A vector to be: parts of it are zeroed by the task that fills them, when the cache has them anyway.
pub(super) struct Fresh<T> {
    vec: Vec<T>,
    len: usize,
    opened: AtomicUsize,
}

/// A part of a [`Fresh`] that nothing has been written to.
pub(super) struct Part<'a, T> {
    part: &'a mut [MaybeUninit<T>],
    opened: &'a AtomicUsize,
}

impl<T: Element> Fresh<T> {
    pub(super) fn new(len: usize) -> Self {
        Self { vec: Vec::with_capacity(len), len, opened: AtomicUsize::new(0) }
    }

    /// Consecutive parts of `lens` elements.
    pub(super) fn parts(&mut self, lens: impl Iterator<Item = usize>) -> impl Iterator<Item = Part<'_, T>> {
        let Self { vec, len, opened } = self;
        *opened.get_mut() = 0;
        let opened = &*opened;
        super::rows::cut(&mut vec.spare_capacity_mut()[..*len], lens).map(move |part| Part { part, opened })
    }

    /// The vector; panics unless all parts of one cut were opened.
    pub(super) fn finish(mut self) -> Vec<T> {
        assert_eq!(*self.opened.get_mut(), self.len);
        // SAFETY: parts of one cut are disjoint and opened once at most, which wrote all their elements; as
        // many as there are have been opened.
        unsafe { self.vec.set_len(self.len) };
        self.vec
    }
}

/// What a task fills: a part of a new vector, or of a buffer that is there.
pub(super) trait Fill<'a, T>: Send {
    /// The elements, with whatever is in them.
    fn open(self) -> &'a mut [T];
}

impl<'a, T: Element> Fill<'a, T> for &'a mut [T] {
    fn open(self) -> &'a mut [T] {
        self
    }
}

impl<'a, T: Element> Fill<'a, T> for Part<'a, T> {
    /// Zeros in its place.
    fn open(self) -> &'a mut [T] {
        self.part.fill(MaybeUninit::new(T::zero()));
        self.opened.fetch_add(self.part.len(), Ordering::Relaxed);
        // SAFETY: all elements have just been written; the layouts are equal.
        unsafe { &mut *(std::ptr::from_mut(self.part) as *mut [T]) }
    }
}

/// Zeros, written by all threads.
pub(super) fn zeros<T: Element>(len: usize) -> Vec<T> {
    use rayon::prelude::*;
    const PART: usize = 64 * 1024;
    let mut fresh = Fresh::new(len);
    let lens = (0..len.div_ceil(PART)).map(|i| PART.min(len - i * PART));
    let parts: Vec<_> = fresh.parts(lens).collect();
    parts.into_par_iter().for_each(|part| {
        part.open();
    });
    fresh.finish()
}
