//! A linear layer.

use candle_core::{Result, Tensor};

use super::epilogue::Epilogue;
use super::factor::Factor;
use super::is_ours;

/// `epilogue(x weight^T + bias + residual)` over the last axis.
#[derive(Debug, Clone)]
pub(crate) struct Linear(Weights);

#[derive(Debug, Clone)]
enum Weights {
    Ours(Factor),
    Candle { weight: Tensor, bias: Option<Tensor> },
}

impl Linear {
    /// From `weight: (out, in)` and `bias: (out)`.
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        if is_ours(weight) {
            return Ok(Self(Weights::Ours(Factor::new(weight, bias)?)));
        }
        Ok(Self(Weights::Candle { weight: weight.clone(), bias: bias.cloned() }))
    }

    /// `(.., in) -> (.., out)`
    pub(crate) fn forward(&self, xs: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
        self.run(xs, None, epilogue)
    }

    /// As [`forward`](Self::forward), adding a `residual: (.., out)` first.
    pub(crate) fn forward_add(&self, xs: &Tensor, residual: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
        self.run(xs, Some(residual), epilogue)
    }

    fn run(&self, xs: &Tensor, residual: Option<&Tensor>, epilogue: Epilogue) -> Result<Tensor> {
        match &self.0 {
            Weights::Ours(factor) => factor.multiply(xs, None, (residual, epilogue)),
            Weights::Candle { weight, bias } => {
                let (out, depth) = weight.dims2()?;
                let mut dims = xs.dims().to_vec();
                if let Some(last) = dims.last_mut() {
                    *last = out;
                }
                let ys = xs.reshape(((), depth))?.matmul(&weight.t()?)?.reshape(dims)?;
                finish_candle(ys, bias.as_ref(), (residual, epilogue))
            }
        }
    }
}

/// Bias over the last axis, residual and activation by candle's operations.
pub(super) fn finish_candle(
    ys: Tensor,
    bias: Option<&Tensor>,
    (residual, epilogue): (Option<&Tensor>, Epilogue),
) -> Result<Tensor> {
    let ys = match bias {
        Some(bias) => ys.broadcast_add(bias)?,
        None => ys,
    };
    let ys = match residual {
        Some(residual) => (ys + residual)?,
        None => ys,
    };
    epilogue.apply_candle(ys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};

    #[test]
    fn agrees_with_candle() {
        for (rows, inp, out) in [(3, 1, 9), (5, 7, 3), (13, 48, 33), (300, 20, 64), (12, 100, 32)] {
            let (weight, bias) = (random(1, (out, inp)), random(2, out));
            let (xs, residual) = (random(3, (rows, inp)), random(4, (rows, out)));
            for epilogue in [Epilogue::None, Epilogue::Relu, Epilogue::Gelu, Epilogue::Silu] {
                let candle = |bias: Option<&Tensor>| {
                    Linear(Weights::Candle { weight: weight.clone(), bias: bias.cloned() })
                };
                let ours = Linear::new(&weight, Some(&bias)).unwrap();
                let got = ours.forward_add(&xs, &residual, epilogue).unwrap();
                let want = candle(Some(&bias)).forward_add(&xs, &residual, epilogue).unwrap();
                assert!(rel_rms(&got, &want) < 2e-6, "{rows} {inp} {out} {epilogue:?}");
                let got = Linear::new(&weight, None).unwrap().forward(&xs, epilogue).unwrap();
                let want = candle(None).forward(&xs, epilogue).unwrap();
                assert!(rel_rms(&got, &want) < 2e-6, "{rows} {inp} {out} {epilogue:?}");
            }
        }
    }

    #[test]
    fn wrong_shapes_are_errors_and_nan_stays() {
        let linear = Linear::new(&random(1, (3, 4)), None).unwrap();
        assert!(linear.forward(&random(1, (2, 5)), Epilogue::None).is_err());
        assert!(linear.forward_add(&random(1, (2, 4)), &random(1, (2, 4)), Epilogue::None).is_err());
        assert!(Linear::new(&random(1, (0, 4)), None).is_err());
        let nan = Tensor::new(&[[f32::NAN, 0.0, 0.0, 0.0]], &candle_core::Device::Cpu).unwrap();
        for epilogue in [Epilogue::None, Epilogue::Relu, Epilogue::Gelu, Epilogue::Silu] {
            let ys = linear.forward(&nan, epilogue).unwrap().to_vec2::<f32>().unwrap();
            assert!(ys[0].iter().all(|y| y.is_nan()), "{epilogue:?}");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let linear = Linear::new(&random(1, (40, 50)), Some(&random(2, 40))).unwrap();
        let xs = random(3, (29, 50));
        let all = linear.forward(&xs, Epilogue::Gelu).unwrap().to_vec2::<f32>().unwrap();
        for (i, row) in all.iter().enumerate() {
            let one = linear.forward(&xs.narrow(0, i, 1).unwrap(), Epilogue::Gelu).unwrap();
            assert_eq!(one.to_vec2::<f32>().unwrap()[0], *row);
        }
    }
}
