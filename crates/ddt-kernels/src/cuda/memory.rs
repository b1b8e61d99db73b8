//! Device memory: its element types, its owner, and slices of it.
#![expect(unsafe_code, reason = "any bits are an element, so elements are bytes")]

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::bf16;

use super::backend::Backend;
use super::error::{Result, expect};

/// An element of device memory: a type for which any bits are a value.
pub trait Element: Copy + Send + Sync + std::fmt::Debug + 'static + private::Sealed {
    /// Zero.
    const ZERO: Self;
}

/// A type that the kernels compute on: bf16 or f32. Arithmetic is f32 in both.
pub trait Float: Element {
    /// The name of the type in the names of kernels.
    const NAME: &'static str;
    /// 0 for bf16, 1 for f32: the place in a pair of kernels.
    const INDEX: usize;
    /// Elements in the 16 bytes that one thread moves at once.
    const LANES: usize = 16 / size_of::<Self>();
    /// The nearest value.
    fn from_f32(value: f32) -> Self;
    /// The value.
    fn to_f32(self) -> f32;
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($element:ty: $zero:expr),*) => {
        $(impl private::Sealed for $element {}
        impl Element for $element {
            const ZERO: Self = $zero;
        })*
    };
}

elements!(bf16: bf16::ZERO, f32: 0.0, u32: 0, u8: 0);

impl Float for bf16 {
    const NAME: &'static str = "bf16";
    const INDEX: usize = 0;

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl Float for f32 {
    const NAME: &'static str = "f32";
    const INDEX: usize = 1;

    fn from_f32(value: f32) -> Self {
        value
    }

    fn to_f32(self) -> f32 {
        self
    }
}

/// The bytes of `values`.
pub(super) fn bytes_of<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: the same memory; elements have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of `values`, for writing.
pub(super) fn bytes_of_mut<T: Element>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: the same memory; elements have no padding, and any bytes are a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// A device and the addresses whose release is deferred.
#[derive(Debug)]
pub(crate) struct Device {
    pub(super) backend: Box<dyn Backend>,
    deferred: Mutex<Deferred>,
}

/// Graphs hold addresses: memory that is older than a graph is freed after it. Later memory is in no graph.
#[derive(Debug, Default)]
struct Deferred {
    /// Allocations so far, which number them.
    allocations: u64,
    /// For each graph, the allocations before it; all while it is recorded.
    graphs: Vec<u64>,
    /// Number and address.
    waiting: Vec<(u64, u64)>,
}

/// A graph that is being recorded.
pub(super) const RECORDED_NOW: u64 = u64::MAX;

impl Device {
    pub(super) fn new(backend: impl Backend + 'static) -> Arc<Self> {
        Arc::new(Self { backend: Box::new(backend), deferred: Mutex::default() })
    }

    pub(super) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Memory> {
        let address = self.backend.alloc(bytes)?;
        let mut deferred = self.deferred();
        deferred.allocations += 1;
        Ok(Memory { device: Arc::clone(self), number: Some(deferred.allocations), address, bytes })
    }

    fn free(&self, number: u64, address: u64) {
        let mut deferred = self.deferred();
        if deferred.graphs.iter().any(|before| number <= *before) {
            deferred.waiting.push((number, address));
        } else {
            self.backend.free(address);
        }
    }

    pub(super) fn graph_begins(&self) {
        self.deferred().graphs.push(RECORDED_NOW);
    }

    /// Returns the number of allocations before it, by which it is known.
    pub(super) fn graph_is_recorded(&self) -> u64 {
        let mut deferred = self.deferred();
        let before = deferred.allocations;
        if let Some(graph) = deferred.graphs.iter_mut().find(|it| **it == RECORDED_NOW) {
            *graph = before;
        }
        before
    }

    pub(super) fn graph_is_gone(&self, before: u64) {
        let deferred = &mut *self.deferred();
        if let Some(at) = deferred.graphs.iter().position(|it| *it == before) {
            deferred.graphs.swap_remove(at);
        }
        let newest = deferred.graphs.iter().max().copied().unwrap_or_default();
        deferred.waiting.retain(|(number, address)| {
            let waits = *number <= newest;
            if !waits {
                self.backend.free(*address);
            }
            waits
        });
    }

    fn deferred(&self) -> MutexGuard<'_, Deferred> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One allocation; freed with the last [`Slice`] of it, unless it is another's.
#[derive(Debug)]
pub(super) struct Memory {
    device: Arc<Device>,
    /// None if it is another's.
    number: Option<u64>,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.device.free(number, self.address);
        }
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

    /// Memory of another's.
    ///
    /// # Safety
    /// At the address are as many elements of the device, for as long as work that uses them is on its stream.
    #[cfg(feature = "candle-cuda")]
    pub(crate) unsafe fn borrowed(device: &Arc<Device>, address: u64, len: usize) -> Self {
        let device = Arc::clone(device);
        Self::whole(Memory { device, number: None, address, bytes: len * size_of::<T>() })
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
    /// If the range is not inside.
    pub fn sub(&self, range: Range<usize>) -> Result<Self> {
        let inside = range.start <= range.end && range.end <= self.len;
        expect(inside, "slice", format_args!("a range inside 0..{}", self.len), format_args!("{range:?}"))?;
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
    /// If the bytes are not aligned for that type.
    pub fn cast<U: Element>(&self) -> Result<Slice<U>> {
        let aligned = self.address().is_multiple_of(align_of::<U>() as u64);
        expect(
            aligned,
            "slice",
            format_args!("an address that is a multiple of {}", align_of::<U>()),
            format_args!("{:#x}", self.address()),
        )?;
        Ok(Slice {
            memory: Arc::clone(&self.memory),
            start: self.start,
            len: self.len * size_of::<T>() / size_of::<U>(),
            element: PhantomData,
        })
    }
}
