//! A training run as a TOML file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ddt_flow::TimeSampling;
use ddt_model::NetworkConfig;
use ddt_train::{FlowConfig, TrainConfig};
use serde::Deserialize;

/// All settings of a run. Unknown keys are errors; what is left away has the paper's value.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder of the run: checkpoints, log, samples; the same folder goes on with the run in it.
    pub run: PathBuf,
    /// A preset's name, or a table of a network's sizes.
    network: toml::Value,
    /// The photos.
    pub images: Images,
    /// What turns photos into latents.
    pub autoencoder: AutoencoderSettings,
    /// Representation alignment; none without.
    pub alignment: Option<AlignmentSettings>,
    /// How times and labels are drawn.
    #[serde(default)]
    pub flow: FlowSettings,
    /// Length, steps and optimiser.
    #[serde(default)]
    pub train: TrainConfig,
    /// Weights to start from instead of random ones: fine-tuning.
    pub start: Option<PathBuf>,
    /// What is reported and saved, and when.
    #[serde(default)]
    pub watch: Watch,
}

/// Where the photos are and how they are cut.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// Folder of class folders to train on.
    pub train: PathBuf,
    /// The same, kept back, to measure the loss on.
    pub test: Option<PathBuf>,
    /// Lines of index, class folder and readable name; without one, labels are the sorted folders.
    pub class_list: Option<PathBuf>,
    /// Side of the centre crop, in pixels.
    pub size: u32,
    /// Whether images are mirrored at random; the paper does not.
    #[serde(default)]
    pub flips: bool,
    /// Whether files that are no images are passed over and counted, instead of ending the program.
    #[serde(default)]
    pub skip_corrupt: bool,
    /// Folder of the encoded images; inside the run's without one. Runs on the same photos may share it.
    pub cache: Option<PathBuf>,
    /// Threads that decode photos.
    #[serde(default = "two")]
    pub threads: usize,
}

impl Images {
    /// The photos of a folder of class folders, cut to squares, as they are.
    #[must_use]
    pub fn plain(folder: PathBuf, size: u32) -> Self {
        Self {
            train: folder,
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

/// Which autoencoder.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum AutoencoderSettings {
    /// Stable Diffusion's, as published; latents scaled by 0.18215 and drawn from its distribution.
    SdVae {
        /// Its weights.
        weights: PathBuf,
    },
    /// The tiny one that comes with the examples; each latent channel normalised.
    TinyFlux2,
    /// None: the network draws pixels.
    Pixels,
}

/// What is aligned, and with what.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignmentSettings {
    /// Block whose output is aligned, from 1.
    pub layer: usize,
    /// Factor of its loss.
    #[serde(default = "half")]
    pub weight: f64,
    /// Which DINOv2: `vit-s`, `vit-b`, `vit-l`, `vit-g`, or one of these with `-reg`.
    #[serde(default = "vit_b")]
    pub model: String,
    /// Its weights.
    pub weights: PathBuf,
    /// Whether its features are cached with the latents (400 KB an image for ViT-B) or computed at every step.
    #[serde(default)]
    pub cache: bool,
}

/// How times and labels are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowSettings {
    /// Probability that a label becomes "no class".
    pub label_dropout: f64,
    /// `lognorm` or `uniform`.
    pub times: TimeSampling,
    /// Above 1 for more times near noise.
    pub timeshift: f64,
}

impl Default for FlowSettings {
    fn default() -> Self {
        let FlowConfig { label_dropout, times, timeshift, .. } = FlowConfig::PAPER;
        Self { label_dropout, times, timeshift }
    }
}

/// What is reported and saved, and when.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// Steps between lines of the log.
    pub log_every: u64,
    /// Seconds between checkpoints.
    pub save_every_seconds: u64,
    /// Steps between measurements of the averaged weights on test images; 0 for none.
    pub test_every: u64,
    /// Test images for those.
    pub test_images: usize,
    /// Steps between grids of samples; 0 for none.
    pub samples_every: u64,
    /// Guidance of these grids.
    pub guidance: f64,
    /// Whether TensorBoard records are written beside the log.
    pub tensorboard: bool,
}

