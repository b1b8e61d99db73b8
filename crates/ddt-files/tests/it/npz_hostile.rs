//! Files that lie. Each is an error that says what is wrong, and costs little memory.

use std::path::Path;
use std::sync::LazyLock;

use ddt_files::FileError;
use ddt_files::npz::{ArrayData, NpzFile, write_npz};
use proptest::prelude::*;

use crate::zip_builder::{ZipEntry, array, deflated, npy, stored, zip};

/// A zip64 file.
static WIDE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.npz");
    write_npz(&path, &[("a", &[2], ArrayData::F64(&[1.0, 2.0])), ("b", &[1], ArrayData::U8(&[9]))]).unwrap();
    std::fs::read(&path).unwrap()
});

/// Reads everything that a file has, a few rows at a time.
fn read_all(folder: &Path, bytes: &[u8]) -> Result<usize, FileError> {
    let path = folder.join("it.npz");
    std::fs::write(&path, bytes).unwrap();
    let npz = NpzFile::open(&path)?;
    let names: Vec<String> = npz.names().map(str::to_owned).collect();
    let mut count = 0;
    for name in names {
        let array = npz.array(&name)?;
        count += array.f64_values()?.len();
        let mut rows = array.rows(0..array.header().num_rows())?;
        let mut buffer = vec![0; (2 * rows.row_bytes()).min(1 << 20)];
        while rows.left() > 0 {
            rows.read(&mut buffer)?;
        }
    }
    Ok(count)
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let message = read_all(folder.path(), bytes).unwrap_err().to_string();
    assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    assert!(message.contains("it.npz"), "{message}");
}

fn doubles(count: usize) -> Vec<u8> {
    array("<f8", &format!("({count},)"), &vec![1; 8 * count])
}

#[test]
fn types_that_are_not_read_are_named() {
    for descr in ["|O", "<U12", "|S3", ">f8", "<c16", "|b1"] {
        refused(&zip(&[stored("a.npy", &array(descr, "(1,)", &[0; 48]))]), descr);
    }
    let records = npy(1, "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }", &[0; 8]);
    refused(&records, "[('a', '<f8')]");
}

#[test]
fn shapes_that_are_not_those_of_the_bytes_are_errors() {
    let data = [0; 48];
    for shape in [
        "(5,)",
        "(7,)",
        "(1152921504606846976,)",
        "(1152921504606846976, 1152921504606846976)",
        "(6, 1152921504606846976, 0)",
    ] {
        refused(&array("<f8", shape, &data), "48 bytes of numbers");
        refused(&zip(&[deflated("a.npy", &array("<f8", shape, &data))]), "48 bytes of numbers");
    }
    refused(&array("<f8", "(99999999999999999999,)", &data), "header is malformed");
    // No bytes are no numbers, but rows that fit nowhere.
    refused(&array("<f8", "(0, 1152921504606846976, 1152921504606846976)", &[]), "do not fit in memory");
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(read_all(folder.path(), &array("<f8", "(1152921504606846976, 0)", &[])).unwrap(), 0);
}

#[test]
fn headers_that_are_cut_or_too_long_are_errors() {
    refused(b"\x93NUMPY", "cut short");
    refused(b"\x93NUMPY\x01\x00\x76", "cut short");
    refused(&[b"\x93NUMPY\x09\x00".as_slice(), &[0; 90]].concat(), "npy version 9.0");
    refused(&[b"\x93NUMPY\x02\x00\xff\xff\xff\xff".as_slice(), &[b' '; 90]].concat(), "the limit is 65536");
    refused(&doubles(3)[..40], "ends after its 40 bytes");
    refused(&npy(1, "not a dictionary", &[]), "header is malformed");
}

#[test]
fn files_of_other_kinds_are_named() {
    refused(b"", "neither npz nor npy");
    refused(b"GIF89a not an array", "neither npz nor npy");
    let folder = tempfile::tempdir().unwrap();
    let error = NpzFile::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("expected a regular file"), "{error}");
    assert!(matches!(NpzFile::open(folder.path().join("absent")), Err(FileError::Io { .. })));
}

