//! The processes of a soak: started, watched, killed, and their files compared.

use std::{
    fs::{self, OpenOptions},
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ddt_files::sha256_file;

use super::watch::Watch;

/// A soak: its time, its processes and where their files are.
pub(super) struct Soak {
    pub(super) program: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) until: Instant,
    pub(super) watch: Watch,
}

impl Soak {
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Waits for a random time between these seconds, at most to the end of the soak or of the process. Returns
    /// whether the process still runs.
    pub(super) fn wait(&self, seconds: std::ops::Range<u64>, process: &mut Process<'_>) -> Result<bool> {
        let random = RandomState::new().hash_one(0) % (seconds.end - seconds.start);
        let until = self.until.min(Instant::now() + Duration::from_secs(seconds.start + random));
        while Instant::now() < until && process.is_running()? {
            sleep(Duration::from_millis(100));
        }
        process.is_running()
    }

    /// Starts `ddt` in a folder of the soak; its messages go to a file beside it.
    pub(super) fn start(&self, role: &'static str, folder: &str, line: &str) -> Result<Process<'_>> {
        let place = self.folder.join(folder);
        fs::create_dir_all(&place)?;
        let log = self.folder.join(format!("{folder}.log"));
        let messages = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new(&self.program);
        command.args(line.split(' ')).current_dir(place).stdout(messages.try_clone()?).stderr(messages);
        let child = command.spawn().context("cannot start ddt")?;
        self.watch.add(role, child.id());
        Ok(Process { child, watch: &self.watch, log })
    }

    /// Runs `ddt` to its end.
    pub(super) fn finish(&self, role: &'static str, folder: &str, line: &str) -> Result<()> {
        self.start(role, folder, line)?.succeed()
    }

    /// Requires that files below two folders of the soak are equal.
    pub(super) fn compare(&self, one: &str, other: &str, files: &[String]) -> Result<()> {
        for file in files {
            let sum = |folder: &str| sha256_file(&self.folder.join(folder).join(file));
            ensure!(sum(one)? == sum(other)?, "{file} of {one} and {other} differ");
        }
        Ok(())
    }
}

/// A process of the program, which is watched, and killed when it is dropped.
pub(super) struct Process<'a> {
    child: Child,
    watch: &'a Watch,
    pub(super) log: PathBuf,
}

impl Process<'_> {
    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop, as Ctrl-C does, and waits.
    pub(super) fn interrupt(mut self) -> Result<()> {
        let asked = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status()?;
        ensure!(asked.success(), "cannot send a signal");
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end, which must be a success.
    pub(super) fn succeed(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "a process ended with {status}; its messages are in {}",
            self.log.display()
        );
        Ok(())
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        self.watch.remove(self.child.id());
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
