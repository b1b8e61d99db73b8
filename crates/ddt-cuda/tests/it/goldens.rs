//! Programs against what PyTorch computed, by the reference executor.

use ddt_cuda::{Precision, Reference, parity};
use ddt_parity::goldens;

#[test]
fn programs_compute_what_the_goldens_say() {
    // bf16 keeps 8 bits: one rounding is 2^-9, and a dozen layers and steps add up.
    for (kind, outputs, f32, bf16) in [("ddt_forward", 2, 1e-5, 8e-2), ("ddt_sample", 7, 1e-4, 8e-2)] {
        for path in goldens(kind).unwrap() {
            for (precision, tolerance) in [(Precision::F32, f32), (Precision::Bf16, bf16)] {
                let compared = parity::fixture(&path, precision, &mut |programs, weights| {
                    Ok(Box::new(Reference::new(programs, weights)?))
                })
                .unwrap();
                assert_eq!(compared.len(), outputs);
                for output in compared {
                    assert!(output.relative_rms < tolerance, "{}, {output:?}", path.display());
                }
            }
        }
    }
}
