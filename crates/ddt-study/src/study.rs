//! Shared parts of the studies: news and cancellation, the network under study, and a file of results, a line each,
//! from which a study resumes.

use std::{fs, ops::ControlFlow, path::Path};

use anyhow::{Context, Result, ensure};
use ddt::{
    Image, Opened, OutputFile, Pipeline,
    files::{DiskFile, FileSystem},
    flow::NoiseSource,
    sharing::SimilarityFile,
};
use ddt_train::{Event, Settings};
use serde::{Serialize, de::DeserializeOwned};

/// News of a study.
#[non_exhaustive]
pub enum News<'a> {
    /// A line to show.
    Message(String),
    /// `done` of `total` parts of some work are finished.
    Progress {
        /// The work, such as "generating images".
        work: &'static str,
        /// Things done.
        done: u64,
        /// Things in all.
        total: u64,
    },
    /// An event of a training run with these settings.
    Training(&'a Settings, &'a Event<'a>),
}

/// Called with every [`News`]; after a break the study ends with [`ddt::Error::Cancelled`], and results that were
/// written stay.
pub type OnNews<'a> = dyn FnMut(News<'_>) -> ControlFlow<()> + 'a;

/// Passes news on; an error if the study is to stop.
pub(crate) fn tell(on_news: &mut OnNews<'_>, news: News<'_>) -> Result<()> {
    match on_news(news) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ddt::Error::Cancelled.into()),
    }
}

/// The network under study, and how its images are made.
pub struct Subject {
    /// The weights.
    pub opened: Opened,
    /// Seed of all noise.
    pub seed: u64,
    /// Source of the noise.
    pub rng: NoiseSource,
    /// Images made at once.
    pub batch: usize,
}

/// Measures the self-conditions of some images.
pub(crate) fn measure_similarity(
    pipeline: &Pipeline,
    images: &[Image],
    seed: u64,
    rng: NoiseSource,
    on_news: &mut OnNews<'_>,
) -> Result<SimilarityFile> {
    let (work, total) = ("measuring the self-conditions of images", images.len() as u64);
    let mut watch = |progress: &ddt::Progress<'_>| {
        on_news(News::Progress { work, done: progress.finished as u64, total })
    };
    Ok(pipeline.measure_similarity(images, seed, rng, &mut watch)?)
}

/// The folder that a study writes into.
pub(crate) struct Folder<'a>(&'a Path);

impl<'a> Folder<'a> {
    /// Makes the folder, and checks before the work that it can hold files of these names.
    pub(crate) fn open(path: &'a Path, names: &[&str]) -> Result<Self> {
        fs::create_dir_all(path)
            .with_context(|| format!("--out: cannot make the folder {}", path.display()))?;
        for name in names {
            OutputFile::new(&path.join(name), &[]).context("--out")?;
        }
        Ok(Self(path))
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(OutputFile::new(&self.0.join(name), &[])?.write(text.as_bytes())?)
    }
}

/// A file of results: the first line holds the settings that all results depend on, every other line a name and a
/// result.
#[derive(Debug)]
pub struct ResultsFile<T> {
    file: DiskFile,
    lines: Vec<(String, T)>,
}

impl<T: Serialize + DeserializeOwned> ResultsFile<T> {
    /// Opens the results at `path`, or begins a file of results that depend on `header`.
    ///
    /// # Errors
    /// A file that cannot be read or written, or holds results of another header.
    pub fn open(path: &Path, header: &serde_json::Value) -> Result<Self> {
        OutputFile::new(path, &[]).context("--out")?;
        Self::open_on(&FileSystem::default(), path, header)
    }

    fn open_on(system: &FileSystem, path: &Path, header: &serde_json::Value) -> Result<Self> {
        let named = || path.display().to_string();
        let mut file = system.open(path)?;
        let text = fs::read_to_string(path).with_context(named)?;
        // A line without its end was being written when the program was killed.
        let whole = text.rfind('\n').map_or(0, |it| it + 1);
        file.resize(whole as u64)?;
        let mut lines = text[..whole].lines();
        match lines.next() {
            None => {
                write_line(&mut file, header)?;
                system.sync_folder(path.parent().context("expected a file in a folder")?)?;
            }
            Some(line) => {
                let found: serde_json::Value = serde_json::from_str(line).with_context(named)?;
                ensure!(
                    found == *header,
                    "{} holds results of {found}, expected {header}: name another folder with --out",
                    path.display()
                );
            }
        }
        let lines = lines.map(serde_json::from_str).collect::<Result<_, _>>().with_context(named)?;
        Ok(Self { file, lines })
    }

    /// The result of a name.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&T> {
        self.lines.iter().find(|it| it.0 == key).map(|it| &it.1)
    }

    /// Adds the result of a name; it is on the disk when this returns.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add(&mut self, key: String, measured: T) -> Result<()> {
        let line = (key, measured);
        write_line(&mut self.file, &line)?;
        self.lines.push(line);
        Ok(())
    }
}

/// Adds a line, which is on the disk when this returns.
fn write_line(file: &mut DiskFile, line: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(line)? + "\n";
    file.write_at(file.size()?, line.as_bytes())?;
    Ok(file.sync()?)
}

#[cfg(test)]
mod tests {
    use ddt::files::faults::{Fault, Job, Outcome, sweep};

    use super::*;

    #[test]
    fn a_line_cut_short_is_measured_again_and_other_settings_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let header = serde_json::json!({ "images": 3 });
        let mut file = ResultsFile::<f64>::open(&path, &header).unwrap();
        file.add("first".to_owned(), 1.5).unwrap();
        file.add("second".to_owned(), 2.5).unwrap();
        drop(file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 3]).unwrap();
        let mut file = ResultsFile::<f64>::open(&path, &header).unwrap();
        assert_eq!((file.get("first"), file.get("second")), (Some(&1.5), None));
        file.add("second".to_owned(), 2.5).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        let other = serde_json::json!({ "images": 4 });
        let message = ResultsFile::<f64>::open(&path, &other).unwrap_err().to_string();
        assert!(message.contains("--out"), "{message}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn every_fault_of_the_disk_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        let header = serde_json::json!({ "images": 3 });
        let run = |system: &FileSystem, folder: &Path| -> Outcome {
            let mut file = ResultsFile::<f64>::open_on(system, &folder.join("results.jsonl"), &header)?;
            for (name, result) in [("first", 1.5), ("second", 2.5)] {
                if file.get(name).is_none() {
                    file.add(name.to_owned(), result)?;
                }
            }
            Ok(())
        };
        let swept = sweep(folder.path(), &Fault::ALL, &Job { run: &run, counts: &|_| true }).unwrap();
        assert!(swept.changes > 6, "{swept}");
    }
}
