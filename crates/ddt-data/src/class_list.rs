//! Class lists: labels, class folders and readable names.

use std::{collections::HashMap, fs, path::Path};

use crate::{decode::cannot_read, error::DataError};

/// Classes in label order: the folder (for ImageNet its synset) and a readable name of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClassList {
    names: Vec<String>,
    /// Labels by folder.
    labels: HashMap<String, u32>,
}

impl ClassList {
    /// Reads a file of lines `index<TAB>folder<TAB>name`, as [`ClassList::parse`] does.
    ///
    /// # Errors
    /// [`DataError::Io`] when it cannot be read as UTF-8 text, and those of [`ClassList::parse`].
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let text = fs::read_to_string(path).map_err(cannot_read(path))?;
        Self::parse(&text, path)
    }

    /// Parses lines `index<TAB>folder<TAB>name` with indices 0, 1, 2, ... in order; empty lines are ignored.
    /// `path` is for messages.
    ///
    /// ```
    /// let list = ddt_data::ClassList::parse("0\tn01440764\ttench\n1\tn01443537\tgoldfish\n", "list".as_ref())?;
    /// assert_eq!((list.label("n01443537"), list.name(0)), (Some(1), Some("tench")));
    /// # Ok::<(), ddt_data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// [`DataError::Layout`] for any other line, a folder that occurs twice, or no line at all.
    pub fn parse(text: &str, path: &Path) -> Result<Self, DataError> {
        let mut list = Self::default();
        let wrong = |problem| DataError::Layout { path: path.to_owned(), problem };
        for (i, line) in text.lines().enumerate().filter(|it| !it.1.trim().is_empty()) {
            list.parse_line(line).map_err(|problem| {
                let line = i + 1;
                wrong(format!("line {line}: {problem}; expected index<TAB>folder<TAB>name, indices from 0"))
            })?;
        }
        if list.names.is_empty() { Err(wrong("expected a class, got none".to_owned())) } else { Ok(list) }
    }

    /// Number of classes.
    #[allow(clippy::len_without_is_empty, reason = "a list without classes cannot be made")]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The label of a class folder.
    pub fn label(&self, folder: &str) -> Option<u32> {
        self.labels.get(folder).copied()
    }

    /// The readable name of a label.
    pub fn name(&self, label: u32) -> Option<&str> {
        self.names.get(label as usize).map(String::as_str)
    }

    fn parse_line(&mut self, line: &str) -> Result<(), String> {
        let fields: Vec<&str> = line.splitn(3, '\t').map(str::trim).collect();
        let &[index, folder, name] = fields.as_slice() else {
            return Err(format!("got {} fields", fields.len()));
        };
        let label = self.names.len() as u32;
        if index.parse() != Ok(label) {
            return Err(format!("got index {index:?} where {label} is due"));
        }
        if folder.is_empty() {
            return Err("got an empty folder name".to_owned());
        }
        if let Some(earlier) = self.labels.insert(folder.to_owned(), label) {
            return Err(format!("{folder:?} is class {earlier} already"));
        }
        self.names.push(name.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_line_is_named() {
        let error = |text: &str| ClassList::parse(text, Path::new("classes.tsv")).unwrap_err().to_string();
        assert!(error("0\ta").contains("classes.tsv: line 1: got 2 fields"));
        assert!(error("0\ta\tA\n\n2\tb\tB").contains("line 3: got index \"2\" where 1 is due"));
        assert!(error("0\ta\tA\n1\ta\tB").contains("is class 0 already"));
        assert!(error("0\t\tA").contains("empty folder name"));
        assert!(error("\n").contains("got none"));
        let list = ClassList::parse("0\ta\tA, or B\tC\r\n", Path::new("x")).unwrap();
        assert_eq!((list.len(), list.name(0), list.label("a")), (1, Some("A, or B\tC"), Some(0)));
        assert_eq!((list.name(1), list.label("b")), (None, None));
    }
}
