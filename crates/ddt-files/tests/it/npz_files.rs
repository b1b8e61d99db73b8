//! Files of arrays: what several writers make of them, and files that lie. Each of those is an error that says what
//! is wrong, and costs little memory.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::DType;
use ddt_files::FileError;
use ddt_files::npz::{ArrayData, NpzFile, write_npz};
use proptest::prelude::*;

use crate::builders::{ZipEntry, array, deflated, npy, refused, stored, zip};

fn file(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("it.npz");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A small file like the reference batches: images and statistics, deflated as `np.savez_compressed` does.
#[test]
fn a_reference_batch_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..5 * 4 * 6 * 3).map(|it| (it * 7 % 256) as u8).collect();
    let doubles = |values: &[f64]| values.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>();
    let entries: Vec<(&str, Vec<u8>)> = vec![
        ("arr_0.npy", array("|u1", "(5, 4, 6, 3)", &pixels)),
        ("mu.npy", array("<f8", "(3,)", &doubles(&[1.0, 2.0, 3.0]))),
        ("sigma.npy", array("<f8", "(2, 2)", &doubles(&[1.0, 0.5, 0.5, 2.0]))),
        ("notes.txt", b"no array".to_vec()),
    ];
    for pack in [stored, deflated] {
        let bytes = zip(&entries.iter().map(|(name, content)| pack(name, content)).collect::<Vec<_>>());
        let npz = NpzFile::open(file(folder.path(), &bytes)).unwrap();
        assert_eq!(npz.names().collect::<Vec<_>>(), ["arr_0", "mu", "sigma"]);
        let images = npz.array("arr_0").unwrap();
        images.expect_dtype(DType::U8).unwrap();
        images.expect_shape(&[None, Some(4), Some(6), Some(3)]).unwrap();
        for range in [0..5, 0..0, 2..4, 4..5] {
            let mut rows = images.rows(range.clone()).unwrap();
            let mut buffer = vec![0; 2 * rows.row_bytes() + 1];
            let mut read = Vec::new();
            loop {
                let now = rows.read(&mut buffer).unwrap();
                if now == 0 {
                    break;
                }
                read.extend_from_slice(&buffer[..now * rows.row_bytes()]);
            }
            assert_eq!(read, pixels[range.start * 72..range.end * 72]);
        }
        assert_eq!(npz.array("mu").unwrap().f64_values().unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(npz.array("sigma").unwrap().f64_values().unwrap(), [1.0, 0.5, 0.5, 2.0]);
        refused(npz.array("mu_s"), "no array `mu_s`; it has arr_0, mu, sigma");
    }
}

#[test]
fn npy_files_of_all_versions_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let header = "{'descr': '<i4', 'fortran_order': True, 'shape': (2, 2), }";
    let data: Vec<u8> = [1i32, 3, 2, 4].iter().flat_map(|it| it.to_le_bytes()).collect();
    for version in [1, 2, 3] {
        let npz = NpzFile::open(file(folder.path(), &npy(version, header, &data))).unwrap();
        let only = npz.array("arr_0").unwrap();
        assert_eq!(only.f64_values().unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(only.i64_values().unwrap(), [1, 2, 3, 4]);
        refused(only.rows(0..1), "numpy.ascontiguousarray");
    }
}

#[test]
fn every_type_and_order_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let whole: [(&str, &[u8], i64); 4] = [
        ("|u1", &[255], 255),
        ("<i4", &(-5i32).to_le_bytes(), -5),
        ("<i8", &(1i64 << 40).to_le_bytes(), 1 << 40),
        ("<i8", &(-3i64).to_le_bytes(), -3),
    ];
    for (descr, bytes, value) in whole {
        let npz = NpzFile::open(file(folder.path(), &array(descr, "(1,)", bytes))).unwrap();
        let array = npz.array("arr_0").unwrap();
        assert_eq!(
            (array.i64_values().unwrap(), array.f64_values().unwrap()),
            (vec![value], vec![value as f64])
        );
    }
    let real: [(&str, &[u8], f64); 4] = [
        ("<f2", &0x4500u16.to_le_bytes(), 5.0),
        ("<f2", &0x0001u16.to_le_bytes(), 2f64.powi(-24)),
        ("<f4", &1.5f32.to_le_bytes(), 1.5),
        ("<f8", &(-0.25f64).to_le_bytes(), -0.25),
    ];
    for (descr, bytes, value) in real {
        let npz = NpzFile::open(file(folder.path(), &array(descr, "()", bytes))).unwrap();
        let array = npz.array("arr_0").unwrap();
        assert_eq!(array.f64_values().unwrap(), [value]);
        refused(array.i64_values(), &format!("expected whole numbers, got {descr}"));
    }
    // Element (i, j, k) = 100 i + 10 j + k of (2, 1, 3), the first index fastest.
    let header = "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 1, 3), }";
    let npz = NpzFile::open(file(folder.path(), &npy(1, header, &[0, 100, 1, 101, 2, 102]))).unwrap();
    assert_eq!(npz.array("arr_0").unwrap().i64_values().unwrap(), [0, 1, 2, 100, 101, 102]);
}