#[test]
fn entries_that_lie_are_errors() {
    let content = doubles(4);
    let it = || stored("a.npy", &content);
    let of = |change: fn(&mut ZipEntry)| {
        let (mut entry, mut packed) = (it(), deflated("a.npy", &content));
        change(&mut entry);
        change(&mut packed);
        (zip(&[entry]), zip(&[packed]))
    };
    let (a, b) = of(|it| it.crc ^= 1);
    refused(&a, "checksum");
    refused(&b, "checksum");
    let (a, b) = of(|it| it.size += 1);
    refused(&a, "two sizes");
    refused(&b, "bytes of numbers");
    let (a, b) = of(|it| it.packed_size = 1 << 30);
    refused(&a, "two sizes");
    refused(&b, "overlaps");
    let (a, b) = of(|it| it.method = 12);
    refused(&a, "expected stored or deflated");
    refused(&b, "expected stored or deflated");
    refused(&of(|it| it.flags = 1).0, "encrypted");
    refused(&of(|it| it.local_name = "b.npy".to_owned()).0, "another name");
    refused(&of(|it| it.local_name = "b".repeat(60_000)).1, "another name");
    refused(&of(|it| it.offset = Some(u32::MAX - 1)).0, "is complete");
    refused(&of(|it| it.offset = Some(3)).0, "is complete");
    refused(&zip(&[it(), it()]), "two entries have the same name");
    // Both begin at the same place.
    refused(&zip(&[it(), ZipEntry { name: "b.npy".to_owned(), offset: Some(0), ..it() }]), "another name");
    // The first reaches into the second.
    let long = ZipEntry { packed_size: it().size + 20, size: it().size + 20, ..it() };
    refused(&zip(&[long, stored("b.npy", &content)]), "overlaps");
}

#[test]
fn bombs_do_not_go_off() {
    // 40 million zeros in 40 thousand bytes are read in rows; what states more is refused at once.
    let zeros = array("|u1", "(40000, 1000)", &vec![0; 40_000_000]);
    let honest = deflated("a.npy", &zeros);
    assert!(honest.packed.len() < 50_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.npz");
    std::fs::write(&path, zip(std::slice::from_ref(&honest))).unwrap();
    let npz = NpzFile::open(&path).unwrap();
    let mut rows = npz.array("a").unwrap().rows(0..40_000).unwrap();
    let mut buffer = vec![1; 1000];
    while rows.left() > 0 {
        rows.read(&mut buffer).unwrap();
        assert!(buffer.iter().all(|it| *it == 0));
    }
    refused(&zip(&[ZipEntry { size: u32::MAX - 1, ..honest.clone() }]), "cannot inflate");
    // It continues after the size that it states.
    let short = array("|u1", "(3, 1000)", &[0; 3000]);
    let mut more = deflated("a.npy", &[short.clone(), vec![0; 9000]].concat());
    more.size = short.len() as u32;
    refused(&zip(&[more]), "continues after");
    let mut less = deflated("a.npy", &short[..2000]);
    less.size = short.len() as u32;
    refused(&zip(&[less]), "ends before");
    let mut broken = deflated("a.npy", &short);
    broken.packed[0] = 0xff;
    refused(&zip(&[broken]), "cannot be read");
}

#[test]
fn what_is_not_to_be_had_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.npz");
    write_npz(&path, &[("a", &[3, 2], ArrayData::U8(&[0; 6]))]).unwrap();
    let npz = NpzFile::open(&path).unwrap();
    let array = npz.array("a").unwrap();
    let message = array.rows(1..4).unwrap_err().to_string();
    assert!(message.contains("`a`: expected rows within 1..4, got 3 rows"), "{message}");
    let message = array.expect_shape(&[Some(2048)]).unwrap_err().to_string();
    assert!(message.contains("expected shape (2048,), got [3, 2]"), "{message}");
    let message = array.expect_dtype(ddt_files::npz::Dtype::F64).unwrap_err().to_string();
    assert!(message.contains("expected type <f8, got |u1"), "{message}");
    let message = array.rows(0..3).unwrap().read(&mut [0]).unwrap_err().to_string();
    assert!(message.contains("at least 2 bytes, got 1"), "{message}");
}

#[test]
fn every_cut_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let narrow = zip(&[stored("a.npy", &doubles(2)), deflated("b.npy", &doubles(1))]);
    for whole in [WIDE.clone(), narrow, doubles(3)] {
        read_all(folder.path(), &whole).unwrap();
        for cut in 0..whole.len() {
            read_all(folder.path(), &whole[..cut]).unwrap_err();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_change_gives_values_or_an_error(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        wide: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = if wide { WIDE.clone() } else { zip(&[stored("a.npy", &doubles(2)), deflated("b.npy", &doubles(5))]) };
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        drop(read_all(folder.path(), &bytes));
    }

    #[test]
    fn any_bytes_give_values_or_an_error(start in 0usize..3, bytes: Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let start: &[u8] = [&b""[..], b"PK\x03\x04", b"\x93NUMPY\x01\x00"][start];
        drop(read_all(folder.path(), &[start, &bytes].concat()));
    }
}
