//! Single steps.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_flow::TimeSampling;
use ddt_model::NetworkConfig;
use ddt_train::{
    AdamWConfig, AlignmentConfig, FlowConfig, FlowMatching, LatentDataset, LrSchedule, Moments, Pick,
    Precision, TrainConfig, TrainError, Trainer, adamw_step, average_step, evaluate_loss,
};

use crate::runs::{config, data, sizes, step, trainer, trainer_of};

#[test]
fn training_lowers_the_loss_of_the_average_too() {
    let (data, mut trainer) = (data(), trainer(150));
    let loss = |it: &Trainer<FlowMatching>| {
        let weights = it.averaged_weights(0).unwrap().into_iter().collect();
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let average = it.objective().network().config().build(vb).unwrap();
        evaluate_loss(average.as_ref(), &data, 7, TimeSampling::LogitNormal, &Device::Cpu).unwrap()
    };
    let before = loss(&trainer);
    while !trainer.finished() {
        step(&mut trainer, &data).unwrap();
    }
    let after = loss(&trainer);
    assert!(after < 0.6 * before, "{before} to {after}");
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing_and_ends_the_run() {
    let mut latents = vec![1.0; 4 * 8];
    latents[5] = f32::NAN;
    let data = LatentDataset::new(latents, vec![0; 4], (2, 2, 2)).unwrap();
    let mut trainer = trainer(100);
    let weights = |it: &Trainer<FlowMatching>| -> Vec<Vec<f32>> {
        it.averaged_weights(0)
            .unwrap()
            .values()
            .map(|t| t.flatten_all().unwrap().to_vec1().unwrap())
            .collect()
    };
    let before = weights(&trainer);
    for skipped in 1..20 {
        assert_eq!(step(&mut trainer, &data).unwrap().skipped, skipped);
    }
    assert!(matches!(step(&mut trainer, &data), Err(TrainError::NotFinite { count: 20, step: 20 })));
    assert_eq!(weights(&trainer), before);
}

#[test]
fn the_hash_of_data_is_of_all_of_it() {
    let hash = |latents: Vec<f32>, labels: Vec<u32>, shape| {
        LatentDataset::new(latents, labels, shape).unwrap().sha256().to_owned()
    };
    let base = hash(vec![1.0; 8], vec![0, 1], (1, 2, 2));
    assert_eq!(base, hash(vec![1.0; 8], vec![0, 1], (1, 2, 2)));
    assert_eq!(base.len(), 64);
    let mut other = vec![1.0; 8];
    other[7] = -1.0;
    for it in [
        hash(other, vec![0, 1], (1, 2, 2)),
        hash(vec![1.0; 8], vec![0, 0], (1, 2, 2)),
        hash(vec![1.0; 8], vec![0, 1], (2, 2, 1)),
    ] {
        assert_ne!(base, it);
    }
}

#[test]
fn evaluating_depends_on_the_image_alone_and_needs_one() {
    let (data, trainer) = (data(), trainer(1));
    let network = trainer.objective().network();
    let loss = |images| evaluate_loss(network, &data, images, TimeSampling::LogitNormal, &Device::Cpu);
    assert!(matches!(loss(0), Err(TrainError::Data { .. })));
    assert_eq!(loss(7).unwrap(), loss(100).unwrap());
    assert_ne!(loss(1).unwrap(), loss(7).unwrap());
}

#[test]
fn data_that_does_not_fit_is_refused() {
    assert!(matches!(LatentDataset::new(vec![0.0; 7], vec![0], (2, 2, 2)), Err(TrainError::Data { .. })));
    assert!(matches!(LatentDataset::new(vec![], vec![], (2, 2, 2)), Err(TrainError::Data { .. })));
    let wide = LatentDataset::new(vec![0.0; 12], vec![0], (3, 2, 2)).unwrap();
    assert!(matches!(step(&mut trainer(1), &wide), Err(TrainError::Data { .. })));
    let label = LatentDataset::new(vec![0.0; 8], vec![2], (2, 2, 2)).unwrap();
    assert!(matches!(step(&mut trainer(1), &label), Err(TrainError::Data { .. })));
    for shape in [(usize::MAX, 2, 2), (0, 2, 2), (1 << 40, 1 << 40, 1)] {
        assert!(matches!(LatentDataset::new(vec![], vec![0], shape), Err(TrainError::Data { .. })));
    }
    let pick = |image, flipped| Pick { image, flipped };
    assert!(data().batch(&[pick(7, false)], &Device::Cpu).is_err());
    assert!(data().batch(&[pick(0, true)], &Device::Cpu).is_err());
    assert!(data().batch(&vec![pick(0, false); (1 << 20) + 1], &Device::Cpu).is_err());
}

#[test]
fn longer_gradients_are_scaled_down_to_the_limit() {
    // With an eps far above its second moment, AdamW's first step is lr / eps times the gradient.
    let (adamw, lr) = (AdamWConfig { eps: 1e3, ..AdamWConfig::PAPER }, LrSchedule::constant(1e3));
    let moved = |clip_norm| {
        let mut trainer = trainer_of(TrainConfig { clip_norm, adamw, lr, ..config(1) }, &sizes(), &data());
        let copies = |trainer: &Trainer<FlowMatching>| -> Vec<Tensor> {
            trainer.weights().unwrap().into_values().map(|it| it.copy().unwrap()).collect()
        };
        let before = copies(&trainer);
        let norm = step(&mut trainer, &data()).unwrap().grad_norm;
        let square = |(a, b): (&Tensor, &Tensor)| {
            (a - b).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        (norm, copies(&trainer).iter().zip(&before).map(square).sum::<f32>().sqrt())
    };
    let (norm, whole) = moved(None);
    assert!((f64::from(whole) / norm - 1.0).abs() < 1e-2, "{whole} {norm}");
    assert_eq!(moved(Some(2.0 * norm)), (norm, whole));
    let (same, half) = moved(Some(0.5 * norm));
    assert!(same == norm && (half / whole - 0.5).abs() < 1e-3, "{half} {whole}");
}

#[test]
fn settings_that_make_no_run_are_named() {
    let check = |cfg: TrainConfig, name: &str| {
        let network = NetworkConfig::from(sizes());
        let build = |vb: VarBuilder| FlowMatching::new(&network, FlowConfig::PAPER, vb);
        let message = Trainer::new(cfg, "", &Device::Cpu, build).unwrap_err().to_string();
        assert!(message.starts_with(name), "{message}");
    };
    check(TrainConfig { batch_size: 0, ..config(1) }, "batch_size");
    check(TrainConfig { batch_size: (1 << 20) + 1, ..config(1) }, "batch_size");
    check(TrainConfig { total_images: u64::MAX, ..config(1) }, "total_images");
    assert_eq!(TrainConfig { batch_size: 0, ..config(1) }.total_steps(), 4);
    check(TrainConfig { ema_decays: vec![1.0], ..config(1) }, "ema_decays");
    check(TrainConfig { micro_batch: Some(0), ..config(1) }, "micro_batch");
    check(TrainConfig { micro_batch: Some(5), ..config(1) }, "micro_batch");
    check(TrainConfig { clip_norm: Some(0.0), ..config(1) }, "clip_norm");
    check(TrainConfig { lr: LrSchedule { end: 1.0, ..config(1).lr }, ..config(1) }, "lr.end");
    let adamw = AdamWConfig { beta2: 1.0, ..AdamWConfig::PAPER };
    check(TrainConfig { adamw, ..config(1) }, "adamw.beta2");
    let adamw = AdamWConfig { eps: 1e-60, ..AdamWConfig::PAPER };
    check(TrainConfig { adamw, ..config(1) }, "adamw.eps");
    let check = |cfg: FlowConfig, name: &str| {
        let message = cfg.validate().unwrap_err().to_string();
        assert!(message.starts_with(name), "{message}");
    };
    check(FlowConfig { label_dropout: f64::NAN, ..FlowConfig::PAPER }, "label_dropout");
    check(FlowConfig { timeshift: 0.0, ..FlowConfig::PAPER }, "timeshift");
    check(FlowConfig { min_time: 1.0, ..FlowConfig::PAPER }, "min_time");
    let alignment = Some(AlignmentConfig { layer: 0, ..AlignmentConfig::PAPER });
    check(FlowConfig { alignment, ..FlowConfig::PAPER }, "alignment.layer");
    let alignment = Some(AlignmentConfig { weight: f64::INFINITY, ..AlignmentConfig::PAPER });
    check(FlowConfig { alignment, ..FlowConfig::PAPER }, "alignment.weight");
}

#[test]
fn adamw_and_average_follow_their_definition() {
    // Two steps by hand, in f64: gradients 2 and -1, lr 0.1, decay 0.5.
    let cfg = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.5 };
    let (mut p, mut m, mut v) = (1.0f64, 0.0, 0.0);
    let (mut param, mut moments, mut average) = ([1.0f32], Moments::zeros(1), [1.0f32]);
    let mut mean = 1.0;
    for (step, g) in [(1, 2.0f64), (2, -1.0)] {
        m = 0.9 * m + 0.1 * g;
        v = 0.95 * v + 0.05 * g * g;
        let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(step)), v / (1.0 - 0.95f64.powi(step)));
        p = p * (1.0 - 0.1 * 0.5) - 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
        mean = 0.8 * mean + 0.2 * p;
        adamw_step(&mut param, &[g as f32], &mut moments, &cfg, 0.1, step as u64);
        average_step(&mut average, &param, 0.8);
        assert!((f64::from(param[0]) - p).abs() < 1e-6);
        assert!((f64::from(average[0]) - mean).abs() < 1e-6);
    }
}

