//! Who is seen on a network, and as whom: what the server says, and nothing
//! that anybody writes. A name proves nothing here.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_protocol::api::{ChatAccount, ChatPerson, Speaker, Vouched};
use muster_protocol::chat::ChannelName;
use muster_protocol::ids::random_bytes;

use super::Casemapping;
use super::message::Source;

/// Most people that are followed. Of more than these nothing is known but what
/// the server says on their own lines.
const MAX_USERS: usize = 16_384;

/// Who is there now. Cheap to clone; all clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Users(Arc<Mutex<Roster>>);

impl Users {
    /// What this person is called now: whoever is logged in to their account,
    /// or, for somebody without one, whoever is still in that sight. `None`
    /// when they are not there.
    #[must_use]
    pub fn nick_of(&self, person: &ChatPerson) -> Option<String> {
        self.lock().nick_of(person)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Roster> {
        // Every change of the roster is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the server says about the account on a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tagged<'a> {
    /// Nothing: it cannot.
    Unable,
    /// They are not logged in.
    Nobody,
    /// They are.
    As(&'a str),
}

#[derive(Debug)]
struct User {
    nick: String,
    /// `user@host`, once it was seen.
    from: Option<String>,
    sight: String,
    account: Option<String>,
    channels: BTreeSet<ChannelName>,
}

/// Those who share a channel with the bot.
#[derive(Debug, Default)]
pub(super) struct Roster {
    case: Casemapping,
    users: HashMap<String, User>,
}

impl Roster {
    /// Forgets everybody: a new connection begins.
    pub(super) fn reset(&mut self, case: Casemapping) {
        self.case = case;
        self.users = HashMap::new();
    }

    /// They are in that channel. `account` is `None` where the server does not
    /// say.
    pub(super) fn joined(
        &mut self,
        who: &Source<'_>,
        channel: &ChannelName,
        account: Option<Option<&str>>,
    ) {
        let Some(user) = self.user(who) else { return };
        user.channels.insert(channel.clone());
        if let Some(account) = account {
            user.account = account.map(str::to_owned);
        }
    }

    /// What the server answered when it was asked about somebody. Only those
    /// who were seen already count.
    pub(super) fn described(&mut self, who: &Source<'_>, account: Option<Option<&str>>) {
        let key = self.case.fold(who.nick);
        if !self.users.contains_key(&key) {
            return;
        }
        if let Some(user) = self.user(who)
            && let Some(account) = account
        {
            user.account = account.map(str::to_owned);
        }
    }

    /// They logged in or out.
    pub(super) fn account(&mut self, who: &Source<'_>, account: Option<&str>) {
        let key = self.case.fold(who.nick);
        if let Some(user) = self.users.get_mut(&key) {
            user.account = account.map(str::to_owned);
        }
    }

    /// They have another name now: another sight of the same connection.
    pub(super) fn renamed(&mut self, who: &Source<'_>, to: &str) {
        let (old, new) = (self.case.fold(who.nick), self.case.fold(to));
        let user = self.users.remove(&old);
        // Nobody can have that name already; if somebody seems to, they left
        // unseen.
        self.users.remove(&new);
        if let Some(mut user) = user {
            user.nick = to.to_owned();
            user.sight = new_sight();
            self.users.insert(new, user);
        }
    }

    /// They have another host now.
    pub(super) fn moved(&mut self, who: &Source<'_>, user: &str, host: &str) {
        let key = self.case.fold(who.nick);
        if let Some(seen) = self.users.get_mut(&key) {
            seen.from = Some(format!("{user}@{host}"));
        }
    }

    /// They left one channel.
    pub(super) fn left(&mut self, nick: &str, channel: &ChannelName) {
        let key = self.case.fold(nick);
        if let Some(user) = self.users.get_mut(&key) {
            user.channels.remove(channel);
            if user.channels.is_empty() {
                self.users.remove(&key);
            }
        }
    }

    /// They are gone.
    pub(super) fn quit(&mut self, nick: &str) {
        self.users.remove(&self.case.fold(nick));
    }

    /// The bot left: nothing is seen there any more.
    pub(super) fn channel_lost(&mut self, channel: &ChannelName) {
        self.users.retain(|_, user| {
            user.channels.remove(channel);
            !user.channels.is_empty()
        });
    }

    /// Who wrote a line, by what is known of them and what the line says.
    pub(super) fn speaker(&mut self, who: &Source<'_>, tagged: Tagged<'_>) -> Speaker {
        let key = self.case.fold(who.nick);
        let mut speaker = Speaker {
            nick: who.nick.to_owned(),
            mask: who.mask(),
            sight: None,
            account: match tagged {
                Tagged::As(name) => Some(ChatAccount {
                    name: name.to_owned(),
                    vouched: Vouched::Tag,
                }),
                Tagged::Unable | Tagged::Nobody => None,
            },
        };
        if !self.users.contains_key(&key) {
            return speaker;
        }
        let Some(user) = self.user(who) else {
            return speaker;
        };
        speaker.sight = Some(user.sight.clone());
        match tagged {
            Tagged::As(name) => user.account = Some(name.to_owned()),
            Tagged::Nobody => user.account = None,
            Tagged::Unable => {
                speaker.account = user.account.clone().map(|name| ChatAccount {
                    name,
                    vouched: Vouched::Tracked,
                });
            }
        }
        speaker
    }

    /// The one with that name, seen now. One who has another host than the one
    /// seen before, without that the server told of a change, is somebody
    /// else.
    fn user(&mut self, who: &Source<'_>) -> Option<&mut User> {
        let key = self.case.fold(who.nick);
        if self.users.len() >= MAX_USERS && !self.users.contains_key(&key) {
            return None;
        }
        let user = self.users.entry(key).or_insert_with(|| User {
            nick: who.nick.to_owned(),
            from: None,
            sight: new_sight(),
            account: None,
            channels: BTreeSet::new(),
        });
        if let Some(from) = who.from() {
            if user.from.as_ref().is_some_and(|seen| *seen != from) {
                user.sight = new_sight();
                user.account = None;
            }
            user.from = Some(from);
        }
        Some(user)
    }

    fn nick_of(&self, person: &ChatPerson) -> Option<String> {
        let found = match (&person.account, &person.sight) {
            (Some(account), _) => self
                .users
                .values()
                .filter(|u| {
                    u.account
                        .as_ref()
                        .is_some_and(|a| a.eq_ignore_ascii_case(account))
                })
                // Whoever has two connections is where they asked, if that is
                // still one of them.
                .min_by_key(|u| (u.nick != person.nick, u.nick.clone())),
            (None, Some(sight)) => self.users.values().find(|u| u.sight == *sight),
            (None, None) => None,
        };
        found.map(|u| u.nick.clone())
    }
}

fn new_sight() -> String {
    data_encoding::BASE32_NOPAD
        .encode(&random_bytes::<15>())
        .to_ascii_lowercase()
}

#[cfg(test)]
mod tests;
