//! `ddt verify`: the published files in the hub's local cache, checked tensor by tensor, and the paper's protocol with
//! them.

mod files;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::value_parser;
use ddt::{
    Dtype, Fidelity, Opened, OutputFile, PipelineConfig, Place, Rounding, Source,
    args::Threads,
    files::npz::Shard,
    hub::{Hub, HubFile, PublishedAutoencoder, Release},
    model::NetworkConfig,
};
use ddt_metrics::NEIGHBOURHOOD;

use self::files::Autoencoder;
use crate::{
    dataset::{self, DataSet},
    evaluate::{self, Choice, Comparison, Extractor, Measurement},
    terminal::Terminal,
};

const EXAMPLES: &str = "\
Examples:
  ddt fetch ddt-xl2-256
  ddt verify --preset ddt-xl2-256                                    the files
  ddt verify --preset ddt-xl2-256 --references VIRTUAL_imagenet256_labeled.npz \\
      --weights pt_inception-2015-12-05-6726825d.pth                 also the FID
  ddt verify --preset ditdh-xl-256 --guiding-network ditdh-s-256     DiT^DH-XL and the network that guides it
The same command resumes where it was stopped or killed.";

/// Checks the published files of a network in the hub's local cache, and with --references that they give the paper's
/// numbers.
///
/// Of the files it checks the hashes, and every tensor of the network and its autoencoder. Then it generates images
/// with the settings of the paper's tables and compares them with the references as ddt evaluate does. Those of DDT are
/// 250 Euler steps, the last of length 0.04, and guidance 2 in (0.3, 1), 3 at 512 px; those of DiT^DH 49 Euler steps to
/// 0.999 with its time shift, pixels rounded down, and no guidance, or 1.42 away from --guiding-network, 1.5 at 512 px.
/// DDT runs on a GPU where this build and this machine have one.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The published network: ddt-xl2-256, ddt-xl2-512, ditdh-xl-256, ditdh-xl-512, ditdh-s-256 or ditdh-s-512
    #[arg(long, value_name = "NAME")]
    preset: Release,
    /// The published network that guides it, which is checked too: ditdh-s-256 of ditdh-xl-256, ditdh-s-512 of
    /// ditdh-xl-512 [default: none]
    #[arg(long, value_name = "NAME")]
    guiding_network: Option<Release>,
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
    /// Which network computes features; cifar10-classifier takes images of 32 x 32 pixels only
    #[arg(long, value_enum, default_value_t = Choice::Inception)]
    extractor: Choice,
    /// Weights of that network (safetensors or PyTorch); cifar10-classifier needs none
    #[arg(long, value_name = "PATH")]
    weights: Option<PathBuf>,
    /// Device: cpu; in a build with GPUs (docs/CUDA.md) cuda, or cuda:N, GPU N counted from 0
    /// [default: the first GPU, where this build and this machine have one, else cpu; cpu for DiT^DH]
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
    let find = |release: Release, file: HubFile| match hub.find(&file) {
        Some(path) => Ok((file, path)),
        None => bail!(
            "{file} is not in the hub's cache {}; fetch it with: ddt fetch {release}",
            hub.cache.display()
        ),
    };
    if let Some(got) = args.guiding_network {
        check_guiding(release, got)?;
    }
    // Everything that can be missing is, before minutes go into the first file.
    let networks = [Some(release), args.guiding_network].into_iter().flatten();
    let networks = networks.map(|it| Ok((it, find(it, it.network())?))).collect::<Result<Vec<_>>>()?;
    let autoencoder = release.autoencoder().decoding_files().into_iter().map(|it| find(release, it));
    let autoencoder = autoencoder.collect::<Result<Vec<_>>>()?;
    // So is everything that a look at sizes tells.
    let autoencoder = Autoencoder::open(release, autoencoder)?;
    let protocol = args.references.as_deref().map(|references| {
        let name = args.protocol.name(release, args.guiding_network);
        let config = args.protocol.published(release, args.guiding_network)?;
        args.protocol.prepare(&config, name, references, &hub, terminal)
    });
    let protocol = protocol.transpose()?;
    let mut lines = Vec::new();
    for (file, path) in networks.iter().map(|it| &it.1).chain(autoencoder.files()) {
        lines.push(files::check_hash(file, path, terminal)?);
    }
    for (release, (file, path)) in &networks {
        lines.push(files::check_network(*release, path, terminal).with_context(|| file.to_string())?);
    }
    lines.push(autoencoder.read(terminal)?);
    lines.push(match protocol {
        Some(protocol) => protocol.run(terminal)?,
        None => "no images were generated and measured; add --references PATH for that".to_owned(),
    });
    Ok(lines.join("\n"))
}

impl ProtocolArgs {
    /// The settings of the paper's tables; guidance is the network's usual one.
    fn published(&self, release: Release, guiding: Option<Release>) -> Result<PipelineConfig> {
        let dit_dh = is_dit_dh(release);
        // Only DDT runs on a GPU.
        let best = || if dit_dh { Place::Cpu } else { Place::best() };
        let config = PipelineConfig {
            network: Some(NetworkConfig::preset(release.sizes())?),
            guiding_network: guiding.map(|it| Source::new(it.to_string())),
            dtype: self.dtype,
            device: self.device.unwrap_or_else(best),
            rounding: if dit_dh { Rounding::Down } else { Rounding::Nearest },
            ..PipelineConfig::new(release.to_string())
        };
        // The sizes chose the steps; the file is compared with them later, by name.
        Ok(PipelineConfig { network: None, ..config.with_fidelity(Fidelity::Exact) })
    }

