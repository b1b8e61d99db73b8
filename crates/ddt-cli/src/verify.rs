//! `ddt verify`: the published files in the hub's local cache, checked tensor by tensor, and the paper's protocol with
//! them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use clap::value_parser;
use ddt::{
    Dtype, Opened, OutputFile, PipelineConfig, Place,
    adapters::{KlConfig, KlDecoder, KlEncoder, RaeDecoder, RaeDecoderConfig, RaeStatistics},
    args::Threads,
    files::{Checkpoint, npz::Shard, sha256_file},
    flow::TimeGrid,
    hub::{Hub, HubFile, PublishedAutoencoder, Release},
    model::{DdtFile, NetworkConfig},
};
use ddt_metrics::NEIGHBOURHOOD;

use crate::{
    dataset::{self, DataSet},
    evaluate::{self, Choice, Comparison, Extractor, Measurement},
    terminal::{Interrupted, Terminal},
};

const EXAMPLES: &str = "\
Examples:
  ddt fetch ddt-xl2-256
  ddt verify --preset ddt-xl2-256                                    the files
  ddt verify --preset ddt-xl2-256 --references VIRTUAL_imagenet256_labeled.npz \\
      --weights pt_inception-2015-12-05-6726825d.pth                 also the FID
The same command resumes where it was stopped or killed.";

/// Checks the published files of a network in the hub's local cache, and with --references that they give the paper's
/// numbers.
///
/// Of the files it checks the hashes, and every tensor of the network and its autoencoder. Then it generates images
/// with the settings of the paper's tables (250 Euler steps, the last of length 0.04, guidance 2 in (0.3, 1), 3 at
/// 512 px) and compares them with the references as ddt evaluate does. It computes on a GPU where this build and this
/// machine have one.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The published network: ddt-xl2-256 or ddt-xl2-512; ditdh-xl-256, ditdh-xl-512, ditdh-s-256 or ditdh-s-512
    /// without --references
    #[arg(long, value_name = "NAME")]
    preset: Release,
    /// Run the paper's protocol too, against this npz file (images, or statistics such as ADM's reference batches) or
    /// folder of photos
    #[arg(long, value_name = "PATH")]
    references: Option<PathBuf>,
    #[command(flatten)]
    protocol: ProtocolArgs,
    #[command(flatten)]
    threads: Threads,
}

/// Choices for the protocol: number of images, features, device, output.
#[derive(Debug, clap::Args)]
#[group(requires = "references")]
struct ProtocolArgs {
    /// Images to generate; the paper's numbers are those of 50,000
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = value_parser!(u32).range(2..=100_000_000))]
    count: u32,
    /// Which network computes features
    #[arg(long, value_enum, default_value_t = Choice::Inception)]
    extractor: Choice,
    /// Weights of that network (safetensors or PyTorch); cifar10-classifier needs none
    #[arg(long, value_name = "PATH")]
    weights: Option<PathBuf>,
    /// Device: cpu; in a build with GPUs (docs/CUDA.md) cuda, or cuda:N, GPU N counted from 0
    /// [default: the first GPU, where this build and this machine have one, else cpu]
    #[arg(long)]
    device: Option<Place>,
    /// Number type of the network, and on a GPU of the autoencoder
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Images made at once [default: 4 at 256 px, 1 at 512 px, on a GPU 64 and 32]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=65_536))]
    batch: Option<u32>,
    /// Folder of the images, the cached features and the report; the same folder resumes
    #[arg(long, value_name = "DIR", default_value = "out/verify")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    args.threads.start()?;
    let (release, hub) = (args.preset, Hub::from_env());
    let find = |file: HubFile| match hub.find(&file) {
        Some(path) => Ok((file, path)),
        None => bail!(
            "{file} is not in the hub's cache {}; fetch it with: ddt fetch {release}",
            hub.cache.display()
        ),
    };
    // Everything that can be missing is, before minutes go into the first file.
    let network = find(release.network())?;
    let autoencoder = release.autoencoder().decoding_files().into_iter().map(find);
    let autoencoder = autoencoder.collect::<Result<Vec<_>>>()?;
    let protocol = args.references.as_deref().map(|references| {
        let config = args.protocol.published(release)?;
        args.protocol.prepare(&config, references, &hub, terminal)
    });
    let protocol = protocol.transpose()?;
    let mut lines = vec![check_hash(&network.0, &network.1, terminal)?];
    for (file, path) in &autoencoder {
        lines.push(check_hash(file, path, terminal)?);
    }
    lines.push(check_network(release, &network.1, terminal)?);
    let paths: Vec<&Path> = autoencoder.iter().map(|it| it.1.as_path()).collect();
    lines.push(check_autoencoder(release.autoencoder(), &paths, terminal)?);
    lines.push(match protocol {
        Some(protocol) => protocol.run(terminal)?,
        None => "no images were generated and measured; add --references PATH for that".to_owned(),
    });
    Ok(lines.join("\n"))
}

