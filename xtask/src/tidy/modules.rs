//! Circles between the modules of a crate.
//!
//! A module may use what is below it. Every path from `crate`, `super`, `self` or a child module counts, and so does
//! a re-export; it leads to the module that defines the item, not to those that re-export it. Tests inside a file
//! may use anything and are not looked at.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A module's names from the root of its crate.
type Name = Vec<String>;

/// The modules of one crate.
#[derive(Default)]
pub(super) struct Modules {
    scopes: BTreeMap<Name, Scope>,
    /// Paths with the module that they are in.
    uses: Vec<(Name, Vec<String>)>,
}

/// A module, in a file of its own or inside another's.
#[derive(Default)]
struct Scope {
    file: PathBuf,
    defined: BTreeSet<String>,
    imports: Vec<Import>,
}

/// A leaf of a `use`.
struct Import {
    path: Vec<String>,
    /// `*` for all names.
    name: String,
}

impl Modules {
    /// Reads the modules of the crate whose root is this file.
    pub(super) fn read(root: &Path) -> io::Result<Self> {
        let mut modules = Self::default();
        let folder = root.parent().unwrap_or(root);
        modules.read_file(root, folder, Vec::new())?;
        Ok(modules)
    }

    /// `folder` is where the files of child modules are.
    fn read_file(&mut self, file: &Path, folder: &Path, name: Name) -> io::Result<()> {
        let text = fs::read_to_string(file)
            .map_err(|it| io::Error::new(it.kind(), format!("cannot read {}: {it}", file.display())))?;
        let mut tokens = Vec::new();
        flatten(
            text.parse().map_err(|it| io::Error::other(format!("{}: {it}", file.display())))?,
            &mut tokens,
        );
        let mut parser = Parser { modules: self, tokens: &tokens, at: 0, file, children: Vec::new() };
        parser.items(folder, &name)?;
        for (file, folder, name) in parser.children {
            self.read_file(&file, &folder, name)?;
        }
        Ok(())
    }

    /// Each group of files that use each other in a circle, as one circle: the first file is named again at the end.
    pub(super) fn circles(&self) -> Vec<Vec<PathBuf>> {
        let mut edges: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
        for (from, path) in &self.uses {
            let from_file = &*self.scopes[from].file;
            if let Some(to) = self.resolve(from, path, 0)
                && self.scopes[&to].file != from_file
            {
                edges.entry(from_file).or_default().insert(&self.scopes[&to].file);
            }
        }
        let mut circles = Vec::new();
        let mut known = BTreeSet::new();
        for &start in edges.keys() {
            if known.contains(start) {
                continue;
            }
            let Some(circle) = shortest_circle(&edges, start) else { continue };
            // Everything that is reached from here and leads back belongs to the same group.
            let reached = |from| reachable(&edges, from);
            known.extend(reached(start).into_iter().filter(|it| reached(it).contains(start)));
            circles.push(circle.into_iter().map(Path::to_owned).collect());
        }
        circles
    }

    /// The module that defines what a path leads to; none for other crates and local names.
    fn resolve(&self, from: &Name, path: &[String], depth: usize) -> Option<Name> {
        // Imports that name each other in a circle end here.
        if depth > 16 {
            return None;
        }
        let mut at = from.clone();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                at.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {}
            _ => return self.item(&at, rest, depth, false),
        }
        while let [first, others @ ..] = rest
            && first == "super"
        {
            at.pop();
            rest = others;
        }
        self.item(&at, rest, depth, true)
    }

    /// The module that defines `rest`, looked up in the module `at`; `here` if it is there for certain.
    fn item(&self, at: &Name, rest: &[String], depth: usize, here: bool) -> Option<Name> {
        let scope = self.scopes.get(at)?;
        let fallback = here.then(|| at.clone());
        let Some(first) = rest.first() else { return fallback };
        let child = [at.as_slice(), std::slice::from_ref(first)].concat();
        if self.scopes.contains_key(&child) {
            return self.item(&child, &rest[1..], depth, true);
        }
        if scope.defined.contains(first) {
            return Some(at.clone());
        }
        if let Some(import) = scope.imports.iter().find(|it| it.name == *first) {
            let path = [import.path.as_slice(), &rest[1..]].concat();
            return if path == rest { fallback } else { self.resolve(at, &path, depth + 1) };
        }
        let globs = scope.imports.iter().filter(|it| it.name == "*");
        let found = globs.filter_map(|it| self.resolve(at, &it.path, depth + 1)).find(|it| {
            self.scopes
                .get(it)
                .is_some_and(|it| it.defined.contains(first) || it.imports.iter().any(|it| it.name == *first))
        });
        match found {
            Some(module) => self.item(&module, rest, depth + 1, true),
            None => fallback,
        }
    }
}

