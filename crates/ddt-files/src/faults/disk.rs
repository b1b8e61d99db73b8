//! Model of a disk: the bytes and names that are safe, and those that a power cut may take.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Change;

/// Files, folders and links below a folder, by their path in it.
pub(super) type Tree = BTreeMap<PathBuf, Entry>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Folder,
    File(Arc<Vec<u8>>),
    Link(PathBuf),
}

/// Reads all that is below a folder.
pub(super) fn read(folder: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(inner) = waiting.pop() {
        for entry in fs::read_dir(folder.join(&inner))? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, inner.join(entry.file_name()));
            let found = if kind.is_symlink() {
                Entry::Link(fs::read_link(entry.path())?)
            } else if kind.is_dir() {
                waiting.push(path.clone());
                Entry::Folder
            } else {
                Entry::File(Arc::new(fs::read(entry.path())?))
            };
            tree.insert(path, found);
        }
    }
    Ok(tree)
}

/// Replaces all that is below a folder.
pub(super) fn put(tree: &Tree, folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    for (path, entry) in tree {
        let path = folder.join(path);
        match entry {
            Entry::Folder => fs::create_dir(path)?,
            Entry::File(bytes) => fs::write(path, bytes.as_slice())?,
            #[cfg(unix)]
            Entry::Link(target) => std::os::unix::fs::symlink(target, path)?,
            #[cfg(not(unix))]
            Entry::Link(_) => return Err(io::ErrorKind::Unsupported.into()),
        }
    }
    Ok(())
}

type Names = BTreeMap<OsString, usize>;

#[derive(Debug, Clone)]
enum Node {
    Folder { now: Names, safe: Names },
    File { safe: Arc<Vec<u8>>, edits: Vec<Edit> },
    Link(PathBuf),
}

#[derive(Debug, Clone)]
enum Edit {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Edit {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                content.resize(content.len().max(at + bytes.len()), 0);
                content[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Resize(size) => content.resize(*size, 0),
        }
    }
}

/// A name that a folder gets, or loses.
#[derive(Debug, Clone)]
struct Naming {
    folder: usize,
    name: OsString,
    node: Option<usize>,
}

/// The root is node 0.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    /// Changes of names that no sync of a folder followed, oldest first; each happens as a whole or not at all.
    pending: Vec<Vec<Naming>>,
}

impl Disk {
    /// The disk below `root`, all of it safe.
    pub(super) fn new(root: &Path, tree: &Tree) -> Self {
        let folder = || Node::Folder { now: Names::new(), safe: Names::new() };
        let mut disk = Self { root: root.to_owned(), nodes: vec![folder()], pending: Vec::new() };
        for (path, entry) in tree {
            let node = match entry {
                Entry::Folder => folder(),
                Entry::File(bytes) => Node::File { safe: bytes.clone(), edits: Vec::new() },
                Entry::Link(target) => Node::Link(target.clone()),
            };
            disk.add(&root.join(path), node);
        }
        disk.pending.iter().flatten().for_each(|it| settle(&mut disk.nodes, it));
        disk.pending.clear();
        disk
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let inner = path.strip_prefix(&self.root).ok()?;
        inner.iter().try_fold(0, |at, name| match &self.nodes[at] {
            Node::Folder { now, .. } => now.get(name).copied(),
            _ => None,
        })
    }

    fn naming(&self, path: &Path, node: Option<usize>) -> Option<Naming> {
        Some(Naming { folder: self.find(path.parent()?)?, name: path.file_name()?.to_owned(), node })
    }

    fn add(&mut self, path: &Path, node: Node) {
        if self.find(path).is_none() {
            self.nodes.push(node);
            let naming = self.naming(path, Some(self.nodes.len() - 1));
            self.name(naming.into_iter().collect());
        }
    }

    fn name(&mut self, namings: Vec<Naming>) {
        for Naming { folder, name, node } in &namings {
            if let Node::Folder { now, .. } = &mut self.nodes[*folder] {
                set(now, name, *node);
            }
        }
        self.pending.push(namings);
    }

    /// All that removing a path removes, the path last.
    fn removals(&self, path: &Path) -> Vec<Naming> {
        let Some(at) = self.find(path) else { return Vec::new() };
        let below = match &self.nodes[at] {
            Node::Folder { now, .. } => now.keys().flat_map(|it| self.removals(&path.join(it))).collect(),
            _ => Vec::new(),
        };
        below.into_iter().chain(self.naming(path, None)).collect()
    }

    pub(super) fn apply(&mut self, change: &Change<'_>) {
        match change {
            Change::CreateFolder(path) => {
                self.add(path, Node::Folder { now: Names::new(), safe: Names::new() });
            }
            Change::Open(path) => {
                self.add(path, Node::File { safe: Arc::default(), edits: Vec::new() });
            }
            Change::Link(path, target) => self.add(path, Node::Link(target.to_path_buf())),
            Change::Write(path, at, bytes) => self.edit(path, Edit::Write(*at as usize, bytes.to_vec())),
            Change::Resize(path, size) => self.edit(path, Edit::Resize(*size as usize)),
            Change::Sync(path) => {
                if let Some(Node::File { safe, edits }) = self.find(path).map(|it| &mut self.nodes[it]) {
                    let content = Arc::make_mut(safe);
                    edits.drain(..).for_each(|it| it.apply(content));
                }
            }
            Change::Rename(from, to) => {
                let node = self.find(from);
                let namings = [self.naming(from, None), self.naming(to, node)];
                self.name(namings.into_iter().flatten().collect());
            }
            Change::SyncFolder(path) => {
                let Some(at) = self.find(path) else { return };
                let (done, left) =
                    std::mem::take(&mut self.pending).into_iter().partition(|it| touches(it, at));
                self.pending = left;
                let done: Vec<Vec<Naming>> = done;
                done.iter().flatten().for_each(|it| settle(&mut self.nodes, it));
            }
            Change::Remove(path) => self.removals(path).into_iter().for_each(|it| self.name(vec![it])),
        }
    }

