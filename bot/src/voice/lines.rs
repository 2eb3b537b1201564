//! Lines that were written to the bot, and what came of them.

use std::time::Instant;

use data_encoding::BASE32HEX_NOPAD;
use muster_client::{ClientError, Key};
use muster_protocol::api::{ChatAnswer, ChatLine, Speaker, Urgency};
use sha2::{Digest as _, Sha256};

use super::{Act, Asked, MOST_BYTES, MOST_ITEMS, Put, Tag, Voice, What, until, words};
use crate::intake::Asker;
use crate::irc::Line;
use crate::queue::{To, Who};

impl Voice {
    /// Somebody wrote something for the bot.
    pub(super) fn line(&mut self, line: Line, now: Instant) {
        if let Some(about) = wants_more(&line.text) {
            let about = about.map(str::to_owned);
            self.say_more(&line, about.as_deref(), now);
            return;
        }
        if self.stopping {
            self.note(&line, words::STOPPING.to_owned());
            return;
        }
        // An answer that cannot be said within a reasonable time is none.
        let full = self.queue.bytes() >= MOST_BYTES || self.queue.len() >= MOST_ITEMS;
        let refused = if full {
            Some(Box::new(line))
        } else {
            self.intake.push(line, now).err()
        };
        if let Some(line) = refused {
            self.note(&line, words::TOO_MANY.to_owned());
        }
    }

    /// The next line for the broker.
    pub(super) fn ask(&mut self, now: Instant) -> Option<Act> {
        let (asker, line) = self.intake.start()?;
        let chat = ChatLine {
            id: line.id.clone(),
            network: self.network.clone(),
            channel: line.channel.clone(),
            speaker: line.speaker.clone(),
            heard: line.heard,
            server_time: line.server_time,
            line: line.text.clone(),
        };
        let Some(key) = key(&chat) else {
            // A digest is no header: it cannot be.
            self.intake.done(&asker);
            return None;
        };
        let asked = Asked {
            line,
            since: now,
            told: false,
        };
        self.asked.insert(asker.clone(), asked);
        Some(Act::Ask {
            asker,
            line: Box::new(chat),
            key,
        })
    }

    /// The broker answered, or did not.
    pub fn answered(
        &mut self,
        asker: &Asker,
        answer: Result<ChatAnswer, ClientError>,
        now: Instant,
    ) {
        self.intake.done(asker);
        let Some(Asked { line, .. }) = self.asked.remove(asker) else {
            return;
        };
        match answer {
            Ok(answer) if answer.says.is_empty() => {}
            Ok(answer) => {
                let (to, nick) = place(&line);
                let says = &answer.says;
                let urgency = says.iter().map(|s| s.urgency).min();
                let tag = Tag::Reply {
                    until: until(&to, now),
                };
                self.put(
                    Put {
                        to,
                        nick,
                        // It is an answer, whatever it is about.
                        urgency: urgency.unwrap_or(Urgency::Reply).min(Urgency::Reply),
                        about: says.iter().find_map(|s| s.about.clone()),
                        what: What::Says(says),
                        again: false,
                        ago: None,
                        asker: Some(own(&line.speaker)),
                        tag,
                    },
                    now,
                );
            }
            Err(error) => {
                tracing::warn!(network = %self.network, id = line.id, %error, "a line was not answered");
                let text = words::failure(&error, self.several_brokers);
                self.note(&line, text);
            }
        }
    }

    /// Says something about a line that was written, as soon as there is room.
    pub(super) fn note(&mut self, line: &Line, text: String) {
        let (to, nick) = place(line);
        self.notes.reply(to, nick, text);
    }

    fn say_more(&mut self, line: &Line, about: Option<&str>, now: Instant) {
        let (to, nick) = place(line);
        let asker = own(&line.speaker);
        let channel = line.channel.as_ref();
        let Some(rest) = self.more.take(channel, &asker, about, now) else {
            self.note(line, words::NO_MORE.to_owned());
            return;
        };
        let tag = Tag::Reply {
            until: until(&to, now),
        };
        self.put(
            Put {
                to,
                nick,
                urgency: Urgency::Reply,
                about: rest.about.clone(),
                what: What::Rest(rest),
                again: false,
                ago: None,
                asker: Some(asker),
                tag,
            },
            now,
        );
    }
}

/// Whether a line asks for the rest, and of which run.
fn wants_more(text: &str) -> Option<Option<&str>> {
    let mut words = text.split_whitespace();
    let first = words.next()?;
    let about = words.next();
    (first.eq_ignore_ascii_case("more") && words.next().is_none()).then_some(about)
}

/// Where a line is answered, and who is named there.
fn place(line: &Line) -> (To, Option<&str>) {
    let speaker = &line.speaker;
    match &line.channel {
        Some(channel) => (To::Channel(channel.clone()), Some(speaker.nick.as_str())),
        None => {
            // Of whom nothing is seen, nothing could be found again either.
            let account = speaker.account.as_ref().map(|a| a.name.clone());
            let who = Who {
                account: account.filter(|_| speaker.sight.is_some()),
                sight: speaker.sight.clone(),
                nick: speaker.nick.clone(),
            };
            (To::Person(who), None)
        }
    }
}

/// Whose rest something is: an account's, else a connection's.
fn own(speaker: &Speaker) -> String {
    let account = speaker.account.as_ref().map(|a| a.name.as_str());
    super::feed::owner(account, speaker.sight.as_deref(), &speaker.mask)
}

/// Names the request: the same line is one request.
fn key(line: &ChatLine) -> Option<Key> {
    let mut hash = Sha256::new();
    hash.update(line.network.as_str());
    hash.update([0]);
    hash.update(&line.id);
    let digest = hash.finalize();
    Key::named(&format!("chat-{}", BASE32HEX_NOPAD.encode(&digest)))
}
