//! PyTorch's older stream of pickles and storages, after its magic number.
#![no_main]

use ddt_fuzz::{pickle::read_all, planted, seeds::MAGIC, target};

target!(4 << 20, 2048, |input: &[u8]| {
    if let Ok(checkpoint) = read_all([MAGIC, input].concat()) {
        planted(|| checkpoint.names().len() == 2 && checkpoint.names() != ["a", "b"]);
    }
});
