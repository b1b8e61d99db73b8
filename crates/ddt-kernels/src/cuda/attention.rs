//! Self-attention with query-key norm and rotary positions, and the softmax of plain rows.

use half::bf16;

use super::device::Cuda;
use super::error::{Result, expect};
use super::kernels;
use super::launch::{Arguments, Launch};
use super::memory::{Float, Slice};
use super::rows::check_len;

/// Arguments of [`Cuda::attention`].
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a, T> {
    /// The projection, (R, L, 3, N, K).
    pub qkv: &'a Slice<T>,
    /// The weight of the queries' norm, (K).
    pub q_weight: &'a Slice<T>,
    /// The weight of the keys' norm, (K).
    pub k_weight: &'a Slice<T>,
    /// Cosine and sine of each pair's angle, (L, K/2, 2).
    pub rope: &'a Slice<f32>,
    /// L.
    pub tokens: usize,
    /// N.
    pub heads: usize,
    /// Added to the norms' mean of squares.
    pub eps: f32,
    /// The result, (R, L, N, K).
    pub out: &'a Slice<T>,
}

/// How the tensor-core kernel spreads over a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tiling {
    /// 8 warps of 16 queries.
    Standard,
    /// 4 warps of 32 queries: half the reads of shared memory. Head sizes 64 and 72.
    Wide,
    /// 4 warps of 16 queries: twice the blocks. Head sizes 64 and 72.
    Small,
}

impl<T> Attention<'_, T> {
    /// Whether there is a kernel for these sizes: R, L, N and K.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn takes(images: usize, tokens: usize, heads: usize, head_dim: usize) -> bool {
        let heads_fit =
            head_dim > 0 && head_dim.is_multiple_of(2) && head_dim <= 128 && heads > 0 && heads <= 65_535;
        heads_fit && tokens > 0 && tokens < 1 << 20 && images <= 65_535
    }
}

