//! The weights that come with the library, if it was built with them.

use ddt_model::DdtFile;

use crate::error::Result;

/// The demo's weights as a file.
///
/// # Errors
///
/// A build without the feature `demo`.
pub fn demo_file() -> Result<DdtFile> {
    Ok(DdtFile::from_bytes(network()?, "the demo")?)
}

#[cfg(feature = "demo")]
macro_rules! bundled {
    ($($function:ident $bytes:ident),*) => {$(
        pub(crate) fn $function() -> Result<&'static [u8]> {
            Ok(ddt_demo::$bytes)
        }
    )*};
}

#[cfg(not(feature = "demo"))]
macro_rules! bundled {
    ($($function:ident $bytes:ident),*) => {$(
        pub(crate) fn $function() -> Result<&'static [u8]> {
            crate::error::invalid("the demo weights are not part of this build; build with the feature demo")
        }
    )*};
}

bundled!(network NETWORK, tiny_decoder TINY_DECODER);

#[cfg(all(test, feature = "demo"))]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_trained_and_fits_its_autoencoder() {
        let demo = demo_file().unwrap();
        let (cfg, latents) = (demo.config().unwrap(), demo.latents().unwrap());
        assert_eq!(demo.classes().unwrap().len(), cfg.num_classes);
        assert_eq!((latents.autoencoder.as_str(), latents.mean.len()), ("tiny-flux2", cfg.in_channels));
        let said = |key: &str| demo.metadata()[key].parse::<f64>().unwrap();
        assert!(said("images_seen") >= 100_000.0 && said("test_loss") < 1.6);
        // Measured statistics differ from channel to channel.
        assert!(latents.mean.iter().any(|it| *it != latents.mean[0]), "all means are {}", latents.mean[0]);
        let pipeline = crate::Pipeline::demo().unwrap();
        assert_eq!((pipeline.latent_shape().0, pipeline.image_size()), (cfg.in_channels, (32, 32)));
    }
}
