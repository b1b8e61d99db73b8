//! The weights that come with the library, if it was built with them.

use crate::error::Result;

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
