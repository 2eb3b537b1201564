//! What the bot says of its own accord: that something was not done, or that
//! it cannot say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_client::ClientError;
use muster_protocol::api::{Say, Tone, Urgency};
use muster_protocol::problem::Kind;

use crate::ledger::Seq;
use crate::queue::To;

/// More lines at once than there is room for.
pub(super) const TOO_MANY: &str =
    "too many lines at once; nothing was done. Send it again in a while";
/// It waited for the broker in vain.
pub(super) const LATE: &str =
    "the broker had no time for this within 20 s; nothing was done. Send it again in a while";
/// It is with the broker for long.
pub(super) const SLOW: &str = "the broker has not answered yet; still waiting for it";
/// The bot is about to end.
pub(super) const STOPPING: &str =
    "this bot is just being stopped; nothing was done. Send it again when it is back";
/// There is nothing for `!more`.
pub(super) const NO_MORE: &str = "there is nothing more that you have not seen";
/// Most nicks that are named.
const MOST_NICKS: usize = 5;

/// A sentence of the bot's own.
pub(super) fn say(urgency: Urgency, text: String) -> Say {
    Say {
        urgency,
        tone: match text.as_str() {
            NO_MORE | SLOW => Tone::Plain,
            _ => Tone::Warn,
        },
        about: None,
        lines: vec![text],
        link: None,
    }
}

/// What a line came to that got no answer. `several` brokers: an earlier one
/// may have done something before a later one could not be reached.
pub(super) fn failure(error: &ClientError, several: bool) -> String {
    let surely_not = matches!(
        error,
        ClientError::Refused { .. }
            | ClientError::Connect { .. }
            | ClientError::Tls { .. }
            | ClientError::Scheme { .. }
            | ClientError::NotReady(_)
            | ClientError::CaFile { .. }
            | ClientError::Setup { .. }
            | ClientError::Url { .. }
    );
    match error {
        ClientError::Problem(problem) => match problem.kind {
            Kind::Unauthenticated | Kind::Denied => {
                "the broker does not take this bot's word (its token is wrong, or not that of a \
                 witness of this network); nothing was done. The bot's log says more"
                    .to_owned()
            }
            Kind::Unavailable | Kind::RateLimited => format!(
                "the broker has no time ({}); nothing was done. Send it again in a while",
                problem.title
            ),
            Kind::Internal => unsure("the broker failed"),
            _ => match &problem.hint {
                Some(hint) => format!("the broker does not take this: {}; {hint}", problem.title),
                None => format!("the broker does not take this: {}", problem.title),
            },
        },
        _ if surely_not && !several => {
            "the broker cannot be reached; nothing was done. Send it again in a while, or use \
             `muster` on a machine"
                .to_owned()
        }
        _ => unsure("the broker did not answer"),
    }
}

fn unsure(what: &str) -> String {
    format!("{what}; this may or may not have been done. Look with !runs before you send it again")
}

/// Sentences that wait until there is room for them; those that say the same
/// to the same people are one.
#[derive(Debug, Default)]
pub(super) struct Notes(BTreeMap<(To, Kept), Note>);

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Kept {
    Reply(String),
    Dropped,
}

#[derive(Debug, Default)]
struct Note {
    count: usize,
    nicks: BTreeSet<String>,
    others: bool,
    seqs: Vec<Seq>,
}

/// One that there is room for.
#[derive(Debug)]
pub(super) struct Ripe {
    pub(super) to: To,
    pub(super) nick: Option<String>,
    pub(super) say: Say,
    /// The places that it stands for.
    pub(super) seqs: Option<Arc<[Seq]>>,
}

impl Notes {
    /// Something was not done of what was written there.
    pub(super) fn reply(&mut self, to: To, nick: Option<&str>, text: String) {
        let note = self.0.entry((to, Kept::Reply(text))).or_default();
        note.count += 1;
        if let Some(nick) = nick {
            if note.nicks.len() < MOST_NICKS || note.nicks.contains(nick) {
                note.nicks.insert(nick.to_owned());
            } else {
                note.others = true;
            }
        }
    }

    /// News are not said there one by one.
    pub(super) fn dropped(&mut self, to: To, lines: usize, seq: Seq) {
        let note = self.0.entry((to, Kept::Dropped)).or_default();
        note.count += lines.max(1);
        note.seqs.push(seq);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out those for which there is `room`.
    pub(super) fn ripe(&mut self, room: impl Fn(&To, Urgency) -> bool) -> Vec<Ripe> {
        let all = std::mem::take(&mut self.0).into_iter();
        let (ripe, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.partition(|((to, kept), _)| match kept {
                Kept::Reply(_) => room(to, Urgency::Reply),
                Kept::Dropped => room(to, Urgency::News),
            });
        self.0 = rest;
        let ripe = ripe.into_iter();
        ripe.map(|((to, kept), note)| note.ripe(to, kept)).collect()
    }
}

impl Note {
    fn ripe(self, to: To, kept: Kept) -> Ripe {
        let count = self.count;
        match kept {
            Kept::Reply(text) => {
                let mut nicks = self.nicks.into_iter().collect::<Vec<_>>().join(", ");
                if self.others {
                    nicks.push_str(" and others");
                }
                let text = match count {
                    1 => text,
                    _ => format!("{count} lines: {text}"),
                };
                Ripe {
                    to,
                    nick: (!nicks.is_empty()).then_some(nicks),
                    say: say(Urgency::Reply, text),
                    seqs: None,
                }
            }
            Kept::Dropped => {
                let lines = if count == 1 { "line" } else { "lines" };
                let text = format!(
                    "{count} more {lines} are not said here: too many at once. `muster events` has them"
                );
                Ripe {
                    to,
                    nick: None,
                    say: say(Urgency::News, text),
                    seqs: Some(self.seqs.into()),
                }
            }
        }
    }
}
