//! Tokens of a Rust file, as far as finding its modules and paths needs them.

/// Names, `::`, string literals and single characters, without comments, lifetimes and character literals.
pub(super) fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let token = match first {
            _ if first.is_whitespace() => first.len_utf8(),
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '\'' => quote(rest),
            '"' => emit(&mut found, rest, string(rest)),
            ':' if rest.starts_with("::") => emit(&mut found, rest, 2),
            _ if is_name(first) => {
                let end = rest.find(|it| !is_name(it)).unwrap_or(rest.len());
                match raw_string(&rest[..end], &rest[end..]) {
                    Some(length) => emit(&mut found, rest, end + length),
                    None => emit(&mut found, rest, end),
                }
            }
            _ => emit(&mut found, rest, first.len_utf8()),
        };
        rest = &rest[token..];
    }
    found
}

fn emit<'a>(found: &mut Vec<&'a str>, rest: &'a str, length: usize) -> usize {
    found.push(&rest[..length]);
    length
}

fn is_name(it: char) -> bool {
    it == '_' || it.is_alphanumeric()
}

/// Length of a comment, in which others may be.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let here = &text.as_bytes()[at..];
        match here {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of a string literal with escapes.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, it) in text.char_indices().skip(1) {
        match it {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of the string that follows a prefix such as `r` or `b`, if one does.
fn raw_string(prefix: &str, text: &str) -> Option<usize> {
    if !matches!(prefix, "r" | "b" | "c" | "br" | "cr") {
        return None;
    }
    if !prefix.ends_with('r') {
        return text.starts_with('"').then(|| string(text));
    }
    let hashes = text.len() - text.trim_start_matches('#').len();
    let body = text[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |it| it + end.len());
    Some(hashes + 1 + length)
}

/// Length of a character literal or a lifetime.
fn quote(text: &str) -> usize {
    let mut inside = text.char_indices().skip(1);
    match (inside.next(), inside.next()) {
        // The escaped character may be a quote itself.
        (Some((_, '\\')), Some((at, escaped))) => {
            let from = at + escaped.len_utf8();
            text[from..].find('\'').map_or(text.len(), |it| from + it + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => text[1..].find(|it| !is_name(it)).map_or(text.len(), |it| it + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::tokens;

    #[test]
    fn comments_and_literals_are_no_paths() {
        let text = "use a::b; // c::d\n/* e /* f */ g */ fn h<'x>(i: &'x str) { '\\''; 'j'; \"k \\\" l\"; r#\"m \" n\"#; b'o' }";
        let expected = [
            "use",
            "a",
            "::",
            "b",
            ";",
            "fn",
            "h",
            "<",
            ">",
            "(",
            "i",
            ":",
            "&",
            "str",
            ")",
            "{",
            ";",
            ";",
            "\"k \\\" l\"",
            ";",
            "r#\"m \" n\"#",
            ";",
            "b",
            "}",
        ];
        assert_eq!(tokens(text), expected);
    }
}
