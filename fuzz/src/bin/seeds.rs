//! Writes the seeds of a target: `seeds TARGET FOLDER`.

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [target, folder] = words.as_slice() else { return Err("expected: seeds TARGET FOLDER".into()) };
    let seeds = ddt_fuzz::seeds::seeds(target)?.ok_or_else(|| format!("there is no target {target}"))?;
    fs::create_dir_all(folder)?;
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(Path::new(folder).join(format!("seed-{number}")), seed)?;
    }
    Ok(())
}
