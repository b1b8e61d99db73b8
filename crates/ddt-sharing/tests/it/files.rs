//! Plan and similarity files: round trips, refusals and untrusted bytes.

use ddt_sharing::{
    ForecastOrder, InnerProducts, MadeFor, Objective, PlanError, PlanFile, PlanWithCost, SharingPlan,
    Similarity, SimilarityFile, optimal_plan,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn made_for() -> MadeFor {
    let grid = json!({"num_steps": 8, "last_step": 0.04, "timeshift": 1.0});
    let made_for = MadeFor::new("ddt-xl-2-22en6de-r256").with("grid", &grid).unwrap();
    made_for.with("guidance", &json!({"scale": 2.0, "interval": [0.3, 1.0]})).unwrap()
}

fn measured() -> SimilarityFile {
    let at = |it: usize| 1.0 - ((it / 8).abs_diff(it % 8) as f64) / 7.0;
    let values: Vec<f64> = (0..64).map(at).collect();
    SimilarityFile {
        made_for: made_for(),
        seed: u64::MAX,
        images: 8,
        similarity: Similarity::from_matrix(values.clone(), 8).unwrap(),
        inner_products: Some(InnerProducts::from_matrix(values, 8).unwrap()),
    }
}

fn plan_file() -> PlanFile {
    let best = optimal_plan(&measured().similarity, 3).unwrap();
    let mut file = PlanFile::new(&measured(), Objective::Budget { num_recompute: 3 }, best);
    file.predicted_speedup = Some(2.3);
    file
}

fn changed(change: impl FnOnce(&mut PlanFile)) -> PlanFile {
    let mut file = plan_file();
    change(&mut file);
    file
}

fn plan_json() -> String {
    plan_file().to_json().unwrap()
}

/// The plan file with another value at a JSON pointer.
fn edited(pointer: &str, value: Value) -> Result<PlanFile, PlanError> {
    let mut document: Value = serde_json::from_str(&plan_json()).unwrap();
    *document.pointer_mut(pointer).unwrap() = value;
    PlanFile::from_json(document.to_string().as_bytes())
}

#[test]
fn files_are_read_as_they_were_written() {
    for objective in [
        Objective::Budget { num_recompute: 3 },
        Objective::MeanSimilarity { at_least: 0.98 },
        Objective::WorstSimilarity { at_least: 0.9 },
        Objective::MeanError { at_most: 0.01 },
        Objective::WorstError { at_most: 0.1 },
        Objective::Uniform { every: 3 },
    ] {
        let file = changed(|it| it.objective = objective);
        assert_eq!(PlanFile::from_json(file.to_json().unwrap().as_bytes()).unwrap(), file);
    }
    for file in [measured(), SimilarityFile { inner_products: None, ..measured() }] {
        assert_eq!(SimilarityFile::from_json(file.to_json().unwrap().as_bytes()).unwrap(), file);
    }
}

#[test]
fn a_plan_is_handed_out_only_for_its_settings() {
    let file = PlanFile::from_json(plan_json().as_bytes()).unwrap();
    let plan = file.plan_for(&made_for()).unwrap();
    assert_eq!((plan.num_recompute(), plan.order()), (3, ForecastOrder::Reuse));
    let grid = json!({"num_steps": 8, "last_step": 0.1, "timeshift": 1.0});
    for wanted in [MadeFor::new("ddt-b-2"), made_for().with("grid", &grid).unwrap()] {
        assert!(matches!(file.plan_for(&wanted), Err(PlanError::WrongSetting { .. })));
        assert!(measured().check(&wanted).is_err());
    }
}

#[test]
fn a_plan_keeps_its_order() {
    let plan = SharingPlan::uniform(8, 3).unwrap().with_order(ForecastOrder::Quadratic);
    let objective = Objective::Budget { num_recompute: 3 };
    let file = PlanFile::new(&measured(), objective, PlanWithCost { plan, cost: 0.25 });
    assert_eq!(file.mean_similarity, None);
    let read = PlanFile::from_json(file.to_json().unwrap().as_bytes()).unwrap();
    assert_eq!(read.plan_for(&made_for()).unwrap().order(), ForecastOrder::Quadratic);
    // A file from before there were orders.
    assert!(!plan_json().contains("order"));
    let order = |order: i32| {
        edited("/content/plan", json!({"num_steps": 8, "recompute_steps": [0, 3, 6], "order": order}))
    };
    assert_eq!(order(1).unwrap().plan_for(&made_for()).unwrap().order(), ForecastOrder::Linear);
    for bad in [-1, 3] {
        assert!(matches!(order(bad), Err(PlanError::Malformed(_))));
    }
}

#[test]
fn files_of_version_1_with_a_grid_in_the_plan_are_read() {
    let json =
        plan_json().replacen("\"recompute_steps\"", "\"grid\": {\"num_steps\": 8}, \"recompute_steps\"", 1);
    assert_eq!(PlanFile::from_json(json.as_bytes()).unwrap(), plan_file());
}

#[test]
fn contradictions_are_refused_on_both_ways() {
    let nan = f64::NAN;
    let shorter = PlanWithCost { plan: SharingPlan::every_step(7).unwrap(), cost: 0.0 };
    let objective = |objective| changed(|it| it.objective = objective);
    for (file, culprit) in [
        (PlanFile::new(&measured(), Objective::Budget { num_recompute: 7 }, shorter), "steps of the grid"),
        (changed(|it| it.images = 0), "images"),
        (changed(|it| it.cost = nan), "cost"),
        (changed(|it| it.cost = -1.0), "cost"),
        (changed(|it| it.mean_similarity = Some(0.99)), "mean_similarity"),
        (changed(|it| it.predicted_speedup = Some(f64::INFINITY)), "predicted_speedup"),
        (changed(|it| it.made_for = MadeFor::new("")), "model"),
        (objective(Objective::Budget { num_recompute: 4 }), "objective"),
        (objective(Objective::MeanSimilarity { at_least: nan }), "objective"),
        (objective(Objective::WorstError { at_most: nan }), "objective"),
        (objective(Objective::Uniform { every: 0 }), "objective"),
    ] {
        let message = file.to_json().unwrap_err().to_string();
        assert!(message.contains(culprit), "{message}");
    }
    for (pointer, value, culprit) in [
        ("/content/images", json!(0), "images"),
        ("/content/cost", json!(-0.5), "cost"),
        ("/content/made_for/grid/num_steps", json!(9), "steps of the grid"),
        ("/content/plan/num_steps", json!(1), "below the 1 steps"),
    ] {
        let error = edited(pointer, value).unwrap_err();
        let reason = std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string);
        assert!(reason.contains(culprit), "{reason}");
    }
    let shorter = Similarity::from_matrix(vec![1.0], 1).unwrap();
    assert!(SimilarityFile { similarity: shorter, ..measured() }.to_json().is_err());
    let shorter = Some(InnerProducts::from_matrix(vec![1.0], 1).unwrap());
    assert!(SimilarityFile { inner_products: shorter, ..measured() }.to_json().is_err());
    assert!(SimilarityFile { images: 0, ..measured() }.to_json().is_err());
}

