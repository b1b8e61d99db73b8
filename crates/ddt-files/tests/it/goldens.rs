//! Files that PyTorch wrote.

use candle_core::{DType, Device};
use ddt_files::{Checkpoint, LoadOptions, TensorSource, load_exact};

#[test]
fn every_tensor_of_a_state_dict() {
    ddt_parity::check("checkpoint_tensors").unwrap();
}

#[test]
fn a_lightning_checkpoint() {
    let path = ddt_parity::golden("lightning_expect").unwrap().beside("checkpoint").unwrap();
    let checkpoint = Checkpoint::open(path).unwrap();
    let ema = checkpoint.with_prefix("ema_denoiser.");
    let raw = checkpoint.with_prefix("denoiser.");
    // 9 names of embedders, 4 of the final layer, 12 of each of the 2 blocks.
    assert_eq!(ema.names().len(), 37);
    assert_eq!(ema.names(), raw.names());
    assert!(ema.names().contains(&"blocks.1.adaLN_modulation.0.weight"));
    assert_eq!(checkpoint.with_prefix("diffusion_trainer.proj.0.").names(), ["0.bias", "0.weight"]);
    assert_eq!(checkpoint.names().len(), 37 + 37 + 2);

    let expected: Vec<_> =
        ema.names().iter().map(|name| (name.to_string(), ema.info(name).unwrap().shape)).collect();
    let loaded = load_exact(&ema, &expected, &LoadOptions::new(&Device::Cpu).cast(DType::F64)).unwrap();
    for (name, tensor) in &loaded {
        let largest = tensor.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(largest.is_finite() && largest < 100.0, "{name}: {largest}");
    }
    assert_eq!(loaded["y_embedder.embedding_table.weight"].dims(), [11, 12]);
}