impl ProtocolArgs {
    /// The settings of the paper's tables; guidance is the network's usual one.
    fn published(&self, release: Release) -> Result<PipelineConfig> {
        ensure!(
            release.autoencoder() == PublishedAutoencoder::SdVaeFtEma,
            "--references: the tables' settings are those of DDT; expected --preset ddt-xl2-256 or ddt-xl2-512, got {release}"
        );
        Ok(PipelineConfig {
            grid: Some(TimeGrid::new(250, Some(0.04), 1.0)?),
            dtype: self.dtype,
            device: self.device.unwrap_or_else(Place::best),
            ..PipelineConfig::new(release.to_string())
        })
    }

    /// Checks all that can be checked before images are generated with the settings `config`.
    fn prepare<'a>(
        &self,
        config: &PipelineConfig,
        references: &'a Path,
        hub: &Hub,
        terminal: &Terminal,
    ) -> Result<Protocol<'a>> {
        let opened = Opened::new(config, hub)?;
        let out = OutputFile::with_folder(&self.out.join("samples.npz"), &["npz"]).context("--out")?;
        let measurement = Measurement {
            extractor: self.extractor,
            weights: self.weights.clone(),
            device: if self.extractor == Choice::Inception { config.device } else { Place::Cpu },
            protocol: None,
            classes: None,
            neighbourhood: NEIGHBOURHOOD as u32,
            split_size: 5000,
            out: None,
            cache: self.out.join("features"),
        };
        let extractor = measurement.load(terminal)?;
        evaluate::check_references(references, &extractor)?;
        let batch = self.batch.map_or(opened.usual_batch(), |it| it as usize);
        let request = dataset::balanced(&opened, &[], self.count, batch)?;
        let (count, png_folder, shard) = (self.count, None, Shard::ALONE);
        let samples = DataSet { opened, request, count, out, png_folder, shard };
        Ok(Protocol { samples, references, measurement, extractor })
    }
}

/// The paper's protocol, ready to run.
struct Protocol<'a> {
    samples: DataSet<'a>,
    references: &'a Path,
    measurement: Measurement,
    extractor: Extractor,
}

impl Protocol<'_> {
    /// Generates the images that are missing, and compares all of them with the references.
    fn run(self, terminal: &Terminal) -> Result<String> {
        let archive = self.samples.out.path().to_owned();
        let generated = self.samples.generate(terminal)?;
        let comparison = Comparison::prepare(&archive, self.references, &self.measurement, terminal)?;
        Ok(format!("{generated}\n{}", evaluate::finish(&comparison, &self.extractor)?))
    }
}

