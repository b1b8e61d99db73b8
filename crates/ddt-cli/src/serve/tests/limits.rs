//! The server refuses clients that break its rules.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use ddt::files::sha256;
use serde_json::{Value, json};

use super::{Server, Setup, client::few_steps, eventually};
use crate::serve::guard::Guard;

const JSON: &str = "content-type: application/json\r\n";

#[test]
fn submissions_are_checked() {
    let server = Server::waiting(Setup::default());
    let generate =
        |request: Value, settings: Value| json!({ "generate": { "request": request, "settings": settings } });
    let request =
        |classes: Value, images: u64| json!({ "classes": classes, "images_per_class": images, "seed": 0 });
    let usual = request(json!([7]), 1);
    let setting = |name: &str, value: Value| generate(usual.clone(), json!([{ name: value }]));
    let grid = |steps: u64| json!({ "num_steps": steps, "last_step": 0.0001, "timeshift": 1.0 });
    let measure =
        |settings: Value, images: u64| json!({ "measure": { "settings": settings, "images": images } });
    for (submission, expected) in [
        (json!(null), "expected {\"generate\""),
        (json!({ "generate": {} }), "missing field `request`"),
        (json!({ "train": {} }), "unknown variant `train`"),
        (json!({ "measure": { "images": 1, "out": "x" } }), "unknown field `out`"),
        (generate(request(json!([]), 1), json!([{}])), "at least one class"),
        (generate(request(json!([10]), 1), json!([{}])), "classes in 0..=9, got 10"),
        (generate(request(json!([1, 1]), 1), json!([{}])), "each class once"),
        (generate(request(json!([1]), 0), json!([{}])), "1 to 1000000 images"),
        (generate(request(json!([1]), 65), json!([{}])), "at most 64 images"),
        (generate(request(json!([1, 2, 3]), 22), json!([{}])), "at most 64 images, got 66"),
        (generate(request(json!([-1]), 1), json!([{}])), "-1"),
        (generate(usual.clone(), json!([])), "1 to 2 settings, got 0"),
        (generate(usual.clone(), json!([{}, {}, {}])), "1 to 2 settings, got 3"),
        // Everything that could name a file, or more than a job may ask for.
        (
            setting("weights", json!({ "from": "/etc/passwd" })),
            "expected settings solver, grid, guidance, sharing, got \"weights\"",
        ),
        (setting("autoencoder", json!({ "from": "x" })), "got \"autoencoder\""),
        (setting("sharing", json!("/etc/passwd")), "expected sharing none, uniform:R"),
        (setting("sharing", json!("plan.json")), "expected sharing none, uniform:R"),
        (setting("sharing", json!({ "num_steps": 9, "recompute_steps": [0] })), "of 50 steps, got 9"),
        (setting("solver", json!("dopri5:1e-12")), "expected solver euler"),
        (setting("solver", json!("x")), "got \"x\""),
        (setting("grid", grid(1001)), "at most 1000 steps, got 1001"),
        (setting("grid", grid(1 << 40)), "number of steps"),
        (setting("guidance", json!({ "scale": 1, "interval": [1, 0] })), "low < high"),
        (measure(json!({}), 17), "1 to 16 images to measure on, got 17"),
        (measure(json!({ "grid": grid(251) }), 1), "at most 250 steps"),
    ] {
        let answer = server.submit_as("one", &submission);
        assert_eq!(answer.status, 422, "{submission}: {answer:?}");
        assert!(
            answer.error().contains(expected),
            "{submission}: expected {expected:?} in {}",
            answer.error()
        );
    }
    for body in ["", "{", "[[[[", "nul", "{\"generate\": 1e999}", "\u{0}"] {
        assert_eq!(server.request("POST /api/jobs", JSON, body.as_bytes()).status, 422, "{body:?}");
    }
    let deep = "[".repeat(10_000);
    assert_eq!(server.request("POST /api/jobs", JSON, deep.as_bytes()).status, 422);
    assert_eq!(server.request("POST /api/jobs", JSON, b"\xff\xfe").status, 422);
}

