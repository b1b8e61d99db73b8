//! Settings of a run, as a TOML file states them.

use std::path::{Path, PathBuf};

use ddt_files::FileError;
use ddt_model::NetworkConfig;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    config::{AlignmentConfig, FlowConfig, TrainConfig},
    error::TrainError,
};

/// All settings of a run. Unknown keys are errors; omitted settings default to the paper's values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder of the run: checkpoints, log, weights. Running in the same folder again resumes the run.
    pub run: PathBuf,
    /// The network; without one it is that of the weights to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSettings>,
    /// Weights to start from instead of random ones: fine-tuning.
    #[serde(default, deserialize_with = "start", skip_serializing_if = "Option::is_none")]
    pub start: Option<StartSettings>,
    /// The photos.
    pub images: ImageSettings,
    /// The autoencoder that turns photos into latents.
    pub autoencoder: AutoencoderSettings,
    /// Representation alignment, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alignment: Option<AlignmentSettings>,
    /// Distribution of times, and label dropout; [`alignment`](Self::alignment) is beside it.
    #[serde(default)]
    pub flow: FlowConfig,
    /// Length, steps and optimiser.
    #[serde(default)]
    pub train: TrainConfig,
    /// Reports and checkpoints, and their intervals.
    #[serde(default)]
    pub watch: WatchSettings,
}

/// A network by name or by sizes; the data decides the numbers of channels and classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a preset's name or a table of sizes")]
pub enum NetworkSettings {
    /// Name of a preset, such as `ddt-b2`.
    Preset(String),
    /// A [`NetworkConfig`] in which `in_channels` and `num_classes` may be omitted.
    Sizes(toml::Table),
}

/// Weights to start from.
///
/// `start = "w.safetensors"` is short for `start = { weights = "w.safetensors" }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartSettings {
    /// The file of weights.
    pub weights: PathBuf,
    /// Prefixes of parameters that start from random values instead, and may have other shapes in the file:
    /// `["y_embedder"]` for other classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reinit: Vec<String>,
}

/// Where the photos are and how they are cropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSettings {
    /// Folder of class folders to train on.
    pub train: PathBuf,
    /// Folder of class folders to measure the test loss on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Lines of index, class folder and readable name; without one, labels are the sorted folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_list: Option<PathBuf>,
    /// Side of the centre crop, in pixels.
    pub size: u32,
    /// Whether images are mirrored at random; the paper does not.
    #[serde(default)]
    pub flips: bool,
    /// Whether files that are not images are skipped and counted, instead of ending the run.
    #[serde(default)]
    pub skip_corrupt: bool,
    /// Folder of the encoded images, by default inside the run's. Runs on the same photos may share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Threads that decode photos.
    #[serde(default = "two")]
    pub threads: usize,
}

/// An autoencoder by name. The caller of [`run`](crate::run()) loads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum AutoencoderSettings {
    /// Stable Diffusion's, as published; latents are scaled by 0.18215 and sampled from its distribution.
    SdVae {
        /// Its weights.
        weights: PathBuf,
    },
    /// A representation autoencoder (arXiv:2510.11690) on DINOv2-B with registers; its statistics normalise the latents.
    Rae {
        /// The weights of DINOv2-B with registers.
        weights: PathBuf,
        /// Mean and variance of each element of a latent, `stat.pt`.
        statistics: PathBuf,
        /// The weights of its ViT-XL decoder, which only samples need.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        decoder: Option<PathBuf>,
    },
    /// The bundled tiny one; each latent channel is normalised.
    TinyFlux2,
    /// None: the network generates pixels.
    Pixels,
}

/// Representation alignment. The caller of [`run`](crate::run()) loads the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignmentSettings {
    /// Block whose output is aligned, counted from 1.
    pub layer: usize,
    /// Factor of the alignment loss.
    #[serde(default = "half")]
    pub weight: f64,
    /// DINOv2 model: `vit-s`, `vit-b`, `vit-l`, `vit-g`, or one of these with `-reg`.
    #[serde(default = "vit_b")]
    pub model: String,
    /// Its weights.
    pub weights: PathBuf,
    /// Whether its features are cached with the latents (400 KB per image for ViT-B) or computed at every
    /// step.
    #[serde(default)]
    pub cache: bool,
}

/// Reports and checkpoints, and their intervals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchSettings {
    /// Steps between lines of the log.
    pub log_every: u64,
    /// Seconds between checkpoints.
    pub save_every_seconds: u64,
    /// Steps between test losses of the averaged weights; 0 for none.
    pub test_every: u64,
    /// Test images for each.
    pub test_images: usize,
    /// Steps between sets of samples; 0 for none.
    pub samples_every: u64,
    /// Guidance scale of the samples.
    pub guidance: f64,
    /// Whether TensorBoard records are written beside the log.
    pub tensorboard: bool,
}

