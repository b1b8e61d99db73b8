//! The page of `ddt serve` in Chromium.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a time is printed")]

mod browser;

use std::time::{Duration, Instant};

use browser::Browser;
use ddt_system_tests::{Program, request};
use serde_json::{Value, json};

/// A server and a browser that shows its page, for a test that waits on them.
fn with_page(test: impl AsyncFnOnce(&mut Program, &Browser)) {
    with_page_of(&[], test);
}

/// [`with_page`] of a server with further flags.
fn with_page_of(flags: &[&str], test: impl AsyncFnOnce(&mut Program, &Browser)) {
    let mut program = Program::start(0, flags).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let browser = Browser::open().await;
        browser.visit(&program.address.clone()).await;
        test(&mut program, &browser).await;
        let complaints = browser.complaints().await;
        assert!(complaints.is_empty(), "{complaints:?}");
        browser.close().await;
    });
    assert!(program.is_running().unwrap());
}

fn counts(program: &Program) -> Value {
    request(&program.address, "GET /api/health", "test", "").unwrap().json().unwrap()["jobs"].clone()
}

/// A job that takes long enough to be disturbed.
async fn begin_long_job(browser: &Browser) {
    browser.set("#images", "16").await;
    browser.set("#settings-a [name=steps]", "1000").await;
    browser.set("#settings-a [name=last]", "0.0005").await;
    browser.click("generate").await;
    browser.until("document.getElementById('progress').value > 0").await;
}

#[test]
fn the_first_picture_appears_step_by_step() {
    with_page(async |program, browser| {
        let since = Instant::now();
        browser.visit(&program.address).await;
        browser.click("generate").await;
        browser.done().await;
        println!("page load to first picture: {:.2} s", since.elapsed().as_secs_f64());
        assert!(browser.tiles_are_drawn().await);
        assert!(browser.status().await.starts_with("Done in"));
        let command = browser.value("document.querySelector('#runs code').textContent").await;
        assert!(
            command.as_str().unwrap().starts_with("ddt sample --weights demo --class 7 --images 4 --seed 0"),
            "{command}"
        );
        // The file that the link downloads has the settings inside.
        let link = browser.value("document.querySelector('#runs a[download]').getAttribute('href')").await;
        let png =
            request(&program.address, &format!("GET {}", link.as_str().unwrap()), "test", "").unwrap().body;
        assert!(png.windows(10).any(|it| it == b"ddt:record"));
        // Two classes, found by their names; images appear before the end.
        browser.set("#search", "sh").await;
        let shown = browser
            .value("[...document.querySelectorAll('#classes label')].filter((it) => !it.hidden).length")
            .await;
        assert_eq!(shown, json!(1));
        browser.value("document.querySelector('#classes label:not([hidden]) input').click()").await;
        browser.set("#settings-a [name=steps]", "250").await;
        browser.click("generate").await;
        browser.until("document.getElementById('runs').dataset.job === 'running' && document.getElementById('runs').dataset.drawn > 0").await;
        browser.done().await;
        assert_eq!(browser.value("document.querySelectorAll('.tiles canvas').length").await, json!(8));
        assert!(browser.tiles_are_drawn().await);
        // The history has both, and gives back the settings of the first.
        assert_eq!(browser.value("document.querySelectorAll('#entries li').length").await, json!(2));
        browser.value("document.querySelector('#entries li:last-child button').click()").await;
        assert_eq!(
            browser.value("document.querySelector('#settings-a [name=steps]').value").await,
            json!("50")
        );
        assert_eq!(browser.text("chosen").await, "Chosen: horse");
    });
}

#[test]
fn two_settings_are_compared() {
    with_page(async |_, browser| {
        browser.click("compare").await;
        browser.click("generate").await;
        browser.done().await;
        assert_eq!(browser.value("document.querySelectorAll('.run').length").await, json!(2));
        assert!(browser.tiles_are_drawn().await);
        let said = browser.text("comparison").await;
        assert!(said.contains("times as fast; mean error of latents 0."), "{said}");
        browser.appear(1280, 900, "light").await;
        browser.value("scrollTo(0, 0)").await;
        browser.screenshot("serve").await;
        browser.appear(390, 844, "dark").await;
        // Nothing is wider than a phone.
        assert_eq!(browser.value("document.documentElement.scrollWidth <= 390").await, json!(true));
        browser.value("document.getElementById('results').scrollIntoView()").await;
        browser.screenshot("serve-phone").await;
    });
}

#[test]
fn steps_may_end_before_data() {
    let command =
        |part: &str| format!("document.querySelector('#runs code')?.textContent.includes('{part}')");
    with_page_of(&["--end", "0.99"], async |_, browser| {
        browser.set("#settings-a [name=steps]", "9").await;
        let last = "Math.abs(document.querySelector('#settings-a [name=last]').value - 0.11) < 1e-9";
        assert_eq!(browser.value(last).await, json!(true));
        browser.click("generate").await;
        browser.until(&command("--steps 9 --end 0.99")).await;
        let words = browser.value("document.querySelector('#runs .quiet').textContent").await;
        assert!(words.as_str().unwrap().contains(" until 0.99"), "{words}");
        // A last step of the user's leads to data.
        browser.until("!document.getElementById('generate').disabled").await;
        browser.set("#settings-a [name=last]", "0.2").await;
        browser.click("generate").await;
        browser.until(&command("--steps 9 --last-step 0.2")).await;
        // The history knows the end.
        browser.until("document.querySelectorAll('#entries li').length === 2").await;
        browser.value("document.querySelector('#entries li:last-child button').click()").await;
        browser.click("generate").await;
        browser.until(&command("--steps 9 --end 0.99")).await;
    });
}

