//! The decoder as a list of operations.

use ddt_adapters::KlConfig;

use crate::error::GpuError;

/// Index of a buffer that operations read and write.
pub(super) type Slot = usize;

/// Number of buffers: a residual block keeps one, reads one and writes one.
pub(super) const SLOTS: usize = 3;

/// A size of images on their way to pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    /// Positions along a side of one latent position.
    pub(super) factor: usize,
    /// Elements of a position.
    pub(super) channels: usize,
}

impl Level {
    /// Height and width, for latents of these.
    pub(super) fn sides(self, (height, width): (usize, usize)) -> (usize, usize) {
        (self.factor * height, self.factor * width)
    }

    pub(super) fn positions(self, latent: (usize, usize)) -> usize {
        let (height, width) = self.sides(latent);
        height * width
    }

    /// Elements of an image, for latents of this height and width.
    pub(super) fn len(self, latent: (usize, usize)) -> usize {
        self.positions(latent) * self.channels
    }
}

/// One operation, on images in channels-last order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KlOp {
    /// Latents, divided by their scale.
    Enter { out: Slot, at: Level },
    /// A convolution with a bias, 3 x 3 or 1 x 1.
    Conv { name: String, xs: Slot, out: Slot, at: Level, channels: usize, side: usize },
    /// Group norm, then SiLU.
    Norm { name: String, xs: Slot, out: Slot, at: Level },
    /// `xs += ys`.
    Add { xs: Slot, ys: Slot, at: Level },
    /// Each position twice in either direction.
    Upsample { xs: Slot, out: Slot, at: Level },
    /// `xs += attention(norm(xs))`, in f32.
    Attention { name: String, xs: Slot, at: Level },
    /// Pixels.
    Leave { xs: Slot, at: Level },
}

impl KlOp {
    /// The buffer it writes first, and its size; in place, a buffer has the size it had.
    pub(super) fn writes(&self) -> Option<(Slot, Level)> {
        match *self {
            Self::Enter { out, at } | Self::Norm { out, at, .. } => Some((out, at)),
            Self::Conv { out, at, channels, .. } => Some((out, Level { channels, ..at })),
            Self::Upsample { out, at, .. } => Some((out, Level { factor: 2 * at.factor, ..at })),
            Self::Add { .. } | Self::Attention { .. } | Self::Leave { .. } => None,
        }
    }
}

/// Channels are multiples of this, 16 bytes of bf16, with zeros behind those that are.
pub(super) const CHANNELS: usize = 8;

fn padded(channels: usize) -> usize {
    channels.next_multiple_of(CHANNELS)
}

/// The operations of a decoder of these sizes, in order.
///
/// # Errors
/// Sizes that are no decoder's, or that the kernels have no variant for.
pub(super) fn program(cfg: &KlConfig) -> Result<Vec<KlOp>, GpuError> {
    cfg.validate()?;
    if let Some(channels) =
        cfg.block_out_channels.iter().find(|&it| !it.is_multiple_of(CHANNELS) || *it > 1024)
    {
        return Err(GpuError::Unsupported(format!(
            "block_out_channels is {channels}, the GPU's kernels take multiples of 8 up to 1024; decode on the CPU"
        )));
    }
    let latent = Level { factor: 1, channels: padded(cfg.latent_channels) };
    let mut list = List { ops: vec![KlOp::Enter { out: 0, at: latent }], now: 0, at: latent };
    list.conv("post_quant_conv", latent.channels, 1);
    let lowest = cfg.block_out_channels.last().copied().unwrap_or_default();
    list.conv("decoder.conv_in", lowest, 3);
    list.resnet("decoder.mid_block.resnets.0", lowest);
    list.ops.push(KlOp::Attention {
        name: "decoder.mid_block.attentions.0".to_owned(),
        xs: list.now,
        at: list.at,
    });
    list.resnet("decoder.mid_block.resnets.1", lowest);
    let last = cfg.block_out_channels.len() - 1;
    for (i, &channels) in cfg.block_out_channels.iter().rev().enumerate() {
        for j in 0..=cfg.layers_per_block {
            list.resnet(&format!("decoder.up_blocks.{i}.resnets.{j}"), channels);
        }
        if i < last {
            list.upsample();
            list.conv(&format!("decoder.up_blocks.{i}.upsamplers.0.conv"), channels, 3);
        }
    }
    let normed = list.norm("decoder.conv_norm_out", list.now);
    list.now = normed;
    list.conv("decoder.conv_out", padded(3), 3);
    list.ops.push(KlOp::Leave { xs: list.now, at: list.at });
    Ok(list.ops)
}

