//! The list of all unsafe code with its arguments: where it may be, and the page that shows it.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

/// The only crate that may have unsafe code.
const ALLOWED: &str = "crates/ddt-kernels/";

/// The page, from the root of the repository.
pub(super) const PAGE: &str = "docs/UNSAFE.md";

const INTRO: &str = "\
# Unsafe code

All of it is in `ddt-kernels`; every other crate forbids it.
Each block has an argument beside it, which is repeated here; a function's is its callers' obligation.
`cargo xtask tidy --write` makes this page, and `cargo xtask tidy` fails where it is not complete.
";

/// Unsafe code of one file.
struct Listed {
    file: String,
    /// Why the file has any, as its attribute says.
    reason: String,
    items: Vec<Item>,
}

struct Item {
    kind: &'static str,
    /// The function around it, or its own name.
    name: String,
    argument: String,
}

/// Checks where unsafe code is and that each piece has its argument; returns the page that lists it.
pub(super) fn page(root: &Path, files: &[std::path::PathBuf], wrong: &mut Vec<String>) -> Result<String> {
    let mut all = Vec::new();
    for path in files {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = path.strip_prefix(root).unwrap_or(path).display().to_string();
        let items = items(&text);
        if items.is_empty() {
            continue;
        }
        if !file.starts_with(ALLOWED) {
            wrong.push(format!("{file} has unsafe code, which only {ALLOWED} may have"));
        }
        for it in items.iter().filter(|it| it.argument.is_empty()) {
            let Item { kind, name, .. } = it;
            wrong.push(format!("{file}: {kind} in {name} has no argument: write // SAFETY: before it"));
        }
        let attribute = after(&text, "unsafe_code").and_then(|it| after(it, "reason = \""));
        let reason = attribute.and_then(|it| it.split('"').next());
        all.push(Listed { file, reason: reason.unwrap_or_default().to_owned(), items });
    }
    let mut page = format!("{INTRO}\n| file | blocks | functions | other | for |\n|---|---|---|---|---|\n");
    for Listed { file, reason, items } in &all {
        let count = |kind: &str| items.iter().filter(|it| it.kind == kind).count();
        let (blocks, functions) = (count("block"), count("function"));
        let other = items.len() - blocks - functions;
        writeln!(page, "| `{}` | {blocks} | {functions} | {other} | {reason} |", short(file))?;
    }
    for Listed { file, items, .. } in &all {
        writeln!(page, "\n## {}\n", short(file))?;
        for Item { kind, name, argument } in items {
            writeln!(page, "- {kind}, `{name}`: {argument}")?;
        }
    }
    Ok(page)
}

fn short(file: &str) -> &str {
    file.strip_prefix(ALLOWED).unwrap_or(file)
}

fn after<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    text.split_once(word).map(|it| it.1)
}

/// All that a file says with the word `unsafe`, in order.
fn items(text: &str) -> Vec<Item> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut around = "the file".to_owned();
    for (at, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let function = after(code, "fn ").and_then(|it| it.split(['(', '<']).next());
        if let Some(name) =
            function.filter(|it| it.chars().all(|it| it.is_alphanumeric() || it == '_') && !it.is_empty())
        {
            around = name.to_owned();
        }
        for (begin, _) in code.match_indices("unsafe") {
            let before = code[..begin].chars().next_back();
            if before.is_some_and(|it| it.is_alphanumeric() || "_\"-'".contains(it)) {
                continue;
            }
            let rest = code[begin + "unsafe".len()..].trim_start();
            let kind = match rest.split([' ', '<', '(']).next().unwrap_or_default() {
                "{" => "block",
                "fn" if rest.starts_with("fn(") => continue,
                "fn" => "function",
                "impl" => "implementation",
                "extern" => "declarations",
                "" => "block",
                _ => continue,
            };
            let (name, argument) = match kind {
                "function" => (around.clone(), obligation(&lines[..at])),
                "implementation" => {
                    (rest.trim_end_matches([' ', '{', '}']).to_owned(), argument(&lines[..=at]))
                }
                "declarations" => (
                    around.clone(),
                    "declares functions of another library; calling one is unsafe".to_owned(),
                ),
                _ => (around.clone(), argument(&lines[..=at])),
            };
            found.push(Item { kind, name, argument });
        }
    }
    found
}

/// The comment `SAFETY:` before the statement that a piece of code is in, as one line.
fn argument(before: &[&str]) -> String {
    let is_comment = |it: &&&str| it.trim_start().starts_with("//");
    // Back to the end of the statement before.
    let statement =
        before.iter().rev().skip(1).take_while(|it| !is_comment(it) && !it.ends_with([';', '}', '{']));
    let above = &before[..before.len() - 1 - statement.count()];
    let mut lines: Vec<&str> = above.iter().rev().take_while(is_comment).map(|it| it.trim()).collect();
    lines.reverse();
    let words: Vec<&str> = lines.iter().map(|it| it.trim_start_matches('/').trim()).collect();
    after(&words.join(" "), "SAFETY: ").unwrap_or_default().to_owned()
}

/// The section `# Safety` of a function's documentation, as one line; that of a trait's method is the trait's.
fn obligation(before: &[&str]) -> String {
    let above =
        before.iter().rev().map(|it| it.trim()).take_while(|it| it.starts_with("//") || it.starts_with("#["));
    let mut docs: Vec<&str> = above.filter(|it| it.starts_with("///")).map(|it| it[3..].trim()).collect();
    docs.reverse();
    let section = docs.iter().skip_while(|it| **it != "# Safety").skip(1);
    let words: Vec<&str> = section.filter(|it| !it.is_empty()).copied().collect();
    if words.is_empty() { "as its trait demands".to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    // This file has no unsafe code: tests put the word in.
    const CODE: &str = "
/// Reads.
///
/// # Safety
/// `at` must be
/// readable.
UNSAFE fn read(at: *const u8) -> u8 {
    // SAFETY: the caller
    // promises it.
    UNSAFE { *at }
}
fn other() {
    let word = \"UNSAFE-inline\"; // UNSAFE { in a comment }
    let x = UNSAFE { 1 };
}
// SAFETY: nothing is in it.
UNSAFE impl Send for Empty {}
";

    #[test]
    fn every_piece_is_found_with_its_argument() {
        let found: Vec<_> = items(&CODE.replace("UNSAFE", "unsafe"))
            .into_iter()
            .map(|it| (it.kind, it.name, it.argument))
            .collect();
        let expected = [
            ("function", "read", "`at` must be readable."),
            ("block", "read", "the caller promises it."),
            ("block", "other", ""),
            ("implementation", "impl Send for Empty", "nothing is in it."),
        ];
        let expected = expected.map(|(kind, name, argument)| (kind, name.to_owned(), argument.to_owned()));
        assert_eq!(found, expected);
    }
}
