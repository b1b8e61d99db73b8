//! A weaker network to guide away from, in the place of "no class": autoguidance.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use ddt_model::{DdtConfig, DdtFile, NetworkConfig, VelocityNetwork};

use crate::identity::sha256_of;

/// The file of a weaker network, described but not read yet.
#[derive(Debug)]
pub struct Weaker {
    path: PathBuf,
    file: DdtFile,
    /// What the file is read as, if it does not say what it is.
    like: Option<NetworkConfig>,
}

impl Weaker {
    /// Finds the file, and checks that it draws what a network of sizes `main` draws. A file that does not say its
    /// sizes is read as one of these.
    ///
    /// # Errors
    ///
    /// A file that is absent, damaged or no network, or has other channels or classes.
    pub fn open(path: &Path, main: &DdtConfig) -> Result<Self> {
        ensure!(path.exists(), "--weaker: there is no file {}", path.display());
        let file = DdtFile::open(path).context("--weaker")?;
        if let Some(found) = file.config() {
            let task = |it: &DdtConfig| (it.in_channels, it.num_classes);
            let (got, expected) = (task(found), task(main));
            ensure!(
                got == expected,
                "--weaker: expected a network of {} channels and {} classes, as the one that it is to weaken, got {} and {}",
                expected.0,
                expected.1,
                got.0,
                got.1
            );
        }
        let like = if file.config().is_none() { Some(main.clone().into()) } else { None };
        Ok(Self { path: path.to_owned(), file, like })
    }

    /// Its SHA-256, in words.
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn identity(&self) -> Result<String> {
        Ok(format!("sha256:{}", sha256_of(&self.path)?))
    }

    /// Reads the network.
    ///
    /// # Errors
    ///
    /// A file that is damaged, or holds another network; too little memory.
    pub fn load(&self, dtype: DType) -> Result<Box<dyn VelocityNetwork>> {
        self.file.load_network(self.like.as_ref(), dtype, &Device::Cpu).context("--weaker")
    }
}
