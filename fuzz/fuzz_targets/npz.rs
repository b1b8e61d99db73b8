//! Archives of arrays and single arrays: every array, its rows and its values.
#![no_main]

use ddt_files::{
    FileError,
    npz::{NpyArray, NpzFile},
};
use ddt_fuzz::{archive, planted, target};

fn read(array: &NpyArray<'_>) -> Result<(), FileError> {
    // As readers of statistics, labels and images do.
    if let Ok(values) = array.f64_values() {
        assert_eq!(values.len(), array.shape().iter().product::<usize>());
    }
    array.i64_values().ok();
    let count = array.shape().first().copied().unwrap_or(1);
    let mut rows = array.rows(count / 2..count)?;
    let mut buffer = vec![0; rows.row_bytes().min(1 << 20)];
    while rows.read(&mut buffer)? > 0 {}
    Ok(())
}

target!(4 << 20, 16 * 1040, |input: &[u8]| {
    let Ok(npz) = NpzFile::from_bytes(archive::file(input), "input") else { return };
    let arrays: Vec<NpyArray<'_>> = npz.names().filter_map(|it| npz.array(it).ok()).collect();
    arrays.iter().for_each(|it| drop(read(it)));
    planted(|| arrays.len() == 2);
});
