//! Attacks a server in every way at once, while one client behaves.

use std::{
    collections::BTreeMap,
    io::{BufReader, Read, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ddt_system_tests::{Events, Program, answer, connect, request};
use serde_json::json;

/// Flags of the abuse.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Length of the abuse, in seconds
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Malformed requests, spread over its length
    #[arg(long, default_value_t = 10_000)]
    malformed: u64,
    /// Slow connections that are open at any time
    #[arg(long, default_value_t = 200)]
    slow: usize,
    /// Jobs, spread over its length
    #[arg(long, default_value_t = 1000)]
    jobs: u64,
    /// Bodies of 1 GiB, spread over its length
    #[arg(long, default_value_t = 20)]
    bodies: u64,
}

/// Largest memory of the server.
const MAX_BYTES: u64 = 600 << 20;

/// A run of the abuse: its time, and how often each thing was done.
struct Abuse {
    address: String,
    until: Instant,
    length: Duration,
    ended: AtomicBool,
    counts: Mutex<BTreeMap<String, u64>>,
}

/// Runs everything and prints the figures.
///
/// # Errors
/// A server that crashed, took too much memory, does not answer at the end, or left its good client without a picture.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut program = Program::start(0, &[])?;
    let (address, length) = (program.address.clone(), Duration::from_secs(args.seconds));
    let abuse = Abuse {
        address: address.clone(),
        until: Instant::now() + length,
        length,
        ended: AtomicBool::new(false),
        counts: Mutex::default(),
    };
    let pictures = thread::scope(|scope| {
        let spread = |total: u64, work: fn(&Abuse, u64)| {
            let abuse = &abuse;
            scope.spawn(move || abuse.spread(total, work));
        };
        spread(args.malformed, Abuse::malformed);
        spread(args.jobs, Abuse::job);
        spread(args.bodies / 2, Abuse::huge);
        spread(args.bodies - args.bodies / 2, Abuse::huge_in_chunks);
        for _ in 0..4 {
            spread(args.seconds, Abuse::disconnect);
        }
        let abuse = &abuse;
        scope.spawn(move || abuse.slow(args.slow));
        let good = scope.spawn(move || abuse.pictures());
        while Instant::now() < abuse.until && program.is_running().unwrap_or(false) {
            sleep(Duration::from_millis(200));
        }
        abuse.ended.store(true, Ordering::Relaxed);
        good.join().unwrap_or_default()
    });
    let peak = program.peak_memory();
    println!("{} s of abuse", args.seconds);
    for (what, count) in abuse.counts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("  {count:>7}  {what}");
    }
    if let Some(peak) = peak {
        println!("  {:>7}  MiB of memory at most", peak >> 20);
    }
    let slowest = pictures.iter().max().copied().unwrap_or_default();
    let mean = pictures.iter().sum::<Duration>().as_secs_f64() / pictures.len().max(1) as f64;
    println!(
        "  {:>7}  pictures of the good client, {mean:.2} s on average, {:.2} s at most",
        pictures.len(),
        slowest.as_secs_f64()
    );
    ensure!(program.is_running()?, "the server ended");
    ensure!(peak.is_none_or(|it| it < MAX_BYTES), "the server took more than {} MiB", MAX_BYTES >> 20);
    ensure!(!pictures.is_empty(), "the good client got no picture");
    ensure!(request(&address, "GET /api/health", "end", "")?.status == 200, "the server does not answer");
    println!("the server still answers");
    Ok(())
}

