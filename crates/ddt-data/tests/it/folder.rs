//! Listings.

use std::path::Path;

use ddt_data::{ClassList, DataError, ImageFolder};

use crate::images::write;

fn names(folder: &ImageFolder) -> Vec<String> {
    (0..folder.len()).map(|it| folder.relative(it).unwrap().to_string_lossy().into_owned()).collect()
}

fn labels(folder: &ImageFolder) -> Vec<Option<u32>> {
    (0..folder.len()).map(|it| folder.label(it).unwrap()).collect()
}

#[test]
fn class_folders_are_labels_in_sorted_order() {
    let root = tempfile::tempdir().unwrap();
    let files = ["n2/b.JPEG", "n2/a.webp", "n10/x.png", "n2/deeper/c.Jpg", "n2/notes.txt", "n10/.hidden.png"];
    files.iter().chain(&["beside.TXT", "README", ".git/x.png"]).for_each(|it| write(root.path(), it, b""));
    let folder = ImageFolder::open(root.path()).unwrap();
    assert_eq!(names(&folder), ["n10/x.png", "n2/a.webp", "n2/b.JPEG", "n2/deeper/c.Jpg"]);
    assert_eq!(labels(&folder), [Some(0), Some(1), Some(1), Some(1)]);
    assert_eq!(
        folder.report().to_string(),
        "4 images in 2 classes (2 JPEG, 1 PNG, 1 WebP); left out 3 files (2 .txt, 1 without an ending)"
    );
    assert_eq!(folder.class_names(), ["n10", "n2"]);
    assert_eq!(ImageFolder::detect(root.path()).unwrap(), folder);
    let counts: Vec<(&str, usize)> =
        folder.classes().iter().map(|it| (it.folder.as_str(), it.num_images)).collect();
    assert_eq!(counts, [("n10", 1), ("n2", 3)]);
    let error = folder.path(4).unwrap_err().to_string();
    assert_eq!(error, "expected an index below 4, the number of images, got 4");
}

#[test]
fn numeric_class_folders_are_sorted_as_numbers() {
    let order = |folders: &[&str]| {
        let root = tempfile::tempdir().unwrap();
        folders.iter().for_each(|it| write(root.path(), &format!("{it}/a.bmp"), b""));
        ImageFolder::open(root.path()).unwrap().class_names()
    };
    let numbers: Vec<String> = (0..12).map(|it| it.to_string()).collect();
    let mut shuffled: Vec<&str> = numbers.iter().map(String::as_str).collect();
    shuffled.sort_unstable();
    assert_eq!(order(&shuffled), numbers);
    assert_eq!(order(&["07", "7", "10", "1"]), ["1", "07", "7", "10"]);
    // One name that is not a number, and all are text.
    assert_eq!(order(&["10", "9", "cat"]), ["10", "9", "cat"]);
}

#[test]
fn a_folder_of_both_layouts_is_refused() {
    let root = tempfile::tempdir().unwrap();
    ["1.png", "2.png", "cats/a.png", "notes/readme.md"].iter().for_each(|it| write(root.path(), it, b""));
    for open in [ImageFolder::flat, ImageFolder::open, ImageFolder::detect] {
        let message = open(root.path()).unwrap_err().to_string();
        assert!(message.contains("found both: 2 images beside the folder cats"), "{message}");
    }
    std::fs::remove_dir_all(root.path().join("cats")).unwrap();
    let flat = ImageFolder::detect(root.path()).unwrap();
    assert_eq!((flat.report().to_string().as_str(), flat.num_classes()), ("2 images (2 PNG)", 0));
}

#[test]
fn a_class_list_gives_labels_that_absent_folders_do_not_shift() {
    let root = tempfile::tempdir().unwrap();
    ["n3/a.png", "n1/b.png"].iter().for_each(|it| write(root.path(), it, b""));
    let list = ClassList::parse("0\tn1\tone\n1\tn2\ttwo\n2\tn3\tthree\n", Path::new("list")).unwrap();
    let folder = ImageFolder::open_with(root.path(), &list).unwrap();
    assert_eq!(labels(&folder), [Some(0), Some(2)]);
    assert_eq!(folder.class_names(), ["one", "class 1", "three"]);

    write(root.path(), "n4/a.png", b"");
    let error = ImageFolder::open_with(root.path(), &list).unwrap_err().to_string();
    assert!(
        error.contains("1 class folders are not in") && error.ends_with("the list of 3 classes: n4"),
        "{error}"
    );
}

