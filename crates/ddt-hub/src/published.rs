//! Networks that the papers' authors published, and the autoencoders that they were trained with.

use std::{fmt, str::FromStr};

use crate::hub_file::HubFile;

/// The repository of the representation autoencoder and its networks.
const RAE: &str = "nyu-visionx/RAE-collections";

/// A published network for ImageNet's 1000 classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// DDT-XL/2 (22 encoder and 6 decoder blocks) for 256 x 256 pixels.
    DdtXl2R256,
    /// DDT-XL/2 (22 encoder and 6 decoder blocks) for 512 x 512 pixels.
    DdtXl2R512,
    /// DiT^DH-XL on latents of DINOv2-B for 256 x 256 pixels.
    DitDhXlR256,
    /// DiT^DH-XL on latents of DINOv2-B for 512 x 512 pixels.
    DitDhXlR512,
    /// DiT^DH-S, briefly trained to guide DiT^DH-XL at 256 x 256 pixels.
    DitDhSR256,
    /// DiT^DH-S, briefly trained to guide DiT^DH-XL at 512 x 512 pixels.
    DitDhSR512,
}

impl Release {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::DdtXl2R256,
        Self::DdtXl2R512,
        Self::DitDhXlR256,
        Self::DitDhXlR512,
        Self::DitDhSR256,
        Self::DitDhSR512,
    ];

    /// Side of the images in pixels.
    #[must_use]
    pub fn side(self) -> usize {
        match self {
            Self::DdtXl2R256 | Self::DitDhXlR256 | Self::DitDhSR256 => 256,
            Self::DdtXl2R512 | Self::DitDhXlR512 | Self::DitDhSR512 => 512,
        }
    }

    /// Name of the sizes of the network, as `ddt-model` knows them.
    #[must_use]
    pub fn sizes(self) -> &'static str {
        match self {
            Self::DdtXl2R256 | Self::DdtXl2R512 => "ddt-xl2-22en6de",
            Self::DitDhXlR256 => "ditdh-xl-256",
            Self::DitDhXlR512 => "ditdh-xl-512",
            Self::DitDhSR256 => "ditdh-s-256",
            Self::DitDhSR512 => "ditdh-s-512",
        }
    }

    /// The network. DDT's is a training checkpoint with averaged weights and the optimiser's state, hence its size.
    #[must_use]
    pub fn network(self) -> HubFile {
        // Numbers of four bytes: 838,675,796 and 196,455,764.
        let rae = |file, about_bytes| HubFile::published(RAE, "main", file, about_bytes);
        let ddt = |repository| HubFile::published(repository, "main", "model.ckpt", 11_000_000_000);
        match self {
            Self::DdtXl2R256 => ddt("MCG-NJU/DDT-XL-22en6de-R256"),
            Self::DdtXl2R512 => ddt("MCG-NJU/DDT-XL-22en6de-R512"),
            Self::DitDhXlR256 => {
                rae("DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-XL/stage2_model.pt", 3_354_703_184)
            }
            Self::DitDhXlR512 => {
                rae("DiTs/Dinov2/wReg_base/ImageNet512/DiTDH-XL_ep400/stage2_model.pt", 3_354_703_184)
            }
            Self::DitDhSR256 => {
                rae("DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-S_ep14/stage2_model.pt", 785_823_056)
            }
            Self::DitDhSR512 => {
                rae("DiTs/Dinov2/wReg_base/ImageNet512/DiTDH-S_ep20/stage2_model.pt", 785_823_056)
            }
        }
    }

    /// The autoencoder that it was trained with.
    #[must_use]
    pub fn autoencoder(self) -> PublishedAutoencoder {
        match self {
            Self::DdtXl2R256 | Self::DdtXl2R512 => PublishedAutoencoder::SdVaeFtEma,
            Self::DitDhXlR256 | Self::DitDhSR256 => PublishedAutoencoder::RaeDinoV2B256,
            Self::DitDhXlR512 | Self::DitDhSR512 => PublishedAutoencoder::RaeDinoV2B512,
        }
    }

    /// The files that images are made with: the network, and what its autoencoder decodes with.
    #[must_use]
    pub fn files(self) -> Vec<HubFile> {
        [vec![self.network()], self.autoencoder().decoding_files()].concat()
    }
}

/// A published autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishedAutoencoder {
    /// Stable Diffusion's.
    SdVaeFtEma,
    /// Of DINOv2-B with registers and a ViT-XL decoder, for 256 x 256 pixels.
    RaeDinoV2B256,
    /// The same for 512 x 512 pixels.
    RaeDinoV2B512,
}

