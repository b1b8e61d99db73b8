//! The same archive again and again: one process fills it, another one comes and is killed.

use std::fs;

use anyhow::{Result, ensure};

use super::processes::Soak;

const JOB: &str = "dataset --weights demo --steps 10 --count 600 --batch 20 --threads 1 --out data.npz";
const STAYS: &str = "dataset, stays";
const KILLED: &str = "dataset, comes and is killed";

pub(super) fn run(soak: &Soak) -> Result<Vec<String>> {
    soak.finish(STAYS, "archive", JOB)?;
    let files = ["data.npz".to_owned(), "data.npz.json".to_owned()];
    let (mut rounds, mut kills) = (0, 0);
    while !soak.is_over() {
        let rank = |rank: u8| format!("{JOB} --rank {rank} --world-size 2");
        let mut stays = soak.start(STAYS, "archive-killed", &rank(0))?;
        while stays.is_running()? && !soak.is_over() {
            let mut other = soak.start(KILLED, "archive-killed", &rank(1))?;
            if soak.wait(5..40, &mut other)? {
                other.kill()?;
                kills += 1;
            } else {
                // It ends only when the archive is complete.
                other.succeed()?;
                break;
            }
            soak.wait(0..10, &mut stays)?;
        }
        if soak.is_over() {
            break;
        }
        stays.succeed()?;
        soak.compare("archive", "archive-killed", &files)?;
        let folder = soak.folder.join("archive-killed");
        let left = fs::read_dir(&folder)?.count();
        ensure!(left == files.len(), "{left} files are left in {}", folder.display());
        fs::remove_dir_all(folder)?;
        rounds += 1;
    }
    ensure!(rounds > 0, "no archive was complete before the end");
    Ok(vec![format!(
        "dataset: {rounds} archives of 600 images, {kills} kills; each has the bytes of the undisturbed one"
    )])
}
