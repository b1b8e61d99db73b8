//! `ddt inspect`: what a weights file holds, and how two differ.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use anyhow::Result;
use ddt::{
    files::{Checkpoint, TensorInfo},
    model::DdtFile,
    sha256_of,
};
use serde::Serialize;

/// Metadata longer than this is cut in text, in characters.
const LONG: usize = 100;

/// Lists the tensors, description and hash of a weights file (safetensors or PyTorch), or compares two.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file
    file: PathBuf,
    /// Another file, to compare it with
    other: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Contents {
    file: String,
    bytes: u64,
    sha256: String,
    /// The network, where the file says it.
    network: Option<ddt::model::NetworkConfig>,
    classes: Option<Vec<String>>,
    latents: Option<ddt::model::LatentInfo>,
    metadata: BTreeMap<String, String>,
    parameters: u64,
    tensors: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

/// Differences between two files; empty for equal tensors.
#[derive(Debug, Default, Serialize)]
struct Difference {
    only_in_first: Vec<String>,
    only_in_second: Vec<String>,
    /// Names with both types and shapes.
    other_kind: Vec<(String, String, String)>,
    /// Names with the largest difference of their values.
    other_values: Vec<(String, f64)>,
    equal: usize,
}

pub(crate) fn run(args: &Args) -> Result<String> {
    let Some(other) = &args.other else {
        let contents = Contents::read(&args.file)?;
        return if args.json { Ok(serde_json::to_string_pretty(&contents)?) } else { contents.text() };
    };
    let difference = Difference::between(&Checkpoint::open(&args.file)?, &Checkpoint::open(other)?)?;
    if args.json { Ok(serde_json::to_string_pretty(&difference)?) } else { difference.text() }
}

impl Contents {
    fn read(path: &std::path::Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let described = DdtFile::open(path)?;
        let info = |name: &&str| Some((name.to_string(), checkpoint.info(name)?));
        let tensors: Vec<(String, TensorInfo)> = checkpoint.names().iter().filter_map(info).collect();
        let count = |it: &(String, TensorInfo)| it.1.shape.iter().map(|it| *it as u64).product::<u64>();
        Ok(Self {
            file: path.display().to_string(),
            bytes: path.metadata()?.len(),
            sha256: sha256_of(path)?,
            network: described.network_config().cloned(),
            classes: described.classes().map(<[String]>::to_vec),
            latents: described.latents().cloned(),
            metadata: checkpoint.metadata().clone(),
            parameters: tensors.iter().map(count).sum(),
            tensors: tensors
                .into_iter()
                .map(|(name, it)| Row { name, dtype: it.dtype.as_str(), shape: it.shape })
                .collect(),
        })
    }

    fn text(&self) -> Result<String> {
        let mut text = String::new();
        writeln!(text, "file        {}, {} bytes", self.file, self.bytes)?;
        writeln!(text, "sha256      {}", self.sha256)?;
        writeln!(text, "parameters  {} in {} tensors", self.parameters, self.tensors.len())?;
        if let Some(network) = &self.network {
            writeln!(text, "network     {}", serde_json::to_string(network)?)?;
        }
        if let Some(classes) = &self.classes {
            writeln!(text, "classes     {}: {}", classes.len(), short(&classes.join(", ")))?;
        }
        if let Some(it) = &self.latents {
            writeln!(text, "latents     {} x {} of {}", it.height, it.width, it.autoencoder)?;
        }
        // The file may come from anywhere, and this goes to a terminal.
        for (key, value) in self.metadata.iter().filter(|it| !it.0.starts_with("ddt.")) {
            writeln!(text, "metadata    {} = {}", short(key), short(value))?;
        }
        let widest = self.tensors.iter().map(|it| it.name.chars().count()).max().unwrap_or(0);
        for Row { name, dtype, shape } in &self.tensors {
            writeln!(text, "{:widest$}  {dtype:4}  {shape:?}", printable(name))?;
        }
        Ok(text.trim_end().to_owned())
    }
}

impl Difference {
    fn between(first: &Checkpoint, second: &Checkpoint) -> Result<Self> {
        let mut difference = Self::default();
        let cpu = candle_core::Device::Cpu;
        for name in first.names() {
            let (Some(a), Some(b)) = (first.info(name), second.info(name)) else {
                difference.only_in_first.push(name.to_owned());
                continue;
            };
            if a != b {
                let kind = |it: &TensorInfo| format!("{} {:?}", it.dtype.as_str(), it.shape);
                difference.other_kind.push((name.to_owned(), kind(&a), kind(&b)));
            }
            if a.shape != b.shape {
                continue;
            }
            let values = |from: &Checkpoint| -> Result<candle_core::Tensor> {
                Ok(from.tensor(name, &cpu)?.to_dtype(candle_core::DType::F64)?)
            };
            let largest = if a.shape.contains(&0) {
                0.0
            } else {
                (values(first)? - values(second)?)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?
            };
            if largest != 0.0 {
                difference.other_values.push((name.to_owned(), largest));
            } else if a == b {
                difference.equal += 1;
            }
        }
        let missing = second.names().into_iter().filter(|it| first.info(it).is_none());
        difference.only_in_second = missing.map(str::to_owned).collect();
        Ok(difference)
    }

    fn text(&self) -> Result<String> {
        let mut text = String::new();
        for name in &self.only_in_first {
            writeln!(text, "only in the first   {}", printable(name))?;
        }
        for name in &self.only_in_second {
            writeln!(text, "only in the second  {}", printable(name))?;
        }
        for (name, first, second) in &self.other_kind {
            writeln!(text, "of another kind     {}: {first} and {second}", printable(name))?;
        }
        for (name, largest) in &self.other_values {
            writeln!(text, "of other values     {}: up to {largest:.3e}", printable(name))?;
        }
        write!(text, "{} equal tensors", self.equal)?;
        Ok(text)
    }
}

fn short(text: &str) -> String {
    let start = printable(&text.chars().take(LONG).collect::<String>());
    if text.chars().count() > LONG { format!("{start}...") } else { start }
}

fn printable(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { '?' } else { it }).collect()
}
