//! Against matrices, plans and costs computed elsewhere.

use std::io::Write;
use std::path::PathBuf;

use ddt_sharing::{Planner, Similarity, SimilarityAccumulator, optimal_plan, plan_cost};
use safetensors::SafeTensors;
use serde_json::Value;

/// The references are f64 means of f32 states, and f64 sums in another order.
const TOLERANCE: f64 = 1e-9;

/// A reference file's bytes, or `None` (and a line saying so) where it is not at hand.
fn read(name: &str) -> Option<Vec<u8>> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures"));
    let bytes = std::fs::read(folder.join(name)).ok();
    if bytes.is_none() {
        // Straight to stderr: the harness would capture a print of a test that passes.
        std::io::stderr().write_all(format!("skipped: {name} is not at hand\n").as_bytes()).unwrap();
    }
    bytes
}

fn metadata(bytes: &[u8], key: &str) -> Value {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let text = header.metadata().as_ref().unwrap()[key].clone();
    serde_json::from_str(&text).unwrap()
}

fn f64s(bytes: &[u8], name: &str) -> Vec<f64> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::F64);
    tensor.data().chunks_exact(8).map(|it| f64::from_le_bytes(it.try_into().unwrap())).collect()
}

fn check_plans(name: &str) {
    let Some(bytes) = read(name) else { return };
    let values = f64s(&bytes, "in.similarity");
    let num_steps = values.len().isqrt();
    let similarity = Similarity::from_matrix(values, num_steps).unwrap();
    let planner = Planner::new(&similarity, num_steps).unwrap();
    for expected in metadata(&bytes, "plans").as_array().unwrap() {
        let budget = expected["budget"].as_u64().unwrap() as usize;
        let found = planner.plan(budget).unwrap();
        let recompute: Vec<usize> = serde_json::from_value(expected["recompute"].clone()).unwrap();
        assert_eq!(found.plan.recompute_steps(), recompute, "budget {budget}");
        assert!((found.cost - expected["cost"].as_f64().unwrap()).abs() < TOLERANCE, "budget {budget}");
        assert_eq!(plan_cost(&similarity, &found.plan).unwrap(), found.cost);
        assert_eq!(optimal_plan(&similarity, budget).unwrap(), found);
    }
}

#[test]
fn plans_of_a_smooth_matrix() {
    check_plans("sharing_plan_250.safetensors");
}

#[test]
fn plans_of_a_random_matrix() {
    check_plans("sharing_plan_random.safetensors");
}

#[test]
fn similarity_and_plan_of_states() {
    let Some(bytes) = read("sharing_states.safetensors") else { return };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let states = file.tensor("in.states").unwrap();
    let &[num_steps, images, tokens, channels] = states.shape() else { panic!("{:?}", states.shape()) };
    let states: Vec<f32> =
        states.data().chunks_exact(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect();

    let mut statistic = SimilarityAccumulator::new(num_steps).unwrap();
    for image in 0..images {
        let of_image =
            |step: usize| &states[(step * images + image) * tokens * channels..][..tokens * channels];
        let rows: Vec<&[f32]> = (0..num_steps).map(of_image).collect();
        statistic.add(&rows, channels).unwrap();
    }
    let similarity = statistic.similarity().unwrap();
    let worst = similarity.values().iter().zip(f64s(&bytes, "out.similarity")).map(|(a, b)| (a - b).abs());
    let worst = worst.fold(0.0, f64::max);
    assert!(worst < TOLERANCE, "{worst}");

    let budget = metadata(&bytes, "budget").as_u64().unwrap() as usize;
    let found = optimal_plan(&similarity, budget).unwrap();
    let recompute: Vec<usize> = serde_json::from_value(metadata(&bytes, "recompute")).unwrap();
    assert_eq!(found.plan.recompute_steps(), recompute);
    assert!((found.cost - metadata(&bytes, "cost").as_f64().unwrap()).abs() < TOLERANCE);
}
