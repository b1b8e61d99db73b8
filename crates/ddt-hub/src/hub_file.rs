//! Files of the hub, and where the local cache has them:
//! `models--owner--name/{refs/branch, snapshots/commit/file}`.

use std::{
    borrow::Cow,
    error::Error,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::environment::Hub;

/// One file of a model repository on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    repository: Cow<'static, str>,
    revision: Cow<'static, str>,
    file: Cow<'static, str>,
    about_bytes: Option<u64>,
}

/// A name that cannot be a file on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidHubFile {
    expected: &'static str,
    got: String,
}

impl HubFile {
    /// Names a file: repository `owner/name`, a branch or commit, and a path inside.
    ///
    /// # Errors
    /// For names that the hub does not allow, and which could lead outside the cache.
    pub fn new(repository: &str, revision: &str, file: &str) -> Result<Self, InvalidHubFile> {
        let refuse = |expected, got: &str| Err(InvalidHubFile { expected, got: got.to_owned() });
        if repository.split('/').count() != 2 || !repository.split('/').all(is_plain) {
            return refuse("a repository such as owner/name", repository);
        }
        if !revision.split('/').all(is_plain) {
            return refuse("a branch or a commit", revision);
        }
        if !file.split('/').all(is_plain) {
            return refuse("a path inside the repository", file);
        }
        let own = |text: &str| Cow::Owned(text.to_owned());
        Ok(Self { repository: own(repository), revision: own(revision), file: own(file), about_bytes: None })
    }

    /// A file whose name is known to be good; `about_bytes` is for telling a user what to expect.
    pub(crate) const fn published(
        repository: &'static str,
        revision: &'static str,
        file: &'static str,
        about_bytes: u64,
    ) -> Self {
        Self {
            repository: Cow::Borrowed(repository),
            revision: Cow::Borrowed(revision),
            file: Cow::Borrowed(file),
            about_bytes: Some(about_bytes),
        }
    }

    /// `owner/name`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// A branch or a commit.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Path inside the repository.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Approximate size in bytes, where it is known before asking the hub.
    #[must_use]
    pub fn about_bytes(&self) -> Option<u64> {
        self.about_bytes
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.repository, self.file)
    }
}

impl fmt::Display for InvalidHubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, got {:?}", self.expected, self.got)
    }
}

impl Error for InvalidHubFile {}

impl Hub {
    /// The folder of a repository in the cache, whether it exists or not.
    #[must_use]
    pub fn repository_folder(&self, file: &HubFile) -> PathBuf {
        self.cache.join(format!("models--{}", file.repository.replace('/', "--")))
    }

    /// The path of a file in the local cache, if it is there.
    ///
    /// All tools of the hub fill the same cache.
    #[must_use]
    pub fn find(&self, file: &HubFile) -> Option<PathBuf> {
        let repository = self.repository_folder(file);
        let commit = match is_commit(&file.revision) {
            true => file.revision.clone().into_owned(),
            false => read_ref(&repository.join("refs").join(&*file.revision))?,
        };
        let path = repository.join("snapshots").join(commit).join(&*file.file);
        path.metadata().ok()?.is_file().then_some(path)
    }
}

/// Whether text is one part of a path that stays where it is.
fn is_plain(part: &str) -> bool {
    let letters = part.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(&it));
    letters && !part.is_empty() && !part.starts_with('.') && !part.contains("..")
}

/// The commit that a branch pointed to when it was last asked for.
fn read_ref(path: &Path) -> Option<String> {
    let mut content = String::new();
    File::open(path).ok()?.take(64).read_to_string(&mut content).ok()?;
    let commit = content.trim();
    // It becomes part of a path.
    is_commit(commit).then(|| commit.to_owned())
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Release, published::PublishedAutoencoder};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn hub(cache: &Path) -> Hub {
        Hub { cache: cache.to_owned(), endpoint: String::new(), token: None, offline: true }
    }

    fn write(path: PathBuf, content: &str) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn a_branch_is_followed_to_its_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        let (hub, wanted) = (hub(cache.path()), Release::DdtXl2R256.network());
        assert_eq!(hub.find(&wanted), None);
        let repository = cache.path().join("models--MCG-NJU--DDT-XL-22en6de-R256");
        write(repository.join("refs/main"), &format!("{COMMIT}\n"));
        assert_eq!(hub.find(&wanted), None);
        let file = write(repository.join("snapshots").join(COMMIT).join("model.ckpt"), "weights");
        assert_eq!(hub.find(&wanted), Some(file));
    }

    #[test]
    fn a_commit_needs_no_branch() {
        let cache = tempfile::tempdir().unwrap();
        let (hub, wanted) = (hub(cache.path()), PublishedAutoencoder::SdVaeFtEma.decoder());
        let snapshots = cache.path().join("models--stabilityai--sd-vae-ft-ema/snapshots");
        let file = write(snapshots.join(wanted.revision()).join(wanted.file()), "weights");
        assert_eq!(hub.find(&wanted), Some(file));
    }

    #[test]
    fn a_branch_that_names_no_commit_leads_nowhere() {
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(cache.path());
        let repository = cache.path().join("models--MCG-NJU--DDT-XL-22en6de-R256");
        write(repository.join("outside/model.ckpt"), "weights");
        for content in ["../outside", "", "\u{e9}", &"a".repeat(100)] {
            write(repository.join("refs/main"), content);
            assert_eq!(hub.find(&Release::DdtXl2R256.network()), None, "{content}");
        }
    }

    #[test]
    fn names_stay_inside_the_cache() {
        let good = HubFile::new("facebook/dinov2-base", "main", "sub/model.safetensors").unwrap();
        assert_eq!(good.to_string(), "facebook/dinov2-base/sub/model.safetensors");
        for (repository, revision, file) in [
            ("owner", "main", "f"),
            ("a/b/c", "main", "f"),
            ("../b", "main", "f"),
            ("a/b", "", "f"),
            ("a/b", "../../etc", "f"),
            ("a/b", "main", "/etc/passwd"),
            ("a/b", "main", "x/../../y"),
            ("a/b", "main", ".hidden"),
            ("a/b", "main", "a\\b"),
        ] {
            assert!(HubFile::new(repository, revision, file).is_err(), "{repository} {revision} {file}");
        }
    }
}
