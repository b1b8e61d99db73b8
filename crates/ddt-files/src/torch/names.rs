//! Which of a pickle's values are the tensors, and their names.

use std::collections::BTreeMap;
use std::path::Path;

use crate::FileError;
use crate::error::check_limit;
use crate::limits::{MAX_NAME_BYTES, MAX_OBJECTS, MAX_TENSORS};
use crate::torch::pickle::{Id, Pickle, Value};
use crate::torch::rebuild::{self, Rebuilt};

/// The key under which Lightning puts the tensors.
const STATE_DICT: &str = "state_dict";

/// Dictionaries inside each other.
const MAX_DEPTH: usize = 16;

/// Finds the tensors and reads how they are stored.
///
/// Their names are the keys of nested dictionaries joined by dots; if the top level has a `state_dict`, only
/// those inside it. Numbers and text beside tensors are left out. A Python object beside tensors is an error,
/// and so is everything but tensors in a `state_dict`, and a tensor that cannot be read. Two dictionaries deep,
/// where optimisers keep their state, what cannot be read is left out.
pub(crate) fn tensors(path: &Path, pickle: &Pickle<'_>) -> Result<BTreeMap<String, Rebuilt>, FileError> {
    let mut found = Found { path, pickle, tensors: BTreeMap::new(), seen: 0 };
    let (name, top, strict) = match pickle.get(pickle.top, STATE_DICT) {
        Some(state) => (STATE_DICT, state, true),
        None => ("the top level", pickle.top, false),
    };
    let Value::Dict(items) = pickle.value(top) else {
        return Err(FileError::tensor(path, name, rebuild::refuse(pickle, top)));
    };
    found.add("", items, 0, strict)?;
    if found.tensors.is_empty() && !strict {
        let problem = "no tensors: expected a dictionary of tensors, or one under `state_dict`";
        return Err(FileError::format(path, problem));
    }
    Ok(found.tensors)
}

struct Found<'a> {
    path: &'a Path,
    pickle: &'a Pickle<'a>,
    tensors: BTreeMap<String, Rebuilt>,
    /// Entries looked at: dictionaries may be shared, and hold themselves.
    seen: usize,
}

impl Found<'_> {
    fn add(&mut self, prefix: &str, items: &[(Id, Id)], depth: usize, strict: bool) -> Result<(), FileError> {
        let pickle = self.pickle;
        let among_tensors = items.iter().any(|it| rebuild::is_tensor(pickle, it.1));
        for &(key, value) in items {
            self.seen += 1;
            check_limit(self.path, "the number of nested entries", MAX_OBJECTS as u64, self.seen as u64)?;
            let name = match pickle.value(key) {
                Value::Text(text) => format!("{prefix}{}", pickle.text(*text)),
                Value::Int(number) if !strict => format!("{prefix}{number}"),
                other if strict || among_tensors && depth < 2 => {
                    let problem = format!("expected a string as its name, got {}", other.kind());
                    return Err(FileError::tensor(self.path, "an entry", problem));
                }
                _ => continue,
            };
            match pickle.value(value) {
                Value::Dict(inner) if depth < MAX_DEPTH && name.len() < MAX_NAME_BYTES => {
                    self.add(&format!("{name}."), inner, depth + 1, strict)?;
                    continue;
                }
                Value::Global { .. } | Value::Call { .. } if among_tensors => {}
                _ if !strict => continue,
                _ => {}
            }
            let tensor = match self.read(&name, value) {
                Ok(tensor) => tensor,
                Err(problem) if strict || depth < 2 => {
                    return Err(FileError::tensor(self.path, &name, problem));
                }
                Err(_) => continue,
            };
            self.tensors.insert(name, tensor);
            check_limit(self.path, "the number of tensors", MAX_TENSORS as u64, self.tensors.len() as u64)?;
        }
        Ok(())
    }

    fn read(&self, name: &str, value: Id) -> Result<Rebuilt, String> {
        if name.len() > MAX_NAME_BYTES {
            return Err(format!("its name has {} bytes, the limit is {MAX_NAME_BYTES}", name.len()));
        }
        if self.tensors.contains_key(name) {
            return Err("the name occurs twice".to_string());
        }
        rebuild::tensor(self.pickle, value)
    }
}
