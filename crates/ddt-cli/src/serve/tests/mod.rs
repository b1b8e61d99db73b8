//! The interface, from a client's side: a server in this process on a free port, and a client of raw bytes.

mod client;
mod docs;
mod jobs;
mod limits;
mod page;

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use ddt::{
    Pipeline, PipelineConfig,
    model::{DdtFile, Description, Family, NetworkConfig},
};
use serde_json::{Value, json};

use crate::serve::{
    guard::Guard,
    http::Studio,
    job::Job,
    listener::Patience,
    queue::{Bounds, Queue},
    serve,
    submission::Command,
    work::{Previews, perform},
};

/// The demo's weights, read once.
fn demo() -> Pipeline {
    static DEMO: OnceLock<Pipeline> = OnceLock::new();
    let demo = DEMO.get_or_init(|| Pipeline::demo().unwrap());
    demo.with_sampler(demo.config()).unwrap()
}

/// A network of the demo's sizes without two halves, untrained.
fn undivided() -> Pipeline {
    let demo = DdtFile::from_bytes(ddt_demo::NETWORK, "demo").unwrap();
    let config = NetworkConfig { family: Family::ImprovedSit, ..demo.network_config().unwrap().clone() };
    let shapes = config.parameter_shapes().unwrap().into_iter();
    let weights =
        shapes.map(|(name, shape)| (name, Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap())).collect();
    let description = Description {
        config,
        classes: demo.classes().map(<[String]>::to_vec),
        latents: demo.latents().cloned(),
        metadata: Default::default(),
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("undivided.safetensors");
    DdtFile::write(&file, &description, &weights).unwrap();
    Pipeline::new(&PipelineConfig::new(file)).unwrap()
}

/// Settings of a server; patient, for a busy machine.
struct Setup {
    pipeline: Pipeline,
    bounds: Bounds,
    patience: Patience,
    guard: Guard,
    answer: Duration,
    workers: usize,
}

impl Default for Setup {
    fn default() -> Self {
        let bounds = Bounds {
            waiting: 8,
            waiting_of_client: 4,
            kept: 8,
            kept_bytes: 1 << 26,
            run: Duration::from_secs(300),
            abandoned: Duration::from_secs(60),
        };
        let minute = Duration::from_secs(60);
        let patience = Patience { connections: 64, head: minute, write: minute };
        Self { pipeline: demo(), bounds, patience, guard: Guard::default(), answer: minute, workers: 1 }
    }
}

type Work = dyn Fn(&Job) -> Result<Value> + Send + Sync;

/// A server that stops when it is dropped.
struct Server {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// The demo, as the command serves it.
    fn demo() -> Self {
        let previews = Previews::new(&demo(), Duration::from_millis(1), 0.5, true).unwrap();
        let command = Command { fixed: vec!["--weights".to_owned(), "demo".to_owned()] };
        Self::new(Setup::default(), Box::new(move |job| perform(job, &previews, &command)))
    }

    /// Jobs that end when they are told to stop, and those of seed 0 at once.
    fn waiting(setup: Setup) -> Self {
        Self::new(
            setup,
            Box::new(|job| {
                while seed_of(job) != 0 && job.flow().is_continue() {
                    thread::sleep(Duration::from_millis(5));
                }
                anyhow::ensure!(job.flow().is_continue(), "stopped");
                Ok(json!({}))
            }),
        )
    }

    fn new(setup: Setup, work: Box<Work>) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), setup, work)
    }

    fn on(listener: TcpListener, setup: Setup, work: Box<Work>) -> Self {
        let address = listener.local_addr().unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let is_stopping = stopping.clone();
        let Setup { pipeline, bounds, patience, guard, answer, workers } = setup;
        let shown = json!({ "class": 7, "images": 4, "seed": 0, "rng": "counter", "batch": 4 });
        let studio = Arc::new(Studio { pipeline, queue: Arc::new(Queue::new(bounds)), guard, shown, answer });
        let thread = thread::spawn(move || {
            let is_stopping = || is_stopping.load(Ordering::Relaxed);
            serve(listener, &studio, workers, patience, &is_stopping, &work)
        });
        Self { address, stopping, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn seed_of(job: &Job) -> u64 {
    match &job.order {
        crate::serve::submission::Order::Generate { request, .. } => request.seed,
        crate::serve::submission::Order::Measure { seed, .. } => *seed,
    }
}

/// Waits for something that happens soon.
#[track_caller]
fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let since = Instant::now();
    while !happened() {
        assert!(since.elapsed() < Duration::from_secs(60), "still not: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