/// Operations so far, with the buffer and size of the image.
struct List {
    ops: Vec<KlOp>,
    now: Slot,
    at: Level,
}

impl List {
    /// A buffer that holds none of these.
    fn free(taken: &[Slot]) -> Slot {
        (0..SLOTS).find(|it| !taken.contains(it)).unwrap_or_default()
    }

    fn conv(&mut self, name: &str, channels: usize, side: usize) {
        let (xs, out) = (self.now, Self::free(&[self.now]));
        self.conv_between(name, xs, out, channels, side);
        (self.now, self.at.channels) = (out, channels);
    }

    fn conv_between(&mut self, name: &str, xs: Slot, out: Slot, channels: usize, side: usize) {
        self.ops.push(KlOp::Conv { name: name.to_owned(), xs, out, at: self.at, channels, side });
    }

    fn norm(&mut self, name: &str, xs: Slot) -> Slot {
        let out = Self::free(&[self.now, xs]);
        self.ops.push(KlOp::Norm { name: name.to_owned(), xs, out, at: self.at });
        out
    }

    fn upsample(&mut self) {
        let (xs, out) = (self.now, Self::free(&[self.now]));
        self.ops.push(KlOp::Upsample { xs, out, at: self.at });
        self.now = out;
        self.at.factor *= 2;
    }

    /// `shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))`.
    fn resnet(&mut self, name: &str, channels: usize) {
        let (input, before) = (self.now, self.at);
        let inner = self.norm(&format!("{name}.norm1"), input);
        let outer = Self::free(&[input, inner]);
        self.conv_between(&format!("{name}.conv1"), inner, outer, channels, 3);
        self.at.channels = channels;
        let inner = self.norm(&format!("{name}.norm2"), outer);
        self.conv_between(&format!("{name}.conv2"), inner, outer, channels, 3);
        let sum = if before.channels == channels {
            input
        } else {
            self.at = before;
            self.conv_between(&format!("{name}.conv_shortcut"), input, inner, channels, 1);
            self.at.channels = channels;
            inner
        };
        self.ops.push(KlOp::Add { xs: sum, ys: outer, at: self.at });
        self.now = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_read_as_it_was_written_last() {
        let published = KlConfig::sd_vae_ft_ema();
        let flat = KlConfig { block_out_channels: vec![64], ..published.clone() };
        for cfg in [published, flat] {
            let mut held = [None; SLOTS];
            for op in program(&cfg).unwrap() {
                let read = |xs: Slot, at: Level| assert_eq!(held[xs], Some(at), "{op:?}");
                match op {
                    KlOp::Conv { xs, out, at, .. } | KlOp::Norm { xs, out, at, .. } => {
                        read(xs, at);
                        assert_ne!(xs, out);
                    }
                    KlOp::Upsample { xs, at, .. }
                    | KlOp::Attention { xs, at, .. }
                    | KlOp::Leave { xs, at } => {
                        read(xs, at);
                    }
                    KlOp::Add { xs, ys, at } => [xs, ys].into_iter().for_each(|it| read(it, at)),
                    KlOp::Enter { .. } => {}
                }
                if let Some((slot, level)) = op.writes() {
                    held[slot] = Some(level);
                }
            }
        }
    }

    #[test]
    fn sizes_without_a_kernel_are_refused() {
        let cfg = KlConfig { block_out_channels: vec![12], norm_num_groups: 4, ..KlConfig::sd_vae_ft_ema() };
        assert!(program(&cfg).unwrap_err().to_string().contains("block_out_channels is 12"));
    }
}
