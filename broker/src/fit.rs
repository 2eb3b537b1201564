//! Whether the agents of a frozen set can do what is asked, by what they said
//! about themselves: pure. A mismatch is found before anything is sent.

use std::collections::BTreeMap;

use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::names::NodeName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::release::Version;
use muster_protocol::text::printable;
use muster_protocol::wire::AgentInfo;
use muster_scenarios::Builtin;
use muster_scenarios::upgrade::Upgrade;

/// Names of nodes that are said for one reason.
const NAMED: usize = 10;

/// Why an agent cannot do it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, thiserror::Error)]
pub enum Reason {
    /// It is of another protocol.
    #[error("the agent speaks protocol {0}, this broker speaks {PROTOCOL_VERSION}")]
    Protocol(u32),
    /// Its policy or its version does not have it.
    #[error("the agent ({version}) does not grant `{capability}`")]
    Capability {
        /// What is needed.
        capability: &'static str,
        /// Its version.
        version: String,
    },
    /// The release is for another platform.
    #[error("the machine is {node}, the release is for {release}")]
    Platform {
        /// The node's.
        node: String,
        /// The release's.
        release: String,
    },
    /// The release cannot read what is there.
    #[error("its {what} has format {theirs}, the release reads up to {ours}")]
    State {
        /// State directory or journal.
        what: &'static str,
        /// What is there.
        theirs: u32,
        /// What the release reads.
        ours: u32,
    },
    /// The release is older.
    #[error("it runs {node}, which is newer than {release}")]
    Downgrade {
        /// What it runs.
        node: String,
        /// The release.
        release: String,
    },
}

impl Reason {
    /// What to do about it.
    fn hint(&self) -> String {
        match self {
            Self::Protocol(_) => {
                "install an agent of the broker's protocol on these nodes by hand".into()
            }
            Self::Capability { capability, .. } => format!(
                "leave them out of the predicate, or grant it there: `{capability} = true` under \
                 [capabilities] in agent.toml; an agent that is too old for it needs a newer one"
            ),
            Self::Platform { .. } => {
                "leave them out of the predicate, and give them a release of their own with --binary"
                    .into()
            }
            Self::State { .. } => {
                "an agent cannot go back behind a format that it has written".into()
            }
            Self::Downgrade { .. } => "--allow-downgrade if it is meant".into(),
        }
    }
}

/// Some of the nodes cannot do it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unfit {
    /// How many were judged.
    pub nodes: usize,
    /// Who cannot, and why.
    pub reasons: BTreeMap<Reason, Vec<NodeName>>,
}

impl Unfit {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let unfit: usize = self.reasons.values().map(Vec::len).sum();
        let title = format!(
            "{unfit} of {} {} cannot do this; nothing was run",
            self.nodes,
            if self.nodes == 1 { "node" } else { "nodes" }
        );
        let lines: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, nodes)| {
                let mut names: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
                let more = names.len().saturating_sub(NAMED);
                names.truncate(NAMED);
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                format!(
                    "{}{more}: {}",
                    names.join(", "),
                    printable(&reason.to_string(), 300)
                )
            })
            .collect();
        let mut hints: Vec<String> = Vec::new();
        for reason in self.reasons.keys() {
            let hint = reason.hint();
            if !hints.contains(&hint) {
                hints.push(hint);
            }
        }
        Problem::new(Kind::Incompatible, title)
            .detail(lines.join("\n"))
            .hint(hints.join("\n"))
    }
}

