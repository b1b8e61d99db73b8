//! Damaged and malicious files: a value or a typed error, in bounded memory, without a panic.

use ddt_files::FileError;
use proptest::prelude::*;

use crate::builders::{
    Pickle, ZipEntry, deflated, floats, legacy_file, lightning, open, refused, torch_file, zip, zip64_end,
};

/// Opens and reads everything there is.
fn read_all(bytes: Vec<u8>) -> Result<usize, FileError> {
    let checkpoint = open(bytes)?;
    for name in checkpoint.names() {
        let info = checkpoint.info(name).expect("a listed name has an entry");
        let tensor = checkpoint.tensor(name, &candle_core::Device::Cpu)?;
        assert_eq!((tensor.dtype(), tensor.dims()), (info.dtype, info.shape.as_slice()));
    }
    Ok(checkpoint.names().len())
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
        let it = it.str("a").tensor("FloatStorage", "k", 6, (0, &[3, 2], &[1, 3]));
        it.str("b").tensor("LongStorage", "l", 1, (0, &[], &[]))
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

/// A file of each format, and one that Python's pickler wrote.
fn small_files() -> [Vec<u8>; 4] {
    let path = format!("{}/tests/data/protocol5.ckpt", env!("CARGO_MANIFEST_DIR"));
    [small_torch(), small_legacy(), small_safetensors(), std::fs::read(path).unwrap()]
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for whole in small_files() {
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
        refused(read_all(torch_file(&pickle[..len], &[&storage])), "invalid pickle");
    }
}

#[test]
fn any_changed_byte_is_a_value_or_an_error() {
    for whole in small_files() {
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
    refused(read_all(torch_file(&tuple, &[])), "no tensors");
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
    refused(read_all(torch_file(&marks, &[])), "the limit is");
}

#[test]
fn shared_values_do_not_multiply() {
    // Doubling thirty times by way of the memo: 2^30 items if anybody copied them.
    let head = Pickle::new().op(b"}").str("k").op(b")");
    let doubled = (0..30u8).fold(head, |it, i| it.op(&[b'q', i, b'h', i, 0x86])).op(b"s").end();
    refused(read_all(torch_file(&doubled, &[])), "no tensors");

    // One large group under very many names.
    let group = (0..1000).fold(Pickle::new().op(b"}}q\x00("), |it, i| {
        it.str(&format!("t{i}")).tensor("FloatStorage", "0", 1, (0, &[1], &[1]))
    });
    let group = group.op(b"u0(");
    let many = (0..1000).fold(group, |it, i| it.str(&format!("g{i}")).op(b"h\x00")).op(b"u").end();
    refused(read_all(torch_file(&many, &[&floats([1.0])])), "the number of tensors is 65537");
}

#[test]
fn a_dictionary_that_holds_itself_takes_no_time() {
    // By two names, so that there are 2^16 ways through 16 of it. The fuzzer found one that took a second.
    let itself = Pickle::new().op(b"}q\x00(").str("a").op(b"h\x00").str("b").op(b"h\x00u").end();
    refused(read_all(torch_file(&itself, &[])), "the number of nested entries is");
}

#[test]
fn bombs_are_not_inflated() {
    let bomb = deflated("a/data.pkl", &vec![b']'; 80 << 20]);
    assert!(bomb.packed.len() < 1 << 20);
    refused(read_all(zip(std::slice::from_ref(&bomb))), "the size of data.pkl is 83886080, the limit is");
    let liar = ZipEntry { size: 10, ..bomb };
    refused(read_all(zip(&[liar])), "continues after the 10 bytes");
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
    let bytes = [&whole[..end], &zip64_end(end as u64, [u64::MAX; 4])].concat();
    refused(read_all(bytes), "the number of zip entries is 18446744073709551615, the limit is");
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
    fn plausible_pickles(ops in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        let pieces: Vec<&[u8]> = PIECES.split(|byte| *byte == b' ').collect();
        let pickle = ops.iter().fold(Pickle::new(), |it, op| it.op(pieces[op.index(pieces.len())])).end();
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
        let mut bytes = small_files()[which].clone();
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
const PIECES: &[u8] = b"( t R Q } ] ) u s a e 0 2 b N \x81 \x85 \x86 \x89 \x94 K\x00 K\x01 K\x02 q\x01 h\x01 \
    \x8c\x07storage \x8c\x0astate_dict \x8c\x010 \x8c\x03cpu ctorch\nFloatStorage\n ctorch\nSize\n \
    ctorch._utils\n_rebuild_tensor_v2\n ctorch._utils\n_rebuild_parameter\n ccollections\nOrderedDict\n)R cos\nsystem\n";
