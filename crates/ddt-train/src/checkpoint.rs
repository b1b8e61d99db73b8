//! Checkpoint: a folder of tensor files, and `state.json` with their hashes.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor};
use ddt_files::{Checkpoint, FileSystem, LoadOptions, load_exact, read_file, sha256_file};
use serde::{Deserialize, Serialize};

use crate::{
    config::TrainConfig,
    error::TrainError,
    objective::Objective,
    optimiser::{Moments, ParameterState},
    trainer::{Counters, Part, Saved, Trainer},
};

/// Description of a checkpoint. Equal states have equal files.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    version: u32,
    /// Identity of the objective.
    objective: serde_json::Value,
    config: TrainConfig,
    counters: Counters,
    /// Identity of the training data.
    data: String,
    /// Bytes of the log that belong to this checkpoint.
    pub(crate) log_bytes: u64,
    /// SHA-256 of each of the other files.
    sha256: BTreeMap<String, String>,
}

/// The field that every version has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

const VERSION: u32 = 3;
const STATE: &str = "state.json";

/// Settings, and a hash per file, are far below this.
const MAX_STATE_BYTES: u64 = 16 << 20;

/// Writes a checkpoint into a new folder, one file in memory at a time, and `state.json` last.
pub(crate) fn write<O: Objective>(
    system: &FileSystem,
    folder: &Path,
    trainer: &Trainer<O>,
    log_bytes: u64,
) -> Result<State, TrainError> {
    system.create_folder(folder)?;
    let mut sha256 = BTreeMap::new();
    for part in parts(trainer.config()) {
        let name = file_name(part);
        let tensors = trainer.tensors(part)?;
        let hash = system.write_safetensors(&folder.join(&name), &tensors, &BTreeMap::new())?;
        sha256.insert(name, hash);
    }
    let state = State {
        version: VERSION,
        objective: trainer.objective().identity(),
        config: trainer.config().clone(),
        counters: trainer.counters(),
        data: trainer.data().to_owned(),
        log_bytes,
        sha256,
    };
    system.atomic_write(&folder.join(STATE), |file| Ok(serde_json::to_writer_pretty(file, &state)?))?;
    Ok(state)
}

/// Reads a checkpoint's state and compares the files with it: exactly those of its settings, each with its
/// hash.
pub(crate) fn verify(folder: &Path) -> Result<State, TrainError> {
    let path = folder.join(STATE);
    let json = read_file(&path, MAX_STATE_BYTES)?;
    let damaged = |problem: String| TrainError::Unusable { path: path.clone(), problem };
    let malformed = |error: serde_json::Error| damaged(error.to_string());
    let Version { version } = serde_json::from_slice(&json).map_err(malformed)?;
    if version != VERSION {
        return Err(damaged(format!("expected version {VERSION}, got version {version}")));
    }
    let state: State = serde_json::from_slice(&json).map_err(malformed)?;
    if !state.counters.are_possible(state.config.batch_size) {
        return Err(damaged(format!("no run can have {:?}", state.counters)));
    }
    // Only these names become paths, whatever the file states.
    let names: Vec<String> = parts(&state.config).map(file_name).collect();
    let listed = |name: &String| state.sha256.contains_key(name);
    if names.len() != state.sha256.len() || !names.iter().all(listed) {
        let got: Vec<&String> = state.sha256.keys().collect();
        return Err(damaged(format!("expected hashes of {names:?}, got {got:?}")));
    }
    for (name, expected) in &state.sha256 {
        let got = sha256_file(&folder.join(name))?;
        if got != *expected {
            return Err(damaged(format!("expected {name} with SHA-256 {expected}, got {got}")));
        }
    }
    Ok(state)
}

/// Reads a complete checkpoint of `trainer`'s run; changes nothing.
pub(crate) fn read<O: Objective>(folder: &Path, trainer: &Trainer<O>) -> Result<(State, Saved), TrainError> {
    let state = verify(folder)?;
    let other = |what| TrainError::OtherRun { path: folder.to_owned(), what };
    if state.objective != trainer.objective().identity() {
        return Err(other("network or loss"));
    }
    if !state.config.same_run(trainer.config()) {
        return Err(other("settings"));
    }
    if state.data != trainer.data() {
        return Err(other("training data"));
    }
    let parameters = trainer.parameters().iter();
    let expected: Vec<_> = parameters.map(|(name, var)| (name.to_owned(), var.dims().to_vec())).collect();
    // In the order of the parameters: both are sorted by name.
    let tensors = |part, device: &Device| -> Result<Vec<Tensor>, TrainError> {
        let file = Checkpoint::open(folder.join(file_name(part)))?;
        Ok(load_exact(&file, &expected, &LoadOptions::new(device))?.into_values().collect())
    };
    let values = |part| -> Result<std::vec::IntoIter<Vec<f32>>, TrainError> {
        let values = tensors(part, &Device::Cpu)?.into_iter().map(|it| it.flatten_all()?.to_vec1());
        Ok(values.collect::<candle_core::Result<Vec<_>>>()?.into_iter())
    };
    // Weights have 32 bits, whatever the network computes in.
    let weights = tensors(Part::Weights, trainer.device())?;
    if let Some(it) = weights.iter().find(|it| it.dtype() != DType::F32) {
        let (path, got) = (folder.join(file_name(Part::Weights)), it.dtype().as_str());
        return Err(TrainError::Unusable { path, problem: format!("expected f32, got {got}") });
    }
    let moments = values(Part::FirstMoments)?.zip(values(Part::SecondMoments)?);
    let averages = (0..state.config.ema_decays.len()).map(|i| values(Part::Average(i)));
    let mut averages = averages.collect::<Result<Vec<_>, _>>()?;
    let states = moments.map(|(first, second)| ParameterState {
        moments: Moments { first, second },
        averages: averages.iter_mut().filter_map(Iterator::next).collect(),
    });
    let states = states.collect();
    let saved = Saved { counters: state.counters, weights, states };
    Ok((state, saved))
}

fn parts(cfg: &TrainConfig) -> impl Iterator<Item = Part> + use<> {
    let averages = (0..cfg.ema_decays.len()).map(Part::Average);
    [Part::Weights, Part::FirstMoments, Part::SecondMoments].into_iter().chain(averages)
}

fn file_name(part: Part) -> String {
    match part {
        Part::Weights => "weights.safetensors".to_owned(),
        Part::FirstMoments => "first-moments.safetensors".to_owned(),
        Part::SecondMoments => "second-moments.safetensors".to_owned(),
        Part::Average(i) => format!("average-{i}.safetensors"),
    }
}