    fn edit(&mut self, path: &Path, edit: Edit) {
        if let Some(Node::File { edits, .. }) = self.find(path).map(|it| &mut self.nodes[it]) {
            edits.push(edit);
        }
    }

    /// The disk after a kill in the middle of a change; `None` for a change that happens at once.
    pub(super) fn torn(&self, change: &Change<'_>) -> Option<Tree> {
        let mut disk = self.clone();
        match change {
            Change::Write(path, at, bytes) if bytes.len() > 1 => {
                disk.apply(&Change::Write(path, *at, &bytes[..bytes.len() / 2]));
            }
            Change::Remove(path) => {
                let removals = disk.removals(path);
                let half = removals.len() / 2;
                removals.into_iter().take(half).for_each(|it| disk.name(vec![it]));
            }
            _ => return None,
        }
        Some(disk.now())
    }

    /// The disk as it is while there is power.
    pub(super) fn now(&self) -> Tree {
        let edits: Vec<bool> = self.edits().map(|_| true).collect();
        self.tree(&vec![true; self.pending.len()], &edits)
    }

    /// Everything that may be on the disk after a power cut: of the names and of the bytes that are not safe, each
    /// time all, none, the newest, those of one folder or file, or those of all others.
    pub(super) fn after_power_cuts(&self) -> Vec<Tree> {
        let folders: BTreeSet<usize> = self.pending.iter().flatten().map(|it| it.folder).collect();
        let mut names = BTreeSet::new();
        let count = self.pending.len();
        let mask = |keep: &dyn Fn(usize) -> bool| (0..count).map(keep).collect::<Vec<bool>>();
        names.extend([mask(&|_| true), mask(&|_| false), mask(&|at| at + 1 == count)]);
        for folder in folders {
            let own = |at: usize| touches(&self.pending[at], folder);
            names.extend([mask(&own), mask(&|at| !own(at))]);
        }
        // Files, with the number of each edit from the newest on.
        let edits: Vec<(usize, usize)> = self.edits().collect();
        let mask = |keep: &dyn Fn(&(usize, usize)) -> bool| edits.iter().map(keep).collect::<Vec<bool>>();
        let mut contents =
            BTreeSet::from([mask(&|_| true), mask(&|_| false), mask(&|(_, from_newest)| *from_newest == 0)]);
        for (file, _) in &edits {
            contents.extend([mask(&|it| it.0 == *file), mask(&|it| it.0 != *file)]);
        }
        names.iter().flat_map(|names| contents.iter().map(|it| self.tree(names, it))).collect()
    }

    /// All edits that are not safe: their file, and the number of edits after them.
    fn edits(&self) -> impl Iterator<Item = (usize, usize)> {
        let of = |(at, node): (usize, &Node)| match node {
            Node::File { edits, .. } => (0..edits.len()).rev().map(|it| (at, it)).collect(),
            _ => Vec::new(),
        };
        self.nodes.iter().enumerate().flat_map(of)
    }

    /// The disk with some of the changes that are not safe.
    fn tree(&self, names: &[bool], edits: &[bool]) -> Tree {
        let mut nodes = self.nodes.clone();
        let mut kept = edits.iter();
        for node in &mut nodes {
            match node {
                Node::File { safe, edits } => {
                    let edits: Vec<&Edit> =
                        edits.iter().zip(kept.by_ref()).filter(|it| *it.1).map(|it| it.0).collect();
                    if !edits.is_empty() {
                        let content = Arc::make_mut(safe);
                        edits.iter().for_each(|it| it.apply(content));
                    }
                }
                Node::Folder { .. } | Node::Link(_) => {}
            }
        }
        let kept = self.pending.iter().zip(names).filter(|it| *it.1);
        kept.flat_map(|it| it.0).for_each(|it| settle(&mut nodes, it));
        let (mut tree, mut waiting) = (Tree::new(), vec![(PathBuf::new(), 0)]);
        while let Some((path, at)) = waiting.pop() {
            let entry = match &nodes[at] {
                Node::Folder { safe, .. } => {
                    waiting.extend(safe.iter().map(|(name, at)| (path.join(name), *at)));
                    Entry::Folder
                }
                Node::File { safe, .. } => Entry::File(safe.clone()),
                Node::Link(target) => Entry::Link(target.clone()),
            };
            if at != 0 {
                tree.insert(path, entry);
            }
        }
        tree
    }
}

fn touches(namings: &[Naming], folder: usize) -> bool {
    namings.iter().any(|it| it.folder == folder)
}

fn set(names: &mut Names, name: &OsString, node: Option<usize>) {
    match node {
        Some(node) => names.insert(name.clone(), node),
        None => names.remove(name),
    };
}

fn settle(nodes: &mut [Node], Naming { folder, name, node }: &Naming) {
    if let Node::Folder { safe, .. } = &mut nodes[*folder] {
        set(safe, name, *node);
    }
}
