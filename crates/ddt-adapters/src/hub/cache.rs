//! The hub's local cache: `models--owner--name/{refs/branch, snapshots/commit/file}`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{FileSize, HubOptions, WeightsEntry};

/// The path of an entry in the local cache, if it is there, without opening a socket.
///
/// Other tools of the hub fill the same cache.
/// A file whose size is not the entry's exact size does not count.
pub fn find_cached(entry: &WeightsEntry, options: &HubOptions) -> Option<PathBuf> {
    let repository = options.cache.join(format!("models--{}", entry.repository.replace('/', "--")));
    let commit = match is_commit(entry.revision) {
        true => entry.revision.to_owned(),
        false => read_ref(&repository.join("refs").join(entry.revision))?,
    };
    let path = repository.join("snapshots").join(commit).join(entry.file);
    let metadata = std::fs::metadata(&path).ok()?;
    let right_size = match entry.size {
        FileSize::Exact(size) => metadata.len() == size,
        FileSize::About(_) => true,
    };
    (metadata.is_file() && right_size).then_some(path)
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
    use crate::hub::{DDT_XL_R256, SD_VAE_FT_EMA};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn options(cache: &Path) -> HubOptions {
        let endpoint = "http://127.0.0.1:9".to_owned();
        HubOptions { cache: cache.to_owned(), endpoint, token: None, offline: true }
    }

    fn write(path: PathBuf, content: &str) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn a_branch_is_followed_to_its_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        let options = options(cache.path());
        assert_eq!(find_cached(&DDT_XL_R256, &options), None);
        let repository = cache.path().join("models--MCG-NJU--DDT-XL-22en6de-R256");
        write(repository.join("refs/main"), &format!("{COMMIT}\n"));
        assert_eq!(find_cached(&DDT_XL_R256, &options), None);
        let file = write(repository.join("snapshots").join(COMMIT).join("model.ckpt"), "weights");
        assert_eq!(find_cached(&DDT_XL_R256, &options), Some(file));
    }

    #[test]
    fn a_commit_needs_no_branch_and_an_exact_size_is_compared() {
        let cache = tempfile::tempdir().unwrap();
        let options = options(cache.path());
        let snapshots = cache.path().join("models--stabilityai--sd-vae-ft-ema/snapshots");
        let file = write(snapshots.join(SD_VAE_FT_EMA.revision).join(SD_VAE_FT_EMA.file), "weights");
        assert_eq!(find_cached(&SD_VAE_FT_EMA, &options), Some(file.clone()));
        let sized = |size| WeightsEntry { size: FileSize::Exact(size), ..SD_VAE_FT_EMA };
        assert_eq!(find_cached(&sized(7), &options), Some(file));
        assert_eq!(find_cached(&sized(8), &options), None);
    }

    #[test]
    fn a_branch_that_names_no_commit_leads_nowhere() {
        let cache = tempfile::tempdir().unwrap();
        let options = options(cache.path());
        let repository = cache.path().join("models--MCG-NJU--DDT-XL-22en6de-R256");
        write(repository.join("outside/model.ckpt"), "weights");
        for content in ["../outside", "", "\u{e9}", &"a".repeat(100)] {
            write(repository.join("refs/main"), content);
            assert_eq!(find_cached(&DDT_XL_R256, &options), None, "{content}");
        }
    }
}