impl Settings {
    /// Settings of a run with the paper's values.
    pub fn new(
        run: impl Into<PathBuf>,
        network: NetworkSettings,
        images: ImageSettings,
        autoencoder: AutoencoderSettings,
    ) -> Self {
        Self {
            run: run.into(),
            network: Some(network),
            start: None,
            images,
            autoencoder,
            alignment: None,
            flow: FlowConfig::PAPER,
            train: TrainConfig::paper(),
            watch: WatchSettings::default(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`TrainError::File`], and those of [`Settings::parse`].
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(FileError::io("read", path))?;
        Self::parse_named(&text, &path.display().to_string())
    }

    /// Parses a text.
    ///
    /// # Errors
    /// [`TrainError::Setting`] names the line or the setting.
    pub fn parse(text: &str) -> Result<Self, TrainError> {
        Self::parse_named(text, "settings")
    }

    fn parse_named(text: &str, name: &str) -> Result<Self, TrainError> {
        let malformed = |it: toml::de::Error| TrainError::setting(name, "settings of a run", it);
        let settings: Self = toml::from_str(text).map_err(malformed)?;
        settings.validate()?;
        Ok(settings)
    }

    /// Checks everything that can be checked without the data.
    ///
    /// # Errors
    /// [`TrainError::Setting`] names the first setting that makes no run.
    pub fn validate(&self) -> Result<(), TrainError> {
        self.train.validate()?;
        self.flow_config(1).validate()?;
        if self.watch.log_every == 0 {
            return Err(TrainError::setting("watch.log_every", "1 or more steps", 0));
        }
        if self.network.is_none() && self.start.is_none() {
            return Err(TrainError::setting("network", "a network, or weights to start from", "neither"));
        }
        if self.watch.samples_every > 0
            && matches!(self.autoencoder, AutoencoderSettings::Rae { decoder: None, .. })
        {
            let expected = "the decoder's weights, or watch.samples_every = 0";
            return Err(TrainError::setting("autoencoder.decoder", expected, "none"));
        }
        if self.images.skip_corrupt && self.alignment.as_ref().is_some_and(|it| !it.cache) {
            // Features computed at every step are matched with latents by the photos' indices.
            let expected = "alignment.cache = true beside it";
            return Err(TrainError::setting("images.skip_corrupt", expected, "features at every step"));
        }
        Ok(())
    }

    /// Folder of the encoded images.
    pub fn cache(&self) -> PathBuf {
        self.images.cache.clone().unwrap_or_else(|| self.run.join("latents"))
    }

    /// The loss, with features of `feature_dim` channels where there is alignment.
    pub fn flow_config(&self, feature_dim: usize) -> FlowConfig {
        let alignment =
            |it: &AlignmentSettings| AlignmentConfig { layer: it.layer, feature_dim, weight: it.weight };
        FlowConfig { alignment: self.alignment.as_ref().map(alignment), ..self.flow }
    }
}

impl NetworkSettings {
    /// The network for latents of some channels and some classes: a preset takes them, a table must agree.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for an unknown name, or sizes that make no network or do not fit the data.
    pub fn config(&self, channels: usize, num_classes: usize) -> Result<NetworkConfig, TrainError> {
        let wrong = |got: &dyn ToString| TrainError::setting("network", "a network", got.to_string());
        let network = match self {
            Self::Preset(name) => {
                let mut network = NetworkConfig::preset(name).map_err(|it| wrong(&it))?;
                (network.sizes.in_channels, network.sizes.num_classes) = (channels, num_classes);
                network
            }
            Self::Sizes(table) => {
                let mut table = table.clone();
                for (key, value) in [("in_channels", channels), ("num_classes", num_classes)] {
                    table.entry(key).or_insert(toml::Value::Integer(value as i64));
                }
                toml::Value::Table(table).try_into().map_err(|it: toml::de::Error| wrong(&it))?
            }
        };
        network.validate().map_err(|it| wrong(&it))?;
        let describe = |channels, classes| format!("in_channels = {channels} and num_classes = {classes}");
        let sizes = &network.sizes;
        if (sizes.in_channels, sizes.num_classes) != (channels, num_classes) {
            let expected = format!("{}, as the data has", describe(channels, num_classes));
            let got = describe(sizes.in_channels, sizes.num_classes);
            return Err(TrainError::setting("network", expected, got));
        }
        Ok(network)
    }
}

/// Exactly this network; the data must fit it.
impl From<&NetworkConfig> for NetworkSettings {
    fn from(network: &NetworkConfig) -> Self {
        // A configuration is a flat table of numbers and names.
        Self::Sizes(toml::Table::try_from(network).unwrap_or_default())
    }
}

impl ImageSettings {
    /// The photos of a folder of class folders, cropped to squares, without further options.
    pub fn plain(folder: impl Into<PathBuf>, size: u32) -> Self {
        Self {
            train: folder.into(),
            test: None,
            class_list: None,
            size,
            flips: false,
            skip_corrupt: false,
            cache: None,
            threads: two(),
        }
    }
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self {
            log_every: 20,
            save_every_seconds: 300,
            test_every: 0,
            test_images: 2000,
            samples_every: 0,
            guidance: 2.0,
            tensorboard: false,
        }
    }
}

