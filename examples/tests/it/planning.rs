//! The program `plan_sharing` with the demo weights, and its plans in `imagenet256`.

use std::path::Path;

use clap::Parser;
use ddt_examples::generate::Interrupted;
use ddt_examples::page::SETTINGS_KEY;
use ddt_examples::plan_sharing::{self, cli::Args};
use ddt_examples::png_file;
use ddt_examples::progress::Cancel;
use ddt_sharing::{Objective, PlanFile, SharingPlan, SimilarityFile};
use serde_json::Value;

use crate::no_hub;

const FEW: [&str; 8] = ["--weights", "demo", "--images", "1", "--steps", "6", "--ratios", "0.5"];

fn read_plan(path: &Path) -> PlanFile {
    PlanFile::from_json(&std::fs::read(path).unwrap()).unwrap()
}

/// The plan itself, for the settings it was made for.
fn plan_in(file: &PlanFile) -> &SharingPlan {
    file.plan_for(&file.made_for).unwrap()
}

fn plan_with(folder: &Path, line: &[&str], cancel: &Cancel) -> anyhow::Result<String> {
    let words = ["plan_sharing"].iter().chain(line);
    let mut args = Args::try_parse_from(words)?;
    if !line.contains(&"--out") {
        args.out = folder.join("plans");
    }
    plan_sharing::run(&args, &no_hub(folder), cancel)
}

/// The table, or the message of the error.
fn plan(folder: &Path, line: &[&str]) -> Result<String, String> {
    plan_with(folder, line, &Cancel::default()).map_err(|error| format!("{error:#}"))
}

#[test]
fn plans_serve_imagenet256_with_their_settings_alone() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    plan(folder, &[&FEW[..], &["--quality", "0.9", "--worst-quality", "0.8", "--test-images", "0"]].concat())
        .unwrap();
    for name in ["plan-0.5.json", "plan-quality-0.9.json", "plan-worst-0.8.json"] {
        let path = folder.join("plans").join(name);
        let draw = |line: &[&str]| {
            let settings = ["--weights", "demo", "--images", "1", "--class", "0", "--share"];
            let shared = [&settings[..], &[path.to_str().unwrap()], line].concat();
            crate::run(folder, &shared)
        };
        let runs = plan_in(&read_plan(&path)).num_recompute();
        let summary = draw(&["--steps", "6"]).unwrap();
        assert!(summary.contains(&format!("encoder calls {runs} of 6 steps")), "{summary}");

        for (line, expected) in [
            (&["--steps", "7"][..], "num_steps 6, wanted 7"),
            (&["--steps", "6", "--timeshift", "2"], "timeshift 1.0, wanted 2.0"),
            (&["--steps", "6", "--guidance", "2.5"], "scale 4.0, wanted 2.5"),
            (&["--steps", "6", "--interval", "0.2,1"], "interval.0 0.0, wanted 0.2"),
            (&["--steps", "6", "--solver", "adams2"], "adams2"),
        ] {
            let message = draw(line).unwrap_err();
            assert!(message.contains(expected) && message.contains(name), "{message}");
        }
        let mut other = read_plan(&path);
        other.made_for = other.made_for.with_model("ddt-xl2-22en6de sha256:00");
        std::fs::write(&path, other.to_json().unwrap()).unwrap();
        let message = draw(&["--steps", "6"]).unwrap_err();
        assert!(message.contains("made for model ddt-xl2-22en6de sha256:00"), "{message}");
    }
}