    /// The protocol that the numbers must follow: the paper's, whose numbers are those of Inception's features.
    fn name(&self, release: Release, guiding: Option<Release>) -> Option<String> {
        let paper = if is_dit_dh(release) { "rae" } else { "ddt" };
        let guided = if guiding.is_some() { "-autoguided" } else { "" };
        let name = format!("{paper}-imagenet-{}{guided}", release.side());
        (self.extractor == Choice::Inception).then_some(name)
    }

    /// Checks all that can be checked before images are generated with the settings `config`.
    fn prepare<'a>(
        &self,
        config: &PipelineConfig,
        protocol: Option<String>,
        references: &'a Path,
        hub: &Hub,
        terminal: &Terminal,
    ) -> Result<Protocol<'a>> {
        let opened = Opened::new(config, hub)?;
        self.extractor.check_size(opened.image_size())?;
        let out = OutputFile::with_folder(&self.out.join("samples.npz"), &["npz"]).context("--out")?;
        let measurement = Measurement {
            extractor: self.extractor,
            weights: self.weights.clone(),
            device: if self.extractor == Choice::Inception { config.device } else { Place::Cpu },
            protocol,
            classes: None,
            neighbourhood: NEIGHBOURHOOD as u32,
            split_size: 5000,
            out: None,
            cache: self.out.join("features"),
        };
        let extractor = measurement.load(&ddt_dist::Alone, terminal)?;
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

fn is_dit_dh(release: Release) -> bool {
    release.autoencoder() != PublishedAutoencoder::SdVaeFtEma
}

/// Checks that a network is the one that guides another in its paper.
fn check_guiding(release: Release, got: Release) -> Result<()> {
    let expected = match release {
        Release::DitDhXlR256 => Some(Release::DitDhSR256),
        Release::DitDhXlR512 => Some(Release::DitDhSR512),
        _ => None,
    };
    let words = expected.map_or_else(|| "none".to_owned(), |it| it.to_string());
    ensure!(
        expected == Some(got),
        "--guiding-network: expected {words}, as the paper of {release} has it, got {got}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;
    use ddt::{
        files::npz::{ArrayData, write_npz},
        flow::{Guidance, TimeGrid},
    };
    use ddt_metrics::NamedProtocol;

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
            let config = args.published(release, None).unwrap();
            assert_eq!(config.grid, Some(TimeGrid::new(250, Some(0.04), 1.0).unwrap()));
            assert_eq!((config.solver.as_str(), config.guidance), ("euler", None));
            assert_eq!((config.dtype, config.device), (Dtype::Bf16, Place::Cpu));
            assert_eq!((config.rounding, config.guiding_network), (Rounding::Nearest, None));
        }
        for (release, guiding, shift) in [
            (Release::DitDhXlR256, Release::DitDhSR256, 48f64.sqrt()),
            (Release::DitDhXlR512, Release::DitDhSR512, 192f64.sqrt()),
        ] {
            let config = args.published(release, Some(guiding)).unwrap();
            assert_eq!(config.grid, Some(TimeGrid::until(49, 0.999, shift).unwrap()));
            assert_eq!((config.solver.as_str(), config.guidance), ("euler", None));
            assert_eq!(config.rounding, Rounding::Down);
            assert_eq!(config.guiding_network, Some(Source::new(guiding.to_string())));
            check_guiding(release, guiding).unwrap();
        }
    }

    #[test]
    fn the_settings_follow_the_protocol_of_their_name() {
        let line = ["verify", "--preset=ditdh-xl-256", "--references=any"];
        let args = Cli::parse_from(line).args.protocol;
        for release in Release::ALL {
            let guides = |it: &Release| check_guiding(release, *it).is_ok();
            for guiding in [None, Release::ALL.into_iter().find(guides)] {
                let named = NamedProtocol::find(&args.name(release, guiding).unwrap()).unwrap();
                let mut config = args.published(release, guiding).unwrap();
                // Opening the files would set it.
                config.guidance = Some(match (release.side(), guiding, is_dit_dh(release)) {
                    (256, Some(_), _) => Guidance::new(1.42, (0.0, 1.0)).unwrap().closed(),
                    (_, Some(_), _) => Guidance::new(1.5, (0.0, 1.0)).unwrap().closed(),
                    (_, None, true) => Guidance::none(),
                    (256, None, false) => Guidance::new(2.0, (0.3, 1.0)).unwrap(),
                    (_, None, false) => Guidance::new(3.0, (0.3, 1.0)).unwrap(),
                });
                config.network = Some(NetworkConfig::preset(release.sizes()).unwrap());
                let departures = named.generation_departures(&serde_json::json!({
                    "pipeline": config, "rounding": config.rounding.formula(),
                }));
                // DiT^DH-S has no results of its own.
                let small = matches!(release, Release::DitDhSR256 | Release::DitDhSR512);
                let expected: &[&str] =
                    if small { &["width of the network", "encoder blocks of the network"] } else { &[] };
                let got: Vec<&str> = departures.iter().map(|it| it.what.as_str()).collect();
                assert_eq!(got, expected, "{release}: {departures:?}");
            }
        }
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
            args.prepare(&config, None, references, &hub, &terminal)?.run(&terminal)
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
}
