//! Files of weights: the published ones, and this project's own.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::Path,
};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_checkpoint::{Checkpoint, LoadOptions, load_exact, write_safetensors};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{config::DdtConfig, ddt::Ddt, error::ModelError, parameter_shapes::parameter_shapes};

/// An opened file of weights, and what it says of itself.
///
/// Safetensors written by [`Ddt::save`] carry their configuration, and may carry class names and the
/// latents they were trained on. The published Lightning checkpoints carry neither; their average
/// weights (`ema_denoiser.*`) are the ones read.
#[derive(Debug)]
pub struct DdtFile {
    checkpoint: Checkpoint,
    config: Option<DdtConfig>,
    classes: Option<Vec<String>>,
    latents: Option<LatentInfo>,
}

/// The latents a network was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentInfo {
    /// Name of the autoencoder.
    pub autoencoder: String,
    /// Height in latent pixels.
    pub height: usize,
    /// Width in latent pixels.
    pub width: usize,
    /// Mean of each channel, subtracted from the autoencoder's latents.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, which then divides them.
    pub std: Vec<f32>,
}

const CONFIG: &str = "ddt.config";
const CLASSES: &str = "ddt.classes";
const LATENTS: &str = "ddt.latents";
const AVERAGE_PREFIX: &str = "ema_denoiser.";

impl DdtFile {
    /// Opens a file; reads its description, no weights.
    ///
    /// # Errors
    /// [`ModelError::Checkpoint`] when it is no file of tensors, [`ModelError::Metadata`] and
    /// [`ModelError::Config`] when its own description is malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::new(Checkpoint::open(path)?)
    }

    /// The same for a safetensors file in memory; `name` stands for its path in messages.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Result<Self, ModelError> {
        Self::new(Checkpoint::from_bytes(bytes, name)?)
    }

    fn new(checkpoint: Checkpoint) -> Result<Self, ModelError> {
        let config: Option<DdtConfig> = described(&checkpoint, CONFIG)?;
        config.iter().try_for_each(DdtConfig::validate)?;
        let classes = described(&checkpoint, CLASSES)?;
        let latents = described(&checkpoint, LATENTS)?;
        let file = Self { checkpoint, config, classes, latents };
        file.check_description()?;
        Ok(file)
    }

    /// The network's sizes, if the file says them.
    pub fn config(&self) -> Option<&DdtConfig> {
        self.config.as_ref()
    }

    /// Names of the classes, if the file says them.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// The latents it was trained on, if the file says so.
    pub fn latents(&self) -> Option<&LatentInfo> {
        self.latents.as_ref()
    }

    /// All metadata of the file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.checkpoint.metadata()
    }

    /// Reads the network. `sizes` is needed when the file does not say them; when it does, the two must
    /// agree.
    ///
    /// # Errors
    /// [`ModelError::ConfigNeeded`], [`ModelError::ConfigDiffers`]; [`ModelError::Checkpoint`] with
    /// every missing, unexpected and misshapen name.
    pub fn load(&self, sizes: Option<&DdtConfig>, dtype: DType, device: &Device) -> Result<Ddt, ModelError> {
        let published = self.checkpoint.names().iter().any(|it| it.starts_with(AVERAGE_PREFIX));
        self.load_under(if published { AVERAGE_PREFIX } else { "" }, sizes, dtype, device)
    }

    /// [`load`](Self::load) from the names under `prefix` (its final dot included): `denoiser.` has the
    /// published weights that are not averaged.
    pub fn load_under(
        &self,
        prefix: &str,
        sizes: Option<&DdtConfig>,
        dtype: DType,
        device: &Device,
    ) -> Result<Ddt, ModelError> {
        let cfg = self.agreed_sizes(sizes)?;
        cfg.validate()?;
        let expected: Vec<_> = parameter_shapes(|vb| Ddt::new(cfg, vb))?.into_iter().collect();
        let options = LoadOptions::new(device).cast(dtype);
        let tensors = load_exact(&self.checkpoint.with_prefix(prefix), &expected, &options)?;
        let tensors: HashMap<String, Tensor> = tensors.into_iter().collect();
        Ok(Ddt::new(cfg, VarBuilder::from_tensors(tensors, dtype, device))?)
    }

    /// The file's sizes or the caller's; both, if they are the same.
    fn agreed_sizes<'a>(&'a self, sizes: Option<&'a DdtConfig>) -> Result<&'a DdtConfig, ModelError> {
        let file = || self.checkpoint.path().display().to_string();
        match (&self.config, sizes) {
            (Some(found), Some(expected)) if found != expected => {
                let (expected, found) = (Box::new(expected.clone()), Box::new(found.clone()));
                Err(ModelError::ConfigDiffers { file: file(), expected, found })
            }
            (Some(cfg), _) | (None, Some(cfg)) => Ok(cfg),
            (None, None) => {
                let known = DdtConfig::preset_names().join(", ");
                Err(ModelError::ConfigNeeded { file: file(), known })
            }
        }
    }

    fn check_description(&self) -> Result<(), ModelError> {
        let malformed = |key, reason: String| {
            Err(ModelError::Metadata { file: self.checkpoint.path().display().to_string(), key, reason })
        };
        let Some(cfg) = &self.config else { return Ok(()) };
        if let Some(classes) = &self.classes
            && classes.len() != cfg.num_classes
        {
            return malformed(CLASSES, format!("expected {} names, got {}", cfg.num_classes, classes.len()));
        }
        if let Some(it) = &self.latents {
            if it.mean.len() != cfg.in_channels || it.std.len() != cfg.in_channels {
                return malformed(
                    LATENTS,
                    format!("expected a mean and std for each of {} channels", cfg.in_channels),
                );
            }
            if !it.mean.iter().chain(&it.std).all(|x| x.is_finite()) || it.std.iter().any(|x| *x <= 0.0) {
                return malformed(LATENTS, "expected finite means and positive stds".to_owned());
            }
            let whole = |side: usize| (1..=1 << 14).contains(&side) && side.is_multiple_of(cfg.patch_size);
            if !whole(it.height) || !whole(it.width) {
                let (h, w, p) = (it.height, it.width, cfg.patch_size);
                return malformed(
                    LATENTS,
                    format!("expected sides that are multiples of {p}, got {h} x {w}"),
                );
            }
        }
        Ok(())
    }
}

