//! Requests to the hub, over HTTP, and how long they wait.

use std::{io::Read, time::Duration};

use ddt_hub::{Hub, HubFile};
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response},
};

use crate::error::FetchError;

/// How long to wait and how often to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a connection and its first answer.
    pub connect: Duration,
    /// For the next bytes of a download.
    pub stall: Duration,
    /// Failures in a row, without a byte between them, after which to give up.
    pub attempts: u32,
    /// Pause after the first failure; each further one takes twice as long, up to a minute.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(15), stall: seconds(30), attempts: 6, pause: seconds(1) }
    }
}

/// A client with the user's token.
pub(crate) struct Client {
    agent: Agent,
    authorization: Option<String>,
    url: String,
}

/// Facts about a file that the hub sends before its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announced {
    /// The commit that the branch points to.
    pub(crate) commit: String,
    /// Name of the file's bytes in the cache; of large files their SHA-256.
    pub(crate) etag: String,
    /// Bytes, where they are announced.
    pub(crate) size: Option<u64>,
}

/// Failure of a request.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another attempt may succeed.
    Passing(String),
    /// It will not.
    Final(FetchError),
}

impl Client {
    pub(crate) fn new(hub: &Hub, file: &HubFile, patience: &Patience) -> Self {
        let config = Agent::config_builder()
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_recv_response(Some(patience.connect.max(patience.stall)))
            .http_status_as_error(false)
            .max_redirects(10)
            .user_agent(concat!("ddt/", env!("CARGO_PKG_VERSION")))
            .build();
        let (endpoint, repository, revision) = (&hub.endpoint, file.repository(), file.revision());
        Self {
            agent: config.new_agent(),
            authorization: hub.token.as_ref().map(|token| format!("Bearer {token}")),
            url: format!("{endpoint}/{repository}/resolve/{}/{}", revision.replace('/', "%2F"), file.file()),
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Requests commit, hash and size, which the hub itself sends before it redirects to the storage.
    pub(crate) fn announced(&self) -> Result<Announced, Failure> {
        let mut request =
            self.agent.head(&self.url).config().max_redirects(0).max_redirects_will_error(false).build();
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let response = request.header("accept-encoding", "identity").call().map_err(passing)?;
        self.accept(response.status().as_u16())?;
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let etag = etag.map(|it| it.trim_start_matches("W/").trim_matches('"').to_owned());
        let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
        let is_name = |it: &String| {
            !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        match (text(headers, "x-repo-commit").filter(is_name), etag.filter(is_name)) {
            (Some(commit), Some(etag)) => {
                Ok(Announced { commit, etag, size: size.and_then(|it| it.parse().ok()) })
            }
            _ => Err(self.refused(
                response.status().as_u16(),
                "expected X-Repo-Commit and ETag, as the hub's mirrors send them",
            )),
        }
    }

    /// The bytes from `start` on, and whether they begin there; a server may begin at 0 all the same.
    pub(crate) fn bytes_from(&self, start: u64) -> Result<(impl Read + Send + use<>, bool), Failure> {
        let mut request = self.agent.get(&self.url);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        let response: Response<Body> =
            request.header("accept-encoding", "identity").call().map_err(passing)?;
        let status = response.status().as_u16();
        self.accept(status)?;
        let resumed = status == 206
            && text(response.headers(), "content-range")
                .is_some_and(|it| it.starts_with(&format!("bytes {start}-")));
        Ok((response.into_body().into_reader(), resumed || start == 0))
    }

    fn accept(&self, status: u16) -> Result<(), Failure> {
        match status {
            200..=399 => Ok(()),
            401 | 403 => Err(self.refused(
                status,
                "expected access: accept the repository's terms on the hub and set HF_TOKEN",
            )),
            404 => Err(self.refused(status, "expected a repository, revision and file of the hub")),
            408 | 416 | 429 | 500.. => Err(Failure::Passing(format!("the server answered {status}"))),
            _ => Err(self.refused(status, "try again, or set HF_ENDPOINT to a mirror")),
        }
    }

    fn refused(&self, status: u16, advice: &'static str) -> Failure {
        Failure::Final(FetchError::Refused { url: self.url.clone(), status, advice })
    }
}

fn passing(error: ureq::Error) -> Failure {
    Failure::Passing(error.to_string())
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// The pause after this many failures in a row.
pub(crate) fn pause(patience: &Patience, failures: u32) -> Duration {
    let factor = 1_u32 << failures.saturating_sub(1).min(16);
    patience.pause.saturating_mul(factor).min(Duration::from_secs(60))
}