impl Abuse {
    fn count(&self, what: impl Into<String>) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(what.into()).or_default() += 1;
    }

    /// Does `work` this often, evenly over the time.
    fn spread(&self, total: u64, work: fn(&Self, u64)) {
        let began = self.until - self.length;
        for index in 0..total {
            let due = began + self.length.mul_f64(index as f64 / total as f64);
            sleep(due.saturating_duration_since(Instant::now()));
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            work(self, index);
        }
    }

    /// Sends bytes and counts how they were answered.
    fn malformed(&self, index: u64) {
        const HEAD: &str = "POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
        let noise: Vec<u8> =
            (0..64).map(|it| (index.wrapping_mul(6_364_136_223_846_793_005) >> (it % 57)) as u8).collect();
        let body = |json: &str| format!("{HEAD}content-length: {}\r\n\r\n{json}", json.len()).into_bytes();
        let bytes = match index % 12 {
            0 => noise,
            1 => b"GET / HTTP/1.1\r\nhost: evil.example\r\n\r\n".to_vec(),
            2 => format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(100_000)).into_bytes(),
            3 => format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(5000)).into_bytes(),
            4 => body(&"[".repeat(50_000)),
            5 => body("{\"generate\": {\"request\": {\"classes\": [99999999999999999999]}}}"),
            6 => body(
                "{\"generate\": {\"request\": {\"classes\": [0], \"images_per_class\": 4294967295, \"seed\": 0}}}",
            ),
            7 => [body("{}"), noise].concat(),
            8 => b"GET /api/jobs/../../../etc/passwd HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(),
            9 => format!("{HEAD}content-length: -1\r\n\r\n").into_bytes(),
            10 => format!("{HEAD}transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n").into_bytes(),
            _ => {
                b"POST /api/jobs HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\n\r\n".to_vec()
            }
        };
        let sent = connect(&self.address).and_then(|mut stream| {
            stream.write_all(&bytes).ok();
            stream.shutdown(std::net::Shutdown::Write).ok();
            answer(&mut BufReader::new(stream))
        });
        match sent {
            Ok(answer) => self.count(format!("malformed requests, answered {}", answer.status)),
            Err(_) => self.count("malformed requests, closed without an answer"),
        }
    }

    /// Submits a job and forgets it.
    fn job(&self, index: u64) {
        let submission = job(16, 50, index);
        match request(&self.address, "POST /api/jobs", &format!("crowd-{}", index % 50), &submission) {
            Ok(answer) => self.count(format!("jobs that nobody follows, answered {}", answer.status)),
            Err(_) => self.count("jobs, closed without an answer"),
        }
    }

    /// Follows a job and goes away after the first, second, ... event.
    fn disconnect(&self, index: u64) {
        let client = format!("fickle-{}", index % 10);
        let followed =
            request(&self.address, "POST /api/jobs", &client, &job(1, 20, index)).and_then(|answer| {
                let body = answer.json()?;
                let events = Events::follow(&self.address, body["job"].as_str().context("refused")?)?;
                Ok(events.take(index as usize % 8 + 1).last())
            });
        match followed {
            Ok(event) => self.count(format!("disconnects after the event {}", event.unwrap_or_default())),
            Err(_) => self.count("disconnects, the job refused"),
        }
    }

    fn huge(&self, _: u64) {
        self.flood("content-length: 1073741824\r\n\r\n", &[b'x'; 1 << 16], "bodies of 1 GiB by length");
    }

    fn huge_in_chunks(&self, _: u64) {
        let chunk = [b"10000\r\n".as_slice(), &[b'x'; 1 << 16], b"\r\n"].concat();
        self.flood("transfer-encoding: chunked\r\n\r\n", &chunk, "bodies of 1 GiB in chunks");
    }

    /// Sends as much of 1 GiB as the server takes.
    fn flood(&self, head: &str, chunk: &[u8], what: &str) {
        let Ok(mut stream) = connect(&self.address) else {
            return self.count(format!("{what}, not connected"));
        };
        let line = "POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
        let mut sent = stream.write_all(format!("{line}{head}").as_bytes()).is_ok();
        for _ in 0..1 << 14 {
            if !sent {
                break;
            }
            sent = stream.write_all(chunk).is_ok();
        }
        self.count(format!("{what}, {}", if sent { "taken" } else { "refused" }));
    }

    /// Keeps connections open that send a byte now and then, or read nothing.
    fn slow(&self, connections: usize) {
        let mut opened = 0;
        let mut open: Vec<Option<std::net::TcpStream>> = (0..connections).map(|_| None).collect();
        while !self.ended.load(Ordering::Relaxed) {
            for (at, place) in open.iter_mut().enumerate() {
                let byte = b"GET /studio.js HTTP/1.1\r\nhost: localhost\r\n"[at % 40];
                if place.as_mut().is_none_or(|it| is_closed(it) || it.write_all(&[byte]).is_err()) {
                    *place = connect(&self.address).ok();
                    opened += 1;
                }
            }
            sleep(Duration::from_secs(1));
        }
        self.count(format!("times {connections} slow connections, {opened} opened in all"));
    }

    /// Makes pictures as a client should, and says how long each took.
    fn pictures(&self) -> Vec<Duration> {
        let mut took = Vec::new();
        for seed in 0.. {
            let since = Instant::now();
            if self.ended.load(Ordering::Relaxed) {
                break;
            }
            match self.picture(seed) {
                Ok(true) => took.push(since.elapsed()),
                Ok(false) => {}
                Err(_) => self.count("failures of the good client"),
            }
        }
        took
    }

    /// One picture; false at the end of the time.
    fn picture(&self, seed: u64) -> Result<bool> {
        while !self.ended.load(Ordering::Relaxed) {
            let answer = request(&self.address, "POST /api/jobs", "good", &job(1, 20, seed))?;
            if answer.status == 429 {
                self.count("refusals that the good client waited for");
                sleep(Duration::from_secs(answer.retry_after.clamp(1, 5)));
                continue;
            }
            let body = answer.json()?;
            let job = body["job"].as_str().context("no job")?;
            let last = Events::follow(&self.address, job)?.last();
            ensure!(last.as_deref() == Some("done"), "expected done, got {last:?}");
            let png = request(&self.address, &format!("GET {job}/runs/0/image.png"), "good", "")?.body;
            ensure!(png.starts_with(b"\x89PNG"), "no picture");
            return Ok(true);
        }
        Ok(false)
    }
}

fn is_closed(stream: &mut std::net::TcpStream) -> bool {
    stream.set_nonblocking(true).ok();
    let read = stream.read(&mut [0; 1024]);
    stream.set_nonblocking(false).ok();
    matches!(read, Ok(0)) || read.is_err_and(|it| it.kind() != std::io::ErrorKind::WouldBlock)
}

fn job(images: u64, steps: u64, seed: u64) -> String {
    let grid = json!({ "num_steps": steps, "last_step": 0.01, "timeshift": 1.0 });
    let request = json!({ "classes": [seed % 10], "images_per_class": images, "seed": seed, "batch": 16 });
    json!({ "generate": { "request": request, "settings": [{ "grid": grid }] } }).to_string()
}