/// Compares a file with the hash that is its name in the cache.
fn check_hash(file: &HubFile, path: &Path, terminal: &Terminal) -> Result<String> {
    let unreadable = || format!("cannot read {}", path.display());
    let blob = path.canonicalize().with_context(unreadable)?;
    let bytes = blob.metadata().with_context(unreadable)?.len();
    terminal.say(format!("hashing {file}, {:.1} GB", bytes as f64 / 1e9));
    let got = sha256_file(&blob)?;
    let name = blob.file_name().and_then(|it| it.to_str()).unwrap_or_default();
    let is_hash = name.len() == 64 && name.bytes().all(|it| it.is_ascii_hexdigit());
    ensure!(
        !is_hash || name == got,
        "{file}: expected sha256:{name}, as the hub names it, got sha256:{got}; remove {} and fetch it again",
        blob.display()
    );
    let verdict = if is_hash { "as the hub names it" } else { "to which the cache has none to compare" };
    Ok(format!("{file}: {bytes} bytes, sha256:{got}, {verdict}"))
}

/// Reads every tensor of the network: none is missing, superfluous or misshapen, and all are finite.
fn check_network(release: Release, path: &Path, terminal: &Terminal) -> Result<String> {
    terminal.say("reading the network");
    let weights = DdtFile::open(path)?.weights(Some(&NetworkConfig::preset(release.sizes())?))?;
    let _stepping = terminal.cancel().stepping();
    let mut parameters = 0;
    for (name, tensor) in &weights {
        if terminal.cancel().is_requested() {
            return Err(Interrupted.into());
        }
        ensure!(is_finite(tensor)?, "{name}: expected finite numbers, got NaN or infinity");
        parameters += tensor.elem_count();
    }
    let (tensors, sizes) = (weights.len(), release.sizes());
    Ok(format!("network: {tensors} tensors and {parameters} parameters of {sizes}, all finite"))
}

/// Reads what is fetched of the autoencoder: both halves of Stable Diffusion's; decoder and statistics of an RAE.
fn check_autoencoder(
    autoencoder: PublishedAutoencoder,
    paths: &[&Path],
    terminal: &Terminal,
) -> Result<String> {
    terminal.say("reading the autoencoder");
    let (dtype, device) = (DType::F32, Device::Cpu);
    match (autoencoder, paths) {
        (PublishedAutoencoder::SdVaeFtEma, [path]) => {
            let (file, cfg) = (Checkpoint::open(path)?, KlConfig::sd_vae_ft_ema());
            KlEncoder::load(&cfg, &file, dtype, &device)?;
            KlDecoder::load(&cfg, &file, dtype, &device)?;
            Ok(format!("autoencoder: {} tensors, encoder and decoder are complete", file.names().len()))
        }
        (_, [decoder, statistics]) => {
            let file = Checkpoint::open(decoder)?;
            let statistics = RaeStatistics::load(&Checkpoint::open(statistics)?, &device)?;
            RaeDecoder::load(&RaeDecoderConfig::of(&file, None)?, &file, Some(statistics), dtype, &device)?;
            Ok(format!("autoencoder: {} tensors, decoder and statistics are complete", file.names().len()))
        }
        (_, paths) => bail!("{autoencoder}: expected a decoder and statistics, got {} files", paths.len()),
    }
}

