//! The agents that `muster up` runs on this machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use muster_client::Client;
use muster_protocol::api::{Condition, NodeView, Presence, ReplaceRequest, Secret};
use muster_protocol::ids::Serial;
use muster_protocol::names::NodeName;
use muster_protocol::problem::Kind;
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::sleep;

use super::embedded::Prepared;
use super::layout::{AGENT, Layout};
use super::process::Part;
use super::say;
use super::spec::NodeSpec;
use crate::failure::{Failure, NOT_ALL, USAGE};
use crate::verbs::condition;

/// How long an agent may take to end.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long all of them may take to be there.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// The agent's executable: `MUSTER_AGENT`, else the one beside this one.
#[must_use]
pub fn executable() -> PathBuf {
    if let Some(named) = std::env::var_os("MUSTER_AGENT").filter(|v| !v.is_empty()) {
        return std::fs::canonicalize(&named).unwrap_or_else(|_| named.into());
    }
    let me = std::env::current_exe().unwrap_or_else(|_| "muster".into());
    // While this very file is replaced, its name carries a mark.
    let dir = me.parent().unwrap_or(Path::new("."));
    dir.join("muster-agent")
}

/// Refuses what cannot work before anything is started.
///
/// # Errors
/// A name twice, or no agent to run.
pub fn check(nodes: &[NodeSpec]) -> Result<(), Failure> {
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = nodes.iter().find(|n| !seen.insert(&n.name)) {
        return Err(Failure::new(
            USAGE,
            format!("--node {} is given twice", twice.name),
        ));
    }
    let agent = executable();
    if !nodes.is_empty() && !agent.is_file() {
        return Err(Failure::new(NOT_ALL, format!("there is no muster-agent at {}", agent.display()))
            .hint("it is installed beside `muster`; MUSTER_AGENT names another (with cargo: cargo build -p muster-agent)"));
    }
    Ok(())
}

/// How the allocator of an agent is set, as in its systemd unit: an agent does
/// little at a time and is to hold little, so one arena does for its threads
/// and what it no longer needs goes back to the system.
const ALLOCATOR: &[(&str, &str)] = &[
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_TRIM_THRESHOLD_", "65536"),
    ("MALLOC_TOP_PAD_", "16384"),
];

/// The process of an agent with that text of a configuration.
#[must_use]
pub fn part(layout: &Layout, name: &str, config: String) -> Part {
    let file = format!("{AGENT}{name}");
    Part {
        name: name.to_owned(),
        program: layout.program(name),
        args: vec![
            "run".into(),
            "--state".into(),
            layout.agent(name).into_os_string(),
            "--config".into(),
            layout.agent_config(name).into_os_string(),
        ],
        environment: ALLOCATOR,
        config,
        log: layout.log(&file),
        note: layout.note(&file),
        patience: PATIENCE,
    }
}

/// What `muster-agent status --json` says that matters here.
#[derive(Debug, Deserialize)]
struct AgentStatus {
    serial: Serial,
    cluster: String,
    broker: String,
    nats: Vec<String>,
}

impl AgentStatus {
    /// Whether it was enrolled without TLS where there is TLS now: it knows no
    /// certificate authority, and no safe way to learn it but an invite.
    fn lacks_authority(&self, url: &str, nats: &str) -> bool {
        let plain_broker = url.starts_with("https:") && !self.broker.starts_with("https:");
        let plain_nats =
            nats.starts_with("tls:") && !self.nats.iter().any(|n| n.starts_with("tls:"));
        plain_broker || plain_nats
    }
}

/// Gets agents enrolled and sees them come up.
#[derive(Debug)]
pub struct Runner {
    layout: Layout,
    client: Client,
    /// The installed one.
    program: PathBuf,
    url: String,
    nats: String,
    cluster: String,
}

impl Runner {
    /// For the broker that was prepared.
    ///
    /// # Errors
    /// None now.
    pub fn new(layout: &Layout, prepared: &Prepared, client: Client) -> Result<Self, Failure> {
        Ok(Self {
            layout: layout.clone(),
            client,
            program: executable(),
            url: prepared.reach.clone(),
            nats: prepared.nats_url().to_owned(),
            cluster: prepared.cluster.clone(),
        })
    }

