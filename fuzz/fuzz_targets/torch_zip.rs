//! PyTorch's zip files: the directory, `data.pkl`, `byteorder` and storages of an archive.
#![no_main]

use ddt_fuzz::{archive, pickle::read_all, planted, target};

target!(4 << 20, 2048, |input: &[u8]| {
    if let Ok(checkpoint) = read_all(archive::file(input)) {
        planted(|| input[0] == 1 && checkpoint.names() != ["a", "b"]);
    }
});
