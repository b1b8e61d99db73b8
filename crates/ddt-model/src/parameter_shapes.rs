//! What parameters a network has, without making one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

/// Names and shapes of the parameters that `build` asks its builder for, sorted by name.
pub(crate) fn parameter_shapes<T>(
    build: impl FnOnce(VarBuilder) -> Result<T>,
) -> Result<BTreeMap<String, Vec<usize>>> {
    let shapes = Arc::new(Mutex::new(BTreeMap::new()));
    let backend = Recorder { shapes: shapes.clone() };
    build(VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu))?;
    let shapes = shapes.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(shapes.clone())
}

/// Answers every request with a scalar and remembers it: layers look at parameters only in `forward`.
struct Recorder {
    shapes: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.insert(name.to_owned(), shape.into_dims());
        Tensor::zeros((), dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("expected a shape with the request for {name}")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::DdtConfig, ddt::Ddt, improved_sit::ImprovedSit};

    #[test]
    fn presets_have_the_published_number_of_parameters() {
        let count = |shapes: BTreeMap<String, Vec<usize>>| -> usize {
            shapes.values().map(|it| it.iter().product::<usize>()).sum()
        };
        let cases = [
            ("ddt-b2", 130_262_800, 130_249_744),
            ("ddt-l2", 457_648_144, 457_630_736),
            ("ddt-xl2", 674_646_352, 674_626_768),
        ];
        for (name, ddt, improved_sit) in cases {
            let cfg = DdtConfig::preset(name).unwrap();
            assert_eq!(count(parameter_shapes(|vb| Ddt::new(&cfg, vb)).unwrap()), ddt, "{name}");
            assert_eq!(
                count(parameter_shapes(|vb| ImprovedSit::new(&cfg, vb)).unwrap()),
                improved_sit,
                "{name}"
            );
        }
    }
}
