//! Files of weights: the published ones, and this project's own.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::Path,
};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_files::{Checkpoint, LoadOptions, load_exact, write_safetensors};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    config::DdtConfig, ddt::Ddt, error::ModelError, network::VelocityNetwork, network_config::NetworkConfig,
};

/// An opened file of weights, and what it says of itself.
///
/// Safetensors written by [`DdtFile::write`] carry their configuration, and may carry class names and the
/// latents they were trained on. The published Lightning checkpoints carry neither; their average
/// weights (`ema_denoiser.*`) are the ones read.
#[derive(Debug)]
pub struct DdtFile {
    checkpoint: Checkpoint,
    config: Option<NetworkConfig>,
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
        let config: Option<NetworkConfig> = described(&checkpoint, CONFIG)?;
        config.iter().try_for_each(NetworkConfig::validate)?;
        let classes: Option<Vec<String>> = described(&checkpoint, CLASSES)?;
        let latents: Option<LatentInfo> = described(&checkpoint, LATENTS)?;
        if let Some(config) = &config {
            let file = checkpoint.path().display().to_string();
            check_description(&file, &config.sizes, classes.as_deref(), latents.as_ref())?;
        }
        Ok(Self { checkpoint, config, classes, latents })
    }

    /// The network's sizes, if the file says them.
    pub fn config(&self) -> Option<&DdtConfig> {
        self.config.as_ref().map(|it| &it.sizes)
    }

    /// The network's family and sizes, if the file says them.
    pub fn network_config(&self) -> Option<&NetworkConfig> {
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

    /// Reads a network of two halves. `sizes` is needed when the file does not say them; when it does, the
    /// two must agree.
    ///
    /// # Errors
    /// [`ModelError::ConfigNeeded`], [`ModelError::ConfigDiffers`]; [`ModelError::NoHalves`] when the file
    /// says another family; [`ModelError::Checkpoint`] with every missing, unexpected and misshapen name.
    pub fn load(&self, sizes: Option<&DdtConfig>, dtype: DType, device: &Device) -> Result<Ddt, ModelError> {
        self.load_under(self.default_prefix(), sizes, dtype, device)
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
        let cfg = self.agreed(self.completed(sizes).as_ref())?;
        let vb = self.builder(&cfg, prefix, dtype, device)?;
        Ddt::from_config(&cfg, vb)
    }

    /// Reads a network of any family. `config` is needed when the file does not say it; when it does, the
    /// two must agree.
    ///
    /// # Errors
    /// As [`load`](Self::load), but for [`ModelError::NoHalves`].
    pub fn load_network(
        &self,
        config: Option<&NetworkConfig>,
        dtype: DType,
        device: &Device,
    ) -> Result<Box<dyn VelocityNetwork>, ModelError> {
        let cfg = self.agreed(config)?;
        Ok(cfg.build(self.builder(&cfg, self.default_prefix(), dtype, device)?)?)
    }

    /// The weights that [`load`](Self::load) would use, as they are stored: to write them again, in another
    /// format or another dtype.
    ///
    /// # Errors
    /// As [`load_network`](Self::load_network).
    pub fn weights(&self, sizes: Option<&DdtConfig>) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let cfg = self.agreed(self.completed(sizes).as_ref())?;
        self.read(&cfg, self.default_prefix(), &LoadOptions::new(&Device::Cpu))
    }

    fn builder(
        &self,
        cfg: &NetworkConfig,
        prefix: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<VarBuilder<'static>, ModelError> {
        let options = LoadOptions::new(device).cast(dtype);
        let tensors: HashMap<String, Tensor> = self.read(cfg, prefix, &options)?.into_iter().collect();
        Ok(VarBuilder::from_tensors(tensors, dtype, device))
    }

    fn read(
        &self,
        cfg: &NetworkConfig,
        prefix: &str,
        options: &LoadOptions<'_>,
    ) -> Result<BTreeMap<String, Tensor>, ModelError> {
        cfg.validate()?;
        let mut shapes = cfg.parameter_shapes()?;
        let fixed = cfg.fixed_tensors()?;
        shapes.extend(fixed.iter().map(|(name, it)| (name.clone(), it.dims().to_vec())));
        let expected: Vec<_> = shapes.into_iter().collect();
        let tensors: BTreeMap<_, _> =
            load_exact(&self.checkpoint.with_prefix(prefix), &expected, options)?.into_iter().collect();
        check_fixed(&self.checkpoint.path().display().to_string(), &fixed, &tensors)?;
        Ok(tensors)
    }

    /// Where the weights to sample with stand: the average's prefix in published checkpoints, else none.
    fn default_prefix(&self) -> &'static str {
        let published = self.checkpoint.names().iter().any(|it| it.starts_with(AVERAGE_PREFIX));
        if published { AVERAGE_PREFIX } else { "" }
    }

    /// What the caller's sizes mean: everything beside them is as the file says, or as in a plain DDT.
    fn completed(&self, sizes: Option<&DdtConfig>) -> Option<NetworkConfig> {
        let sizes = sizes?.clone();
        Some(match &self.config {
            Some(found) => NetworkConfig { sizes, ..found.clone() },
            None => sizes.into(),
        })
    }

    /// The file's configuration or the caller's; both, if they are the same.
    fn agreed(&self, asked: Option<&NetworkConfig>) -> Result<NetworkConfig, ModelError> {
        let file = || self.checkpoint.path().display().to_string();
        match (&self.config, asked) {
            (Some(found), Some(expected)) if found != expected => {
                let (expected, found) = (Box::new(expected.clone()), Box::new(found.clone()));
                Err(ModelError::ConfigDiffers { file: file(), expected, found })
            }
            (Some(cfg), _) | (None, Some(cfg)) => Ok(cfg.clone()),
            (None, None) => {
                let known = DdtConfig::preset_names().join(", ");
                Err(ModelError::ConfigNeeded { file: file(), known })
            }
        }
    }
}

