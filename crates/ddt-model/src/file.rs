//! Files of weights: the published ones, and this project's own.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_files::{Checkpoint, FileSystem, LoadOptions, load_exact};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    config::DdtConfig,
    ddt::Ddt,
    error::ModelError,
    network::VelocityNetwork,
    network_config::{Family, NetworkConfig, TokenMixer},
};

/// An opened file of weights with its description.
///
/// Safetensors written by [`DdtFile::write`] carry their configuration, and may carry class names and the
/// latents they were trained on. The published Lightning checkpoints carry neither; their averaged
/// weights (`ema_denoiser.*`) are the ones read.
#[derive(Debug)]
pub struct DdtFile {
    checkpoint: Checkpoint,
    prefix: String,
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
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, which then divides them.
    pub std: Vec<f64>,
}

const CONFIG: &str = "ddt.config";
const CLASSES: &str = "ddt.classes";
const LATENTS: &str = "ddt.latents";
/// Of DDT, and of DiT^DH's and other trainers.
const AVERAGE_PREFIXES: [&str; 2] = ["ema_denoiser.", "ema."];

/// The frequencies of DiT^DH's times.
const FREQUENCIES: &str = "t_embedder.W";

/// The dtype of a parameter in a file or network whose dtype is `dtype`: that, but f32 for the frequencies of DiT^DH's
/// times. Angles are these times 2 pi and the time, so 16 bits would leave them two decimals.
pub fn parameter_dtype(name: &str, dtype: DType) -> DType {
    if name == FREQUENCIES { DType::F32 } else { dtype }
}

