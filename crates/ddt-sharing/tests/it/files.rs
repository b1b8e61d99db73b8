//! Plan and similarity files: round trips, refusals, and bytes that nobody vouches for.

use std::error::Error as _;
use std::fs;
use std::path::Path;

use ddt_sharing::{
    Objective, PlanError, PlanFile, PlanFor, PlanGuidance, SharingPlan, Similarity, SimilarityFile, StepGrid,
    optimal_plan,
};
use proptest::prelude::*;

fn made_for() -> PlanFor {
    PlanFor {
        model: "ddt-xl-2-22en6de-r256".to_owned(),
        grid: StepGrid { num_steps: 8, last_step: 0.04, timeshift: 1.0 },
        guidance: PlanGuidance { scale: 2.0, interval: (0.3, 1.0) },
        solver: Some("euler".to_owned()),
    }
}

fn similarity() -> Similarity {
    let at = |it: usize| 1.0 - ((it / 8).abs_diff(it % 8) as f64) / 7.0;
    Similarity::from_matrix((0..64).map(at).collect(), 8).unwrap()
}

fn plan_file() -> PlanFile {
    let best = optimal_plan(&similarity(), 3).unwrap();
    PlanFile {
        made_for: made_for(),
        seed: u64::MAX,
        images: 8,
        objective: Objective::Budget { num_recompute: 3 },
        cost: best.cost,
        mean_similarity: best.mean_similarity(),
        plan: best.plan.on_grid(made_for().grid).unwrap(),
        predicted_speedup: Some(2.3),
    }
}

/// Loads these bytes as a plan file.
fn load(bytes: &[u8]) -> Result<PlanFile, PlanError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    fs::write(&path, bytes).unwrap();
    PlanFile::load(&path)
}

fn plan_json() -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    plan_file().save(&path).unwrap();
    fs::read_to_string(&path).unwrap()
}

fn names_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_is_saved_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    let objectives = [
        Objective::Budget { num_recompute: 3 },
        Objective::MeanSimilarity { at_least: 0.98 },
        Objective::WorstSimilarity { at_least: 0.9 },
        Objective::Uniform { every: 3 },
    ];
    for objective in objectives {
        let file = PlanFile { objective, ..plan_file() };
        file.save(&path).unwrap();
        assert_eq!(PlanFile::load(&path).unwrap(), file);
    }
    let path = folder.path().join("similarity.json");
    let file = SimilarityFile { made_for: made_for(), seed: 7, images: 8, similarity: similarity() };
    file.save(&path).unwrap();
    assert_eq!(SimilarityFile::load(&path).unwrap(), file);
    // Nothing is left beside.
    let mut names = names_in(folder.path());
    names.sort();
    assert_eq!(names, ["plan.json", "similarity.json"]);
}

#[test]
fn a_loaded_plan_names_its_grid() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    let plan = SharingPlan::new(plan_file().plan.recompute_steps().to_vec(), 8).unwrap();
    assert!(plan.grid().is_none());
    PlanFile { plan, ..plan_file() }.save(&path).unwrap();
    let loaded = PlanFile::load(&path).unwrap();
    assert!(loaded.plan.check_grid(&made_for().grid).is_ok());
    assert!(loaded.check(&made_for()).is_ok());
    let wanted = PlanFor { model: "ddt-b-2".to_owned(), ..made_for() };
    assert!(matches!(loaded.check(&wanted), Err(PlanError::WrongModel { .. })));
}

