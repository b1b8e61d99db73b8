//! Reading npz archives.

use std::path::{Path, PathBuf};

use ddt_files::FileError;
use ddt_files::npz::{ArrayData, Dtype, NpzFile, write_npz};
use proptest::prelude::*;

use crate::zip_builder::{array, deflated, npy, stored, zip};

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
        images.expect_dtype(Dtype::U8).unwrap();
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
        let error = npz.array("mu_s").unwrap_err().to_string();
        assert!(error.contains("no array `mu_s`; it has arr_0, mu, sigma"), "{error}");
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
        assert!(only.rows(0..1).unwrap_err().to_string().contains("numpy.ascontiguousarray"));
    }
    let number = NpzFile::open(file(folder.path(), &array("<f4", "()", &1.5f32.to_le_bytes()))).unwrap();
    assert_eq!(number.array("arr_0").unwrap().f64_values().unwrap(), [1.5]);
    let error = number.array("arr_0").unwrap().i64_values().unwrap_err().to_string();
    assert!(error.contains("expected whole numbers, got <f4"), "{error}");
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
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
