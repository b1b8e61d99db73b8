//! The KL autoencoder against candle-transformers' own, with random weights.

use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
use ddt_adapters::{KlAutoencoder, KlConfig};

use crate::testing::{InMemory, random, rel_rms};

fn config() -> KlConfig {
    KlConfig {
        block_out_channels: vec![8, 16, 24],
        layers_per_block: 2,
        latent_channels: 3,
        norm_num_groups: 4,
        scaling_factor: 0.5,
    }
}

fn oracle(cfg: &KlConfig, vars: &VarMap) -> AutoEncoderKL {
    let config = AutoEncoderKLConfig {
        block_out_channels: cfg.block_out_channels.clone(),
        layers_per_block: cfg.layers_per_block,
        latent_channels: cfg.latent_channels,
        norm_num_groups: cfg.norm_num_groups,
        use_quant_conv: true,
        use_post_quant_conv: true,
    };
    let vb = VarBuilder::from_varmap(vars, DType::F32, &Device::Cpu);
    AutoEncoderKL::new(vb, 3, 3, config).unwrap()
}

/// The weights that the oracle asked for, made random.
fn randomise(vars: &VarMap) -> InMemory {
    let mut vars: Vec<_> = vars.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    let weights = vars.into_iter().enumerate().map(|(i, (name, var))| {
        let fan_in = var.elem_count() / var.dim(0).unwrap();
        let value = (random(i as u64, var.shape()) * (3.0 / fan_in as f64).sqrt()).unwrap();
        var.set(&value).unwrap();
        (name, value)
    });
    InMemory(weights.collect())
}

#[test]
fn decode_agrees() {
    let (cfg, vars) = (config(), VarMap::new());
    let oracle = oracle(&cfg, &vars);
    let weights = randomise(&vars);
    let vae = KlAutoencoder::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    let latents = random(99, (2, 3, 5, 7));
    let got = vae.decoder.decode_raw(&latents).unwrap();
    assert_eq!(got.dims(), [2, 3, 20, 28]);
    // One by one: the oracle multiplies a transposed batch by a shared matrix, which candle 0.11.1
    // gets wrong on the CPU beyond the first image.
    for i in 0..2 {
        let want = oracle.decode(&latents.narrow(0, i, 1).unwrap()).unwrap();
        assert!(rel_rms(&got.narrow(0, i, 1).unwrap(), &want) < 1e-5);
    }
}

#[test]
fn old_attention_names_and_point_convolutions_mean_the_same() {
    let (cfg, vars) = (config(), VarMap::new());
    oracle(&cfg, &vars);
    let new = randomise(&vars);
    let renamed = new.0.iter().map(|(name, tensor)| {
        let mut old = name.clone();
        for (new, old_name) in
            [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")]
        {
            old = old.replace(new, old_name);
        }
        let tensor = match tensor.dims() {
            &[c, d] if old != *name => tensor.reshape((c, d, 1, 1)).unwrap(),
            _ => tensor.clone(),
        };
        (old, tensor)
    });
    let old = InMemory(renamed.collect());
    assert!(old.0.contains_key("decoder.mid_block.attentions.0.proj_attn.weight"));
    let [new, old] = [new, old].map(|it| KlAutoencoder::load(&cfg, &it, DType::F32, &Device::Cpu).unwrap());
    let pixels = random(5, (1, 3, 16, 8));
    let (new, old) = (new.encoder.posterior(&pixels).unwrap(), old.encoder.posterior(&pixels).unwrap());
    assert_eq!(rel_rms(&old.mean, &new.mean), 0.0);
    assert_eq!(rel_rms(&old.logvar, &new.logvar), 0.0);
}
