//! What can be said of nodes' own firewalls: each is a run of the scenario of
//! that name.

use std::collections::BTreeMap;

use super::{Command, CommandError, Rest, RunCommand};
use crate::names::NodeName;

/// What follows `firewall`.
const WORDS: [&str; 4] = ["show", "history", "diff", "rollback"];

impl Rest<'_> {
    /// `firewall show NODE`, `firewall diff NODE --run RUN`.
    pub(super) fn firewall(&mut self) -> Result<Command, CommandError> {
        let word = self.need("what to do (show, history, diff, rollback)")?;
        if !WORDS.contains(&word.as_str()) {
            return Err(self.wrong("there are show, history, diff and rollback"));
        }
        let node: NodeName = self
            .need("the node")?
            .parse()
            .map_err(|e| self.wrong(format!("{e}")))?;
        let mut params = BTreeMap::new();
        match self.flags.remove("run") {
            Some(run) if word == "diff" => {
                params.insert("run".to_owned(), run);
            }
            Some(_) => return Err(self.wrong("`--run` belongs to `firewall diff`")),
            None => {}
        }
        Ok(Command::Run(RunCommand {
            name: format!("firewall-{word}"),
            params,
            on: Some(format!("name={node}")),
            yes: self.flags.remove("yes").is_some(),
            ..RunCommand::default()
        }))
    }
}
