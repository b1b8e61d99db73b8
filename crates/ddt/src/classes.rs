//! Class tables: from user input to a label, and back to a name.
//!
//! A class may be given by label (`207`), by synset (`n02099601`) or by name (`golden retriever`).
//! Text that fits several classes is refused with the list of them, never guessed at.

use std::collections::BTreeSet;

use crate::error::{Result, invalid};

macro_rules! bail {
    ($($text:tt)*) => {
        return invalid(format!($($text)*))
    };
}

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            bail!($($text)*);
        }
    };
}

/// A row per class: label, WordNet synset, name.
const IMAGENET: &str = include_str!("imagenet_classes.tsv");

/// Number of classes that a message lists before it says "and more".
const MAX_LISTED: usize = 8;

/// Names nearer than this (1 is equal, 0 has nothing in common) are offered as near misses.
const NEAR: f64 = 0.6;

/// The classes of a network, in the order of its labels.
#[derive(Debug, Clone)]
pub struct ClassTable {
    classes: Vec<Class>,
}

#[derive(Debug, Clone)]
struct Class {
    /// Empty where the table has no synsets.
    synset: String,
    name: String,
    /// Canonical spellings: the whole name first, then each comma-separated synonym.
    spellings: Vec<String>,
}

impl ClassTable {
    /// ImageNet's 1000 classes.
    ///
    /// # Errors
    /// None in practice: the table is part of the program and is checked like any other.
    pub fn imagenet() -> Result<Self> {
        let mut rows = Vec::new();
        for (index, line) in IMAGENET.lines().enumerate() {
            let mut fields = line.split('\t');
            match (fields.next(), fields.next(), fields.next(), fields.next()) {
                (Some(number), Some(synset), Some(name), None) if number.parse() == Ok(index) => {
                    rows.push((synset.to_owned(), name.to_owned()));
                }
                _ => {
                    bail!("class table, line {}: expected \"{index}, synset, name\", got {line:?}", index + 1)
                }
            }
        }
        Self::from_rows(rows)
    }

