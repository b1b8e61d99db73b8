//! A headless Chromium, with the steps that tests repeat.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fantoccini::{Client, ClientBuilder, Locator, wd::WebDriverCompatibleCommand};
use serde_json::{Value, json};
use url::{ParseError, Url};

/// Longest time for anything on the page, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser of its own, which ends with this value.
pub(crate) struct Browser {
    pub(crate) page: Client,
    driver: Child,
}

impl Browser {
    pub(crate) async fn open() -> Self {
        let driver = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).spawn();
        let mut driver =
            driver.expect("chromedriver is not installed: apt-get install chromium chromium-driver");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        // The driver goes on to print.
        std::thread::spawn(move || lines.for_each(drop));
        let flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
        ];
        let options =
            json!({ "goog:chromeOptions": { "args": flags }, "goog:loggingPrefs": { "browser": "WARNING" } });
        let mut builder = ClientBuilder::new(connector());
        builder.capabilities(serde_json::from_value(options).unwrap());
        let page = builder.connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
        Self { page, driver }
    }

    pub(crate) async fn close(mut self) {
        self.page.clone().close().await.unwrap();
        self.driver.kill().unwrap();
        self.driver.wait().unwrap();
    }

    /// Opens the page and waits until it can generate.
    pub(crate) async fn visit(&self, address: &str) {
        self.page.goto(&format!("http://{address}/")).await.unwrap();
        self.until("!document.getElementById('generate').disabled").await;
    }

    /// Waits until a script's value is true.
    pub(crate) async fn until(&self, script: &str) {
        let since = std::time::Instant::now();
        while self.value(script).await != json!(true) {
            assert!(since.elapsed() < PATIENCE, "not yet: {script}; the page says {}", self.status().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn value(&self, script: &str) -> Value {
        self.page.execute(&format!("return {script}"), Vec::new()).await.unwrap()
    }

    pub(crate) async fn status(&self) -> String {
        self.text("status").await
    }

    pub(crate) async fn text(&self, id: &str) -> String {
        self.page.find(Locator::Id(id)).await.unwrap().text().await.unwrap()
    }

    pub(crate) async fn click(&self, id: &str) {
        let element = self.page.find(Locator::Id(id)).await.unwrap();
        element.click().await.unwrap();
    }

    /// Sets a field as a user does, so that the page hears of it.
    pub(crate) async fn set(&self, selector: &str, value: &str) {
        let script = "const it = document.querySelector(arguments[0]); it.value = arguments[1];\
                      for (const name of ['input', 'change']) it.dispatchEvent(new Event(name, { bubbles: true }));";
        self.page.execute(script, vec![json!(selector), json!(value)]).await.unwrap();
    }

    /// Waits for the end of a job whose images are shown.
    pub(crate) async fn done(&self) {
        self.until("document.getElementById('runs').dataset.job === 'done'").await;
    }

    /// Whether every tile shows an image: more than one colour.
    pub(crate) async fn tiles_are_drawn(&self) -> bool {
        let script = "[...document.querySelectorAll('.tiles canvas')].every((it) => \
                      new Set(new Uint32Array(it.getContext('2d').getImageData(0, 0, it.width, it.height).data.buffer)).size > 20)";
        self.value(script).await == json!(true)
    }

    /// A command of the browser's own protocol.
    pub(crate) async fn protocol(&self, name: &'static str, parameters: Value) {
        let body = json!({ "cmd": name, "params": parameters });
        self.page.issue_cmd(Extension { path: "goog/cdp/execute", body }).await.unwrap();
    }

    /// Complaints of the page, such as an exception or a breach of its content security policy; not answers that
    /// are errors.
    pub(crate) async fn complaints(&self) -> Vec<Value> {
        let command = Extension { path: "se/log", body: json!({ "type": "browser" }) };
        let entries = self.page.issue_cmd(command).await.unwrap();
        entries.as_array().unwrap().iter().filter(|it| it["source"] != "network").cloned().collect()
    }

    /// Another width of the window, in CSS pixels, and a scheme of colours.
    pub(crate) async fn appear(&self, width: u32, height: u32, scheme: &str) {
        let is_phone = width < 600;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone });
        self.protocol("Emulation.setDeviceMetricsOverride", metrics).await;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.protocol("Emulation.setEmulatedMedia", features).await;
    }

    /// Writes a picture of the window into the folder that `DDT_SCREENSHOTS` names, if it does.
    pub(crate) async fn screenshot(&self, name: &str) {
        let png = self.page.screenshot().await.unwrap();
        assert!(png.len() > 10_000, "an empty page");
        if let Some(folder) = std::env::var_os("DDT_SCREENSHOTS") {
            std::fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), png).unwrap();
        }
    }
}

/// Plain HTTP, to this machine.
fn connector() -> hyper_util::client::legacy::connect::HttpConnector {
    hyper_util::client::legacy::connect::HttpConnector::new()
}

/// A command that WebDriver does not have.
#[derive(Debug)]
struct Extension {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(&self, base_url: &Url, session_id: Option<&str>) -> Result<Url, ParseError> {
        base_url.join(&format!("session/{}/{}", session_id.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}
