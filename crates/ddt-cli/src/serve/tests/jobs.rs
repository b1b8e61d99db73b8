//! Jobs: their events, results, order, end.

use std::{net::TcpListener, ops::ControlFlow, time::Duration};

use clap::Parser;
use ddt::{Request, files::sha256, flow::TimeGrid};
use serde_json::{Value, json};

use super::{Server, Setup, client::few_steps, demo, eventually};
use crate::{
    sample,
    terminal::{Cancel, Terminal},
};

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|it| it.0.as_str()).collect()
}

#[test]
fn a_job_tells_its_steps_and_gives_what_the_library_makes() {
    let server = Server::demo();
    let job = server.submit(&few_steps(3));
    let events: Vec<_> = server.events(&job).collect();
    let names = names(&events);
    let first = |name: &str| names.iter().position(|it| *it == name).unwrap();
    assert!(first("running") < first("step") && first("running") < first("preview"), "{names:?}");
    assert_eq!((names.iter().filter(|it| **it == "done").count(), names.last()), (1, Some(&"done")));
    let steps: Vec<u64> =
        events.iter().filter(|it| it.0 == "step").map(|it| it.1["step"].as_u64().unwrap()).collect();
    assert!(steps.is_sorted() && steps.last() == Some(&6), "{steps:?}");
    // A stream that begins after the end tells the end.
    let late: Vec<_> = server.events(&job).map(|it| it.0).collect();
    assert_eq!(late, ["running", "step", "preview", "done"]);

    let config = ddt::PipelineConfig {
        grid: Some(TimeGrid::new(6, Some(0.04), 1.0).unwrap()),
        ..demo().config().clone()
    };
    let request = Request { seed: 3, ..Request::new([7, 8], 2) };
    let pipeline = demo().with_sampler(&config).unwrap();
    let expected = pipeline.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    let png = server.get(&format!("{job}/runs/0/image.png"));
    assert_eq!(
        (png.header("content-type"), sha256(&png.body)),
        ("image/png", sha256(&expected.png().unwrap()))
    );
    let result = server.get(&format!("{job}/result.json")).json();
    assert_eq!(result["runs"][0]["record"], serde_json::to_value(&expected.record).unwrap());
    assert_eq!(result["comparison"], Value::Null);
    assert!(server.get(&format!("{job}/runs/0/sheet.png")).body.starts_with(b"\x89PNG"));
    assert_eq!(server.get(&format!("{job}/runs/1/image.png")).status, 404);
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: sample::Args,
}

#[test]
fn the_command_line_of_a_result_makes_the_same_file() {
    let server = Server::demo();
    let settings = json!([
        { "solver": "adams2", "grid": { "num_steps": 7, "last_step": 0.05, "timeshift": 2.0 },
          "guidance": { "scale": 2.5, "interval": [0.1, 0.9] }, "sharing": "ratio:0.5,order:1" },
        { "grid": { "num_steps": 7, "last_step": 0.05, "timeshift": 2.0 },
          "sharing": { "num_steps": 7, "recompute_steps": [0, 1, 4], "order": 2 } },
    ]);
    let request = json!({ "classes": [3], "images_per_class": 3, "seed": 11, "rng": "torch", "batch": 2 });
    let job = server.submit(&json!({ "generate": { "request": request, "settings": settings } }));
    assert_eq!(server.events(&job).last().unwrap().0, "done");
    let result = server.get(&format!("{job}/result.json")).json();
    let folder = tempfile::tempdir().unwrap();
    let terminal = Terminal::new(true, Cancel::default());
    for run in 0..2 {
        let file = server.get(&format!("{job}/runs/{run}/image.png")).body;
        let facts = &result["runs"][run];
        let name = folder.path().join(format!("{}.png", facts["name"].as_str().unwrap()));
        let again = folder.path().join("again.png");
        let line = facts["command"].as_str().unwrap();
        let shown = name.file_name().unwrap().to_str().unwrap();
        assert!(line.contains(shown), "{line}");
        // Plans are in the record of the downloaded file alone.
        if run == 1 {
            assert_eq!(line, format!("ddt sample --redo {shown}"));
            std::fs::write(&name, &file).unwrap();
        }
        let mut words: Vec<String> =
            line.split(' ').skip(1).map(|it| it.replace(shown, name.to_str().unwrap())).collect();
        if run == 1 {
            words.extend(["--out".to_owned(), again.display().to_string()]);
        }
        let written = if run == 1 { &again } else { &name };
        let args = Line::try_parse_from(words).unwrap().args;
        // Threads are this process's already.
        sample::make(&args, &terminal).unwrap();
        assert_eq!(std::fs::read(written).unwrap(), file, "{line}");
    }
}

