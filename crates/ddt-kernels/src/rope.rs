//! The table of rotary position angles.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};
use pulp::c32;

/// Cosines and sines of the rotary position angles of every token.
///
/// Pair `m` of a head, its elements `2m` and `2m + 1`, is one complex number; at token `l` it is rotated by
/// the angle whose cosine and sine are in row `l`, column `m`.
/// Cloning is cheap.
///
/// # Shapes
///
/// Both tables: (L, K/2), K the head size.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Tensor,
    sin: Tensor,
    /// Cosine and sine of each pair side by side, (L, K/2, 2), for a GPU's kernels.
    #[cfg(feature = "candle-cuda")]
    turns: Tensor,
    /// `cos + i sin`, for the CPU.
    rotations: Arc<[c32]>,
    num_tokens: usize,
    head_dim: usize,
}

impl RopeTable {
    /// A table of the given cosines and sines, both f32 of shape (L, K/2).
    ///
    /// # Errors
    /// If the shapes differ or are not of rank 2, or if a dtype is not f32.
    pub fn new(cos: Tensor, sin: Tensor) -> Result<Self> {
        for (name, table) in [("cos", &cos), ("sin", &sin)] {
            if table.rank() != 2 || table.dims() != cos.dims() {
                bail!(
                    "rope table: expected cos and sin of one shape (L, K/2), got {name} of {:?}",
                    table.shape()
                );
            }
            if table.dtype() != DType::F32 {
                bail!("rope table: expected {name} in f32, got {:?}", table.dtype());
            }
        }
        let (num_tokens, pairs) = cos.dims2()?;
        let real = cos.flatten_all()?.to_vec1::<f32>()?;
        let imaginary = sin.flatten_all()?.to_vec1::<f32>()?;
        let rotations = real.into_iter().zip(imaginary).map(|(re, im)| c32 { re, im }).collect();
        Ok(Self {
            #[cfg(feature = "candle-cuda")]
            turns: Tensor::stack(&[&cos, &sin], 2)?,
            cos,
            sin,
            rotations,
            num_tokens,
            head_dim: 2 * pairs,
        })
    }

    /// The cosines, (L, K/2).
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// The sines, (L, K/2).
    pub fn sin(&self) -> &Tensor {
        &self.sin
    }

    /// Both, (L, K/2, 2).
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn turns(&self) -> &Tensor {
        &self.turns
    }

    /// The number of tokens, L.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// The head size, K.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// `cos + i sin` of all tokens, L rows of K/2.
    pub(crate) fn rotations(&self) -> &[c32] {
        &self.rotations
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn malformed_tables_are_refused() -> Result<()> {
        let table = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let good = RopeTable::new(table(&[3, 8])?, table(&[3, 8])?)?;
        assert_eq!((good.num_tokens(), good.head_dim()), (3, 16));
        assert!(RopeTable::new(table(&[3, 8])?, table(&[3, 4])?).is_err());
        assert!(RopeTable::new(table(&[24])?, table(&[24])?).is_err());
        let half = table(&[3, 8])?.to_dtype(DType::F16)?;
        let message = RopeTable::new(table(&[3, 8])?, half).unwrap_err().to_string();
        assert!(message.contains("expected sin in f32, got F16"), "{message}");
        Ok(())
    }
}