    /// Enrols what is not enrolled, and gives what is the roles and labels
    /// that were asked for.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn prepare(&self, nodes: &[NodeSpec]) -> Result<Vec<Part>, Failure> {
        let mut parts = Vec::new();
        for spec in nodes {
            let config = self.configure(spec.name.as_str())?;
            self.provide(spec.name.as_str())?;
            self.enrolled(spec).await?;
            let file = self.layout.spec(spec.name.as_str());
            super::write_private(&file, format!("{spec}\n").as_bytes()).map_err(|e| {
                Failure::new(NOT_ALL, format!("cannot write {}: {e}", file.display()))
            })?;
            parts.push(part(&self.layout, spec.name.as_str(), config));
        }
        Ok(parts)
    }

    /// Gives it its own executable.
    fn provide(&self, name: &str) -> Result<(), Failure> {
        let own = self.layout.program(name);
        super::programs::provide(&own, &self.program)
            .map(drop)
            .map_err(|e| Failure::new(NOT_ALL, format!("cannot make {}: {e}", own.display())))
    }

    /// Writes where broker and NATS are now; what else is in the agent's
    /// configuration stays.
    fn configure(&self, name: &str) -> Result<String, Failure> {
        let path = self.layout.agent_config(name);
        let fail =
            |why: String| Failure::new(NOT_ALL, format!("cannot use {}: {why}", path.display()));
        let mut table: toml::Table = match std::fs::read_to_string(&path) {
            Ok(text) => text
                .parse()
                .map_err(|e: toml::de::Error| fail(e.to_string()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => toml::Table::new(),
            Err(e) => return Err(fail(e.to_string())),
        };
        table.insert("brokers".into(), vec![self.url.clone()].into());
        table.insert("nats".into(), vec![self.nats.clone()].into());
        let text = table.to_string();
        super::write_private(&path, text.as_bytes()).map_err(|e| fail(e.to_string()))?;
        Ok(text)
    }

    /// Ends an agent that an earlier start left behind: an enrolment needs its
    /// state for itself.
    async fn halt(&self, name: &NodeName) {
        let part = part(&self.layout, name.as_str(), String::new());
        part.end_left_behind().await;
    }

    async fn enrolled(&self, spec: &NodeSpec) -> Result<(), Failure> {
        let name = &spec.name;
        let here = self.status(name).await?;
        let there = match self.client.node(name).await {
            Ok(view) => Some(view),
            Err(e) if e.kind() == Some(Kind::NotFound) => None,
            Err(e) => return Err(e.into()),
        };
        if let Some(here) = &here
            && here.cluster != self.cluster
        {
            return Err(Failure::new(
                NOT_ALL,
                format!(
                    "{} belongs to a node of another cluster ({})",
                    self.layout.agent(name.as_str()).display(),
                    here.cluster
                ),
            )
            .hint("remove that directory to enrol it here"));
        }
        match (here, there) {
            (None, None) => {
                let token = self.invite(spec).await?;
                self.enroll(name, &token, false).await?;
                say(&format!("{name}: enrolled"));
            }
            (Some(_), None) => {
                self.halt(name).await;
                let token = self.invite(spec).await?;
                self.enroll(name, &token, true).await?;
                say(&format!(
                    "{name}: enrolled again with a new key; the old one was removed"
                ));
            }
            (Some(here), Some(view))
                if here.serial == view.serial && here.lacks_authority(&self.url, &self.nats) =>
            {
                self.halt(name).await;
                let invite = self
                    .client
                    .replace_node(name, &ReplaceRequest { expires: None })
                    .await?;
                self.enroll(name, &Secret::new(invite.token), true).await?;
                say(&format!(
                    "{name}: enrolled again with a new key, as there is TLS now"
                ));
                self.reconcile(spec, &view).await?;
            }
            (here, Some(view)) if here.as_ref().is_none_or(|h| h.serial != view.serial) => {
                if matches!(view.state, Presence::Up | Presence::Late) {
                    return Err(Failure::new(
                        NOT_ALL,
                        format!("a node {name} is {} already, and it is not the one of this state directory", view.state.as_str()),
                    )
                    .hint(format!("end that agent, choose another name, or `muster node remove {name}`")));
                }
                self.halt(name).await;
                let invite = self
                    .client
                    .replace_node(name, &ReplaceRequest { expires: None })
                    .await?;
                self.enroll(name, &Secret::new(invite.token), here.is_some())
                    .await?;
                say(&format!(
                    "{name}: its key was lost; it has a new one now, with the same name, roles and labels"
                ));
                self.reconcile(spec, &view).await?;
            }
            (_, Some(view)) => self.reconcile(spec, &view).await?,
        }
        Ok(())
    }

    async fn reconcile(&self, spec: &NodeSpec, view: &NodeView) -> Result<(), Failure> {
        let Some(change) = spec.change(view) else {
            return Ok(());
        };
        self.client.change_node(&spec.name, &change).await?;
        say(&format!(
            "{}: roles and labels changed to what --node says",
            spec.name
        ));
        Ok(())
    }

    async fn invite(&self, spec: &NodeSpec) -> Result<Secret, Failure> {
        let mut made = self.client.invite(&spec.invite()).await?;
        let invite = made.invites.pop().ok_or_else(|| {
            Failure::new(
                NOT_ALL,
                format!("the broker made no invite for {}", spec.name),
            )
        })?;
        Ok(Secret::new(invite.token))
    }

    /// What is enrolled in the agent's directory.
    async fn status(&self, name: &NodeName) -> Result<Option<AgentStatus>, Failure> {
        let dir = self.layout.agent(name.as_str());
        if !dir.exists() {
            return Ok(None);
        }
        let said = self
            .agent(
                [
                    "status".into(),
                    "--json".into(),
                    "--state".into(),
                    dir.into_os_string(),
                ],
                name,
                None,
            )
            .await?;
        match said.status.code() {
            Some(0) => serde_json::from_slice(&said.stdout).map(Some).map_err(|e| {
                Failure::new(
                    NOT_ALL,
                    format!("muster-agent status says what muster cannot read: {e}"),
                )
                .hint("are muster and muster-agent of the same version?")
            }),
            // Not enrolled: the last time did not come so far.
            Some(3) => Ok(None),
            _ => Err(agent_failure(name, "status", &said)),
        }
    }

    async fn enroll(&self, name: &NodeName, token: &Secret, again: bool) -> Result<(), Failure> {
        let mut args: Vec<OsString> = vec![
            "enroll".into(),
            "--state".into(),
            self.layout.agent(name.as_str()).into_os_string(),
        ];
        if again {
            args.push("--again".into());
        }
        let said = self.agent(args, name, Some(token)).await?;
        if said.status.success() {
            Ok(())
        } else {
            Err(agent_failure(name, "enroll", &said))
        }
    }

    async fn agent(
        &self,
        args: impl IntoIterator<Item = OsString>,
        name: &NodeName,
        token: Option<&Secret>,
    ) -> Result<std::process::Output, Failure> {
        let program = self.layout.program(name.as_str());
        let mut command = Command::new(&program);
        command
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .env("MUSTER_ENROLL_URL", &self.url);
        if let Some(token) = token {
            // Not an argument: those can be seen by every user.
            command.env("MUSTER_ENROLL_TOKEN", token.expose());
        }
        command
            .output()
            .await
            .map_err(|e| Failure::new(NOT_ALL, format!("cannot start {}: {e}", program.display())))
    }

    /// Waits until every one of them is up with its newest roles and labels.
    ///
    /// # Errors
    /// One is not, in time: says which, and what its log ends with.
    pub async fn all_up(&self, nodes: &[NodeSpec], begun: Instant) -> Result<(), Failure> {
        if nodes.is_empty() {
            return Ok(());
        }
        let until = begun + UP_WITHIN + Duration::from_secs(nodes.len() as u64);
        loop {
            let views: BTreeMap<NodeName, NodeView> = self
                .client
                .nodes(None, false)
                .await?
                .into_iter()
                .map(|v| (v.name.clone(), v))
                .collect();
            let missing: Vec<&NodeSpec> = nodes
                .iter()
                .filter(|n| !views.get(&n.name).is_some_and(is_ready))
                .collect();
            let Some(first) = missing.first() else {
                return Ok(());
            };
            if Instant::now() >= until {
                let part = part(&self.layout, first.name.as_str(), String::new());
                let names =
                    muster_protocol::fold::folded(missing.iter().map(|n| n.name.as_str()), 80);
                let mut detail: Vec<String> = views
                    .get(&first.name)
                    .into_iter()
                    .flat_map(|v| &v.conditions)
                    .map(condition)
                    .collect();
                detail.push(part.last_words(5));
                return Err(Failure::new(NOT_ALL, format!("not up in time: {names}"))
                    .detail(detail.join("\n"))
                    .hint(format!(
                        "the whole log of {}: {}",
                        first.name,
                        part.log.display()
                    )));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

fn is_ready(view: &NodeView) -> bool {
    view.state == Presence::Up
        && !view
            .conditions
            .iter()
            .any(|c| matches!(c, Condition::Stale { .. } | Condition::Cloned))
}

fn agent_failure(name: &NodeName, verb: &str, said: &std::process::Output) -> Failure {
    let text = muster_protocol::text::lossy(&said.stderr);
    let last = text
        .lines()
        .rev()
        .find(|l| !l.trim().is_empty())
        .unwrap_or("it said nothing")
        .to_owned();
    Failure::new(
        NOT_ALL,
        format!("{name}: `muster-agent {verb}` failed ({})", said.status),
    )
    .detail(last)
}
