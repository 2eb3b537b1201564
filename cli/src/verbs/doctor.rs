//! `muster doctor`

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use muster_client::{Client, ClientError, Endpoint};
use muster_protocol::api::{BrokerPlace, Condition, NodeView, Presence, Readiness, Status};
use muster_protocol::text::printable_line;
use muster_protocol::units::Timestamp;
use serde::Serialize;
use tokio::time::timeout;

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::find::Found;
use crate::ui::time::{ago, took};
use crate::ui::{Paint, count};
use crate::up::{agents, server};
use crate::verbs::{condition, now};
use muster_protocol::fold::folded;

/// Arguments of `muster doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// How it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Well,
    /// Worth knowing.
    Note,
    /// To be mended.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub about: &'static str,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub what: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Everything that was looked at, in order.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    checks: Vec<Check>,
}

impl Findings {
    fn well(&mut self, about: &'static str, what: impl Into<String>) {
        self.checks.push(Check {
            about,
            health: Health::Well,
            what: what.into(),
            hint: None,
        });
    }

    fn note(&mut self, about: &'static str, what: impl Into<String>, hint: impl Into<String>) {
        self.checks.push(Check {
            about,
            health: Health::Note,
            what: what.into(),
            hint: Some(hint.into()),
        });
    }

    fn bad(&mut self, about: &'static str, what: impl Into<String>, hint: impl Into<String>) {
        self.checks.push(Check {
            about,
            health: Health::Bad,
            what: what.into(),
            hint: Some(hint.into()),
        });
    }

    fn failure(&mut self, about: &'static str, failure: &Failure) {
        let what = match &failure.detail {
            Some(detail) => format!(
                "{}: {}",
                failure.message,
                detail.lines().next().unwrap_or_default()
            ),
            None => failure.message.clone(),
        };
        self.bad(about, what, failure.hint.clone().unwrap_or_default());
    }

    /// How many have to be mended.
    #[must_use]
    pub fn bad_ones(&self) -> usize {
        self.checks
            .iter()
            .filter(|c| c.health == Health::Bad)
            .count()
    }

    /// For people.
    #[must_use]
    pub fn render(&self, paint: Paint) -> String {
        let mut out = String::new();
        for check in &self.checks {
            let mark = match check.health {
                Health::Well => paint.good("ok  "),
                Health::Note => paint.odd("note"),
                Health::Bad => paint.bad("BAD "),
            };
            out.push_str(&format!(
                "{mark}  {:<12}  {}\n",
                check.about,
                printable_line(&check.what)
            ));
            if let Some(hint) = check.hint.as_ref().filter(|h| !h.is_empty()) {
                out.push_str(&format!(
                    "{:18}  {}\n",
                    "",
                    paint.dim(&printable_line(hint))
                ));
            }
        }
        out.push_str(&match self.bad_ones() {
            0 => "nothing is wrong\n".to_owned(),
            n => format!("{} to mend\n", count(n, "thing")),
        });
        out
    }
}

/// Clocks may differ so much without a word; a node refuses at 30 s.
const SKEW_NOTE: Duration = Duration::from_secs(2);
const SKEW_BAD: Duration = Duration::from_secs(15);
/// How long one of several brokers may take to say where it is.
const BROKER_SAYS: Duration = Duration::from_secs(3);
/// Less free disk than this is bad, twice of it a note.
const DISK_BAD: u64 = 512 << 20;

/// Checks the installation.
///
/// # Errors
/// Standard output cannot be written.
pub async fn run(context: &Context, args: &DoctorArgs) -> Result<u8, Failure> {
    let mut findings = Findings::default();
    let found = context.sources.find();
    let local = found
        .as_ref()
        .map_or(true, |f| f.endpoint().is_ok_and(|e| e.is_loopback()));
    programs(&mut findings, local);
    match &found {
        Ok(found) => {
            findings.well("broker", format!("{} (from {})", found.url, found.url_from));
            files(&mut findings, found);
            Box::pin(broker(&mut findings, found)).await;
        }
        Err(failure) => findings.failure("broker", failure),
    }
    if args.json {
        context.term.json(&findings)?;
    } else {
        context.term.say(&findings.render(context.term.out))?;
    }
    Ok(if findings.bad_ones() == 0 { 0 } else { NOT_ALL })
}

