//! Pickles made of pieces that PyTorch writes, and what is read from a checkpoint.

use candle_core::Device;
use ddt_files::{Checkpoint, FileError};

/// Pieces of pickles, each a choice of one byte.
const PIECES: &[&[u8]] = &[
    b"}", b"]", b")", b"(", b"t", b"u", b"e", b"s", b"a", b"R", b"Q", b"N", b"\x88", b"\x89", b"\x85", b"\x86",
    b"\x87", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"0", b"1", b"2", b"b", b"\x94", b"\x93", b"\x81",
    b"K\x00", b"K\x01", b"K\x02", b"K\x03", b"M\x00\x01", b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8c\x0astate_dict", b"\x8c\x01w", b"\x8c\x010", b"\x8c\x011", b"\x8c\x03cpu", b"\x8c\x07storage",
    b"\x8c\x04u8_t", b"ctorch\nFloatStorage\n", b"ctorch\nBFloat16Storage\n", b"ctorch\nUntypedStorage\n",
    b"ctorch\nfloat8_e4m3fn\n", b"ctorch\nuint32\n", b"ctorch\nSize\n", b"ccollections\nOrderedDict\n)R",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    // A storage, and a tensor of two numbers in it.
    b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x10tQ",
    b"ctorch._utils\n_rebuild_tensor_v2\n((\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x10tQK\x00K\x02\x85K\x01\x85\x89}tR",
];

/// `0 | the pickle` or `1 | numbers of pieces`; any number without a piece is itself an instruction.
pub fn pickle(input: &[u8]) -> Vec<u8> {
    match input {
        [1, choices @ ..] => {
            let piece = |it: &u8| PIECES.get(usize::from(*it)).map_or(vec![*it], |piece| piece.to_vec());
            [b"\x80\x02".to_vec(), choices.iter().flat_map(piece).collect(), b".".to_vec()].concat()
        }
        [_, pickle @ ..] => pickle.to_vec(),
        [] => Vec::new(),
    }
}

/// Reads all of a checkpoint, and some rows of each tensor.
pub fn read_all(file: Vec<u8>) -> Result<Checkpoint, FileError> {
    let checkpoint = Checkpoint::from_bytes(file, "input")?;
    // Reading is a pure function of the tensor's entry: a few hundred show all there is to see.
    for name in checkpoint.names().into_iter().take(256) {
        let info = checkpoint.info(name).ok_or_else(|| FileError::not_found(checkpoint.path(), name))?;
        let Ok(tensor) = checkpoint.tensor(name, &Device::Cpu) else { continue };
        assert_eq!((tensor.dtype(), tensor.dims()), (info.dtype, info.shape.as_slice()));
        if let Some(&rows) = info.shape.first().filter(|it| **it > 0) {
            let last = checkpoint.rows(name, rows - 1, 1, &Device::Cpu);
            assert!(last.is_ok(), "the tensor is readable, its last row is not: {last:?}");
        }
    }
    Ok(checkpoint)
}
