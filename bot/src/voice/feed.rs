//! What is to be said without that somebody has just asked.

use std::time::Instant;

use muster_protocol::api::{ChatPerson, Urgency, Utterance};
use muster_protocol::units::{Timestamp, elapsed};

use super::{
    Link, MOST_BYTES, MOST_CLOSED, MOST_NEWS, MOST_NEWS_THERE, OLD, Put, Tag, Voice, What,
};
use crate::ledger::{Seq, Take};
use crate::queue::To;

impl Voice {
    /// Whether there is room for one more utterance. Those that are not taken
    /// stay where they are: nothing is lost.
    #[must_use]
    pub fn wants_news(&self) -> bool {
        !self.stopping && self.ledger.has_room() && self.queue.bytes() < MOST_BYTES
    }

    /// Something is to be said. `time` is what the clock says: what came about
    /// long ago, while nobody was there to say it, is said to be old.
    pub fn utterance(
        &mut self,
        place: String,
        utterance: &Utterance,
        now: Instant,
        time: Timestamp,
    ) {
        let (seq, again) = match self.ledger.take(place) {
            Take::Known => return,
            Take::Fresh(seq) => (seq, false),
            Take::Again(seq) => (seq, true),
        };
        let at = &utterance.place;
        if at.network != self.network {
            self.skip(seq, utterance, "it is for another network");
            return;
        }
        let to = match (&at.channel, &at.person) {
            (Some(channel), _) => To::Channel(channel.clone()),
            (None, Some(person)) => To::Person(person.into()),
            (None, None) => {
                self.skip(seq, utterance, "it is for nobody");
                return;
            }
        };
        let urgency = utterance.say.urgency;
        let there = self.queue.waiting(&to, urgency);
        if there >= MOST_CLOSED && matches!(self.link, Link::Up(_)) && !self.is_open(&to) {
            self.skip(seq, utterance, "too much waits for a place where nobody is");
            return;
        }
        let many = there >= MOST_NEWS_THERE || self.queue.waiting_in_all(urgency) >= MOST_NEWS;
        if urgency == Urgency::News && many {
            self.notes.dropped(to, utterance.say.lines.len(), seq);
            return;
        }
        // Who asked is named; not every few seconds, though.
        let person = at.person.as_ref().filter(|_| at.channel.is_some());
        let nick = person
            .filter(|_| urgency != Urgency::Progress)
            .map(|p| (self.nick_of)(p).unwrap_or_else(|| p.nick.clone()));
        let asker = match &to {
            To::Channel(_) => None,
            To::Person(_) => at.person.as_ref().map(owner_of),
        };
        self.put(
            Put {
                to,
                nick: nick.as_deref(),
                urgency,
                about: utterance.say.about.clone(),
                what: What::Says(std::slice::from_ref(&utterance.say)),
                again,
                ago: Some(elapsed(utterance.at, time)).filter(|ago| *ago >= OLD),
                asker,
                tag: Tag::Feed([seq].into()),
            },
            now,
        );
    }

    /// It is followed from there on.
    pub fn here(&mut self, place: String) {
        self.ledger.here(place);
    }

    /// The store went back in time.
    pub fn renumbered(&mut self, place: String) {
        tracing::warn!(
            network = %self.network,
            "the broker's store went back in time: what was to be said in between is lost"
        );
        self.ledger.renumbered(place);
    }

    fn skip(&mut self, seq: Seq, utterance: &Utterance, why: &str) {
        tracing::warn!(
            network = %self.network, utterance = utterance.id, place = ?utterance.place, why,
            "not said"
        );
        self.ledger.done(&[seq]);
    }
}

/// Whose rest something is.
pub(super) fn owner(account: Option<&str>, sight: Option<&str>, mask: &str) -> String {
    match (account, sight) {
        (Some(account), _) => format!("a {account}"),
        (None, Some(sight)) => format!("s {sight}"),
        (None, None) => format!("m {mask}"),
    }
}

fn owner_of(person: &ChatPerson) -> String {
    owner(
        person.account.as_deref(),
        person.sight.as_deref(),
        &person.nick,
    )
}