#[test]
fn everything_is_written_and_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let line = ["--weights", "demo", "--images", "2", "--steps", "6", "--ratios", "0,0.5,0.8", "--seed", "9"];
    let table = plan(folder.path(), &line).unwrap();
    let at = |name: &str| folder.path().join("plans").join(name);
    let names = ["similarity.json", "similarity.png", "cost.svg", "images.png", "report.json"];
    let plans = ["plan-0.json", "plan-0.5.json", "plan-0.8.json"];
    let mut found: Vec<_> =
        std::fs::read_dir(at("")).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    let mut expected: Vec<_> = names.into_iter().chain(plans).collect();
    expected.sort();
    assert_eq!(found, expected);

    let similarity = SimilarityFile::from_json(&std::fs::read(at("similarity.json")).unwrap()).unwrap();
    assert_eq!((similarity.seed, similarity.images, similarity.similarity.num_steps()), (9, 2, 6));
    let report: Value = serde_json::from_slice(&std::fs::read(at("report.json")).unwrap()).unwrap();
    for (index, (name, runs)) in plans.into_iter().zip([6, 3, 2]).enumerate() {
        let plan = read_plan(&at(name));
        assert_eq!(plan.made_for, similarity.made_for);
        assert_eq!(
            (plan.seed, plan.images, plan.objective),
            (9, 2, Objective::Budget { num_recompute: runs })
        );
        let row = &report["plans"][index];
        assert_eq!(row["num_recompute"], runs);
        assert_eq!(row["optimal"]["recompute_steps"], serde_json::json!(plan_in(&plan).recompute_steps()));
        let number = |half: &str, what: &str| row[half][what].as_f64().unwrap();
        assert_eq!(Some(number("optimal", "predicted_speedup")), plan.predicted_speedup);
        assert!(number("optimal", "cost") <= number("uniform", "cost"));
        for half in ["uniform", "optimal"] {
            // Sharing changes latents, and recomputing at every step does not.
            assert_eq!(number(half, "latent_error") > 0.0, runs < 6, "{half} {runs}");
            assert!(number(half, "measured_speedup") > 0.0);
        }
        assert!(table.contains(&format!("{runs:>4}  {:>8.4}", number("uniform", "cost"))), "{table}");
    }
    assert_eq!(report["calibration_images"][1]["sample"], 5_000_000);
    assert_eq!(report["test_images"][1]["sample"], 5_000_001);

    let (_, text) = png_file::read(&at("images.png")).unwrap();
    assert_eq!(text[0].0, SETTINGS_KEY);
    assert_eq!(serde_json::from_str::<Value>(&text[0].1).unwrap(), report);
}

#[test]
fn what_cannot_be_is_found_before_sampling() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let check = |line: &[&str], expected: &[&str]| {
        let message = plan(folder, &[&FEW[..4], line].concat()).unwrap_err();
        for part in expected {
            assert!(message.contains(part), "{line:?}: expected {part:?} in {message:?}");
        }
        assert!(!folder.join("plans/similarity.json").exists());
    };
    check(&["--steps", "0"], &["--steps", "got 0"]);
    check(&["--steps", "2049"], &["--steps", "in 1..=2048"]);
    check(&["--timeshift", "0"], &["--timeshift", "got 0"]);
    check(&["--guidance", "NaN"], &["--guidance", "finite"]);
    check(&["--test-images", "3000"], &["--test-images", "fewer or smaller"]);
    check(&["--ratios", "2"], &["from 0 to below 1"]);
    check(&["--guided-channels", "3"], &["plans are made", "leave both out"]);

    std::fs::write(folder.join("file"), "kept").unwrap();
    check(&["--out", folder.join("file").to_str().unwrap()], &["--out", "cannot make the folder"]);
    assert_eq!(std::fs::read_to_string(folder.join("file")).unwrap(), "kept");
    std::fs::create_dir_all(folder.join("plans/report.json")).unwrap();
    check(&[], &["--out", "report.json", "add a file name"]);
}

#[test]
fn a_request_to_stop_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cancel = Cancel::default();
    cancel.request();
    let error = plan_with(folder.path(), &FEW, &cancel).unwrap_err();
    assert!(error.is::<Interrupted>(), "{error}");
    assert_eq!(std::fs::read_dir(folder.path().join("plans")).unwrap().count(), 0);
}
