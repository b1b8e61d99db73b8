//! Device memory and pieces of it.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::device::Device;
use super::element::Element;
use super::error::{Result, expect};

/// One allocation; freed with the last [`Slice`] of it.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) device: Arc<Device>,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.device.free(self.address);
    }
}

/// A piece of a device's memory, `len` elements of type `T`.
///
/// Cloning is cheap and shares the memory, which is freed with the last slice of it.
/// Slices may overlap: the order of kernels on the stream is the order of reads and writes.
pub struct Slice<T> {
    memory: Arc<Memory>,
    /// From the start of the memory, in bytes.
    start: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), start: self.start, len: self.len, element: PhantomData }
    }
}

impl<T> std::fmt::Debug for Slice<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slice<{}>({} elements)", std::any::type_name::<T>(), self.len)
    }
}

impl<T: Element> Slice<T> {
    pub(super) fn whole(memory: Memory) -> Self {
        let len = memory.bytes / size_of::<T>();
        Self { memory: Arc::new(memory), start: 0, len, element: PhantomData }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address on the device, for libraries that take one; valid while a slice of this memory lives.
    pub fn address(&self) -> u64 {
        self.memory.address + self.start as u64
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.memory.device
    }

    /// The elements of `range`.
    ///
    /// # Errors
    ///
    /// If the range does not lie inside.
    pub fn sub(&self, range: Range<usize>) -> Result<Self> {
        let inside = range.start <= range.end && range.end <= self.len;
        expect(inside, "slice", || format!("a range inside 0..{}", self.len), || format!("{range:?}"))?;
        let start = self.start + range.start * size_of::<T>();
        Ok(Self {
            memory: Arc::clone(&self.memory),
            start,
            len: range.end - range.start,
            element: PhantomData,
        })
    }

    /// The same bytes as elements of another type: as many as fit.
    ///
    /// # Errors
    ///
    /// If the bytes are not aligned for that type.
    pub fn cast<U: Element>(&self) -> Result<Slice<U>> {
        let aligned = self.address().is_multiple_of(align_of::<U>() as u64);
        expect(
            aligned,
            "slice",
            || format!("an address that is a multiple of {}", align_of::<U>()),
            || format!("{:#x}", self.address()),
        )?;
        Ok(Slice {
            memory: Arc::clone(&self.memory),
            start: self.start,
            len: self.len * size_of::<T>() / size_of::<U>(),
            element: PhantomData,
        })
    }
}
