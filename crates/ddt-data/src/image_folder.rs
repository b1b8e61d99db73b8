//! Which images there are, and their labels.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    class_list::ClassList,
    error::DataError,
    natural_order::natural_order,
    walk::{Listing, images_below, list},
};

/// How many unknown class folders a message names.
const NAMED: usize = 10;

/// A folder of images, listed once, in an order that depends on names alone.
///
/// Files count as images by their ending (`.jpg`, `.jpeg`, `.png`, in any case). Names that begin with a dot
/// are passed over, other files are counted in [`ImageFolder::num_others`], links are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFolder {
    root: PathBuf,
    num_classes: usize,
    classes: Vec<Class>,
    images: Vec<Image>,
    num_others: usize,
}

/// A class folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// What the network is told: the rank of the folder's name, or the place in the class list.
    pub label: u32,
    /// Name of the folder.
    pub folder: String,
    /// Readable name, where a class list gives one.
    pub name: Option<String>,
    /// How many images it holds.
    pub num_images: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Image {
    relative: Box<Path>,
    label: Option<u32>,
}

impl ImageFolder {
    /// Lists `root/<class>/<image>`; labels are 0, 1, 2, ... by sorted folder name.
    ///
    /// Folders inside a class folder belong to that class. Images come class by class, in the byte order of
    /// their paths. Files beside the class folders are not part of it.
    ///
    /// # Errors
    /// [`DataError::NoClasses`], [`DataError::EmptyClass`], [`DataError::LinkLoop`], [`DataError::NotAFile`],
    /// [`DataError::ClassName`], and [`DataError::Io`] for what cannot be read, links that lead nowhere
    /// included.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, DataError> {
        let root = root.as_ref();
        let (folders, others) = class_folders(root)?;
        let num_classes = folders.len();
        let labelled = folders.into_iter().zip(0..).map(|((folder, path), label)| {
            let class = Class { label, folder, name: None, num_images: 0 };
            (class, path)
        });
        Self::from_classes(root, labelled.collect(), num_classes, others)
    }

    /// Lists `root/<class>/<image>` as [`ImageFolder::open`] does, with labels and names from a list.
    ///
    /// Classes of the list may be absent from the folder; labels do not shift then.
    ///
    /// # Errors
    /// Those of [`ImageFolder::open`], and [`DataError::UnknownClasses`] for folders that are not in the list.
    pub fn open_with(root: impl AsRef<Path>, list: &ClassList) -> Result<Self, DataError> {
        let root = root.as_ref();
        let (folders, others) = class_folders(root)?;
        let unknown: Vec<&String> = folders.keys().filter(|it| list.label(it).is_none()).collect();
        if !unknown.is_empty() {
            return Err(DataError::UnknownClasses {
                path: root.to_owned(),
                unknown: unknown.len(),
                folders: unknown.into_iter().take(NAMED).cloned().collect(),
                classes: list.len(),
            });
        }
        let labelled = folders.into_iter().filter_map(|(folder, path)| {
            let label = list.label(&folder)?;
            let name = list.name(label).map(str::to_owned);
            Some((Class { label, folder, name, num_images: 0 }, path))
        });
        let mut labelled: Vec<(Class, PathBuf)> = labelled.collect();
        labelled.sort_by_key(|it| it.0.label);
        Self::from_classes(root, labelled, list.len(), others)
    }

    /// Lists the images that lie in `root` itself, without labels, numbers in names counted as numbers
    /// (`2.png` before `10.png`).
    ///
    /// # Errors
    /// [`DataError::NoImages`], [`DataError::NotAFile`] and [`DataError::Io`].
    pub fn flat(root: impl AsRef<Path>) -> Result<Self, DataError> {
        let root = root.as_ref();
        let Listing { mut images, others, .. } = list(root)?;
        if images.is_empty() {
            return Err(DataError::NoImages { path: root.to_owned() });
        }
        let bytes = |it: &Path| relative(root, it).as_os_str().as_encoded_bytes().to_vec();
        images.sort_by_cached_key(|it| NaturallyOrdered(bytes(it)));
        let images =
            images.iter().map(|it| Image { relative: relative(root, it).into(), label: None }).collect();
        Ok(Self { root: root.to_owned(), num_classes: 0, classes: Vec::new(), images, num_others: others })
    }

    /// The folder that was listed.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Number of images, at least one.
    #[allow(clippy::len_without_is_empty, reason = "a folder without images cannot be made")]
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Number of labels: of class folders, or of the list's classes; 0 for a flat folder.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// The class folders, by label.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Files that were passed over because they have no image's ending; a dataset of another format shows
    /// here.
    pub fn num_others(&self) -> usize {
        self.num_others
    }

    /// Where an image is.
    ///
    /// # Errors
    /// [`DataError::NoSuchImage`].
    pub fn path(&self, index: usize) -> Result<PathBuf, DataError> {
        Ok(self.root.join(self.relative(index)?))
    }

    /// Where an image is, below the root.
    ///
    /// # Errors
    /// [`DataError::NoSuchImage`].
    pub fn relative(&self, index: usize) -> Result<&Path, DataError> {
        self.image(index).map(|it| &*it.relative)
    }

    /// An image's label; none in a flat folder.
    ///
    /// # Errors
    /// [`DataError::NoSuchImage`].
    pub fn label(&self, index: usize) -> Result<Option<u32>, DataError> {
        self.image(index).map(|it| it.label)
    }

    fn image(&self, index: usize) -> Result<&Image, DataError> {
        self.images.get(index).ok_or(DataError::NoSuchImage { index, len: self.len() })
    }

    fn from_classes(
        root: &Path,
        classes: Vec<(Class, PathBuf)>,
        num_classes: usize,
        mut num_others: usize,
    ) -> Result<Self, DataError> {
        let (mut images, mut kept) = (Vec::new(), Vec::with_capacity(classes.len()));
        for (mut class, path) in classes {
            let (mut below, others) = images_below(&path)?;
            if below.is_empty() {
                return Err(DataError::EmptyClass { path });
            }
            below.sort();
            num_others += others;
            class.num_images = below.len();
            let label = Some(class.label);
            images.extend(below.iter().map(|it| Image { relative: relative(root, it).into(), label }));
            kept.push(class);
        }
        Ok(Self { root: root.to_owned(), num_classes, classes: kept, images, num_others })
    }
}

/// A name that sorts naturally.
#[derive(PartialEq, Eq)]
struct NaturallyOrdered(Vec<u8>);

impl PartialOrd for NaturallyOrdered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NaturallyOrdered {
    fn cmp(&self, other: &Self) -> Ordering {
        natural_order(&self.0, &other.0)
    }
}

/// Class folders by name, and how many files lie beside them.
fn class_folders(root: &Path) -> Result<(BTreeMap<String, PathBuf>, usize), DataError> {
    let Listing { folders, images, others } = list(root)?;
    if folders.is_empty() {
        return Err(DataError::NoClasses { path: root.to_owned(), images: images.len() });
    }
    let mut named = BTreeMap::new();
    for path in folders {
        let Some(name) = path.file_name().and_then(|it| it.to_str()).map(str::to_owned) else {
            return Err(DataError::ClassName { path });
        };
        named.insert(name, path);
    }
    Ok((named, others + images.len()))
}

fn relative<'a>(root: &Path, path: &'a Path) -> &'a Path {
    path.strip_prefix(root).unwrap_or(path)
}
