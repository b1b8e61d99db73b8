//! The commands of docs/serve.md, run as they are written: by `curl` where there is one, and always by the client of
//! these tests.

use std::{path::Path, process::Command};

use serde_json::Value;

use super::Server;

/// The words of the commands that start with `curl`, a line that ends in `\` joined to the next.
fn commands() -> Vec<Vec<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/serve.md");
    let page = std::fs::read_to_string(page).unwrap().replace("\\\n", " ");
    page.lines().filter(|it| it.starts_with("curl ")).map(words).collect()
}

/// Splits as a shell does; only single quotes are known.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        if at % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// The output of a command, and the file that it writes.
type Outcome = (String, Option<Vec<u8>>);

fn by_client(server: &Server, words: &[String]) -> Outcome {
    let (mut method, mut headers, mut body, mut file, mut url) = (None, String::new(), None, None, "");
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-N" | "-s" => {}
            "-X" => method = words.next(),
            "-H" => headers += &format!("{}\r\n", words.next().unwrap()),
            "-d" => body = words.next(),
            "-o" => file = words.next(),
            other => url = other,
        }
    }
    let path = url.strip_prefix(&format!("http://{}", server.address)).unwrap_or_else(|| panic!("{url:?}"));
    if let Some(job) = path.strip_suffix("/events") {
        let events = server.events(job).map(|(name, data)| format!("event: {name}\ndata: {data}\n\n"));
        return (events.collect(), None);
    }
    let method = method.map_or(if body.is_some() { "POST" } else { "GET" }, String::as_str);
    let answer =
        server.request(&format!("{method} {path}"), &headers, body.map_or("", String::as_str).as_bytes());
    assert!(answer.status < 300, "{url}: {answer:?}");
    match file {
        Some(_) => (String::new(), Some(answer.body)),
        None => (String::from_utf8(answer.body).unwrap(), None),
    }
}

fn by_curl(folder: &Path, words: &[String]) -> Outcome {
    let output = Command::new("curl")
        .current_dir(folder)
        .args(["-sS", "--fail", "-m", "120"])
        .args(&words[1..])
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    let file =
        words.iter().position(|it| it == "-o").map(|at| std::fs::read(folder.join(&words[at + 1])).unwrap());
    (String::from_utf8(output.stdout).unwrap(), file)
}

/// Runs all commands in turn; `JOB` is the job of the last submission.
fn run(server: &Server, run: &dyn Fn(&[String]) -> Outcome) {
    let mut id = String::new();
    let mut seen = Vec::new();
    for command in commands() {
        let address = server.address.to_string();
        let command: Vec<String> =
            command.iter().map(|it| it.replace("127.0.0.1:8188", &address).replace("JOB", &id)).collect();
        let (printed, file) = run(&command);
        let json: Value = serde_json::from_str(&printed).unwrap_or_default();
        if let Some(new) = json["id"].as_str() {
            id = new.to_owned();
        }
        assert!(file.is_none_or(|it| it.starts_with(b"\x89PNG")));
        for (place, sign) in [
            ("/events", "event: done"),
            ("result.json", "\"command\""),
            ("/api/classes", "horse"),
            ("/api/health", "\"ok\""),
            ("/api/presets", "\"solvers\""),
        ] {
            if command.iter().any(|it| it.ends_with(place)) {
                assert!(printed.contains(sign), "{command:?}: {printed}");
                seen.push(place);
            }
        }
        if command.contains(&"DELETE".to_owned()) {
            seen.push("DELETE");
        }
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 6, "an address is in no example: {seen:?}");
}

#[test]
fn the_examples_of_the_page_work() {
    let server = Server::demo();
    run(&server, &|words| by_client(&server, words));
    if Command::new("curl").arg("--version").output().is_ok() {
        let folder = tempfile::tempdir().unwrap();
        run(&server, &|words| by_curl(folder.path(), words));
    }
}