fn programs(findings: &mut Findings, local: bool) {
    match server::find() {
        Ok(server) => {
            findings.well(
                "nats-server",
                format!("version {} at {}", server.version, server.path.display()),
            );
        }
        Err(failure) if local => findings.failure("nats-server", &failure),
        Err(failure) => findings.note(
            "nats-server",
            failure.message,
            "only `muster up` on this machine needs it",
        ),
    }
    let agent = agents::executable();
    if agent.is_file() {
        findings.well("muster-agent", agent.display().to_string());
    } else {
        findings.note(
            "muster-agent",
            format!("none at {}", agent.display()),
            "only `muster up --node` on this machine needs it; MUSTER_AGENT names another",
        );
    }
}

fn files(findings: &mut Findings, found: &Found) {
    let token = Path::new(&found.token_from);
    if token.is_absolute() {
        private(findings, "token file", token, 0o600);
        // Beside the token of a `muster up` are the keys of the cluster.
        if let Some(state) = token.parent().filter(|dir| dir.join("keys").is_dir()) {
            private(findings, "keys", &state.join("keys"), 0o700);
            disk(findings, state);
        }
    }
    match found.endpoint() {
        Ok(endpoint) if endpoint.is_tls() => {
            let by = endpoint
                .ca_path()
                .map_or("the system's authorities".to_owned(), |p| {
                    p.display().to_string()
                });
            findings.well("TLS", format!("checked by {by}"));
        }
        Ok(endpoint) if endpoint.is_loopback() => {
            findings.well("TLS", "not needed: the broker is on this machine")
        }
        Ok(_) => findings.bad(
            "TLS",
            format!(
                "{} is plain HTTP to another machine: anybody on the way can read the token",
                found.url
            ),
            "use https:// and --ca-file; a broker that listens beyond loopback always speaks it",
        ),
        Err(failure) => findings.failure("TLS", &failure),
    }
}

fn private(findings: &mut Findings, about: &'static str, path: &Path, right: u32) {
    match std::fs::metadata(path) {
        Ok(meta) => {
            let mode = meta.permissions().mode() & 0o777;
            if mode & 0o077 == 0 {
                findings.well(about, format!("{} (mode {mode:o})", path.display()));
            } else {
                findings.bad(
                    about,
                    format!("{} has mode {mode:o}: others may read it", path.display()),
                    format!(
                        "chmod {right:o} {}; if somebody else could have read it, make a new one",
                        path.display()
                    ),
                );
            }
        }
        Err(e) => findings.bad(
            about,
            format!("cannot look at {}: {e}", path.display()),
            "is it the right user?",
        ),
    }
}

fn disk(findings: &mut Findings, dir: &Path) {
    match rustix::fs::statvfs(dir) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let text = format!("{} MiB free below {}", free >> 20, dir.display());
            let hint = "journals and outputs live there; NATS stops taking runs when it is full";
            if free < DISK_BAD {
                findings.bad("disk", text, hint);
            } else if free < 2 * DISK_BAD {
                findings.note("disk", text, hint);
            } else {
                findings.well("disk", text);
            }
        }
        Err(e) => findings.note("disk", format!("cannot look at {}: {e}", dir.display()), ""),
    }
}

async fn broker(findings: &mut Findings, found: &Found) {
    let client = match found.client() {
        Ok(client) => client,
        Err(failure) => return findings.failure("connection", &failure),
    };
    if let Ok(endpoint) = found.endpoint()
        && endpoint.urls().len() > 1
    {
        Box::pin(each_broker(findings, &endpoint)).await;
    }
    if let Err(error) = client.healthz().await {
        return findings.failure("connection", &error.into());
    }
    findings.well("connection", "the broker answers");
    if let Err(error) = client.readyz().await {
        findings.failure("ready", &error.into());
    }
    if found.token.is_none() {
        return findings.bad(
            "token",
            "there is none for this broker",
            "--token-file or MUSTER_TOKEN; an admin makes one: muster token create --for NAME --role operator",
        );
    }
    match client.whoami().await {
        Ok(me) => findings.well(
            "token",
            format!("{} ({}), token {}", me.principal, me.role, me.token),
        ),
        Err(error) => return findings.failure("token", &error.into()),
    }
    let asked = now();
    match client.status().await {
        Ok(status) => {
            judge_status(findings, &status, asked, now());
            judge_brokers(findings, &status, now());
        }
        Err(error) => findings.failure("status", &error.into()),
    }
    match nodes(&client).await {
        Ok(nodes) => judge_nodes(findings, &nodes, now()),
        Err(error) => findings.failure("nodes", &error.into()),
    }
}

