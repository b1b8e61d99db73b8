//! Image folders: which images there are, their labels, and what was left out.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    class_list::ClassList,
    decode::cannot_read,
    error::DataError,
    listing::{ENDINGS, Listing, add, format, list, list_below, natural_order},
};

/// Unknown class folders that a message names.
const NAMED: usize = 10;

/// A folder of images, listed once, in an order that depends on names only.
///
/// Files count as images by their ending (`.jpg`, `.jpeg`, `.png`, `.webp`, `.bmp`, in any case). Names that
/// begin with a dot are ignored, other files are counted in [`ImageFolder::report`], links are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFolder {
    root: PathBuf,
    num_classes: usize,
    classes: Vec<Class>,
    images: Vec<Image>,
    left_out: Counts,
}

/// Files by their ending.
type Counts = BTreeMap<String, usize>;

/// Class folders with their names.
type NamedFolders = Vec<(String, PathBuf)>;

/// A class folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// The label networks are trained on: rank of the folder's name, or index in the class list.
    pub label: u32,
    /// Name of the folder.
    pub folder: String,
    /// Readable name, where a class list gives one.
    pub name: Option<String>,
    /// Number of its images.
    pub num_images: usize,
}

/// Contents of a folder: images by format, and the files that were left out.
///
/// ```text
/// 44 images in 3 classes (4 JPEG, 40 WebP); left out 2 files (1 .gif, 1 .txt)
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderReport {
    /// Number of images.
    pub images: usize,
    /// Number of class folders; 0 for a flat folder.
    pub classes: usize,
    /// Images of each format, by their endings.
    pub formats: BTreeMap<&'static str, usize>,
    /// Files that are not images by name: how many of each ending.
    pub left_out: BTreeMap<String, usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Image {
    relative: Box<Path>,
    label: Option<u32>,
}

impl ImageFolder {
    /// Lists `root/<class>/<image>`; labels are 0, 1, 2, ... by sorted folder name. Names that are all
    /// numbers are sorted as numbers.
    ///
    /// Folders inside a class folder belong to that class. Images come class by class, in the byte order of
    /// their paths.
    ///
    /// # Errors
    /// [`DataError::Layout`] when there are no class folders, one without images or with a name that is not
    /// UTF-8, images beside the class folders, links in a circle, or pipes and devices; [`DataError::Io`]
    /// for what cannot be read, dangling links included.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, DataError> {
        let root = root.as_ref();
        let (mut folders, others) = class_folders(root)?;
        let numbers = folders.iter().all(|it| it.0.bytes().all(|byte| byte.is_ascii_digit()));
        folders
            .sort_by(|a, b| if numbers { natural_order(a.0.as_bytes(), b.0.as_bytes()) } else { a.cmp(b) });
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
    /// Those of [`ImageFolder::open`], and [`DataError::Layout`] for folders that are not in the list.
    pub fn open_with(root: impl AsRef<Path>, list: &ClassList) -> Result<Self, DataError> {
        let root = root.as_ref();
        let (folders, others) = class_folders(root)?;
        let mut labelled = Vec::with_capacity(folders.len());
        let mut unknown = Vec::new();
        for (folder, path) in folders {
            match list.label(&folder) {
                Some(label) => {
                    let name = list.name(label).map(str::to_owned);
                    labelled.push((Class { label, folder, name, num_images: 0 }, path));
                }
                None => unknown.push(folder),
            }
        }
        if !unknown.is_empty() {
            unknown.sort();
            let (count, classes) = (unknown.len(), list.len());
            unknown.truncate(NAMED);
            let problem = format!(
                "{count} class folders are not in the list of {classes} classes: {}",
                unknown.join(", ")
            );
            return Err(layout(root, problem));
        }
        labelled.sort_by_key(|it| it.0.label);
        Self::from_classes(root, labelled, list.len(), others)
    }

    /// Lists the images directly in `root`, without labels; numbers in names count as numbers (`2.png`
    /// before `10.png`).
    ///
    /// # Errors
    /// [`DataError::Layout`] when there are none, or there are folders with images beside them;
    /// [`DataError::Io`] for what cannot be read.
    pub fn flat(root: impl AsRef<Path>) -> Result<Self, DataError> {
        let root = root.as_ref();
        let Listing { mut images, folders, others } = list(root)?;
        if images.is_empty() {
            return Err(layout(root, format!("expected images, found no {ENDINGS}")));
        }
        for folder in folders {
            let below = list_below(&folder)?.images.len();
            if below > 0 {
                return Err(both_layouts(root, images.len(), &folder));
            }
        }
        images.sort_by(|a, b| natural_order(name_bytes(root, a), name_bytes(root, b)));
        let images = images.iter().map(|it| Image { relative: relative(root, it).into(), label: None });
        let images = images.collect();
        Ok(Self { root: root.to_owned(), num_classes: 0, classes: Vec::new(), images, left_out: others })
    }

    /// Lists class folders or, where images are directly in `root`, a flat folder.
    ///
    /// # Errors
    /// Those of [`ImageFolder::open`] and [`ImageFolder::flat`]; a folder with both layouts is refused.
    pub fn detect(root: impl AsRef<Path>) -> Result<Self, DataError> {
        let root = root.as_ref();
        let listing = list(root)?;
        if listing.images.is_empty() && !listing.folders.is_empty() {
            Self::open(root)
        } else {
            Self::flat(root)
        }
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

    /// Names of all labels, in order: readable name, else folder, else `class N` for a label of the list
    /// without a folder.
    pub fn class_names(&self) -> Vec<String> {
        let mut names: Vec<String> = (0..self.num_classes).map(|label| format!("class {label}")).collect();
        for class in &self.classes {
            if let Some(name) = names.get_mut(class.label as usize) {
                *name = class.name.clone().unwrap_or_else(|| class.folder.clone());
            }
        }
        names
    }

    /// Counts of images, formats and files left out.
    pub fn report(&self) -> FolderReport {
        let mut formats = BTreeMap::new();
        for image in &self.images {
            *formats.entry(format(&image.relative).unwrap_or_default()).or_default() += 1;
        }
        let left_out = self.left_out.clone();
        FolderReport { images: self.len(), classes: self.classes.len(), formats, left_out }
    }

    /// Path of an image.
    ///
    /// # Errors
    /// [`DataError::Argument`] for an index beyond the last.
    pub fn path(&self, index: usize) -> Result<PathBuf, DataError> {
        Ok(self.root.join(self.relative(index)?))
    }

    /// Path of an image below the root.
    ///
    /// # Errors
    /// [`DataError::Argument`] for an index beyond the last.
    pub fn relative(&self, index: usize) -> Result<&Path, DataError> {
        self.image(index).map(|it| &*it.relative)
    }

    /// Label of an image; none in a flat folder.
    ///
    /// # Errors
    /// [`DataError::Argument`] for an index beyond the last.
    pub fn label(&self, index: usize) -> Result<Option<u32>, DataError> {
        self.image(index).map(|it| it.label)
    }

    /// SHA-256, in hex, of path below the root, label and size of each image, in order.
    ///
    /// Reads no image, so a file rewritten at the same length goes unnoticed. Does not depend on where the
    /// root is.
    ///
    /// # Errors
    /// [`DataError::Io`] for a file that is gone.
    pub fn identity(&self) -> Result<String, DataError> {
        let mut hash = Sha256::new();
        hash.update((self.num_classes() as u64).to_le_bytes());
        for image in &self.images {
            let path = self.root.join(&image.relative);
            let size = path.metadata().map_err(cannot_read(&path))?.len();
            for part in image.relative.components() {
                hash.update(part.as_os_str().as_encoded_bytes());
                hash.update(b"/");
            }
            // No name holds a zero byte.
            hash.update([0]);
            hash.update(image.label.map_or(u64::MAX, u64::from).to_le_bytes());
            hash.update(size.to_le_bytes());
        }
        Ok(hash.finalize().iter().map(|it| format!("{it:02x}")).collect())
    }

    fn image(&self, index: usize) -> Result<&Image, DataError> {
        self.images.get(index).ok_or_else(|| {
            let expected = format!("an index below {}, the number of images", self.len());
            DataError::Argument { expected, got: index.to_string() }
        })
    }

    fn from_classes(
        root: &Path,
        folders: Vec<(Class, PathBuf)>,
        num_classes: usize,
        mut left_out: Counts,
    ) -> Result<Self, DataError> {
        let (mut images, mut classes) = (Vec::new(), Vec::with_capacity(folders.len()));
        for (mut class, path) in folders {
            let mut below = list_below(&path)?;
            if below.images.is_empty() {
                return Err(layout(
                    &path,
                    format!("expected a class folder, found no {ENDINGS}; fill or remove it"),
                ));
            }
            below.images.sort();
            add(&mut left_out, below.others);
            class.num_images = below.images.len();
            let label = Some(class.label);
            images.extend(below.images.iter().map(|it| Image { relative: relative(root, it).into(), label }));
            classes.push(class);
        }
        Ok(Self { root: root.to_owned(), num_classes, classes, images, left_out })
    }
}

impl fmt::Display for FolderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |it: Vec<String>| it.join(", ");
        let formats = self.formats.iter().map(|(format, count)| format!("{count} {format}")).collect();
        write!(f, "{} images", self.images)?;
        if self.classes > 0 {
            write!(f, " in {} classes", self.classes)?;
        }
        write!(f, " ({})", list(formats))?;
        if !self.left_out.is_empty() {
            let total: usize = self.left_out.values().sum();
            let endings = self.left_out.iter().map(|(ending, count)| format!("{count} {ending}")).collect();
            let files = if total == 1 { "file" } else { "files" };
            write!(f, "; left out {total} {files} ({})", list(endings))?;
        }
        Ok(())
    }
}

