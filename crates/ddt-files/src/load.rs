//! All-or-error loading: the tensors a network expects, or one message about everything that does not fit.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};

use crate::{FileError, Misshapen, Renamed, TensorInfo, TensorSource};

/// How [`load_exact`] treats what it finds.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    device: &'a Device,
    dtype: Option<DType>,
    dtype_of: Option<&'a dyn Fn(&str) -> DType>,
    allow_extra: Option<&'a dyn Fn(&str) -> bool>,
}

impl<'a> LoadOptions<'a> {
    /// Tensors go to `device` in their stored types, and every unexpected name is an error.
    pub fn new(device: &'a Device) -> Self {
        Self { device, dtype: None, dtype_of: None, allow_extra: None }
    }

    /// Converts every tensor to `dtype`, as [`Tensor::to_dtype`] does.
    pub fn cast(self, dtype: DType) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// Converts every tensor to the dtype of its name.
    pub fn cast_by_name(self, dtype_of: &'a dyn Fn(&str) -> DType) -> Self {
        Self { dtype_of: Some(dtype_of), ..self }
    }

    /// Accepts unexpected names for which `allowed` is true.
    pub fn allow_extra(self, allowed: &'a dyn Fn(&str) -> bool) -> Self {
        Self { allow_extra: Some(allowed), ..self }
    }
}

/// Reads exactly the `expected` names and shapes from `source`.
///
/// All names and shapes are compared before the first tensor is read, so memory is bounded by what is
/// expected, not by what the file claims. Conversion happens on the CPU, one tensor at a time.
///
/// Names that all have the same prefix before them, such as `module.` (distributed training), `_orig_mod.`
/// (compiled modules) or `denoiser.`, are found under it. Where several prefixes would do (`model.` and `ema.`),
/// the error names them.
///
/// # Errors
/// [`FileError::Mismatch`] with every missing, unexpected and misshapen name; else what reading or
/// converting a tensor returned.
pub fn load_exact<S: TensorSource + ?Sized>(
    source: &S,
    expected: &[(String, Vec<usize>)],
    options: &LoadOptions<'_>,
) -> Result<BTreeMap<String, Tensor>, FileError> {
    let prefix = prefix_of(source, expected);
    let source = &Renamed::without_prefix(source, &prefix);
    let mut comparison = Comparison::default();
    for (name, shape) in expected {
        comparison.ask(source, name, shape, <[usize]>::eq);
    }
    comparison.finish(source, |name| options.allow_extra.is_some_and(|allowed| allowed(name)))?;
    let mut tensors = BTreeMap::new();
    for (name, _) in expected {
        let tensor = source.tensor(name, &Device::Cpu)?;
        let dtype = options.dtype_of.map(|it| it(name)).or(options.dtype);
        let converted = tensor
            .to_dtype(dtype.unwrap_or(tensor.dtype()))
            .and_then(|it| it.to_device(options.device))
            .map_err(|error| FileError::tensor(source.path(), name, error.to_string()))?;
        tensors.insert(name.clone(), converted);
    }
    Ok(tensors)
}

/// Comparison of a source with the tensors that a network asks for, one by one.
#[derive(Debug, Default)]
pub struct Comparison {
    asked: BTreeSet<String>,
    missing: Vec<String>,
    misshapen: Vec<Misshapen>,
}

impl Comparison {
    /// Notes what the network asks for; true if the source has it, in a shape that `fits` the expected one.
    pub fn ask<S: TensorSource + ?Sized>(
        &mut self,
        source: &S,
        name: &str,
        expected: &[usize],
        fits: impl Fn(&[usize], &[usize]) -> bool,
    ) -> bool {
        self.asked.insert(name.to_owned());
        match source.info(name) {
            Some(info) if fits(&info.shape, expected) => return true,
            Some(TensorInfo { shape: got, .. }) => {
                let expected = expected.to_vec();
                self.misshapen.push(Misshapen { name: name.to_owned(), expected, got });
            }
            None => self.missing.push(name.to_owned()),
        }
        false
    }

    /// All or error; names that were not asked for are unexpected unless they are `allowed`.
    ///
    /// # Errors
    /// [`FileError::Mismatch`] with every missing, unexpected and misshapen name, and the remedy where the source
    /// shows one.
    pub fn finish<S: TensorSource + ?Sized>(
        self,
        source: &S,
        allowed: impl Fn(&str) -> bool,
    ) -> Result<(), FileError> {
        let Self { asked, mut missing, mut misshapen } = self;
        let extra = source.names().into_iter().filter(|name| !asked.contains(*name) && !allowed(name));
        let mut unexpected: Vec<String> = extra.map(str::to_owned).collect();
        if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
            return Ok(());
        }
        missing.sort();
        unexpected.sort();
        misshapen.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<&str> = missing.iter().map(String::as_str).collect();
        let remedy = remedy(source, &names).map(String::into_boxed_str);
        Err(FileError::Mismatch { path: source.path().to_path_buf(), missing, unexpected, misshapen, remedy })
    }
}

/// The only prefix under which all expected names are; none if they are there without one.
fn prefix_of<S: TensorSource + ?Sized>(source: &S, expected: &[(String, Vec<usize>)]) -> String {
    let names: Vec<&str> = expected.iter().map(|it| it.0.as_str()).collect();
    match prefixes(source, &names).as_slice() {
        [only] => only.clone(),
        _ => String::new(),
    }
}