/// Where each of several brokers is.
async fn each_broker(findings: &mut Findings, endpoint: &Endpoint) {
    for url in endpoint.urls() {
        // One of its own URLs.
        let Some(only) = endpoint.only(url) else {
            continue;
        };
        let said = match Client::new(only) {
            Ok(client) => match timeout(BROKER_SAYS, client.readyz()).await {
                Ok(said) => said,
                Err(_) => {
                    let what = format!("{url} does not answer");
                    findings.bad("brokers", what, "is it stopped, or the machine overloaded?");
                    continue;
                }
            },
            Err(error) => Err(error),
        };
        match said {
            Ok(()) => findings.well("brokers", format!("{url} is active")),
            Err(ClientError::NotReady(standby @ Readiness::Standby { .. })) => {
                let why = standby.reason().unwrap_or_default();
                findings.well("brokers", format!("{url}: {why}"));
            }
            Err(ClientError::NotReady(other)) => {
                let why = other.reason().unwrap_or_default();
                findings.bad("brokers", format!("{url}: {why}"), "its log says more");
            }
            Err(error) => findings.failure("brokers", &error.into()),
        }
    }
}

fn judge_brokers(findings: &mut Findings, status: &Status, now: Timestamp) {
    for one in &status.brokers {
        let last = one.heard.map(|heard| ago(heard, now)).unwrap_or_default();
        match one.place {
            BrokerPlace::Active => {}
            BrokerPlace::Standby => {
                findings.well("standby", format!("{} would take over", one.url));
            }
            BrokerPlace::Away => findings.note(
                "standby",
                format!("{} is not there, last heard {last}", one.url),
                "start it; one that is gone for good is forgotten after a week",
            ),
        }
    }
}

async fn nodes(client: &Client) -> Result<Vec<NodeView>, ClientError> {
    client.nodes(None, false).await
}

/// What the broker says of itself; it was asked at `asked` and answered by
/// `answered`, by this machine's clock.
fn judge_status(findings: &mut Findings, status: &Status, asked: Timestamp, answered: Timestamp) {
    let mine = env!("CARGO_PKG_VERSION");
    if status.version == mine {
        findings.well("version", format!("{mine}, as here"));
    } else {
        findings.note(
            "version",
            format!("the broker is {}, this is {mine}", status.version),
            "use the same version",
        );
    }
    if !status.active {
        findings.note(
            "lease",
            "this broker stands by; another one is active",
            "ask the active one",
        );
    }
    match (&status.nats_version, status.nats_connected) {
        (version, true) => findings.well(
            "NATS",
            format!("connected, version {}", version.as_deref().unwrap_or("unknown")),
        ),
        (_, false) => findings.bad(
            "NATS",
            "the broker has no connection to NATS",
            "is nats-server running? with `muster up`: see log/nats-server.log in its state directory",
        ),
    }
    // Its clock was read somewhere between the question and the answer.
    let skew = if status.time < asked {
        muster_protocol::units::elapsed(status.time, asked)
    } else {
        muster_protocol::units::elapsed(answered, status.time)
    };
    let text = format!("{} apart from the broker's", took(skew));
    let hint = "let both machines keep time: timedatectl set-ntp true";
    if skew >= SKEW_BAD {
        findings.bad("clock", text, hint);
    } else if skew >= SKEW_NOTE {
        findings.note("clock", text, hint);
    } else {
        findings.well("clock", "as the broker's");
    }
    for finding in &status.findings {
        findings.bad("broker", &finding.what, &finding.hint);
    }
}

