//! `ddt fetch`: published weights into the hub's local cache.

use anyhow::{Context, Result, bail};
use ddt::{
    args::PipelineArgs,
    duration_in_words,
    hub::{Hub, HubFile, PublishedAutoencoder, Release},
};
use ddt_fetch::{FetchError, Patience, Progress};

use crate::terminal::{Interrupted, Terminal};

const EXAMPLES: &str = "\
Examples:
  ddt fetch ddt-xl2-256                                   DDT-XL/2 for 256 px and its autoencoder
  ddt fetch facebook/dinov2-base/model.safetensors        any file of the hub
A download that was stopped goes on where it was. The cache is the one of all of the hub's tools: HF_HUB_CACHE,
HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean there.";

/// Downloads published weights into the hub's local cache, and prints their paths.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The release to fetch: ddt-xl2-256, ddt-xl2-512, ditdh-xl-256, ditdh-xl-512, ditdh-s-256, ditdh-s-512; an
    /// autoencoder with its encoder: sd-vae-ft-ema, rae-dinov2-b-256, rae-dinov2-b-512; or OWNER/NAME/FILE of the hub
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Branch or commit of OWNER/NAME/FILE
    #[arg(long, value_name = "REVISION", default_value = "main")]
    revision: String,
}

pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    let mut files = Vec::new();
    for name in &args.names {
        let autoencoder = name.parse::<PublishedAutoencoder>().map(PublishedAutoencoder::files);
        let published = name.parse::<Release>().map(Release::files).or(autoencoder);
        match (published, name.splitn(3, '/').collect::<Vec<_>>().as_slice()) {
            (Ok(published), _) => files.extend(published),
            (_, [owner, repository, file]) => {
                files.push(HubFile::new(&format!("{owner}/{repository}"), &args.revision, file)?);
            }
            _ => {
                let releases = Release::ALL.map(|it| it.to_string()).join(", ");
                let autoencoders = PublishedAutoencoder::ALL.map(|it| it.to_string()).join(", ");
                bail!("expected one of {releases}, {autoencoders}, or OWNER/NAME/FILE, got {name:?}")
            }
        }
    }
    let hub = Hub::from_env();
    let paths = files.iter().map(|file| Ok(fetch(&hub, file, terminal)?.display().to_string()));
    Ok(paths.collect::<Result<Vec<_>>>()?.join("\n"))
}

/// The path of a file in the cache, downloaded first if need be, which is said before.
pub(crate) fn fetch(hub: &Hub, file: &HubFile, terminal: &Terminal) -> Result<std::path::PathBuf> {
    if let Some(path) = hub.find(file) {
        return Ok(path);
    }
    if !hub.offline {
        let size = file.about_bytes().map(|it| format!(" (about {})", size_in_words(it))).unwrap_or_default();
        terminal.say(format!("downloading {file}{size} from {} into {}", hub.endpoint, hub.cache.display()));
    }
    let _stepping = terminal.cancel().stepping();
    let mut meter = terminal.meter();
    let outcome = ddt_fetch::fetch(hub, file, &Patience::default(), &mut |progress| {
        meter.show(share(progress), line(progress));
        terminal.cancel().flow()
    });
    match outcome {
        Err(FetchError::Cancelled) => Err(Interrupted.into()),
        other => Ok(other?),
    }
}

fn size_in_words(bytes: u64) -> String {
    match bytes as f64 / 1e9 {
        gigabytes if gigabytes < 0.1 => format!("{:.1} MB", 1e3 * gigabytes),
        gigabytes => format!("{gigabytes:.1} GB"),
    }
}

fn share(progress: &Progress) -> f64 {
    progress.total.map_or(0.0, |total| progress.received as f64 / total.max(1) as f64)
}

fn line(progress: &Progress) -> String {
    let left = progress.total.map(|total| total.saturating_sub(progress.received) as f64 / progress.rate);
    let left = left.map(|it| format!(", {} left", duration_in_words(it))).unwrap_or_default();
    format!("{progress}{left}")
}

/// Fetches the published networks and autoencoder that the flags name, if they are missing, after a look at the
/// classes that are wanted of it; `auto` fetches nothing.
pub(crate) fn weights(
    hub: &Hub,
    pipeline: &PipelineArgs,
    size: Release,
    classes: &[String],
    terminal: &Terminal,
) -> Result<()> {
    let release = match pipeline.weights.to_str() {
        Some("hub") => pipeline.release(size),
        Some(name) => match name.parse() {
            Ok(release) => release,
            Err(_) => return Ok(()),
        },
        None => return Ok(()),
    };
    // Known before a long download.
    ddt::ClassTable::imagenet()?.parse_list(classes).context("--class")?;
    let autoencoder = match pipeline.autoencoder.to_str() {
        Some("auto") => Some(release.autoencoder()),
        named => named.and_then(|it| it.parse().ok()),
    };
    let guiding = pipeline.guiding_network.as_ref().and_then(|it| it.to_str()?.parse::<Release>().ok());
    let networks = [Some(release), guiding].into_iter().flatten().map(Release::network);
    let decoding = autoencoder.map(PublishedAutoencoder::decoding_files).unwrap_or_default();
    for file in networks.chain(decoding) {
        fetch(hub, &file, terminal)?;
    }
    Ok(())
}