impl Cuda {
    /// By the fastest kernel that there is for the element type and the head size.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn attention_of<T: Float>(&self, arguments: &Attention<'_, T>) -> Result<()> {
        let &Attention { qkv, q_weight, k_weight, rope, tokens, heads, eps, out } = arguments;
        if T::INDEX != bf16::INDEX || !q_weight.len().is_multiple_of(8) {
            return self.attention_plain(arguments);
        }
        let (qkv, q_weight, k_weight, out) =
            (&qkv.cast()?, &q_weight.cast()?, &k_weight.cast()?, &out.cast()?);
        self.attention(&Attention { qkv, q_weight, k_weight, rope, tokens, heads, eps, out })
    }

    /// Self-attention with query-key norm and rotary positions, on tensor cores.
    ///
    /// ```text
    /// q = rotate(q / sqrt(mean(q^2) + eps) * q_weight), k likewise
    /// out = softmax(q k^T / sqrt(K)) v
    /// ```
    ///
    /// `rotate` multiplies elements (2m, 2m + 1) of a token, as one complex number, by the table's entry.
    /// Rotated queries and keys and the softmax's weights are rounded to bf16 before they are multiplied;
    /// sums are f32. Any number of tokens.
    ///
    /// # Errors
    /// If K is no multiple of 8 up to 128, if a slice has another length or is not aligned, or if the driver
    /// refuses.
    pub fn attention(&self, arguments: &Attention<'_, bf16>) -> Result<()> {
        let head_dim = arguments.q_weight.len();
        let images = images(arguments);
        let blocks = images * arguments.heads * arguments.tokens.div_ceil(128);
        let tiling = match head_dim {
            64 | 72 if blocks < 2 * self.multiprocessors() => Tiling::Small,
            64 | 72 => Tiling::Wide,
            _ => Tiling::Standard,
        };
        self.attention_tiled(arguments, tiling)
    }

    pub(super) fn attention_tiled(&self, arguments: &Attention<'_, bf16>, tiling: Tiling) -> Result<()> {
        const NAME: &str = "attention";
        let (images, head_dim, values) = self.check_attention(NAME, arguments)?;
        expect(head_dim.is_multiple_of(8), NAME, "a head size that is a multiple of 8", head_dim)?;
        let (kernel, warps, queries) = match (tiling, head_dim) {
            (Tiling::Wide, 64 | 72) => (kernels::ATTENTION_WIDE[head_dim / 8 - 8], 4, 128),
            (Tiling::Small, 64 | 72) => (kernels::ATTENTION_SMALL[head_dim / 8 - 8], 4, 64),
            _ => (kernels::ATTENTION[head_dim / 8 - 1], 8, 128),
        };
        self.launch(&Launch {
            kernel,
            grid: (arguments.tokens.div_ceil(queries) as u32, arguments.heads as u32, images as u32),
            block: 32 * warps,
            shared: kernels::attention_shared_bytes(head_dim, arguments.tokens) as u32,
            arguments: values,
        })
    }

    /// The same as [`Self::attention`], one warp a query and f32 throughout: what serves f32, and what the
    /// fast kernel is compared with.
    ///
    /// # Errors
    /// If K is odd or above 128, if a slice has another length or is not aligned, or if the driver refuses.
    pub fn attention_plain<T: Float>(&self, arguments: &Attention<'_, T>) -> Result<()> {
        const NAME: &str = "attention_plain";
        let (images, _, values) = self.check_attention(NAME, arguments)?;
        self.launch(&Launch {
            kernel: kernels::ATTENTION_PLAIN[T::INDEX],
            grid: (arguments.tokens.div_ceil(8) as u32, arguments.heads as u32, images as u32),
            block: 256,
            shared: 0,
            arguments: values,
        })
    }

    /// Images, head size, and the arguments that both kernels take.
    fn check_attention<T: Float>(
        &self,
        name: &'static str,
        arguments: &Attention<'_, T>,
    ) -> Result<(usize, usize, Arguments)> {
        let &Attention { qkv, q_weight, k_weight, rope, tokens, heads, eps, out } = arguments;
        let head_dim = q_weight.len();
        expect(
            head_dim > 0 && head_dim.is_multiple_of(2) && head_dim <= 128 && heads > 0 && heads <= 65_535,
            name,
            "an even head size up to 128, and at least one head",
            format_args!("head size {head_dim}, {heads} heads"),
        )?;
        let images = images(arguments);
        expect(
            tokens > 0 && tokens < 1 << 20 && images <= 65_535,
            name,
            "between 1 and 2^20 tokens and at most 65,535 rows",
            format_args!("{tokens} tokens, {images} rows"),
        )?;
        let device = &self.device;
        check_len(name, device, ("out, rows of tokens of heads", out), images * tokens * heads * head_dim)?;
        check_len(name, device, ("qkv", qkv), 3 * out.len())?;
        check_len(name, device, ("q_weight", q_weight), head_dim)?;
        check_len(name, device, ("k_weight", k_weight), head_dim)?;
        check_len(name, device, ("rope", rope), tokens * head_dim)?;
        let mut values = Arguments::default();
        values.address(qkv.address()).address(q_weight.address()).address(k_weight.address());
        values.address(rope.address()).address(out.address());
        values.u32(tokens as u32).u32(heads as u32).u32(head_dim as u32).f32(eps);
        Ok((images, head_dim, values))
    }

    /// `softmax(scale x)` of each row of `length`, in place.
    ///
    /// # Errors
    /// If `x` is not whole rows or is not aligned, or if the driver refuses.
    pub fn softmax_rows(&self, x: &Slice<f32>, length: usize, scale: f32) -> Result<()> {
        const NAME: &str = "softmax_rows";
        expect((1..=i32::MAX as usize).contains(&length), NAME, "rows of 1 to 2^31 - 1", length)?;
        let rows = x.len() / length;
        check_len(NAME, &self.device, ("x, whole rows of the length", x), rows * length)?;
        expect(rows <= i32::MAX as usize, NAME, "fewer than 2^31 rows", rows)?;
        let mut arguments = Arguments::default();
        arguments.address(x.address()).u32(length as u32).f32(scale);
        let kernel = kernels::SOFTMAX_ROWS;
        self.launch(&Launch { kernel, grid: (rows as u32, 1, 1), block: 256, shared: 0, arguments })
    }
}

/// R, from the length of the result.
fn images<T: Float>(arguments: &Attention<'_, T>) -> usize {
    arguments.out.len() / (arguments.tokens * arguments.heads * arguments.q_weight.len()).max(1)
}