#[test]
fn a_comparison_has_errors_and_times() {
    let server = Server::demo();
    let grid = json!({ "num_steps": 10, "last_step": 0.04, "timeshift": 1.0 });
    let request = json!({ "classes": [1], "images_per_class": 2, "seed": 0 });
    let with = |sharing: &str| json!({ "grid": grid, "sharing": sharing });
    let settings = json!([with("none"), with("ratio:0.7,order:0")]);
    let job = server.submit(&json!({ "generate": { "request": request, "settings": settings } }));
    let runs: Vec<u64> =
        server.events(&job).filter(|it| it.0 == "step").map(|it| it.1["run"].as_u64().unwrap()).collect();
    assert!(runs.is_sorted() && runs.first() == Some(&0) && runs.last() == Some(&1), "{runs:?}");
    let result = server.get(&format!("{job}/result.json")).json();
    let shared = &result["runs"][1];
    assert_eq!((&shared["encoder_calls"], &shared["recompute_steps"]), (&json!(3), &json!([0, 3, 6])));
    assert!(
        shared["predicted_speedup"].as_f64().unwrap() > 1.5 && result["runs"][0]["predicted_speedup"] == 1.0
    );
    let comparison = &result["comparison"];
    assert!(comparison["measured_speedup"].as_f64().unwrap() > 0.0);
    for errors in ["latent_errors", "pixel_errors"] {
        let errors: Vec<f64> = serde_json::from_value(comparison[errors].clone()).unwrap();
        assert!(errors.len() == 2 && errors.iter().all(|it| *it > 0.0 && *it < 1.0), "{errors:?}");
    }
    // The same settings have no error.
    let settings = json!([with("none"), with("none")]);
    let job = server.submit(&json!({ "generate": { "request": request, "settings": settings } }));
    server.events(&job).last();
    let comparison = &server.get(&format!("{job}/result.json")).json()["comparison"];
    assert_eq!(
        (&comparison["latent_errors"], &comparison["pixel_errors"]),
        (&json!([0.0, 0.0]), &json!([0.0, 0.0]))
    );
}

#[test]
fn a_measurement_has_the_plan_of_every_budget() {
    let server = Server::demo();
    let settings = json!({ "grid": { "num_steps": 8, "last_step": 0.04, "timeshift": 1.0 } });
    let job = server.submit(&json!({ "measure": { "settings": settings, "images": 2, "order": 0 } }));
    assert_eq!(server.events(&job).last().unwrap().0, "done");
    let result = server.get(&format!("{job}/result.json")).json();
    let similarity: Vec<f64> = serde_json::from_value(result["similarity"].clone()).unwrap();
    assert_eq!((similarity.len(), similarity[0]), (64, 1.0));
    let plans = result["plans"].as_array().unwrap();
    assert_eq!(plans.len(), 8);
    for (budget, plan) in (1..).zip(plans) {
        assert_eq!(plan["plan"]["recompute_steps"].as_array().unwrap().len(), budget);
        assert!(plan["mean_error"].as_f64() <= plan["even_error"].as_f64());
        assert!(plan["predicted_speedup"].as_f64().unwrap() >= 1.0);
    }
    // Its plan is taken as it is.
    let settings = json!([{ "grid": settings["grid"], "sharing": plans[2]["plan"] }]);
    let request = json!({ "classes": [0], "images_per_class": 1, "seed": 0 });
    let job = server.submit(&json!({ "generate": { "request": request, "settings": settings } }));
    server.events(&job).last();
    let result = server.get(&format!("{job}/result.json")).json();
    assert_eq!(result["runs"][0]["recompute_steps"], plans[2]["plan"]["recompute_steps"]);
}

