//! `imagenet256` with the published network for 512 x 512 pixels (`ddt fetch ddt-xl2-512`).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks")]

use std::error::Error;

use ddt::hub::Release;

#[path = "imagenet256.rs"]
#[expect(dead_code, reason = "its own main")]
mod imagenet256;

fn main() -> Result<(), Box<dyn Error>> {
    imagenet256::run(Release::DdtXl2R512)
}