/// All prefixes, each ending with a dot or empty, under which all names are; the empty one if it is among them.
fn prefixes<S: TensorSource + ?Sized>(source: &S, names: &[&str]) -> Vec<String> {
    // The longest name is that of the fewest tensors.
    let Some(longest) = names.iter().max_by_key(|it| it.len()) else { return Vec::new() };
    let holds_all =
        |prefix: &&str| names.iter().all(|name| source.info(&format!("{prefix}{name}")).is_some());
    let stored = source.names().into_iter().filter_map(|it| it.strip_suffix(longest));
    let candidates = stored.filter(|it| it.is_empty() || it.ends_with('.')).filter(holds_all);
    let mut found: Vec<String> = candidates.map(str::to_owned).collect();
    if found.iter().any(String::is_empty) {
        found = vec![String::new()];
    }
    found
}

/// How to find the missing names, if they are all under a prefix.
fn remedy<S: TensorSource + ?Sized>(source: &S, missing: &[&str]) -> Option<String> {
    let prefixes = prefixes(source, missing).into_iter().map(|it| format!("`{it}`"));
    let prefixes: Vec<String> = prefixes.take(SHOWN_PREFIXES).collect();
    match prefixes.as_slice() {
        [] => None,
        [only] => Some(format!("the missing names are there after {only}: use `with_prefix`")),
        several => {
            let several = several.join(" and ");
            Some(format!("the missing names are there after {several}: choose one with `with_prefix`"))
        }
    }
}

/// Prefixes that a message names at most.
const SHOWN_PREFIXES: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use crate::checkpoint::tests::in_memory;

    fn checkpoint() -> Checkpoint {
        let data = [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 7, 8];
        in_memory(&[("a", "F32", "[2]"), ("b", "U8", "[]"), ("z", "U8", "[1]")], &data)
    }

    fn expected(list: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        list.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    }

    #[test]
    fn loads_and_converts() {
        let expected = expected(&[("b", &[]), ("a", &[2])]);
        let options = LoadOptions::new(&Device::Cpu).allow_extra(&|name| name == "z");
        let stored = load_exact(&checkpoint(), &expected, &options).unwrap();
        assert_eq!(stored.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(stored["b"].dtype(), DType::U8);
        let cast = load_exact(&checkpoint(), &expected, &options.cast(DType::F64)).unwrap();
        assert_eq!(cast["a"].to_vec1::<f64>().unwrap(), [1.0, -2.0]);
        assert_eq!(cast["b"].to_scalar::<f64>().unwrap(), 7.0);
    }

    #[test]
    fn one_error_lists_everything() {
        let expected = expected(&[("y", &[1]), ("a", &[3]), ("c", &[1])]);
        let error = load_exact(&checkpoint(), &expected, &LoadOptions::new(&Device::Cpu)).unwrap_err();
        let FileError::Mismatch { missing, unexpected, misshapen, .. } = error else { panic!("{error}") };
        assert_eq!(missing, ["c", "y"]);
        assert_eq!(unexpected, ["b", "z"]);
        assert_eq!(misshapen, [Misshapen { name: "a".to_string(), expected: vec![3], got: vec![2] }]);
    }

    /// A checkpoint of bytes of these names, which count from 1.
    fn named(names: &[&str]) -> Checkpoint {
        let tensors: Vec<_> = names.iter().map(|it| (*it, "U8", "[1]")).collect();
        in_memory(&tensors, &(1..=names.len() as u8).collect::<Vec<_>>())
    }

    #[test]
    fn a_common_prefix_is_found() {
        let expected = expected(&[("w", &[1]), ("block.w", &[1])]);
        for prefix in ["module.", "_orig_mod.", "module._orig_mod.", "denoiser.", "model."] {
            let names = [format!("{prefix}block.w"), format!("{prefix}w"), "optimizer.w".to_string()];
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let loaded = load_exact(&named(&names), &expected, &LoadOptions::new(&Device::Cpu)).unwrap();
            let value = |name: &str| loaded[name].to_vec1::<u8>().unwrap();
            assert_eq!((value("block.w"), value("w")), (vec![1], vec![2]), "{prefix}");
        }
        // The names without a prefix come first; what else is there is unexpected.
        let both = named(&["w", "block.w", "ema.w", "ema.block.w"]);
        let error = load_exact(&both, &expected, &LoadOptions::new(&Device::Cpu)).unwrap_err();
        assert!(error.to_string().contains("2 unexpected: ema.block.w, ema.w"), "{error}");
        // What is too much under the prefix is unexpected as well.
        let more = named(&["module.w", "module.block.w", "module.x"]);
        let error = load_exact(&more, &expected, &LoadOptions::new(&Device::Cpu)).unwrap_err();
        assert!(error.to_string().ends_with("does not fit: 1 unexpected: x"), "{error}");
    }

    #[test]
    fn several_prefixes_are_named() {
        let expected = expected(&[("w", &[1]), ("block.w", &[1])]);
        let pair = named(&["ema.w", "ema.block.w", "model.w", "model.block.w", "other.w"]);
        let error = load_exact(&pair, &expected, &LoadOptions::new(&Device::Cpu)).unwrap_err();
        let remedy = "the missing names are there after `ema.` and `model.`: choose one with `with_prefix`";
        assert!(error.to_string().ends_with(remedy), "{error}");
        let options = LoadOptions::new(&Device::Cpu);
        assert_eq!(load_exact(&pair.with_prefix("ema."), &expected, &options).unwrap().len(), 2);
        // A loader that found some of its names already.
        let error = |missing: &str| {
            let mut comparison = Comparison::default();
            assert!(!comparison.ask(&pair, missing, &[1], <[usize]>::eq));
            comparison.finish(&pair, |_| true).unwrap_err().to_string()
        };
        assert!(error("block.w").ends_with(remedy), "{}", error("block.w"));
        assert!(error("x").ends_with("1 missing: x"), "{}", error("x"));
    }
}
