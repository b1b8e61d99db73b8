//! The network's weights as programs use them: fused, in a fixed order.

use ddt_blocks::swiglu_hidden_size;
use ddt_model::DdtConfig;

use crate::buffer::{ALIGNMENT, Element};

/// A weight's position in its [`WeightTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightId(usize);

impl WeightId {
    /// The position.
    pub fn index(self) -> usize {
        self.0
    }
}

/// A weight of the programs: published parameters of one shape, each padded with zeros, stacked by rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// Published names of the parameters it is made of, in order.
    pub parts: Vec<String>,
    /// Shape of each: rows and columns, or the length of a vector.
    pub part_shape: Vec<usize>,
    /// Shape of each after padding.
    pub padded: Vec<usize>,
}

impl Weight {
    /// Rows of the stack; elements of a vector.
    pub fn rows(&self) -> usize {
        self.parts.len() * self.padded.first().copied().unwrap_or(0)
    }

    /// Columns; 1 for a vector.
    pub fn columns(&self) -> usize {
        self.padded.get(1).copied().unwrap_or(1)
    }

    /// Elements.
    pub fn num_elements(&self) -> usize {
        self.rows() * self.columns()
    }
}

/// Inner size of the MLP as the programs have it: the network's, padded so that rows begin where 16-byte reads
/// may. Zeros in all three weights add nothing.
pub(crate) fn padded_mlp_size(hidden_size: usize) -> usize {
    swiglu_hidden_size(hidden_size).next_multiple_of(8)
}

/// A linear layer with a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Linear {
    pub(crate) weight: WeightId,
    pub(crate) bias: WeightId,
}

/// Weights of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) norm1: WeightId,
    pub(crate) qkv: WeightId,
    pub(crate) q_norm: WeightId,
    pub(crate) k_norm: WeightId,
    pub(crate) proj: Linear,
    pub(crate) norm2: WeightId,
    /// `w1` over `w3`.
    pub(crate) w13: WeightId,
    pub(crate) w2: WeightId,
}

/// All weights of a network, fused: `w1` with `w3`, and the modulations of all encoder blocks with each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightTable {
    all: Vec<Weight>,
    pub(crate) x_embed: Linear,
    pub(crate) s_embed: Linear,
    pub(crate) time: [Linear; 2],
    /// A row per class, and one for none.
    pub(crate) labels: WeightId,
    /// Modulation layers of all encoder blocks, stacked; `None` without encoder blocks.
    pub(crate) encoder_modulations: Option<Linear>,
    pub(crate) encoder: Vec<Block>,
    pub(crate) decoder: Vec<Block>,
    /// Modulation layer of each decoder block.
    pub(crate) decoder_modulations: Vec<Linear>,
    pub(crate) final_modulation: Linear,
    pub(crate) final_linear: Linear,
}

/// Sines and cosines of a timestep embedding.
pub(crate) const TIMESTEP_FREQUENCIES: usize = 256;

impl WeightTable {
    /// The weights of a network of these sizes.
    pub fn new(cfg: &DdtConfig) -> Self {
        let (mut list, d) = (List::default(), cfg.hidden_size);
        let (encoder, decoder) = (0..cfg.num_encoder_blocks, cfg.num_encoder_blocks..cfg.num_blocks());
        let modulation = |i: usize| format!("blocks.{i}.adaLN_modulation.0");
        let fused: Vec<_> = encoder.clone().map(modulation).collect();
        let table = vec!["y_embedder.embedding_table.weight".to_owned()];
        Self {
            x_embed: list.linear("x_embedder.proj", d, cfg.patch_dim()),
            s_embed: list.linear("s_embedder.proj", d, cfg.patch_dim()),
            time: [
                list.linear("t_embedder.mlp.0", d, TIMESTEP_FREQUENCIES),
                list.linear("t_embedder.mlp.2", d, d),
            ],
            labels: list.push(table, vec![cfg.num_classes + 1, d]),
            encoder_modulations: (!fused.is_empty()).then(|| list.stacked(&fused, 6 * d, d)),
            encoder: encoder.map(|i| list.block(i, cfg)).collect(),
            decoder: decoder.clone().map(|i| list.block(i, cfg)).collect(),
            decoder_modulations: decoder.map(|i| list.stacked(&[modulation(i)], 6 * d, d)).collect(),
            final_modulation: list.linear("final_layer.adaLN_modulation.0", 2 * d, d),
            final_linear: list.linear("final_layer.linear", cfg.patch_dim(), d),
            all: list.all,
        }
    }

