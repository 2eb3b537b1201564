//! Lines that people write, and our own: those that come back, and those that
//! are refused.

use std::time::Duration;

use irc::proto::{Command, Message};
use muster_protocol::ids::random_bytes;
use muster_protocol::text::printable;
use muster_protocol::units::{Timestamp, elapsed};

use super::{Heard, Live, Now, Out, Target, safe_target, send};
use crate::irc::Line;
use crate::irc::addressed::Called;
use crate::irc::message::{Source, account, has_tag, tag};
use crate::irc::users::Tagged;

/// A line that was written longer ago than this is not for now.
const PAST: Duration = Duration::from_secs(60);
/// The tags by which servers mark what a bot wrote.
const BOT_TAGS: [&str; 3] = ["bot", "draft/bot", "inspircd.org/bot"];
/// Longest id of a line that is taken from the server, in bytes.
const MAX_ID: usize = 200;

impl Live {
    /// Somebody wrote something.
    pub(super) fn line(
        &mut self,
        message: &Message,
        who: &Source<'_>,
        target: &str,
        text: &str,
        now: Now,
        out: &mut Vec<Out>,
    ) {
        // What was written long ago says nothing of who is who now.
        let Ok(server_time) = self.written(message, now) else {
            return;
        };
        // Otherwise that is learnt also from what is not for the bot.
        let speaker = {
            let tagged = match (self.caps.account_tag, tag(message, "account")) {
                (false, _) => Tagged::Unable,
                (true, word) => word.and_then(account).map_or(Tagged::Nobody, Tagged::As),
            };
            self.users.lock().speaker(who, tagged)
        };
        // A person is always shown with their host.
        if who.from().is_none() {
            return;
        }
        // Two bots that answer each other never end.
        if BOT_TAGS.iter().any(|name| has_tag(message, name)) {
            return;
        }
        // Whatever comes in a batch is a text of several lines, or was said
        // before.
        if has_tag(message, "batch") {
            return;
        }
        let called = Called {
            nick: &self.own.nick,
            prefix: &self.settings.prefix,
            case: self.features.casemapping,
        };
        let channel = self.rooms.name(target);
        let command = match &channel {
            Some(_) => called.in_channel(text),
            None if self.is_own(target) => called.in_private(text),
            // To a part of a channel, or to everybody.
            None => None,
        };
        let Some(command) = command else { return };
        let command = command.to_owned();
        let id = tag(message, "msgid")
            .filter(|id| id.len() <= MAX_ID && id.bytes().all(|b| b.is_ascii_graphic()))
            .map_or_else(random_id, str::to_owned);
        out.push(Out::Tell(Heard::Line(Line {
            id,
            channel,
            speaker,
            heard: now.time,
            server_time,
            text: command,
        })));
    }

    /// When a line was written, if that is now.
    fn written(&mut self, message: &Message, now: Now) -> Result<Option<Timestamp>, ()> {
        let Some(text) = tag(message, "time") else {
            return Ok(None);
        };
        let Ok(time) = text.parse::<Timestamp>() else {
            return Err(());
        };
        if elapsed(time, now.time) <= PAST {
            return Ok(Some(time));
        }
        if !self.warned_of_clock {
            self.warned_of_clock = true;
            tracing::warn!(
                network = %self.settings.name,
                written = %time,
                heard = %now.time,
                "a line is more than {} s old and was left out: it was played back, or the \
                 clock of this machine or of the server is wrong",
                PAST.as_secs()
            );
        }
        Err(())
    }

    /// A line of ours comes back.
    pub(super) fn echo(&mut self, message: &Message, target: &str, text: &str, out: &mut Vec<Out>) {
        if !self.caps.echo_message {
            return;
        }
        let batch = tag(message, "batch");
        if batch.is_some_and(|reference| self.batches.is_ours(reference)) {
            return;
        }
        let label = tag(message, "label")
            .and_then(token)
            .or_else(|| batch.and_then(|reference| self.batches.answers(reference)));
        let token = match label {
            Some(token) => self.sent.labeled(token).then_some(token),
            None if self.caps.labeled_response => None,
            None => {
                let target = self.fold(target);
                self.sent.echoed(&target, Some(text))
            }
        };
        if let Some(token) = token {
            out.push(Out::Tell(Heard::Echo { token }));
        }
    }

