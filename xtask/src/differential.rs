//! Files that Python's libraries wrote, as this workspace and as those libraries read them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use ddt_data::{Limits, read_rgb8};
use ddt_files::{
    Checkpoint,
    npz::{NpyArray, NpzFile},
    sha256,
};
use serde::Deserialize;
use xshell::{Shell, cmd};

use crate::tidy::{metadata, root};

/// Compare what is read with PyTorch, safetensors, NumPy and Pillow
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Python with some of these libraries; parts of others are left out, and named
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Without Python say so, instead of failing
    #[arg(long)]
    optional: bool,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
    missing: Vec<String>,
}

#[derive(Deserialize)]
struct Case {
    file: String,
    #[serde(flatten)]
    kind: Kind,
    /// Words of the message, where the file must be refused.
    refused: Option<String>,
}

/// The reader of a file, with the values that it must read.
#[derive(Deserialize)]
#[serde(tag = "kind", content = "expect", rename_all = "lowercase")]
enum Kind {
    Checkpoint(Option<BTreeMap<String, Expected>>),
    Arrays(Option<BTreeMap<String, Expected>>),
    Image(Option<Picture>),
}

/// Type, shape and hashes of the numbers of an array.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Expected {
    dtype: String,
    shape: Vec<usize>,
    /// As they are stored.
    sha256: Option<String>,
    /// As f64, as i64 and, in rows, as they are stored.
    f64: Option<String>,
    i64: Option<String>,
    rows: Option<String>,
}

#[derive(Deserialize)]
struct Picture {
    size: [u32; 2],
    /// File of the bytes of all pixels.
    pixels: String,
    /// Largest mean and largest single difference of a byte.
    mean: f64,
    largest: u8,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (sh, python) = (Shell::new()?, &args.python);
    let folder = metadata(&root())?.1.join("differential");
    sh.remove_path(&folder)?;
    sh.create_dir(&folder)?;
    let script = root().join("fixtures/generate/differential.py");
    let _folder = sh.push_dir(&folder);
    if let Err(error) = cmd!(sh, "{python} --version").quiet().ignore_stdout().run() {
        ensure!(args.optional, "expected Python, see --python: {error}");
        println!("no Python here: nothing was compared with its libraries");
        return Ok(ExitCode::SUCCESS);
    }
    cmd!(sh, "{python} {script} {folder}").quiet().ignore_stdout().run()?;
    let Cases { cases, missing } = serde_json::from_slice(&fs::read(folder.join("cases.json"))?)?;
    let mut failed = Vec::new();
    let mut passed = BTreeMap::new();
    for case in &cases {
        match case.compare(&folder) {
            Ok(()) => *passed.entry(case.name()).or_insert(0) += 1,
            Err(error) => failed.push(format!("{}: {error:#}", case.file)),
        }
    }
    for (name, count) in &passed {
        println!("{count:5}  {name}");
    }
    missing.iter().for_each(|it| println!("not compared, since Python has it not: {it}"));
    ensure!(args.optional || missing.is_empty(), "expected all libraries: {}", missing.join(", "));
    ensure!(
        failed.is_empty(),
        "{} of {} files differ:\n  {}",
        failed.len(),
        cases.len(),
        failed.join("\n  ")
    );
    println!(
        "{} files are read as by the libraries that wrote them, or refused for the reason expected",
        cases.len()
    );
    Ok(ExitCode::SUCCESS)
}

impl Case {
    /// The kind of comparison.
    fn name(&self) -> String {
        let ending = self.file.rsplit('.').next().unwrap_or_default();
        format!("{ending} {}", if self.refused.is_some() { "refused" } else { "equal" })
    }