impl DdtFile {
    /// Opens a file; reads its description, no weights.
    ///
    /// # Errors
    /// [`ModelError::Checkpoint`] when it is no file of tensors, [`ModelError::File`] and
    /// [`ModelError::Config`] when its description is malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::new(Checkpoint::open(path)?)
    }

    /// The same for a safetensors file in memory; `name` takes the place of its path in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Result<Self, ModelError> {
        Self::new(Checkpoint::from_bytes(bytes, name)?)
    }

    fn new(checkpoint: Checkpoint) -> Result<Self, ModelError> {
        let config: Option<NetworkConfig> = described(&checkpoint, CONFIG)?;
        config.iter().try_for_each(NetworkConfig::validate)?;
        let classes: Option<Vec<String>> = described(&checkpoint, CLASSES)?;
        let latents: Option<LatentInfo> = described(&checkpoint, LATENTS)?;
        if let Some(config) = &config {
            check_description(checkpoint.path(), &config.sizes, classes.as_deref(), latents.as_ref())?;
        }
        // Published checkpoints have the average beside the weights that training ended with.
        let has = |prefix: &&str| checkpoint.names().iter().any(|it| it.starts_with(prefix));
        let prefix = AVERAGE_PREFIXES.into_iter().find(has).unwrap_or_default().to_owned();
        Ok(Self { checkpoint, prefix, config, classes, latents })
    }

    /// The same file, of which the weights under `prefix` (its final dot included) are read: `denoiser.` has the
    /// published weights that are not averaged.
    pub fn with_prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// The network's sizes, if the file states them.
    pub fn config(&self) -> Option<&DdtConfig> {
        self.config.as_ref().map(|it| &it.sizes)
    }

    /// The network's family and sizes, if the file states them.
    pub fn network_config(&self) -> Option<&NetworkConfig> {
        self.config.as_ref()
    }

    /// Names of the classes, if the file states them.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// The latents it was trained on, if the file states them.
    pub fn latents(&self) -> Option<&LatentInfo> {
        self.latents.as_ref()
    }

    /// All metadata of the file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.checkpoint.metadata()
    }

    /// Reads the paper's DDT, as its definition; [`Ddt::freeze`] it to sample. `sizes` is needed when the file does
    /// not state them; when it does, the two must agree.
    ///
    /// # Errors
    /// [`ModelError::File`] for sizes that are unknown or differ, and for another family;
    /// [`ModelError::Checkpoint`] with every missing, unexpected and misshapen name.
    pub fn load(&self, sizes: Option<&DdtConfig>, dtype: DType, device: &Device) -> Result<Ddt, ModelError> {
        let cfg = self.agreed(self.completed(sizes).as_ref())?;
        if (cfg.family, cfg.decoder_mixer) != (Family::Ddt, TokenMixer::Attention) {
            let (family, mixer) = (cfg.family, cfg.decoder_mixer);
            let reason =
                format!("expected a network of family Ddt with attention, got {family:?} with {mixer:?}");
            return Err(ModelError::file(self.checkpoint.path(), reason));
        }
        Ok(Ddt::new(&cfg.sizes, self.builder(&cfg, dtype, device)?)?)
    }

    /// Reads a network of any family to sample from: [frozen](NetworkConfig::build_frozen) in f32 and bf16 on the
    /// CPU, [its definition](NetworkConfig::build) in other dtypes and on other devices. `config` is needed when the
    /// file does not state it; when it does, the two must agree.
    ///
    /// # Errors
    /// As [`load`](Self::load), for any family.
    pub fn load_network(
        &self,
        config: Option<&NetworkConfig>,
        dtype: DType,
        device: &Device,
    ) -> Result<Box<dyn VelocityNetwork>, ModelError> {
        let cfg = self.agreed(config)?;
        let vb = self.builder(&cfg, dtype, device)?;
        let freezes = device.is_cpu() && matches!(dtype, DType::F32 | DType::BF16);
        Ok(if freezes { cfg.build_frozen(vb)? } else { cfg.build(vb)? })
    }

    /// The weights that [`load_network`](Self::load_network) would use, in the dtype in which they are stored: to
    /// write them again, in another format or another dtype.
    ///
    /// # Errors
    /// As [`load_network`](Self::load_network).
    pub fn weights(&self, config: Option<&NetworkConfig>) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let cfg = self.agreed(config)?;
        self.read(&cfg, &LoadOptions::new(&Device::Cpu))
    }

    fn builder(
        &self,
        cfg: &NetworkConfig,
        dtype: DType,
        device: &Device,
    ) -> Result<VarBuilder<'static>, ModelError> {
        let dtype_of = |name: &str| parameter_dtype(name, dtype);
        let tensors = self.read(cfg, &LoadOptions::new(device).cast_by_name(&dtype_of))?;
        Ok(VarBuilder::from_tensors(tensors.into_iter().collect(), dtype, device))
    }

    fn read(
        &self,
        cfg: &NetworkConfig,
        options: &LoadOptions<'_>,
    ) -> Result<BTreeMap<String, Tensor>, ModelError> {
        cfg.validate()?;
        let mut shapes = cfg.parameter_shapes()?;
        let fixed = cfg.fixed_tensors()?;
        shapes.extend(shapes_of(&fixed));
        let expected: Vec<_> = shapes.into_iter().collect();
        let tensors = load_exact(&self.checkpoint.with_prefix(&self.prefix), &expected, options)?;
        check_fixed(self.checkpoint.path(), &fixed, &tensors)?;
        Ok(tensors)
    }

    /// The caller's sizes as a configuration: everything beside them is as the file states it, or as in a plain DDT.
    fn completed(&self, sizes: Option<&DdtConfig>) -> Option<NetworkConfig> {
        let sizes = sizes?.clone();
        Some(match &self.config {
            Some(found) => NetworkConfig { sizes, ..found.clone() },
            None => sizes.into(),
        })
    }

    /// The file's configuration or the caller's; both, if they are the same.
    fn agreed(&self, asked: Option<&NetworkConfig>) -> Result<NetworkConfig, ModelError> {
        let wrong = |reason| Err(ModelError::file(self.checkpoint.path(), reason));
        match (&self.config, asked) {
            (Some(found), Some(asked)) if found != asked => {
                wrong(format!("expected a network of {asked:?}, got {found:?}"))
            }
            (Some(cfg), _) | (None, Some(cfg)) => Ok(cfg.clone()),
            (None, None) => wrong(format!(
                "the file does not state the sizes of its network; name a preset, one of {}",
                NetworkConfig::preset_names().join(", ")
            )),
        }
    }
}

impl Ddt {
    /// Reads the paper's DDT from a file, as its definition; see [`DdtFile::load`].
    ///
    /// # Errors
    /// As there, and when the file cannot be opened.
    pub fn load(
        path: impl AsRef<Path>,
        sizes: Option<&DdtConfig>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        DdtFile::open(path)?.load(sizes, dtype, device)
    }
}