#[test]
fn other_files_are_told_apart() {
    let json = plan_json();
    let replaced = |from: &str, to: &str| {
        assert!(json.contains(from), "{from}");
        PlanFile::from_json(json.replacen(from, to, 1).as_bytes())
    };
    let message = replaced("ddt-sharing-plan", "ddt-similarity").unwrap_err().to_string();
    assert!(message.contains("must be ddt-sharing-plan, got ddt-similarity"), "{message}");
    // A later version is told by its number, whatever its keys.
    let message = replaced("\"version\": 1,", "\"version\": 2, \"colour\": 1,").unwrap_err().to_string();
    assert!(message.contains("version of the file must be 1") && message.contains("got 2"), "{message}");
    let malformed = |file| assert!(matches!(file, Err(PlanError::Malformed(_))));
    malformed(replaced("\"seed\"", "\"sead\""));
    malformed(replaced("\"seed\"", "\"seed\": 1, \"seed\""));
    malformed(replaced("\"version\": 1,", "\"version\": 1, \"x\": 1,"));
    malformed(PlanFile::from_json(b""));
    malformed(PlanFile::from_json("[".repeat(100_000).as_bytes()));
    let large = vec![b' '; (16 << 20) + 1];
    assert!(PlanFile::from_json(&large).unwrap_err().to_string().contains("at most 16777216 bytes"));
}

proptest! {
    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((any::<usize>(), any::<u8>(), 0_u8..3), 1..6)) {
        let mut bytes = plan_json().into_bytes();
        for (at, byte, edit) in edits {
            let at = at % bytes.len();
            match edit {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        if let Ok(file) = PlanFile::from_json(&bytes) {
            prop_assert!(file.validate().is_ok());
        }
    }

    #[test]
    fn mutated_numbers_never_panic(at in any::<usize>(), number in "-?[0-9]{1,25}(\\.[0-9]{1,3})?(e[0-9]{1,3})?") {
        // Swap one of the file's numbers for another.
        let json = plan_json();
        let digits: Vec<_> = json.match_indices(|it: char| it.is_ascii_digit()).map(|it| it.0).collect();
        let at = digits[at % digits.len()];
        if let Ok(file) = PlanFile::from_json(format!("{}{number}{}", &json[..at], &json[at + 1..]).as_bytes()) {
            prop_assert!(file.validate().is_ok());
        }
    }
}