/// An implementation that is not ours reads what we write, checksums included.
#[test]
fn others_read_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics.npz");
    let mu = [0.25, -1.0, 3.5];
    write_npz(&path, &[("mu", &[3], ArrayData::F64(&mu)), ("n", &[], ArrayData::I64(&[7]))]).unwrap();
    let first = std::fs::read(&path).unwrap();
    let mut archive = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
    let mut content = Vec::new();
    std::io::copy(&mut archive.by_name("mu.npy").unwrap(), &mut content).unwrap();
    let data: Vec<u8> = mu.iter().flat_map(|it| it.to_le_bytes()).collect();
    assert_eq!(content.len(), 128 + 24);
    assert_eq!(content[128..], data);
    assert_eq!(archive.len(), 2);

    write_npz(&path, &[("mu", &[3], ArrayData::F64(&mu)), ("n", &[], ArrayData::I64(&[7]))]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    for (name, shape, values) in [
        ("", &[3][..], &mu[..]),
        ("a/b", &[3], &mu),
        ("a", &[4], &mu),
        ("a", &[usize::MAX, 9], &mu),
        ("a", &[], &mu),
    ] {
        let error = write_npz(&path, &[(name, shape, ArrayData::F64(values))]).unwrap_err();
        assert!(matches!(error, FileError::Invalid { .. }), "{error}");
    }
    let twice = [("a", &[3][..], ArrayData::F64(&mu)); 2];
    assert!(matches!(write_npz(&path, &twice), Err(FileError::Invalid { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), first);
    let missing = write_npz(folder.path().join("missing/a.npz"), &[]).unwrap_err();
    assert!(matches!(missing, FileError::Io { .. }), "{missing}");
}

/// A zip64 file.
static WIDE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.npz");
    write_npz(&path, &[("a", &[2], ArrayData::F64(&[1.0, 2.0])), ("b", &[1], ArrayData::U8(&[9]))]).unwrap();
    std::fs::read(&path).unwrap()
});

