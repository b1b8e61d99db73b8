//! The pickle machine, and the tensors that are found in what it builds, which have one storage of 64 bytes.
#![no_main]

use ddt_fuzz::{
    pickle::{pickle, read_all},
    planted,
    seeds::legacy,
    target,
};

target!(1 << 20, 1024, |input: &[u8]| {
    if let Ok(checkpoint) = read_all(legacy(&pickle(input))) {
        planted(|| checkpoint.names().len() == 2);
    }
});
