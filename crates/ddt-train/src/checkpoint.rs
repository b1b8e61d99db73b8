//! Checkpoint: a folder of tensor files, and `state.json` with their hashes.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device};
use ddt_dist::Group;
use ddt_files::{Checkpoint, FileSystem, LoadOptions, load_exact, read_file, sha256_file};
use serde::{Deserialize, Serialize};

use crate::{
    config::TrainConfig,
    error::TrainError,
    objective::Objective,
    optimiser::{Moments, ParameterState},
    ranks::{agree_on, agreed},
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

/// Writes a checkpoint into a new folder, one file in memory at a time, and `state.json` last. Of several ranks, each
/// writes a file while the others write theirs; `log_bytes` are those of rank 0.
pub(crate) fn write<O: Objective>(
    system: &FileSystem,
    folder: &Path,
    trainer: &Trainer<O>,
    log_bytes: u64,
) -> Result<State, TrainError> {
    let group = trainer.group().as_ref();
    let leads = group.rank() == 0;
    let created = if leads { system.create_folder(folder) } else { Ok(()) };
    agreed(group, created.map_err(Into::into))?;
    let mut sha256 = BTreeMap::new();
    let all: Vec<Part> = parts(trainer.config()).collect();
    for parts in all.chunks(group.size()) {
        let mut own = None;
        for (writer, part) in parts.iter().enumerate() {
            let tensors = trainer.tensors(*part)?;
            if writer == group.rank() {
                own = Some((folder.join(file_name(*part)), tensors));
            }
        }
        let hash = own.map(|(path, tensors)| system.write_safetensors(&path, &tensors, &BTreeMap::new()));
        let hash = hash.transpose().map_err(TrainError::from);
        let say = |it: &Option<String>| it.as_ref().map_or(Vec::new(), |it| it.as_bytes().to_vec());
        let (_, hashes) = agree_on(group, hash, say)?;
        let hashes = hashes.into_iter().map(|it| String::from_utf8_lossy(&it).into_owned());
        sha256.extend(parts.iter().map(|it| file_name(*it)).zip(hashes));
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
    let write =
        || system.atomic_write(&folder.join(STATE), |file| Ok(serde_json::to_writer_pretty(file, &state)?));
    agreed(group, if leads { write() } else { Ok(()) }.map_err(Into::into))?;
    Ok(state)
}

/// Reads a checkpoint's state and compares the files with it: exactly those of its settings, each with its
/// hash. Several ranks share the files, and return the same.
pub(crate) fn verify(group: &dyn Group, folder: &Path) -> Result<State, TrainError> {
    agreed(group, verify_own(group, folder))
}

fn verify_own(group: &dyn Group, folder: &Path) -> Result<State, TrainError> {
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
    for (name, expected) in state.sha256.iter().skip(group.rank()).step_by(group.size()) {
        let got = sha256_file(&folder.join(name))?;
        if got != *expected {
            return Err(damaged(format!("expected {name} with SHA-256 {expected}, got {got}")));
        }
    }
    Ok(state)
}

/// Reads a complete checkpoint of `trainer`'s run; changes nothing. Several ranks return the same error, or each its
/// own parameters' state.
pub(crate) fn read<O: Objective>(folder: &Path, trainer: &Trainer<O>) -> Result<(State, Saved), TrainError> {
    let group = trainer.group().as_ref();
    let state = verify(group, folder)?;
    let other = |what| TrainError::OtherRun { path: folder.to_owned(), what };
    // Of several ranks each finds the same: none has to tell the others.
    if state.objective != trainer.objective().identity() {
        return Err(other("network or loss"));
    }
    if !state.config.same_run(trainer.config()) {
        return Err(other("settings"));
    }
    if state.data != trainer.data() {
        return Err(other("training data"));
    }
    let saved = agreed(group, read_own(folder, trainer, &state))?;
    Ok((state, saved))
}

fn read_own<O: Objective>(folder: &Path, trainer: &Trainer<O>, state: &State) -> Result<Saved, TrainError> {
    let parameters = trainer.parameters().iter();
    let expected: Vec<_> = parameters.map(|(name, var)| (name.to_owned(), var.dims().to_vec())).collect();
    // In the order of the parameters: both are sorted by name.
    let weights = Checkpoint::open(folder.join(file_name(Part::Weights)))?;
    let weights = load_exact(&weights, &expected, &LoadOptions::new(trainer.device()))?;
    // Weights have 32 bits, whatever the network computes in.
    if let Some(it) = weights.values().find(|it| it.dtype() != DType::F32) {
        let (path, got) = (folder.join(file_name(Part::Weights)), it.dtype().as_str());
        return Err(TrainError::Unusable { path, problem: format!("expected f32, got {got}") });
    }
    let own = &expected[trainer.own_parameters()];
    let is_others = |name: &str| expected.iter().any(|it| it.0 == name);
    let values = |part| -> Result<std::vec::IntoIter<Vec<f32>>, TrainError> {
        let file = Checkpoint::open(folder.join(file_name(part)))?;
        let tensors = load_exact(&file, own, &LoadOptions::new(&Device::Cpu).allow_extra(&is_others))?;
        let values = tensors.into_values().map(|it| it.flatten_all()?.to_vec1());
        Ok(values.collect::<candle_core::Result<Vec<_>>>()?.into_iter())
    };
    let moments = values(Part::FirstMoments)?.zip(values(Part::SecondMoments)?);
    let averages = (0..state.config.ema_decays.len()).map(|i| values(Part::Average(i)));
    let mut averages = averages.collect::<Result<Vec<_>, _>>()?;
    let states = moments.map(|(first, second)| ParameterState {
        moments: Moments { first, second },
        averages: averages.iter_mut().filter_map(Iterator::next).collect(),
    });
    let states = states.collect();
    Ok(Saved { counters: state.counters, weights: weights.into_values().collect(), states })
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
