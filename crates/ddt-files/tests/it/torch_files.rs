//! PyTorch files that are in order, and such as are refused with a reason.

use std::io::Write;

use candle_core::{DType, Device};
use ddt_files::{Checkpoint, FileError, Format, LoadOptions, TensorSource, load_exact};

use crate::builders::{
    Pickle, View, ZipEntry, deflated, f32s, floats, lightning, open, refused, stored, tensor, torch_file,
    zip, zip64_end,
};

/// Opens a Lightning file with these entries and a storage of four floats.
fn with_entries(entries: impl Fn(Pickle) -> Pickle) -> Result<Checkpoint, FileError> {
    open(torch_file(&lightning(entries), &[&floats([0.0, 1.0, 2.0, 3.0])]))
}

#[test]
fn every_tensor_of_a_state_dict() {
    ddt_parity::check("checkpoint_tensors").unwrap();
}

#[test]
fn a_lightning_checkpoint() {
    let path = ddt_parity::golden("lightning_expect").unwrap().beside("checkpoint").unwrap();
    let checkpoint = Checkpoint::open(path).unwrap();
    let ema = checkpoint.with_prefix("ema_denoiser.");
    let raw = checkpoint.with_prefix("denoiser.");
    // 9 names of embedders, 4 of the final layer, 12 of each of the 2 blocks.
    assert_eq!(ema.names().len(), 37);
    assert_eq!(ema.names(), raw.names());
    assert!(ema.names().contains(&"blocks.1.adaLN_modulation.0.weight"));
    assert_eq!(checkpoint.with_prefix("diffusion_trainer.proj.0.").names(), ["0.bias", "0.weight"]);
    assert_eq!(checkpoint.names().len(), 37 + 37 + 2);

    let expected: Vec<_> =
        ema.names().iter().map(|name| (name.to_string(), ema.info(name).unwrap().shape)).collect();
    let loaded = load_exact(&ema, &expected, &LoadOptions::new(&Device::Cpu).cast(DType::F64)).unwrap();
    for (name, tensor) in &loaded {
        let largest = tensor.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(largest.is_finite() && largest < 100.0, "{name}: {largest}");
    }
    assert_eq!(loaded["y_embedder.embedding_table.weight"].dims(), [11, 12]);
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
fn a_prefix_of_a_lightning_file_and_rows_of_any_view() {
    let pickle = lightning(|it| {
        let it = it.str("ema.a").tensor("FloatStorage", "0", 6, (0, &[6], &[1]));
        let it = it.str("raw.a").tensor("FloatStorage", "0", 6, (2, &[2, 1], &[1, 1]));
        it.str("raw.b").tensor("FloatStorage", "0", 6, (0, &[3, 2], &[1, 3]))
    });
    let checkpoint = open(torch_file(&pickle, &[&floats([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])])).unwrap();
    let ema = checkpoint.with_prefix("ema.");
    assert_eq!(ema.names(), ["a"]);
    assert_eq!(ema.info("a").unwrap().shape, [6]);
    // The same storage, shared, at an offset, and by columns.
    assert_eq!(f32s(&checkpoint, "raw.a"), [3.0, 4.0]);
    let rows = |first, count| checkpoint.rows("raw.b", first, count, &Device::Cpu);
    assert_eq!(rows(1, 2).unwrap().to_vec2::<f32>().unwrap(), [[2.0, 5.0], [3.0, 6.0]]);
    assert_eq!(rows(3, 0).unwrap().dims(), [0, 2]);
    refused(rows(2, 2), "`raw.b`: expected rows below 3, got 2..4");
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
        let it = it.str("x").global("torch._utils", "_rebuild_tensor_v3").op(b"((").str("storage");
        let it = it.global("torch.storage", "UntypedStorage").str("0").str("cpu").int(8).op(b"tQ");
        let it = it.int(1).ints(&[1]).ints(&[1]).op(b"\x89").no_hooks();
        it.global("torch", "float32").op(b"tR")
    });
    let checkpoint = open(torch_file(&pickle, &[&floats([1.0, 2.0])])).unwrap();
    assert_eq!(f32s(&checkpoint, "x"), [2.0]);
}

#[test]
fn unknown_objects_are_harmless_beside_the_tensors_and_named_among_them() {
    let beside = Pickle::new().op(b"}(").str("callbacks").op(b"cos\nsystem\n(\x8c\x0btouch ownedtR");
    let beside = beside.str("state_dict").op(b"}").str("w").tensor("FloatStorage", "0", 1, (0, &[1], &[1]));
    let beside = beside.op(b"su").end();
    assert_eq!(open(torch_file(&beside, &[&floats([1.0])])).unwrap().names(), ["w"]);

    let forbidden = |outcome: Result<Checkpoint, FileError>, name: &str, object: &str| {
        let reason =
            format!("`{name}`: it refers to `{object}`, which is not loaded because it could run code");
        refused(outcome, &reason);
    };
    let bad = |code: &'static [u8]| with_entries(move |it| it.str("bad").op(code));
    forbidden(bad(b"cos\nsystem\n(\x8c\x02lstR"), "bad", "os.system");
    forbidden(bad(b"cm\nC\n)\x81}b"), "bad", "m.C");
    forbidden(bad(b"cm\nC\n"), "bad", "m.C");
    // As the state dict itself, as a hook, as a storage's class.
    let whole = Pickle::new().op(b"}").str("state_dict").global("m", "C").op(b")Rs").end();
    forbidden(open(torch_file(&whole, &[])), "state_dict", "m.C");
    let hook = with_entries(|it| {
        let it = it.str("h").global("torch._utils", "_rebuild_parameter").op(b"(");
        it.tensor("FloatStorage", "0", 4, (0, &[1], &[1])).op(b"\x88").global("m", "C").op(b")RtR")
    });
    forbidden(hook, "h", "m.C");
    let class = with_entries(|it| it.str("s").tensor("load", "0", 4, (0, &[1], &[1])));
    forbidden(class, "s", "torch.load");
    let module = Pickle::new().global("models", "Net").op(b")\x81}b").end();
    refused(open(torch_file(&module, &[])), "`models.Net`");
}

