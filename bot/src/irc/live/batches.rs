//! Batches: several messages that belong together.

use std::collections::HashMap;

use irc::proto::{BatchSubCommand, Message};

use super::{Heard, Live, Out};
use crate::irc::message::{Source, tag};

/// Most batches that are open at once; more are not told apart.
const MAX_BATCHES: usize = 64;

#[derive(Debug)]
enum Batch {
    /// What happened before: nothing in it counts. Lines in any other batch are
    /// not for the bot either, but that somebody left counts wherever it is.
    Past,
    /// Several lines of ours as one; what was sent as.
    Ours { token: Option<u64> },
    /// The answer to a line of ours, until it is clear what it is.
    Answer { token: u64 },
    /// Something that happens now, to many.
    Now,
}

/// The batches that are open.
#[derive(Debug, Default)]
pub(super) struct Batches(HashMap<String, Batch>);

impl Batches {
    /// Whether what is in that batch happened before.
    pub(super) fn is_past(&self, reference: Option<&str>) -> bool {
        reference.is_some_and(|r| matches!(self.0.get(r), Some(Batch::Past)))
    }

    /// The token of the line that the batch is an answer to; only once.
    pub(super) fn answers(&mut self, reference: &str) -> Option<u64> {
        let batch = self.0.get_mut(reference)?;
        let Batch::Answer { token } = *batch else {
            return None;
        };
        *batch = Batch::Now;
        Some(token)
    }

    /// Whether the batch is several lines of ours.
    pub(super) fn is_ours(&self, reference: &str) -> bool {
        matches!(self.0.get(reference), Some(Batch::Ours { .. }))
    }
}

impl Live {
    pub(super) fn batch(
        &mut self,
        message: &Message,
        reference: &str,
        kind: Option<&BatchSubCommand>,
        args: Option<&[String]>,
        out: &mut Vec<Out>,
    ) {
        if let Some(name) = reference.strip_prefix('-') {
            match self.batches.0.remove(name) {
                Some(Batch::Ours { token: Some(token) }) => {
                    out.push(Out::Tell(Heard::Echo { token }));
                }
                // Dealt with, and nothing more was said about it.
                Some(Batch::Answer { token }) if self.sent.labeled(token) => {
                    out.push(Out::Tell(Heard::Echo { token }));
                }
                _ => {}
            }
            return;
        }
        let Some(name) = reference.strip_prefix('+') else {
            return;
        };
        if self.batches.0.len() >= MAX_BATCHES {
            return;
        }
        let label = tag(message, "label").and_then(super::lines::token);
        let own = Source::of(message).is_some_and(|who| self.is_own(who.nick));
        let batch = match kind {
            Some(BatchSubCommand::CUSTOM(kind)) => match kind.to_ascii_lowercase().as_str() {
                "labeled-response" => label.map_or(Batch::Now, |token| Batch::Answer { token }),
                "draft/multiline" if own => {
                    let target = args.and_then(<[String]>::first).map_or("", String::as_str);
                    let target = self.fold(target);
                    let outer = tag(message, "batch").and_then(|r| self.batches.answers(r));
                    let token = match label.or(outer) {
                        Some(token) => self.sent.labeled(token).then_some(token),
                        None => self.sent.echoed(&target, None),
                    };
                    Batch::Ours { token }
                }
                kind if kind.contains("history") || kind.contains("playback") => Batch::Past,
                _ => Batch::Now,
            },
            // Netsplits and what comes after them.
            _ => Batch::Now,
        };
        self.batches.0.insert(name.to_owned(), batch);
    }
}