/// Judges a frozen set. A node whose agent has never said anything is left to
/// what happens when it is sent to: it is known to be down, or says it then.
///
/// # Errors
/// [`Unfit`]; nothing may be sent then, to nobody.
pub fn judge<'a, A: AsRef<AgentInfo> + 'a>(
    call: &Builtin,
    nodes: impl IntoIterator<Item = (&'a NodeName, Option<A>)>,
) -> Result<(), Unfit> {
    judged(|agent| unfit(call, agent), nodes)
}

fn judged<'a, A: AsRef<AgentInfo> + 'a>(
    unfit: impl Fn(&AgentInfo) -> Option<Reason>,
    nodes: impl IntoIterator<Item = (&'a NodeName, Option<A>)>,
) -> Result<(), Unfit> {
    let mut count = 0;
    let mut reasons: BTreeMap<Reason, Vec<NodeName>> = BTreeMap::new();
    for (name, agent) in nodes {
        count += 1;
        if let Some(agent) = agent
            && let Some(reason) = unfit(agent.as_ref())
        {
            reasons.entry(reason).or_default().push(name.clone());
        }
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Unfit {
            nodes: count,
            reasons,
        })
    }
}

/// Judges a frozen set for a stored scenario: what it does on a node is known
/// there alone.
///
/// # Errors
/// [`Unfit`]; nothing may be sent then, to nobody.
pub fn judge_scenario<'a, A: AsRef<AgentInfo> + 'a>(
    nodes: impl IntoIterator<Item = (&'a NodeName, Option<A>)>,
) -> Result<(), Unfit> {
    judged(foreign, nodes)
}

fn foreign(agent: &AgentInfo) -> Option<Reason> {
    (agent.protocol != PROTOCOL_VERSION).then_some(Reason::Protocol(agent.protocol))
}

fn unfit(call: &Builtin, agent: &AgentInfo) -> Option<Reason> {
    if let Some(reason) = foreign(agent) {
        return Some(reason);
    }
    let capability = call.capability();
    if !agent.capabilities.iter().any(|c| c == capability) {
        return Some(Reason::Capability {
            capability,
            version: agent.version.clone(),
        });
    }
    match call {
        Builtin::Command(_) => None,
        Builtin::Upgrade(upgrade) => unfit_for(upgrade, agent),
    }
}

fn unfit_for(upgrade: &Upgrade, agent: &AgentInfo) -> Option<Reason> {
    let ours = &upgrade.about.build;
    if let Some(theirs) = &agent.build {
        if theirs.platform() != ours.platform() {
            return Some(Reason::Platform {
                node: theirs.platform(),
                release: ours.platform(),
            });
        }
        for (what, theirs, ours) in [
            ("state directory", theirs.state, ours.state),
            ("journal", theirs.journal, ours.journal),
        ] {
            if theirs > ours {
                return Some(Reason::State { what, theirs, ours });
            }
        }
    }
    let newer = agent
        .version
        .parse::<Version>()
        .is_ok_and(|version| version > upgrade.about.version);
    (newer && !upgrade.allow_downgrade).then(|| Reason::Downgrade {
        node: agent.version.clone(),
        release: upgrade.about.version.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::release::{Build, Release, ReleaseId};
    use muster_scenarios::command::Command;
    use std::sync::Arc;

    fn build() -> Build {
        Build {
            os: "linux".into(),
            arch: "x86_64".into(),
            state: 1,
            journal: 1,
        }
    }

    fn agent() -> AgentInfo {
        AgentInfo {
            version: "0.1.0".into(),
            protocol: PROTOCOL_VERSION,
            capabilities: ["command", "shell", "upgrade"].map(Into::into).into(),
            build: Some(build()),
        }
    }

    fn upgrade(version: &str, allow_downgrade: bool) -> Builtin {
        Builtin::Upgrade(Box::new(Upgrade {
            release: ReleaseId::of(b"x"),
            size: 1,
            about: Release {
                program: "muster-agent".into(),
                version: version.parse().expect("a version"),
                protocol: PROTOCOL_VERSION,
                capabilities: Vec::new(),
                build: build(),
            },
            allow_downgrade,
        }))
    }

    fn judged(call: &Builtin, agents: &[Option<AgentInfo>]) -> Result<(), Unfit> {
        let names: Vec<NodeName> = (1..=agents.len())
            .map(|n| format!("web-{n:02}").parse().expect("a name"))
            .collect();
        judge(
            call,
            names
                .iter()
                .zip(agents.iter().cloned().map(|a| a.map(Arc::new))),
        )
    }

    #[test]
    fn what_an_agent_never_said_is_not_held_against_it() {
        let uptime = Builtin::Command(Command::Shell("uptime".into()));
        assert_eq!(judged(&uptime, &[Some(agent()), None]), Ok(()));
        let mut old = agent();
        old.build = None;
        assert_eq!(judged(&upgrade("0.1.1", false), &[Some(old), None]), Ok(()));
    }

    #[test]
    fn a_mismatch_names_the_nodes_and_what_to_do() {
        let mut quiet = agent();
        quiet.capabilities = vec!["command".into()];
        let uptime = Builtin::Command(Command::Shell("uptime".into()));
        let problem = judged(&uptime, &[Some(agent()), Some(quiet.clone())])
            .expect_err("refused")
            .problem();
        assert_eq!(problem.kind, Kind::Incompatible);
        insta::assert_snapshot!(
            format!("{}\n{}\n{}", problem.title, problem.detail.unwrap(), problem.hint.unwrap()),
            @r"
        1 of 2 nodes cannot do this; nothing was run
        web-02: the agent (0.1.0) does not grant `shell`
        leave them out of the predicate, or grant it there: `shell = true` under [capabilities] in agent.toml; an agent that is too old for it needs a newer one
        "
        );
        let with = |change: &dyn Fn(&mut AgentInfo)| {
            let mut agent = agent();
            change(&mut agent);
            Some(agent)
        };
        let agents = [
            with(&|_| {}),
            with(&|a| a.capabilities.clear()),
            with(&|a| a.protocol = 7),
            with(&|a| {
                a.build = Some(Build {
                    arch: "aarch64".into(),
                    ..build()
                })
            }),
            with(&|a| {
                a.build = Some(Build {
                    journal: 2,
                    ..build()
                })
            }),
            with(&|a| a.version = "0.2.0".into()),
            with(&|a| a.version = "0.2.0".into()),
        ];
        let problem = judged(&upgrade("0.1.1", false), &agents)
            .expect_err("refused")
            .problem();
        insta::assert_snapshot!(format!("{}\n{}", problem.title, problem.detail.unwrap()), @r"
        6 of 7 nodes cannot do this; nothing was run
        web-03: the agent speaks protocol 7, this broker speaks 1
        web-02: the agent (0.1.0) does not grant `upgrade`
        web-04: the machine is aarch64-linux, the release is for x86_64-linux
        web-05: its journal has format 2, the release reads up to 1
        web-06, web-07: it runs 0.2.0, which is newer than 0.1.1
        ");
        assert_eq!(judged(&upgrade("0.1.1", true), &agents[5..]), Ok(()));
    }
}
