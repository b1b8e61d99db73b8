//! The decoder by the GPU's kernels, which the CPU runs in its place, against the CPU's own.

use candle_core::{DType, Device, Tensor};
use ddt_adapters::{Decode, KlConfig, KlDecoder};
use ddt_cuda::{Cuda, CudaKlDecoder, Precision, synthetic_weights};
use ddt_flow::noise_batch;
use ddt_parity::relative_rms;

use crate::device;

fn config() -> KlConfig {
    KlConfig {
        block_out_channels: vec![16, 32, 32],
        layers_per_block: 1,
        latent_channels: 3,
        norm_num_groups: 4,
        scaling_factor: 0.4,
    }
}

fn decoder() -> KlDecoder {
    KlDecoder::new(&config(), synthetic_weights(3)).unwrap()
}

fn on_gpu(cuda: &Cuda, precision: Precision, most_bytes: usize) -> CudaKlDecoder {
    CudaKlDecoder::new(cuda, &config(), precision, most_bytes, synthetic_weights(3)).unwrap()
}

#[test]
fn pixels_are_those_of_the_cpu() {
    let Some(cuda) = device() else { return };
    let cpu = decoder();
    for (images, height, width) in [(3, 4, 5), (1, 1, 2)] {
        let rows: Vec<u64> = (0..images).collect();
        let latents = noise_batch(5, &rows, (3, height, width), &Device::Cpu).unwrap();
        let want = cpu.decode(&latents).unwrap();
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 2e-2)] {
            let gpu = on_gpu(&cuda, precision, 1 << 30);
            let got = gpu.decode(&latents).unwrap();
            assert_eq!(got.dims(), want.dims());
            let error = relative_rms(&got, &want).unwrap();
            assert!(error < tolerance, "{precision:?}, {height} x {width}: {error:e}");
        }
    }
}

#[test]
fn a_bound_of_memory_decides_how_many_are_decoded_at_once() {
    let Some(cuda) = device() else { return };
    let latents = noise_batch(5, &[0, 1, 2, 3, 4], (3, 3, 2), &Device::Cpu).unwrap();
    let open = |bytes| on_gpu(&cuda, Precision::F32, bytes);
    let all = open(usize::MAX);
    let want = all.decode(&latents).unwrap();
    assert_eq!(all.images_at_once(5, (3, 2)).unwrap(), 5);
    for at_once in [1, 2, 4] {
        let bounded = open(all.bytes(at_once, (3, 2)));
        assert_eq!(bounded.images_at_once(5, (3, 2)).unwrap(), at_once);
        // Twice: memory that was taken is used again, also by fewer.
        for _ in 0..2 {
            let got = bounded.decode(&latents).unwrap();
            assert_eq!(relative_rms(&got, &want).unwrap(), 0.0, "{at_once} at once");
            let got = bounded.decode(&latents.narrow(0, 3, 1).unwrap()).unwrap();
            assert_eq!(relative_rms(&got, &want.narrow(0, 3, 1).unwrap()).unwrap(), 0.0);
        }
    }
    let none = open(all.bytes(1, (3, 2)) - 1);
    let message = none.decode(&latents).unwrap_err().to_string();
    assert!(message.contains("one image of this size takes"), "{message}");
}

#[test]
fn wrong_latents_are_refused_as_on_the_cpu() {
    let Some(cuda) = device() else { return };
    let cpu = decoder();
    let gpu = on_gpu(&cuda, Precision::F32, usize::MAX);
    for latents in [
        Tensor::zeros((1, 4, 2, 2), DType::F32, &Device::Cpu).unwrap(),
        Tensor::zeros((3, 2, 2), DType::F32, &Device::Cpu).unwrap(),
        Tensor::full(f32::NAN, (1, 3, 2, 2), &Device::Cpu).unwrap(),
    ] {
        let (got, want) = (gpu.decode(&latents).unwrap_err(), cpu.decode(&latents).unwrap_err());
        // A backtrace may follow.
        let first = |error: candle_core::Error| error.to_string().lines().next().map(str::to_owned);
        assert_eq!(first(got), first(want));
    }
}

#[test]
fn the_published_decoder_stays_within_its_bound() {
    let Some(cuda) = device() else { return };
    let (cfg, vb) = (KlConfig::sd_vae_ft_ema(), synthetic_weights(0));
    let gpu = CudaKlDecoder::new(&cuda, &cfg, Precision::Bf16, ddt_cuda::DECODER_BYTES, vb).unwrap();
    // 256 px and 512 px, four times the pixels; what does not grow with images takes its part of either.
    let (small, large) =
        (gpu.images_at_once(64, (32, 32)).unwrap(), gpu.images_at_once(32, (64, 64)).unwrap());
    assert!((40..64).contains(&small) && (small / 4 - 1..=small / 4).contains(&large), "{small} {large}");
    assert!(gpu.bytes(small, (32, 32)) <= ddt_cuda::DECODER_BYTES);
    assert!(gpu.bytes(small + 1, (32, 32)) > ddt_cuda::DECODER_BYTES);
}
