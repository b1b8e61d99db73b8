//! Safetensors: `0 | a whole file`, or `1 | part header | data`, whose length is right.
#![no_main]

use ddt_fuzz::{parts::Parts, pickle::read_all, planted, target};

target!(1 << 20, 256, |input: &[u8]| {
    let mut parts = Parts(input);
    let file = match parts.byte() {
        0 => parts.0.to_vec(),
        _ => {
            let header = parts.part();
            [&(header.len() as u64).to_le_bytes()[..], header, parts.0].concat()
        }
    };
    if let Ok(checkpoint) = read_all(file) {
        planted(|| checkpoint.metadata().get("k").is_some_and(|it| it != "v"));
    }
});
