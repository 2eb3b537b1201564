//! Sentences become lines of IRC.
//!
//! ```text
//! ana: 8k2d deploy 1.4.1→1.4.2 on 12 of web's 24 (gva2), 4 batches by rack
//! ✓ 8k2d 12 of 12 upgraded  https://muster.example/runs/8k2d
//! ```
//!
//! The run's short id is in front; the asker's nick before that, in a channel.
//! At most so many lines: the last one then says how many more there are.
//! A tone is a sign and a colour of the id, and nothing else: it can be read
//! without either. Everything from outside is cleaned here, and only here.

use std::time::Duration;

use muster_protocol::api::{Say, Tone};

use crate::clean::{clean, guard};
use crate::split::split;

/// What stands before what did not fit on a line.
const INDENT: &str = "  ";
/// Most bytes that are put before a line that is not the first.
const BEFORE: usize = 8;
/// Most lines that are kept for `!more`. Of what is behind them only the
/// number is known.
const MOST_KEPT: usize = 200;
/// Marks what may have been said before.
const AGAIN: &str = "(again) ";

/// How things look.
#[derive(Clone, Debug)]
pub struct Style {
    /// The id of a run is bold and has a colour.
    pub colours: bool,
    /// A tone has a sign.
    pub symbols: bool,
    /// Most lines that are said at once.
    pub max_lines: usize,
    /// What a command begins with.
    pub prefix: String,
}

/// Where and to whom it is said.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Named in front: somebody in a channel who asked.
    pub nick: Option<&'a str>,
    /// It may have been said before.
    pub again: bool,
    /// It came about so long ago, which is to be said.
    pub ago: Option<Duration>,
    /// Bytes of a line.
    pub budget: usize,
    /// Commands have the prefix there: not where the bot alone reads.
    pub prefixed: bool,
}

/// Lines to be said, and what is left.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rendered {
    /// At most [`Style::max_lines`].
    pub lines: Vec<String>,
    /// For `!more`.
    pub rest: Vec<String>,
    /// Lines that are behind those, and are not kept.
    pub lost: usize,
}

/// Makes lines of what is to be said together.
#[must_use]
pub fn render(says: &[Say], style: &Style, frame: &Frame<'_>) -> Rendered {
    let whole = lines(says, style, frame, true);
    if whole.lines.len() <= style.max_lines && whole.lost == 0 {
        return whole;
    }
    // The link is then in the last line, where the rest is spoken of.
    let all = lines(says, style, frame, false);
    let link = says.iter().find_map(|say| say.link.as_deref());
    cut(all.lines, all.lost, link, style, frame)
}

/// The next lines of what was left. The first one names run and asker again,
/// and can be longer than the budget by that.
#[must_use]
pub fn render_more(
    mut rest: Vec<String>,
    lost: usize,
    about: Option<&str>,
    style: &Style,
    frame: &Frame<'_>,
) -> Rendered {
    if let Some(first) = rest.first_mut() {
        let head = front(about, Tone::Plain, style, frame.nick, false, None);
        if !head.is_empty() {
            *first = format!("{head}{}", first.trim_start());
        }
    }
    if rest.len() <= style.max_lines && lost == 0 {
        let lines = rest;
        return Rendered {
            lines,
            ..Rendered::default()
        };
    }
    cut(rest, lost, None, style, frame)
}

/// Says as many as are said at once, and how many more there are.
fn cut(
    mut lines: Vec<String>,
    lost: usize,
    link: Option<&str>,
    style: &Style,
    frame: &Frame<'_>,
) -> Rendered {
    let shown = style.max_lines.max(2) - 1;
    let rest = lines.split_off(shown.min(lines.len()));
    let more = if frame.prefixed {
        style.prefix.as_str()
    } else {
        ""
    };
    let left = rest.len() + lost;
    let plural = if left == 1 { "line" } else { "lines" };
    let mut note = match (rest.is_empty(), link) {
        (true, None) => format!("… {left} more {plural}, too many to be kept here"),
        (true, Some(_)) => format!("… {left} more {plural}"),
        (false, _) => format!("… {left} more {plural}: {more}more"),
    };
    if let Some(link) = link {
        let link = clean(link);
        if note.len() + " · ".len() + link.len() <= frame.budget {
            note.push_str(" · ");
            note.push_str(&link);
        }
    }
    lines.push(note);
    Rendered { lines, rest, lost }
}

