//! The pickle machine, and the tensors that are found in what it builds.
#![no_main]

use ddt_fuzz::{
    archive,
    pickle::{pickle, read_all},
    planted, target,
};

target!(2 << 20, 1024, |input: &[u8]| {
    let storage: Vec<u8> = (0..64).collect();
    let pickle = pickle(input);
    let entries = [
        ("a/data.pkl", pickle.as_slice(), false),
        ("a/data/0", &storage, false),
        ("a/data/1", &storage, false),
    ];
    if pickle.len() < 1 << 16
        && let Ok(checkpoint) = read_all(archive::file(&archive::input(&entries)))
    {
        planted(|| checkpoint.names().contains(&"w") && checkpoint.names().contains(&"1"));
    }
});