#[test]
fn contradictions_are_refused_on_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    let shorter = SharingPlan::every_step(7).unwrap();
    let shifted = StepGrid { timeshift: 2.0, ..made_for().grid };
    let elsewhere = SharingPlan::every_step(8).unwrap().on_grid(shifted).unwrap();
    for file in [
        PlanFile { plan: shorter, ..plan_file() },
        PlanFile { plan: elsewhere, ..plan_file() },
        PlanFile { images: 0, ..plan_file() },
        PlanFile { cost: f64::NAN, ..plan_file() },
        PlanFile { cost: -1.0, ..plan_file() },
        PlanFile { mean_similarity: 0.99, ..plan_file() },
        PlanFile { predicted_speedup: Some(f64::INFINITY), ..plan_file() },
        PlanFile { objective: Objective::Budget { num_recompute: 4 }, ..plan_file() },
        PlanFile { objective: Objective::MeanSimilarity { at_least: f64::NAN }, ..plan_file() },
        PlanFile { objective: Objective::Uniform { every: 0 }, ..plan_file() },
    ] {
        assert!(file.save(&path).is_err(), "{file:?}");
    }
    assert!(names_in(folder.path()).is_empty());
    let error = load(plan_json().replace("\"images\": 8", "\"images\": 0").as_bytes()).unwrap_err();
    assert!(matches!(error, PlanError::Contents { .. }));
    assert!(error.source().unwrap().to_string().contains("images"));
}

#[test]
fn other_files_are_told_apart() {
    let json = plan_json();
    assert!(load(json.as_bytes()).is_ok());
    let replaced = |from: &str, to: &str| {
        assert!(json.contains(from), "{from}");
        load(json.replacen(from, to, 1).as_bytes()).unwrap_err()
    };
    assert!(matches!(
        replaced("ddt-sharing-plan", "ddt-similarity"),
        PlanError::Format { expected: "ddt-sharing-plan", .. }
    ));
    // A later version is told by its number, whatever its keys.
    assert!(matches!(
        replaced("\"version\": 1,", "\"version\": 2, \"colour\": 1,"),
        PlanError::Version { expected: 1, got: 2, .. }
    ));
    assert!(matches!(replaced("\"seed\"", "\"sead\""), PlanError::Malformed { .. }));
    assert!(matches!(replaced("\"seed\"", "\"seed\": 1, \"seed\""), PlanError::Malformed { .. }));
    assert!(matches!(replaced("\"version\": 1,", "\"version\": 1, \"x\": 1,"), PlanError::Malformed { .. }));
    assert!(matches!(replaced("\"last_step\": 0.04", "\"last_step\": null"), PlanError::Malformed { .. }));
    assert!(matches!(load(b""), Err(PlanError::Malformed { .. })));
    assert!(matches!(load("[".repeat(100_000).as_bytes()), Err(PlanError::Malformed { .. })));
    assert!(matches!(load(&vec![b' '; (16 << 20) + 1]), Err(PlanError::TooLarge { .. })));
}

#[test]
fn paths_that_are_no_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(PlanFile::load(folder.path()), Err(PlanError::NotAFile { .. })));
    let missing = folder.path().join("missing.json");
    assert!(matches!(PlanFile::load(&missing), Err(PlanError::Io { action: "read", .. })));
    let error = plan_file().save(folder.path().join("no/such/folder.json")).unwrap_err();
    assert!(matches!(error, PlanError::Io { action: "write", .. }));
    assert!(error.to_string().contains("folder.json"));
    assert!(plan_file().save("/").is_err());
    // A folder cannot be replaced by a file, and what was written beside is gone.
    fs::create_dir(folder.path().join("taken")).unwrap();
    assert!(plan_file().save(folder.path().join("taken")).is_err());
    assert_eq!(names_in(folder.path()), ["taken"]);
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
        if let Ok(file) = load(&bytes) {
            prop_assert!(file.validate().is_ok());
        }
    }

    #[test]
    fn mutated_numbers_never_panic(at in any::<usize>(), number in "-?[0-9]{1,25}(\\.[0-9]{1,3})?(e[0-9]{1,3})?") {
        // Swap one of the file's numbers for another.
        let json = plan_json();
        let digits: Vec<_> = json.match_indices(|it: char| it.is_ascii_digit()).map(|it| it.0).collect();
        let at = digits[at % digits.len()];
        if let Ok(file) = load(format!("{}{number}{}", &json[..at], &json[at + 1..]).as_bytes()) {
            prop_assert!(file.validate().is_ok());
        }
    }
}
