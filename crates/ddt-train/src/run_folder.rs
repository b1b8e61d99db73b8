//! A run on disk: its checkpoints and its log, such that a kill loses nothing that was saved.
//!
//! ```text
//! run/
//!   run.lock                         held while a process trains
//!   log.jsonl                        one line a logged step, cut back to the checkpoint on resume
//!   checkpoints/step-0000000200/     weights, moments, averages, state.json
//! ```
//!
//! A checkpoint is written beside under another name, synced, renamed, read again, and only then are
//! older ones removed. `state.json` is written last and holds the hashes of the other files.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use candle_core::{DType, Tensor};
use ddt_checkpoint::{Checkpoint, sha256_file, write_safetensors};
use ddt_model::DdtConfig;
use serde::{Deserialize, Serialize};

use crate::{
    adamw::Moments,
    config::TrainConfig,
    error::TrainError,
    trainer::{Counters, ParameterState, Trainer},
};

/// A run's folder, locked for this process.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    log: File,
    _lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    sizes: DdtConfig,
    config: TrainConfig,
    counters: Counters,
    /// Bytes of the log that belong to this checkpoint.
    log_bytes: u64,
    /// SHA-256 of the checkpoint's other files.
    sha256: BTreeMap<String, String>,
}

const VERSION: u32 = 1;
const STATE: &str = "state.json";
const KEEP: usize = 2;

impl RunFolder {
    /// Opens or makes the folder, and locks it.
    ///
    /// # Errors
    /// [`TrainError::Locked`] when another process holds it; [`TrainError::Io`] when it cannot be
    /// written.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let checkpoints = path.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(io("create", &checkpoints))?;
        let lock_path = path.join("run.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TrainError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io("lock", &lock_path)(source)),
        }
        let log_path = path.join("log.jsonl");
        let log = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&log_path)
            .map_err(io("open", &log_path))?;
        Ok(Self { path: path.to_owned(), log, _lock: lock })
    }

    /// Brings `trainer` to the newest whole checkpoint, and the log with it; `false` when there is none.
    ///
    /// # Errors
    /// [`TrainError::OtherRun`] when the checkpoint's settings or sizes are not the trainer's;
    /// [`TrainError::NoValidCheckpoint`] when there are checkpoints, but none is whole.
    pub fn resume(&mut self, trainer: &mut Trainer) -> Result<bool, TrainError> {
        let mut newest_reason = None;
        for folder in self.checkpoints()?.iter().rev() {
            match read(folder, trainer) {
                Ok(state) => {
                    self.cut_log(state.log_bytes)?;
                    return Ok(true);
                }
                Err(error @ TrainError::OtherRun { .. }) => return Err(error),
                Err(error) => newest_reason = newest_reason.or(Some(error.to_string())),
            }
        }
        match newest_reason {
            None => self.cut_log(0).map(|()| false),
            Some(reason) => {
                Err(TrainError::NoValidCheckpoint { path: self.path.join("checkpoints"), reason })
            }
        }
    }

    /// Appends one line of JSON to the log.
    pub fn log(&mut self, record: &serde_json::Value) -> Result<(), TrainError> {
        let path = self.path.join("log.jsonl");
        writeln!(self.log, "{record}").map_err(io("write", &path))
    }

    /// Saves the trainer, verifies what was written, and removes all but the newest two checkpoints.
    pub fn save(&mut self, trainer: &Trainer) -> Result<PathBuf, TrainError> {
        let log_path = self.path.join("log.jsonl");
        self.log.sync_all().map_err(io("sync", &log_path))?;
        let log_bytes = self.log.stream_position().map_err(io("read", &log_path))?;
        let checkpoints = self.path.join("checkpoints");
        let name = format!("step-{:010}", trainer.steps());
        let (partial, folder) = (checkpoints.join(format!(".partial-{name}")), checkpoints.join(&name));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(io("remove", &partial))?;
        }
        fs::create_dir(&partial).map_err(io("create", &partial))?;
        write(&partial, trainer, log_bytes)?;
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(io("remove", &folder))?;
        }
        fs::rename(&partial, &folder).map_err(io("rename", &partial))?;
        sync_folder(&checkpoints)?;
        verify(&folder)?;
        let saved = self.checkpoints()?;
        for old in &saved[..saved.len().saturating_sub(KEEP)] {
            fs::remove_dir_all(old).map_err(io("remove", old))?;
        }
        Ok(folder)
    }

    /// Complete-looking checkpoints, oldest first; leftovers of a killed save are not among them.
    fn checkpoints(&self) -> Result<Vec<PathBuf>, TrainError> {
        let folder = self.path.join("checkpoints");
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io("read", &folder))? {
            let path = entry.map_err(io("read", &folder))?.path();
            if path.file_name().is_some_and(|it| it.to_string_lossy().starts_with("step-")) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    fn cut_log(&mut self, bytes: u64) -> Result<(), TrainError> {
        let path = self.path.join("log.jsonl");
        self.log.set_len(bytes).map_err(io("cut", &path))?;
        self.log.seek(SeekFrom::Start(bytes)).map(|_| ()).map_err(io("read", &path))
    }
}

