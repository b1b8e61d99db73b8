//! Normal numbers of a PyTorch CPU generator.

use candle_core::{Device, Result, Shape, Tensor, bail};
use rand_mt::Mt;

/// PyTorch fills at least this many numbers by blocks, and fewer one by one.
const BLOCK: usize = 16;

/// PyTorch's CPU generator for `torch.randn` in f32; a sequence of draws matches the same sequence there.
///
/// ```text
/// n >= 16: u = (r & 0xFFFFFF) / 2^24 for each element; then in every block of 16, for j < 8,
///          rho = sqrt(-2 ln(1 - u_j)), theta = 2 pi u_{j+8}, out_j = rho cos(theta), out_{j+8} = rho sin(theta);
///          if 16 does not divide n, the last 16 elements are drawn again. All in f32.
/// n < 16:  u = ((r_1 << 32 | r_2) & (2^53 - 1)) / 2^53, two per pair; rho = sqrt(-2 ln(1 - u_2)),
///          rho cos(2 pi u_1), then rho sin(2 pi u_1), which is cached for the next such number. In f64.
/// ```
#[derive(Clone, Debug)]
pub struct TorchGenerator {
    mt: Mt,
    // The second number of a pair whose first is used up.
    cached: Option<f64>,
}

impl TorchGenerator {
    /// `torch.Generator().manual_seed(seed)`, which uses only the low 32 bits of the seed.
    pub fn new(seed: u64) -> Self {
        Self { mt: Mt::new(seed as u32), cached: None }
    }

    /// The next `n` numbers of `torch.randn(n)`.
    ///
    /// Unlike a stream, drawing 20 and then 12 is not drawing 32.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        self.fill(&mut out);
        out
    }

    /// [`randn`](Self::randn) into a given slice.
    pub fn fill(&mut self, out: &mut [f32]) {
        if out.len() < BLOCK {
            out.fill_with(|| self.single() as f32);
            return;
        }
        self.fill_uniform(out);
        let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
        blocks.iter_mut().for_each(to_normal);
        if !rest.is_empty()
            && let Some(last) = out.last_chunk_mut::<BLOCK>()
        {
            self.fill_uniform(last);
            to_normal(last);
        }
    }

    /// Multiples of `2^-24` in [0, 1).
    fn fill_uniform(&mut self, out: &mut [f32]) {
        out.fill_with(|| (self.mt.next_u32() & 0xFF_FFFF) as f32 / (1 << 24) as f32);
    }

    /// One normal number of a short draw.
    fn single(&mut self) -> f64 {
        if let Some(cached) = self.cached.take() {
            return cached;
        }
        let theta = std::f64::consts::TAU * self.uniform_f64();
        let rho = (-2.0 * libm::log1p(-self.uniform_f64())).sqrt();
        let (sin, cos) = libm::sincos(theta);
        self.cached = Some(rho * sin);
        rho * cos
    }

    /// A multiple of `2^-53` in [0, 1). The first word drawn is the high one.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.mt.next_u32());
        let low = u64::from(self.mt.next_u32());
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }
}

/// Box-Muller on 16 uniform numbers, in place: j gives the radius, j + 8 the angle.
fn to_normal(block: &mut [f32; BLOCK]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        let rho = (-2.0 * libm::logf(1.0 - *first)).sqrt();
        let (sin, cos) = libm::sincosf(std::f32::consts::TAU * *second);
        (*first, *second) = (rho * cos, rho * sin);
    }
}

/// `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` on a CPU, in f32.
///
/// Equal up to the last bits of sine, cosine and logarithm, which differ between PyTorch's own builds.
///
/// # Errors
/// The shape does not fit in memory, or the copy to `device` fails.
pub fn torch_randn(seed: u64, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    let elements = shape.dims().iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let mut values = Vec::new();
    match elements {
        Some(elements) if values.try_reserve_exact(elements).is_ok() => values.resize(elements, 0.0),
        _ => bail!("expected a shape that fits in memory, got {:?}", shape.dims()),
    }
    TorchGenerator::new(seed).fill(&mut values);
    Tensor::from_vec(values, shape, device)
}

