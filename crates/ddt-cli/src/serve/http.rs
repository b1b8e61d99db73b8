//! The routes: the page, and the interface that it uses.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::ValueEnum;
use ddt::{Fidelity, Pipeline, flow::SOLVER_NAMES};
use serde_json::{Value, json};

use crate::serve::{
    events,
    guard::{COOKIE, Guard, token_of},
    job::Job,
    queue::{Queue, Refusal},
    submission::{FIELDS, LIMITS, Order, check_measurable},
};

/// Largest body, in bytes; a plan of a thousand steps has a tenth of it.
const MAX_BODY: usize = 64 * 1024;

/// Longest name of a client.
const MAX_CLIENT: usize = 64;

/// The state that all routes share.
pub(crate) struct Studio {
    pub(crate) pipeline: Pipeline,
    pub(crate) queue: Arc<Queue>,
    pub(crate) guard: Guard,
    /// Class, images and seed that the page shows first.
    pub(crate) shown: Value,
    /// Longest time until an answer begins.
    pub(crate) answer: Duration,
}

/// An error as JSON.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, axum::Json(json!({ "error": self.1 }))).into_response()
    }
}

/// All routes.
pub(crate) fn router(studio: Arc<Studio>) -> Router {
    let mut router = Router::new();
    for (path, kind, text) in PAGE {
        router = router.route(path, get(move || async move { ([(header::CONTENT_TYPE, kind)], text) }));
    }
    router
        .route("/api/health", get(health))
        .route("/api/presets", get(presets))
        .route("/api/classes", get(classes))
        .route("/api/jobs", post(submit))
        .route("/api/jobs/{id}", get(show).delete(cancel))
        .route("/api/jobs/{id}/events", get(follow))
        .route("/api/jobs/{id}/result.json", get(result))
        .route("/api/jobs/{id}/runs/{run}/{file}", get(picture))
        .fallback(|| async {
            Failure(StatusCode::NOT_FOUND, "there is no such address; see docs/serve.md".to_owned())
        })
        .method_not_allowed_fallback(|| async {
            Failure(
                StatusCode::METHOD_NOT_ALLOWED,
                "this address has no such method; see docs/serve.md".to_owned(),
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(studio.clone(), protect))
        .with_state(studio)
}

const JS: &str = "text/javascript; charset=utf-8";

/// The page's files.
const PAGE: [(&str, &str, &str); 8] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/studio.css", "text/css; charset=utf-8", include_str!("page/studio.css")),
    ("/studio.js", JS, include_str!("page/studio.js")),
    ("/api.js", JS, include_str!("page/api.js")),
    ("/form.js", JS, include_str!("page/form.js")),
    ("/results.js", JS, include_str!("page/results.js")),
    ("/sharing.js", JS, include_str!("page/sharing.js")),
    ("/history.js", JS, include_str!("page/history.js")),
];

/// Headers of every answer: nothing is loaded from elsewhere, framed, sniffed or cached.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// Checks who asks, limits the time of an answer, and adds the headers of all answers.
async fn protect(State(studio): State<Arc<Studio>>, request: Request, next: Next) -> Response {
    let refused = studio.guard.check(request.method(), request.uri(), request.headers());
    // A wrong one must not replace the right one of a cookie.
    let token = token_of(request.uri()).filter(|it| studio.guard.is_token(it)).map(str::to_owned);
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok());
    let refused = match (refused, length) {
        // Before any of it is read.
        (Ok(()), Some(MAX_BODY..)) => {
            let what = format!("expected a body of less than {MAX_BODY} bytes");
            Err((StatusCode::PAYLOAD_TOO_LARGE, what))
        }
        (refused, _) => refused,
    };
    let mut response = match (refused, token) {
        (Err((status, what)), _) => Failure(status, what).into_response(),
        (Ok(()), Some(token)) => enter(&token),
        (Ok(()), None) => match tokio::time::timeout(studio.answer, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                Failure(StatusCode::REQUEST_TIMEOUT, "the body took too long".to_owned()).into_response()
            }
        },
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Keeps the token in a cookie, so that it leaves the address.
fn enter(token: &str) -> Response {
    let cookie = format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/");
    (StatusCode::SEE_OTHER, [(header::LOCATION, "/".to_owned()), (header::SET_COOKIE, cookie)])
        .into_response()
}

async fn health(State(studio): State<Arc<Studio>>) -> Response {
    axum::Json(json!({ "status": "ok", "version": ddt::VERSION, "jobs": studio.queue.counts() }))
        .into_response()
}

async fn presets(State(studio): State<Arc<Studio>>) -> Response {
    let config = studio.pipeline.config();
    let settings = |config: &ddt::PipelineConfig| -> Value {
        let Ok(Value::Object(all)) = serde_json::to_value(config) else { return Value::Null };
        all.into_iter().filter(|(name, _)| FIELDS.contains(&name.as_str())).collect()
    };
    let mut presets = vec![json!({ "name": "default", "settings": settings(config) })];
    for fidelity in Fidelity::value_variants() {
        let other = config.clone().with_fidelity(*fidelity);
        // A network without two halves takes no sharing, a GPU no other solver.
        if let Some(name) = fidelity.to_possible_value()
            && studio.pipeline.with_sampler(&other).is_ok()
        {
            presets.push(json!({ "name": name.get_name(), "settings": settings(&other) }));
        }
    }
    let network = config.network.as_ref();
    axum::Json(json!({
        "version": ddt::VERSION, "pipeline": config, "presets": presets, "solvers": SOLVER_NAMES,
        "limits": LIMITS, "shown": studio.shown,
        "can_share": network.is_some_and(|it| it.family.is_decoupled()),
        "can_measure": check_measurable(&studio.pipeline).is_ok(),
    }))
    .into_response()
}

async fn classes(State(studio): State<Arc<Studio>>) -> Response {
    let table = studio.pipeline.classes();
    let names: Vec<&str> = (0..table.len() as u32).filter_map(|it| table.name(it)).collect();
    axum::Json(names).into_response()
}

async fn submit(
    State(studio): State<Arc<Studio>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    // Pages of other sites cannot send it without asking first.
    if kind.split(';').next().is_none_or(|it| it.trim() != "application/json") {
        let what = format!("expected content-type: application/json, got {kind:?}");
        return Err(Failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    let client = headers.get("ddt-client").map(|it| it.to_str().unwrap_or_default()).unwrap_or("nameless");
    let is_name = |it: char| it.is_ascii_alphanumeric() || it == '-';
    if client.is_empty() || client.len() > MAX_CLIENT || !client.chars().all(is_name) {
        let what = format!("expected ddt-client with at most {MAX_CLIENT} letters, digits and hyphens");
        return Err(Failure(StatusCode::BAD_REQUEST, what));
    }
    let order = Order::parse(&body, &studio.pipeline)
        .map_err(|error| Failure(StatusCode::UNPROCESSABLE_ENTITY, format!("{error:#}")))?;
    match studio.queue.submit(client.to_owned(), order) {
        Ok(job) => {
            let address = format!("/api/jobs/{}", job.id);
            let body = json!({ "id": job.id, "job": address, "events": format!("{address}/events") });
            Ok((StatusCode::ACCEPTED, [(header::LOCATION, address)], axum::Json(body)).into_response())
        }
        Err(refusal @ Refusal::Full { retry_after, .. }) => {
            let failure = Failure(StatusCode::TOO_MANY_REQUESTS, refusal.to_string());
            Ok(([(header::RETRY_AFTER, retry_after.to_string())], failure).into_response())
        }
        Err(refusal @ Refusal::Closed) => {
            let failure = Failure(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string());
            Ok(([(header::RETRY_AFTER, "5".to_owned())], failure).into_response())
        }
        Err(refusal) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, refusal.to_string())),
    }
}

/// The job of an address, which counts as attention.
fn job(studio: &Studio, id: &str) -> Result<Arc<Job>, Failure> {
    let Some(job) = studio.queue.get(id) else {
        let what = "there is no such job: its result was dropped for later ones, or the server started again";
        return Err(Failure(StatusCode::NOT_FOUND, what.to_owned()));
    };
    job.seen();
    Ok(job)
}

async fn show(State(studio): State<Arc<Studio>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let job = job(&studio, &id)?;
    Ok(axum::Json(json!({ "id": job.id, "state": job.state() })).into_response())
}

async fn cancel(State(studio): State<Arc<Studio>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let job = job(&studio, &id)?;
    studio.queue.cancel(&job, "cancelled by the client");
    Ok(axum::Json(json!({ "id": job.id, "state": job.state() })).into_response())
}

async fn follow(State(studio): State<Arc<Studio>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let job = job(&studio, &id)?;
    Ok(events::stream(studio.queue.clone(), job.watch()).into_response())
}

async fn result(State(studio): State<Arc<Studio>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let result = job(&studio, &id)?.result();
    if result.is_empty() {
        return Err(Failure(
            StatusCode::NOT_FOUND,
            "the job has no result, or none yet; follow its events".to_owned(),
        ));
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], result).into_response())
}

async fn picture(
    State(studio): State<Arc<Studio>>,
    Path((id, run, file)): Path<(String, usize, String)>,
) -> Result<Response, Failure> {
    let pictures = job(&studio, &id)?.pictures(run).unwrap_or_default();
    let png = match file.as_str() {
        "image.png" => pictures.page,
        "sheet.png" => pictures.sheet,
        _ => Bytes::new(),
    };
    if png.is_empty() {
        let what =
            format!("run {run} of the job has no {file:?}, or none yet; expected image.png or sheet.png");
        return Err(Failure(StatusCode::NOT_FOUND, what));
    }
    Ok(([(header::CONTENT_TYPE, "image/png")], png).into_response())
}