/// All lines, as far as they are kept.
fn lines(says: &[Say], style: &Style, frame: &Frame<'_>, links: bool) -> Rendered {
    let mut out = Rendered::default();
    let most = style.max_lines + MOST_KEPT;
    for (n, say) in says.iter().enumerate() {
        let nick = frame.nick.filter(|_| n == 0);
        let ago = frame.ago.filter(|_| n == 0);
        let again = frame.again && n == 0;
        let head = front(say.about.as_deref(), say.tone, style, nick, again, ago);
        let first = say.lines.first().map_or("", String::as_str);
        // A sentence may name the run itself.
        let named = say
            .about
            .as_deref()
            .and_then(|about| first.strip_prefix(about));
        let first = named
            .and_then(|rest| rest.strip_prefix(' '))
            .unwrap_or(first);
        let mut text = format!("{head}{}", clean(first));
        if let Some(link) = say.link.as_deref().filter(|_| links) {
            if !text.is_empty() && !text.ends_with(' ') {
                text.push_str(INDENT);
            }
            text.push_str(&clean(link));
        }
        push(&mut out, &text, head.is_empty(), frame.budget, most);
        for line in say.lines.iter().skip(1) {
            let line = clean(line);
            // What belongs to a run is below its id.
            let text = if say.about.is_some() && !line.starts_with(' ') {
                format!("{INDENT}{line}")
            } else {
                line.into_owned()
            };
            push(&mut out, &text, true, frame.budget, most);
        }
    }
    out
}

/// Cuts a line into those that fit.
fn push(out: &mut Rendered, text: &str, guarded: bool, budget: usize, most: usize) {
    if text.trim().is_empty() {
        return;
    }
    if out.lines.len() >= most {
        out.lost += 1;
        return;
    }
    let room = budget.saturating_sub(BEFORE);
    let first = if guarded { room } else { budget };
    for (n, piece) in split(text, first, room).into_iter().enumerate() {
        if out.lines.len() >= most {
            out.lost += 1;
            continue;
        }
        out.lines.push(match n {
            0 if !guarded => piece.to_owned(),
            0 => guard(piece).into_owned(),
            _ => guard(&format!("{INDENT}{piece}")).into_owned(),
        });
    }
}

/// What is in front of the first line.
fn front(
    about: Option<&str>,
    tone: Tone,
    style: &Style,
    nick: Option<&str>,
    again: bool,
    ago: Option<Duration>,
) -> String {
    let mut head = String::new();
    if let Some(nick) = nick {
        head.push_str(&clean(nick));
        head.push_str(": ");
    }
    if again {
        head.push_str(AGAIN);
    }
    if let Some(ago) = ago {
        let minutes = ago.as_secs() / 60;
        head.push_str(&match minutes {
            0..100 => format!("({minutes} min ago) "),
            100..2_880 => format!("({} h ago) ", minutes / 60),
            _ => format!("({} d ago) ", minutes / 1_440),
        });
    }
    let (sign, colour) = match tone {
        Tone::Plain => (None, None),
        Tone::Good => (Some('✓'), Some("03")),
        Tone::Warn => (Some('▲'), Some("07")),
        Tone::Bad => (Some('✗'), Some("04")),
    };
    // Two digits always: what follows may begin with one.
    let colour = colour.filter(|_| style.colours);
    if let Some(sign) = sign.filter(|_| style.symbols) {
        match colour {
            Some(colour) => head.push_str(&format!("\x03{colour}{sign}\x0f ")),
            None => head.push_str(&format!("{sign} ")),
        }
    }
    if let Some(about) = about {
        let about = clean(about);
        match (style.colours, colour) {
            (true, Some(colour)) => head.push_str(&format!("\x02\x03{colour}{about}\x0f ")),
            (true, None) => head.push_str(&format!("\x02{about}\x0f ")),
            (false, _) => head.push_str(&format!("{about} ")),
        }
    }
    head
}

/// The mark on lines that were cut already and may have been said before.
#[must_use]
pub fn again(line: &str) -> String {
    if line.contains(AGAIN.trim_end()) {
        line.to_owned()
    } else {
        format!("{AGAIN}{line}")
    }
}

#[cfg(test)]
mod tests;