/// Names, `::`, literals and single characters.
fn flatten(stream: TokenStream, found: &mut Vec<String>) {
    let mut colons = 0;
    for token in stream {
        colons = if matches!(&token, TokenTree::Punct(it) if it.as_char() == ':') { colons + 1 } else { 0 };
        match token {
            TokenTree::Punct(_) if colons == 2 => {
                found.pop();
                found.push("::".to_owned());
                colons = 0;
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                found.push(open.to_owned());
                flatten(group.stream(), found);
                found.push(close.to_owned());
            }
            other => found.push(other.to_string()),
        }
    }
}

fn reachable<'a>(edges: &BTreeMap<&'a Path, BTreeSet<&'a Path>>, from: &'a Path) -> BTreeSet<&'a Path> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(at) = open.pop() {
        open.extend(edges.get(at).into_iter().flatten().filter(|it| reached.insert(**it)));
    }
    reached
}

fn shortest_circle<'a>(
    edges: &BTreeMap<&'a Path, BTreeSet<&'a Path>>,
    start: &'a Path,
) -> Option<Vec<&'a Path>> {
    let (mut open, mut seen) = (VecDeque::from([vec![start]]), BTreeSet::new());
    while let Some(path) = open.pop_front() {
        for &next in edges.get(path.last()?).into_iter().flatten() {
            let longer = [path.as_slice(), &[next]].concat();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next) {
                open.push_back(longer);
            }
        }
    }
    None
}

/// Walks over the tokens of one file.
struct Parser<'a> {
    modules: &'a mut Modules,
    tokens: &'a [String],
    at: usize,
    file: &'a Path,
    /// Files of child modules, where their own children are, and their names.
    children: Vec<(PathBuf, PathBuf, Name)>,
}