    fn compare(&self, folder: &Path) -> Result<()> {
        let path = folder.join(&self.file);
        let compared = match &self.kind {
            Kind::Checkpoint(expected) => checkpoint(&path).map(|got| differ(&got, expected.as_ref())),
            Kind::Arrays(expected) => arrays(&path).map(|got| differ(&got, expected.as_ref())),
            Kind::Image(expected) => image(&path, expected.as_ref(), folder),
        };
        match (compared, &self.refused) {
            (Ok(difference), None) => difference,
            (Ok(_), Some(words)) => bail!("expected a refusal with {words:?}, it was read"),
            (Err(error), Some(words)) if format!("{error:#}").contains(words) => Ok(()),
            (Err(error), _) => Err(error),
        }
    }
}

fn differ(got: &BTreeMap<String, Expected>, expected: Option<&BTreeMap<String, Expected>>) -> Result<()> {
    for (name, expected) in expected.into_iter().flatten() {
        let got = got.get(name).with_context(|| format!("{name:?} is missing"))?;
        ensure!(got == expected, "{name:?}: expected {expected:?}, got {got:?}");
    }
    let count = expected.map_or(0, BTreeMap::len);
    ensure!(got.len() == count, "expected {count} arrays, got {}", got.len());
    Ok(())
}

fn checkpoint(path: &Path) -> Result<BTreeMap<String, Expected>> {
    let checkpoint = Checkpoint::open(path)?;
    let read = |name: &str| {
        let tensor = checkpoint.tensor(name, &Device::Cpu)?;
        let (dtype, shape) = (tensor.dtype().as_str().to_owned(), tensor.dims().to_vec());
        let sha256 = Some(sha256(&bytes(&tensor)?));
        Ok((name.to_owned(), Expected { dtype, shape, sha256, ..Expected::default() }))
    };
    checkpoint.names().into_iter().map(read).collect()
}

/// The numbers of a tensor, little-endian and row-major.
fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tensor.write_bytes(&mut bytes)?;
    Ok(bytes)
}

fn arrays(path: &Path) -> Result<BTreeMap<String, Expected>> {
    let npz = NpzFile::open(path)?;
    let read = |name: &str| Ok((name.to_owned(), array(&npz.array(name)?)?));
    npz.names().map(read).collect()
}

fn array(array: &NpyArray<'_>) -> Result<Expected> {
    let whole = !array.dtype().is_float();
    let i64: Option<Vec<u8>> = match whole {
        true => Some(array.i64_values()?.iter().flat_map(|it| it.to_le_bytes()).collect()),
        false => None,
    };
    let f64: Vec<u8> = array.f64_values()?.iter().flat_map(|it| it.to_le_bytes()).collect();
    let rows = match array.header().fortran_order && array.shape().len() > 1 {
        true => None,
        false => {
            let count = array.shape().first().copied().unwrap_or(1);
            let mut rows = array.rows(0..count)?;
            let mut numbers = vec![0; count * rows.row_bytes()];
            rows.read(&mut numbers)?;
            Some(sha256(&numbers))
        }
    };
    Ok(Expected {
        dtype: array.dtype().as_str().to_owned(),
        shape: array.shape().to_vec(),
        sha256: None,
        f64: Some(sha256(&f64)),
        i64: i64.map(|it| sha256(&it)),
        rows,
    })
}

fn image(path: &Path, expected: Option<&Picture>, folder: &Path) -> Result<Result<()>> {
    let got = read_rgb8(path, &Limits::default())?;
    let Some(Picture { size, pixels, mean, largest }) = expected else { return Ok(Ok(())) };
    let expected = fs::read(folder.join(pixels))?;
    let differences: Vec<u8> = got.as_bytes().iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).collect();
    let got_mean = differences.iter().map(|it| f64::from(*it)).sum::<f64>() / differences.len() as f64;
    let got_largest = differences.iter().copied().max().unwrap_or(0);
    if [got.width(), got.height()] != *size || expected.len() != got.as_bytes().len() {
        return Ok(Err(anyhow::anyhow!("expected {size:?} pixels, got {} x {}", got.width(), got.height())));
    }
    Ok(if got_mean <= *mean && got_largest <= *largest {
        Ok(())
    } else {
        Err(anyhow::anyhow!(
            "expected differences of at most {mean} in the mean and {largest}, got {got_mean:.3} and {got_largest}"
        ))
    })
}
