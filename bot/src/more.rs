//! What was too much to be said at once, until somebody wants it: the only
//! command that the bot answers by itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use muster_protocol::chat::ChannelName;

/// How long it is kept.
const KEPT: Duration = Duration::from_secs(600);
/// Most pieces of text that are kept.
const MOST: usize = 64;
/// Most bytes of all of them.
const MOST_BYTES: usize = 512 << 10;

/// What is left of something that was said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rest {
    /// Of which run.
    pub about: Option<String>,
    /// The lines.
    pub lines: Vec<String>,
    /// How many more there were, which are not kept.
    pub lost: usize,
}

impl Rest {
    fn bytes(&self) -> usize {
        self.lines.iter().map(String::len).sum()
    }
}

#[derive(Debug)]
struct Kept {
    /// Absent for what was said to one person alone.
    place: Option<ChannelName>,
    /// Whoever asked for it; absent for what was said to all in a channel.
    asker: Option<String>,
    at: Instant,
    rest: Rest,
}

/// What is left, in all places of a network.
#[derive(Debug, Default)]
pub struct More {
    /// The newest is last.
    kept: VecDeque<Kept>,
    bytes: usize,
}

impl More {
    /// Keeps what was left of something. For one asker in one place only the
    /// newest of each run is kept.
    pub fn keep(
        &mut self,
        place: Option<ChannelName>,
        asker: Option<String>,
        rest: Rest,
        now: Instant,
    ) {
        self.forget(|k| k.place == place && k.asker == asker && k.rest.about == rest.about);
        if rest.lines.is_empty() {
            return;
        }
        self.bytes += rest.bytes();
        self.kept.push_back(Kept {
            place,
            asker,
            at: now,
            rest,
        });
        while self.kept.len() > MOST || self.bytes > MOST_BYTES {
            let Some(old) = self.kept.pop_front() else {
                break;
            };
            self.bytes -= old.rest.bytes();
        }
    }

    /// Takes out the newest that is for whoever asks there, of that run if one
    /// is named: their own, or what was said to all.
    pub fn take(
        &mut self,
        place: Option<&ChannelName>,
        asker: &str,
        about: Option<&str>,
        now: Instant,
    ) -> Option<Rest> {
        self.forget(|k| now.saturating_duration_since(k.at) > KEPT);
        let fits = |k: &Kept| {
            k.place.as_ref() == place
                && k.asker.as_deref().is_none_or(|own| own == asker)
                && about.is_none_or(|about| k.rest.about.as_deref() == Some(about))
        };
        let at = self.kept.iter().rposition(fits)?;
        let kept = self.kept.remove(at)?;
        self.bytes -= kept.rest.bytes();
        Some(kept.rest)
    }

    fn forget(&mut self, which: impl Fn(&Kept) -> bool) {
        self.kept.retain(|k| {
            let gone = which(k);
            if gone {
                self.bytes -= k.rest.bytes();
            }
            !gone
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(name: &str) -> Option<ChannelName> {
        Some(name.parse().expect("a channel"))
    }

    fn rest(about: &str, line: &str) -> Rest {
        Rest {
            about: Some(about.to_owned()),
            lines: vec![line.to_owned()],
            lost: 0,
        }
    }

    fn ana() -> Option<String> {
        Some("ana".to_owned())
    }

    #[test]
    fn everybody_has_their_own_rest() {
        let now = Instant::now();
        let mut more = More::default();
        more.keep(to("#ops"), None, rest("1", "all"), now);
        more.keep(to("#ops"), ana(), rest("2", "ana"), now);
        more.keep(to("#ops"), ana(), rest("3", "newer"), now);
        let mut take = |place: &str, asker: &str, about| {
            let rest = more.take(to(place).as_ref(), asker, about, now);
            rest.map(|rest| rest.lines.concat())
        };
        assert_eq!(take("#dev", "ana", None), None);
        assert_eq!(take("#ops", "bruno", Some("2")), None);
        assert_eq!(take("#ops", "ana", Some("2")).as_deref(), Some("ana"));
        assert_eq!(take("#ops", "ana", None).as_deref(), Some("newer"));
        assert_eq!(take("#ops", "ana", None).as_deref(), Some("all"));
        assert_eq!(take("#ops", "ana", None), None);
    }

    #[test]
    fn it_is_kept_for_a_while_and_not_without_end() {
        let start = Instant::now();
        let mut more = More::default();
        more.keep(to("#ops"), ana(), rest("1", "x"), start);
        assert_eq!(
            more.take(to("#ops").as_ref(), "ana", None, start + KEPT + KEPT),
            None
        );
        for n in 0..10 * MOST {
            more.keep(
                to("#ops"),
                ana(),
                rest(&n.to_string(), &"x".repeat(20_000)),
                start,
            );
        }
        assert!(more.kept.len() <= MOST && more.bytes <= MOST_BYTES);
        while more.take(to("#ops").as_ref(), "ana", None, start).is_some() {}
        assert_eq!(more.bytes, 0);
    }
}
