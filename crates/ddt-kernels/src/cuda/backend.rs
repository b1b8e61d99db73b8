//! The interface of a device, a GPU's driver or the CPU in its place, and the shapes that its libraries take.

use std::fmt::Debug;

use super::error::{Result, expect};
use super::launch::{Arguments, Launch};

/// A device with one stream. Addresses and shapes have been checked by the caller.
pub(super) trait Backend: Debug + Send + Sync {
    fn name(&self) -> &str;

    /// Streaming multiprocessors.
    fn multiprocessors(&self) -> usize;

    /// Whether the CPU plays the device.
    fn is_emulated(&self) -> bool;

    /// The version of cuDNN, if it is there.
    fn cudnn_version(&self) -> Option<usize> {
        None
    }

    /// Bytes of memory: free, and in all.
    fn memory(&self) -> Result<(usize, usize)>;

    fn alloc(&self, bytes: usize) -> Result<u64>;

    fn free(&self, address: u64);

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()>;

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()>;

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    fn wait(&self) -> Result<()>;

    /// Milliseconds of what `work` puts on the stream.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;

    fn launch(&self, launch: &Launch) -> Result<()>;

    /// Records what `work` puts on the stream.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>>;

    fn gemm(&self, shape: GemmShape, places: GemmPlaces) -> Result<()>;

    /// Finds the fastest algorithm for this GEMM, unless it is known, and runs it.
    fn tune_gemm(&self, shape: GemmShape, places: GemmPlaces) -> Result<()> {
        self.gemm(shape, places)
    }

    /// The known ways of multiplying, as text; none where they are not measured.
    fn ways(&self) -> Result<String> {
        Ok(String::new())
    }

    /// Multiplies in these ways, and measures no others.
    fn set_ways(&self, _ways: &str) -> Result<()> {
        Ok(())
    }

    /// Convolves with a library, if there is one that knows the shape, and returns whether it did. `places` are the
    /// addresses of input, weight and result.
    fn conv(&self, _shape: ConvShape, _places: [u64; 3], _scratch: u64) -> Result<bool> {
        Ok(false)
    }
}

/// Work that was recorded, to be started as one.
pub(super) trait Recording: Send {
    fn launch(&self) -> Result<()>;
}

/// All that a way of multiplying depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GemmShape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) with_bias: bool,
    /// [`Float::INDEX`](super::Float::INDEX).
    pub(super) element: usize,
    pub(super) workspace: usize,
}

/// The addresses of a GEMM; 0 for no bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct GemmPlaces {
    pub(super) input: u64,
    pub(super) weight: u64,
    pub(super) bias: u64,
    pub(super) out: u64,
    pub(super) workspace: u64,
}

/// All that a way of convolving depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConvShape {
    pub(super) images: usize,
    pub(super) image: (usize, usize),
    pub(super) result: (usize, usize),
    pub(super) channels: usize,
    pub(super) out_channels: usize,
    pub(super) window: Window,
    /// [`Float::INDEX`](super::Float::INDEX).
    pub(super) element: usize,
    pub(super) scratch: usize,
}

impl ConvShape {
    /// Positions of the result, of all images.
    pub(super) fn positions(&self) -> usize {
        self.images * self.result.0 * self.result.1
    }

    /// Elements that a position of the result is made of.
    pub(super) fn depth(&self) -> usize {
        self.window.taps() * self.channels
    }
}

/// Size, stride and zero padding of a convolution's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Positions from one window to the next, in rows and in columns.
    pub stride: usize,
    /// Rows of zeros above and below the image.
    pub pad_rows: usize,
    /// Columns of zeros on either side of the image.
    pub pad_columns: usize,
}

impl Window {
    /// One position.
    pub const POINT: Self = Self { height: 1, width: 1, stride: 1, pad_rows: 0, pad_columns: 0 };
    /// 3 x 3, with a result as large as the image.
    pub const SAME: Self = Self { height: 3, width: 3, stride: 1, pad_rows: 1, pad_columns: 1 };

    /// Positions in a window.
    pub fn taps(&self) -> usize {
        self.height * self.width
    }

    /// Height and width of the result for an image of these; `None` if not even one window fits.
    pub fn result_of(&self, height: usize, width: usize) -> Option<(usize, usize)> {
        let along = |side: usize, pad: usize, window: usize| {
            Some((side + 2 * pad).checked_sub(window)?.checked_div(self.stride)? + 1)
        };
        let whole = along(height, self.pad_rows, self.height).zip(along(width, self.pad_columns, self.width));
        whole.filter(|_| self.taps() > 0)
    }

    pub(super) fn check(
        &self,
        kernel: &'static str,
        (height, width): (usize, usize),
    ) -> Result<(usize, usize)> {
        // Below 2^15, so that no sum of two leaves 32 bits or wraps onto the image.
        let small = |it: usize| it < 1 << 15;
        let sizes = [height, width, self.height, self.width, self.stride, self.pad_rows, self.pad_columns];
        let fits = self.result_of(height, width).filter(|_| sizes.into_iter().all(small));
        expect(
            fits.is_some(),
            kernel,
            "a window that fits into the image, and sides below 32768",
            format_args!("{self:?} on {height} x {width}"),
        )?;
        Ok(fits.unwrap_or_default())
    }

    pub(super) fn push(&self, values: &mut Arguments, image: (usize, usize), result: (usize, usize)) {
        values.u32(image.0 as u32).u32(image.1 as u32).u32(result.0 as u32).u32(result.1 as u32);
        values.u32(self.height as u32).u32(self.width as u32).u32(self.stride as u32);
        values.u32(self.pad_rows as u32).u32(self.pad_columns as u32);
    }
}
