//! Trains a small network on a folder of photos, from their pixels to new images.
//!
//! The folder has a subfolder of images for each class. Without a path the program draws two classes, discs and
//! squares, into `out/train_on_photos/photos`. Samples go to `out/train_on_photos/samples.png`. Run it again after
//! an interruption: it resumes where it was, and ends with the same weights.
//!
//! ```sh
//! cargo run --example train_on_photos
//! cargo run --example train_on_photos -- photos
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use ddt_adapters::to_rgb8;
use ddt_picture::{Grid, Rgb8, encode_png};
use ddt_train::{Alone, Event, FileSystem, Frozen, LatentEncoder, Samples, Settings, run};

const FOLDER: &str = "out/train_on_photos";

/// Images have 16 x 16 pixels, so that training takes seconds.
const SIDE: u32 = 16;

fn main() -> Result<()> {
    let photos = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => draw_photos(&Path::new(FOLDER).join("photos"))?,
    };

    // The same settings as `ddt train` reads from a file. This network generates pixels; larger ones generate the
    // latents of an autoencoder.
    let settings = Settings::parse(&format!(
        r#"
        run = "{FOLDER}/run"
        images = {{ train = {photos:?}, size = {SIDE} }}
        autoencoder = {{ kind = "pixels" }}
        network = {{ patch_size = 4, hidden_size = 96, num_heads = 3, num_encoder_blocks = 3, num_decoder_blocks = 2 }}
        train = {{ batch_size = 32, total_images = 12_800, lr = {{ peak = 2e-3, warmup_images = 640, decay_images = 4_800 }}, ema_decays = [0.98] }}
        watch = {{ samples_every = 400, guidance = 2.0 }}
        "#
    ))?;
    let frozen = Frozen { encoder: LatentEncoder::pixels(), features: None };
    let weights = Path::new(FOLDER).join("weights.safetensors");

    let (alone, disk) = (Arc::new(Alone), FileSystem::default());
    run(alone, &disk, &settings, &frozen, &weights, &mut |event| {
        match event {
            Event::Photos(folder, found) => println!("{}: {found}", folder.display()),
            Event::Resumed(step, _) => println!("resumed after step {step}"),
            Event::Step(it) if it.step.is_multiple_of(100) => {
                println!("step {}: loss {:.3}", it.step, it.loss)
            }
            Event::Samples(samples) => match show(samples) {
                Ok(path) => println!("wrote {}", path.display()),
                Err(error) => println!("no picture of the samples: {error}"),
            },
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    println!("wrote {}; see `ddt sample --weights {}`", weights.display(), weights.display());
    Ok(())
}

/// Writes the samples as a picture, a row for each class.
fn show(samples: &Samples) -> Result<PathBuf> {
    let picture = |bytes| Rgb8::new(SIDE, SIDE, bytes);
    let images = to_rgb8(&samples.latents)?.into_iter().map(picture).collect::<Result<Vec<_>, _>>()?;
    let page = Grid { row_labels: &samples.classes, images: &images, ..Grid::default() }.draw()?;
    let path = Path::new(FOLDER).join("samples.png");
    std::fs::write(&path, encode_png(&page, &[])?)?;
    Ok(path)
}

/// Draws 128 discs and 128 squares of all places, sizes and colours.
fn draw_photos(folder: &Path) -> Result<PathBuf> {
    for (class, name) in ["disc", "square"].into_iter().enumerate() {
        std::fs::create_dir_all(folder.join(name))?;
        for number in 0..128_u32 {
            // Multiples of fractions that never meet spread evenly.
            let spread =
                |step: f64, from: f64, to: f64| from + (f64::from(number) * step).fract() * (to - from);
            let (x, y, radius) = (spread(0.618, 5.0, 11.0), spread(0.755, 5.0, 11.0), spread(0.57, 3.0, 5.0));
            let colour = [spread(0.819, 0.0, 255.0), spread(0.671, 0.0, 255.0), spread(0.549, 0.0, 255.0)];
            let pixel = |i: u32| {
                let (dx, dy) = ((f64::from(i % SIDE) + 0.5 - x).abs(), (f64::from(i / SIDE) + 0.5 - y).abs());
                let distance = if class == 0 { dx.hypot(dy) } else { dx.max(dy) };
                if distance < radius { colour.map(|it| it as u8) } else { [240; 3] }
            };
            let bytes = (0..SIDE * SIDE).flat_map(pixel).collect();
            let path = folder.join(name).join(format!("{number}.png"));
            std::fs::write(path, encode_png(&Rgb8::new(SIDE, SIDE, bytes)?, &[])?)?;
        }
    }
    Ok(folder.to_owned())
}