fn write(folder: &Path, trainer: &Trainer, log_bytes: u64) -> Result<(), TrainError> {
    let mut files = vec![
        ("weights.safetensors".to_owned(), weights(trainer)),
        ("first-moments.safetensors".to_owned(), trainer.tensors(|it| &it.moments.first)?),
        ("second-moments.safetensors".to_owned(), trainer.tensors(|it| &it.moments.second)?),
    ];
    for i in 0..trainer.config().ema_decays.len() {
        files.push((average_file(i), trainer.tensors(|it| &it.averages[i])?));
    }
    let mut sha256 = BTreeMap::new();
    for (name, tensors) in files {
        let hash = write_safetensors(&folder.join(&name), &tensors, &BTreeMap::new())?;
        sha256.insert(name, hash);
    }
    let state = State {
        version: VERSION,
        sizes: trainer.network().config().clone(),
        config: trainer.config().clone(),
        counters: trainer.counters(),
        log_bytes,
        sha256,
    };
    let path = folder.join(STATE);
    let json = serde_json::to_vec_pretty(&state).map_err(|it| io("write", &path)(it.into()))?;
    let mut file = File::create(&path).map_err(io("create", &path))?;
    file.write_all(&json).and_then(|()| file.sync_all()).map_err(io("write", &path))?;
    sync_folder(folder)
}

fn read(folder: &Path, trainer: &mut Trainer) -> Result<State, TrainError> {
    let state = verify(folder)?;
    let other = |what| TrainError::OtherRun { path: folder.to_owned(), what };
    if state.sizes != *trainer.network().config() {
        return Err(other("network sizes"));
    }
    if !state.config.same_run(trainer.config()) {
        return Err(other("settings"));
    }
    let open = |name: &str| Checkpoint::open(folder.join(name));
    let (first, second) = (open("first-moments.safetensors")?, open("second-moments.safetensors")?);
    let averages = (0..state.config.ema_decays.len()).map(|i| open(&average_file(i)));
    let averages = averages.collect::<Result<Vec<_>, _>>()?;
    let weights = open("weights.safetensors")?;
    let mut states = Vec::new();
    for (name, var) in trainer.parameters().iter() {
        let values = |file: &Checkpoint| -> Result<Vec<f32>, TrainError> {
            Ok(file
                .tensor(name, &candle_core::Device::Cpu)?
                .to_dtype(DType::F32)?
                .flatten_all()?
                .to_vec1()?)
        };
        var.set(&Tensor::from_vec(values(&weights)?, var.shape(), var.device())?)?;
        states.push(ParameterState {
            moments: Moments { first: values(&first)?, second: values(&second)? },
            averages: averages.iter().map(values).collect::<Result<_, _>>()?,
        });
    }
    trainer.restore(state.counters, states);
    Ok(state)
}

/// Reads a checkpoint's state and compares every file with the hash in it.
fn verify(folder: &Path) -> Result<State, TrainError> {
    let path = folder.join(STATE);
    let json = fs::read(&path).map_err(io("read", &path))?;
    let malformed = |reason: String| {
        io("understand", &path)(std::io::Error::new(std::io::ErrorKind::InvalidData, reason))
    };
    let state: State = serde_json::from_slice(&json).map_err(|it| malformed(it.to_string()))?;
    if state.version != VERSION {
        return Err(malformed(format!("version {}, expected {VERSION}", state.version)));
    }
    for (name, expected) in &state.sha256 {
        let got = sha256_file(&folder.join(name))?;
        if got != *expected {
            return Err(malformed(format!("{name} has SHA-256 {got}, expected {expected}")));
        }
    }
    Ok(state)
}

fn weights(trainer: &Trainer) -> BTreeMap<String, Tensor> {
    trainer.parameters().iter().map(|(name, var)| (name.to_owned(), var.as_tensor().clone())).collect()
}

fn average_file(i: usize) -> String {
    format!("average-{i}.safetensors")
}

fn sync_folder(folder: &Path) -> Result<(), TrainError> {
    File::open(folder).and_then(|it| it.sync_all()).map_err(io("sync", folder))
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> TrainError + 'a {
    move |source| TrainError::Io { action, path: path.to_owned(), source }
}
