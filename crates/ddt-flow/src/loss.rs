//! The flow matching loss.

use candle_core::{DType, Result, Tensor, bail};

/// Mean over all elements of the squared difference.
///
/// ```text
/// loss = mean (v_predicted - v_target)^2
/// ```
///
/// Eq. (5) of arXiv:2504.05741. Differentiable with respect to both arguments.
///
/// # Shapes
///
/// `predicted`, `target`: (B, ...) in any float type -> a scalar in f32, computed in f32.
///
/// # Errors
///
/// The shapes differ, or there are no elements to take the mean of.
pub fn flow_matching_loss(predicted: &Tensor, target: &Tensor) -> Result<Tensor> {
    if predicted.dims() != target.dims() || predicted.elem_count() == 0 {
        bail!(
            "expected predicted and target velocities of one non-empty shape, got {:?} and {:?}",
            predicted.dims(),
            target.dims()
        );
    }
    (predicted.to_dtype(DType::F32)? - target.to_dtype(DType::F32)?)?.sqr()?.mean_all()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn is_the_mean_square_and_its_gradient_is_right() {
        let predicted = Var::new(&[[1f32, 2.0], [3.0, 5.0]], &Device::Cpu).unwrap();
        let target = Tensor::new(&[[0f32, 2.0], [5.0, 1.0]], &Device::Cpu).unwrap();
        let loss = flow_matching_loss(&predicted, &target).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), (1.0 + 0.0 + 4.0 + 16.0) / 4.0);
        let grads = loss.backward().unwrap();
        let grad = grads.get(&predicted).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(grad, [[0.5, 0.0], [-1.0, 2.0]]);
    }

    #[test]
    fn half_precision_is_compared_in_f32() {
        let predicted = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        let loss = flow_matching_loss(&predicted, &predicted.zeros_like().unwrap()).unwrap();
        assert_eq!((loss.dtype(), loss.to_scalar::<f32>().unwrap()), (DType::F32, 2.5));
    }

    #[test]
    fn different_shapes_are_an_error() {
        let row = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
        let flat = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        assert!(flow_matching_loss(&row, &flat).is_err());
        let empty = Tensor::zeros((0, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(flow_matching_loss(&empty, &empty).is_err());
    }
}