/// The description of a network in a file.
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
    /// [`ModelError::File`] when names or shapes are not those of the configuration (fixed positions may be left
    /// out) or the description does not fit; [`ModelError::Checkpoint`] when the file cannot be written.
    pub fn write(
        path: &Path,
        description: &Description,
        weights: &BTreeMap<String, Tensor>,
    ) -> Result<(), ModelError> {
        Self::write_on(&FileSystem::default(), path, description, weights)
    }

    /// [`write`](Self::write) through another file layer than the real disk's.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_on(
        system: &FileSystem,
        path: &Path,
        description: &Description,
        weights: &BTreeMap<String, Tensor>,
    ) -> Result<(), ModelError> {
        let Description { config, classes, latents, metadata } = description;
        config.validate()?;
        check_description(path, &config.sizes, classes.as_deref(), latents.as_ref())?;
        let fixed = config.fixed_tensors()?;
        let mut weights = weights.clone();
        for (name, table) in &fixed {
            weights.entry(name.clone()).or_insert_with(|| table.clone());
        }
        let mut expected = config.parameter_shapes()?;
        expected.extend(shapes_of(&fixed));
        let got: BTreeMap<_, _> = shapes_of(&weights).collect();
        if let Some(name) = expected.keys().chain(got.keys()).find(|it| expected.get(*it) != got.get(*it)) {
            let shape = |it: Option<&Vec<usize>>| {
                it.map_or("no such weight".to_owned(), |it| format!("shape {it:?}"))
            };
            let (expected, got) = (shape(expected.get(name)), shape(got.get(name)));
            let reason = format!("not written, because of {name}: expected {expected}, got {got}");
            return Err(ModelError::file(path, reason));
        }
        check_fixed(path, &fixed, &weights)?;
        let mut metadata = metadata.clone();
        let mut describe = |key: &str, json: serde_json::Result<String>| {
            let json = json.map_err(|error| malformed(path, key, &error.to_string()))?;
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
        system.write_safetensors(path, &weights, &metadata)?;
        Ok(())
    }
}

fn shapes_of(tensors: &BTreeMap<String, Tensor>) -> impl Iterator<Item = (String, Vec<usize>)> {
    tensors.iter().map(|(name, it)| (name.clone(), it.dims().to_vec()))
}

fn malformed(file: &Path, key: &str, reason: &str) -> ModelError {
    ModelError::file(file, format!("metadata {key:?} is malformed: {reason}"))
}

fn described<T: DeserializeOwned>(checkpoint: &Checkpoint, key: &str) -> Result<Option<T>, ModelError> {
    let parse = |json: &String| {
        serde_json::from_str(json).map_err(|error| malformed(checkpoint.path(), key, &error.to_string()))
    };
    checkpoint.metadata().get(key).map(parse).transpose()
}

/// Checks that the tensors that are no parameters are those that the network computes.
fn check_fixed(
    file: &Path,
    fixed: &BTreeMap<String, Tensor>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), ModelError> {
    for (name, table) in fixed {
        let Some(stored) = tensors.get(name) else { continue };
        // Sines and cosines of other libraries differ by f32 rounding; in 16 bits half a unit is 2^-9.
        let allowed = if stored.dtype() == DType::F32 { 1e-4 } else { 4e-3 };
        let difference = (stored.to_device(&Device::Cpu)?.to_dtype(DType::F32)? - table)?;
        let largest = f64::from(difference.abs()?.max_all()?.to_scalar::<f32>()?);
        if largest > allowed || largest.is_nan() {
            let reason = format!(
                "{name} differs from the sines and cosines of its family by {largest}, expected at most {allowed}"
            );
            return Err(ModelError::file(file, reason));
        }
    }
    Ok(())
}

/// Checks that classes and latents fit the sizes.
fn check_description(
    file: &Path,
    cfg: &DdtConfig,
    classes: Option<&[String]>,
    latents: Option<&LatentInfo>,
) -> Result<(), ModelError> {
    if let Some(classes) = classes
        && classes.len() != cfg.num_classes
    {
        let reason = format!("expected {} names, got {}", cfg.num_classes, classes.len());
        return Err(malformed(file, CLASSES, &reason));
    }
    let Some(it) = latents else { return Ok(()) };
    let wrong = |reason: String| Err(malformed(file, LATENTS, &reason));
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
