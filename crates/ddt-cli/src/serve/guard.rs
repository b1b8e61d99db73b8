//! Who may ask: the host name, the origin and the token of a request.

use std::net::IpAddr;

use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use ddt::files::sha256;

/// Name of the cookie that carries the token.
pub(crate) const COOKIE: &str = "ddt-token";

/// A refusal: its status, and what was expected.
pub(crate) type Refused = (StatusCode, String);

/// Rules of access.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guard {
    /// Names of this machine that a browser may use, beside `localhost` and numbers.
    pub(crate) hosts: Vec<String>,
    /// SHA-256 of the token. Comparing hashes takes a time that tells nothing about the token.
    pub(crate) token: Option<String>,
}

impl Guard {
    /// Checks the headers of a request.
    ///
    /// - `Host` must be a number, `localhost` or a known name: another name that leads here is DNS rebinding.
    /// - `Origin` must be that host, and `Sec-Fetch-Site` this site: other sites' pages may only link to `/`.
    /// - The token must be there, if there is one, but for `/api/health`.
    pub(crate) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refused> {
        let text = |name| headers.get(name).and_then(|it| it.to_str().ok());
        let host = match headers.get_all(header::HOST).iter().count() {
            1 => text(header::HOST).unwrap_or_default(),
            _ => "",
        };
        if !self.is_known(host) {
            let expected = "expected a Host header with the address of this server; name others with --host";
            return Err((StatusCode::MISDIRECTED_REQUEST, format!("{expected}, got {host:?}")));
        }
        let refused = |what: String| Err((StatusCode::FORBIDDEN, what));
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if authority != Some(host) {
                return refused(format!("expected a request of the page of {host}, got one of {origin:?}"));
            }
        }
        let is_page = *method == Method::GET && uri.path() == "/";
        let site = headers.get("sec-fetch-site").map(|it| it.to_str().unwrap_or_default());
        if !is_page && !matches!(site, None | Some("same-origin" | "none")) {
            return refused(format!(
                "expected a request of this site, got one of a {} page",
                site.unwrap_or_default()
            ));
        }
        if uri.path() == "/api/health" || self.is_allowed(uri, headers) {
            return Ok(());
        }
        let expected = "expected the token of this server: open the address that it printed, or send \
                        Authorization: Bearer TOKEN";
        Err((StatusCode::UNAUTHORIZED, expected.to_owned()))
    }

    fn is_known(&self, host: &str) -> bool {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !name.is_empty() && !port.contains(']') => (name, port),
            _ => (host, "80"),
        };
        let number = name.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(name);
        let is_name = |known: &str| known.eq_ignore_ascii_case(name);
        port.parse::<u16>().is_ok()
            && (number.parse::<IpAddr>().is_ok()
                || is_name("localhost")
                || self.hosts.iter().any(|it| is_name(it)))
    }

    fn is_allowed(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let all = |name| headers.get_all(name).into_iter().filter_map(|it| it.to_str().ok());
        let bearer = all(header::AUTHORIZATION).filter_map(|it| it.strip_prefix("Bearer "));
        let cookies = all(header::COOKIE).flat_map(|it| it.split(';'));
        let cookies = cookies.filter_map(|it| it.trim().strip_prefix(COOKIE)?.strip_prefix('='));
        let mut given = bearer.chain(cookies).chain(token_of(uri));
        self.token.is_none() || given.any(|it| self.is_token(it))
    }

    /// Whether the server has a token, and this is it.
    pub(crate) fn is_token(&self, given: &str) -> bool {
        self.token.as_ref().is_some_and(|it| sha256(given.as_bytes()) == *it)
    }
}

/// The token in the address of the page.
pub(crate) fn token_of(uri: &Uri) -> Option<&str> {
    uri.query().filter(|_| uri.path() == "/")?.strip_prefix("token=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(guard: &Guard, line: &str, headers: &[(&'static str, &str)]) -> u16 {
        let (method, path) = line.split_once(' ').unwrap();
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let checked = guard.check(&method.parse().unwrap(), &path.parse().unwrap(), &headers);
        checked.err().map_or(200, |it| it.0.as_u16())
    }

    #[test]
    fn only_known_hosts() {
        let guard = Guard { hosts: vec!["Studio.lab".to_owned()], token: None };
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1:8188", "[::1]:80", "10.1.2.3", "studio.lab:99"] {
            assert_eq!(status(&guard, "GET /", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1:x",
            "127.0.0.1:",
            "::1",
            "studio.lab:99999",
        ] {
            assert_eq!(status(&guard, "GET /api/jobs", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status(&guard, "GET /", &[]), 421);
        assert_eq!(status(&guard, "GET /", &[("host", "localhost"), ("host", "localhost")]), 421);
    }

    #[test]
    fn only_this_site() {
        let from = |line: &str, name, value: &str| {
            status(&Guard::default(), line, &[("host", "localhost:1"), (name, value)])
        };
        assert_eq!(from("POST /api/jobs", "origin", "http://localhost:1"), 200);
        for origin in
            ["http://localhost:2", "http://127.0.0.1:1", "null", "", "localhost:1", "http://evil.example"]
        {
            assert_eq!(from("POST /api/jobs", "origin", origin), 403, "{origin}");
        }
        for (site, page, other) in
            [("same-origin", 200, 200), ("none", 200, 200), ("cross-site", 200, 403), ("same-site", 200, 403)]
        {
            assert_eq!(from("GET /", "sec-fetch-site", site), page);
            assert_eq!(from("GET /api/classes", "sec-fetch-site", site), other);
            assert_eq!(from("POST /", "sec-fetch-site", site), other);
        }
    }

    #[test]
    fn only_with_the_token() {
        let guard = Guard { hosts: Vec::new(), token: Some(sha256(b"secret")) };
        let with =
            |line: &str, name, value: &str| status(&guard, line, &[("host", "localhost"), (name, value)]);
        assert_eq!(with("GET /api/classes", "authorization", "Bearer secret"), 200);
        assert_eq!(with("GET /api/classes", "cookie", "a=b; ddt-token=secret"), 200);
        assert_eq!(with("GET /?token=secret", "accept", "*/*"), 200);
        assert_eq!(with("GET /api/health", "accept", "*/*"), 200);
        for (line, name, value) in [
            ("GET /api/classes", "authorization", "Bearer Secret"),
            ("GET /api/classes", "authorization", "secret"),
            ("GET /api/classes", "cookie", "ddt-token=; token=secret"),
            ("GET /api/classes?token=secret", "accept", "*/*"),
            ("GET /?token=", "accept", "*/*"),
            ("GET /", "accept", "*/*"),
        ] {
            assert_eq!(with(line, name, value), 401, "{line} {value}");
        }
    }
}
