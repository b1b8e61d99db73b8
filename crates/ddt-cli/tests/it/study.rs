//! `ddt study`: its flags and messages; the library has the tests of its results.

use std::fs;

use crate::{ddt, refuse};

#[test]
fn analyses_of_the_demo_write_figures() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let small =
        ["--images", "2", "--step-counts", "2", "--solvers", "euler", "--timeshifts", "1", "--steps", "2"];
    let outcome = ddt(folder, &[&["study", "analyses", "--weights", "demo"], &small[..]].concat());
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("wrote spectrum.svg, fmax.svg"), "{outcome:?}");
    assert!(outcome.stderr.contains("generating the reference with dopri5:1e-6"), "{outcome:?}");
    assert_eq!(fs::read_dir(folder.join("out/analysis")).unwrap().count(), 5);
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
        refuse(folder, &line.split_whitespace().collect::<Vec<_>>(), status, &[expected]);
    }
}
