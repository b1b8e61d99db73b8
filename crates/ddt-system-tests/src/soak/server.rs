//! A client that asks for pictures without a pause, and now and then goes away.

use anyhow::{Context, Result, ensure};
use ddt_system_tests::{Events, Program, request};
use serde_json::json;

use super::processes::Soak;

/// Pictures that differ.
const SEEDS: usize = 16;

pub(super) fn run(soak: &Soak) -> Result<Vec<String>> {
    let mut program = Program::start(0, &["--threads", "1"])?;
    soak.watch.add("serve, under load", program.id());
    let mut first = vec![None; SEEDS];
    let (mut pictures, mut gone) = (0, 0);
    for number in 0_usize.. {
        if soak.is_over() {
            break;
        }
        if number % 10 == 9 {
            let job = submit(&program, number)?;
            Events::follow(&program.address, &job)?.nth(1);
            // The server runs the job all the same, or cancels it after 10 s.
            gone += 1;
            continue;
        }
        let picture = picture(&program, number % SEEDS)?;
        pictures += 1;
        let first = first[number % SEEDS].get_or_insert_with(|| picture.clone());
        ensure!(*first == picture, "picture {} is not what it was at first", number % SEEDS);
    }
    ensure!(program.is_running()?, "the server ended");
    soak.watch.remove(program.id());
    Ok(vec![format!(
        "serve: {pictures} pictures, {gone} clients that went away; each picture has the bytes of its first time"
    )])
}

fn picture(program: &Program, seed: usize) -> Result<Vec<u8>> {
    let job = submit(program, seed)?;
    let last = Events::follow(&program.address, &job)?.last();
    ensure!(last.as_deref() == Some("done"), "expected done, got {last:?}");
    let answer = request(&program.address, &format!("GET {job}/runs/0/image.png"), "soak", "")?;
    ensure!(answer.body.starts_with(b"\x89PNG"), "no picture");
    Ok(answer.body)
}

fn submit(program: &Program, seed: usize) -> Result<String> {
    let grid = json!({ "num_steps": 20, "last_step": 0.01, "timeshift": 1.0 });
    let wanted = json!({ "classes": [seed % 10], "images_per_class": 4, "seed": seed, "batch": 4 });
    let body = json!({ "generate": { "request": wanted, "settings": [{ "grid": grid }] } }).to_string();
    let answer = request(&program.address, "POST /api/jobs", "soak", &body)?;
    ensure!(answer.status == 202, "expected a job, got the status {}", answer.status);
    Ok(answer.json()?["job"].as_str().context("no job")?.to_owned())
}