#[test]
fn jobs_are_cancelled_where_they_are() {
    let server = Server::waiting(Setup::default());
    let (running, waiting) = (server.submit(&few_steps(1)), server.submit(&few_steps(1)));
    let mut events = server.events(&running);
    assert_eq!(events.find(|it| it.0 == "running").unwrap().0, "running");
    let mut queued = server.events(&waiting);
    assert_eq!(queued.next().unwrap(), ("queued".to_owned(), json!({ "ahead": 1 })));
    assert_eq!(server.request(&format!("DELETE {waiting}"), "", b"").json()["state"]["phase"], "cancelled");
    assert_eq!(
        queued.last().unwrap(),
        ("cancelled".to_owned(), json!({ "message": "cancelled by the client" }))
    );
    server.request(&format!("DELETE {running}"), "", b"");
    assert_eq!(events.last().unwrap().0, "cancelled");
    assert_eq!(server.get(&format!("{running}/result.json")).status, 404);
    // Twice is no error, and changes nothing.
    assert_eq!(server.request(&format!("DELETE {running}"), "", b"").json()["state"]["phase"], "cancelled");
}

#[test]
fn real_jobs_are_cancelled_between_steps() {
    let server = Server::demo();
    let grid = json!({ "num_steps": 1000, "last_step": 0.0005, "timeshift": 1.0 });
    let request = json!({ "classes": [0, 1, 2, 3], "images_per_class": 16, "seed": 0, "batch": 64 });
    let job = server.submit(&json!({ "generate": { "request": request, "settings": [{ "grid": grid }] } }));
    let mut events = server.events(&job);
    let step = events.find(|it| it.0 == "step").unwrap().1["step"].as_u64().unwrap();
    server.request(&format!("DELETE {job}"), "", b"");
    assert_eq!((step < 900, events.last().unwrap().0.as_str()), (true, "cancelled"));
}

#[test]
fn a_client_that_goes_away_cancels_its_job_and_one_that_returns_does_not() {
    let mut setup = Setup::default();
    setup.bounds.abandoned = Duration::from_secs(2);
    let server = Server::waiting(setup);
    let job = server.submit(&few_steps(1));
    // Reloading the page, many times.
    for _ in 0..5 {
        let mut events = server.events(&job);
        assert_eq!(events.find(|it| it.0 == "running").unwrap().0, "running");
        std::thread::sleep(Duration::from_millis(500));
    }
    let next = server.submit_as("two", &few_steps(0)).json()["job"].as_str().unwrap().to_owned();
    let mut others = server.events(&next);
    assert_eq!(others.next().unwrap().0, "queued");
    // The first is abandoned, the second is followed.
    assert_eq!(others.last().unwrap().0, "done");
    let state = server.get(&job).json()["state"].clone();
    assert_eq!((&state["phase"], &state["message"]), (&json!("cancelled"), &json!("the client went away")));
}

#[test]
fn a_job_may_not_run_for_ever() {
    let mut setup = Setup::default();
    setup.bounds.run = Duration::from_millis(300);
    let server = Server::waiting(setup);
    let (name, data) = server.events(&server.submit(&few_steps(1))).last().unwrap();
    assert_eq!(
        (name.as_str(), data["message"].as_str()),
        ("cancelled", Some("the job ran for more than 0.3 s"))
    );
}

#[test]
fn a_panic_or_an_error_ends_one_job() {
    let server = Server::new(
        Setup::default(),
        Box::new(|job| match super::seed_of(job) {
            1 => panic!("out of luck"),
            2 => anyhow::bail!("not today"),
            _ => Ok(json!({})),
        }),
    );
    for (seed, expected) in [(1, "internal error: out of luck"), (2, "not today")] {
        let (name, data) = server.events(&server.submit(&few_steps(seed))).last().unwrap();
        assert_eq!((name.as_str(), data["message"].as_str()), ("failed", Some(expected)));
    }
    assert_eq!(server.events(&server.submit(&few_steps(0))).last().unwrap().0, "done");
}

