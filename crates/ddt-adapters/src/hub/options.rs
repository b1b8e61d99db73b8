//! Where the hub and its cache are, and whether it may be asked.

use std::path::PathBuf;

/// Cache folder, endpoint and token of the hub.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The folder that holds `models--owner--name`.
    pub cache: PathBuf,
    /// The hub, or a mirror of it, such as `https://huggingface.co`.
    pub endpoint: String,
    /// An access token; never printed.
    pub token: Option<String>,
    /// Whether no socket may be opened.
    pub offline: bool,
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .finish()
    }
}

impl HubOptions {
    /// What the environment says, in the variables that all tools of the hub share.
    ///
    /// ```text
    /// cache     HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub,
    ///           else ~/.cache/huggingface/hub
    /// endpoint  HF_ENDPOINT, else https://huggingface.co
    /// token     HF_TOKEN, else the file HF_TOKEN_PATH, else the file `token` in HF_HOME;
    ///           none of them if HF_HUB_DISABLE_IMPLICIT_TOKEN is set
    /// offline   HF_HUB_OFFLINE is 1, true, yes or on
    /// ```
    ///
    /// An empty variable counts as absent.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name| var(name).filter(|value| !value.is_empty());
        let is_on = |name| {
            let value = var(name).unwrap_or_default().to_lowercase();
            ["1", "true", "yes", "on"].contains(&value.as_str())
        };
        let user = || var("HOME").or_else(|| var("USERPROFILE")).map_or_else(PathBuf::new, PathBuf::from);
        let caches = || var("XDG_CACHE_HOME").map_or_else(|| user().join(".cache"), PathBuf::from);
        let home = var("HF_HOME").map_or_else(|| caches().join("huggingface"), PathBuf::from);
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let stored = || Some(std::fs::read_to_string(token_file).ok()?.trim().to_owned());
        let token = match is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => var("HF_TOKEN").or_else(stored).filter(|token| !token.is_empty()),
        };
        Self {
            cache: var("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token,
            offline: is_on("HF_HUB_OFFLINE"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> HubOptions {
        let find = |name: &str| vars.iter().find(|(it, _)| *it == name).map(|(_, value)| value.to_string());
        HubOptions::from_vars(find)
    }

    #[test]
    fn defaults() {
        let options = from(&[("HOME", "/me"), ("HF_ENDPOINT", "")]);
        assert_eq!(options.cache, PathBuf::from("/me/.cache/huggingface/hub"));
        assert_eq!(options.endpoint, "https://huggingface.co");
        assert_eq!((options.token, options.offline), (None, false));
    }

    #[test]
    fn each_variable_is_honoured() {
        let cache = |vars: &[(&str, &str)]| from(vars).cache;
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")]), PathBuf::from("/f/hub"));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
        assert_eq!(from(&[("HF_ENDPOINT", "https://mirror")]).endpoint, "https://mirror");
        for (value, offline) in [("1", true), ("True", true), ("ON", true), ("0", false), ("no", false)] {
            assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
    }

    #[test]
    fn the_token_is_found_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "stored\n").unwrap();
        let home = ("HF_HOME", folder.path().to_str().unwrap());
        assert_eq!(from(&[home]).token.as_deref(), Some("stored"));
        let options = from(&[home, ("HF_TOKEN", "secret")]);
        assert_eq!(options.token.as_deref(), Some("secret"));
        assert!(!format!("{options:?}").contains("secret"));
        let none = from(&[home, ("HF_TOKEN", "secret"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(none.token, None);
    }
}