/// Reads everything that a file has, a few rows at a time.
fn read_all(folder: &Path, bytes: &[u8]) -> Result<usize, FileError> {
    let npz = NpzFile::open(file(folder, bytes))?;
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

/// Expects the error of a file that is read as a whole.
#[track_caller]
fn lie(bytes: &[u8], expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let outcome = read_all(folder.path(), bytes);
    assert!(outcome.as_ref().is_err_and(|it| it.to_string().contains("it.npz")), "{outcome:?}");
    refused(outcome, expected);
}

fn doubles(count: usize) -> Vec<u8> {
    array("<f8", &format!("({count},)"), &vec![1; 8 * count])
}

#[test]
fn types_that_are_not_read_are_named() {
    for descr in ["|O", "<U12", "|S3", ">f8", "<c16", "|b1"] {
        lie(&zip(&[stored("a.npy", &array(descr, "(1,)", &[0; 48]))]), descr);
    }
    let records = npy(1, "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }", &[0; 8]);
    lie(&records, r#"its type is [["a","<f8"]]"#);
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
        lie(&array("<f8", shape, &data), "48 bytes of numbers");
        lie(&zip(&[deflated("a.npy", &array("<f8", shape, &data))]), "48 bytes of numbers");
    }
    lie(&array("<f8", "(99999999999999999999,)", &data), "header is malformed");
    // No bytes are no numbers, but rows that fit nowhere.
    lie(&array("<f8", "(0, 1152921504606846976, 1152921504606846976)", &[]), "do not fit in memory");
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(read_all(folder.path(), &array("<f8", "(1152921504606846976, 0)", &[])).unwrap(), 0);
}

#[test]
fn headers_that_are_cut_or_too_long_are_errors() {
    lie(b"\x93NUMPY", "cut short");
    lie(b"\x93NUMPY\x01\x00\x76", "cut short");
    lie(&[b"\x93NUMPY\x09\x00".as_slice(), &[0; 90]].concat(), "npy version 9.0");
    lie(&[b"\x93NUMPY\x02\x00\xff\xff\xff\xff".as_slice(), &[b' '; 90]].concat(), "the limit is 65536");
    lie(&doubles(3)[..40], "ends after its 40 bytes");
    lie(&npy(1, "not a dictionary", &[]), "header is malformed");
}

#[test]
fn files_of_other_kinds_are_named() {
    lie(b"", "neither npz nor npy");
    lie(b"GIF89a not an array", "neither npz nor npy");
    let folder = tempfile::tempdir().unwrap();
    refused(NpzFile::open(folder.path()), "expected a regular file");
    assert!(matches!(NpzFile::open(folder.path().join("absent")), Err(FileError::Io { .. })));
}

#[test]
fn entries_that_lie_are_errors() {
    let content = doubles(4);
    let it = || stored("a.npy", &content);
    /// A change of an entry, and the errors of a stored and of a deflated one.
    type Case = (fn(&mut ZipEntry), &'static str, &'static str);
    let cases: [Case; 10] = [
        (|it| it.crc ^= 1, "checksum", "checksum"),
        (|it| it.size += 1, "two sizes", "bytes of numbers"),
        (|it| it.size = u32::MAX - 1, "two sizes", "cannot inflate"),
        (|it| it.packed_size = 1 << 30, "two sizes", "overlaps"),
        (|it| it.method = 12, "expected stored or deflated", "expected stored or deflated"),
        (|it| it.flags = 1, "encrypted", "encrypted"),
        (|it| it.local_name = "b.npy".to_owned(), "another name", "another name"),
        (|it| it.local_name = "b".repeat(60_000), "another name", "another name"),
        (|it| it.offset = Some(u32::MAX - 1), "is complete", "is complete"),
        (|it| it.offset = Some(3), "is complete", "is complete"),
    ];
    for (change, of_stored, of_deflated) in cases {
        for (mut entry, expected) in [(it(), of_stored), (deflated("a.npy", &content), of_deflated)] {
            change(&mut entry);
            lie(&zip(&[entry]), expected);
        }
    }
    lie(&zip(&[it(), it()]), "two entries have the same name");
    // Both begin at the same place.
    lie(&zip(&[it(), ZipEntry { name: "b.npy".to_owned(), offset: Some(0), ..it() }]), "another name");
    // The first reaches into the second.
    let long = ZipEntry { packed_size: it().size + 20, size: it().size + 20, ..it() };
    lie(&zip(&[long, stored("b.npy", &content)]), "overlaps");
    let whole = zip(&[it()]);
    lie(&whole[..whole.len() - 1], "is complete");
}

#[test]
fn bombs_do_not_go_off() {
    // 40 million zeros in 40 thousand bytes are read in rows; what states more is refused at once.
    let zeros = array("|u1", "(40000, 1000)", &vec![0; 40_000_000]);
    let honest = deflated("a.npy", &zeros);
    assert!(honest.packed.len() < 50_000);
    let folder = tempfile::tempdir().unwrap();
    let npz = NpzFile::open(file(folder.path(), &zip(&[honest]))).unwrap();
    let mut rows = npz.array("a").unwrap().rows(0..40_000).unwrap();
    let mut buffer = vec![1; 1000];
    while rows.left() > 0 {
        rows.read(&mut buffer).unwrap();
        assert!(buffer.iter().all(|it| *it == 0));
    }
    // It continues after the size that it states.
    let short = array("|u1", "(3, 1000)", &[0; 3000]);
    let mut more = deflated("a.npy", &[short.clone(), vec![0; 9000]].concat());
    more.size = short.len() as u32;
    lie(&zip(&[more]), "continues after");
    let mut less = deflated("a.npy", &short[..2000]);
    less.size = short.len() as u32;
    lie(&zip(&[less]), "ends before");
    let mut broken = deflated("a.npy", &short);
    broken.packed[0] = 0xff;
    lie(&zip(&[broken]), "cannot be read");
}

#[test]
fn what_is_not_to_be_had_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.npz");
    write_npz(&path, &[("a", &[3, 2], ArrayData::U8(&[0; 6]))]).unwrap();
    let npz = NpzFile::open(&path).unwrap();
    let array = npz.array("a").unwrap();
    refused(array.rows(1..4), "`a`: expected rows within 1..4, got 3 rows");
    refused(array.expect_shape(&[Some(2048)]), "expected shape (2048,), got [3, 2]");
    refused(array.expect_dtype(DType::F64), "expected type <f8, got |u1");
    refused(array.rows(0..3).unwrap().read(&mut [0]), "at least 2 bytes, got 1");
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

    #[test]
    fn arrays_survive_the_round_trip(
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
        singles in proptest::collection::vec(-1e6f32..1e6, 0..40),
        whole in proptest::collection::vec(any::<i32>(), 0..40),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it.npz");
        write_npz(&path, &[
            ("a", &[bytes.len(), 1], ArrayData::U8(&bytes)),
            ("b", &[1, singles.len()], ArrayData::F32(&singles)),
            ("c", &[whole.len()], ArrayData::I32(&whole)),
        ]).unwrap();
        let npz = NpzFile::open(&path).unwrap();
        let values = |name| npz.array(name).unwrap().f64_values().unwrap();
        prop_assert_eq!(values("a"), bytes.iter().map(|&it| f64::from(it)).collect::<Vec<_>>());
        prop_assert_eq!(values("b"), singles.iter().map(|&it| f64::from(it)).collect::<Vec<_>>());
        prop_assert_eq!(values("c"), whole.iter().map(|&it| f64::from(it)).collect::<Vec<_>>());
    }
}
