//! Programs against what the published implementation computed, by the reference executor.

use std::{io::Write, path::Path};

use ddt_cuda::{Precision, Reference, parity};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures");

#[test]
fn programs_compute_what_the_fixtures_say() {
    let cases = [
        ("ddt_forward_a", 2, 1e-5),
        ("ddt_forward_wide", 2, 1e-5),
        ("ddt_forward_pixels", 2, 1e-5),
        ("ddt_sample", 5, 1e-4),
    ];
    for (name, outputs, tolerance) in cases {
        let path = Path::new(FIXTURES).join(format!("{name}.safetensors"));
        if !path.exists() {
            // Straight to stderr: the harness would capture a print of a test that passes.
            std::io::stderr()
                .write_all(format!("skipped: {} is not there\n", path.display()).as_bytes())
                .unwrap();
            continue;
        }
        // bf16 keeps 8 bits: one rounding is 2^-9, and a dozen layers and steps add up.
        for (precision, tolerance) in [(Precision::F32, tolerance), (Precision::Bf16, 8e-2)] {
            let compared = parity::fixture(&path, precision, &mut |programs, weights| {
                Ok(Box::new(Reference::new(programs, weights)?))
            })
            .unwrap();
            assert_eq!(compared.len(), outputs);
            for output in compared {
                assert!(output.relative_rms < tolerance, "{name}, {precision:?}: {output:?}");
            }
        }
    }
}
