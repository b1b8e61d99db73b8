//! The finished weights as a file that the other programs read.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use ddt_flow::TimeSampling;
use ddt_model::{DdtFile, Description, LatentInfo};
use ddt_train::{FlowMatching, LatentDataset, Trainer, evaluate_loss};

use crate::train::{samples::averaged, watch::print};

/// Images that the loss in the file's description is measured on.
const IMAGES: usize = 10_000;

/// Writes the average of smallest loss on `test` (the first, without test images), in 16 bits.
///
/// # Errors
///
/// Weights that are not finite, a file that cannot be written.
pub fn export(
    path: &Path,
    trainer: &Trainer<FlowMatching>,
    test: Option<&LatentDataset>,
    classes: &[String],
    info: &LatentInfo,
) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let network = trainer.objective().network().config().clone();
    let mut metadata = BTreeMap::from([
        ("images_seen".to_owned(), trainer.images_seen().to_string()),
        ("train".to_owned(), serde_json::to_string(trainer.config())?),
        ("flow".to_owned(), serde_json::to_string(trainer.objective().config())?),
    ]);
    let mut best = 0;
    if let Some(test) = test {
        let mut losses = Vec::new();
        for (i, decay) in trainer.config().ema_decays.iter().enumerate() {
            let average = averaged(trainer, i)?;
            let device = candle_core::Device::Cpu;
            let loss = evaluate_loss(average.as_ref(), test, IMAGES, TimeSampling::LogitNormal, &device)?;
            print(&format!("average of decay {decay}: loss {loss:.4} on test images"));
            ensure!(loss.is_finite(), "expected a finite loss; the weights are not written");
            losses.push(loss);
        }
        let smallest = |a: &(usize, &f64), b: &(usize, &f64)| a.1.total_cmp(b.1);
        best = losses.iter().enumerate().min_by(smallest).map_or(0, |it| it.0);
        metadata.insert("test_loss".to_owned(), format!("{:.4}", losses[best]));
    }
    metadata.insert("average".to_owned(), trainer.config().ema_decays[best].to_string());
    let names = network.parameter_shapes()?;
    let half = |(name, tensor): (String, Tensor)| {
        let half = tensor.to_dtype(DType::F16)?;
        let values: Vec<f32> = half.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let finite = values.iter().all(|it| it.is_finite());
        ensure!(finite, "{name} is not finite in 16 bits; the weights are not written");
        Ok((name, half))
    };
    // Without the alignment's projection, which only training uses.
    let weights = trainer.averaged_weights(best)?.into_iter().filter(|it| names.contains_key(&it.0));
    let weights = weights.map(half).collect::<Result<BTreeMap<_, _>>>()?;
    let (classes, latents) = (Some(classes.to_vec()), Some(info.clone()));
    DdtFile::write(path, &Description { config: network, classes, latents, metadata }, &weights)?;
    Ok(())
}
