//! Downloads from a server on this machine that behaves badly in every way that networks do.

#![allow(clippy::print_stdout, reason = "the numbers of docs/RELIABILITY.md")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ddt_fetch::{FetchError, Patience, Progress, fetch, fetch_on};
use ddt_files::faults::{Fault, Job, sweep};
use ddt_hub::{Hub, HubFile};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const SIZE: usize = 3_000_000;

/// Behaviour of the server for one request of bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behaviour {
    /// Sends all that was asked for.
    Good,
    /// Ends the connection after this many bytes.
    Cut(usize),
    /// Sends nothing more after this many bytes.
    Stall(usize),
    /// Answers with an error.
    Status(u16),
    /// Ignores the range.
    Whole,
}

struct Server {
    hub: Hub,
    file: HubFile,
    content: Vec<u8>,
    /// The `Range` of each request for bytes.
    ranges: Arc<Mutex<Vec<Option<String>>>>,
    _cache: tempfile::TempDir,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server that behaves so for one request for bytes after another, and well after these.
fn server(behaviours: &[Behaviour]) -> Server {
    server_of(SIZE, &sha256(&content(SIZE)), behaviours)
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i * i / 7) as u8).collect()
}

fn server_of(size: usize, hash: &str, behaviours: &[Behaviour]) -> Server {
    let (content, hash) = (content(size), hash.to_owned());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let (served, behaviours) = (Arc::new(AtomicUsize::new(0)), behaviours.to_vec());
    let (noted, bytes) = (ranges.clone(), content.clone());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (served, behaviours, noted, bytes, hash) =
                (served.clone(), behaviours.clone(), noted.clone(), bytes.clone(), hash.clone());
            thread::spawn(move || {
                let behave = |range: Option<String>| {
                    noted.lock().unwrap().push(range);
                    let at = served.fetch_add(1, Ordering::SeqCst);
                    behaviours.get(at).copied().unwrap_or(Behaviour::Good)
                };
                answer(stream, &bytes, &hash, behave)
            });
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let hub =
        Hub { cache: cache.path().to_owned(), endpoint, token: Some("secret".to_owned()), offline: false };
    let file = HubFile::new("owner/name", "main", "folder/weights.bin").unwrap();
    Server { hub, file, content, ranges, _cache: cache }
}