#[test]
fn flat_folders_are_in_the_order_of_their_numbers() {
    let root = tempfile::tempdir().unwrap();
    ["10.png", "9.png", "sub/1.txt", "readme.md"].iter().for_each(|it| write(root.path(), it, b""));
    let folder = ImageFolder::flat(root.path()).unwrap();
    assert_eq!(names(&folder), ["9.png", "10.png"]);
    assert_eq!((labels(&folder), folder.num_classes()), (vec![None, None], 0));
}

#[test]
fn folders_that_are_not_datasets_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let message = |outcome: Result<ImageFolder, DataError>| outcome.unwrap_err().to_string();
    for open in [ImageFolder::flat, ImageFolder::detect] {
        assert!(message(open(path)).contains("found no .jpg"));
    }
    write(path, "a.png", b"");
    let error = message(ImageFolder::open(path));
    assert!(error.contains("root/<class>/<image>") && error.contains("1 images directly"), "{error}");
    std::fs::remove_file(path.join("a.png")).unwrap();
    write(path, "full/a.png", b"");
    write(path, "empty/a.txt", b"");
    let error = message(ImageFolder::open(path));
    assert!(error.contains("empty: expected a class folder"), "{error}");
    assert!(matches!(ImageFolder::open(path.join("absent")), Err(DataError::Io { .. })));
    assert!(matches!(ImageFolder::open(path.join("full/a.png")), Err(DataError::Io { .. })));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_never_in_a_circle() {
    use std::os::unix::{fs::symlink, net::UnixListener};

    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    write(elsewhere.path(), "b.png", b"");
    write(root.path(), "cat/a.png", b"");
    symlink(elsewhere.path(), root.path().join("dog")).unwrap();
    symlink(elsewhere.path().join("b.png"), root.path().join("cat/linked.png")).unwrap();
    let folder = ImageFolder::open(root.path()).unwrap();
    assert_eq!(names(&folder), ["cat/a.png", "cat/linked.png", "dog/b.png"]);

    // Through two links, neither of which leads straight back.
    symlink(root.path().join("cat"), elsewhere.path().join("there")).unwrap();
    symlink(elsewhere.path(), root.path().join("cat/back")).unwrap();
    let error = ImageFolder::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("never end"), "{error}");
    std::fs::remove_file(root.path().join("cat/back")).unwrap();
    ImageFolder::open(root.path()).unwrap();

    symlink("nowhere", root.path().join("cat/gone.png")).unwrap();
    assert!(matches!(ImageFolder::open(root.path()), Err(DataError::Io { .. })));
    std::fs::remove_file(root.path().join("cat/gone.png")).unwrap();
    let _socket = UnixListener::bind(root.path().join("cat/socket.png")).unwrap();
    assert!(matches!(ImageFolder::open(root.path()), Err(DataError::Layout { .. })));
}

#[test]
fn the_identity_depends_on_names_sizes_and_labels() {
    let identity = |files: &[(&str, &str)]| {
        let root = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| write(root.path(), name, bytes.as_bytes()));
        ImageFolder::open(root.path()).unwrap().identity().unwrap()
    };
    let base = [("a/1.png", "xy"), ("b/2.png", "z")];
    assert_eq!(identity(&base).len(), 64);
    assert_eq!(identity(&base), identity(&base));
    // A file rewritten at its length goes unnoticed, as documented.
    assert_eq!(identity(&[("a/1.png", "xx"), base[1]]), identity(&base));
    for changed in [
        [("a/1.png", "x"), ("b/2.png", "z")],
        [("a/1.png", "xy"), ("b/3.png", "z")],
        [("a/1.png", "xy"), ("c/2.png", "z")],
    ] {
        assert_ne!(identity(&changed), identity(&base), "{changed:?}");
    }
}
