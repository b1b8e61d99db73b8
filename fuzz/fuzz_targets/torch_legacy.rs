//! PyTorch's older stream of pickles and storages, after its magic number.
#![no_main]

use ddt_fuzz::{pickle::read_all, planted, seeds::MAGIC, target};

target!(4 << 20, 2048, |input: &[u8]| {
    if let Ok(checkpoint) = read_all([MAGIC, input].concat()) {
        let is_flat = |name: &&str| checkpoint.info(name).is_some_and(|it| it.shape == [3]);
        planted(|| checkpoint.names().iter().any(is_flat));
    }
});
