//! PyTorch files that are in order, and such as are refused with a reason.

use std::io::Write;

use candle_core::{DType, Device, Tensor};
use ddt_files::{Checkpoint, FileError, Format, TensorSource};

use crate::torch_builder::{Pickle, floats, lightning, torch_file};
use crate::zip_builder::{ZipEntry, deflated, stored, zip};

fn open(bytes: Vec<u8>) -> Result<Checkpoint, FileError> {
    Checkpoint::from_bytes(bytes, "test.ckpt")
}

fn tensor(checkpoint: &Checkpoint, name: &str) -> Tensor {
    checkpoint.tensor(name, &Device::Cpu).unwrap()
}

fn f32s(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    tensor(checkpoint, name).flatten_all().unwrap().to_vec1().unwrap()
}

/// The error of opening a Lightning file with these entries and a storage of four floats.
fn refusal(entries: impl Fn(Pickle) -> Pickle) -> FileError {
    let storage = floats([0.0, 1.0, 2.0, 3.0]);
    open(torch_file(&lightning(entries), &[&storage])).unwrap_err()
}

#[test]
fn what_pythons_pickler_writes() {
    for name in ["protocol2.ckpt", "protocol5.ckpt"] {
        let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.format(), Format::TorchZip);
        assert!(checkpoint.metadata().is_empty());
        assert_eq!(checkpoint.names(), ["net.steps", "net.transposed", "net.weight"]);
        assert_eq!(f32s(&checkpoint, "net.weight"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(tensor(&checkpoint, "net.transposed").dims(), [3, 2]);
        assert_eq!(f32s(&checkpoint, "net.transposed"), [6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        assert_eq!(tensor(&checkpoint, "net.steps").to_scalar::<i64>().unwrap(), -5);
    }
}

#[test]
fn a_prefix_of_a_lightning_file() {
    let pickle = lightning(|it| {
        it.str("ema.a").tensor("FloatStorage", "0", 4, (0, &[4], &[1])).str("raw.a").tensor(
            "FloatStorage",
            "0",
            4,
            (2, &[2, 1], &[1, 1]),
        )
    });
    let checkpoint = open(torch_file(&pickle, &[&floats([1.0, 2.0, 3.0, 4.0])])).unwrap();
    let ema = checkpoint.with_prefix("ema.");
    assert_eq!(ema.names(), ["a"]);
    assert_eq!(ema.info("a").unwrap().shape, [4]);
    // The same storage, shared, at an offset.
    assert_eq!(f32s(&checkpoint, "raw.a"), [3.0, 4.0]);
}

#[test]
fn a_plain_state_dict_and_groups_of_tensors() {
    let plain = Pickle::new().no_hooks().op(b"(").str("w").tensor("FloatStorage", "0", 1, (0, &[], &[]));
    let plain = plain.op(b"u}b").end();
    let checkpoint = open(torch_file(&plain, &[&floats([7.0])])).unwrap();
    assert_eq!(checkpoint.names(), ["w"]);
    assert_eq!(tensor(&checkpoint, "w").to_scalar::<f32>().unwrap(), 7.0);

    let group = |it: Pickle, name: &str| {
        it.str(name).op(b"}").str("w").tensor("FloatStorage", "0", 1, (0, &[1], &[1])).op(b"s")
    };
    let grouped = group(group(Pickle::new().op(b"}("), "model"), "ema");
    let grouped = grouped.str("args").global("argparse", "Namespace").op(b")\x81}b").str("steps").int(9);
    let checkpoint = open(torch_file(&grouped.op(b"u").end(), &[&floats([7.0])])).unwrap();
    assert_eq!(checkpoint.names(), ["ema.w", "model.w"]);
}

#[test]
fn every_element_type() {
    type Case<'a> = (&'a str, DType, &'a [u8], &'a str);
    let cases: [Case<'_>; 9] = [
        ("FloatStorage", DType::F32, &[0, 0, 0xc0, 0x3f], "1.5"),
        ("DoubleStorage", DType::F64, &[0, 0, 0, 0, 0, 0, 0xf8, 0xbf], "-1.5"),
        ("HalfStorage", DType::F16, &[0, 0x3e], "1.5"),
        ("BFloat16Storage", DType::BF16, &[0xc0, 0x3f], "1.5"),
        ("LongStorage", DType::I64, &[0xfe, 255, 255, 255, 255, 255, 255, 255], "-2"),
        ("IntStorage", DType::I32, &[0xfe, 255, 255, 255], "-2"),
        ("ShortStorage", DType::I16, &[0xfe, 255], "-2"),
        ("ByteStorage", DType::U8, &[200], "200"),
        ("BoolStorage", DType::U8, &[1], "1"),
    ];
    for (class, dtype, bytes, value) in cases {
        let pickle = lightning(|it| it.str("x").tensor(class, "0", 1, (0, &[], &[])));
        let checkpoint = open(torch_file(&pickle, &[bytes])).unwrap();
        assert_eq!(checkpoint.info("x").unwrap().dtype, dtype);
        let x = tensor(&checkpoint, "x");
        assert_eq!(x.dtype(), dtype);
        let read = x.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
        assert_eq!(read, value.parse::<f64>().unwrap(), "{class}");
    }
}

#[test]
fn tensors_of_untyped_storages() {
    let pickle = lightning(|it| {
        it.str("x")
            .global("torch._utils", "_rebuild_tensor_v3")
            .op(b"((")
            .str("storage")
            .global("torch.storage", "UntypedStorage")
            .str("0")
            .str("cpu")
            .int(8)
            .op(b"tQ")
            .int(1)
            .ints(&[1])
            .ints(&[1])
            .op(b"\x89")
            .no_hooks()
            .global("torch", "float32")
            .op(b"tR")
    });
    let checkpoint = open(torch_file(&pickle, &[&floats([1.0, 2.0])])).unwrap();
    assert_eq!(f32s(&checkpoint, "x"), [2.0]);
}

#[test]
fn unknown_objects_are_harmless_beside_the_tensors_and_named_among_them() {
    let beside = Pickle::new()
        .op(b"}(")
        .str("callbacks")
        .global("os", "system")
        .op(b"(")
        .str("touch owned")
        .op(b"tR")
        .str("state_dict")
        .op(b"}")
        .str("w")
        .tensor("FloatStorage", "0", 1, (0, &[1], &[1]))
        .op(b"su")
        .end();
    assert_eq!(open(torch_file(&beside, &[&floats([1.0])])).unwrap().names(), ["w"]);

    let forbidden = |error: &FileError, name: &str, object: &str| {
        let expected =
            format!("`{name}`: it refers to `{object}`, which is not loaded because it could run code");
        assert!(error.to_string().contains(&expected), "{error}");
    };
    let called = refusal(|it| it.str("bad").global("os", "system").op(b"(").str("ls").op(b"tR"));
    forbidden(&called, "bad", "os.system");
    let made = refusal(|it| it.str("bad").global("m", "C").op(b")\x81}b"));
    forbidden(&made, "bad", "m.C");
    let bare = refusal(|it| it.str("bad").global("m", "C"));
    forbidden(&bare, "bad", "m.C");
    // As the state dict itself, as a hook, as a storage's class.
    let whole = Pickle::new().op(b"}").str("state_dict").global("m", "C").op(b")Rs").end();
    let whole = open(torch_file(&whole, &[])).unwrap_err();
    forbidden(&whole, "state_dict", "m.C");
    let hook = refusal(|it| {
        let it = it.str("h").global("torch._utils", "_rebuild_parameter").op(b"(");
        it.tensor("FloatStorage", "0", 4, (0, &[1], &[1])).op(b"\x88").global("m", "C").op(b")RtR")
    });
    forbidden(&hook, "h", "m.C");
    let class = refusal(|it| it.str("s").tensor("load", "0", 4, (0, &[1], &[1])));
    forbidden(&class, "s", "torch.load");
    let module = Pickle::new().global("models", "Net").op(b")\x81}b").end();
    let module = open(torch_file(&module, &[])).unwrap_err();
    assert!(module.to_string().contains("`models.Net`"), "{module}");
}

#[test]
fn entries_that_are_no_tensors() {
    let problem = |entries: &dyn Fn(Pickle) -> Pickle, part: &str| {
        let error = refusal(entries);
        assert!(error.to_string().contains(part), "{error}");
    };
    problem(&|it| it.str("n").int(1), "`n`: expected a tensor, got an integer");
    problem(&|it| it.int(1).int(1), "expected a string as its name");
    problem(&|it| it.str(&"k".repeat(2000)).int(1), "2000 bytes");
    let one = |it: Pickle| it.str("x").tensor("FloatStorage", "0", 4, (0, &[1], &[1]));
    problem(&|it| one(one(it)), "occurs twice");
    let view = |view: (i64, &'static [i64], &'static [i64])| {
        move |it: Pickle| it.str("x").tensor("FloatStorage", "0", 4, view)
    };
    problem(&view((1, &[4], &[1])), "leaves its storage of 4 elements");
    problem(&view((i64::MAX, &[1], &[1])), "leaves its storage");
    problem(&view((-1, &[1], &[1])), "-1 is not a size");
    problem(&view((0, &[-1], &[1])), "-1 is not a size");
    problem(&view((0, &[2], &[-1])), "-1 is not a size");
    problem(&view((0, &[2], &[i64::MAX])), "leaves its storage");
    problem(&view((0, &[i64::MAX, i64::MAX, 0], &[1, 1, 1])), "too many elements");
    problem(&view((0, &[1 << 40], &[0])), "made of a storage of 4");
    problem(&view((0, &[1], &[])), "1 dimensions and 0 strides");
    problem(&view((0, &[1; 65], &[1; 65])), "65 dimensions");
    problem(&|it| it.str("x").tensor("FloatStorage", "0", 5, (0, &[1], &[1])), "needs 20 bytes");
    problem(&|it| it.str("x").tensor("FloatStorage", "0", -1, (0, &[1], &[1])), "impossible size");
    problem(&|it| it.str("x").tensor("FloatStorage", "0", i64::MAX, (0, &[1], &[1])), "impossible size");
    problem(&|it| it.str("x").tensor("FloatStorage", "../0", 4, (0, &[1], &[1])), "not in the file");
    let int8 = refusal(|it| it.str("x").tensor("CharStorage", "0", 4, (0, &[1], &[1])));
    assert!(int8.to_string().contains("`x`: unsupported element type CharStorage"), "{int8}");
    let empty = Pickle::new().op(b"}").str("epoch").int(1).op(b"s").end();
    let empty = open(torch_file(&empty, &[])).unwrap_err();
    assert!(empty.to_string().contains("no tensors"), "{empty}");
}

#[test]
fn a_negated_view_is_refused_and_not_misread() {
    let error = refusal(|it| {
        let it =
            it.str("x").global("torch._utils", "_rebuild_tensor_v2").op(b"(").storage("FloatStorage", "0", 4);
        let it = it.int(0).ints(&[1]).ints(&[1]).op(b"\x89").no_hooks();
        it.op(b"}").str("neg").op(b"\x88stR")
    });
    assert!(error.to_string().contains("hooks or marks"), "{error}");
}

#[test]
fn compressed_archives_are_inflated_up_to_their_declared_size() {
    let pickle = lightning(|it| it.str("x").tensor("FloatStorage", "0", 1000, (500, &[2], &[1])));
    let storage = floats((0..1000).map(|i| i as f32));
    let entries = [deflated("a/data.pkl", &pickle), deflated("a/data/0", &storage)];
    assert_eq!(f32s(&open(zip(&entries)).unwrap(), "x"), [500.0, 501.0]);

    let read = |entry: ZipEntry| {
        let file = zip(&[entries[0].clone(), entry]);
        open(file).and_then(|it| it.tensor("x", &Device::Cpu)).unwrap_err()
    };
    // More inside than declared, less, far more than any limit, another method, a password.
    let bomb = ZipEntry { size: 4000, ..deflated("a/data/0", &[0; 1 << 20]) };
    assert!(read(bomb).to_string().contains("continues after the 4000 bytes"));
    let short = ZipEntry { size: 4001, ..entries[1].clone() };
    assert!(read(short).to_string().contains("ends before the 4001 bytes"));
    let giant = ZipEntry { size: u32::MAX - 1, ..entries[1].clone() };
    assert!(read(giant).to_string().contains("cannot inflate"));
    let other = ZipEntry { method: 12, ..entries[1].clone() };
    assert!(read(other).to_string().contains("expected stored or deflated"));
    let secret = ZipEntry { flags: 1, ..entries[1].clone() };
    assert!(read(secret).to_string().contains("encrypted"));
}

#[test]
fn archives_that_contradict_themselves() {
    let pickle = lightning(|it| it.str("x").tensor("FloatStorage", "0", 1, (0, &[1], &[1])));
    let good = stored("a/data.pkl", &pickle);
    let storage = stored("a/data/0", &floats([1.0]));
    let problem = |entries: &[ZipEntry], part: &str| {
        let error = open(zip(entries)).and_then(|it| it.tensor("x", &Device::Cpu)).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    problem(&[], "expected one `<root>/data.pkl`");
    problem(&[stored("a/b/data.pkl", &pickle)], "expected one");
    problem(&[good.clone(), stored("b/data.pkl", &pickle)], "expected one");
    problem(&[good.clone(), good.clone()], "two entries have the same name");
    problem(&[good.clone(), storage.clone(), stored("a/byteorder", b"big")], "big-endian");
    problem(&[ZipEntry { crc: 1, ..good.clone() }, storage.clone()], "checksum");
    problem(&[good.clone(), ZipEntry { crc: 1, ..storage.clone() }], "checksum");
    problem(&[good.clone(), ZipEntry { size: 5, ..storage.clone() }], "two sizes");
    let mut cut = zip(&[good, storage]);
    cut.truncate(cut.len() - 1);
    assert!(open(cut).unwrap_err().to_string().contains("is complete"));
}

#[test]
fn zip64_archives_of_another_writer() {
    let pickle = lightning(|it| it.str("x").tensor("FloatStorage", "0", 2, (0, &[2], &[1])));
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .large_file(true)
        .with_alignment(64);
    for (name, content) in [("m/data.pkl", pickle), ("m/data/0", floats([1.0, 2.0]))] {
        writer.start_file(name, options).unwrap();
        writer.write_all(&content).unwrap();
    }
    let checkpoint = open(writer.finish().unwrap().into_inner()).unwrap();
    assert_eq!(f32s(&checkpoint, "x"), [1.0, 2.0]);
}

/// A sparse file of more than 4 GiB, whose directory is only reachable through zip64 records.
#[cfg(unix)]
#[test]
fn a_file_beyond_four_gigabytes_is_read_by_position() {
    use std::io::{Seek, SeekFrom};
    const HOLE: u64 = 5 << 30;
    let pickle = lightning(|it| it.str("x").tensor("FloatStorage", "1", 2, (0, &[2], &[1])));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.ckpt");
    let mut file = std::fs::File::create(&path).unwrap();

    let entries =
        [stored("m/data.pkl", &pickle), stored("m/data/0", b""), stored("m/data/1", &floats([3.0, 4.0]))];
    let mut directory = Vec::new();
    let mut at = 0u64;
    for (i, entry) in entries.iter().enumerate() {
        let size = if i == 1 { HOLE } else { entry.packed.len() as u64 };
        let mut local = b"PK\x03\x04".to_vec();
        local.extend([0; 22]);
        local.extend((entry.name.len() as u32).to_le_bytes());
        local.extend(entry.name.as_bytes());
        local.extend(&entry.packed);
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&local).unwrap();

        directory.extend(b"PK\x01\x02");
        directory.extend([0; 12]);
        directory.extend(entry.crc.to_le_bytes());
        directory.extend([0xff; 8]);
        directory.extend((entry.name.len() as u16).to_le_bytes());
        directory.extend(28u16.to_le_bytes());
        directory.extend([0; 10]);
        directory.extend([0xff; 4]);
        directory.extend(entry.name.as_bytes());
        directory.extend([1, 0, 24, 0]);
        for wide in [size, size, at] {
            directory.extend(wide.to_le_bytes());
        }
        at += local.len() as u64 + if i == 1 { HOLE } else { 0 };
    }
    let start = at;
    let mut end = directory.clone();
    let record = start + directory.len() as u64;
    end.extend(b"PK\x06\x06");
    end.extend(44u64.to_le_bytes());
    end.extend([0; 12]);
    for wide in [3, 3, directory.len() as u64, start] {
        end.extend(wide.to_le_bytes());
    }
    end.extend(b"PK\x06\x07\x00\x00\x00\x00");
    end.extend(record.to_le_bytes());
    end.extend([1, 0, 0, 0]);
    end.extend(b"PK\x05\x06\x00\x00\x00\x00");
    end.extend([0xff; 12]);
    end.extend([0; 2]);
    file.seek(SeekFrom::Start(start)).unwrap();
    file.write_all(&end).unwrap();
    drop(file);

    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(f32s(&checkpoint, "x"), [3.0, 4.0]);
}
