//! `ddt plan`, and its plans in `ddt sample`.

use std::{fs, path::Path};

use ddt::{
    RECORD_KEY,
    picture::read_png,
    sharing::{Objective, PlanFile, SimilarityFile},
};
use serde_json::Value;

use crate::{names_in, refuse, succeed};

const FEW: &str = "plan --weights demo --images 1 --steps 6 --ratios 0.5";

fn read_plan(path: &Path) -> PlanFile {
    PlanFile::from_json(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn plans_serve_their_own_settings_only() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let reuse = "--order 0 --quality 0.9 --worst-quality 0.8 --test-images 0";
    succeed(folder, &format!("{FEW} {reuse}"));
    let forecasts = "--order 1 --error 0.1 --test-images 0 --out out/forecasts";
    succeed(folder, &format!("{FEW} {forecasts}"));
    fs::copy(
        folder.join("out/forecasts/plan-error-0.1.json"),
        folder.join("out/sharing/plan-error-0.1.json"),
    )
    .unwrap();
    for name in ["plan-0.5.json", "plan-quality-0.9.json", "plan-worst-0.8.json", "plan-error-0.1.json"] {
        let path = format!("out/sharing/{name}");
        let small = format!("sample --weights demo --images 1 --class 0 --share {path}");
        let json: Value = serde_json::from_slice(&fs::read(folder.join(&path)).unwrap()).unwrap();
        let runs = json["content"]["plan"]["recompute_steps"].as_array().unwrap().len();
        let result = succeed(folder, &format!("{small} --steps 6"));
        assert!(result.contains(&format!("encoder calls {runs} of 6 steps")), "{result}");
        for (line, expected) in [
            ("--steps 7", "num_steps 6, wanted 7"),
            ("--steps 6 --timeshift 2", "timeshift 1.0, wanted 2.0"),
            ("--steps 6 --guidance 2.5", "scale 4.0, wanted 2.5"),
            ("--steps 6 --interval 0.2,1", "wanted 0.2"),
            ("--steps 6 --solver adams2", "adams2"),
        ] {
            refuse(folder, &format!("{small} {line}"), 1, &[expected, name]);
        }
        let other = fs::read_to_string(folder.join(&path)).unwrap().replace("sha256:c6", "sha256:00");
        fs::write(folder.join(&path), other).unwrap();
        refuse(folder, &format!("{small} --steps 6"), 1, &["sha256:00"]);
    }
}

#[test]
fn everything_is_written_and_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let line = "plan --weights demo --images 2 --steps 6 --ratios 0,0.5,0.8 --seed 9";
    let table = succeed(folder.path(), line);
    let at = |name: &str| folder.path().join("out/sharing").join(name);
    let names = ["similarity.json", "similarity.png", "cost.svg", "images.png", "report.json"];
    let plans = ["plan-0.json", "plan-0.5.json", "plan-0.8.json"];
    let found = names_in(&at(""));
    let mut expected: Vec<_> = names.into_iter().chain(plans).collect();
    expected.sort();
    assert_eq!(found, expected);

    let similarity = SimilarityFile::from_json(&fs::read(at("similarity.json")).unwrap()).unwrap();
    assert_eq!((similarity.seed, similarity.images, similarity.similarity.num_steps()), (9, 2, 6));
    let report: Value = serde_json::from_slice(&fs::read(at("report.json")).unwrap()).unwrap();
    for (index, (name, runs)) in plans.into_iter().zip([6, 3, 2]).enumerate() {
        let file = read_plan(&at(name));
        let plan = file.plan_for(&similarity.made_for).unwrap();
        assert_eq!(
            (file.seed, file.images, &file.objective),
            (9, 2, &Objective::Budget { num_recompute: runs })
        );
        let row = &report["plans"][index];
        assert_eq!(row["num_recompute"], runs);
        assert_eq!(row["optimal"]["recompute_steps"], serde_json::json!(plan.recompute_steps()));
        let number = |way: &str, what: &str| row[way][what].as_f64().unwrap();
        assert_eq!(Some(number("optimal", "predicted_speedup")), file.predicted_speedup);
        assert!(row["gain"]["ci95"].as_f64().unwrap() >= 0.0);
        assert_eq!(usize::from(plan.order()), 2);
        for way in ["uniform", "optimal"] {
            // Sharing changes latents, and recomputing at every step does not.
            let error = row[way]["latent_error"]["mean"].as_f64().unwrap();
            assert_eq!(error > 0.0, runs < 6, "{way} {runs}");
            assert!(number(way, "measured_speedup") > 0.0);
        }
        assert!(table.contains(&format!("{runs:>4}  {:>8.4}", number("uniform", "cost"))), "{table}");
    }
    assert_eq!(report["calibration_images"][1]["sample"], 5_000_000);
    assert_eq!(report["test_images"][1]["sample"], 5_000_001);
    let (_, text) = read_png(&at("images.png")).unwrap();
    assert_eq!(text[0].0, RECORD_KEY);
    assert_eq!(serde_json::from_str::<Value>(&text[0].1).unwrap(), report);

    // The next run leaves nothing of this one, and everything else.
    fs::write(at("plan-mine.json"), "kept").unwrap();
    succeed(folder.path(), &format!("{FEW} --test-images 0"));
    let expected = ["cost.svg", "plan-0.5.json", "plan-mine.json", "report.json"];
    assert_eq!(names_in(&at("")), [&expected[..], &["similarity.json", "similarity.png"]].concat());
}

