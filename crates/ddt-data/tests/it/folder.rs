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
    let files = ["n2/b.JPEG", "n2/a.jpg", "n10/x.png", "n2/deeper/c.Jpg", "n2/notes.txt", "n10/.hidden.png"];
    files.iter().chain(&["beside.png", ".git/x.png"]).for_each(|it| write(root.path(), it, b""));
    let folder = ImageFolder::open(root.path()).unwrap();
    assert_eq!(names(&folder), ["n10/x.png", "n2/a.jpg", "n2/b.JPEG", "n2/deeper/c.Jpg"]);
    assert_eq!(labels(&folder), [Some(0), Some(1), Some(1), Some(1)]);
    assert_eq!((folder.num_classes(), folder.num_others()), (2, 2));
    let counts: Vec<(&str, usize)> =
        folder.classes().iter().map(|it| (it.folder.as_str(), it.num_images)).collect();
    assert_eq!(counts, [("n10", 1), ("n2", 3)]);
    assert!(matches!(folder.path(4), Err(DataError::NoSuchImage { index: 4, len: 4 })));
}

#[test]
fn a_class_list_gives_labels_that_absent_folders_do_not_shift() {
    let root = tempfile::tempdir().unwrap();
    ["n3/a.png", "n1/b.png"].iter().for_each(|it| write(root.path(), it, b""));
    let list = ClassList::parse("0\tn1\tone\n1\tn2\ttwo\n2\tn3\tthree\n", Path::new("list")).unwrap();
    let folder = ImageFolder::open_with(root.path(), &list).unwrap();
    assert_eq!(labels(&folder), [Some(0), Some(2)]);
    assert_eq!((folder.num_classes(), folder.classes()[1].name.as_deref()), (3, Some("three")));

    write(root.path(), "n4/a.png", b"");
    let error = ImageFolder::open_with(root.path(), &list).unwrap_err().to_string();
    assert!(
        error.contains("1 of the class folders") && error.ends_with("the list of 3 classes: n4"),
        "{error}"
    );
}

#[test]
fn flat_folders_are_in_the_order_of_their_numbers() {
    let root = tempfile::tempdir().unwrap();
    ["10.png", "9.png", "sub/1.png", "readme.md"].iter().for_each(|it| write(root.path(), it, b""));
    let folder = ImageFolder::flat(root.path()).unwrap();
    assert_eq!(names(&folder), ["9.png", "10.png"]);
    assert_eq!((labels(&folder), folder.num_classes(), folder.num_others()), (vec![None, None], 0, 1));
}

#[test]
fn what_is_no_dataset_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    assert!(matches!(ImageFolder::flat(path), Err(DataError::NoImages { .. })));
    write(path, "a.png", b"");
    let error = ImageFolder::open(path).unwrap_err();
    assert!(matches!(error, DataError::NoClasses { images: 1, .. }), "{error}");
    assert!(error.to_string().contains("root/<class>/<image>"));
    write(path, "full/a.png", b"");
    write(path, "empty/a.txt", b"");
    let error = ImageFolder::open(path).unwrap_err();
    assert!(matches!(&error, DataError::EmptyClass { path } if path.ends_with("empty")), "{error}");
    assert!(matches!(ImageFolder::open(path.join("absent")), Err(DataError::Io { .. })));
    assert!(matches!(ImageFolder::open(path.join("a.png")), Err(DataError::Io { .. })));
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
    assert!(matches!(ImageFolder::open(root.path()), Err(DataError::LinkLoop { .. })));
    std::fs::remove_file(root.path().join("cat/back")).unwrap();
    ImageFolder::open(root.path()).unwrap();

    symlink("nowhere", root.path().join("cat/gone.png")).unwrap();
    assert!(matches!(ImageFolder::open(root.path()), Err(DataError::Io { .. })));
    std::fs::remove_file(root.path().join("cat/gone.png")).unwrap();
    let _socket = UnixListener::bind(root.path().join("cat/socket.png")).unwrap();
    assert!(matches!(ImageFolder::open(root.path()), Err(DataError::NotAFile { .. })));
}

#[test]
fn the_identity_sees_names_sizes_and_labels_and_the_hash_sees_contents() {
    let make = |files: &[(&str, &str)]| {
        let root = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| write(root.path(), name, bytes.as_bytes()));
        let folder = ImageFolder::open(root.path()).unwrap();
        (folder.identity().unwrap(), folder.content_hash().unwrap())
    };
    let base = [("a/1.png", "xy"), ("b/2.png", "z")];
    let (identity, contents) = make(&base);
    assert_eq!((identity.len(), contents.len()), (64, 64));
    assert_eq!(make(&base), (identity.clone(), contents.clone()));
    // A file rewritten at its length: only the contents tell.
    let (same, other) = make(&[("a/1.png", "xx"), base[1]]);
    assert!(same == identity && other != contents);
    for changed in [
        [("a/1.png", "x"), ("b/2.png", "z")],
        [("a/1.png", "xy"), ("b/3.png", "z")],
        [("a/1.png", "xy"), ("c/2.png", "z")],
    ] {
        let (other, other_contents) = make(&changed);
        assert!(other != identity && other_contents != contents, "{changed:?}");
    }
}
