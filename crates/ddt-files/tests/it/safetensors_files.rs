//! Our safetensors against the format's own library, and the whole way round.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use ddt_files::{Checkpoint, Format, LoadOptions, load_exact, sha256_file, write_safetensors};
use safetensors::SafeTensors;

use crate::builders::refused;

fn text(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// One tensor of every type that can be written, one of them not contiguous, one empty, one without
/// dimensions.
fn tensors() -> BTreeMap<String, Tensor> {
    let base = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((3, 4)).unwrap();
    use DType::{BF16, F16, F32, F64, I16, I32, I64, U8, U32};
    let types = [U8, U32, I16, I32, I64, BF16, F16, F32, F64];
    let mut tensors: BTreeMap<String, Tensor> =
        types.iter().map(|it| (format!("type.{}", it.as_str()), base.to_dtype(*it).unwrap())).collect();
    tensors.insert("transposed".to_string(), base.t().unwrap());
    tensors.insert("empty".to_string(), Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap());
    tensors.insert("scalar \"quoted\"\n".to_string(), Tensor::new(1.5f64, &Device::Cpu).unwrap());
    tensors
}

#[test]
fn a_round_trip_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let (tensors, metadata) = (tensors(), text(&[("step", "7"), ("config", "{\"a\": 1}")]));
    let hash = write_safetensors(&path, &tensors, &metadata).unwrap();
    assert_eq!(hash, sha256_file(&path).unwrap());
    let read = Checkpoint::open(&path).unwrap();
    assert_eq!(read.metadata(), &metadata);
    assert_eq!(read.names(), tensors.keys().collect::<Vec<_>>());
    for (name, expected) in &tensors {
        let tensor = read.tensor(name, &Device::Cpu).unwrap();
        assert_eq!((tensor.dtype(), tensor.dims()), (expected.dtype(), expected.dims()), "{name}");
        let flat =
            |it: &Tensor| it.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(flat(&tensor), flat(expected), "{name}");
    }
}

#[test]
fn the_formats_own_library_reads_what_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    write_safetensors(&path, &tensors(), &text(&[("k", "v")])).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), tensors().len());
    assert_eq!(theirs.tensor("type.f32").unwrap().shape(), [3, 4]);
    let transposed = theirs.tensor("transposed").unwrap();
    let expected: Vec<u8> = [0f32, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    assert_eq!(transposed.data(), expected);
    // Every tensor begins at a multiple of its element's size, for readers that map the file.
    for (name, view) in theirs.tensors() {
        let at = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(at % (view.dtype().bitsize() / 8), 0, "{name}");
    }
}

#[test]
fn we_read_what_the_formats_own_library_writes() {
    let data: Vec<u8> = [1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &data).unwrap();
    let bytes = safetensors::serialize([("x", view)], None).unwrap();
    let x = Checkpoint::from_bytes(bytes, "theirs").unwrap().tensor("x", &Device::Cpu).unwrap();
    assert_eq!(x.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
}

#[test]
fn the_same_tensors_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = text(&[("b", "2"), ("a", "1"), ("c", "3")]);
    let hashes: Vec<String> = ["one", "two"]
        .map(|name| write_safetensors(&folder.path().join(name), &tensors(), &metadata).unwrap())
        .into();
    assert_eq!(hashes[0], hashes[1]);
    let changed = text(&[("b", "2"), ("a", "1"), ("c", "4")]);
    assert_ne!(hashes[0], write_safetensors(&folder.path().join("three"), &tensors(), &changed).unwrap());
}

#[test]
fn what_cannot_be_written_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    std::fs::write(&path, "old").unwrap();
    let one = Tensor::new(1f32, &Device::Cpu).unwrap();
    let none = BTreeMap::new();
    let write = |name: &str, tensor: &Tensor, metadata| {
        write_safetensors(&path, &BTreeMap::from([(name.to_string(), tensor.clone())]), metadata)
    };
    refused(write("__metadata__", &one, &none), "`__metadata__`: the name is reserved");
    refused(write("x", &one.to_dtype(DType::F8E4M3).unwrap(), &none), "`x`: unsupported element type");
    refused(write("x", &one, &text(&[("k", &"v".repeat(17 << 20))])), "the limit is");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

