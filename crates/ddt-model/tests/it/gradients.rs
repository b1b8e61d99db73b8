//! Every parameter of every family learns, and by the right gradient.

use candle_core::{Device, Module, Tensor, Var};
use candle_nn::VarMap;
use ddt_flow::flow_matching_loss;
use ddt_model::{NoisyInput, VelocityNetwork};

use crate::{Build, families::families, normal, perturbed_network, relative_rms};

/// The loss of one batch; with a projection head, the mean square of its output too.
fn loss(network: &dyn VelocityNetwork) -> Tensor {
    let (x, target) = (normal(100, &[3, 2, 4, 4]), normal(101, &[3, 2, 4, 4]));
    let t = Tensor::new(&[0.1f32, 0.5, 0.9], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[1u32, 4, 5], &Device::Cpu).unwrap();
    let (velocity, features) =
        network.forward_with_features(NoisyInput { x_t: &x, t: &t, labels: &labels }, 2).unwrap();
    let loss = flow_matching_loss(&velocity, &target).unwrap();
    match network.projection_head() {
        None => loss,
        Some(head) => (loss + head.forward(&features).unwrap().sqr().unwrap().mean_all().unwrap()).unwrap(),
    }
}

fn sorted(map: &VarMap) -> Vec<(String, Var)> {
    let mut vars: Vec<(String, Var)> =
        map.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    vars
}

#[test]
fn every_parameter_gets_a_gradient_that_differences_confirm() {
    for (family, cfg) in families() {
        let (network, map) = perturbed_network(&cfg, Build::Plain);
        let loss = || loss(&*network);
        let gradients = loss().backward().unwrap();
        for (i, (name, var)) in sorted(&map).iter().enumerate() {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{family}: {name} gets no gradient"));
            let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
            // The steepest element stands out most from the rounding of the differences.
            let steepest = |a: &(usize, f32), b: &(usize, f32)| a.1.abs().total_cmp(&b.1.abs());
            let (at, slope) = gradient.iter().copied().enumerate().max_by(steepest).unwrap();
            assert!(slope != 0.0, "{family}: {name} gets a gradient of zero");
            if i % 5 != 0 {
                continue;
            }
            let original = var.as_tensor().copy().unwrap();
            let values: Vec<f32> = original.flatten_all().unwrap().to_vec1().unwrap();
            let step = 2e-3f32;
            let moved = |by: f32| {
                let mut values = values.clone();
                values[at] += by;
                var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
                loss().to_scalar::<f32>().unwrap()
            };
            let difference = (moved(step) - moved(-step)) / (2.0 * step);
            var.set(&original).unwrap();
            // f32 rounding of a loss near 10 over a step of 4e-3 is a few 1e-4; curvature adds about 1 %.
            let error = (difference - slope).abs();
            assert!(
                error < 2e-3 + 3e-2 * slope.abs(),
                "{family}: {name}: {difference} by differences, {slope} by backward"
            );
        }
    }
}

#[test]
fn the_fused_form_has_the_loss_and_gradients_of_the_definition() {
    for (family, cfg) in families() {
        let (plain, plain_map) = perturbed_network(&cfg, Build::Plain);
        let (fused, fused_map) = perturbed_network(&cfg, Build::Fused);
        let (want, got) = (loss(&*plain), loss(&*fused));
        assert!(relative_rms(&got, &want) < 1e-6, "{family}");
        let (want, got) = (want.backward().unwrap(), got.backward().unwrap());
        for ((name, plain), (_, fused)) in sorted(&plain_map).iter().zip(&sorted(&fused_map)) {
            let error = relative_rms(got.get(fused).unwrap(), want.get(plain).unwrap());
            assert!(error < 1e-4, "{family}: {name}: {error}");
        }
    }
}
