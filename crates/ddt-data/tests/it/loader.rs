//! Delivery.

use std::{path::Path, sync::Arc};

use ddt_data::{
    DataError, ImageFolder, Limits, Loader, LoaderOptions, OnCorrupt, Sample, center_crop, read_rgb8,
};

use crate::images::{jpeg, write};

/// Sizes differ, so that decoding times do.
fn photos(root: &Path, count: u32) -> Arc<ImageFolder> {
    for i in 0..count {
        let bytes = jpeg(20 + i * 37 % 200, 20 + i * 53 % 200, i as u8);
        write(root, &format!("{}/{i:03}.jpg", i % 3), &bytes);
    }
    Arc::new(ImageFolder::open(root).unwrap())
}

#[test]
fn what_is_delivered_does_not_depend_on_threads_or_queue() {
    let root = tempfile::tempdir().unwrap();
    let folder = photos(root.path(), 24);
    // Repeats and any order are the caller's.
    let order: Vec<usize> = (0..40).map(|it| it * 7 % 24).collect();
    let expected: Vec<Sample> = order
        .iter()
        .map(|&index| {
            let whole = read_rgb8(&folder.path(index).unwrap(), &Limits::default()).unwrap();
            Sample { index, label: folder.label(index).unwrap(), pixels: center_crop(&whole, 32).unwrap() }
        })
        .collect();
    for (threads, queue) in [(1, 1), (2, 1), (2, 5), (7, 64)] {
        let options = LoaderOptions { queue, ..LoaderOptions::new(32, threads) };
        let loader = Loader::new(folder.clone(), order.clone(), options).unwrap();
        let got: Vec<Sample> = loader.map(Result::unwrap).collect();
        assert!(got == expected, "{threads} threads, queue of {queue}");
    }
}

#[test]
fn the_order_is_read_no_further_than_the_queue() {
    let root = tempfile::tempdir().unwrap();
    let folder = photos(root.path(), 3);
    let read = std::cell::Cell::new(0);
    let order = (0..1000).map(|it| {
        read.set(read.get() + 1);
        it % 3
    });
    let options = LoaderOptions { queue: 4, ..LoaderOptions::new(8, 2) };
    let mut loader = Loader::new(folder, order, options).unwrap();
    assert_eq!(read.get(), 4);
    assert!(loader.by_ref().take(10).all(|it| it.is_ok()));
    assert_eq!(read.get(), 14);
    // Dropped with a full queue.
}

#[test]
fn corrupt_files_fail_by_name_or_are_skipped_and_counted() {
    let root = tempfile::tempdir().unwrap();
    photos(root.path(), 6);
    let whole = jpeg(64, 64, 0);
    write(root.path(), "0/empty.jpg", b"");
    write(root.path(), "1/cut.jpg", &whole[..whole.len() / 2]);
    let folder = Arc::new(ImageFolder::open(root.path()).unwrap());
    let options = LoaderOptions::new(16, 2);

    let all: Vec<_> = Loader::new(folder.clone(), 0..folder.len(), options).unwrap().collect();
    assert_eq!(all.len(), 8);
    let errors: Vec<String> =
        all.iter().filter_map(|it| it.as_ref().err()).map(|it| it.to_string()).collect();
    assert!(
        errors.len() == 2 && errors[0].contains("empty.jpg") && errors[1].contains("cut.jpg"),
        "{errors:?}"
    );

    let options = LoaderOptions { on_corrupt: OnCorrupt::Skip, ..options };
    let order: Vec<usize> = (0..folder.len()).chain(0..folder.len()).collect();
    let mut loader = Loader::new(folder.clone(), order, options).unwrap();
    let delivered: Vec<usize> = loader.by_ref().map(|it| it.unwrap().index).collect();
    assert_eq!(delivered.len(), 12);
    assert_eq!((loader.skipped().count, loader.skipped().files.len()), (4, 4));
    assert!(loader.skipped().files[1].path.ends_with("1/cut.jpg"));
    assert!(loader.skipped().files[1].reason.contains("cut off"));

    // A file that is gone is not skipped.
    std::fs::remove_file(folder.path(0).unwrap()).unwrap();
    let mut loader = Loader::new(folder, [0], options).unwrap();
    assert!(matches!(loader.next(), Some(Err(DataError::Io { .. }))));
    assert!(loader.next().is_none() && loader.skipped().count == 0);
}

#[test]
fn wrong_options_and_indices_are_errors() {
    let root = tempfile::tempdir().unwrap();
    let folder = photos(root.path(), 2);
    let good = LoaderOptions::new(16, 1);
    for bad in [
        LoaderOptions { size: 0, ..good },
        LoaderOptions { size: 1 << 20, ..good },
        LoaderOptions { threads: 0, ..good },
        LoaderOptions { threads: 1 << 20, ..good },
        LoaderOptions { queue: 0, ..good },
    ] {
        assert!(matches!(Loader::new(folder.clone(), [0], bad), Err(DataError::Argument { .. })), "{bad:?}");
    }
    let outcomes: Vec<_> = Loader::new(folder, [1, 2, 0], good).unwrap().collect();
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    assert!(matches!(&outcomes[1], Err(DataError::Argument { got, .. }) if got == "2"));
}