    /// A table of these names, numbered from 0.
    ///
    /// # Errors
    /// If there is no name, or one is blank or holds control characters (names may come from an untrusted file,
    /// and are printed).
    pub fn from_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::from_rows(
            names.into_iter().map(|name| (String::new(), name.as_ref().trim().to_owned())).collect(),
        )
    }

    fn from_rows(rows: Vec<(String, String)>) -> Result<Self> {
        ensure!(!rows.is_empty(), "expected at least one class name, got none");
        ensure!(u32::try_from(rows.len()).is_ok(), "expected fewer than 2^32 classes, got {}", rows.len());
        let mut classes = Vec::with_capacity(rows.len());
        for (index, (synset, name)) in rows.into_iter().enumerate() {
            ensure!(!name.is_empty(), "class {index} has a blank name");
            ensure!(
                !name.chars().any(char::is_control),
                "class {index}: name {name:?} has control characters"
            );
            let mut spellings = vec![canonical(&name)];
            if name.contains(',') {
                spellings.extend(name.split(',').map(canonical).filter(|synonym| !synonym.is_empty()));
            }
            classes.push(Class { synset, name, spellings });
        }
        Ok(Self { classes })
    }

    /// Number of classes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Always false: a table has at least one class.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// The name of class `index`, or `None` outside the table.
    #[must_use]
    pub fn name(&self, index: u32) -> Option<&str> {
        Some(&self.classes.get(usize::try_from(index).ok()?)?.name)
    }

    /// The class that `text` names.
    ///
    /// Tried in turn, the first that fits anything decides: a label; a synset; a name or synonym; whole words of one
    /// name (`retriever`); the beginning of one name (`golden r`). `label:4` and `name:4` are never the other.
    /// Case does not matter, and `_`, `-` and blanks are alike.
    ///
    /// # Errors
    /// A label outside the table; text that fits several classes, or is the label of one and the name of another
    /// (they are listed); text that fits none (near misses are suggested).
    pub fn parse(&self, text: &str) -> Result<u32> {
        let text = text.trim();
        if let Some(label) = text.strip_prefix("label:") {
            return self.label(label.trim());
        }
        if let Some(name) = text.strip_prefix("name:") {
            return self.named(name.trim());
        }
        if !is_number(text.strip_prefix(['-', '+']).unwrap_or(text)) {
            return self.named(text);
        }
        match (self.label(text), self.fitting(|spelling| spelling == text).as_slice()) {
            (Err(_), [named]) => Ok(*named),
            (Ok(label), others) if others.iter().any(|it| *it != label) => bail!(
                "class {text:?} is the label of {} and the name of {}; write label:{text} or name:{text}",
                self.list(&[label]),
                self.list(others)
            ),
            (label, _) => label,
        }
    }

    fn named(&self, text: &str) -> Result<u32> {
        let wanted = canonical(text);
        ensure!(!wanted.is_empty(), "expected a class, got {text:?}; {}", self.expected());
        if let Some(index) = self.classes.iter().position(|class| class.synset.eq_ignore_ascii_case(text)) {
            return Ok(index as u32);
        }
        let words = format!(" {wanted} ");
        for found in [
            self.fitting(|spelling| spelling == wanted),
            self.fitting(|spelling| format!(" {spelling} ").contains(&words)),
            self.fitting(|spelling| spelling.starts_with(&wanted)),
        ] {
            match found.as_slice() {
                [] => {}
                [index] => return Ok(*index),
                many => {
                    bail!("class {text:?} fits {} classes: {}; give a label", many.len(), self.list(many))
                }
            }
        }
        let near = self.near_misses(&wanted);
        if near.is_empty() {
            bail!("no class is called {text:?}; {}", self.expected());
        }
        bail!("no class is called {text:?}; did you mean {}? {}", self.list(&near), self.expected());
    }

    /// The classes that `items` name, in the order given and with repetitions.
    ///
    /// An item is one class, an inclusive range of labels (`0-9`), or several of these with commas between.
    /// A name that itself has commas counts as one class where it is written out in full.
    ///
    /// # Errors
    /// As [`ClassTable::parse`]; also nothing between two commas, and ranges that run backwards.
    pub fn parse_list<S: AsRef<str>>(&self, items: &[S]) -> Result<Vec<u32>> {
        let most_parts = self.classes.iter().map(|class| class.name.split(',').count()).max().unwrap_or(1);
        let mut found = Vec::new();
        for item in items {
            let item = item.as_ref();
            let parts: Vec<&str> = item.split(',').collect();
            let mut at = 0;
            while let Some(&part) = parts.get(at) {
                // The longest run of parts that is a whole name wins, so that names with commas stay usable.
                let longest = most_parts.min(parts.len() - at);
                let run = (2..=longest).rev().find_map(|length| {
                    let wanted = canonical(&parts.get(at..at + length)?.join(","));
                    match self.fitting(|spelling| spelling == wanted).as_slice() {
                        [index] => Some((length, *index)),
                        _ => None,
                    }
                });
                if let Some((length, index)) = run {
                    found.push(index);
                    at += length;
                    continue;
                }
                ensure!(!part.trim().is_empty(), "expected a class between the commas of {item:?}");
                match part.split_once('-') {
                    Some((first, last)) if is_number(first.trim()) && is_number(last.trim()) => {
                        let (first, last) = (self.label(first.trim())?, self.label(last.trim())?);
                        ensure!(first <= last, "range {part:?} runs backwards; write {last}-{first}");
                        found.extend(first..=last);
                    }
                    _ => found.push(self.parse(part)?),
                }
                at += 1;
            }
        }
        Ok(found)
    }

    fn label(&self, text: &str) -> Result<u32> {
        match text.parse::<u32>() {
            Ok(index) if self.name(index).is_some() => Ok(index),
            _ => bail!("class {text} is out of range; {}", self.expected()),
        }
    }

    /// Classes of which any spelling fits.
    fn fitting(&self, fits: impl Fn(&str) -> bool) -> Vec<u32> {
        (0..)
            .zip(&self.classes)
            .filter(|(_, c)| c.spellings.iter().any(|s| fits(s)))
            .map(|(i, _)| i)
            .collect()
    }

    /// The three classes with the nearest spellings, of whole names or of single words.
    fn near_misses(&self, wanted: &str) -> Vec<u32> {
        let wanted: String = wanted.chars().take(64).collect();
        let mut scored: Vec<(f64, u32)> = Vec::new();
        for (index, class) in (0..).zip(&self.classes) {
            let words: BTreeSet<&str> =
                class.spellings.iter().flat_map(|s| s.split(' ').chain([s.as_str()])).collect();
            let best =
                words.iter().map(|w| strsim::normalized_damerau_levenshtein(w, &wanted)).fold(0.0, f64::max);
            if best >= NEAR {
                scored.push((best, index));
            }
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        scored.into_iter().take(3).map(|(_, index)| index).collect()
    }

    fn list(&self, indices: &[u32]) -> String {
        let shown: Vec<String> = indices
            .iter()
            .take(MAX_LISTED)
            .map(|&index| format!("{index} ({})", self.name(index).unwrap_or_default()))
            .collect();
        match indices.len().saturating_sub(MAX_LISTED) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }

    fn expected(&self) -> String {
        let synset = if self.classes.iter().any(|c| !c.synset.is_empty()) { ", a synset" } else { "" };
        format!("expected a label in 0..={}{synset} or a name", self.len().saturating_sub(1))
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lower case, single blanks for runs of blanks, `_` and `-`, and `, ` between synonyms.
fn canonical(text: &str) -> String {
    let synonym = |text: &str| {
        let words = text.split(|c: char| c.is_whitespace() || c == '_' || c == '-').filter(|w| !w.is_empty());
        words.collect::<Vec<_>>().join(" ")
    };
    text.to_lowercase().split(',').map(synonym).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imagenet() -> ClassTable {
        ClassTable::imagenet().unwrap()
    }

    #[track_caller]
    fn refused(table: &ClassTable, text: &str, expected: &[&str]) {
        let message = table.parse(text).unwrap_err().to_string();
        for part in expected {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn every_way_to_say_golden_retriever() {
        let table = imagenet();
        assert_eq!(table.len(), 1000);
        for text in
            ["207", " 207 ", "n02099601", "N02099601", "golden retriever", "Golden_Retriever", "golden r"]
        {
            assert_eq!(table.parse(text).unwrap(), 207, "{text}");
        }
        assert_eq!(table.name(207), Some("golden retriever"));
        assert_eq!(table.name(1000), None);
    }

    #[test]
    fn every_name_finds_its_class_unless_it_is_shared() {
        let table = imagenet();
        for index in 0..1000 {
            let name = table.name(index).unwrap();
            match table.parse(name) {
                Ok(found) => assert_eq!(found, index, "{name}"),
                Err(_) => assert!(["crane", "maillot", "Cardigan", "cardigan"].contains(&name), "{name}"),
            }
        }
    }

    #[test]
    fn whole_names_win_over_words_and_words_over_beginnings() {
        let table = ClassTable::from_names(["tiger", "tiger cat", "wild cat", "catamaran", "dog"]).unwrap();
        assert_eq!(table.parse("tiger").unwrap(), 0);
        assert_eq!(table.parse("wild").unwrap(), 2);
        refused(&table, "cat", &["fits 2 classes", "1 (tiger cat), 2 (wild cat)"]);
        assert_eq!(table.parse("cata").unwrap(), 3);
    }

    #[test]
    fn ambiguous_unknown_and_out_of_range_say_what_to_do() {
        let table = imagenet();
        refused(&table, "crane", &["fits 2 classes: 134 (crane), 517 (crane)"]);
        refused(&table, "terrier", &["and ", " more; give a label"]);
        refused(&table, "golden retreiver", &["did you mean 207 (golden retriever)", "0..=999"]);
        refused(&table, "retreiver", &["did you mean", "retriever"]);
        refused(
            &table,
            "zzzzzz",
            &["no class is called \"zzzzzz\"; expected a label in 0..=999, a synset or a name"],
        );
        for text in ["1000", "-1", "99999999999999999999"] {
            refused(&table, text, &["out of range", "0..=999"]);
        }
        for text in ["", " ", "-", "_"] {
            refused(&table, text, &["expected a class, got"]);
        }
    }

    #[test]
    fn lists_take_commas_ranges_and_names_with_commas() {
        let names = ["tench, Tinca tinca", "cock", "hen", "great grey owl, great gray owl, Strix nebulosa"];
        let table = ClassTable::from_names(names).unwrap();
        let check = |items: &[&str], expected: &[u32]| {
            assert_eq!(table.parse_list(items).unwrap(), expected, "{items:?}");
        };
        check(&["0,2,1"], &[0, 2, 1]);
        check(&["0", "2"], &[0, 2]);
        check(&["0-2, cock", "hen"], &[0, 1, 2, 1, 2]);
        check(&["great grey owl,great gray owl , Strix nebulosa,tench, tinca tinca, 1"], &[3, 0, 1]);
        check(&["strix nebulosa,great gray owl"], &[3, 3]);
        assert_eq!(table.parse(names[3]).unwrap(), 3);
        for (item, expected) in [
            ("2-0", "write 0-2"),
            ("0-9", "0..=3"),
            ("0,,1", "between the commas"),
            ("", "between"),
            ("5", "0..=3"),
        ] {
            let message = table.parse_list(&[item]).unwrap_err().to_string();
            assert!(message.contains(expected), "{item}: {message}");
        }
    }

    #[test]
    fn numbers_as_names_are_never_guessed_at() {
        // The order of text: label 2 is called 10.
        let table = ClassTable::from_names(["0", "1", "10", "11", "2", "1990"]).unwrap();
        assert_eq!([table.parse("0").unwrap(), table.parse("1990").unwrap()], [0, 5]);
        refused(&table, "2", &["label of 2 (10)", "name of 4 (2)", "label:2 or name:2"]);
        assert_eq!(["label:2", "name:2", "name: 10"].map(|it| table.parse(it).unwrap()), [2, 4, 2]);
        refused(&table, "label:10", &["out of range"]);
        refused(&table, "7", &["out of range"]);
        assert_eq!(table.parse_list(&["0-2"]).unwrap(), [0, 1, 2]);
    }

    #[test]
    fn tables_from_files_are_checked() {
        assert!(ClassTable::from_names(Vec::<String>::new()).is_err());
        assert!(ClassTable::from_names(["cat", " "]).is_err());
        assert!(ClassTable::from_names(["cat", "\u{1b}[2J"]).is_err());
    }
}
