//! `ddt fetch`, `ddt doctor`, `ddt completions`, `ddt options`, `ddt study`, and the program as a whole.

use std::fs;

use crate::{command, ddt, refuse, succeed};

#[test]
fn fetching_where_the_hub_may_not_be_asked_names_the_ways_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    refuse(folder, "fetch ddt-xl2-256", 1, &["DDT-XL-22en6de-R256/model.ckpt", "HF_HUB_OFFLINE"]);
    refuse(folder, "fetch nothing", 1, &["OWNER/NAME/FILE"]);
    refuse(folder, "fetch a/b/../c", 1, &["path inside the repository"]);
    refuse(folder, "fetch", 2, &["<NAME>..."]);
    // A wrong class is found before anything is downloaded, and so is a wrong file.
    refuse(folder, "sample --weights hub --class golden_retreiver", 1, &["did you mean 207"]);
    refuse(folder, "sample --weights hub", 1, &["HF_HUB_OFFLINE"]);

    // What is there is not asked for.
    let repository = folder.join("cache/models--owner--name");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), commit).unwrap();
    let file = repository.join("snapshots").join(commit).join("weights.bin");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "weights").unwrap();
    assert_eq!(succeed(folder, "fetch owner/name/weights.bin"), format!("{}\n", file.display()));
}

#[test]
fn the_doctor_says_what_a_bug_report_needs_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path(), "doctor --json").env("HF_TOKEN", "secret").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["version"], ddt::VERSION);
    assert!(report["cores"].as_u64() >= Some(1) && report["hub_offline"] == true, "{report}");
    assert_eq!(report["published"][0], serde_json::json!(["ddt-xl2-256", false, false]));
    assert!(!text.contains("secret"));
    let text = succeed(folder.path(), "doctor");
    assert!(text.contains("ddt-xl2-512: network missing") && text.contains("ddt doctor --json"), "{text}");
}

#[test]
fn the_page_of_options_is_as_the_program_prints_it() {
    let folder = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/OPTIONS.md")).unwrap();
    let printed = succeed(folder.path(), "options");
    assert!(printed == page, "write it again: cargo run -p ddt-cli -- options > docs/OPTIONS.md");
}

#[test]
fn completions_and_help_know_the_subcommands() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(succeed(folder.path(), &format!("completions {shell}")).contains("sample"), "{shell}");
    }
    let help = succeed(folder.path(), "--help");
    for name in ["sample", "fetch", "doctor", "completions", "--quiet"] {
        assert!(help.contains(name), "{help}");
    }
    // The full help says more than the list.
    let help = succeed(folder.path(), "evaluate --help");
    assert!(help.contains("called fid only if"), "{help}");
    assert_eq!(succeed(folder.path(), "--version"), format!("ddt {}\n", ddt::VERSION));
    refuse(folder.path(), "smaple", 2, &["sample"]);
    let outcome = ddt(folder.path(), "");
    assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""));
}

#[test]
fn analyses_of_the_demo_write_figures() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let small = "--images 2 --step-counts 2 --solvers euler --timeshifts 1 --steps 2";
    let outcome = ddt(folder, &format!("study analyses --weights demo {small}"));
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("wrote spectrum.svg, fmax.svg"), "{outcome:?}");
    assert!(outcome.stderr.contains("generating the reference with dopri5:1e-6"), "{outcome:?}");
    assert_eq!(fs::read_dir(folder.join("out/analysis")).unwrap().count(), 5);
}

#[test]
fn sharing_of_the_demo_is_measured_and_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let line = "study sharing --weights demo --steps 6 --ratios 0.5,0.7 --orders 0,1,2 --calibration-images 2 --images 4 \
                --batch 2 --out measured";
    let table = succeed(folder, line);
    assert!(table.starts_with("| ratio | runs | order 0, uniform | order 0, planned |"), "{table}");
    let read = |name: &str| fs::read_to_string(folder.join("measured").join(name)).unwrap();
    let report: serde_json::Value = serde_json::from_str(&read("report.json")).unwrap();
    let plans = report["plans"].as_array().unwrap();
    assert_eq!(plans.len(), 3 * 2 * 2);
    assert!(plans.iter().all(|it| it["error"]["mean"].as_f64().unwrap() > 0.0), "{report}");
    assert!(read("errors.svg").contains("order 2, planned"));

    // The second batch is lost, and measured again; the rest is read.
    let written = || folder.join("measured/similarity.json").metadata().unwrap().modified().unwrap();
    let measured_at = written();
    let results = read("results.jsonl");
    let kept = results.match_indices('\n').nth(1).unwrap().0 + 1;
    fs::write(folder.join("measured/results.jsonl"), &results[..kept]).unwrap();
    let outcome = ddt(folder, line);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert_eq!(written(), measured_at);
    assert!(read("results.jsonl").starts_with(&results[..kept]));
    let again: serde_json::Value = serde_json::from_str(&read("report.json")).unwrap();
    let errors = |it: &serde_json::Value| {
        it["plans"].as_array().unwrap().iter().map(|it| it["error"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(errors(&again), errors(&report));
    refuse(folder, &format!("{line} --seed 1"), 1, &["--out"]);
}

#[test]
fn wrong_flags_are_refused_before_work() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("file"), "").unwrap();
    for (line, status, expected) in [
        ("study", 2, "analyses"),
        ("study splits", 2, "split"),
        ("study analyses --step-counts 0", 2, "from 1 to 10000"),
        ("study analyses --solvers heun3", 2, "adams2"),
        ("study analyses --images 0", 2, "1..=100000"),
        ("study analyses --timeshifts -1", 1, "--timeshifts"),
        ("study analyses --share uniform:2", 1, "--share"),
        ("study analyses --guided-channels 3", 1, "--guided-channels"),
        ("study sharing --fidelity high", 1, "--fidelity"),
        ("study sharing --orders 3", 2, "0 (reuse), 1 or 2"),
        ("study sharing --ratios 1", 2, "below 1"),
        ("study sharing --images 1", 2, "2..=100000"),
        ("study sharing --out file", 1, "--out"),
        ("study analyses --out file", 1, "--out"),
        ("study analyses --weights absent", 1, "absent"),
        ("study split --seeds 0", 2, "1..=100"),
        ("study decoder --samples 10", 2, "200..=100000"),
        ("study split --width 96", 1, "multiple of 64"),
        ("study split --steps 0", 1, "--steps"),
        ("study split --photos absent", 1, "--photos"),
        ("study split --classifier absent", 1, "--classifier"),
        ("study demo --only sharings", 2, "sharing"),
        ("study demo --weights absent --out measured", 1, "--weights"),
        ("study classifier --photos absent", 1, "--photos"),
        ("study classifier --out w.bin", 1, "ends in .safetensors"),
    ] {
        refuse(folder, line, status, &[expected]);
    }
}
