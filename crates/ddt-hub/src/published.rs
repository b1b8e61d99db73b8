//! The networks that the paper's authors published.

use std::{fmt, str::FromStr};

use crate::cache::HubFile;

/// A published network for ImageNet's 1000 classes, with the autoencoder it was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// DDT-XL/2 (22 encoder and 6 decoder blocks) for 256 x 256 pixels.
    DdtXl2R256,
    /// DDT-XL/2 (22 encoder and 6 decoder blocks) for 512 x 512 pixels.
    DdtXl2R512,
}

impl Release {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::DdtXl2R256, Self::DdtXl2R512];

    /// Side of the images in pixels.
    #[must_use]
    pub fn side(self) -> usize {
        match self {
            Self::DdtXl2R256 => 256,
            Self::DdtXl2R512 => 512,
        }
    }

    /// Name of the sizes of the network, as `ddt-model` knows them.
    #[must_use]
    pub fn sizes(self) -> &'static str {
        "ddt-xl2-22en6de"
    }

    /// The network: a training checkpoint with averaged weights and the optimiser's state, hence its size.
    #[must_use]
    pub fn network(self) -> HubFile {
        let repository = match self {
            Self::DdtXl2R256 => "MCG-NJU/DDT-XL-22en6de-R256",
            Self::DdtXl2R512 => "MCG-NJU/DDT-XL-22en6de-R512",
        };
        HubFile::published(repository, "main", "model.ckpt", 11_000_000_000)
    }

    /// The autoencoder: 83,653,863 numbers of four bytes, and a header.
    #[must_use]
    pub fn autoencoder(self) -> HubFile {
        HubFile::published(
            "stabilityai/sd-vae-ft-ema",
            "f04b2c4b98319346dad8c65879f680b1997b204a",
            "diffusion_pytorch_model.safetensors",
            334_643_276,
        )
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ddt-xl2-{}", self.side())
    }
}

impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|it| it.to_string() == text);
        found.ok_or_else(|| format!("expected ddt-xl2-256 or ddt-xl2-512, got {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_names_and_good_files() {
        for release in Release::ALL {
            assert_eq!(release.to_string().parse(), Ok(release));
            for it in [release.network(), release.autoencoder()] {
                assert!(HubFile::new(it.repository(), it.revision(), it.file()).is_ok(), "{it}");
            }
        }
        assert!("ddt-xl3".parse::<Release>().is_err());
    }
}
