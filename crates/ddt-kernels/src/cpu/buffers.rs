//! Memory that tasks share: pooled scratch, results that tasks fill, and disjoint writes to one buffer.
#![expect(
    unsafe_code,
    reason = "a vector's length is set when all of it has been written; tasks write disjoint ranges of one buffer"
)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::WithDType;
use rayon::prelude::*;

/// Buffers at rest, at most. They are no more than were in use at one time, most of them a task's.
const MAX_AT_REST: usize = 16;

/// An element type that has a pool.
pub(crate) trait Pooled: Copy + Default + Send + Sync + 'static {
    /// Buffers at rest.
    fn pool() -> &'static Mutex<Vec<Vec<Self>>>;
}

macro_rules! pooled {
    ($t:ty) => {
        impl Pooled for $t {
            fn pool() -> &'static Mutex<Vec<Vec<Self>>> {
                static POOL: Mutex<Vec<Vec<$t>>> = Mutex::new(Vec::new());
                &POOL
            }
        }
    };
}

pooled!(f32);
pooled!(half::bf16);

/// A buffer, aligned to cache lines, that holds whatever its last user left in it.
///
/// Mapping fresh memory can cost as much as the GEMM that uses it.
pub(crate) struct Scratch<T: Pooled> {
    buffer: Vec<T>,
    /// The elements in use, the first of them at the start of a cache line.
    range: Range<usize>,
    /// Whether it returns to the pool.
    pooled: bool,
}

impl<T: Pooled> Scratch<T> {
    /// Elements of a cache line.
    const LINE: usize = 64 / size_of::<T>();

    /// A buffer of `len` elements from the pool.
    pub(crate) fn take(len: usize) -> Self {
        let mut pool = T::pool().lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &&(usize, usize)| buffer.1 >= len + Self::LINE;
        let sizes: Vec<(usize, usize)> = pool.iter().map(Vec::len).enumerate().collect();
        let best = sizes.iter().filter(fits).min_by_key(|it| it.1).or(sizes.iter().max_by_key(|it| it.1));
        let mut buffer = best.map(|it| pool.swap_remove(it.0)).unwrap_or_default();
        drop(pool);
        if buffer.len() < len + Self::LINE {
            buffer = vec![T::default(); len + Self::LINE];
        }
        Self::aligned(buffer, len, true)
    }

    /// A buffer outside the pool, for values that stay.
    pub(crate) fn own(len: usize) -> Self {
        Self::aligned(vec![T::default(); len + Self::LINE], len, false)
    }

    fn aligned(buffer: Vec<T>, len: usize, pooled: bool) -> Self {
        let first = buffer.as_ptr().align_offset(64).min(Self::LINE);
        Self { buffer, range: first..first + len, pooled }
    }
}

impl<T: Pooled> Drop for Scratch<T> {
    fn drop(&mut self) {
        if !self.pooled {
            return;
        }
        let mut pool = T::pool().lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < MAX_AT_REST {
            pool.push(std::mem::take(&mut self.buffer));
        }
    }
}

impl<T: Pooled> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.buffer[self.range.clone()]
    }
}

impl<T: Pooled> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.range.clone()]
    }
}

/// Cuts the next `len` elements off `buffer`.
pub(crate) fn take<'a, T>(buffer: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (head, tail) = std::mem::take(buffer).split_at_mut(len);
    *buffer = tail;
    head
}

/// Cuts `buffer` into consecutive slices of `lens` elements.
pub(crate) fn cut<T>(
    mut buffer: &mut [T],
    lens: impl Iterator<Item = usize>,
) -> impl Iterator<Item = &mut [T]> {
    lens.map(move |len| take(&mut buffer, len))
}

/// A vector under construction: each task zeroes the part that it fills, while the part is in its cache anyway.
pub(crate) struct Fresh<T> {
    vec: Vec<T>,
    len: usize,
    opened: AtomicUsize,
}

/// A part of a [`Fresh`] that nothing has been written to.
pub(crate) struct Part<'a, T> {
    part: &'a mut [MaybeUninit<T>],
    opened: &'a AtomicUsize,
}

impl<T: WithDType> Fresh<T> {
    pub(crate) fn new(len: usize) -> Self {
        Self { vec: Vec::with_capacity(len), len, opened: AtomicUsize::new(0) }
    }

    /// Consecutive parts of `lens` elements.
    pub(crate) fn parts(&mut self, lens: impl Iterator<Item = usize>) -> impl Iterator<Item = Part<'_, T>> {
        let Self { vec, len, opened } = self;
        *opened.get_mut() = 0;
        let opened = &*opened;
        cut(&mut vec.spare_capacity_mut()[..*len], lens).map(move |part| Part { part, opened })
    }

    /// The vector; panics unless all parts of one cut were opened.
    pub(crate) fn finish(mut self) -> Vec<T> {
        assert_eq!(*self.opened.get_mut(), self.len);
        // SAFETY: opening a part writes all its elements; the parts of a cut are disjoint, each is opened at most once,
        // and the count says that all were opened.
        unsafe { self.vec.set_len(self.len) };
        self.vec
    }
}

/// The memory that a task fills: a part of a new vector, or of an existing buffer.
pub(crate) trait Fill<'a, T>: Send {
    /// The elements, whatever they hold.
    fn open(self) -> &'a mut [T];
}

impl<'a, T: WithDType> Fill<'a, T> for &'a mut [T] {
    fn open(self) -> &'a mut [T] {
        self
    }
}

impl<'a, T: WithDType> Fill<'a, T> for Part<'a, T> {
    /// Zeros in its place.
    fn open(self) -> &'a mut [T] {
        self.part.fill(MaybeUninit::new(T::zero()));
        self.opened.fetch_add(self.part.len(), Ordering::Relaxed);
        // SAFETY: all elements have just been written; the layouts are equal.
        unsafe { &mut *(std::ptr::from_mut(self.part) as *mut [T]) }
    }
}

/// Zeros, written by all threads.
pub(crate) fn zeros<T: WithDType>(len: usize) -> Vec<T> {
    const PART: usize = 64 * 1024;
    let mut fresh = Fresh::new(len);
    let lens = (0..len.div_ceil(PART)).map(|i| PART.min(len - i * PART));
    let parts: Vec<_> = fresh.parts(lens).collect();
    parts.into_par_iter().for_each(|part| {
        part.open();
    });
    fresh.finish()
}

/// A buffer whose disjoint ranges are written by several tasks.
pub(crate) struct Scatter<'a, T> {
    start: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `range_mut`, whose callers promise that ranges in use do not overlap; what
// remains is sending elements between threads.
unsafe impl<T: Send> Sync for Scatter<'_, T> {}

impl<'a, T> Scatter<'a, T> {
    pub(crate) fn new(buffer: &'a mut [T]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of an element, which need not exist.
    #[inline(always)]
    pub(crate) fn at(&self, element: usize) -> *const T {
        self.start.wrapping_add(element)
    }

    /// The elements `first..first + count`; panics if they do not exist.
    ///
    /// # Safety
    /// While the result is in use, no other range that overlaps it may be.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the point of the type; callers promise disjoint ranges")]
    pub(crate) unsafe fn range_mut(&self, first: usize, count: usize) -> &mut [T] {
        assert!(first <= self.len && count <= self.len - first);
        // SAFETY: the range is inside the buffer, which is borrowed mutably for 'a; the caller promises that
        // nothing else refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }
}
