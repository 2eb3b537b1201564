//! Counters of effects: files to which commands write a line when they begin
//! and when they end.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use muster_protocol::ids::RequestId;
use muster_protocol::units::Timestamp;

use super::{Effect, Mark};
use crate::lines;

/// A counter of effects on this machine.
#[derive(Clone, Debug)]
pub struct Counter {
    file: PathBuf,
}

impl Counter {
    /// The counter in this file, which need not be there.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// A script for `muster run --shell`: says that it begins, does this, and
    /// says that it has ended.
    #[must_use]
    pub fn around(&self, what: &str) -> String {
        format!(
            "e() {{ echo \"$1 $MUSTER_RUN $MUSTER_STEP $MUSTER_SERIAL $MUSTER_NODE $(date +%s%N)\" >> '{}'; }}; \
             e begin; {what}; e end",
            self.file.display()
        )
    }

    /// What it has seen.
    ///
    /// # Errors
    /// A line that is no counter's.
    pub fn effects(&self) -> Result<Vec<Effect>> {
        lines(&self.file).iter().map(|l| parse(l)).collect()
    }

    /// How often the command on this node has begun and has come to its end,
    /// over all runs.
    ///
    /// # Panics
    /// On a line that is no counter's.
    #[must_use]
    pub fn of(&self, node: &str) -> (usize, usize) {
        let effects = self.effects().expect("a counter's lines");
        let times = |mark| {
            effects
                .iter()
                .filter(|e| e.name == node && e.mark == mark)
                .count()
        };
        (times(Mark::Begin), times(Mark::End))
    }

    /// How many nodes have begun so far, each effect counted.
    ///
    /// # Panics
    /// On a line that is no counter's.
    #[must_use]
    pub fn begun(&self) -> usize {
        let effects = self.effects().expect("a counter's lines");
        effects.iter().filter(|e| e.mark == Mark::Begin).count()
    }
}

fn parse(line: &str) -> Result<Effect> {
    let what = || format!("`{line}` is not a line of a counter");
    let words: Vec<&str> = line.split(' ').collect();
    ensure!(words.len() == 6, what());
    let mark = match words[0] {
        "begin" => Mark::Begin,
        "end" => Mark::End,
        _ => anyhow::bail!(what()),
    };
    let nanos: i128 = words[5].parse().with_context(what)?;
    Ok(Effect {
        request: RequestId {
            run: words[1].parse().with_context(what)?,
            step: words[2].parse().with_context(what)?,
        },
        serial: words[3].parse().with_context(what)?,
        name: words[4].to_owned(),
        mark,
        at: Timestamp::from_nanosecond(nanos).with_context(what)?,
    })
}