impl Default for Watch {
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

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// A file that is absent, or does not say a run; the line is named.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the settings {}", path.display()))?;
        let settings = Self::parse(&text).with_context(|| format!("the settings {}", path.display()))?;
        Ok(settings)
    }

    /// Reads a text.
    ///
    /// # Errors
    ///
    /// A text that does not say a run; the line is named.
    pub fn parse(text: &str) -> Result<Self> {
        let settings: Self = toml::from_str(text)?;
        settings.train.validate()?;
        settings.flow_config(1).validate()?;
        ensure!(settings.watch.log_every > 0, "watch.log_every: expected 1 or more steps");
        ensure!(
            !(settings.images.skip_corrupt && settings.alignment.as_ref().is_some_and(|it| !it.cache)),
            "images.skip_corrupt needs alignment.cache: features that are computed at every step come from \
             the photos, whose numbers must be the latents'"
        );
        Ok(settings)
    }

    /// Where the encoded images are.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.images.cache.clone().unwrap_or_else(|| self.run.join("latents"))
    }

    /// The loss, with features of `feature_dim` channels where there is alignment.
    #[must_use]
    pub fn flow_config(&self, feature_dim: usize) -> FlowConfig {
        let FlowSettings { label_dropout, times, timeshift } = self.flow;
        let alignment = self.alignment.as_ref().map(|it| ddt_train::AlignmentConfig {
            layer: it.layer,
            feature_dim,
            weight: it.weight,
        });
        FlowConfig { label_dropout, times, timeshift, alignment }
    }

    /// The network, for latents of some channels and some classes: a preset takes them, a table must agree.
    ///
    /// # Errors
    ///
    /// An unknown name, sizes that make no network or do not fit the data.
    pub fn network(&self, channels: usize, num_classes: usize) -> Result<NetworkConfig> {
        let network = match &self.network {
            toml::Value::String(name) => {
                let mut network = NetworkConfig::preset(name).context("network")?;
                (network.sizes.in_channels, network.sizes.num_classes) = (channels, num_classes);
                network
            }
            toml::Value::Table(table) => {
                let mut table = table.clone();
                // What the data decides need not be said.
                let mut fill = |key: &str, value: usize| -> Result<()> {
                    let value = toml::Value::Integer(i64::try_from(value)?);
                    table.entry(key.to_owned()).or_insert(value);
                    Ok(())
                };
                fill("in_channels", channels)?;
                fill("num_classes", num_classes)?;
                NetworkConfig::deserialize(toml::Value::Table(table)).context("network")?
            }
            _ => bail!("network: expected a preset's name or a table of sizes"),
        };
        network.validate().context("network")?;
        let sizes = &network.sizes;
        ensure!(
            sizes.in_channels == channels && sizes.num_classes == num_classes,
            "network: expected in_channels = {channels} and num_classes = {num_classes}, as the data has, got {} and {}",
            sizes.in_channels,
            sizes.num_classes
        );
        Ok(network)
    }
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

    #[test]
    fn what_is_left_away_is_the_papers() {
        let settings = Settings::parse(SHORT).unwrap();
        assert_eq!(settings.train, TrainConfig::paper());
        assert_eq!(settings.flow_config(768), FlowConfig::PAPER);
        assert!(!settings.images.flips);
        assert_eq!(settings.cache(), Path::new("out/run/latents"));
        let network = settings.network(4, 7).unwrap();
        assert_eq!((network.sizes.hidden_size, network.sizes.num_classes), (768, 7));
    }

    #[test]
    fn the_files_that_come_with_the_examples_make_networks() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
        assert!(files.len() >= 6);
        for file in files {
            let settings = Settings::read(&file).unwrap();
            let aligned = settings.alignment.as_ref().map_or(0, |it| it.layer);
            let sizes = settings.network(4, 1000).unwrap().sizes;
            assert!(aligned <= sizes.num_encoder_blocks + sizes.num_decoder_blocks, "{}", file.display());
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        let refused = |text: &str, part: &str| {
            let message = format!("{:#}", Settings::parse(text).unwrap_err());
            assert!(message.contains(part), "{message}");
        };
        refused(&format!("{SHORT}\nspeed = 3"), "speed");
        refused(&SHORT.replace("size = 256", "size = 256, flip = true"), "flip");
        refused(&SHORT.replace("sd-vae", "vae"), "vae");
        refused(&format!("{SHORT}\n[train]\nbatch_size = 0"), "batch_size");
        refused(&format!("{SHORT}\n[flow]\nlabel_dropout = 2"), "label_dropout");
        refused(&format!("{SHORT}\n[watch]\nlog_every = 0"), "log_every");
        let other = Settings::parse(&SHORT.replace("ddt-b2", "ddt-b3")).unwrap();
        assert!(format!("{:#}", other.network(4, 7).unwrap_err()).contains("ddt-b3"));
        let table = SHORT.replace(
            "\"ddt-b2\"",
            "{ hidden_size = 32, patch_size = 2, num_heads = 2, num_encoder_blocks = 1, num_decoder_blocks = 1, num_classes = 9 }",
        );
        let table = Settings::parse(&table).unwrap();
        assert_eq!(table.network(4, 9).unwrap().sizes.hidden_size, 32);
        assert!(format!("{:#}", table.network(4, 7).unwrap_err()).contains("num_classes = 7"));
    }
}