#[cfg(test)]
mod tests {

    use super::*;

    /// The tolerance of the project's parity cases.
    const ABSOLUTE: f32 = 3e-6;

    #[track_caller]
    fn check(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (index, (a, b)) in got.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= ABSOLUTE, "element {index} is {a}, expected {b}");
        }
    }

    #[test]
    fn short_draws_match_pytorch() {
        check(&TorchGenerator::new(0).randn(1), &[1.540_996]);
        let fifteen = [
            0.790_566_4,
            -0.640_972_2,
            0.166_035_95,
            0.155_265_9,
            -1.461_008_3,
            0.624_170_66,
            0.499_306_17,
            0.082_275_1,
            1.344_310_9,
            -0.599_969_5,
            -1.425_734_5,
            0.288_901_3,
            -1.079_783,
            -0.041_315_094,
            -0.890_382_4,
        ];
        check(&TorchGenerator::new(41).randn(15), &fifteen);
    }

    #[test]
    fn whole_blocks_match_pytorch() {
        let sixteen = [
            1.926_915_3,
            1.487_284_1,
            0.900_717_2,
            -2.105_521,
            0.678_418_46,
            -1.234_544_9,
            -0.043_067_478,
            -1.604_667,
            -0.752_135_3,
            1.648_723,
            -0.392_478_64,
            -1.403_607_1,
            -0.727_881_3,
            -0.559_430_2,
            -0.768_838_9,
            0.762_445_2,
        ];
        check(&TorchGenerator::new(42).randn(16), &sixteen);
        let start = [-0.236_732_47, 1.810_88, 0.196_610_36, -0.715_010_46, 0.104_050_67, 0.889_275_4];
        check(&TorchGenerator::new(40).randn(4096)[..6], &start);
    }

    #[test]
    fn a_ragged_end_is_drawn_again() {
        let seventeen = [
            -0.016_603_613,
            0.419_829_6,
            -1.767_225_7,
            -0.499_593_5,
            0.308_267_95,
            -0.294_669,
            -0.766_227,
            -0.996_157_9,
            -0.234_510_03,
            -0.685_557_8,
            -0.732_556_4,
            0.300_429_6,
            -0.362_998_16,
            1.582_229_6,
            -0.442_950_5,
            1.846_213_5,
            -0.477_167_16,
        ];
        check(&TorchGenerator::new(43).randn(17), &seventeen);
        let start = [-0.307_520_87, -2.411_268_2, -0.019_473_549, -0.533_204_7];
        check(&TorchGenerator::new(123_456_789_012_345).randn(40)[..4], &start);
    }

    #[test]
    fn draws_continue_where_the_last_ended() {
        let mut generator = TorchGenerator::new(41);
        let whole = TorchGenerator::new(41).randn(15);
        let mut parts = generator.randn(3);
        parts.extend(generator.randn(12));
        assert_eq!(parts, whole);

        // The second number of a pair outlives a draw by blocks.
        let mut generator = TorchGenerator::new(41);
        generator.randn(1);
        generator.randn(16);
        assert_eq!(generator.randn(1), whole[1..2]);

        let mut generator = TorchGenerator::new(42);
        assert_ne!(generator.randn(16), generator.randn(16));
    }

    #[test]
    fn the_high_half_of_the_seed_does_not_count() {
        assert_eq!(TorchGenerator::new(5 | 7 << 32).randn(20), TorchGenerator::new(5).randn(20));
        assert!(TorchGenerator::new(5).randn(0).is_empty());
    }

    #[test]
    fn impossible_shapes_are_errors() {
        for shape in [(usize::MAX, 2), (usize::MAX / 4, 1)] {
            let err = torch_randn(0, shape, &Device::Cpu).unwrap_err().to_string();
            assert!(err.contains("fits in memory"), "{err}");
        }
    }
}