/// What a file says of the network in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// The network's family and sizes; of a [`DdtConfig`], `into()` makes one.
    pub config: NetworkConfig,
    /// Names of the classes, in label order.
    pub classes: Option<Vec<String>>,
    /// The latents it was trained on.
    pub latents: Option<LatentInfo>,
    /// Anything else.
    pub metadata: BTreeMap<String, String>,
}

impl DdtFile {
    /// Writes weights, named as the published ones, with their description in the metadata.
    ///
    /// The file is written beside, synced and renamed.
    ///
    /// # Errors
    /// When names or shapes are not those of the configuration (fixed positions may be left out), the
    /// description makes no sense, or the file cannot be written.
    pub fn write(
        path: &Path,
        description: &Description,
        weights: &BTreeMap<String, Tensor>,
    ) -> Result<(), ModelError> {
        let Description { config, classes, latents, metadata } = description;
        config.validate()?;
        let file = || path.display().to_string();
        check_description(&file(), &config.sizes, classes.as_deref(), latents.as_ref())?;
        let fixed = config.fixed_tensors()?;
        let mut weights = weights.clone();
        for (name, table) in &fixed {
            weights.entry(name.clone()).or_insert_with(|| table.clone());
        }
        let mut expected = config.parameter_shapes()?;
        expected.extend(fixed.iter().map(|(name, it)| (name.clone(), it.dims().to_vec())));
        let got: BTreeMap<_, _> =
            weights.iter().map(|(name, it)| (name.clone(), it.dims().to_vec())).collect();
        if let Some(name) = expected.keys().chain(got.keys()).find(|it| expected.get(*it) != got.get(*it)) {
            let (expected, got) = (expected.get(name).cloned(), got.get(name).cloned());
            return Err(ModelError::Weight { file: file(), name: name.clone(), expected, got });
        }
        check_fixed(&file(), &fixed, &weights)?;
        let mut metadata = metadata.clone();
        let mut describe = |key: &'static str, json: serde_json::Result<String>| {
            let json = json.map_err(|error| malformed(&file(), key, error.to_string()))?;
            metadata.insert(key.to_owned(), json);
            Ok::<(), ModelError>(())
        };
        describe(CONFIG, serde_json::to_string(config))?;
        if let Some(classes) = classes {
            describe(CLASSES, serde_json::to_string(classes))?;
        }
        if let Some(latents) = latents {
            describe(LATENTS, serde_json::to_string(latents))?;
        }
        write_safetensors(path, &weights, &metadata)?;
        Ok(())
    }
}

fn malformed(file: &str, key: &'static str, reason: String) -> ModelError {
    ModelError::Metadata { file: file.to_owned(), key, reason }
}

/// Whether the tensors that are no parameters are what the formula says, which is what the network uses.
fn check_fixed(
    file: &str,
    fixed: &BTreeMap<String, Tensor>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), ModelError> {
    for (name, table) in fixed {
        let Some(stored) = tensors.get(name) else { continue };
        // Sines and cosines of other libraries differ by f32 rounding; of 16 bits half a unit is 2^-9.
        let allowed = if stored.dtype() == DType::F32 { 1e-4 } else { 4e-3 };
        let difference = (stored.to_device(&Device::Cpu)?.to_dtype(DType::F32)? - table)?;
        let largest = f64::from(difference.abs()?.max_all()?.to_scalar::<f32>()?);
        if largest > allowed || largest.is_nan() {
            let (file, name) = (file.to_owned(), name.clone());
            return Err(ModelError::Positions { file, name, largest, allowed });
        }
    }
    Ok(())
}

/// Whether classes and latents fit the sizes.
fn check_description(
    file: &str,
    cfg: &DdtConfig,
    classes: Option<&[String]>,
    latents: Option<&LatentInfo>,
) -> Result<(), ModelError> {
    if let Some(classes) = classes
        && classes.len() != cfg.num_classes
    {
        let reason = format!("expected {} names, got {}", cfg.num_classes, classes.len());
        return Err(malformed(file, CLASSES, reason));
    }
    let Some(it) = latents else { return Ok(()) };
    let wrong = |reason| Err(malformed(file, LATENTS, reason));
    if it.mean.len() != cfg.in_channels || it.std.len() != cfg.in_channels {
        return wrong(format!("expected a mean and std for each of {} channels", cfg.in_channels));
    }
    if !it.mean.iter().chain(&it.std).all(|x| x.is_finite()) || it.std.iter().any(|x| *x <= 0.0) {
        return wrong("expected finite means and positive stds".to_owned());
    }
    let whole = |side: usize| (1..=1 << 14).contains(&side) && side.is_multiple_of(cfg.patch_size);
    if !whole(it.height) || !whole(it.width) {
        let (h, w, p) = (it.height, it.width, cfg.patch_size);
        return wrong(format!("expected sides that are multiples of {p}, got {h} x {w}"));
    }
    Ok(())
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
}

fn described<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
    key: &'static str,
) -> Result<Option<T>, ModelError> {
    let parse = |json: &String| {
        let file = checkpoint.path().display().to_string();
        serde_json::from_str(json).map_err(|error| malformed(&file, key, error.to_string()))
    };
    checkpoint.metadata().get(key).map(parse).transpose()
}
