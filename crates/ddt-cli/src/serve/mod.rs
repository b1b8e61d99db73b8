//! `ddt serve`: a page in the browser and an HTTP interface to generate, compare and plan.

mod events;
mod guard;
mod http;
mod job;
mod listener;
mod queue;
mod submission;
#[cfg(test)]
mod tests;
mod work;

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ddt::{
    args::PipelineArgs,
    files::sha256,
    hub::{Hub, Release},
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    fetch,
    sample::parse_size,
    serve::{
        guard::Guard,
        http::{Studio, router},
        listener::{Patience, listen},
        queue::{Bounds, Queue, random_name},
        submission::Command,
        work::{Previews, perform},
    },
    terminal::Terminal,
};

const EXAMPLES: &str = "\
Examples:
  ddt serve                               the page for this machine's browsers, on port 8188
  ddt serve --weights hub                 DDT-XL/2, fetched if need be
  ddt serve --address 0.0.0.0             for other machines, with a token in the printed address";

/// Serves a page in the browser, and the HTTP interface that it uses, until Ctrl-C.
///
/// Prints the page's address. Flags of the sampler are the settings that the page shows first. docs/serve.md describes
/// page and interface.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Address to listen on; any but this machine's own needs a token
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Port to listen on; 0 is any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8188)]
    port: u16,
    /// Further names of this machine that browsers may use for it; repeat it
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Token that every client needs [default: none on this machine's own address, else a random one, printed]
    #[arg(long, value_name = "TOKEN", value_parser = parse_token)]
    token: Option<String>,
    /// Jobs that may wait; further ones are refused for a while
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    queue: u32,
    /// Jobs that run at the same time, at most one of each client
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Longest time that a job may run, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    max_seconds: u32,
    /// Show no previews while images are made
    #[arg(long)]
    no_previews: bool,
    /// Side of the images in pixels, which chooses the published weights and some defaults
    #[arg(long, value_name = "256|512", default_value = "256", value_parser = parse_size)]
    size: Release,
    #[command(flatten)]
    pipeline: PipelineArgs,
}

/// Jobs of one client that may wait.
const WAITING_OF_CLIENT: usize = 4;

/// Time between two previews, and the share of the time that they take at most.
const PREVIEWS: (Duration, f64) = (Duration::from_millis(200), 0.01);

/// Time that running jobs may go on after Ctrl-C.
const GRACE: Duration = Duration::from_secs(10);

fn parse_token(text: &str) -> Result<String, String> {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_.~".contains(it);
    if text.len() >= 8 && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err("expected at least 8 letters, digits or -_.~".to_owned())
}

pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    let given = &args.pipeline;
    given.threads.start()?;
    let listener = TcpListener::bind(SocketAddr::new(args.address, args.port))
        .with_context(|| format!("--address, --port: cannot listen on {}:{}", args.address, args.port))?;
    let hub = Hub::from_env();
    fetch::weights(&hub, given, args.size, &[], terminal)?;
    let opened = given.open(args.size, &hub)?;
    if let Some(notice) = given.notice(&opened, args.size, &hub) {
        terminal.say(notice);
    }
    let batch = given.batch(&opened);
    let pipeline = opened.load()?;
    let token = match &args.token {
        None if !args.address.is_loopback() => Some(random_name()?),
        given => given.clone(),
    };
    let bounds = Bounds {
        waiting: args.queue as usize,
        waiting_of_client: WAITING_OF_CLIENT,
        kept: 32,
        kept_bytes: 128 << 20,
        run: Duration::from_secs(args.max_seconds.into()),
        abandoned: Duration::from_secs(10),
    };
    let mut address = format!("http://{}/", listener.local_addr()?);
    if let Some(token) = &token {
        address += &format!("?token={token}");
    }
    let guard = Guard { hosts: args.host.clone(), token: token.map(|it| sha256(it.as_bytes())) };
    let shown = json!({ "class": shown_class(&pipeline), "images": 4, "seed": given.seed, "rng": given.rng, "batch": batch });
    let queue = Arc::new(Queue::new(bounds));
    let studio = Arc::new(Studio { pipeline, queue, guard, shown, answer: Duration::from_secs(10) });
    let previews = Previews::new(&studio.pipeline, PREVIEWS.0, PREVIEWS.1, !args.no_previews)?;
    let command = Command { fixed: fixed_flags(args, &studio.pipeline) };
    let patience =
        Patience { connections: 512, head: Duration::from_secs(10), write: Duration::from_secs(10) };
    let _stepping = terminal.cancel().stepping();
    // The result of the command, which programs wait for.
    writeln!(std::io::stdout(), "{address}").ok();
    terminal.say("open this address in a browser; press Ctrl-C to stop");
    let is_stopping = || terminal.cancel().is_requested();
    let work = |job: &job::Job| perform(job, &previews, &command);
    serve(listener, &studio, args.workers as usize, patience, &is_stopping, &work)?;
    Ok("stopped".to_owned())
}

/// A class that the demo is good at, or the first.
fn shown_class(pipeline: &ddt::Pipeline) -> u32 {
    ["horse", "golden retriever"].into_iter().find_map(|it| pipeline.classes().parse(it).ok()).unwrap_or(0)
}

/// The flags of a command that has this server's weights.
fn fixed_flags(args: &Args, pipeline: &ddt::Pipeline) -> Vec<String> {
    let given = &args.pipeline;
    let auto = |it: &std::path::Path| it == std::path::Path::new("auto");
    let weights = match given.weights.to_str() {
        Some("auto" | "hub") => &pipeline.config().weights.from,
        _ => &given.weights,
    };
    let mut flags = vec!["--weights".to_owned(), weights.display().to_string()];
    let mut flag = |name: &str, value: Option<String>| {
        flags.extend(value.into_iter().flat_map(|it| [format!("--{name}"), it]));
    };
    flag("size", (args.size.side() != 256).then(|| args.size.side().to_string()));
    flag("preset", given.preset.clone());
    flag("autoencoder", (!auto(&given.autoencoder)).then(|| given.autoencoder.display().to_string()));
    flag("guiding-network", given.guiding_network.as_ref().map(|it| it.display().to_string()));
    let name = |it: serde_json::Value| it.as_str().map(str::to_owned).unwrap_or_default();
    flag("dtype", (given.dtype != ddt::Dtype::F32).then(|| name(json!(given.dtype))));
    flag("device", (given.device != ddt::Place::Cpu).then(|| given.device.to_string()));
    flags
}

/// Serves until `is_stopping`: then waiting jobs are returned, and running ones may end within [`GRACE`].
fn serve(
    listener: TcpListener,
    studio: &Arc<Studio>,
    workers: usize,
    patience: Patience,
    is_stopping: &dyn Fn() -> bool,
    work: &(dyn Fn(&job::Job) -> Result<serde_json::Value> + Sync),
) -> Result<()> {
    let queue = &studio.queue;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| queue.work(work));
        }
        let outcome = runtime.block_on(async {
            let stop = async {
                while !is_stopping() {
                    queue.tend();
                    sleep(Duration::from_millis(100)).await;
                }
                queue.close();
            };
            let drained = async {
                let since = Instant::now();
                while queue.counts().running > 0 {
                    if since.elapsed() > GRACE {
                        queue.stop();
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            };
            listen(
                tokio::net::TcpListener::from_std(listener)?,
                router(studio.clone()),
                patience,
                stop,
                drained,
            )
            .await
        });
        queue.close();
        queue.stop();
        outcome
    })
}
