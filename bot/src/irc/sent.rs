//! What was sent and is not known to have arrived. Pure.

use std::collections::VecDeque;

/// Most of it that is remembered; of older lines it is never known.
const MAX_OPEN: usize = 4_096;

/// How a line that was sent is known again.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Open {
    /// A line; several as one have no text.
    Line {
        token: u64,
        /// As names are compared.
        target: String,
        text: Option<String>,
    },
    /// A PING; those of the watchdog have no token.
    Ping { token: Option<u64> },
}

/// What was sent on this connection, in order.
#[derive(Debug, Default)]
pub(super) struct Sent {
    open: VecDeque<Open>,
}

impl Sent {
    fn push(&mut self, open: Open) {
        if self.open.len() >= MAX_OPEN {
            self.open.pop_front();
        }
        self.open.push_back(open);
    }

    /// A line goes out; `target` as names are compared.
    pub(super) fn line(&mut self, token: u64, target: String, text: Option<String>) {
        self.push(Open::Line {
            token,
            target,
            text,
        });
    }

    /// A PING goes out: the text that it is sent with.
    pub(super) fn ping(&mut self, token: Option<u64>) -> String {
        self.push(Open::Ping { token });
        token.map_or_else(|| "watch".to_owned(), |token| format!("p{token}"))
    }

    /// The line with that token came back, or was refused; whether it was
    /// waited for.
    pub(super) fn labeled(&mut self, token: u64) -> bool {
        let at = self
            .open
            .iter()
            .position(|o| matches!(o, Open::Line { token: t, .. } if *t == token));
        at.and_then(|at| self.open.remove(at)).is_some()
    }

    /// A line without a label came back: the token of the one that it is. The
    /// server may have changed it, so one that is like none is the oldest to
    /// that target.
    pub(super) fn echoed(&mut self, target: &str, text: Option<&str>) -> Option<u64> {
        let same = |o: &Open| {
            matches!(o, Open::Line { target: t, text: x, .. }
            if t == target && x.as_deref() == text)
        };
        let at = self.open.iter().position(same);
        at.or_else(|| self.oldest(target))
            .and_then(|at| self.take(at))
    }

    /// The server refused a line to that target, and does not say which: the
    /// oldest.
    pub(super) fn refused(&mut self, target: &str) -> Option<u64> {
        self.oldest(target).and_then(|at| self.take(at))
    }

    /// An answer to a PING. What was sent before it has been dealt with. Some
    /// servers answer with another text than they were asked with: then it is
    /// the oldest that is answered.
    pub(super) fn pong(&mut self, text: &str) -> Option<u64> {
        let is = |o: &Open| match o {
            Open::Ping { token: Some(token) } => text.strip_prefix('p') == Some(&token.to_string()),
            Open::Ping { token: None } => text == "watch",
            Open::Line { .. } => false,
        };
        let any = |o: &Open| matches!(o, Open::Ping { .. });
        let at = self
            .open
            .iter()
            .position(is)
            .or_else(|| self.open.iter().position(any))?;
        let ping = self.open.drain(..=at).next_back();
        match ping {
            Some(Open::Ping { token }) => token,
            _ => None,
        }
    }

    fn oldest(&self, target: &str) -> Option<usize> {
        self.open
            .iter()
            .position(|o| matches!(o, Open::Line { target: t, .. } if t == target))
    }

    fn take(&mut self, at: usize) -> Option<u64> {
        match self.open.remove(at) {
            Some(Open::Line { token, .. }) => Some(token),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Sent {
        let mut sent = Sent::default();
        sent.line(1, "#a".into(), Some("one".into()));
        sent.line(2, "#b".into(), Some("two".into()));
        sent.line(3, "#a".into(), Some("three".into()));
        sent
    }

    #[test]
    fn what_comes_back_is_known_again() {
        let mut sent = three();
        assert_eq!(sent.echoed("#a", Some("three")), Some(3));
        assert_eq!(sent.echoed("#a", Some("on")), Some(1));
        assert_eq!(sent.echoed("#a", Some("one")), None);
        assert_eq!(sent.refused("#b"), Some(2));
        assert!(!sent.labeled(2));
        let mut sent = three();
        assert!(sent.labeled(2) && !sent.labeled(2));
    }

    #[test]
    fn an_answer_to_a_ping_is_behind_what_was_sent_before() {
        let mut sent = three();
        assert_eq!(sent.ping(Some(7)), "p7");
        sent.line(8, "#a".into(), Some("later".into()));
        assert_eq!(sent.ping(None), "watch");
        assert_eq!(sent.pong("p7"), Some(7));
        assert_eq!(sent.echoed("#a", Some("one")), Some(8));
        assert_eq!((sent.pong("watch"), sent.pong("p7")), (None, None));
        // A server that answers with its own name.
        let mut sent = three();
        sent.ping(Some(7));
        sent.ping(Some(8));
        assert_eq!(
            (sent.pong("irc.example"), sent.pong("irc.example")),
            (Some(7), Some(8))
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut sent = Sent::default();
        for token in 0..10_000 {
            sent.line(token, "#a".into(), None);
        }
        assert_eq!(sent.open.len(), MAX_OPEN);
    }
}
