//! Softmax.

use super::device::Cuda;
use super::error::{Result, expect};
use super::kernels;
use super::launch::{Arguments, Launch};
use super::memory::Slice;
use super::rows::check_len;

const NAME: &str = "softmax_rows";
const BLOCK: u32 = 256;

impl Cuda {
    /// `softmax(scale x)` of each row of `length`, in place.
    ///
    /// # Errors
    ///
    /// If `x` is not whole rows or lies badly, or if the driver refuses.
    pub fn softmax_rows(&self, x: &Slice<f32>, length: usize, scale: f32) -> Result<()> {
        expect(
            (1..=i32::MAX as usize).contains(&length),
            NAME,
            || "rows of 1 to 2^31 - 1".into(),
            || length.to_string(),
        )?;
        let rows = x.len() / length;
        check_len(NAME, &self.device, ("x, whole rows of the length", x), rows * length)?;
        expect(rows <= i32::MAX as usize, NAME, || "fewer than 2^31 rows".into(), || rows.to_string())?;
        let mut arguments = Arguments::default();
        arguments.address(x.address()).u32(length as u32).f32(scale);
        let kernel = kernels::SOFTMAX_ROWS;
        self.launch(&Launch { kernel, grid: (rows as u32, 1, 1), block: BLOCK, shared: 0, arguments })
    }
}
