//! `ddt convert`: weights of any file that is read here, as safetensors with their description.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use ddt::{
    Dtype, OutputFile,
    hub::PublishedAutoencoder,
    model::{DdtFile, Description, Family, LatentInfo, NetworkConfig, parameter_dtype},
};

const EXAMPLES: &str = "\
Examples:
  ddt convert model.ckpt model.safetensors --preset ddt-xl2 --classes imagenet    the published checkpoint
  ddt convert model.safetensors half.safetensors --dtype bf16
  ddt convert demo demo.safetensors                          the demo, to fine-tune it
  ddt convert model.safetensors published.safetensors --published-names           ema_denoiser.* for PyTorch";

/// Writes the network of a checkpoint as safetensors, with its configuration, class names and latents, in a chosen
/// number type.
///
/// Of a training checkpoint the averaged weights are written. Names are the published ones; with --published-names
/// they begin with ema_denoiser., so that PyTorch's state dict has them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The weights to read: a file (safetensors or PyTorch), or demo
    input: PathBuf,
    /// The safetensors file to write
    output: PathBuf,
    /// Number type to write; the frequencies of DiT^DH's times stay in f32 [default: as it is]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Sizes of the network, for a file that does not say its own, such as ddt-xl2-22en6de
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Class names: imagenet, or a text file with a name per line [default: those of the file]
    #[arg(long, value_name = "imagenet|PATH")]
    classes: Option<PathBuf>,
    /// Height and width of the latents, such as 32, for a file that does not say its latents: those of sd-vae-ft-ema,
    /// of DiT^DH those of its representation autoencoder
    #[arg(long, value_name = "SIDE")]
    latents: Option<usize>,
    /// Write the names of a published training checkpoint, without a description
    #[arg(long)]
    published_names: bool,
}

pub(crate) fn run(args: &Args) -> Result<String> {
    let output = OutputFile::new(&args.output, &["safetensors"])?;
    let file = match args.input.to_str() {
        Some("demo") => ddt::demo_file()?,
        _ => DdtFile::open(&args.input)?,
    };
    let asked = args.preset.as_deref().map(NetworkConfig::preset).transpose().context("--preset")?;
    let config: NetworkConfig = match (file.network_config(), asked) {
        (Some(found), None) => found.clone(),
        (Some(found), Some(asked)) => {
            ensure!(
                *found == asked,
                "--preset: the file says other sizes of its network; leave --preset out"
            );
            found.clone()
        }
        (None, Some(asked)) => asked,
        (None, None) => bail!(
            "the file does not say the sizes of its network; add --preset NAME, one of {}",
            NetworkConfig::preset_names().join(", ")
        ),
    };
    let weights = file.weights(Some(&config))?;
    let weights = weights.into_iter().map(|(name, it)| {
        let it = converted(&name, it, args.dtype)?;
        Ok((name, it))
    });
    let weights: BTreeMap<String, Tensor> = weights.collect::<Result<_>>()?;
    let (tensors, shown) = (weights.len(), output.path().display());
    if args.published_names {
        let named = weights.into_iter().map(|(name, it)| (format!("ema_denoiser.{name}"), it)).collect();
        ddt::files::write_safetensors(output.target(), &named, &BTreeMap::new())?;
        return Ok(format!("wrote {tensors} tensors to {shown}"));
    }
    let described = |key: &&String| !key.starts_with("ddt.");
    let metadata = file.metadata().iter().filter(|it| described(&it.0));
    let description = Description {
        classes: classes(args, &file)?,
        latents: latents(args, &file, &config)?,
        metadata: metadata.map(|(key, value)| (key.clone(), value.clone())).collect(),
        config,
    };
    DdtFile::write(output.target(), &description, &weights)?;
    Ok(format!("wrote {tensors} tensors to {shown}"))
}

/// Whole numbers stay what they are.
fn converted(name: &str, tensor: Tensor, dtype: Option<Dtype>) -> Result<Tensor> {
    Ok(match dtype {
        Some(dtype) if tensor.dtype().is_float() => {
            tensor.to_dtype(parameter_dtype(name, DType::from(dtype)))?
        }
        _ => tensor,
    })
}

fn classes(args: &Args, file: &DdtFile) -> Result<Option<Vec<String>>> {
    let Some(path) = &args.classes else { return Ok(file.classes().map(<[String]>::to_vec)) };
    class_names(path).context("--classes").map(Some)
}

/// Class names in the order of labels: those of ImageNet for `imagenet`, else the lines of a text file.
pub(crate) fn class_names(path: &Path) -> Result<Vec<String>> {
    if path.to_str() == Some("imagenet") {
        let table = ddt::ClassTable::imagenet()?;
        return Ok((0..).map_while(|it| table.name(it).map(str::to_owned)).collect());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().map(|it| it.trim().to_owned()).filter(|it| !it.is_empty()).collect())
}

fn latents(args: &Args, file: &DdtFile, config: &NetworkConfig) -> Result<Option<LatentInfo>> {
    let Some(side) = args.latents else { return Ok(file.latents().cloned()) };
    ensure!(file.latents().is_none(), "--latents: the file says its latents; leave --latents out");
    let channels = config.sizes.in_channels;
    let (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
    let autoencoder = match (config.family, side) {
        (Family::DitDh, 16) => PublishedAutoencoder::RaeDinoV2B256,
        (Family::DitDh, 32) => PublishedAutoencoder::RaeDinoV2B512,
        (Family::DitDh, _) => bail!("--latents: expected 16 or 32 for DiT^DH, got {side}"),
        _ => PublishedAutoencoder::SdVaeFtEma,
    };
    let autoencoder = autoencoder.to_string();
    Ok(Some(LatentInfo { autoencoder, height: side, width: side, mean, std }))
}
