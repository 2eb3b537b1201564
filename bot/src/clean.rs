//! What came from outside, made fit for a line of IRC: names of machines,
//! output, subjects of commits, nicks and links are text, and stay text.
//!
//! Nothing that is cleaned can end a line, be a client-to-client request,
//! colour or hide what follows, or turn its direction around. What ended a
//! line or moved a cursor becomes a visible sign of itself (`␍`, `␊`, `␛`);
//! what is invisible by nature is dropped.
//!
//! A line of ours also begins with nothing that another bot of the channel
//! could take for a command: see [`guard`].

use std::borrow::Cow;

use unicode_width::UnicodeWidthChar as _;

/// Most marks that are put above and below one letter. More than any script
/// needs only serve to cover the lines around.
const MOST_MARKS: usize = 6;

/// What stands in front of a line that would begin like a command.
const GUARD: &str = "› ";

/// What is done with a character.
enum Fate {
    Keep,
    Drop,
    Become(char),
}

fn fate(c: char) -> Fate {
    match c {
        '\t' | '\u{2028}' | '\u{2029}' => Fate::Become(' '),
        // Sets colour or style in every IRC client: bold, colour, hex colour,
        // reset, monospace, reverse, italics, strikethrough, underline. They
        // do nothing else, so nothing is lost without them.
        '\x02' | '\x03' | '\x04' | '\x0f' | '\x11' | '\x16' | '\x1d' | '\x1e' | '\x1f' => {
            Fate::Drop
        }
        // Unicode has a picture of each.
        '\0'..='\x1f' => Fate::Become(char::from_u32(0x2400 + u32::from(c)).unwrap_or(' ')),
        '\x7f' => Fate::Become('␡'),
        '\u{80}'..='\u{9f}' => Fate::Become('\u{fffd}'),
        // Marks that reorder or hide text, and letters that show nothing.
        '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
        | '\u{3164}' | '\u{ffa0}' => Fate::Drop,
        c if muster_protocol::text::is_unsafe(c) => Fate::Drop,
        _ => Fate::Keep,
    }
}

/// Whether nothing would be changed.
fn is_clean(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' '..=b'~'))
}

/// `text` as part of one line: without anything that acts instead of being
/// shown. Clean text is its own result.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if is_clean(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut marks = 0;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' && skip_sequence(&mut chars) {
            continue;
        }
        match fate(c) {
            Fate::Drop => {}
            Fate::Become(c) => {
                marks = 0;
                out.push(c);
            }
            Fate::Keep if is_mark(c) => {
                marks += 1;
                if marks <= MOST_MARKS {
                    out.push(c);
                }
            }
            Fate::Keep => {
                marks = 0;
                out.push(c);
            }
        }
    }
    Cow::Owned(out)
}

/// Behind an escape: passes over a sequence that would only have coloured a
/// terminal. False, and nothing is passed over, where it is none.
fn skip_sequence(chars: &mut std::str::Chars<'_>) -> bool {
    let mut ahead = chars.clone();
    if ahead.next() != Some('[') {
        return false;
    }
    // Longer ones are not written by any program.
    for c in ahead.by_ref().take(32) {
        match c {
            '0'..='9' | ';' | ':' | '?' => {}
            'm' | 'K' => {
                *chars = ahead;
                return true;
            }
            _ => return false,
        }
    }
    false
}

/// Whether a character is drawn over the one before it.
pub(crate) fn is_mark(c: char) -> bool {
    !c.is_ascii() && c.width() == Some(0)
}

/// A line of ours that other bots leave alone: one whose first sign would be
/// their call (`!deploy …`, `.help`) gets `› ` in front. Lines that begin with
/// a run's id or a nick need none, and are given as they are.
///
/// Indented text counts as if it were not: there are bots that trim.
#[must_use]
pub fn guard(line: &str) -> Cow<'_, str> {
    let calls = |c| {
        matches!(
            c,
            '!' | '.' | '@' | '~' | '$' | '%' | '&' | '?' | ',' | ';' | '\\' | '^' | '*' | '`'
        )
    };
    if line.trim_start().starts_with(calls) {
        Cow::Owned(format!("{GUARD}{line}"))
    } else {
        Cow::Borrowed(line)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_end_a_line_is_shown_instead() {
        assert_eq!(
            clean("Fix\r\nPRIVMSG #ops :!cmd * -- id"),
            "Fix␍␊PRIVMSG #ops :!cmd * -- id"
        );
        assert_eq!(clean("a\0b\x01ACTION c\x01"), "a␀b␁ACTION c␁");
        assert_eq!(clean("col\tumn\x7f\u{9b}"), "col umn␡\u{fffd}");
    }

    #[test]
    fn colours_and_marks_that_hide_are_gone() {
        assert_eq!(
            clean("\x02b\x0304,01red\x0f \x11m\x16\x1d\x1e\x1f\x04ff0000x"),
            "b04,01red mff0000x"
        );
        assert_eq!(
            clean("\u{202e}evil\u{202c} \u{2066}x\u{2069}\u{200e}\u{200f}\u{61c}"),
            "evil x"
        );
        assert_eq!(
            clean("we\u{200b}b\u{ad}-\u{2060}01\u{feff}\u{e0041}"),
            "web-01"
        );
        assert_eq!(
            clean("\u{1b}[1;31mred\u{1b}[0m \u{1b}[2J\u{1b}]0;t\x07"),
            "red ␛[2J␛]0;t␇"
        );
    }

    #[test]
    fn scripts_and_faces_stay() {
        for text in ["café", "Grüße", "日本語", "नमस्ते", "😀", "✓ 22 → 23", "é"]
        {
            assert_eq!(clean(text), text);
        }
        let tower = format!("a{}b", "\u{301}".repeat(50));
        assert_eq!(clean(&tower), format!("a{}b", "\u{301}".repeat(MOST_MARKS)));
    }

    #[test]
    fn no_line_begins_like_a_command() {
        assert_eq!(guard("!cmd * -- id"), "› !cmd * -- id");
        assert_eq!(guard("  .help"), "›   .help");
        assert_eq!(guard("8k2d started"), "8k2d started");
        assert_eq!(guard("-listen = 8000"), "-listen = 8000");
        assert_eq!(guard(""), "");
    }

    proptest! {
        #[test]
        fn nothing_clean_acts(text in any::<String>()) {
            let out = clean(&text);
            for c in out.chars() {
                prop_assert!(!c.is_control(), "{c:?}");
                prop_assert!(!muster_protocol::text::is_unsafe(c), "{c:?}");
            }
            // Once is enough.
            prop_assert_eq!(clean(&out), out.clone());
        }

        #[test]
        fn hostile_bytes_do_not_act(bytes in proptest::collection::vec(0u8..=0x9f, 0..200)) {
            let text: String = bytes.into_iter().map(char::from).collect();
            prop_assert!(clean(&text).chars().all(|c| !c.is_control()));
        }
    }
}
