//! A kernel launch: name, grid and arguments.

use super::error::{Result, expect};

/// The values a kernel is called with, in its order.
#[derive(Debug, Clone, Default)]
pub(super) struct Arguments {
    /// One cell an argument, its value in the low bytes: drivers read as many as the kernel declares.
    cells: [u64; Self::MOST],
    len: usize,
}

impl Arguments {
    const MOST: usize = 24;

    pub(super) fn address(&mut self, value: u64) -> &mut Self {
        self.cells[self.len] = value;
        self.len += 1;
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.address(u64::from(value))
    }

    pub(super) fn f32(&mut self, value: f32) -> &mut Self {
        self.u32(value.to_bits())
    }

    /// Pointers to the values, as `cuLaunchKernel` takes them.
    pub(super) fn pointers(&self) -> [*mut std::ffi::c_void; Self::MOST] {
        std::array::from_fn(|i| {
            if i < self.len { (&raw const self.cells[i]).cast_mut().cast() } else { std::ptr::null_mut() }
        })
    }

    #[cfg(feature = "cuda-emulation")]
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// A kernel, its grid and its arguments.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) kernel: &'static str,
    pub(super) grid: (u32, u32, u32),
    /// Threads of a block, a multiple of 32.
    pub(super) block: u32,
    /// Bytes of shared memory beside what the kernel declares.
    pub(super) shared: u32,
    pub(super) arguments: Arguments,
}

/// How many blocks of `each` cover `count` items, each with its own number in 32 bits.
pub(super) fn blocks(kernel: &'static str, count: usize, each: usize) -> Result<u32> {
    let blocks = count.div_ceil(each);
    expect(
        blocks * each <= u32::MAX as usize,
        kernel,
        "fewer than 2^32 threads",
        format_args!("work for {count}: use a smaller batch"),
    )?;
    Ok(blocks as u32)
}