impl PublishedAutoencoder {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::SdVaeFtEma, Self::RaeDinoV2B256, Self::RaeDinoV2B512];

    /// Pixels along a side of one latent position.
    #[must_use]
    pub fn downscale(self) -> usize {
        match self {
            Self::SdVaeFtEma => 8,
            Self::RaeDinoV2B256 | Self::RaeDinoV2B512 => 16,
        }
    }

    /// Weights of the decoder.
    #[must_use]
    pub fn decoder(self) -> HubFile {
        let file = match self {
            Self::SdVaeFtEma => return self.encoder(),
            Self::RaeDinoV2B256 => "decoders/dinov2/wReg_base/ViTXL_n08/model.pt",
            Self::RaeDinoV2B512 => "decoders/dinov2/wReg_base/ViTXL_n08_i512/model.pt",
        };
        // 415,352,704 numbers of four bytes.
        HubFile::published(RAE, "main", file, 1_661_410_816)
    }

    /// Statistics of the latents, where they are in a file of their own.
    #[must_use]
    pub fn statistics(self) -> Option<HubFile> {
        let (file, about_bytes) = match self {
            Self::SdVaeFtEma => return None,
            Self::RaeDinoV2B256 => ("stats/dinov2/wReg_base/imagenet1k/stat.pt", 1_574_000),
            Self::RaeDinoV2B512 => ("stats/dinov2/wReg_base/imagenet1k_512/stat.pt", 6_293_000),
        };
        Some(HubFile::published(RAE, "main", file, about_bytes))
    }

    /// Weights of the encoder; Stable Diffusion's are in one file with the decoder's.
    #[must_use]
    pub fn encoder(self) -> HubFile {
        match self {
            // 83,653,863 numbers of four bytes, and a header.
            Self::SdVaeFtEma => HubFile::published(
                "stabilityai/sd-vae-ft-ema",
                "f04b2c4b98319346dad8c65879f680b1997b204a",
                "diffusion_pytorch_model.safetensors",
                334_643_276,
            ),
            Self::RaeDinoV2B256 | Self::RaeDinoV2B512 => HubFile::published(
                "facebook/dinov2-with-registers-base",
                "main",
                "model.safetensors",
                346_340_000,
            ),
        }
    }

    /// The files that decode latents: the decoder, and the statistics.
    #[must_use]
    pub fn decoding_files(self) -> Vec<HubFile> {
        [Some(self.decoder()), self.statistics()].into_iter().flatten().collect()
    }

    /// Every file: those that decode, and the encoder's.
    #[must_use]
    pub fn files(self) -> Vec<HubFile> {
        let (mut files, encoder) = (self.decoding_files(), self.encoder());
        if !files.contains(&encoder) {
            files.push(encoder);
        }
        files
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = match self {
            Self::DdtXl2R256 | Self::DdtXl2R512 => "ddt-xl2",
            Self::DitDhXlR256 | Self::DitDhXlR512 => "ditdh-xl",
            Self::DitDhSR256 | Self::DitDhSR512 => "ditdh-s",
        };
        write!(f, "{network}-{}", self.side())
    }
}

impl fmt::Display for PublishedAutoencoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SdVaeFtEma => "sd-vae-ft-ema",
            Self::RaeDinoV2B256 => "rae-dinov2-b-256",
            Self::RaeDinoV2B512 => "rae-dinov2-b-512",
        })
    }
}

/// The one of `all` that is displayed as `text`.
fn by_name<T: fmt::Display + Copy>(all: &[T], text: &str) -> Result<T, String> {
    let names = || all.iter().map(T::to_string).collect::<Vec<_>>().join(", ");
    let found = all.iter().copied().find(|it| it.to_string() == text);
    found.ok_or_else(|| format!("expected one of {}, got {text:?}", names()))
}

impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name(&Self::ALL, text)
    }
}

impl FromStr for PublishedAutoencoder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name(&Self::ALL, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_and_autoencoders_have_names_and_good_files() {
        for release in Release::ALL {
            assert_eq!(release.to_string().parse(), Ok(release));
            assert!(release.files().len() >= 2);
        }
        for it in PublishedAutoencoder::ALL {
            assert_eq!(it.to_string().parse(), Ok(it));
        }
        let autoencoders = PublishedAutoencoder::ALL.into_iter().flat_map(PublishedAutoencoder::files);
        for it in Release::ALL.into_iter().flat_map(Release::files).chain(autoencoders) {
            assert!(HubFile::new(it.repository(), it.revision(), it.file()).is_ok(), "{it}");
            assert!(it.about_bytes().is_some(), "{it}");
        }
        assert_eq!(PublishedAutoencoder::SdVaeFtEma.files().len(), 1);
        assert_eq!(PublishedAutoencoder::RaeDinoV2B512.files().len(), 3);
        let error = "ddt-xl3".parse::<Release>().unwrap_err();
        assert!(error.contains("ddt-xl2-256, ddt-xl2-512, ditdh-xl-256"), "{error}");
    }
}
