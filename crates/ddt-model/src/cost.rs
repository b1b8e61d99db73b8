//! Operation counts: what a step costs before it is run.

use ddt_sharing::OperationCounts;

use crate::config::DdtConfig;

impl DdtConfig {
    /// Floating-point operations of one image row at one step, two for each multiply-add of a matrix
    /// product; everything else is below a hundredth of them.
    ///
    /// DDT-XL/2 on 32 x 32 latents: 263.0e9 with its encoder, 0.35e9 of them the encoder's modulation.
    pub fn operation_counts(&self, height: usize, width: usize) -> OperationCounts {
        let (l, d) = (self.num_tokens(height, width) as f64, self.hidden_size as f64);
        let patch = self.patch_dim() as f64;
        let hidden = ddt_blocks::swiglu_hidden_size(self.hidden_size) as f64;
        // Query, key, value and output; scores and their sum; the MLP's three products.
        let block = l * (4.0 * d * d + 2.0 * l * d + 3.0 * d * hidden);
        let embed = l * patch * d;
        let timestep = 256.0 * d + d * d;
        let encoder = timestep + embed + self.num_encoder_blocks as f64 * (block + 6.0 * d * d);
        let cached = embed + self.num_decoder_blocks as f64 * block + l * d * patch;
        let modulations = l * d * d * (6 * self.num_decoder_blocks + 2) as f64;
        OperationCounts {
            encoder: 2.0 * encoder,
            decoder: 2.0 * (cached + modulations),
            decoder_cached: 2.0 * cached,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xl_needs_the_published_operations() {
        let counts = DdtConfig::preset("ddt-xl2").unwrap().operation_counts(32, 32);
        let total = counts.encoder + counts.decoder;
        // Counts elsewhere leave out the encoder's modulation, one vector an image.
        let encoder_modulation = 2.0 * 22.0 * 6.0 * 1152.0 * 1152.0;
        assert!(((total - encoder_modulation) / 262.6e9 - 1.0).abs() < 1e-4, "{total:e}");
    }
}
