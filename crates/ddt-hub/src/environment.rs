//! Where the hub and its cache are, and whether it may be asked.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Cache folder, endpoint and token of the hub.
#[derive(Clone, PartialEq, Eq)]
pub struct Hub {
    /// The folder that holds `models--owner--name`.
    pub cache: PathBuf,
    /// The hub, or a mirror of it, such as `https://huggingface.co`.
    pub endpoint: String,
    /// An access token; never printed.
    pub token: Option<String>,
    /// Whether no socket may be opened.
    pub offline: bool,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .finish()
    }
}

impl Hub {
    /// The settings of the environment, by the rules of `huggingface_hub`.
    ///
    /// ```text
    /// cache     HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else HF_HOME/hub,
    ///           else XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub
    /// endpoint  HF_ENDPOINT, else https://huggingface.co
    /// token     HF_TOKEN, else the file HF_TOKEN_PATH, else the file `token` in HF_HOME;
    ///           none of them if HF_HUB_DISABLE_IMPLICIT_TOKEN is on
    /// offline   HF_HUB_OFFLINE, else TRANSFORMERS_OFFLINE, is 1, true, yes or on
    /// ```
    ///
    /// In folders a leading `~` is the home folder, and `$NAME` and `${NAME}` are other variables.
    /// An empty variable counts as absent.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let is_on = |value: Option<String>| {
            value.is_some_and(|it| ["1", "true", "yes", "on"].contains(&it.to_lowercase().as_str()))
        };
        let user = var("HOME").or_else(|| var("USERPROFILE")).map_or_else(PathBuf::new, PathBuf::from);
        let folder = |name| var(name).map(|text| expand(&text, &user, &var));
        let caches = || folder("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache"));
        let home = folder("HF_HOME").unwrap_or_else(|| caches().join("huggingface"));
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let stored = || Some(std::fs::read_to_string(token_file).ok()?.trim().to_owned());
        let token = match is_on(var("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
            true => None,
            false => var("HF_TOKEN").or_else(stored).filter(|token| !token.is_empty()),
        };
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            offline: is_on(var("HF_HUB_OFFLINE").or_else(|| var("TRANSFORMERS_OFFLINE"))),
        }
    }
}

/// A folder as a shell would understand it; variables that are not set stay as they are written.
fn expand(text: &str, user: &Path, var: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_';
        let (name, left) = match after.strip_prefix('{').and_then(|it| it.split_once('}')) {
            Some(braced) => braced,
            None => after.split_at(after.find(|it| !is_name(it)).unwrap_or(after.len())),
        };
        let written = &rest[before.len()..rest.len() - left.len()];
        expanded += before;
        expanded += var(name).as_deref().unwrap_or(written);
        rest = left;
    }
    expanded += rest;
    match expanded.strip_prefix('~') {
        Some("") => user.to_owned(),
        Some(inside) if inside.starts_with('/') => user.join(&inside[1..]),
        _ => PathBuf::from(expanded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Hub {
        let find = |name: &str| vars.iter().find(|(it, _)| *it == name).map(|(_, value)| value.to_string());
        Hub::from_vars(find)
    }

    #[test]
    fn the_cache_is_where_other_tools_look_for_it() {
        let home = ("HOME", "/me");
        for (vars, expected) in [
            (&[home, ("HF_HOME", "")][..], "/me/.cache/huggingface/hub"),
            (&[home, ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")], "/f/hub"),
            (&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
            (&[home, ("HF_HOME", "~/hf")], "/me/hf/hub"),
            (&[home, ("HF_HUB_CACHE", "~")], "/me"),
            (&[home, ("HF_HUB_CACHE", "~other/x")], "~other/x"),
            (&[home, ("DISK", "/disk"), ("HF_HOME", "$DISK/a")], "/disk/a/hub"),
            (&[home, ("DISK", "/disk"), ("HF_HOME", "${DISK}a$")], "/diska$/hub"),
            (&[home, ("HF_HUB_CACHE", "/c/$ABSENT/${ALSO}/é")], "/c/$ABSENT/${ALSO}/é"),
        ] {
            assert_eq!(from(vars).cache, PathBuf::from(expected), "{vars:?}");
        }
    }

    #[test]
    fn endpoint_and_offline() {
        assert_eq!(from(&[("HF_ENDPOINT", "")]).endpoint, "https://huggingface.co");
        assert_eq!(from(&[("HF_ENDPOINT", "https://mirror/")]).endpoint, "https://mirror");
        for (value, offline) in
            [("1", true), ("True", true), ("ON", true), ("yes", true), ("0", false), ("", false)]
        {
            assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
            assert_eq!(from(&[("TRANSFORMERS_OFFLINE", value)]).offline, offline, "{value}");
        }
        // As in huggingface_hub, the first that is set decides.
        assert!(!from(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
    }

    #[test]
    fn the_token_is_found_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "stored\n").unwrap();
        let home = ("HF_HOME", folder.path().to_str().unwrap());
        assert_eq!(from(&[home]).token.as_deref(), Some("stored"));
        let hub = from(&[home, ("HF_TOKEN", "secret")]);
        assert_eq!(hub.token.as_deref(), Some("secret"));
        assert!(!format!("{hub:?}").contains("secret"));
        let none = from(&[home, ("HF_TOKEN", "secret"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(none.token, None);
    }
}
