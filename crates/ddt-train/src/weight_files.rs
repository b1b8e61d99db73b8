//! Files of weights: the one a run starts from, and the one it writes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use ddt_files::{Checkpoint, FileSystem};
use ddt_flow::TimeSampling;
use ddt_model::{DdtConfig, DdtFile, Description, LatentInfo, NetworkConfig, parameter_dtype};

use crate::{
    data::LatentDataset,
    error::{TrainError, in_full},
    flow_matching::{FlowMatching, evaluate_loss_in},
    objective::Parameters,
    settings::StartSettings,
    trainer::Trainer,
};

/// Images that the loss in the file's description is measured on.
const TEST_IMAGES: usize = 10_000;

/// The table of classes, whose rows tell how many classes a published file has.
const LABEL_TABLE: &str = "y_embedder.embedding_table.weight";

/// A file of weights that a run starts from.
pub(crate) struct Start {
    path: PathBuf,
    file: DdtFile,
    reinit: Vec<String>,
}

impl Start {
    pub(crate) fn open(settings: &StartSettings) -> Result<Self, TrainError> {
        let (path, reinit) = (settings.weights.clone(), settings.reinit.clone());
        let file = DdtFile::open(&path).map_err(|it| TrainError::Weights { problem: in_full(&it) })?;
        Ok(Self { path, file, reinit })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's network, for other channels and classes.
    pub(crate) fn network(&self, channels: usize, num_classes: usize) -> Result<NetworkConfig, TrainError> {
        let Some(mut network) = self.file.network_config().cloned() else {
            let expected = format!("a network, for {} does not state its own", self.path.display());
            return Err(TrainError::setting("network", expected, "none"));
        };
        (network.sizes.in_channels, network.sizes.num_classes) = (channels, num_classes);
        Ok(network)
    }

    /// The latents the file's network was trained on, if they are of this autoencoder: fine-tuning normalises
    /// them in the same way.
    pub(crate) fn latents(&self, autoencoder: &str) -> Option<&LatentInfo> {
        self.file.latents().filter(|it| it.autoencoder == autoencoder)
    }

    /// The weights to start from, without those that are initialised again.
    pub(crate) fn weights(
        &self,
        network: &NetworkConfig,
        parameters: &Parameters,
    ) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let begins = |name: &str, prefix: &str| {
            name.strip_prefix(prefix.trim_end_matches('.'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        for prefix in &self.reinit {
            if !parameters.iter().any(|(name, _)| begins(name, prefix)) {
                let mut known: Vec<&str> =
                    parameters.iter().filter_map(|(name, _)| name.split('.').next()).collect();
                known.dedup();
                let expected = format!("prefixes of parameters, such as {}", known.join(", "));
                return Err(TrainError::setting("start.reinit", expected, prefix));
            }
        }
        let config = match self.file.network_config() {
            Some(_) => None,
            None => {
                let num_classes = self.num_classes(network)?;
                let sizes = DdtConfig { num_classes, ..network.sizes.clone() };
                Some(NetworkConfig { sizes, ..network.clone() })
            }
        };
        let mut weights = self.file.weights(config.as_ref())?;
        weights.retain(|name, _| !self.reinit.iter().any(|prefix| begins(name, prefix)));
        let shapes: BTreeMap<&str, &[usize]> = parameters.iter().map(|it| (it.0, it.1.dims())).collect();
        let other = weights
            .iter()
            .find(|(name, it)| shapes.get(name.as_str()).is_some_and(|dims| *dims != it.dims()));
        if let Some((name, weight)) = other {
            let problem = format!(
                "{name}: expected shape {:?}, got {:?}; to initialise it anew, name its prefix in start.reinit",
                shapes[name.as_str()],
                weight.dims()
            );
            return Err(TrainError::Weights { problem });
        }
        Ok(weights)
    }

    /// Classes of a file that does not state them, by the rows of its table: a row per class and one for
    /// "no class".
    fn num_classes(&self, network: &NetworkConfig) -> Result<usize, TrainError> {
        let file = Checkpoint::open(&self.path)?;
        let table = file.names().iter().find(|it| it.ends_with(LABEL_TABLE)).and_then(|it| file.info(it));
        let rows = table.and_then(|it| it.shape.first().copied());
        Ok(rows.map_or(network.sizes.num_classes, |rows| rows.saturating_sub(1)))
    }
}

/// The exported weights of a finished run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exported {
    /// Decay of the average that was written.
    pub decay: f64,
    /// Its loss on test images, if there are any.
    pub test_loss: Option<f64>,
}

/// Writes the average with the smallest loss on `test` (the first, without test images), in 16 bits.
/// `on_loss` is called with each decay and its loss. All ranks call this together; rank 0 writes.
pub(crate) fn export(
    system: &FileSystem,
    path: &Path,
    trainer: &Trainer<FlowMatching>,
    test: Option<&LatentDataset>,
    classes: &[String],
    info: &LatentInfo,
    mut on_loss: impl FnMut(f64, f64),
) -> Result<Exported, TrainError> {
    let decays = &trainer.config().ema_decays;
    let (mut best, mut best_loss) = (0, None);
    for (i, &decay) in decays.iter().enumerate() {
        let Some(test) = test else { break };
        let (average, times) = (trainer.averaged_network(i)?, TimeSampling::LogitNormal);
        let group = trainer.group().as_ref();
        let loss = evaluate_loss_in(group, average.as_ref(), test, TEST_IMAGES, times, &Device::Cpu)?;
        on_loss(decay, loss);
        if !loss.is_finite() {
            let got = format!("{loss} with the average of decay {decay}");
            return Err(TrainError::data("a finite test loss; the weights are not written", got));
        }
        if best_loss.is_none_or(|it| loss < it) {
            (best, best_loss) = (i, Some(loss));
        }
    }
    let (weights, exported) =
        (trainer.averaged_weights(best)?, Exported { decay: decays[best], test_loss: best_loss });
    // What may fail on rank 0 alone follows the last exchange.
    if trainer.group().rank() > 0 {
        return Ok(exported);
    }
    let mut metadata = BTreeMap::from([
        ("images_seen".to_owned(), trainer.images_seen().to_string()),
        ("train".to_owned(), json(trainer.config())?),
        ("flow".to_owned(), json(trainer.objective().config())?),
        ("average".to_owned(), decays[best].to_string()),
    ]);
    if let Some(loss) = best_loss {
        metadata.insert("test_loss".to_owned(), format!("{loss:.4}"));
    }
    let config = trainer.objective().network().config().clone();
    // Without the projection head of the alignment, which only training uses.
    let names = config.parameter_shapes()?;
    let weights = weights.into_iter().filter(|it| names.contains_key(&it.0));
    let weights = weights.map(half).collect::<Result<BTreeMap<_, _>, _>>()?;
    let (classes, latents) = (Some(classes.to_vec()), Some(info.clone()));
    if let Some(parent) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
        system.create_folders(parent)?;
    }
    DdtFile::write_on(system, path, &Description { config, classes, latents, metadata }, &weights)?;
    Ok(exported)
}

fn half((name, tensor): (String, Tensor)) -> Result<(String, Tensor), TrainError> {
    let half = tensor.to_dtype(parameter_dtype(&name, DType::F16))?;
    let values: Vec<f32> = half.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    if values.iter().all(|it| it.is_finite()) {
        return Ok((name, half));
    }
    Err(TrainError::data(
        "weights that are finite in 16 bits; none are written",
        format!("infinity or NaN in {name}"),
    ))
}

fn json(value: &impl serde::Serialize) -> Result<String, TrainError> {
    serde_json::to_string(value)
        .map_err(|it| TrainError::data("settings that JSON can express", it.to_string()))
}