/// Whether all elements are numbers: the sum of their squares is one then, in f64.
fn is_finite(tensor: &Tensor) -> candle_core::Result<bool> {
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.is_finite())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;
    use ddt::{
        files::npz::{ArrayData, write_npz},
        flow::Guidance,
    };

    use super::*;
    use crate::terminal::Cancel;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(folder: &Path, more: &[&str]) -> ProtocolArgs {
        let out = folder.join("out");
        let line =
            ["verify", "--preset=ddt-xl2-256", "--references=any", "--extractor=cifar10-classifier", "--out"];
        let words = line.into_iter().chain([out.to_str().unwrap()]).chain(more.iter().copied());
        Cli::parse_from(words).args.protocol
    }

    #[test]
    fn the_settings_are_those_of_the_papers_tables() {
        let args = parse(Path::new(""), &["--dtype=bf16", "--device=cpu"]);
        assert_eq!(Cli::parse_from(["verify", "--preset=ddt-xl2-512"]).args.protocol.count, 50_000);
        for release in [Release::DdtXl2R256, Release::DdtXl2R512] {
            let config = args.published(release).unwrap();
            assert_eq!(config.grid, Some(TimeGrid::new(250, Some(0.04), 1.0).unwrap()));
            assert_eq!((config.solver.as_str(), config.guidance), ("euler", None));
            assert_eq!((config.dtype, config.device), (Dtype::Bf16, Place::Cpu));
        }
        assert!(args.published(Release::DitDhXlR256).is_err());
    }

    /// Uses the demo: the published network would take days.
    #[test]
    fn the_protocol_runs_from_weights_to_numbers_and_resumes() {
        let folder = tempfile::tempdir().unwrap();
        let (hub, terminal) = (Hub::from_env(), Terminal::new(true, Cancel::default()));
        let mut config = PipelineConfig::new("demo");
        config.grid = Some(TimeGrid::new(2, Some(0.04), 1.0).unwrap());
        config.guidance = Some(Guidance::new(4.0, (0.0, 1.0)).unwrap());
        let run = |args: &ProtocolArgs, references: &Path| {
            args.prepare(&config, references, &hub, &terminal)?.run(&terminal)
        };
        // Mistakes are found before the archive is begun.
        let args = parse(folder.path(), &["--count=20", "--batch=8"]);
        let message = format!("{:#}", run(&args, &folder.path().join("absent")).unwrap_err());
        assert!(message.contains("REFERENCES") && message.contains("absent"), "{message}");
        let statistics = folder.path().join("statistics.npz");
        let (mu, sigma) = (ArrayData::F64(&[0.0]), ArrayData::F64(&[1.0]));
        write_npz(&statistics, &[("mu", &[1], mu), ("sigma", &[1, 1], sigma)]).unwrap();
        let message = run(&args, &statistics).unwrap_err().to_string();
        assert!(message.contains("Inception's"), "{message}");
        assert_eq!(fs::read_dir(folder.path().join("out")).unwrap().count(), 0);

        let references = folder.path().join("references.npz");
        let pixels: Vec<u8> =
            (0..20 * 3072_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        write_npz(&references, &[("arr_0", &[20, 32, 32, 3], ArrayData::U8(&pixels))]).unwrap();
        let table = run(&args, &references).unwrap();
        for part in
            ["20 images of 32 x 32 pixels, 10 classes", "frechet_distance", "class_accuracy", "precision"]
        {
            assert!(table.contains(part), "{part}: {table}");
        }
        let archive = folder.path().join("out/samples.npz");
        let (bytes, written) = (fs::read(&archive).unwrap(), archive.metadata().unwrap().modified().unwrap());
        assert_eq!(run(&args, &references).unwrap(), table);
        assert_eq!(
            (fs::read(&archive).unwrap() == bytes, archive.metadata().unwrap().modified().unwrap()),
            (true, written)
        );
        // The same images have no distance.
        let itself = run(&args, &archive).unwrap();
        let distance = itself.lines().find_map(|it| it.trim().strip_prefix("frechet_distance")).unwrap();
        assert!(distance.trim().parse::<f64>().unwrap().abs() < 1e-6, "{itself}");
        // Other settings do not mix with it.
        let more = parse(folder.path(), &["--count=30", "--batch=8"]);
        assert!(
            format!("{:#}", run(&more, &references).unwrap_err()).contains("count is 20 there and 30 here")
        );
    }

    #[test]
    fn one_element_that_is_no_number_is_found() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        assert!(is_finite(&tensor(&[f32::MAX, f32::MIN, 0.0])).unwrap());
        assert!(!is_finite(&tensor(&[1.0, f32::NAN, 0.0])).unwrap());
        assert!(!is_finite(&tensor(&[1.0, 0.0, f32::NEG_INFINITY])).unwrap());
    }
}