impl Ddt {
    /// Reads a network from a file; see [`DdtFile`].
    pub fn load(
        path: impl AsRef<Path>,
        sizes: Option<&DdtConfig>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        DdtFile::open(path)?.load(sizes, dtype, device)
    }

    /// Writes weights, named as the published ones, with the configuration in the metadata.
    ///
    /// `classes` and `latents` are kept in the metadata too; `metadata` adds to it. The file is written
    /// beside, synced and renamed.
    pub fn save(
        path: &Path,
        cfg: &DdtConfig,
        weights: &BTreeMap<String, Tensor>,
        classes: Option<&[String]>,
        latents: Option<&LatentInfo>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), ModelError> {
        let mut metadata = metadata.clone();
        let mut describe = |key: &'static str, json: serde_json::Result<String>| match json {
            Ok(json) => {
                metadata.insert(key.to_owned(), json);
                Ok(())
            }
            Err(error) => {
                let (file, reason) = (path.display().to_string(), error.to_string());
                Err(ModelError::Metadata { file, key, reason })
            }
        };
        describe(CONFIG, serde_json::to_string(cfg))?;
        if let Some(classes) = classes {
            describe(CLASSES, serde_json::to_string(classes))?;
        }
        if let Some(latents) = latents {
            describe(LATENTS, serde_json::to_string(latents))?;
        }
        write_safetensors(path, weights, &metadata)?;
        Ok(())
    }
}

fn described<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
    key: &'static str,
) -> Result<Option<T>, ModelError> {
    let parse = |json: &String| {
        serde_json::from_str(json).map_err(|error| ModelError::Metadata {
            file: checkpoint.path().display().to_string(),
            key,
            reason: error.to_string(),
        })
    };
    checkpoint.metadata().get(key).map(parse).transpose()
}
