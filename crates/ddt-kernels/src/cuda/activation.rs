//! Activations: sums with rows, with or without SiLU, and the gate of a feed-forward layer.

use super::device::Cuda;
use super::error::{Result, expect};
use super::kernels;
use super::launch::Arguments;
use super::memory::{Float, Slice};
use super::rows::{Rows, check_len};

/// The activation after a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `a / (1 + exp(-a))`.
    Silu,
}

/// Arguments of [`Cuda::add_rows`].
#[derive(Debug, Clone, Copy)]
pub struct AddRows<'a, T> {
    /// (T, D).
    pub x: &'a Slice<T>,
    /// D.
    pub width: usize,
    /// D columns that are added; nothing if `None`.
    pub addend: Option<Rows<'a, T>>,
    /// The activation.
    pub activation: Activation,
    /// The result, (T, D); may be `x`.
    pub out: &'a Slice<T>,
}

/// Arguments of [`Cuda::class_condition`].
#[derive(Debug, Clone, Copy)]
pub struct ClassCondition<'a, T> {
    /// The class of each row, (R).
    pub labels: &'a Slice<u32>,
    /// The class embeddings, (classes, D).
    pub table: &'a Slice<T>,
    /// D.
    pub width: usize,
    /// The time embedding, (D), the same for all rows; without it rows are gathered as they are.
    pub time: Option<&'a Slice<T>>,
    /// The result, (R, D).
    pub out: &'a Slice<T>,
}

/// Arguments of [`Cuda::swiglu`].
#[derive(Debug, Clone, Copy)]
pub struct SwiGlu<'a, T> {
    /// The GEMM with both weights, (T, 2 F): rows of `a`, then `b`.
    pub ab: &'a Slice<T>,
    /// F.
    pub hidden: usize,
    /// The result, (T, F).
    pub out: &'a Slice<T>,
}

impl Cuda {
    /// `out = activation(x + addend)`: a bias, an activation, or the self-condition `silu(t + s)`.
    ///
    /// # Errors
    /// If D is no multiple of 8 (bf16) or 4 (f32), if a slice has another length or is not aligned, or if the
    /// driver refuses.
    pub fn add_rows<T: Float>(&self, arguments: &AddRows<'_, T>) -> Result<()> {
        const NAME: &str = "add_rows";
        let AddRows { x, width, addend, activation, out } = *arguments;
        check_width::<T>(NAME, width)?;
        let tokens = x.len() / width;
        check_len(NAME, &self.device, ("x, whole rows of the width", x), tokens * width)?;
        check_len(NAME, &self.device, ("out", out), x.len())?;
        let mut values = Arguments::default();
        values.address(x.address()).address(out.address()).u32(tokens as u32).u32(width as u32);
        let flags = u32::from(addend.is_some()) | u32::from(activation == Activation::Silu) << 1;
        let rows = addend.unwrap_or(Rows::one(x));
        if addend.is_some() {
            rows.check(NAME, &self.device, (tokens, width))?;
        }
        rows.push(&mut values);
        values.u32(flags);
        self.each(NAME, kernels::ADD_ROWS[T::INDEX], x.len() / T::LANES, values)
    }

    /// The condition of the encoder: `out = silu(time + table[label])`, or `table[label]`, a row for each label.
    ///
    /// A label outside the table gives a row of NaN.
    ///
    /// # Errors
    /// As [`Self::add_rows`].
    pub fn class_condition<T: Float>(&self, arguments: &ClassCondition<'_, T>) -> Result<()> {
        const NAME: &str = "class_condition";
        let ClassCondition { labels, table, width, time, out } = *arguments;
        let rows = labels.len();
        check_width::<T>(NAME, width)?;
        time.map_or(Ok(()), |time| check_len(NAME, &self.device, ("time", time), width))?;
        check_len(NAME, &self.device, ("labels", labels), rows)?;
        let classes = table.len() / width;
        check_len(NAME, &self.device, ("table, whole rows of the width", table), classes * width)?;
        check_len(NAME, &self.device, ("out", out), rows * width)?;
        let mut values = Arguments::default();
        values.address(labels.address()).address(table.address()).address(time.map_or(0, Slice::address));
        values.address(out.address()).u32(rows as u32).u32(width as u32).u32(classes as u32);
        self.each(NAME, kernels::CLASS_CONDITION[T::INDEX], rows * width, values)
    }

    /// The gate of a SwiGLU feed-forward layer.
    ///
    /// ```text
    /// out = a / (1 + exp(-a)) * b
    /// ```
    ///
    /// Fast where F is a multiple of 8 (bf16) or 4 (f32): pad weights with zeros, which change nothing.
    ///
    /// # Errors
    /// If a slice has another length or is not aligned, or if the driver refuses.
    pub fn swiglu<T: Float>(&self, arguments: &SwiGlu<'_, T>) -> Result<()> {
        const NAME: &str = "swiglu";
        let SwiGlu { ab, hidden, out } = *arguments;
        check_len(NAME, &self.device, ("ab", ab), 2 * out.len())?;
        let b = ab.address() + (hidden * size_of::<T>()) as u64;
        self.swiglu_rows::<T>([ab.address(), b], 2 * hidden, hidden, out)
    }

    /// [`swiglu`](Self::swiglu) of two results, each (T, F).
    ///
    /// # Errors
    /// As [`swiglu`](Self::swiglu).
    pub fn swiglu_of_two<T: Float>(
        &self,
        [a, b]: [&Slice<T>; 2],
        hidden: usize,
        out: &Slice<T>,
    ) -> Result<()> {
        check_len("swiglu", &self.device, ("a", a), out.len())?;
        check_len("swiglu", &self.device, ("b", b), out.len())?;
        self.swiglu_rows::<T>([a, b].map(Slice::address), hidden, hidden, out)
    }

    fn swiglu_rows<T: Float>(
        &self,
        [a, b]: [u64; 2],
        stride: usize,
        hidden: usize,
        out: &Slice<T>,
    ) -> Result<()> {
        const NAME: &str = "swiglu";
        expect(
            hidden > 0 && stride <= u32::MAX as usize,
            NAME,
            "a hidden size above 0 and below 2^31",
            hidden,
        )?;
        let tokens = out.len() / hidden;
        check_len(NAME, &self.device, ("out, whole rows of the hidden size", out), tokens * hidden)?;
        let single = usize::from(!hidden.is_multiple_of(T::LANES));
        let lanes = if single == 1 { 1 } else { T::LANES };
        let mut values = Arguments::default();
        values.address(a).address(b).address(out.address());
        values.u32(tokens as u32).u32(hidden as u32).u32(stride as u32);
        self.each(NAME, kernels::SWIGLU[single][T::INDEX], out.len() / lanes, values)
    }
}

fn check_width<T: Float>(kernel: &'static str, width: usize) -> Result<()> {
    expect(
        width > 0 && width.is_multiple_of(T::LANES) && width <= i32::MAX as usize,
        kernel,
        format_args!("a width that is a multiple of {}", T::LANES),
        width,
    )
}