#[test]
fn mistakes_are_found_before_sampling() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let check = |line: &str, status: i32, expected: &[&str]| {
        refuse(folder, &format!("plan --weights demo {line}"), status, expected);
        assert!(!folder.join("out/sharing/similarity.json").exists());
    };
    check("--steps 0", 1, &["--steps", "got 0"]);
    check("--steps 2049", 1, &["--steps", "2048"]);
    check("--timeshift 0", 1, &["--timeshift", "got 0"]);
    check("--guidance NaN", 1, &["--guidance", "finite"]);
    check("--test-images 3000", 1, &["--test-images", "fewer or smaller"]);
    check("--share uniform:2", 1, &["--share", "leave both out"]);
    check("--fidelity high", 1, &["--fidelity", "leave both out"]);
    check("--quality 0.9", 1, &["goals of --order 0", "quality-0.9 with --order 2"]);
    check("--order 0 --error 0.1", 1, &["error-0.1 with --order 0"]);
    check("--guided-channels 3", 1, &["plans are made", "leave both out"]);
    for (line, expected) in [
        ("--ratios 1", "from 0 to below 1"),
        ("--ratios -0.1", "from 0 to below 1"),
        ("--ratios 0.5,,0.8", "such as 0.8"),
        ("--quality 0", "above 0 and at most 1"),
        ("--quality high", "such as 0.98"),
        ("--worst-quality 2", "above 0 and at most 1"),
        ("--images 0", "1..=100000"),
        ("--order 3", "0 (reuse), 1 or 2"),
        ("--error 0", "above 0"),
        ("--test-images -1", "--test-images"),
        ("--size 128", "256 or 512"),
    ] {
        check(line, 2, &[expected]);
    }
    // A folder with somebody's own files of these names.
    fs::create_dir(folder.join("own")).unwrap();
    fs::write(folder.join("own/report.json"), "kept").unwrap();
    check("--out own", 1, &["--out", "a file report.json", "name another folder"]);
    assert_eq!(fs::read_to_string(folder.join("own/report.json")).unwrap(), "kept");
    fs::write(folder.join("file"), "kept").unwrap();
    check("--out file", 1, &["--out", "cannot make the folder"]);
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "kept");
    fs::create_dir_all(folder.join("out/sharing/report.json")).unwrap();
    check("", 1, &["--out", "report.json", "add a file name"]);
}
