//! Damaged and malicious files: a value or a typed error, in bounded memory, without a panic.

use candle_core::Device;
use ddt_files::{Checkpoint, FileError};
use proptest::prelude::*;

use crate::torch_builder::{Pickle, floats, legacy_file, lightning, torch_file};
use crate::zip_builder::{ZipEntry, deflated, zip};

/// Opens and reads everything there is.
fn read_all(bytes: Vec<u8>) -> Result<usize, FileError> {
    let checkpoint = Checkpoint::from_bytes(bytes, "hostile")?;
    for name in checkpoint.names() {
        let info = checkpoint.info(name).expect("a listed name has an entry");
        let tensor = checkpoint.tensor(name, &Device::Cpu)?;
        assert_eq!((tensor.dtype(), tensor.dims()), (info.dtype, info.shape.as_slice()));
    }
    Ok(checkpoint.names().len())
}

#[track_caller]
fn refused(bytes: Vec<u8>, part: &str) {
    let error = read_all(bytes).unwrap_err().to_string();
    assert!(error.contains(part), "expected {part:?} in {error:?}");
}

fn small_torch() -> Vec<u8> {
    let pickle = lightning(|it| {
        it.str("a")
            .tensor("FloatStorage", "0", 6, (0, &[2, 3], &[3, 1]))
            .str("b")
            .tensor("FloatStorage", "0", 6, (0, &[3, 2], &[1, 3]))
            .str("c")
            .tensor("BFloat16Storage", "1", 2, (1, &[], &[]))
    });
    torch_file(&pickle, &[&floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), &[0x80, 0x3f, 0, 0x40]])
}

fn small_legacy() -> Vec<u8> {
    let pickle = lightning(|it| {
        it.str("a").tensor("FloatStorage", "k", 6, (0, &[3, 2], &[1, 3])).str("b").tensor(
            "LongStorage",
            "l",
            1,
            (0, &[], &[]),
        )
    });
    legacy_file(&pickle, &[("k", 6, &floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])), ("l", 1, &[7; 8])])
}

fn small_safetensors() -> Vec<u8> {
    let header = br#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend([1; 16]);
    bytes
}

fn python_file() -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/protocol5.ckpt", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for whole in [small_torch(), small_legacy(), small_safetensors(), python_file()] {
        assert!(read_all(whole.clone()).is_ok());
        for len in 0..whole.len() {
            assert!(read_all(whole[..len].to_vec()).is_err(), "{len} of {} bytes", whole.len());
        }
    }
}

#[test]
fn a_pickle_cut_anywhere_is_an_error() {
    let pickle = lightning(|it| it.str("a").tensor("FloatStorage", "0", 1, (0, &[1], &[1])));
    let storage = floats([1.0]);
    assert!(read_all(torch_file(&pickle, &[&storage])).is_ok());
    for len in 0..pickle.len() {
        let error = read_all(torch_file(&pickle[..len], &[&storage])).unwrap_err();
        assert!(error.to_string().contains("invalid pickle"), "{error}");
    }
}

#[test]
fn any_changed_byte_is_a_value_or_an_error() {
    for whole in [small_torch(), small_legacy(), small_safetensors(), python_file()] {
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                // Either is fine; a panic or an endless loop is not.
                let _ = read_all(bytes);
            }
        }
    }
}

#[test]
fn values_that_contain_themselves() {
    // A dictionary that is its own state dict, and a tuple of itself by way of a dictionary.
    let own = Pickle::new().op(b"}q\x00").str("state_dict").op(b"h\x00s").end();
    assert!(read_all(torch_file(&own, &[])).is_err());
    let tuple = Pickle::new().op(b"}q\x00").str("k").op(b"h\x00\x85s").end();
    refused(torch_file(&tuple, &[]), "no tensors");
    // A parameter around itself.
    let parameter = lightning(|it| {
        let it = it.str("p").global("torch._utils", "_rebuild_parameter").op(b"q\x01(");
        (0..9).fold(it, |it, _| it.op(b"h\x01(")).op(b"t").op(&b"R\x88}tR".repeat(9)).op(b"\x88}tR")
    });
    assert!(read_all(torch_file(&parameter, &[])).is_err());
}

#[test]
fn deep_nesting_needs_no_stack() {
    // A list in a list in a list; then a dictionary in a dictionary.
    let lists = Pickle::new().op(&b"]".repeat(500_000)).op(&b"a".repeat(499_999)).end();
    assert!(read_all(torch_file(&lists, &[])).is_err());
    let tuples = Pickle::new().op(b")").op(&b"\x85".repeat(1_000_000)).end();
    assert!(read_all(torch_file(&tuples, &[])).is_err());
    let marks = Pickle::new().op(&b"(".repeat(1_000_000)).end();
    refused(torch_file(&marks, &[]), "the limit is");
}