fn judge_nodes(findings: &mut Findings, nodes: &[NodeView], now: Timestamp) {
    if nodes.is_empty() {
        return findings.note(
            "nodes",
            "there are none yet",
            "muster node invite --name web-01 --role web",
        );
    }
    let of = |state| nodes.iter().filter(move |n| n.state == state);
    let names = |state| folded(of(state).map(|n| n.name.as_str()), 80);
    findings.well(
        "nodes",
        format!("{} of {} up", of(Presence::Up).count(), nodes.len()),
    );
    if of(Presence::Down).count() > 0 {
        let newest = of(Presence::Down).filter_map(|n| n.last_seen).max();
        let seen = newest
            .map(|at| format!(", the newest of them was seen {}", ago(at, now)))
            .unwrap_or_default();
        findings.bad(
            "nodes",
            format!("{} down: {}{seen}", of(Presence::Down).count(), names(Presence::Down)),
            "look at the machine: systemctl status muster-agent; `muster node remove` if it is gone for good",
        );
    }
    if of(Presence::Late).count() > 0 {
        findings.note(
            "nodes",
            format!("late: {}", names(Presence::Late)),
            "their heartbeats are missing: a slow network, or a machine under load",
        );
    }
    if of(Presence::Never).count() > 0 {
        findings.note(
            "nodes",
            format!("enrolled and never seen: {}", names(Presence::Never)),
            "is muster-agent running there?",
        );
    }
    for node in nodes {
        for one in &node.conditions {
            let text = format!("{}: {}", node.name, condition(one));
            let hint = format!("muster node show {}", node.name);
            match one {
                Condition::Note { .. } | Condition::Stale { .. } => {
                    findings.note("nodes", text, hint)
                }
                _ => findings.bad("nodes", text, hint),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::api::Finding;
    use muster_protocol::ids::{ClusterId, Serial};

    fn node(name: &str, state: Presence, conditions: Vec<Condition>) -> NodeView {
        NodeView {
            name: name.parse().expect("name"),
            serial: Serial(1),
            roles: vec![],
            labels: [].into(),
            facts: serde_json::Map::new(),
            state,
            last_seen: Some("2026-11-21T05:56:00Z".parse().expect("time")),
            version: None,
            agent: None,
            infrastructure: false,
            enrolled: "2026-11-01T00:00:00Z".parse().expect("time"),
            key: muster_protocol::keys::PrivateKey::from_seed(&[1; 32])
                .public()
                .fingerprint(),
            conditions,
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let at = |text: &str| text.parse::<Timestamp>().expect("time");
        let status = Status {
            version: "0.0.9".into(),
            cluster: ClusterId::from_bytes([3; 16]),
            active: true,
            epoch: 4,
            key_epoch: 2,
            nats_version: Some("2.9.10".into()),
            nats_connected: true,
            nodes: [].into(),
            open_runs: 0,
            brokers: Vec::new(),
            time: at("2026-11-21T07:00:00Z"),
            space: vec![],
            removed: muster_protocol::api::Removed::default(),
            findings: vec![Finding {
                what: "3 messages refused".into(),
                hint: "see events".into(),
            }],
        };
        let mut findings = Findings::default();
        judge_status(
            &mut findings,
            &status,
            at("2026-11-21T06:00:00Z"),
            at("2026-11-21T06:00:01Z"),
        );
        let nodes = [
            node("web-01", Presence::Up, vec![]),
            node("web-02", Presence::Down, vec![]),
            node("web-03", Presence::Late, vec![Condition::Cloned]),
            node("web-04", Presence::Never, vec![]),
        ];
        judge_nodes(&mut findings, &nodes, at("2026-11-21T06:00:00Z"));
        insta::assert_snapshot!(
            findings
                .render(Paint::plain())
                .replace(env!("CARGO_PKG_VERSION"), "X")
        );
        assert_eq!(findings.bad_ones(), 4);
    }

    #[test]
    fn clocks_within_the_time_of_the_question_are_the_same() {
        let at = |text: &str| text.parse::<Timestamp>().expect("time");
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            cluster: ClusterId::from_bytes([3; 16]),
            active: true,
            epoch: 1,
            key_epoch: 1,
            nats_version: None,
            nats_connected: true,
            nodes: [].into(),
            open_runs: 0,
            brokers: Vec::new(),
            time: at("2026-11-21T06:00:00.5Z"),
            space: vec![],
            removed: muster_protocol::api::Removed::default(),
            findings: vec![],
        };
        let mut findings = Findings::default();
        judge_status(
            &mut findings,
            &status,
            at("2026-11-21T06:00:00Z"),
            at("2026-11-21T06:00:01Z"),
        );
        assert!(
            findings.checks.iter().all(|c| c.health == Health::Well),
            "{findings:?}"
        );
    }

    #[test]
    fn a_token_that_others_may_read_is_bad() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("token");
        std::fs::write(&path, "x").expect("write");
        let mut findings = Findings::default();
        for (mode, bad) in [(0o600, 0), (0o640, 1)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
            private(&mut findings, "token file", &path, 0o600);
            assert_eq!(findings.bad_ones(), bad);
        }
    }
}