#[test]
fn a_history_that_fails_leaves_the_job_done() {
    // Replaces the answer to requests for finished images.
    let replace = |with: &str| {
        format!(
            "(window.original ??= fetch, window.fetch = (path, ...more) => \
             path.endsWith('image.png') ? {with} : original(path, ...more), true)"
        )
    };
    with_page(async |_, browser| {
        browser.value(&replace("Promise.reject(new Error('out of reach'))")).await;
        browser.click("generate").await;
        browser
            .until(
                "document.getElementById('detail').textContent === 'Not kept in the history: out of reach.'",
            )
            .await;
        assert!(browser.status().await.starts_with("Done in"));
        assert_eq!(browser.value("document.getElementById('runs').dataset.job").await, json!("done"));
        // An error is no picture.
        browser.value(&replace("original('/absent')")).await;
        browser.click("generate").await;
        browser.until("document.querySelectorAll('#entries li').length === 1").await;
        assert_eq!(browser.value("document.querySelector('#entries a')").await, Value::Null);
        assert!(browser.status().await.starts_with("Done in"));
    });
}

#[test]
fn a_plan_is_measured_and_tried() {
    with_page(async |_, browser| {
        browser.set("#measured-images", "2").await;
        browser.click("measure").await;
        browser.until("!document.getElementById('plan').hidden").await;
        browser.set("#budget", "9").await;
        let text = browser.text("plan-text").await;
        assert!(text.contains("% shared): predicted") && text.contains("times as fast"), "{text}");
        browser.click("try").await;
        browser.until("!document.getElementById('measured').hidden").await;
        let row = browser.text("measured").await;
        assert!(row.contains(" of 50"), "{row}");
        browser.click("use").await;
        assert_eq!(
            browser.value("document.querySelector('#settings-a [name=sharing]').value").await,
            json!("plan")
        );
        browser.appear(390, 844, "light").await;
        assert_eq!(browser.value("document.documentElement.scrollWidth <= 390").await, json!(true));
        browser.appear(1280, 900, "dark").await;
        browser.value("document.getElementById('sharing').scrollIntoView()").await;
        browser.screenshot("serve-sharing").await;
    });
}

#[test]
fn a_job_is_cancelled() {
    with_page(async |program, browser| {
        begin_long_job(browser).await;
        browser.click("cancel").await;
        browser.until("document.getElementById('runs').dataset.job === 'ended'").await;
        assert!(browser.status().await.starts_with("Stopped: cancelled by the client"));
        assert_eq!(counts(program)["running"], json!(0));
        // By the keyboard too: Enter in a field starts a job.
        browser.set("#settings-a [name=steps]", "5").await;
        browser.value("document.getElementById('seed').focus()").await;
        browser.page.active_element().await.unwrap().send_keys("\u{E007}").await.unwrap();
        browser.done().await;
    });
}

#[test]
fn a_tab_that_closes_cancels_its_job_and_another_goes_on() {
    with_page(async |program, browser| {
        begin_long_job(browser).await;
        let first = browser.page.window().await.unwrap();
        let second = browser.page.new_window(true).await.unwrap().handle;
        browser.page.switch_to_window(second.clone()).await.unwrap();
        browser.visit(&program.address).await;
        browser.click("generate").await;
        browser.until("document.getElementById('status').textContent.startsWith('Waiting: 1 jobs')").await;
        browser.page.switch_to_window(first).await.unwrap();
        browser.page.close_window().await.unwrap();
        browser.page.switch_to_window(second).await.unwrap();
        browser.done().await;
        assert!(browser.tiles_are_drawn().await);
    });
}

#[test]
fn a_page_that_is_loaded_again_goes_on_with_its_job() {
    with_page(async |program, browser| {
        begin_long_job(browser).await;
        browser.page.refresh().await.unwrap();
        browser.until("document.getElementById('runs').dataset.job === 'running'").await;
        browser.until("document.getElementById('progress').value > 0").await;
        assert_eq!(counts(program)["running"], json!(1));
        browser.click("cancel").await;
        browser.until("document.getElementById('runs').dataset.job === 'ended'").await;
    });
}

#[test]
fn a_server_that_starts_again_is_found() {
    with_page(async |program, browser| {
        begin_long_job(browser).await;
        let port: u16 = program.address.rsplit(':').next().unwrap().parse().unwrap();
        program.kill().unwrap();
        browser
            .until("document.getElementById('status').textContent.startsWith('The connection was lost')")
            .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        *program = Program::start(port, &[]).unwrap();
        browser.until("document.getElementById('status').textContent.startsWith('The server no longer has this job')").await;
        browser.set("#settings-a [name=steps]", "5").await;
        browser.click("generate").await;
        browser.done().await;
        assert!(browser.tiles_are_drawn().await);
    });
}
