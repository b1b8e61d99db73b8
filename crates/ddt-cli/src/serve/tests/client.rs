//! A client that sends bytes as they are, and reads events one by one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

use super::Server;

/// An answer of the server.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|it| it.0 == name).map(|it| it.1.as_str()).unwrap_or_default()
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The message of a refusal.
    #[track_caller]
    pub(super) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

/// Reads the status line and the headers; nothing if the connection is closed.
pub(super) fn read_head(stream: &mut impl BufRead) -> Option<Answer> {
    let mut lines = std::iter::from_fn(|| {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|it| *it > 0)?;
        Some(line.trim_end().to_owned())
    });
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.take_while(|it| !it.is_empty());
    let headers = headers.filter_map(|it| it.split_once(": ").map(|(a, b)| (a.to_owned(), b.to_owned())));
    Some(Answer { status, headers: headers.collect(), body: Vec::new() })
}

impl Server {
    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    /// Sends bytes and reads the answer to its end; `None` if there is none.
    pub(super) fn send(&self, bytes: &[u8]) -> Option<Answer> {
        let mut stream = self.connect();
        // The server may answer and close before all is sent.
        stream.write_all(bytes).ok();
        let mut reader = BufReader::new(stream);
        let mut answer = read_head(&mut reader)?;
        let length = answer.header("content-length").parse().ok()?;
        answer.body.resize(length, 0);
        reader.read_exact(&mut answer.body).ok()?;
        Some(answer)
    }

    /// A request with these headers, each with its line end, and a body.
    #[track_caller]
    pub(super) fn request(&self, line: &str, headers: &str, body: &[u8]) -> Answer {
        let head = format!(
            "{line} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n{headers}\r\n",
            self.address,
            body.len()
        );
        self.send(&[head.as_bytes(), body].concat()).unwrap()
    }

    #[track_caller]
    pub(super) fn get(&self, path: &str) -> Answer {
        self.request(&format!("GET {path}"), "", b"")
    }

    /// Submits a job as a client.
    #[track_caller]
    pub(super) fn submit_as(&self, client: &str, submission: &Value) -> Answer {
        let headers = format!("content-type: application/json\r\nddt-client: {client}\r\n");
        self.request("POST /api/jobs", &headers, submission.to_string().as_bytes())
    }

    /// Submits a job that must be taken, and returns its address.
    #[track_caller]
    pub(super) fn submit(&self, submission: &Value) -> String {
        let answer = self.submit_as("one", submission);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["job"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(super) fn phase(&self, job: &str) -> String {
        self.get(job).json()["state"]["phase"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(super) fn events(&self, job: &str) -> Events {
        let mut stream = self.connect();
        write!(stream, "GET {job}/events HTTP/1.1\r\nhost: {}\r\n\r\n", self.address).unwrap();
        let mut reader = BufReader::new(stream);
        let head = read_head(&mut reader).unwrap();
        assert_eq!((head.status, head.header("content-type")), (200, "text/event-stream"));
        Events { reader }
    }
}

/// The events of a job, until its end; dropped, the client goes away.
pub(super) struct Events {
    reader: BufReader<TcpStream>,
}

impl Iterator for Events {
    type Item = (String, Value);

    fn next(&mut self) -> Option<Self::Item> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).ok().filter(|it| *it > 0)?;
            let line = line.trim_end();
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name, serde_json::from_str(data).unwrap()));
            } else if line == "0" {
                // The last chunk.
                return None;
            }
        }
    }
}

/// A job of a few steps.
pub(super) fn few_steps(seed: u64) -> Value {
    json!({ "generate": {
        "request": { "classes": [7, 8], "images_per_class": 2, "seed": seed },
        "settings": [{ "grid": { "num_steps": 6, "last_step": 0.04, "timeshift": 1.0 } }],
    }})
}