/// Class folders by name, in no order, and the files beside them.
fn class_folders(root: &Path) -> Result<(NamedFolders, Counts), DataError> {
    let Listing { folders, images, others } = list(root)?;
    let Some(first) = folders.iter().min() else {
        let problem = format!(
            "expected class folders (root/<class>/<image>), found none, but {} images directly in it; \
             make a folder per class",
            images.len()
        );
        return Err(layout(root, problem));
    };
    if !images.is_empty() {
        return Err(both_layouts(root, images.len(), first));
    }
    let mut named = Vec::with_capacity(folders.len());
    for path in folders {
        let Some(name) = path.file_name().and_then(|it| it.to_str()).map(str::to_owned) else {
            return Err(layout(&path, "expected a class folder with a UTF-8 name; rename it".to_owned()));
        };
        named.push((name, path));
    }
    Ok((named, others))
}

fn both_layouts(root: &Path, images: usize, folder: &Path) -> DataError {
    let folder = relative(root, folder).display();
    let problem = format!(
        "expected class folders or images, found both: {images} images beside the folder {folder}; move one of them away"
    );
    layout(root, problem)
}

fn layout(path: &Path, problem: String) -> DataError {
    DataError::Layout { path: path.to_owned(), problem }
}

fn name_bytes<'a>(root: &Path, path: &'a Path) -> &'a [u8] {
    relative(root, path).as_os_str().as_encoded_bytes()
}

fn relative<'a>(root: &Path, path: &'a Path) -> &'a Path {
    path.strip_prefix(root).unwrap_or(path)
}