#[test]
fn the_order_of_the_first_parameters_is_their_names() {
    let names: Vec<String> = trainer(1).averaged_weights(0).unwrap().into_keys().collect();
    assert!(names.is_sorted());
    assert!(names.iter().any(|it| it == "blocks.1.adaLN_modulation.0.bias"));
    let shapes = trainer(1).averaged_weights(0).unwrap();
    let zeros: &Tensor = &shapes["final_layer.linear.weight"];
    assert_eq!(zeros.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
}

#[test]
fn micro_batches_make_the_same_step() {
    let (data, whole) = (data(), config(3));
    let run = |micro_batch| {
        let mut trainer = trainer_of(TrainConfig { micro_batch, ..whole.clone() }, &sizes(), &data);
        let reports: Vec<_> = (0..3).map(|_| step(&mut trainer, &data).unwrap()).collect();
        (reports, trainer.weights().unwrap())
    };
    let (expected, weights) = run(None);
    // Of 4 images, the last part of 3 and 1.
    for micro_batch in [1, 2, 3, 4] {
        let (reports, parts) = run(Some(micro_batch));
        for (got, want) in reports.iter().zip(&expected) {
            assert!((got.loss - want.loss).abs() < 1e-5, "{micro_batch}: {got:?}, {want:?}");
            assert!((got.grad_norm - want.grad_norm).abs() < 1e-4 * want.grad_norm.max(1.0));
        }
        for (name, want) in &weights {
            let difference = (want - &parts[name]).unwrap().abs().unwrap().max_all().unwrap();
            // Adam's first steps have the size of the rate whatever the gradient's: rounding shows there.
            assert!(difference.to_scalar::<f32>().unwrap() < 2e-3, "{micro_batch}: {name}");
        }
    }
}

#[test]
fn sixteen_bits_learn_and_keep_weights_of_32() {
    let cfg = TrainConfig { precision: Precision::Bf16, ..config(150) };
    let (data, mut trainer) = (data(), trainer_of(cfg, &sizes(), &data()));
    let loss = |it: &Trainer<FlowMatching>| {
        evaluate_loss(it.objective().network(), &data, 7, TimeSampling::LogitNormal, &Device::Cpu).unwrap()
    };
    let before = loss(&trainer);
    while !trainer.finished() {
        step(&mut trainer, &data).unwrap();
    }
    let after = loss(&trainer);
    assert!(after < 0.7 * before, "{before} to {after}");
    // Steps that are too small for 16 bits are in the weights.
    let weight = &trainer.weights().unwrap()["final_layer.linear.weight"];
    assert_eq!(weight.dtype(), DType::F32);
    let rounded = weight.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    let difference = (weight - rounded).unwrap().abs().unwrap().max_all().unwrap();
    assert!(difference.to_scalar::<f32>().unwrap() > 0.0);
}

#[test]
fn fine_tuning_starts_from_weights_and_from_nothing_else() {
    let data = data();
    let mut first = trainer(2);
    step(&mut first, &data).unwrap();
    let weights = first.weights().unwrap();
    let mut second = trainer(2);
    second.start_from(&weights).unwrap();
    let list = |it: &Tensor| it.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (name, weight) in second.averaged_weights(1).unwrap() {
        assert_eq!(list(&weight), list(&weights[&name]), "{name}");
    }
    assert!(first.start_from(&weights).unwrap_err().to_string().contains("1 steps"));
    let mut wrong = weights.clone();
    wrong.insert("another".to_owned(), weights["final_layer.linear.bias"].clone());
    assert!(trainer(2).start_from(&wrong).unwrap_err().to_string().contains("another"));
}
