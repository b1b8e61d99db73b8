//! All the paper's systems by name.

use crate::{
    config::{ConfigError, DdtConfig},
    network_config::{Family, NetworkConfig, Projection, TokenMixer},
};

/// What stands before the size in a name; one that begins with another comes first.
const FAMILIES: &[(&str, Family)] = &[
    ("ddt-dagger-", Family::DdtDagger),
    ("ddt-unimproved-", Family::DdtDagger), // its name before version 0.2
    ("ddt-", Family::Ddt),
    ("improved-sit-", Family::ImprovedSit),
    ("improved-repa-", Family::ImprovedSit),
    ("sit-", Family::Sit),
    ("repa-", Family::Repa),
];

/// What may stand after the split of a DDT.
const MIXERS: &[(&str, TokenMixer)] = &[("-conv3x3", TokenMixer::Conv3x3), ("-mlp", TokenMixer::Mlp)];

impl NetworkConfig {
    /// The paper's networks by name, for ImageNet latents (4 channels, 1000 classes, patch 2; those with
    /// fixed positions for 32 x 32 latents).
    ///
    /// | name | system | parameters in files, B, L, XL |
    /// |---|---|---|
    /// | `ddt-{b2,l2,xl2}`, with any split: `ddt-b2-6en6de` | DDT ([`DdtConfig::preset`]) | 130,262,800; 457,648,144; 674,646,352 |
    /// | the same with `-conv3x3` or `-mlp` after the split | DDT with another decoder (Tab. 5) | |
    /// | `ddt-dagger-b2`, with any size and split | DDT†: the split on SiT's blocks | |
    /// | `improved-sit-{b2,l2,xl2}`, `improved-repa-{b2,l2,xl2}` | DDT's blocks without the split | 130,249,744; 457,630,736; 674,626,768 |
    /// | `sit-{b2,l2,xl2}` | SiT, learnt sigma included | 130,512,416; 458,102,816; 675,129,632 |
    /// | `repa-{b2,l2,xl2}` | REPA, projection head included (2048 channels, to 768, after block 8) | |
    ///
    /// # Errors
    /// [`ConfigError::UnknownPreset`] for any other name.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        parse(name).ok_or_else(|| ConfigError::UnknownPreset {
            name: name.to_owned(),
            known: Self::preset_names().join(", "),
        })
    }

    /// The full names of all presets, of splits and decoder types the paper's alone.
    pub fn preset_names() -> Vec<String> {
        let mut names = DdtConfig::preset_names();
        // Figs. 7 and 8, and Tab. 5.
        names.extend(
            ["b2-4en8de", "b2-6en6de", "b2-10en2de", "l2-10en14de", "l2-12en12de", "l2-16en8de"]
                .map(|it| format!("ddt-{it}")),
        );
        names.extend(MIXERS.iter().map(|(mixer, _)| format!("ddt-b2-8en4de{mixer}")));
        names.push("ddt-dagger-b2-8en4de".to_owned());
        for (prefix, family) in FAMILIES {
            if !family.has_halves() {
                names.extend(["b2", "l2", "xl2"].map(|size| format!("{prefix}{size}")));
            }
        }
        names
    }
}

fn parse(name: &str) -> Option<NetworkConfig> {
    let (rest, family) =
        FAMILIES.iter().find_map(|(prefix, family)| Some((name.strip_prefix(prefix)?, *family)))?;
    let mixer = MIXERS.iter().find_map(|(suffix, mixer)| Some((rest.strip_suffix(suffix)?, *mixer)));
    let (size, decoder_mixer) = mixer.unwrap_or((rest, TokenMixer::Attention));
    let split = size.contains('-');
    // A split says nothing without halves; other mixers are for a DDT's decoder, whose split is named.
    let fits = match family {
        Family::Ddt => split || decoder_mixer == TokenMixer::Attention,
        Family::DdtDagger => decoder_mixer == TokenMixer::Attention,
        _ => !split && decoder_mixer == TokenMixer::Attention,
    };
    let sizes = DdtConfig::preset(&format!("ddt-{size}")).ok().filter(|_| fits)?;
    Some(NetworkConfig {
        family,
        sizes,
        decoder_mixer,
        grid_side: family.has_sit_blocks().then_some(16),
        projection: (family == Family::Repa).then_some(Projection {
            align_layer: 8,
            hidden_size: 2048,
            feature_size: 768,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in a file of the preset, positions included.
    fn count(name: &str) -> usize {
        let cfg = NetworkConfig::preset(name).unwrap();
        let fixed: usize = cfg.fixed_tensors().unwrap().values().map(|it| it.elem_count()).sum();
        cfg.parameter_shapes().unwrap().values().map(|it| it.iter().product::<usize>()).sum::<usize>() + fixed
    }

    #[test]
    fn presets_have_the_published_number_of_parameters() {
        for (name, expected) in [
            ("ddt-b2", 130_262_800),
            ("ddt-l2", 457_648_144),
            ("ddt-xl2", 674_646_352),
            ("improved-sit-b2", 130_249_744),
            ("improved-sit-l2", 457_630_736),
            ("improved-repa-xl2", 674_626_768),
            ("sit-b2", 130_512_416),
            ("sit-l2", 458_102_816),
            ("sit-xl2", 675_129_632),
        ] {
            assert_eq!(count(name), expected, "{name}");
        }
        // A split moves blocks, it adds none.
        assert_eq!(count("ddt-b2-4en8de"), count("ddt-b2"));
        // REPA: half the output channels, and the head.
        let head = (768 * 2048 + 2048) + (2048 * 2048 + 2048) + (2048 * 768 + 768);
        assert_eq!(count("repa-b2"), count("sit-b2") - 16 * (768 + 1) + head);
        // Attention's 4 D^2 + D + 2 K numbers give way to 9 D^2 + D, or to the MLP's 3 D F.
        let attention = 4 * 768 * 768 + 768 + 2 * 64;
        assert_eq!(count("ddt-b2-8en4de-conv3x3"), count("ddt-b2") + 4 * (9 * 768 * 768 + 768 - attention));
        assert_eq!(count("ddt-b2-8en4de-mlp"), count("ddt-b2") + 4 * (3 * 768 * 2048 - attention));
        // DDT-dagger: SiT with a second embedder and one latent's channels.
        assert_eq!(count("ddt-dagger-b2-8en4de"), count("sit-b2") - 16 * (768 + 1) + 16 * 768 + 768);
    }

    #[test]
    fn other_names_are_refused_with_the_known_ones() {
        for name in [
            "",
            "sit",
            "sit-s2",
            "sit-b2-8en4de",
            "repa-b2-mlp",
            "ddt-dagger-b2-8en4de-mlp",
            "ddt-b2-mlp",
            "ddt-b2-8en4de-conv5x5",
        ] {
            let message = NetworkConfig::preset(name).unwrap_err().to_string();
            assert!(message.contains("repa-xl2"), "{message}");
        }
    }
}
