//! Lines that were heard and are not yet told to the broker. Pure: time is
//! handed in.
//!
//! So many at once, and of one connection one after the other, in order: who
//! writes `!deploy` and then `!yes` means that. Connections take turns. A line
//! that has waited too long is given up and said to be: nobody wants a command
//! carried out that they have stopped waiting for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::irc::Line;

/// Most lines that are with the broker at once.
pub const AT_ONCE: usize = 32;
/// Most lines that wait.
pub const MOST: usize = 2_048;
/// Most bytes of them.
const MOST_BYTES: usize = 2 << 20;
/// How long a line waits at most.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that lines come from.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Asker(String);

impl Asker {
    /// Who wrote a line.
    #[must_use]
    pub fn of(line: &Line) -> Self {
        let speaker = &line.speaker;
        let text = speaker.sight.as_ref().unwrap_or(&speaker.mask);
        Self(text.clone())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What waits, and who is being answered.
#[derive(Debug, Default)]
pub struct Intake {
    waiting: BTreeMap<Asker, VecDeque<(Instant, Line)>>,
    /// Whose turn it is: each asker with waiting lines and none under way is
    /// here once.
    turns: VecDeque<Asker>,
    busy: BTreeSet<Asker>,
    lines: usize,
    bytes: usize,
    /// No line that waits came before.
    first: Option<Instant>,
}

impl Intake {
    /// Takes a line, or gives it back when there are too many.
    ///
    /// # Errors
    /// The line.
    pub fn push(&mut self, line: Line, now: Instant) -> Result<(), Box<Line>> {
        if self.lines >= MOST || self.bytes + line.text.len() > MOST_BYTES {
            return Err(Box::new(line));
        }
        let asker = Asker::of(&line);
        if self.lines == 0 {
            self.first = Some(now);
        }
        self.lines += 1;
        self.bytes += line.text.len();
        let lines = self.waiting.entry(asker.clone()).or_default();
        if lines.is_empty() && !self.busy.contains(&asker) {
            self.turns.push_back(asker);
        }
        lines.push_back((now, line));
        Ok(())
    }

    /// The next line to tell the broker, if there may be one more. Whoever
    /// gets it says [`Intake::done`] in the end.
    pub fn start(&mut self) -> Option<(Asker, Line)> {
        if self.busy.len() >= AT_ONCE {
            return None;
        }
        let asker = self.turns.pop_front()?;
        let lines = self.waiting.get_mut(&asker)?;
        let (_, line) = lines.pop_front()?;
        if lines.is_empty() {
            self.waiting.remove(&asker);
        }
        self.lines -= 1;
        self.bytes -= line.text.len();
        self.busy.insert(asker.clone());
        Some((asker, line))
    }

    /// A line of that asker was answered.
    pub fn done(&mut self, asker: &Asker) {
        self.busy.remove(asker);
        if self.waiting.contains_key(asker) {
            self.turns.push_back(asker.clone());
        }
    }

    /// Takes out the lines that have waited too long.
    pub fn late(&mut self, now: Instant) -> Vec<Line> {
        if self.due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.take_out(|since| now.saturating_duration_since(since) >= PATIENCE)
    }

    /// Takes out everything.
    pub fn clear(&mut self) -> Vec<Line> {
        self.take_out(|_| true)
    }

    /// When it is to be looked whether one of them has waited too long.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.first
            .filter(|_| self.lines > 0)
            .map(|first| first + PATIENCE)
    }

    /// How many are with the broker.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.busy.len()
    }

