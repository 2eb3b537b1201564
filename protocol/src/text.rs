//! Text from outside, made safe to show.

use std::cmp::Reverse;
use std::fmt::Write as _;

/// Characters that change how a terminal or a chat client shows what follows:
/// control characters, and the marks that reorder or hide text.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// `text` with everything that could act on a terminal escaped, cut to
/// `limit` characters with an ellipsis. Newlines are escaped too.
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == limit {
            out.push('…');
            break;
        }
        push_safe(&mut out, c);
    }
    out
}

/// One line of a program's output, escaped but not cut; tabs stay.
#[must_use]
pub fn printable_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\t' {
            out.push(c)
        } else {
            push_safe(&mut out, c)
        }
    }
    out
}

fn push_safe(out: &mut String, c: char) {
    if is_unsafe(c) {
        let code = u32::from(c);
        let _ = if code < 0x100 {
            write!(out, "\\x{code:02x}")
        } else {
            write!(out, "\\u{{{code:x}}}")
        };
    } else {
        out.push(c);
    }
}

/// `10,000`.
#[must_use]
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes that a program printed, as text: valid UTF-8 stays, every other byte
/// becomes `\xNN`. Control characters are kept; whoever shows the text escapes
/// them with [`printable_line`].
#[must_use]
pub fn lossy(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Longest word that may be a name with a mistake in it, in bytes.
const MAX_WORD: usize = 300;

/// The known word that is most like this one, if any is like it at all.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Of what is that long nobody mistyped a name, and to look takes its time.
    if word.len() > MAX_WORD {
        return None;
    }
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance * 3 <= word.len().max(candidate.len()))
        // `restart` is rather `restarted` than `restore`.
        .min_by_key(|(distance, candidate)| {
            let alike = word.chars().zip(candidate.chars());
            (
                *distance,
                Reverse(alike.take_while(|(a, b)| a == b).count()),
            )
        })
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_never_reach_a_terminal() {
        assert_eq!(printable("a\x1b[31mb\n", 20), "a\\x1b[31mb\\x0a");
        assert_eq!(printable("abc\u{202e}def", 20), "abc\\u{202e}def");
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable_line("a\tb\u{9b}"), "a\tb\\x9b");
        assert_eq!(lossy(b"caf\xc3\xa9 \xff\xfe"), "café \\xff\\xfe");
    }
}
