//! Requests to `ddt serve`: `0 | the bytes of a connection`, or `1 | a job in JSON`, which is then asked for and cancelled.
#![no_main]

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use ddt::Pipeline;
use ddt_fuzz::{planted, target};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    runtime::{Builder, Runtime},
};

use crate::serve::{
    guard::Guard,
    http::{Studio, router},
    listener::{Patience, serve},
    queue::{Bounds, Queue},
};

#[path = "http/serve.rs"]
mod serve;

struct Server {
    runtime: Runtime,
    router: axum::Router,
    studio: Arc<Studio>,
}

const SECOND: Duration = Duration::from_secs(1);

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    // Jobs are forgotten after each input.
    let bounds = Bounds {
        waiting: 8,
        waiting_of_client: 4,
        kept: 0,
        kept_bytes: 0,
        run: SECOND,
        abandoned: Duration::ZERO,
    };
    let (Ok(pipeline), Ok(runtime)) =
        (Pipeline::demo(), Builder::new_current_thread().enable_all().start_paused(true).build())
    else {
        panic!("neither files nor threads are needed here");
    };
    let shown = json!({ "class": 7, "images": 4, "seed": 0, "rng": "counter", "batch": 4 });
    let guard = Guard { hosts: vec!["studio.lab".to_owned()], token: None };
    let studio =
        Arc::new(Studio { pipeline, queue: Arc::new(Queue::new(bounds)), guard, shown, answer: 10 * SECOND });
    Server { runtime, router: router(studio.clone()), studio }
});

/// The answers to the bytes of one connection, cut at some length.
fn answers(request: &[u8]) -> Vec<u8> {
    const MOST: u64 = 1 << 20;
    SERVER.runtime.block_on(async {
        let (mut client, server) = duplex(MAX_SENT);
        let patience = Patience { connections: 1, head: SECOND, write: SECOND };
        let connection = serve(server, SERVER.router.clone(), patience);
        let mut answers = Vec::new();
        let client = async {
            client.write_all(request).await.ok();
            // Until the server closes: the runtime's clock goes on by itself when all wait.
            client.take(MOST).read_to_end(&mut answers).await.ok();
        };
        drop(tokio::join!(connection, client));
        answers
    })
}

/// Room for a request; answers wait until the client reads.
const MAX_SENT: usize = 128 << 10;

fn read(input: &[u8]) {
    match input {
        [1, body @ ..] => {
            let head = format!(
                "POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let answer = answers(&[head.as_bytes(), body].concat());
            let answer = String::from_utf8_lossy(&answer);
            let place = answer.split("location: ").nth(1).and_then(|it| it.split("\r\n").next());
            if let Some(job) = place.filter(|_| answer.starts_with("HTTP/1.1 202")) {
                let ask = |line: String| format!("{line} HTTP/1.1\r\nhost: localhost\r\n\r\n");
                let files = ["", "/result.json", "/runs/0/image.png", "/runs/1/sheet.png"];
                let asked: String = files.iter().map(|it| ask(format!("GET {job}{it}"))).collect();
                let answer = answers((asked + &ask(format!("DELETE {job}"))).as_bytes());
                assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
                let has = |word: &[u8]| body.windows(word.len()).any(|it| it == word);
                planted(|| has(b"measure") && !has(b"\"images\": 2"));
            }
        }
        [_, request @ ..] => {
            let answer = answers(request);
            assert!(
                answer.is_empty() || answer.starts_with(b"HTTP/1."),
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
        [] => {}
    }
    SERVER.studio.queue.tend();
}

target!(32 << 20, 1024, read, {
    LazyLock::force(&SERVER);
});