fn start<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<StartSettings>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a file of weights, or a table of weights and reinit")]
    enum Written {
        File(PathBuf),
        Table(StartSettings),
    }
    Ok(Some(match Written::deserialize(deserializer)? {
        Written::File(weights) => StartSettings { weights, reinit: Vec::new() },
        Written::Table(start) => start,
    }))
}

fn two() -> usize {
    2
}

fn half() -> f64 {
    0.5
}

fn vit_b() -> String {
    "vit-b".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: &str = r#"
        run = "out/run"
        network = "ddt-b2"
        images = { train = "photos", size = 256 }
        autoencoder = { kind = "sd-vae", weights = "vae.safetensors" }
    "#;

    fn network(settings: &Settings, channels: usize, classes: usize) -> Result<NetworkConfig, TrainError> {
        settings.network.as_ref().unwrap().config(channels, classes)
    }

    #[test]
    fn omitted_settings_are_the_papers() {
        let settings = Settings::parse(SHORT).unwrap();
        assert_eq!(settings.train, TrainConfig::paper());
        assert_eq!(settings.flow_config(768), FlowConfig::PAPER);
        assert!(!settings.images.flips);
        assert_eq!(settings.cache(), Path::new("out/run/latents"));
        let cfg = network(&settings, 4, 7).unwrap();
        assert_eq!((cfg.sizes.hidden_size, cfg.sizes.num_classes), (768, 7));
        let built = Settings::new(
            "out/run",
            NetworkSettings::Preset("ddt-b2".to_owned()),
            ImageSettings::plain("photos", 256),
            AutoencoderSettings::SdVae { weights: "vae.safetensors".into() },
        );
        assert_eq!(built, settings);
    }

    #[test]
    fn settings_are_written_and_read() {
        let mut settings = Settings::parse(SHORT).unwrap();
        let sizes = network(&settings, 4, 7).unwrap();
        settings.network = Some(NetworkSettings::from(&sizes));
        settings.start = Some(StartSettings { weights: "w".into(), reinit: vec!["y_embedder".to_owned()] });
        settings.train.lr.peak = 0.1 + 0.2;
        let text = toml::to_string(&settings).unwrap();
        let read = Settings::parse(&text).unwrap();
        assert_eq!(read, settings);
        assert_eq!(network(&read, 4, 7).unwrap(), sizes);
        let short = Settings::parse(&format!("start = \"w\"\n{SHORT}")).unwrap();
        assert_eq!(short.start, Some(StartSettings { weights: "w".into(), reinit: Vec::new() }));
    }

    #[test]
    fn wrong_settings_are_named() {
        let refused = |text: &str, part: &str| {
            let message = Settings::parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        refused(&format!("{SHORT}\nspeed = 3"), "speed");
        refused(&SHORT.replace("size = 256", "size = 256, flip = true"), "flip");
        refused(&SHORT.replace("sd-vae", "vae"), "vae");
        refused(&SHORT.replace("\"ddt-b2\"", "7"), "a preset's name or a table");
        refused(&SHORT.replace("network = \"ddt-b2\"", ""), "network: expected");
        refused(
            &format!("start = {{ weights = \"w\", renew = [] }}\n{SHORT}"),
            "a table of weights and reinit",
        );
        refused(&format!("{SHORT}\n[train]\nbatch_size = 0"), "batch_size: expected 1 to 2^20, got 0");
        refused(&format!("{SHORT}\n[flow]\nlabel_dropout = 2"), "label_dropout");
        refused(&format!("{SHORT}\n[flow]\nalignment = {{ layer = 1 }}"), "alignment");
        refused(&format!("{SHORT}\n[watch]\nlog_every = 0"), "log_every");
        let aligned = "alignment = { layer = 4, weights = \"dino\" }";
        let corrupt = SHORT.replace("size = 256", "size = 256, skip_corrupt = true");
        refused(&format!("{aligned}\n{corrupt}"), "alignment.cache");
        let other = Settings::parse(&SHORT.replace("ddt-b2", "ddt-b3")).unwrap();
        assert!(network(&other, 4, 7).unwrap_err().to_string().contains("ddt-b3"));
        let table = SHORT.replace(
            "\"ddt-b2\"",
            "{ hidden_size = 32, patch_size = 2, num_heads = 2, num_encoder_blocks = 1, num_decoder_blocks = 1, num_classes = 9 }",
        );
        let table = Settings::parse(&table).unwrap();
        assert_eq!(network(&table, 4, 9).unwrap().sizes.hidden_size, 32);
        assert!(network(&table, 4, 7).unwrap_err().to_string().contains("num_classes = 7"));
    }
}