#[test]
fn shared_values_do_not_multiply() {
    // Doubling thirty times by way of the memo: 2^30 items if anybody copied them.
    let head = Pickle::new().op(b"}").str("k").op(b")");
    let doubled = (0..30u8).fold(head, |it, i| it.op(&[b'q', i, b'h', i, 0x86])).op(b"s").end();
    refused(torch_file(&doubled, &[]), "no tensors");

    // One large group under very many names.
    let group = (0..1000).fold(Pickle::new().op(b"}}q\x00("), |it, i| {
        it.str(&format!("t{i}")).tensor("FloatStorage", "0", 1, (0, &[1], &[1]))
    });
    let group = group.op(b"u0(");
    let many = (0..1000).fold(group, |it, i| it.str(&format!("g{i}")).op(b"h\x00")).op(b"u").end();
    refused(torch_file(&many, &[&floats([1.0])]), "the number of tensors is 65537");
}

#[test]
fn bombs_are_not_inflated() {
    let bomb = deflated("a/data.pkl", &vec![b']'; 80 << 20]);
    assert!(bomb.packed.len() < 1 << 20);
    refused(zip(std::slice::from_ref(&bomb)), "the size of data.pkl is 83886080, the limit is");
    let liar = ZipEntry { size: 10, ..bomb };
    refused(zip(&[liar]), "continues after the 10 bytes");
}

#[test]
fn counts_in_the_end_record_are_not_believed() {
    let whole = small_torch();
    let end = whole.len() - 22;
    for count in [0u16, 1, 2, 4, 0xfffe, 0xffff] {
        let mut bytes = whole.clone();
        bytes[end + 10..end + 12].copy_from_slice(&count.to_le_bytes());
        assert!(read_all(bytes).is_err(), "{count}");
    }
    // A zip64 record that claims everything there is.
    let mut bytes = whole[..end].to_vec();
    let record = bytes.len() as u64;
    bytes.extend(b"PK\x06\x06");
    bytes.extend([0xff; 52]);
    bytes.extend(b"PK\x06\x07\x00\x00\x00\x00");
    bytes.extend(record.to_le_bytes());
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(b"PK\x05\x06\x00\x00\x00\x00");
    bytes.extend([0xff; 12]);
    bytes.extend([0; 2]);
    refused(bytes, "the number of zip entries is 18446744073709551615, the limit is");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read_all(bytes);
    }

    #[test]
    fn random_pickles(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_all(torch_file(&bytes, &[]));
    }

    #[test]
    fn plausible_pickles(ops in prop::collection::vec(prop::sample::select(PIECES), 0..60)) {
        let pickle = ops.into_iter().fold(Pickle::new(), Pickle::op).end();
        let _ = read_all(torch_file(&pickle, &[&floats([1.0, 2.0])]));
        let _ = read_all(legacy_file(&pickle, &[("0", 2, &floats([1.0, 2.0]))]));
    }

    #[test]
    fn random_headers(json in "[\\[\\]{}\",:a-c0-9_\\-. ]{0,200}") {
        let mut bytes = (json.len() as u64 + 1).to_le_bytes().to_vec();
        bytes.push(b'{');
        bytes.extend(json.as_bytes());
        let _ = read_all(bytes);
    }

    #[test]
    fn mutated_files(
        which in 0..4usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut bytes = [small_torch(), small_legacy(), small_safetensors(), python_file()][which].clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = read_all(bytes);
    }

    /// Edits inside the pickle with a checksum to match, so that they reach the machine.
    #[test]
    fn mutated_pickles(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut pickle = lightning(|it| {
            it.str("a").tensor("FloatStorage", "0", 2, (0, &[2, 1], &[1, 1])).str("b").tensor("FloatStorage", "0", 2, (1, &[], &[]))
        });
        for (at, value) in edits {
            let at = at.index(pickle.len());
            pickle[at] = value;
        }
        let _ = read_all(torch_file(&pickle, &[&floats([1.0, 2.0])]));
    }
}

/// Instructions and operands that fit together often enough to get far.
const PIECES: &[&[u8]] = &[
    b"(",
    b"t",
    b"R",
    b"Q",
    b"}",
    b"]",
    b")",
    b"u",
    b"s",
    b"a",
    b"e",
    b"0",
    b"2",
    b"b",
    b"N",
    b"\x81",
    b"\x85",
    b"\x86",
    b"\x89",
    b"\x94",
    b"K\x00",
    b"K\x01",
    b"K\x02",
    b"q\x01",
    b"h\x01",
    b"\x8c\x07storage",
    b"\x8c\x0astate_dict",
    b"\x8c\x010",
    b"\x8c\x03cpu",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nSize\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n)R",
    b"cos\nsystem\n",
];