#[test]
fn requests_are_checked() {
    let mut setup = Setup::default();
    setup.patience.head = Duration::from_secs(2);
    let server = Server::waiting(setup);
    let body = few_steps(0).to_string();
    for (line, headers, status) in [
        ("GET /?token=a;path=/", "", 200),
        ("GET /nothing", "", 404),
        ("GET /../../etc/passwd", "", 404),
        ("GET /studio.js/../x", "", 404),
        ("GET /api/jobs/absent", "", 404),
        ("GET /api/jobs/absent/events", "", 404),
        ("GET /api/jobs/%ff", "", 400),
        ("GET /api/jobs/x/runs/-1/image.png", "", 400),
        ("GET /api/jobs", "", 405),
        ("DELETE /", "", 405),
        ("PATCH /api/health", "", 405),
        ("POST /api/jobs", "", 415),
        ("POST /api/jobs", "content-type: text/plain\r\n", 415),
        ("POST /api/jobs", "content-type: application/json\r\nddt-client: a b\r\n", 400),
        ("POST /api/jobs", "content-type: application/json\r\norigin: http://evil.example\r\n", 403),
        ("POST /api/jobs", "content-type: application/json\r\nsec-fetch-site: cross-site\r\n", 403),
        ("GET /api/classes", "sec-fetch-site: cross-site\r\n", 403),
    ] {
        let answer = server.request(line, headers, body.as_bytes());
        assert_eq!(answer.status, status, "{line}: {answer:?}");
    }
    let host = |host: &str| {
        server.send(format!("GET /api/health HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).unwrap()
    };
    assert_eq!((host("localhost").status, host("evil.example").status), (200, 421));
    for bytes in [
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9\r\n\r\n",
        "\u{0}\u{1}\u{2}\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
    ] {
        let answer = server.send(bytes.as_bytes());
        assert!(answer.as_ref().is_none_or(|it| it.status == 400), "{bytes:?}: {answer:?}");
    }
    assert_eq!(server.get("/api/health").status, 200);
}

#[test]
fn a_token_is_asked_for() {
    let guard = Guard { hosts: Vec::new(), token: Some(sha256(b"secret-token")) };
    let server = Server::waiting(Setup { guard, ..Setup::default() });
    assert_eq!((server.get("/").status, server.get("/api/health").status), (401, 200));
    assert_eq!(server.get("/?token=wrong-token").status, 401);
    let entered = server.get("/?token=secret-token");
    assert_eq!((entered.status, entered.header("location")), (303, "/"));
    let cookie = entered.header("set-cookie");
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
    let cookie = format!("cookie: {}\r\n", cookie.split(';').next().unwrap());
    assert_eq!(server.request("GET /", &cookie, b"").status, 200);
    // A link with a wrong token does not replace the right one.
    let linked = server.request("GET /?token=wrong-token", &cookie, b"");
    assert_eq!((linked.status, linked.header("set-cookie")), (200, ""));
    assert_eq!(server.request("GET /api/classes", "authorization: Bearer secret-token\r\n", b"").status, 200);
}

#[test]
fn bodies_and_headers_are_bounded() {
    let server = Server::waiting(Setup::default());
    let huge = |head: &str| {
        server.send(format!("POST /api/jobs HTTP/1.1\r\nhost: localhost\r\n{JSON}{head}\r\n\r\n").as_bytes())
    };
    // Refused by its length, before any of it comes.
    assert_eq!(huge("content-length: 1073741824").unwrap().status, 413);
    let chunk = "x".repeat(65_536);
    assert_eq!(
        huge(&format!("transfer-encoding: chunked\r\n\r\n10000\r\n{chunk}\r\n10000\r\n{chunk}"))
            .unwrap()
            .status,
        413
    );
    let long = format!("x: {}\r\n", "y".repeat(40_000));
    let many = "x: y\r\n".repeat(200);
    for headers in [long, many] {
        let answer =
            server.send(format!("GET /api/health HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").as_bytes());
        assert!(answer.as_ref().is_none_or(|it| it.status == 431), "{answer:?}");
    }
    let path = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(40_000));
    assert!(server.send(path.as_bytes()).is_none_or(|it| it.status == 414 || it.status == 431));
    assert_eq!(server.get("/api/health").status, 200);
}

#[test]
fn slow_clients_are_dropped() {
    let mut setup = Setup { answer: Duration::from_millis(400), ..Setup::default() };
    setup.patience.head = Duration::from_millis(400);
    let server = Server::waiting(setup);
    // Nothing, half a request, and a connection that is kept after an answer.
    for sent in ["", "GET / HT", "GET /api/health HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let mut stream = server.connect();
        stream.write_all(sent.as_bytes()).unwrap();
        let since = Instant::now();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).ok();
        assert!(since.elapsed() < Duration::from_secs(20), "{sent:?}");
    }
    let body = server.send(
        format!("POST /api/jobs HTTP/1.1\r\nhost: localhost\r\n{JSON}content-length: 100\r\n\r\n{{")
            .as_bytes(),
    );
    assert_eq!(body.unwrap().status, 408);
}

#[test]
fn a_client_that_reads_nothing_is_dropped() {
    let mut setup = Setup::default();
    setup.patience.write = Duration::from_millis(300);
    setup.bounds.abandoned = Duration::from_millis(300);
    let steps = |job: &crate::serve::job::Job| {
        for number in 0.. {
            job.set_pictures(0, vec![0; 1 << 20], Vec::new());
            anyhow::ensure!(job.flow().is_continue(), "stopped after {number}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(json!({}))
    };
    let server = Server::new(setup, Box::new(steps));
    let job = server.submit(&few_steps(1));
    let sheet = format!("{job}/runs/0/sheet.png");
    eventually("a sheet", || server.get(&sheet).status == 200);
    // Many answers are asked for and none is read.
    let mut stream = server.connect();
    let request = format!("GET {sheet} HTTP/1.1\r\nhost: localhost\r\n\r\n").repeat(64);
    stream.write_all(request.as_bytes()).unwrap();
    eventually("dropped", || {
        std::thread::sleep(Duration::from_millis(500));
        stream.write_all(b"x").is_err()
    });
    drop(stream);
    // Asking for the job would count as attention.
    eventually("cancelled", || server.get("/api/health").json()["jobs"]["running"] == 0);
    assert_eq!(server.phase(&job), "cancelled");
}

#[test]
fn connections_are_bounded() {
    let mut setup = Setup::default();
    setup.patience.connections = 8;
    let server = Server::waiting(setup);
    let held: Vec<_> = (0..8).map(|_| server.connect()).collect();
    eventually("full", || {
        let mut stream = server.connect();
        stream.write_all(b"GET /api/health HTTP/1.1\r\nhost: localhost\r\n\r\n").ok();
        matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_))
    });
    drop(held);
    eventually("free again", || {
        server.send(b"GET /api/health HTTP/1.1\r\nhost: localhost\r\n\r\n").is_some()
    });
}