#[test]
fn entries_that_are_no_tensors() {
    let one = |it: Pickle| it.str("x").tensor("FloatStorage", "0", 4, (0, &[1], &[1]));
    refused(with_entries(|it| it.str("n").int(1)), "`n`: expected a tensor, got an integer");
    refused(with_entries(|it| it.int(1).int(1)), "expected a string as its name");
    refused(with_entries(|it| it.str(&"k".repeat(2000)).int(1)), "2000 bytes");
    refused(with_entries(|it| one(one(it))), "occurs twice");
    let views: [(View<'_>, &str); 10] = [
        ((1, &[4], &[1]), "leaves its storage of 4 elements"),
        ((i64::MAX, &[1], &[1]), "leaves its storage"),
        ((-1, &[1], &[1]), "-1 is not a size"),
        ((0, &[-1], &[1]), "-1 is not a size"),
        ((0, &[2], &[-1]), "-1 is not a size"),
        ((0, &[2], &[i64::MAX]), "leaves its storage"),
        ((0, &[i64::MAX, i64::MAX, 0], &[1, 1, 1]), "too many elements"),
        ((0, &[1 << 40], &[0]), "made of a storage of 4"),
        ((0, &[1], &[]), "1 dimensions and 0 strides"),
        ((0, &[1; 65], &[1; 65]), "65 dimensions"),
    ];
    for (view, part) in views {
        refused(with_entries(|it| it.str("x").tensor("FloatStorage", "0", 4, view)), part);
    }
    for (class, key, count, part) in [
        ("FloatStorage", "0", 5, "needs 20 bytes"),
        ("FloatStorage", "0", -1, "impossible size"),
        ("FloatStorage", "0", i64::MAX, "impossible size"),
        ("FloatStorage", "../0", 4, "not in the file"),
        ("CharStorage", "0", 4, "`x`: unsupported element type CharStorage"),
    ] {
        refused(with_entries(|it| it.str("x").tensor(class, key, count, (0, &[1], &[1]))), part);
    }
    let empty = Pickle::new().op(b"}").str("epoch").int(1).op(b"s").end();
    refused(open(torch_file(&empty, &[])), "no tensors");
}

#[test]
fn a_negated_view_is_refused_and_not_misread() {
    let negated = with_entries(|it| {
        let it = it.str("x").global("torch._utils", "_rebuild_tensor_v2").op(b"(");
        let it = it.storage("FloatStorage", "0", 4).int(0).ints(&[1]).ints(&[1]).op(b"\x89").no_hooks();
        it.op(b"}").str("neg").op(b"\x88stR")
    });
    refused(negated, "hooks or marks");
}

/// Entries whose directory lies are tested with arrays; here a part of one is read.
#[test]
fn compressed_archives_are_inflated_up_to_their_declared_size() {
    let pickle = lightning(|it| it.str("x").tensor("FloatStorage", "0", 1000, (500, &[2], &[1])));
    let storage = floats((0..1000).map(|i| i as f32));
    let entries = [deflated("a/data.pkl", &pickle), deflated("a/data/0", &storage)];
    assert_eq!(f32s(&open(zip(&entries)).unwrap(), "x"), [500.0, 501.0]);
    let more = deflated("a/data/0", &[0; 1 << 20]);
    for (entry, part) in [
        (ZipEntry { size: 4000, ..more }, "continues after the 4000 bytes"),
        (ZipEntry { size: 4001, ..entries[1].clone() }, "ends before the 4001 bytes"),
        (ZipEntry { crc: 1, ..entries[1].clone() }, "checksum"),
    ] {
        let file = open(zip(&[entries[0].clone(), entry])).unwrap();
        refused(file.tensor("x", &Device::Cpu), part);
    }
}

#[test]
fn archives_that_contradict_themselves() {
    let pickle = lightning(|it| it.str("x").tensor("FloatStorage", "0", 1, (0, &[1], &[1])));
    let (good, storage) = (stored("a/data.pkl", &pickle), stored("a/data/0", &floats([1.0])));
    let cases: [(&[ZipEntry], &str); 6] = [
        (&[], "expected one `<root>/data.pkl`"),
        (&[stored("a/b/data.pkl", &pickle)], "expected one"),
        (&[good.clone(), stored("b/data.pkl", &pickle)], "expected one"),
        (&[good.clone(), storage.clone(), stored("a/byteorder", b"big")], "big-endian"),
        (&[ZipEntry { crc: 1, ..good.clone() }, storage.clone()], "checksum"),
        (&[good.clone(), ZipEntry { crc: 1, ..storage.clone() }], "checksum"),
    ];
    for (entries, part) in cases {
        refused(open(zip(entries)).and_then(|it| it.tensor("x", &Device::Cpu)), part);
    }
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
    let (start, bytes) = (at, directory.len() as u64);
    let end = [directory, zip64_end(start + bytes, [3, 3, bytes, start])].concat();
    file.seek(SeekFrom::Start(start)).unwrap();
    file.write_all(&end).unwrap();
    drop(file);

    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(f32s(&checkpoint, "x"), [3.0, 4.0]);
}
