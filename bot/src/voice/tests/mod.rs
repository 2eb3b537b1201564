mod feed;
mod lines;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use muster_client::ClientError;
use muster_protocol::api::{ChatAccount, ChatAnswer, ChatPlace, Speaker, Tone, Utterance, Vouched};
use muster_protocol::units::Timestamp;

use super::*;
use crate::irc::{Caps, Casemapping, Multiline};

const SECOND: Duration = Duration::from_secs(1);

/// Who is there: by account or sight, their nick.
type People = Arc<Mutex<BTreeMap<String, String>>>;

struct World {
    voice: Voice,
    now: Instant,
    disk: Saved,
    people: People,
    sent: Vec<(String, String, u64)>,
    pings: Vec<u64>,
    asked: Vec<(Asker, ChatLine, Key)>,
}

fn settings() -> Settings {
    Settings {
        network: "ops".parse().expect("a name"),
        pace: Pace {
            burst: 4,
            every: SECOND,
            progress: 5 * SECOND,
        },
        style: Style {
            colours: false,
            symbols: false,
            max_lines: 6,
            prefix: "!".to_owned(),
        },
        several_brokers: false,
    }
}

fn voice(saved: Saved, people: &People) -> Voice {
    let people = people.clone();
    let nick_of = move |who: &ChatPerson| {
        let key = who.account.as_ref().or(who.sight.as_ref())?;
        people.lock().expect("not poisoned").get(key).cloned()
    };
    Voice::new(settings(), saved, Box::new(nick_of))
}

fn ready(echo: bool) -> Heard {
    Heard::Ready(Ready {
        nick: "muster".to_owned(),
        mask_bytes: 40,
        caps: Caps {
            echo_message: echo,
            ..Caps::default()
        },
        line_bytes: 512,
        casemapping: Casemapping::Ascii,
        network: None,
    })
}

fn channel(name: &str) -> ChannelName {
    name.parse().expect("a channel")
}

impl World {
    fn new() -> Self {
        let people = People::default();
        Self {
            voice: voice(Saved::default(), &people),
            now: Instant::now(),
            disk: Saved::default(),
            people,
            sent: Vec::new(),
            pings: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn up(echo: bool) -> Self {
        let mut world = Self::new();
        world.connect(echo);
        world
    }

    fn connect(&mut self, echo: bool) {
        self.voice.heard(ready(echo), self.now);
        self.voice.heard(Heard::Joined(channel("#ops")), self.now);
    }

    /// The process is gone, and another one is there.
    fn restart(&mut self, echo: bool) {
        self.voice = voice(self.disk.clone(), &self.people);
        self.sent.clear();
        self.connect(echo);
    }

    /// Does what is to be done now.
    fn pump(&mut self) {
        while let Some(act) = self.voice.next(self.now) {
            match act {
                Act::Send(Send::Ping { token }) => self.pings.push(token),
                Act::Send(Send::Privmsg {
                    target,
                    text,
                    token,
                }) => {
                    self.sent.push((target.as_str().to_owned(), text, token));
                }
                Act::Send(Send::Multiline {
                    target,
                    lines,
                    token,
                }) => {
                    let text = format!("[{}]", lines.join("|"));
                    self.sent.push((target.as_str().to_owned(), text, token));
                }
                Act::Save(saved) => {
                    self.disk = saved;
                    self.voice.saved(true);
                }
                Act::Ask { asker, line, key } => self.asked.push((asker, *line, key)),
            }
        }
    }

    /// So much time passes, in small steps.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        self.pump();
        while self.now < until {
            let due = self.voice.due(self.now).unwrap_or(until);
            // Never a moment for nothing.
            assert!(due > self.now, "due at once, with nothing to do");
            self.now = due.min(until);
            self.pump();
        }
    }

    fn said(&self) -> Vec<&str> {
        self.sent.iter().map(|(_, text, _)| text.as_str()).collect()
    }

    fn echo_all(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        for (_, _, token) in sent {
            self.voice.heard(Heard::Echo { token }, self.now);
        }
        self.pump();
    }

    fn news(&mut self, place: &str, urgency: Urgency, about: Option<&str>, text: &str) {
        let utterance = utterance(urgency, about, text, Some("#ops"), None);
        self.voice.utterance(
            place.to_owned(),
            &utterance,
            self.now,
            Timestamp::UNIX_EPOCH,
        );
        self.pump();
    }

    fn hear(&mut self, line: Line) {
        self.voice.heard(Heard::Line(line), self.now);
        self.pump();
    }

    fn answer(&mut self, lines: &[&str]) {
        let (asker, ..) = self.asked.remove(0);
        let say = Say {
            urgency: Urgency::Reply,
            tone: Tone::Plain,
            about: Some("8k2d".to_owned()),
            lines: lines.iter().map(|l| (*l).to_owned()).collect(),
            link: None,
        };
        let answer = ChatAnswer { says: vec![say] };
        self.voice.answered(&asker, Ok(answer), self.now);
        self.pump();
    }
}

fn utterance(
    urgency: Urgency,
    about: Option<&str>,
    text: &str,
    place: Option<&str>,
    person: Option<ChatPerson>,
) -> Utterance {
    Utterance {
        id: text.to_owned(),
        place: ChatPlace {
            network: "ops".parse().expect("a name"),
            channel: place.map(channel),
            person,
        },
        say: Say {
            urgency,
            tone: Tone::Plain,
            about: about.map(str::to_owned),
            lines: text.lines().map(str::to_owned).collect(),
            link: None,
        },
        at: Timestamp::UNIX_EPOCH,
    }
}

fn line(nick: &str, place: Option<&str>, text: &str) -> Line {
    Line {
        id: format!("{nick} {text}"),
        channel: place.map(channel),
        speaker: Speaker {
            nick: nick.to_owned(),
            mask: format!("{nick}!u@h"),
            sight: Some(format!("sight of {nick}")),
            account: Some(ChatAccount {
                name: nick.to_owned(),
                vouched: Vouched::Tag,
            }),
        },
        heard: Timestamp::UNIX_EPOCH,
        server_time: None,
        text: text.to_owned(),
    }
}

fn ana() -> ChatPerson {
    ChatPerson {
        nick: "ana".to_owned(),
        account: Some("ana".to_owned()),
        sight: None,
    }
}
