//! A fixture file: inputs, weights, outputs and what it says of itself.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_files::Checkpoint;
use ddt_model::DdtConfig;
use serde::{Deserialize, de::DeserializeOwned};

use super::{BF16, Type, compare::Tolerance};

/// An opened fixture.
#[derive(Debug)]
pub(crate) struct Fixture {
    checkpoint: Checkpoint,
    dtype: Type,
}

/// Sizes as fixtures write them; keys of other families are passed over.
#[derive(Debug, Deserialize)]
struct Sizes {
    in_channels: usize,
    patch_size: usize,
    hidden_size: usize,
    num_groups: usize,
    num_blocks: usize,
    #[serde(default)]
    num_encoder_blocks: usize,
    num_classes: usize,
}

impl Fixture {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { checkpoint: Checkpoint::open(path)?, dtype: Type::F32 })
    }

    /// The same, its network's weights in another type.
    pub(crate) fn computed_in(self, dtype: Type) -> Self {
        Self { dtype, ..self }
    }

    /// Type of the network's weights.
    pub(crate) fn dtype(&self) -> DType {
        match self.dtype {
            Type::F32 => DType::F32,
            Type::Bf16 => DType::BF16,
        }
    }

    /// What the network's outputs may differ by in f32, or what bf16 weights may cost.
    pub(crate) fn tolerance(&self, limit: f64) -> Tolerance {
        Tolerance::RelativeRms(if self.dtype == Type::Bf16 { BF16 } else { limit })
    }

    /// The file's tensors.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    pub(crate) fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// Metadata as plain text.
    pub(crate) fn text(&self, key: &str) -> Result<&str> {
        let value = self.checkpoint.metadata().get(key);
        value.map(String::as_str).with_context(|| format!("the fixture lacks metadata {key:?}"))
    }

    /// Metadata as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        serde_json::from_str(self.text(key)?).with_context(|| format!("metadata {key:?}"))
    }

    /// The network's sizes.
    pub(crate) fn sizes(&self) -> Result<DdtConfig> {
        let it: Sizes = self.json("config")?;
        let decoder = it.num_blocks.checked_sub(it.num_encoder_blocks);
        let num_decoder_blocks = decoder.context("config has more encoder blocks than blocks")?;
        Ok(DdtConfig {
            in_channels: it.in_channels,
            patch_size: it.patch_size,
            hidden_size: it.hidden_size,
            num_heads: it.num_groups,
            num_encoder_blocks: it.num_encoder_blocks,
            num_decoder_blocks,
            num_classes: it.num_classes,
        })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.info(name).is_some()
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.checkpoint.tensor(name, &Device::Cpu)?)
    }

    /// Labels as the network takes them.
    pub(crate) fn labels(&self, name: &str) -> Result<Tensor> {
        Ok(self.tensor(name)?.to_dtype(DType::U32)?)
    }

    /// A builder over the tensors under a prefix, named without it.
    pub(crate) fn builder(&self, prefix: &str) -> Result<VarBuilder<'static>> {
        let names = self.checkpoint.names().into_iter();
        let named = names.filter_map(|full| Some((full, full.strip_prefix(prefix)?)));
        let weights = named.map(|(full, name)| Ok((name.to_owned(), self.tensor(full)?)));
        let weights = weights.collect::<Result<HashMap<String, Tensor>>>()?;
        Ok(VarBuilder::from_tensors(weights, self.dtype(), &Device::Cpu))
    }
}