impl<'a> Parser<'a> {
    fn peek(&self, ahead: usize) -> &'a str {
        self.tokens.get(self.at + ahead).map_or("", String::as_str)
    }

    /// Reads the items of a module, up to the brace that closes it.
    fn items(&mut self, folder: &Path, name: &Name) -> io::Result<()> {
        let scope = Scope { file: self.file.to_owned(), ..Scope::default() };
        self.modules.scopes.insert(name.clone(), scope);
        // Below this depth are bodies, whose items are not the module's.
        let (mut depth, mut path_attribute) = (0_usize, None);
        while self.at < self.tokens.len() {
            match (self.peek(0), self.peek(1)) {
                ("}", _) if depth == 0 => return Ok(()),
                ("{" | "(" | "[", _) => depth += 1,
                ("}" | ")" | "]", _) => depth = depth.saturating_sub(1),
                ("#", "[") => {
                    let attribute = self.attribute();
                    let has = |word: &str| attribute.iter().any(|it| it == word);
                    if attribute.first().is_some_and(|it| it == "cfg")
                        && has("test")
                        && !has("not")
                        && !has("any")
                    {
                        self.skip_item();
                    } else if let [name, _, path] = attribute
                        && name == "path"
                    {
                        path_attribute = Some(path.trim_matches('"').to_owned());
                    }
                    continue;
                }
                ("use", _) => {
                    self.at += 1;
                    self.use_tree(name, Vec::new());
                    continue;
                }
                ("mod", child) if depth == 0 && matches!(self.peek(2), ";" | "{") => {
                    let child = child.to_owned();
                    let (below, child_name) =
                        (folder.join(&child), [name.as_slice(), std::slice::from_ref(&child)].concat());
                    self.at += 2;
                    if self.peek(0) == "{" {
                        self.at += 1;
                        self.items(&below, &child_name)?;
                    } else {
                        self.child(folder, &child, path_attribute.take(), child_name);
                    }
                }
                ("fn" | "struct" | "enum" | "trait" | "union" | "type" | "const" | "static", item)
                    if depth == 0 =>
                {
                    let item = item.to_owned();
                    self.scope(name).defined.insert(item);
                }
                ("macro_rules", "!") => {
                    let item = self.peek(2).to_owned();
                    self.scope(name).defined.insert(item);
                }
                (_, "::") => {
                    self.path(name);
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
        Ok(())
    }

    fn scope(&mut self, name: &Name) -> &mut Scope {
        self.modules.scopes.entry(name.clone()).or_default()
    }

    fn child(&mut self, folder: &Path, child: &str, path: Option<String>, name: Name) {
        let below = folder.join(child);
        let nested = below.join("mod.rs");
        self.children.push(match path {
            // The children of such a file are beside it.
            Some(path) => {
                let beside = self.file.parent().unwrap_or(folder);
                (beside.join(path), beside.to_owned(), name)
            }
            None if nested.exists() => (nested, below, name),
            None => (below.with_extension("rs"), below, name),
        });
    }

    /// The tokens between the brackets of an attribute, which is passed.
    fn attribute(&mut self) -> &'a [String] {
        self.at += 2;
        let from = self.at;
        self.balanced("[", "]");
        self.tokens.get(from..self.at - 1).unwrap_or_default()
    }

    /// Passes everything up to the bracket that closes the one before.
    fn balanced(&mut self, open: &str, close: &str) {
        let mut depth = 1;
        while depth > 0 && self.at < self.tokens.len() {
            let token = self.peek(0);
            depth = depth + usize::from(token == open) - usize::from(token == close);
            self.at += 1;
        }
    }

    /// Passes an item with its attributes: to its semicolon or the end of its braces.
    fn skip_item(&mut self) {
        while self.at < self.tokens.len() {
            let token = self.peek(0);
            self.at += 1;
            match token {
                ";" => return,
                "{" => return self.balanced("{", "}"),
                "(" => self.balanced("(", ")"),
                "[" => self.balanced("[", "]"),
                _ => {}
            }
        }
    }

    /// Reads the rest of a `use` that began with `path`.
    fn use_tree(&mut self, name: &Name, mut path: Vec<String>) {
        let mut called = None;
        loop {
            let token = self.peek(0);
            match token {
                "" | ";" | "," | "}" => break,
                "{" => {
                    self.at += 1;
                    while !matches!(self.peek(0), "}" | ";" | "") {
                        self.use_tree(name, path.clone());
                        self.at += usize::from(self.peek(0) == ",");
                    }
                    self.at += 1;
                    return;
                }
                "as" => {
                    called = Some(self.peek(1).to_owned());
                    self.at += 1;
                }
                "*" => called = Some("*".to_owned()),
                "::" => {}
                // `a::{self}` is `a`.
                "self" if !path.is_empty() => {}
                _ => path.push(token.to_owned()),
            }
            self.at += 1;
        }
        let called = called.or_else(|| path.last().cloned()).unwrap_or_default();
        self.modules.uses.push((name.clone(), path.clone()));
        self.scope(name).imports.push(Import { path, name: called });
    }

    /// Reads a path outside of a `use`.
    fn path(&mut self, name: &Name) {
        let mut path = vec![self.peek(0).to_owned()];
        self.at += 1;
        while self.peek(0) == "::" && self.peek(1).starts_with(|it: char| it == '_' || it.is_alphabetic()) {
            path.push(self.peek(1).to_owned());
            self.at += 2;
        }
        // Before a turbofish.
        self.at += usize::from(self.peek(0) == "::");
        self.modules.uses.push((name.clone(), path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circles of a crate with these files, written as their names.
    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let modules = Modules::read(&folder.path().join("lib.rs")).unwrap();
        let name = |it: &PathBuf| it.strip_prefix(folder.path()).unwrap().display().to_string();
        modules.circles().iter().map(|it| it.iter().map(name).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn modules_below_are_no_circle() {
        let lib = ("lib.rs", "mod a; mod b; mod c; pub use a::A; pub use b::B;");
        let a = ("a.rs", "use crate::B; pub(crate) struct A(B);");
        let b = ("b/mod.rs", "mod d; pub use d::D; use crate::c::C; pub struct B(C);");
        let c = ("c.rs", "pub(crate) struct C; #[cfg(test)] mod tests { use crate::A; }");
        assert!(circles(&[lib, a, b, c, ("b/d.rs", "use crate::c; pub struct D(c::C);")]).is_empty());
    }

    #[test]
    fn circles_are_found_through_re_exports_groups_and_plain_paths() {
        let lib = ("lib.rs", "mod a; mod b; pub use b::*;");
        let a = ("a.rs", "use std::{fmt, crate_ as x}; use crate::{B as Other}; pub struct A(Other);");
        for b in [
            "use super::a::{self}; pub struct B(a::A);",
            "pub struct B; fn f() { crate::a::A::new::<u8>(); }",
        ] {
            assert_eq!(circles(&[lib, a, ("b.rs", b)]), ["a.rs b.rs a.rs"]);
        }
        // Nothing leads back from B.
        let quoted =
            "pub struct B; // crate::a\n/* crate::a */ const C: (&str, char) = (r#\"crate::a::A\"#, '\"');";
        assert!(circles(&[lib, a, ("b.rs", quoted)]).is_empty());
    }

    #[test]
    fn a_parent_that_uses_its_child_lends_it_nothing() {
        let lib = ("lib.rs", "mod a; pub use a::run; pub const N: u8 = 1;");
        assert_eq!(circles(&[lib, ("a.rs", "pub fn run() -> u8 { crate::N }")]), ["a.rs lib.rs a.rs"]);
        let inner = ("lib.rs", "mod a { pub mod b; pub fn f() { b::g() } } ");
        assert_eq!(circles(&[inner, ("a/b.rs", "pub fn g() { super::f() }")]), ["a/b.rs lib.rs a/b.rs"]);
    }
}
