//! `ddt sample`.

use std::fs;

use crate::{ddt, names_in, refuse, succeed};

fn line(more: &str) -> String {
    format!("sample --weights demo --steps 2 --images 1 {more}")
}

#[test]
fn the_same_command_writes_the_same_file_and_redo_repeats_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let line = line("--class frog,ship --share uniform:2 --seed 5");
    let result = succeed(folder, &line);
    assert!(
        result.contains("2 images in ") && result.contains("encoder calls 1 of 2 steps (50% saved)"),
        "{result}"
    );
    assert!(result.ends_with("wrote out/sample.png\n"), "{result}");
    let first = fs::read(folder.join("out/sample.png")).unwrap();
    let outcome = ddt(folder, &format!("{line} --quiet --out b.png"));
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    assert_eq!(fs::read(folder.join("b.png")).unwrap(), first);

    let result = succeed(folder, "sample --redo b.png");
    assert!(result.contains("wrote out/redo.png, the same bytes as b.png"), "{result}");
    assert_eq!(fs::read(folder.join("out/redo.png")).unwrap(), first);
    refuse(folder, "sample --redo b.png --steps 3", 2, &["cannot be used with", "--steps"]);
    refuse(folder, "sample --redo absent.png", 1, &["--redo", "absent.png"]);
}

#[test]
fn redo_needs_the_same_weights_and_version() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("own.safetensors"), ddt_demo::NETWORK).unwrap();
    fs::create_dir(folder.join("moved")).unwrap();
    succeed(folder, "sample --weights own.safetensors --steps 1 --images 1 --class 0 --out a.png");
    succeed(folder, "sample --redo a.png");
    fs::rename(folder.join("own.safetensors"), folder.join("moved/x.safetensors")).unwrap();
    refuse(folder, "sample --redo a.png", 1, &["no weights file own.safetensors"]);
    succeed(folder, "sample --redo a.png --weights moved/x.safetensors");
    // Another file of the right kind.
    let mut other = ddt_demo::NETWORK.to_vec();
    *other.last_mut().unwrap() ^= 1;
    fs::write(folder.join("other.safetensors"), other).unwrap();
    let other = "sample --redo a.png --weights other.safetensors";
    refuse(folder, other, 1, &["expected other.safetensors with sha256:", "got sha256:"]);

    // Another version.
    let (picture, text) = ddt::picture::read_png(&folder.join("a.png")).unwrap();
    let json = text[0].1.replace(&format!("\"version\":\"{}\"", ddt::VERSION), "\"version\":\"0.0.1\"");
    let bytes = ddt::picture::encode_png(&picture, &[(ddt::RECORD_KEY, &json)]).unwrap();
    fs::write(folder.join("old.png"), bytes).unwrap();
    refuse(folder, "sample --redo old.png", 1, &["version 0.0.1", &format!("version {}", ddt::VERSION)]);
}

#[test]
fn output_paths_are_checked_before_work_and_nothing_else_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (out, expected) in [
        ("missing/grid.png", "create the folder missing first"),
        ("newfolder/", "add a file name"),
        (".", "add a file name"),
        ("x.jpg", "ends in .png"),
        ("/dev/null", ".png"),
    ] {
        // Weights that are not there would be found later.
        refuse(folder, &format!("sample --weights absent --out {out}"), 1, &["--out", expected]);
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("/dev/null", folder.join("null.png")).unwrap();
        refuse(folder, &line("--out null.png"), 1, &["--out", "expected a regular file"]);
        assert!(folder.join("null.png").is_symlink());
    }
    refuse(folder, &line("--class 10"), 1, &["--class", "class 10 is out of range", "0..=9"]);
    assert!(!names_in(folder).contains(&"x.jpg".to_owned()));
}

#[test]
fn wrong_values_say_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (more, expected) in [
        ("--class trick", &["--class", "did you mean 9 (truck)", "--weights hub"][..]),
        ("--class -1", &["class -1 is out of range"]),
        ("--class 1,,2", &["between the commas"]),
        ("--guidance NaN", &["--guidance", "finite", "NaN"]),
        ("--guidance -inf", &["finite"]),
        ("--interval 1,0.3", &["--interval", "low < high", "(1.0, 0.3)"]),
        ("--guided-channels 99", &["at most 32 guided channels"]),
        ("--last-step 0", &["--last-step", "got 0"]),
        ("--last-step 1", &["last step inside (0, 1)"]),
        ("--timeshift -1", &["timeshift", "got -1"]),
        ("--preset ddt-xl3", &["--preset", "ddt-xl2-22en6de"]),
        ("--preset ddt-b2", &["ddt-b2-8en4de", "leave the sizes out"]),
        ("--share unifrom:5", &["unifrom:5", "uniform:R"]),
        ("--guiding-network absent.safetensors", &["guiding network", "absent.safetensors"]),
        ("--weaker absent.safetensors", &["guiding network", "absent.safetensors"]),
        ("--vae absent.vae", &["absent.vae"]),
    ] {
        refuse(folder, &line(more), 1, expected);
    }
    refuse(folder, "sample --weights demo --images 5000", 1, &["do not fit on one page"]);
    refuse(folder, "sample --weights demo --steps 0", 1, &["--steps", "got 0"]);
    for (more, expected) in [
        ("--interval 0.3", "two numbers"),
        ("--interval a,b", "such as 0.3,1"),
        ("--device gpu", "expected cpu"),
        ("--guided-channels 0", "--guided-channels"),
        ("--guiding-network", "--guiding-network"),
        ("--batch 0", "1..=65536"),
        ("--threads 5000", "0..=1024"),
        ("--solver heun3", "adams2"),
        ("--dtype f64", "bf16"),
        ("--rng numpy", "torch"),
        ("--seed -1", "--seed"),
        ("--share uniform:0", "uniform:R"),
        ("--share ratio:1", "ratio:X"),
        ("--size 64", "256 or 512"),
        ("--sed 1", "--seed"),
        ("stray", "stray"),
    ] {
        refuse(folder, &line(more), 2, &[expected]);
    }
}
