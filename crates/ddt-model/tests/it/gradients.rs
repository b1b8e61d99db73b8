//! Every parameter of every family learns, and by the right gradient.

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use ddt_flow::flow_matching_loss;
use ddt_model::{DecoderOnly, VelocityNetwork};

use crate::{
    families::families,
    networks::{normal, perturb, perturbed_network},
};

/// The loss of one batch; with a projection, its mean square too.
fn loss(network: &dyn VelocityNetwork, project: &dyn Fn(&Tensor) -> Result<Option<Tensor>>) -> Tensor {
    let (x, target) = (normal(100, &[3, 2, 4, 4]), normal(101, &[3, 2, 4, 4]));
    let t = Tensor::new(&[0.1f32, 0.5, 0.9], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[1u32, 4, 5], &Device::Cpu).unwrap();
    let (velocity, features) = network.forward_with_features(&x, &t, &labels, 2).unwrap();
    let loss = flow_matching_loss(&velocity, &target).unwrap();
    match project(&features).unwrap() {
        None => loss,
        Some(projected) => (loss + projected.sqr().unwrap().mean_all().unwrap()).unwrap(),
    }
}

/// Every variable has a gradient; of every fifth, the steepest element's agrees with differences.
fn check(family: &str, map: &VarMap, loss: &dyn Fn() -> Tensor) {
    let gradients = loss().backward().unwrap();
    let mut vars: Vec<(String, Var)> =
        map.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    for (i, (name, var)) in vars.iter().enumerate() {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{family}: {name} gets no gradient"));
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        // The steepest element stands out most from the rounding of the differences.
        let (at, slope) =
            gradient.iter().copied().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
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

#[test]
fn every_parameter_gets_a_gradient_that_differences_confirm() {
    for (name, cfg) in families() {
        if cfg.projection.is_none() {
            let (network, map) = perturbed_network(&cfg);
            check(name, &map, &|| loss(network.as_ref(), &|_| Ok(None)));
        } else {
            let map = VarMap::new();
            let vb = VarBuilder::from_varmap(&map, candle_core::DType::F32, &Device::Cpu);
            let network = DecoderOnly::new(&cfg, vb).unwrap();
            perturb(&map);
            check(name, &map, &|| loss(&network, &|features| network.project(features)));
        }
    }
}