    fn take_out(&mut self, late: impl Fn(Instant) -> bool) -> Vec<Line> {
        let mut gone = Vec::new();
        for lines in self.waiting.values_mut() {
            while lines.front().is_some_and(|(since, _)| late(*since)) {
                gone.extend(lines.pop_front().map(|(_, line)| line));
            }
        }
        self.waiting.retain(|_, lines| !lines.is_empty());
        let waiting = &self.waiting;
        self.turns.retain(|asker| waiting.contains_key(asker));
        let first = self.waiting.values().filter_map(VecDeque::front);
        self.first = first.map(|(since, _)| *since).min();
        self.lines -= gone.len();
        self.bytes -= gone.iter().map(|l| l.text.len()).sum::<usize>();
        gone
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::api::Speaker;
    use muster_protocol::units::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn line(nick: &str, text: &str) -> Line {
        Line {
            id: text.to_owned(),
            channel: None,
            speaker: Speaker {
                nick: nick.to_owned(),
                mask: format!("{nick}!u@h"),
                sight: None,
                account: None,
            },
            heard: Timestamp::UNIX_EPOCH,
            server_time: None,
            text: text.to_owned(),
        }
    }

    #[test]
    fn one_after_the_other_for_one_and_many_at_once_for_many() {
        let now = Instant::now();
        let mut intake = Intake::default();
        for n in 0..3 {
            intake
                .push(line("ana", &format!("a{n}")), now)
                .expect("room");
        }
        intake.push(line("bruno", "b0"), now).expect("room");
        let (ana, first) = intake.start().expect("a line");
        assert_eq!(first.text, "a0");
        assert_eq!(intake.start().expect("a line").1.text, "b0");
        assert!(intake.start().is_none());
        intake.done(&ana);
        assert_eq!(intake.start().expect("a line").1.text, "a1");
        for n in 0..2 * AT_ONCE {
            intake.push(line(&format!("n{n}"), "x"), now).expect("room");
        }
        while intake.start().is_some() {}
        assert_eq!(intake.under_way(), AT_ONCE);
    }

    #[test]
    fn too_many_are_given_back_and_late_ones_given_up() {
        let now = Instant::now();
        let mut intake = Intake::default();
        for n in 0..MOST {
            intake.push(line("ana", &n.to_string()), now).expect("room");
        }
        assert!(intake.push(line("bruno", "x"), now).is_err());
        let (ana, _) = intake.start().expect("a line");
        assert!(intake.late(now + PATIENCE / 2).is_empty());
        assert_eq!(intake.late(now + PATIENCE + PATIENCE).len(), MOST - 1);
        intake.done(&ana);
        assert!(intake.start().is_none() && intake.due().is_none());
        intake.push(line("ana", "y"), now).expect("room again");
        assert_eq!(intake.start().expect("a line").1.text, "y");
        let long = "x".repeat(MOST_BYTES);
        assert!(intake.push(line("ana", &long), now).is_ok());
        assert!(intake.push(line("ana", "z"), now).is_err());
    }

    proptest! {
        #[test]
        fn each_line_comes_once_and_in_its_askers_order(
            steps in proptest::collection::vec((0usize..6, any::<bool>()), 1..200),
        ) {
            let now = Instant::now();
            let mut intake = Intake::default();
            let mut under_way: Vec<Asker> = Vec::new();
            let mut seen: Vec<(Asker, usize)> = Vec::new();
            for (n, (nick, answer)) in steps.iter().enumerate() {
                intake.push(line(&format!("n{nick}"), &n.to_string()), now).expect("room");
                while let Some((asker, line)) = intake.start() {
                    prop_assert!(!under_way.contains(&asker));
                    seen.push((asker.clone(), line.text.parse().expect("a number")));
                    under_way.push(asker);
                }
                if *answer && !under_way.is_empty() {
                    intake.done(&under_way.remove(0));
                }
            }
            loop {
                while let Some((asker, line)) = intake.start() {
                    seen.push((asker.clone(), line.text.parse().expect("a number")));
                    under_way.push(asker);
                }
                let Some(asker) = under_way.pop() else { break };
                intake.done(&asker);
            }
            prop_assert_eq!(seen.len(), steps.len());
            for (asker, _) in &seen {
                let own: Vec<_> = seen.iter().filter(|(a, _)| a == asker).map(|(_, n)| n).collect();
                prop_assert!(own.is_sorted());
            }
        }
    }
}