#[test]
fn the_queue_is_bounded_and_fair() {
    let mut setup = Setup { workers: 2, ..Setup::default() };
    (setup.bounds.waiting, setup.bounds.waiting_of_client) = (4, 2);
    let server = Server::waiting(setup);
    let running = server.submit_as("a", &few_steps(1));
    eventually("running", || server.get("/api/health").json()["jobs"]["running"] == 1);
    // A second worker is free, but not for a client that has a job.
    for _ in 0..2 {
        assert_eq!(server.submit_as("a", &few_steps(1)).status, 202);
    }
    let refused = server.submit_as("a", &few_steps(1));
    assert_eq!((refused.status, refused.error().contains("of this client")), (429, true));
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&wait));
    let other = server.submit_as("b", &few_steps(0)).json()["job"].as_str().unwrap().to_owned();
    assert_eq!(server.events(&other).last().unwrap().0, "done");
    assert_eq!(server.get("/api/health").json()["jobs"], json!({ "waiting": 2, "running": 1, "kept": 1 }));
    // Full for everybody.
    for client in ["c", "d", "e"] {
        assert_eq!(server.submit_as(client, &few_steps(1)).status, 202);
    }
    let refused = server.submit_as("f", &few_steps(1));
    assert_eq!((refused.status, refused.error().starts_with("4 jobs are waiting")), (429, true));
    assert_eq!(running.status, 202);
}

#[test]
fn jobs_that_are_followed_go_first() {
    let server = Server::waiting(Setup::default());
    let running = server.submit_as("a", &few_steps(1)).json()["job"].as_str().unwrap().to_owned();
    let submit =
        |client: &str| server.submit_as(client, &few_steps(1)).json()["job"].as_str().unwrap().to_owned();
    let (forgotten, followed) = (submit("b"), submit("c"));
    let mut events = server.events(&followed);
    assert_eq!(events.next().unwrap().0, "queued");
    server.request(&format!("DELETE {running}"), "", b"");
    assert!(events.any(|it| it.0 == "running"));
    assert_eq!(server.phase(&forgotten), "queued");
}

#[test]
fn old_results_are_dropped() {
    let mut setup = Setup::default();
    setup.bounds.kept = 2;
    let server = Server::waiting(setup);
    let jobs: Vec<String> = (0..3)
        .map(|_| {
            let job = server.submit(&few_steps(0));
            server.events(&job).last();
            job
        })
        .collect();
    let statuses: Vec<u16> = jobs.iter().map(|it| server.get(it).status).collect();
    assert_eq!(statuses, [404, 200, 200]);
}

#[test]
fn stopping_finishes_what_runs_and_returns_what_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let again = listener.try_clone().unwrap();
    let slow = |job: &crate::serve::job::Job| {
        std::thread::sleep(Duration::from_millis(if super::seed_of(job) == 1 { 1500 } else { 0 }));
        Ok(json!({}))
    };
    let mut server = Server::on(listener, Setup::default(), Box::new(slow));
    let (running, waiting) = (server.submit(&few_steps(1)), server.submit(&few_steps(1)));
    let (mut first, second) = (server.events(&running), server.events(&waiting));
    assert!(first.any(|it| it.0 == "running"));
    server.stop();
    assert_eq!(first.last().unwrap().0, "done");
    let (name, data) = second.last().unwrap();
    assert_eq!((name.as_str(), data["message"].as_str()), ("cancelled", Some(crate::serve::queue::RETURNED)));

    // A server that starts again on the address knows nothing of them.
    let server = Server::on(again, Setup::default(), Box::new(slow));
    assert_eq!(server.get(&running).status, 404);
    assert_eq!(server.events(&server.submit(&few_steps(0))).last().unwrap().0, "done");
}
