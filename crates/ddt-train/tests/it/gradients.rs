//! Every parameter learns, and its gradient is the loss's, and PyTorch's.

use candle_core::{DType, Device, Tensor};
use ddt_flow::{CounterNoise, Purpose};
use ddt_model::{DdtConfig, DitDhConfig, Family, NetworkConfig, Projection};
use ddt_train::{AlignmentConfig, Batch, Features, FlowConfig, FlowMatching, Objective, Parameters, StepAt};

const AT: StepAt = StepAt { seed: 0, step: 0, first: 0 };

fn normals(what: u64, shape: &[usize]) -> Tensor {
    let values = CounterNoise::new(5, Purpose::Evaluation, what, 0).normal(shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn batch() -> Batch {
    let tokens = normals(1, &[6, 9, 5]);
    Batch {
        latents: normals(2, &[6, 2, 4, 4]),
        posterior_std: Some(normals(3, &[6, 2, 4, 4]).abs().unwrap()),
        labels: vec![0, 1, 2, 0, 1, 2],
        features: Some(Features { tokens, grid: (3, 3) }),
    }
}

/// An objective whose parameters have all been moved away from zero.
fn objective(family: Family, alignment: bool, dtype: DType) -> (FlowMatching, Parameters) {
    // REPA's networks have fixed positions, and a head of their own; DiT^DH's tokens are single pixels of one size.
    let (repa, dit_dh) = (family == Family::Repa, family == Family::DitDh);
    let projection = repa.then_some(Projection { align_layer: 2, hidden_size: 7, feature_size: 5 });
    let sizes = DdtConfig {
        in_channels: 2,
        patch_size: if dit_dh { 1 } else { 2 },
        hidden_size: 16,
        num_heads: 2,
        num_encoder_blocks: 2,
        num_decoder_blocks: 1,
        num_classes: 3,
    };
    let grid_side = if dit_dh { Some(4) } else { repa.then_some(2) };
    let own = DitDhConfig { decoder_hidden_size: 24, decoder_num_heads: 3, ..DitDhConfig::PUBLISHED };
    let dit_dh = dit_dh.then_some(own);
    let network = NetworkConfig { family, projection, grid_side, dit_dh, ..NetworkConfig::from(sizes) };
    let alignment = alignment.then_some(AlignmentConfig { layer: 2, feature_dim: 5, weight: 0.5 });
    // Labels dropped half of the time, so that "no class" has a gradient too.
    let cfg = FlowConfig { label_dropout: 0.5, alignment, ..FlowConfig::PAPER };
    let (objective, parameters) =
        Parameters::create(1, dtype, &Device::Cpu, |vb| FlowMatching::new(&network, cfg, vb)).unwrap();
    for (i, (_, var)) in parameters.iter().enumerate() {
        let noise = normals(10 + i as u64, var.dims()).affine(if dit_dh.is_some() { 0.2 } else { 0.05 }, 0.0);
        let moved = (var.as_tensor() + noise.unwrap()).unwrap();
        var.set(&moved).unwrap();
    }
    (objective, parameters)
}

fn loss(objective: &FlowMatching) -> f64 {
    f64::from(objective.loss(&batch(), AT).unwrap().total.to_scalar::<f32>().unwrap())
}

#[test]
fn losses_gradients_and_updates_are_those_of_pytorch() {
    ddt_parity::check("adamw_ema").unwrap();
    ddt_parity::check("repa_step").unwrap();
    ddt_parity::check("ditdh_train").unwrap();
}

#[test]
fn every_parameter_has_a_gradient_that_is_not_zero() {
    let families = [Family::Ddt, Family::ImprovedSit, Family::Repa, Family::DitDh];
    let settings = families.into_iter().flat_map(|it| [(it, false), (it, true)]);
    let settings =
        settings.flat_map(|(family, it)| [DType::F32, DType::BF16].map(|dtype| (family, it, dtype)));
    for (family, alignment, dtype) in settings {
        let (objective, parameters) = objective(family, alignment, dtype);
        let gradients = objective.loss(&batch(), AT).unwrap().total.backward().unwrap();
        let head = if family == Family::Repa { "projectors.0" } else { FlowMatching::HEAD_PREFIX };
        assert_eq!(parameters.iter().any(|it| it.0.starts_with(head)), alignment);
        for (name, var) in parameters.iter() {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{family:?} in {dtype:?}: {name}"));
            let size = gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(
                size.is_finite() && size > 0.0,
                "{family:?} in {dtype:?}: {name} has a gradient of {size}"
            );
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for family in [Family::Ddt, Family::DitDh] {
        check_gradients(family);
    }
}

fn check_gradients(family: Family) {
    let (objective, parameters) = objective(family, true, DType::F32);
    let gradients = objective.loss(&batch(), AT).unwrap().total.backward().unwrap();
    for (i, (name, var)) in parameters.iter().enumerate() {
        // Along the gradient itself the loss changes most, and rounding counts least.
        let gradient = gradients.get(var).unwrap().clone();
        let square = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        let start = var.as_tensor().copy().unwrap();
        let size = 2e-3 / square.sqrt();
        let at = |step: f64| {
            var.set(&(&start + (&gradient * step).unwrap()).unwrap()).unwrap();
            loss(&objective)
        };
        let slope = (at(size) - at(-size)) / (2.0 * size);
        var.set(&start).unwrap();
        // The loss is near 3 and has 24 bits: 3e-7 / (4e-3 |g|) of the slope is rounding.
        let tolerance = 0.02 + 2e-4 / square.sqrt();
        assert!((slope / square - 1.0).abs() < tolerance, "{family:?} {i} {name}: {slope} against {square}");
    }
}

#[test]
fn loss_parts_add_up_and_features_are_needed() {
    let (objective, _) = objective(Family::Ddt, true, DType::F32);
    let loss = objective.loss(&batch(), AT).unwrap();
    let scalar = |it: &Tensor| f64::from(it.to_scalar::<f32>().unwrap());
    let [(_, flow), (_, aligned)] = loss.parts.as_slice() else { panic!("{:?}", loss.parts) };
    assert!((scalar(&loss.total) - scalar(flow) - 0.5 * scalar(aligned)).abs() < 1e-6);
    let without = Batch { features: None, ..batch() };
    assert!(objective.loss(&without, AT).unwrap_err().to_string().contains("features"));
}
