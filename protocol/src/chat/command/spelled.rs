//! A command, spelled out.

use std::collections::BTreeMap;

use super::{Again, Command};
use crate::chat::quoted;
use crate::text::printable;

fn spelled_params(params: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    params.iter().map(|(name, value)| {
        let value = quoted(&printable(value, 200));
        format!("  {} = {value}", printable(name, 60))
    })
}

impl Command {
    /// What it says, one thing a line, for somebody who wants to know how a
    /// line is understood.
    #[must_use]
    pub fn spelled(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |text: String| lines.push(text);
        match self {
            Self::Run(run) => {
                let dry = if run.dry_run { "dry run of" } else { "run" };
                say(format!("{dry} {}", printable(&run.name, 80)));
                spelled_params(&run.params).for_each(&mut say);
                let flags = [
                    ("on", run.on.clone()),
                    ("version", run.version.map(|version| version.to_string())),
                    ("batch", run.batch.clone()),
                    ("max-failures", run.max_failures.clone()),
                    ("limit", run.limit.clone()),
                    ("timeout", run.timeout.map(|time| time.to_string())),
                ];
                for (flag, value) in flags {
                    if let Some(value) = value {
                        say(format!("  --{flag} {}", quoted(&printable(&value, 300))));
                    }
                }
                if run.yes {
                    say("  without asking".to_owned());
                }
            }
            Self::OnNodes(on) => {
                let argv: Vec<String> = on
                    .argv
                    .iter()
                    .map(|word| quoted(&printable(word, 200)))
                    .collect();
                say(format!("the command {}", argv.join(" ")));
                say(format!("  on {}", printable(&on.predicate, 300)));
                if on.yes {
                    say("  without asking".to_owned());
                }
            }
            Self::Build { name, params } => {
                say(format!("build {}", printable(name, 80)));
                spelled_params(params).for_each(&mut say);
            }
            Self::Machines(machines) => machines.spelled(&mut say),
            Self::Answer { run, answer } => {
                say(format!(
                    "answer {} with {}",
                    printable(run, 40),
                    quoted(&printable(answer, 300))
                ));
            }
            Self::Retry { run, which } => say(format!(
                "run {} again, on {}",
                printable(run, 40),
                match which {
                    Again::Failed => "the nodes where it did not succeed",
                    Again::All => "all of its nodes",
                }
            )),
            Self::Silence { alarm, time } => {
                say(format!("silence {} for {time}", printable(alarm, 100)));
            }
            Self::Freeze(why) => say(format!("freeze: {}", printable(why, 300))),
            Self::Match(on) => say(format!("which nodes match {}", printable(on, 300))),
            Self::Ping(on) | Self::Nodes(on) => {
                let on = on.as_deref().unwrap_or("all nodes");
                say(format!("{} {}", self.verb(), printable(on, 300)));
            }
            Self::Runs(count) => say(format!("the last {count} runs")),
            Self::Show(of) | Self::Diff(of) | Self::Yes(of) | Self::No(of) | Self::Help(of) => {
                let of = of.as_deref().unwrap_or_default();
                say(format!("{} {}", self.verb(), printable(of, 60))
                    .trim_end()
                    .to_owned());
            }
            Self::Approve(run) | Self::Cancel(run) | Self::Ack(run) => {
                say(format!("{} {}", self.verb(), printable(run, 60)));
            }
            Self::Last | Self::More | Self::Alarms | Self::Thaw | Self::Who => {
                say(self.verb().to_owned());
            }
        }
        lines
    }
}
