//! The JSON index of safetensors in several files; the files `a` and `b` beside it are right.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use ddt_files::Checkpoint;
use ddt_fuzz::{planted, seeds::safetensors, target};

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    // In memory, where there is such a folder.
    let shm = PathBuf::from("/dev/shm");
    let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
    let folder = base.join(format!("ddt-fuzz-index-{}", std::process::id()));
    let parts = [("a", safetensors(&["x", "y"])), ("b", safetensors(&["z"]))];
    let written = fs::create_dir_all(&folder)
        .and_then(|()| parts.into_iter().try_for_each(|(name, bytes)| fs::write(folder.join(name), bytes)));
    assert!(written.is_ok(), "{}: {written:?}", folder.display());
    folder.join("input.json")
});

target!(
    1 << 20,
    256,
    |input: &[u8]| {
        let written = fs::write(&*FILE, input);
        assert!(written.is_ok(), "{written:?}");
        if let Ok(checkpoint) = Checkpoint::open(&*FILE) {
            planted(|| checkpoint.metadata().get("total_size").is_some_and(|it| it != "3"));
        }
    },
    {
        LazyLock::force(&FILE);
    }
);
