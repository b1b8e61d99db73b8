//! PyTorch's format before 1.6: what its versions write, and what is refused.

use ddt_files::{Checkpoint, Format};

use crate::builders::{Pickle, f32s, floats, legacy_file, lightning, open, refused, tensor};

/// Its tensors are compared with the other goldens.
#[test]
fn the_format_is_told_by_the_content() {
    let path = ddt_parity::golden("torch_legacy_expect").unwrap().beside("checkpoint").unwrap();
    assert_eq!(Checkpoint::open(path).unwrap().format(), Format::TorchLegacy);
}

#[test]
fn nested_dictionaries_and_everything_beside_them() {
    let two = |it: Pickle, name: &str| it.str(name).tensor("FloatStorage", "0", 4, (1, &[2], &[2]));
    let object = two(Pickle::new().op(b"}("), "w").str("epoch").int(3).str("sub").op(b"}(");
    let object = two(object, "a").str("deep").op(b"}(").int(7);
    let object = object.tensor("LongStorage", "1", 1, (0, &[], &[])).op(b"uu");
    // A module, which PyTorch refers to from outside the pickle, and a storage of a type that is left out.
    let object = object.str("net").op(b"(").str("module").global("m", "Net").op(b"NNtQ");
    let object = object.str("list").op(b"](").tensor("ComplexFloatStorage", "2", 1, (0, &[], &[])).op(b"eu");
    let bytes = legacy_file(
        &object.end(),
        &[("0", 4, &floats([1.0, 2.0, 3.0, 4.0])), ("2", 1, &[0; 8]), ("1", 1, &[5; 8])],
    );
    let checkpoint = open(bytes).unwrap();
    assert_eq!(checkpoint.names(), ["sub.a", "sub.deep.7", "w"]);
    assert_eq!(f32s(&checkpoint, "w"), [2.0, 4.0]);
    assert_eq!(f32s(&checkpoint, "sub.a"), [2.0, 4.0]);
    assert_eq!(tensor(&checkpoint, "sub.deep.7").to_scalar::<i64>().unwrap(), 0x0505_0505_0505_0505);
}

#[test]
fn other_spellings_of_old_versions() {
    // Python 2's strings, no hooks, and a part of a storage.
    let storage = |it: Pickle, view: &[u8]| {
        let it = it.op(b"(U\x07storage").global("torch", "FloatStorage").op(b"U\x010U\x03cpu").int(6);
        it.op(view).op(b"tQ")
    };
    let tensor = |it: Pickle, view: &[u8]| {
        let it = storage(it.global("torch._utils", "_rebuild_tensor").op(b"("), view);
        it.int(1).ints(&[2]).ints(&[1]).op(b"tR")
    };
    let object = tensor(Pickle::new().op(b"}(U\x01a"), b"N").op(b"U\x01b");
    let object = tensor(object, b"(U\x01vK\x02K\x03t").op(b"u").end();
    let checkpoint =
        open(legacy_file(&object, &[("0", 6, &floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))])).unwrap();
    assert_eq!(f32s(&checkpoint, "a"), [1.0, 2.0]);
    assert_eq!(f32s(&checkpoint, "b"), [3.0, 4.0]);
    for (view, problem) in [
        (b"(U\x01vK\x02K\x05t".as_slice(), "the view of its storage ends at 7 of 6"),
        (b"(U\x01vK\x02K\x02t", "shape [2] at offset 1 leaves its storage of 2"),
        (b"K\x00", "the view of its storage is not understood"),
    ] {
        let object = tensor(Pickle::new().op(b"}(U\x01a"), view).op(b"u").end();
        refused(open(legacy_file(&object, &[("0", 6, &floats([0.0; 6]))])), &format!("`a`: {problem}"));
    }
}

#[test]
fn pickles_longer_than_the_first_read() {
    let padding = "x".repeat(1 << 21);
    let object = Pickle::new().op(b"}(").str("note").str(&padding).str("w");
    let object = object.tensor("FloatStorage", "0", 1, (0, &[1], &[1])).op(b"u").end();
    assert_eq!(f32s(&open(legacy_file(&object, &[("0", 1, &floats([6.0]))])).unwrap(), "w"), [6.0]);
}

#[test]
fn refusals_say_what_is_wrong() {
    let object = lightning(|it| it.str("w").tensor("FloatStorage", "0", 2, (0, &[2], &[1])));
    let whole = legacy_file(&object, &[("0", 2, &floats([1.0, 2.0]))]);
    assert_eq!(f32s(&open(whole.clone()).unwrap(), "w"), [1.0, 2.0]);
    let problem = |bytes: Vec<u8>, part: &str| refused(open(bytes), part);
    let replaced = |from: &[u8], to: &[u8]| {
        let at = whole.windows(from.len()).position(|it| it == from).unwrap();
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    problem(replaced(b"little_endianq\x00\x88", b"little_endianq\x00\x89"), "big-endian");
    problem(replaced(b"M\xe9\x03.", b"M\xea\x03."), "expected protocol 1001");
    problem(legacy_file(&object, &[("0", 3, &floats([1.0; 3]))]), "expected 2 elements, got 3");
    problem(legacy_file(&object, &[("1", 2, &floats([1.0; 2]))]), "no tensor has");
    problem(legacy_file(&object, &[]), "storage `0` is not in the file");
    problem(whole[..whole.len() - 1].to_vec(), "cut short");
    let list = |entries: &dyn Fn(Pickle) -> Pickle| legacy_file(&lightning(entries), &[("0", 1, &[0; 8])]);
    problem(
        list(&|it| it.str("w").tensor("CharStorage", "0", 1, (0, &[], &[]))),
        "`w`: unsupported element type CharStorage",
    );
    problem(list(&|it| it.str("w").tensor("ComplexFloatStorage", "0", 1, (0, &[], &[]))), "`w`: unsupported");
    problem(
        list(&|it| it.str("w").global("os", "system").op(b"(").str("ls").op(b"tR")),
        "`w`: it refers to `os.system`",
    );
    let twice = |it: Pickle| {
        let it = it.str("w").tensor("FloatStorage", "0", 2, (0, &[], &[]));
        it.str("v").tensor("LongStorage", "0", 2, (0, &[], &[]))
    };
    problem(list(&twice), "described in two ways");
    // A whole network instead of its tensors.
    problem(legacy_file(&Pickle::new().global("models", "Net").op(b")\x81}b").end(), &[]), "`models.Net`");
}

/// The pickle of the magic number in protocol 2, as `legacy_file` writes it, in the others.
#[test]
fn every_protocol_is_known() {
    let object = lightning(|it| it.str("a").tensor("FloatStorage", "0", 2, (0, &[2], &[1])));
    let file = legacy_file(&object, &[("0", 2, &floats([1.0, 2.0]))]);
    let frame = b"\x95\x0d\0\0\0\0\0\0\0".as_slice();
    for (protocol, frame) in [(2, b"".as_slice()), (3, b""), (4, frame), (5, frame), (5, b"")] {
        let bytes = [&[0x80, protocol], frame, &file[2..]].concat();
        let checkpoint = open(bytes.clone()).unwrap();
        assert_eq!(checkpoint.format(), Format::TorchLegacy);
        assert_eq!(f32s(&checkpoint, "a"), [1.0, 2.0]);
        for cut in 0..bytes.len() {
            assert!(open(bytes[..cut].to_vec()).is_err(), "{cut} of {}", bytes.len());
        }
    }
    refused(open([b"\x80\x06", &file[2..]].concat()), "neither safetensors nor");
}
