//! Buffers that are kept from one operation to the next.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

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

/// A buffer with whatever its last user left in it, which the next one finds.
///
/// Fresh memory costs as much to map as a product with it may take.
pub(crate) struct Scratch<T: Pooled> {
    buffer: Vec<T>,
    len: usize,
    /// Whether it returns to the pool.
    pooled: bool,
}

impl<T: Pooled> Scratch<T> {
    /// A buffer that never was in the pool and never comes there.
    pub(crate) fn own(len: usize) -> Self {
        Self { buffer: vec![T::default(); len], len, pooled: false }
    }

    /// As [`own`](Self::own), empty, with room for `len` elements.
    pub(crate) fn reserved(len: usize) -> Self {
        Self { buffer: Vec::with_capacity(len), len: 0, pooled: false }
    }

    /// Appends to a buffer that is not the pool's.
    pub(crate) fn extend(&mut self, elements: &[T]) {
        self.buffer.truncate(self.len);
        self.buffer.extend_from_slice(elements);
        self.len = self.buffer.len();
    }

    /// A buffer of `len` elements.
    pub(crate) fn take(len: usize) -> Self {
        let mut pool = T::pool().lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &&(usize, usize)| buffer.1 >= len;
        let sizes: Vec<(usize, usize)> = pool.iter().map(Vec::len).enumerate().collect();
        let best = sizes.iter().filter(fits).min_by_key(|it| it.1).or(sizes.iter().max_by_key(|it| it.1));
        let mut buffer = best.map(|it| pool.swap_remove(it.0)).unwrap_or_default();
        drop(pool);
        if buffer.len() < len {
            buffer = vec![T::default(); len];
        }
        Self { buffer, len, pooled: true }
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
        &self.buffer[..self.len]
    }
}

impl<T: Pooled> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[..self.len]
    }
}