    /// All of them, at their positions.
    pub fn all(&self) -> &[Weight] {
        &self.all
    }

    /// Bytes from the start of one allocation to each weight, and bytes of it all.
    pub(crate) fn places(&self, element: Element) -> (Vec<usize>, usize) {
        let mut bytes = 0;
        let place = |it: &Weight| {
            let at = bytes;
            bytes += (it.num_elements() * element.bytes()).next_multiple_of(ALIGNMENT);
            at
        };
        let offsets = self.all.iter().map(place).collect();
        (offsets, bytes)
    }

    /// The network's parameters, padding left out.
    pub fn num_parameters(&self) -> usize {
        let count = |it: &Weight| it.parts.len() * it.part_shape.iter().product::<usize>();
        self.all.iter().map(count).sum()
    }
}

#[derive(Default)]
struct List {
    all: Vec<Weight>,
}

impl List {
    fn push(&mut self, parts: Vec<String>, part_shape: Vec<usize>) -> WeightId {
        self.push_padded(parts, part_shape.clone(), part_shape)
    }

    fn push_padded(&mut self, parts: Vec<String>, part_shape: Vec<usize>, padded: Vec<usize>) -> WeightId {
        self.all.push(Weight { parts, part_shape, padded });
        WeightId(self.all.len() - 1)
    }

    fn linear(&mut self, name: &str, rows: usize, columns: usize) -> Linear {
        self.stacked(&[name.to_owned()], rows, columns)
    }

    fn stacked(&mut self, layers: &[String], rows: usize, columns: usize) -> Linear {
        let part = |what: &str| layers.iter().map(|name| format!("{name}.{what}")).collect();
        let weight = self.push(part("weight"), vec![rows, columns]);
        Linear { weight, bias: self.push(part("bias"), vec![rows]) }
    }

    fn block(&mut self, i: usize, cfg: &DdtConfig) -> Block {
        let (d, k) = (cfg.hidden_size, cfg.head_dim());
        let (f, padded) = (swiglu_hidden_size(d), padded_mlp_size(d));
        let name = |part: &str| format!("blocks.{i}.{part}.weight");
        Block {
            norm1: self.push(vec![name("norm1")], vec![d]),
            qkv: self.push(vec![name("attn.qkv")], vec![3 * d, d]),
            q_norm: self.push(vec![name("attn.q_norm")], vec![k]),
            k_norm: self.push(vec![name("attn.k_norm")], vec![k]),
            proj: self.linear(&format!("blocks.{i}.attn.proj"), d, d),
            norm2: self.push(vec![name("norm2")], vec![d]),
            w13: self.push_padded(vec![name("mlp.w1"), name("mlp.w3")], vec![f, d], vec![padded, d]),
            w2: self.push_padded(vec![name("mlp.w2")], vec![d, f], vec![d, padded]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ddt_model::NetworkConfig;

    use super::*;

    #[test]
    fn the_table_is_the_network_no_more_and_no_less() {
        for preset in ["ddt-b2", "ddt-l2", "ddt-xl2"] {
            let cfg = DdtConfig::preset(preset).unwrap();
            let table = WeightTable::new(&cfg);
            let mut parts = BTreeMap::new();
            for weight in table.all() {
                for name in &weight.parts {
                    assert!(parts.insert(name.clone(), weight.part_shape.clone()).is_none(), "{name}");
                }
            }
            let network: NetworkConfig = cfg.into();
            assert_eq!(parts, network.parameter_shapes().unwrap());
        }
        let xl = WeightTable::new(&DdtConfig::preset("ddt-xl2").unwrap());
        assert_eq!(xl.num_parameters(), 674_646_352);
    }

    #[test]
    fn halves_without_blocks_have_a_table_too() {
        let cfg = DdtConfig { num_encoder_blocks: 0, ..DdtConfig::preset("ddt-b2").unwrap() };
        assert_eq!(WeightTable::new(&cfg).encoder_modulations, None);
        let cfg = DdtConfig { num_decoder_blocks: 0, ..DdtConfig::preset("ddt-b2").unwrap() };
        assert!(WeightTable::new(&cfg).decoder.is_empty());
    }
}
