//! The statistic equals its definition, in any order and batching of images.

use ddt_sharing::{Similarity, SimilarityAccumulator};

const NUM_STEPS: usize = 13;
const TOKENS: usize = 7;
const CHANNELS: usize = 70;

/// States of one image, a slowly turning vector per token: `(tokens, channels)` for each step.
fn image(seed: usize) -> Vec<Vec<f32>> {
    let at = |step: usize, it: usize| {
        let phase = ((it * 7919 + seed * 104_729) % 1000) as f32 * 0.006_283;
        (phase + 0.1 * step as f32 * (1.0 + seed as f32)).sin() + 0.2
    };
    (0..NUM_STEPS).map(|step| (0..TOKENS * CHANNELS).map(|it| at(step, it)).collect()).collect()
}

fn of(images: &[Vec<Vec<f32>>]) -> SimilarityAccumulator {
    let mut statistic = SimilarityAccumulator::new(NUM_STEPS).unwrap();
    for states in images {
        statistic.add(states, CHANNELS).unwrap();
    }
    statistic
}

fn largest_difference(a: &Similarity, b: &Similarity) -> f64 {
    a.values().iter().zip(b.values()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn equals_the_definition() {
    let images = [image(0), image(1)];
    let (similarity, products) = (of(&images).similarity().unwrap(), of(&images).inner_products().unwrap());
    for i in 0..NUM_STEPS {
        for j in 0..NUM_STEPS {
            let (mut cosine, mut product) = (0.0, 0.0);
            for states in &images {
                for (a, b) in states[i].chunks(CHANNELS).zip(states[j].chunks(CHANNELS)) {
                    let dot = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
                    };
                    cosine += dot(a, b) / (dot(a, a) * dot(b, b)).sqrt() / (images.len() * TOKENS) as f64;
                    product += dot(a, b) / (images.len() * TOKENS) as f64;
                }
            }
            assert!((similarity.similarity(i, j).unwrap() - cosine).abs() < 1e-12, "steps {i} and {j}");
            assert!(
                (products.values()[i * NUM_STEPS + j] / product - 1.0).abs() < 1e-12,
                "steps {i} and {j}"
            );
        }
    }
}

#[test]
fn order_batching_and_merging_change_nothing() {
    let images: Vec<_> = (0..4).map(image).collect();
    let sequential = of(&images).similarity().unwrap();

    let reversed: Vec<_> = images.iter().rev().cloned().collect();
    assert!(largest_difference(&sequential, &of(&reversed).similarity().unwrap()) < 1e-12);

    let mut merged = of(&images[..1]);
    merged.merge(&of(&images[1..])).unwrap();
    assert_eq!(merged.num_tokens(), 4 * TOKENS as u64);
    assert!(largest_difference(&sequential, &merged.similarity().unwrap()) < 1e-12);

    // All images of a step in one slice.
    let batched: Vec<Vec<f32>> =
        (0..NUM_STEPS).map(|step| images.iter().flat_map(|it| it[step].iter().copied()).collect()).collect();
    assert!(largest_difference(&sequential, &of(&[batched]).similarity().unwrap()) < 1e-12);
}

#[test]
fn repeats_to_the_bit() {
    let images: Vec<_> = (0..3).map(image).collect();
    let (a, b) = (of(&images), of(&images));
    assert_eq!(a.similarity().unwrap(), b.similarity().unwrap());
    assert_eq!(a.inner_products().unwrap(), b.inner_products().unwrap());
}