    /// A line of ours was refused.
    pub(super) fn line_refused(
        &mut self,
        message: &Message,
        target: &str,
        code: u16,
        why: &str,
        out: &mut Vec<Out>,
    ) {
        let label = self.label_of(message);
        let token = match label {
            Some(token) => self.sent.labeled(token).then_some(token),
            None if self.caps.labeled_response => None,
            None => {
                let target = self.fold(target);
                self.sent.refused(&target)
            }
        };
        if let Some(token) = token {
            let why = format!("{} ({code})", printable(why, 200));
            out.push(Out::Tell(Heard::Refused { token, why }));
        }
    }

    /// An answer to a line of ours that is neither its echo nor one of the
    /// usual refusals.
    pub(super) fn labeled_answer(&mut self, message: &Message, out: &mut Vec<Out>) {
        let failed = match &message.command {
            Command::Raw(verb, args) if verb.eq_ignore_ascii_case("FAIL") => {
                Some(printable(args.last().map_or("", String::as_str), 200))
            }
            Command::Raw(verb, _) if verb.eq_ignore_ascii_case("ACK") => None,
            _ => return,
        };
        let Some(token) = self.label_of(message) else {
            return;
        };
        if self.sent.labeled(token) {
            out.push(Out::Tell(match failed {
                Some(why) => Heard::Refused { token, why },
                None => Heard::Echo { token },
            }));
        }
    }

    fn label_of(&mut self, message: &Message) -> Option<u64> {
        tag(message, "label").and_then(token).or_else(|| {
            let batch = tag(message, "batch")?;
            self.batches.answers(batch)
        })
    }

    /// One line of ours goes out.
    pub(super) fn send_line(&mut self, target: &Target, text: &str, token: u64) -> Vec<Out> {
        let Some(to) = safe_target(target) else {
            return refuse(token, "that is nobody to whom something can be sent");
        };
        if !safe_text(text) {
            return refuse(token, "a line is not empty, and has no CR, LF or NUL");
        }
        self.sent.line(
            token,
            self.features.casemapping.fold(to),
            Some(text.to_owned()),
        );
        vec![Out::Send(format!(
            "{}PRIVMSG {to} :{text}",
            self.label(token)
        ))]
    }

    /// Several lines of ours go out as one.
    pub(super) fn send_lines(&mut self, target: &Target, lines: &[String], token: u64) -> Vec<Out> {
        let Some(to) = safe_target(target) else {
            return refuse(token, "that is nobody to whom something can be sent");
        };
        let Some(limits) = self.caps.multiline else {
            return refuse(token, "the server takes no several lines as one");
        };
        let bytes = lines.iter().map(|l| l.len() + 1).sum::<usize>();
        let safe = |line: &String| line.is_empty() || safe_text(line);
        if lines.iter().all(String::is_empty)
            || lines.len() > limits.max_lines
            || bytes > limits.max_bytes
            || !lines.iter().all(safe)
        {
            return refuse(token, "these lines are not what the server takes as one");
        }
        self.sent
            .line(token, self.features.casemapping.fold(to), None);
        let mut out = vec![Out::Send(format!(
            "{}BATCH +b{token} draft/multiline {to}",
            self.label(token)
        ))];
        out.extend(
            lines
                .iter()
                .map(|line| Out::Send(format!("@batch=b{token} PRIVMSG {to} :{line}"))),
        );
        out.push(send("BATCH", &[&format!("-b{token}")]));
        out
    }

    fn label(&self, token: u64) -> String {
        if self.caps.labeled_response {
            format!("@label=m{token} ")
        } else {
            String::new()
        }
    }
}

/// The token that a label of ours stands for.
pub(super) fn token(label: &str) -> Option<u64> {
    label.strip_prefix('m')?.parse().ok()
}

fn safe_text(text: &str) -> bool {
    !text.is_empty() && !text.contains(['\r', '\n', '\0'])
}

fn refuse(token: u64, why: &str) -> Vec<Out> {
    let why = why.to_owned();
    vec![Out::Tell(Heard::Refused { token, why })]
}

fn random_id() -> String {
    data_encoding::BASE32_NOPAD
        .encode(&random_bytes::<15>())
        .to_ascii_lowercase()
}
