//! Text cut into lines of so many bytes, as IRC counts them: at the end of a
//! word where it can be, never inside a character, and never between a letter
//! and what is drawn on it.

use crate::clean::is_mark;

/// Bytes of the end of a line on the wire.
const LINE_END: usize = 2;
/// A line that others see has at least so many bytes of text, whatever mask
/// and target leave: below it no character would fit.
const LEAST: usize = 16;

/// Bytes of text that fit into one message to `target`, with the sender's own
/// mask (`:nick!user@host `, `mask` bytes) that the server puts in front.
#[must_use]
pub fn budget(line: usize, mask: usize, target: &str) -> usize {
    let around = "PRIVMSG ".len() + target.len() + " :".len();
    line.saturating_sub(LINE_END + mask + around).max(LEAST)
}

/// Cuts `text` into pieces of at most `first` bytes, then `rest` bytes each.
/// The space at which it is cut is in neither piece; nothing else is lost. An
/// empty text is one empty piece.
#[must_use]
pub fn split(text: &str, first: usize, rest: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut left = text;
    let mut room = first.max(LEAST);
    let rest = rest.max(LEAST);
    while left.len() > room {
        let (piece, behind) = cut(left, room, rest);
        pieces.push(piece);
        left = behind;
        room = rest;
    }
    if !left.is_empty() || pieces.is_empty() {
        pieces.push(left);
    }
    pieces
}

/// The first piece of a text that is longer than `room`, and what is behind.
fn cut(text: &str, room: usize, next: usize) -> (&str, &str) {
    // A space right behind the room is a place to cut as well.
    let within = floor(text, room + 1);
    let space = text[..within].rfind(' ').filter(|&at| {
        let piece = text[..at].trim_end_matches(' ');
        let word = text[at..].trim_start_matches(' ');
        let word = word.find(' ').unwrap_or(word.len());
        // A word that would not fit on a line of its own is cut anyway: then
        // this line is not left almost empty for it.
        !piece.is_empty() && (word <= next || at >= room / 3)
    });
    if let Some(at) = space {
        return (
            text[..at].trim_end_matches(' '),
            text[at..].trim_start_matches(' '),
        );
    }
    let at = whole(text, floor(text, room));
    text.split_at(at)
}

/// The last end of a character at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The last place at or before `at` that is not inside what people see as one
/// sign; `at` itself when there is none.
fn whole(text: &str, at: usize) -> usize {
    let mut place = at;
    while place > 0 {
        let before = text[..place].chars().next_back();
        let behind = text[place..].chars().next();
        let (Some(before), Some(behind)) = (before, behind) else {
            return place;
        };
        if !belongs(&text[..place], before, behind) {
            return place;
        }
        place -= before.len_utf8();
    }
    at
}

/// Whether `behind` is part of the sign that `head` ends with.
fn belongs(head: &str, before: char, behind: char) -> bool {
    const JOINER: char = '\u{200d}';
    let flag = |c: char| matches!(c, '\u{1f1e6}'..='\u{1f1ff}');
    let skin = |c: char| matches!(c, '\u{1f3fb}'..='\u{1f3ff}');
    if is_mark(behind) || skin(behind) || before == JOINER {
        return true;
    }
    // Two letters are a flag: the second of a pair belongs to the first.
    flag(behind) && head.chars().rev().take_while(|c| flag(*c)).count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_counted_as_the_server_counts() {
        // ":muster!~m@host.example PRIVMSG #ops :<text>\r\n" is 512 at most.
        let mask = ":muster!~m@host.example ";
        let room = budget(512, mask.len(), "#ops");
        let line = format!("{mask}PRIVMSG #ops :{}\r\n", "x".repeat(room));
        assert_eq!(line.len(), 512);
        assert_eq!(budget(512, 900, "#ops"), LEAST);
    }

    #[test]
    fn words_stay_whole_where_they_can() {
        let text = "one two three four";
        assert_eq!(split(text, 18, 18), [text]);
        assert_eq!(split(text, 17, 17), ["one two three", "four"]);
        assert_eq!(
            split("aaaaaaaaaaaaaaaa bb", 16, 16),
            ["aaaaaaaaaaaaaaaa", "bb"]
        );
        // A link that fits on a line of its own is not cut.
        let link = "https://m.example/runs/8k2d";
        let text = format!("see {link}");
        assert_eq!(split(&text, 30, 30), ["see", link]);
        // One that does not fit anywhere is, and fills the line.
        let long = format!("see it at {}", "x".repeat(40));
        let pieces = split(&long, 20, 20);
        assert_eq!(pieces[0], "see it at");
        assert_eq!(pieces[1..].concat(), "x".repeat(40));
        let short = format!("a {}", "x".repeat(40));
        assert_eq!(split(&short, 20, 20)[0].len(), 20);
        assert_eq!(split("", 20, 20), [""]);
        assert_eq!(split("   ", 20, 20), ["   "]);
    }

    #[test]
    fn signs_are_not_cut() {
        // 2 bytes each: an odd room leaves one byte empty.
        let text = "é".repeat(20);
        assert!(split(&text, 17, 17).iter().all(|p| p.len() <= 17));
        // A letter keeps its accent.
        let text = format!("{}e\u{301}{}", "x".repeat(16), "y".repeat(16));
        assert_eq!(split(&text, 17, 20)[0], "x".repeat(16));
        // A flag is two letters.
        let text = "🇨🇭".repeat(6);
        for piece in split(&text, 20, 20) {
            assert_eq!(piece.chars().count() % 2, 0, "{piece}");
        }
        let family = "👩\u{200d}🚀";
        let text = format!("{}{family}", "x".repeat(12));
        assert_eq!(split(&text, 19, 20), ["x".repeat(12).as_str(), family]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_too_long(
            text in "[a-z é日😀\u{301}\u{200d}🇨]{0,300}",
            first in 16usize..80,
            rest in 16usize..80,
        ) {
            let pieces = split(&text, first, rest);
            for (n, piece) in pieces.iter().enumerate() {
                let room = if n == 0 { first } else { rest };
                prop_assert!(piece.len() <= room);
                prop_assert!(pieces.len() == 1 || !piece.is_empty());
            }
            let without = |t: &str| t.replace(' ', "");
            prop_assert_eq!(without(&pieces.concat()), without(&text));
            // Each is where it was: only spaces are between them.
            let mut left = text.as_str();
            for piece in &pieces {
                let at = left.find(piece).expect("a piece is of the text");
                prop_assert!(left[..at].chars().all(|c| c == ' '));
                left = &left[at + piece.len()..];
            }
        }

        #[test]
        fn any_text_at_all(text in any::<String>(), room in 0usize..600) {
            let pieces = split(&text, room, room);
            prop_assert!(pieces.iter().all(|p| p.len() <= room.max(LEAST)));
        }
    }
}
