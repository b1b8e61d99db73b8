//! Which of a pickle's values are the tensors, and their names.

use std::collections::BTreeMap;
use std::path::Path;

use crate::CheckpointError;
use crate::limits::{MAX_NAME_BYTES, MAX_TENSORS};
use crate::shape::clip;
use crate::torch::rebuild::{self, Rebuilt, Refused};
use crate::torch::value::{Id, Pickle, Value};

/// The key under which Lightning puts the tensors.
const STATE_DICT: &str = "state_dict";

/// Finds the dictionary of tensors and reads all of it; what lies beside it is passed over.
pub(crate) fn tensors(path: &Path, pickle: &Pickle) -> Result<BTreeMap<String, Rebuilt>, CheckpointError> {
    let mut found = Found { path, pickle, tensors: BTreeMap::new() };
    let Value::Dict(top) = pickle.value(pickle.top) else {
        return Err(found.refused("the top level", rebuild::refuse(pickle, pickle.top)));
    };
    if let Some(&(_, state)) = top.iter().rev().find(|(key, _)| pickle.str(*key) == Some(STATE_DICT)) {
        let Value::Dict(items) = pickle.value(state) else {
            return Err(found.refused(STATE_DICT, rebuild::refuse(pickle, state)));
        };
        found.add("", items)?;
        return Ok(found.tensors);
    }
    if holds_tensors(pickle, top) {
        found.add("", top)?;
        return Ok(found.tensors);
    }
    for &(key, group) in top {
        if let (Some(key), Value::Dict(items)) = (pickle.str(key), pickle.value(group))
            && key.len() <= MAX_NAME_BYTES
            && holds_tensors(pickle, items)
        {
            found.add(&format!("{key}."), items)?;
        }
    }
    if found.tensors.is_empty() {
        return Err(CheckpointError::NoTensors { path: path.to_path_buf() });
    }
    Ok(found.tensors)
}

fn holds_tensors(pickle: &Pickle, items: &[(Id, Id)]) -> bool {
    items.iter().any(|(_, value)| rebuild::is_tensor(pickle, *value))
}

struct Found<'a> {
    path: &'a Path,
    pickle: &'a Pickle,
    tensors: BTreeMap<String, Rebuilt>,
}

impl Found<'_> {
    fn add(&mut self, prefix: &str, items: &[(Id, Id)]) -> Result<(), CheckpointError> {
        for &(key, value) in items {
            let Some(key) = self.pickle.str(key) else {
                let kind = self.pickle.value(key).kind();
                let problem = format!("expected a string as its name, got {kind}");
                return Err(self.refused("an entry", Refused::Problem(problem)));
            };
            if key.len() > MAX_NAME_BYTES {
                let problem = format!("its name has {} bytes, the limit is {MAX_NAME_BYTES}", key.len());
                return Err(self.refused(&clip(key), Refused::Problem(problem)));
            }
            let name = format!("{prefix}{key}");
            let tensor = rebuild::tensor(self.pickle, value).map_err(|it| self.refused(&name, it))?;
            if self.tensors.len() == MAX_TENSORS {
                let (path, limit) = (self.path.to_path_buf(), MAX_TENSORS as u64);
                let what = "the number of tensors";
                return Err(CheckpointError::Limit { path, what, limit, got: limit + 1 });
            }
            if self.tensors.contains_key(&name) {
                return Err(self.refused(&name, Refused::Problem("the name occurs twice".to_string())));
            }
            self.tensors.insert(name, tensor);
        }
        Ok(())
    }

    fn refused(&self, name: &str, refused: Refused) -> CheckpointError {
        let (path, name) = (self.path.to_path_buf(), name.to_string());
        match refused {
            Refused::Global(global) => CheckpointError::ForbiddenGlobal { path, name, global },
            Refused::Dtype(dtype) => CheckpointError::UnsupportedDtype { path, name, dtype },
            Refused::Problem(problem) => CheckpointError::InvalidTensor { path, name, problem },
        }
    }
}