/// Two files of two tensors each, and the index that `index` makes of the right one.
fn sharded(folder: &Path, index: impl Fn(&str) -> String) -> PathBuf {
    let write = |number: u8, names: [&str; 2]| {
        let tensor = |(i, name): (usize, &str)| {
            (name.to_string(), Tensor::new(&[number, i as u8], &Device::Cpu).unwrap())
        };
        let path = folder.join(format!("model-0000{number}-of-00002.safetensors"));
        write_safetensors(&path, &names.into_iter().enumerate().map(tensor).collect(), &BTreeMap::new())
            .unwrap();
    };
    write(1, ["a", "d"]);
    write(2, ["b", "c"]);
    let right = r#"{"metadata": {"total_size": 8, "format": "pt"}, "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors", "d": "model-00001-of-00002.safetensors"}}"#;
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(&path, index(right)).unwrap();
    path
}

#[test]
fn an_index_opens_all_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let index = sharded(folder.path(), str::to_owned);
    for path in [index.as_path(), folder.path()] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!((checkpoint.format(), checkpoint.path()), (Format::SafetensorsIndex, index.as_path()));
        assert_eq!(checkpoint.names(), ["a", "b", "c", "d"]);
        assert_eq!(checkpoint.metadata(), &text(&[("format", "pt"), ("total_size", "8")]));
        for (name, expected) in [("a", [1, 0]), ("b", [2, 0]), ("c", [2, 1]), ("d", [1, 1])] {
            let value = |it: Tensor| it.to_vec1::<u8>().unwrap();
            assert_eq!(checkpoint.info(name).unwrap().shape, [2]);
            assert_eq!(value(checkpoint.tensor(name, &Device::Cpu).unwrap()), expected);
            assert_eq!(value(checkpoint.rows(name, 1, 1, &Device::Cpu).unwrap()), expected[1..]);
        }
        let expected: Vec<_> = ["a", "b", "c", "d"].iter().map(|it| (it.to_string(), vec![2])).collect();
        assert_eq!(load_exact(&checkpoint, &expected, &LoadOptions::new(&Device::Cpu)).unwrap().len(), 4);
    }
}

#[test]
fn an_index_that_contradicts_its_files_is_refused() {
    let wrong = |index: &dyn Fn(&str) -> String, part: &str| {
        let folder = tempfile::tempdir().unwrap();
        refused(Checkpoint::open(sharded(folder.path(), index)), &format!("index.json: {part}"));
    };
    let replaced = |from: &'static str, to: &'static str| move |index: &str| index.replacen(from, to, 1);
    let second = "model-00002-of-00002.safetensors";
    for (from, to, part) in [
        (
            second,
            "model-00003-of-00002.safetensors",
            "its part `model-00003-of-00002.safetensors` is missing",
        ),
        (
            second,
            "../model-00001-of-00002.safetensors",
            "its part `../model-00001-of-00002.safetensors` is outside",
        ),
        (second, "/etc/passwd", "its part `/etc/passwd` is outside its folder"),
        (second, "a/../../b", "its part `a/../../b` is outside its folder"),
        (second, "..", "its part `..` is outside its folder"),
        (second, ".", "its part `.` is outside its folder"),
        (second, "", "its part `` is outside its folder"),
        (r#""a":"#, r#""x":"#, "tensor `x` is not in its part `model-00001"),
        (second, "model-00001-of-00002.safetensors", "tensor `b` is not in its part `model-00001"),
        (r#""b": "#, r#""a": "x", "b": "#, "invalid index of safetensors: duplicate key"),
        ("weight_map", "weights", "invalid index of safetensors: missing field `weight_map`"),
        // An index is no part.
        (second, "model.safetensors.index.json", "the header length is"),
    ] {
        wrong(&replaced(from, to), part);
    }
    wrong(&|index| index[..index.len() - 2].to_owned(), "invalid index of safetensors");

    let folder = tempfile::tempdir().unwrap();
    let path = sharded(folder.path(), str::to_owned);
    let twice =
        BTreeMap::from(["b", "c", "d"].map(|it| (it.to_string(), Tensor::new(1u8, &Device::Cpu).unwrap())));
    write_safetensors(&folder.path().join(second), &twice, &BTreeMap::new()).unwrap();
    refused(Checkpoint::open(&path), "tensor `d` is in two parts, `model-00001");
    std::fs::write(folder.path().join("other.safetensors.index.json"), "{}").unwrap();
    let both = "model.safetensors.index.json, other.safetensors.index.json; name one";
    refused(Checkpoint::open(folder.path()), both);
    let empty = tempfile::tempdir().unwrap();
    refused(Checkpoint::open(empty.path()), "a folder without a file *.safetensors.index.json");
}