/// As the hub does: metadata with a redirect, and the bytes elsewhere.
fn answer(mut stream: TcpStream, bytes: &[u8], hash: &str, behave: impl Fn(Option<String>) -> Behaviour) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|it| !it.is_empty()).map(|it| it.to_lowercase()).collect();
    let header =
        |name: &str| headers.iter().find_map(|it| it.strip_prefix(&format!("{name}: ")).map(str::to_owned));
    let mut say = |head: String, body: &[u8]| {
        stream.write_all(format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n").as_bytes()).ok();
        stream.write_all(body).ok();
        stream.flush().ok();
    };
    if request.contains("/resolve/") {
        assert!(request.contains("/owner/name/resolve/main/folder/weights.bin"), "{request}");
        assert_eq!(header("authorization").as_deref(), Some("bearer secret"));
        let linked = format!(
            "x-repo-commit: {COMMIT}\r\nx-linked-etag: \"{hash}\"\r\nx-linked-size: {}\r\netag: \"other\"",
            bytes.len()
        );
        return say(format!("302 Found\r\nlocation: /bytes\r\ncontent-length: 0\r\n{linked}"), &[]);
    }
    let range = header("range");
    let behaviour = behave(range.clone());
    if let Behaviour::Status(status) = behaviour {
        return say(format!("{status} Trouble\r\ncontent-length: 0"), &[]);
    }
    let asked = range.and_then(|it| it.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let start = asked.filter(|_| behaviour != Behaviour::Whole).unwrap_or(0);
    let rest = &bytes[start..];
    let part = match behaviour {
        Behaviour::Cut(length) | Behaviour::Stall(length) => &rest[..length.min(rest.len())],
        _ => rest,
    };
    let status = match start {
        0 => "200 OK".to_owned(),
        _ => {
            format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/{}", bytes.len() - 1, bytes.len())
        }
    };
    say(format!("{status}\r\ncontent-length: {}", rest.len()), part);
    if let Behaviour::Stall(_) = behaviour {
        thread::sleep(Duration::from_secs(20));
    }
}

fn patience() -> Patience {
    let millis = Duration::from_millis;
    Patience { connect: millis(2000), stall: millis(700), attempts: 3, pause: millis(10) }
}

fn go_on(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[track_caller]
fn assert_arrived(server: &Server, path: &Path) {
    assert_eq!(sha256(&fs::read(path).unwrap()), sha256(&server.content));
    assert_eq!(server.hub.find(&server.file).as_deref(), Some(path));
    let repository = server.hub.repository_folder(&server.file);
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    let blobs: Vec<_> =
        fs::read_dir(repository.join("blobs")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(blobs, [sha256(&server.content).as_str()]);
    // The link survives a move of the cache.
    #[cfg(unix)]
    assert!(fs::read_link(path).unwrap().starts_with("../../.."));
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    server.ranges.lock().unwrap().clone()
}

#[test]
fn a_file_arrives_once() {
    let server = server(&[]);
    let path = fetch(&server.hub, &server.file, &patience(), &mut go_on).unwrap();
    assert_arrived(&server, &path);
    let offline = Hub { offline: true, ..server.hub.clone() };
    assert_eq!(fetch(&offline, &server.file, &patience(), &mut go_on).unwrap(), path);
    assert_eq!(ranges(&server), [None]);
}

#[test]
fn what_a_broken_connection_left_is_not_asked_for_again() {
    let server = server(&[Behaviour::Cut(1_000_000), Behaviour::Status(503), Behaviour::Cut(500_000)]);
    let mut failures = Vec::new();
    let path = fetch(&server.hub, &server.file, &patience(), &mut |it| {
        failures.extend(it.failure.clone());
        ControlFlow::Continue(())
    });
    assert_arrived(&server, &path.unwrap());
    let got: Vec<_> = ranges(&server).into_iter().flatten().collect();
    assert_eq!(got, ["bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]);
    assert!(failures.iter().any(|it| it.0.contains("503")), "{failures:?}");
}

#[test]
fn a_silent_server_is_noticed_said_and_left() {
    let server = server(&[Behaviour::Stall(1_000_000)]);
    let (started, mut longest) = (Instant::now(), Duration::ZERO);
    let path = fetch(&server.hub, &server.file, &patience(), &mut |it| {
        longest = longest.max(it.idle);
        ControlFlow::Continue(())
    });
    assert_arrived(&server, &path.unwrap());
    assert!(
        longest >= Duration::from_millis(500) && started.elapsed() < Duration::from_secs(10),
        "{longest:?}"
    );
    let silent = Progress {
        received: 1_500_000,
        total: Some(3_000_000),
        rate: 0.0,
        idle: Duration::from_secs(7),
        failure: None,
    };
    assert_eq!(silent.to_string(), "1.5 of 3.0 MB, 0.0 MB/s, no data for 7 s");
}

#[test]
fn a_stopped_download_is_resumed_and_a_server_may_begin_anew() {
    let server = server(&[Behaviour::Good, Behaviour::Whole]);
    let outcome = fetch(&server.hub, &server.file, &patience(), &mut |it| {
        if it.received > 1_000_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(outcome, Err(FetchError::Cancelled)), "{outcome:?}");
    assert_eq!(server.hub.find(&server.file), None);
    let path = fetch(&server.hub, &server.file, &patience(), &mut go_on).unwrap();
    assert_arrived(&server, &path);
    assert!(ranges(&server)[1].is_some());
}

#[test]
fn wrong_bytes_are_removed_and_never_found() {
    let server = server(&[]);
    let blobs = server.hub.repository_folder(&server.file).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    // A file that another program left under the same name: of the full length, with other bytes.
    fs::write(blobs.join(format!("{}.incomplete", sha256(&server.content))), vec![7; SIZE]).unwrap();
    let mut failures = Vec::new();
    let path = fetch(&server.hub, &server.file, &patience(), &mut |it| {
        failures.extend(it.failure.clone());
        ControlFlow::Continue(())
    });
    assert_arrived(&server, &path.unwrap());
    assert!(failures[0].0.contains("expected SHA-256"), "{failures:?}");
    // A server that sends other bytes than it announced.
    let server = server_of(SIZE, &"0".repeat(64), &[]);
    let outcome = fetch(&server.hub, &server.file, &patience(), &mut go_on);
    assert!(matches!(outcome, Err(FetchError::Checksum { .. })), "{outcome:?}");
    assert_eq!((server.hub.find(&server.file), ranges(&server).len()), (None, 1));
}

#[test]
fn refusals_are_final_and_failures_are_not_repeated_for_ever() {
    let refused = server(&[Behaviour::Status(403)]);
    let error = fetch(&refused.hub, &refused.file, &patience(), &mut go_on).unwrap_err();
    assert!(
        matches!(error, FetchError::Refused { status: 403, .. }) && error.to_string().contains("HF_TOKEN"),
        "{error}"
    );

    let broken = server(&[Behaviour::Status(500); 9]);
    let error = fetch(&broken.hub, &broken.file, &patience(), &mut go_on).unwrap_err();
    assert!(
        matches!(error, FetchError::GaveUp { attempts: 3, .. }) && error.to_string().contains("resume"),
        "{error}"
    );
    assert_eq!(ranges(&broken).len(), 3);

    // Nothing listens on the discard port.
    let away = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ..broken.hub.clone() };
    let error = fetch(&away, &broken.file, &patience(), &mut go_on).unwrap_err();
    assert!(
        matches!(error, FetchError::GaveUp { .. }) && error.to_string().contains("HF_ENDPOINT"),
        "{error}"
    );
    let nonsense = Hub { endpoint: "not an address".to_owned(), ..broken.hub.clone() };
    assert!(fetch(&nonsense, &broken.file, &patience(), &mut go_on).is_err());
    let offline = Hub { offline: true, ..broken.hub.clone() };
    let error = fetch(&offline, &broken.file, &patience(), &mut go_on).unwrap_err();
    assert!(
        matches!(error, FetchError::Offline { .. }) && error.to_string().contains("HF_HUB_OFFLINE"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn every_fault_of_the_disk_is_survived() {
    // More than one piece.
    const SIZE: usize = 300_000;
    let sha256 = sha256(&content(SIZE));
    // By SHA-256, and by git's hash.
    for hash in [&sha256, &sha256[..40]] {
        sweep_download(&server_of(SIZE, hash, &[]));
    }
}

#[cfg(unix)]
fn sweep_download(server: &Server) {
    let run = |system: &ddt_files::FileSystem, cache: &Path| -> ddt_files::faults::Outcome {
        let hub = Hub { cache: cache.to_owned(), ..server.hub.clone() };
        let path = fetch_on(system, &hub, &server.file, &patience(), &mut go_on)?;
        if fs::read(&path)? != server.content {
            return Err(format!("{} has other bytes", path.display()).into());
        }
        Ok(())
    };
    let place = tempfile::tempdir().unwrap();
    // Who finds the file needs no lock.
    let counts = |it: &Path| !it.starts_with(".locks");
    let swept = sweep(place.path(), &Fault::ALL, &Job { run: &run, counts: &counts });
    let swept = swept.unwrap_or_else(|error| panic!("{error}"));
    println!("a download: {swept}");
    assert!(swept.changes > 25, "{swept}");
}
