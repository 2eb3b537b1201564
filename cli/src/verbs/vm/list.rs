//! Machines as they are: `muster vm list`, `show`, `where`, `log`.

use std::collections::BTreeMap;

use clap::Args;
use muster_protocol::api::{Configure, Configured, VmBrief, VmStatus, VmView};
use muster_protocol::names::VmName;
use muster_protocol::run::RunPhase;
use muster_protocol::text::{printable, printable_line};
use muster_protocol::units::{Timestamp, elapsed};
use muster_protocol::vm::Traffic;
use serde_json::Value;

use crate::Context;
use crate::failure::Failure;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::time::{ago, coarse, moment};
use crate::ui::{Paint, count};
use crate::verbs::{events, labels, now};

/// Events of a machine that are shown.
const SHOWN: u32 = 100;

/// Arguments of `muster vm list`.
#[derive(Args, Debug)]
#[command(after_help = "\
A predicate selects by name, role and label, and by hypervisor, account, status and image:
  muster vm list 'role=web and status=running'      muster vm list 'hypervisor=gva2-r03-*'")]
pub struct ListArgs {
    /// Only these machines
    #[arg(value_name = "PREDICATE")]
    pub predicate: Option<String>,
    /// Those that were destroyed
    #[arg(long)]
    pub deleted: bool,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster vm show` and `muster vm where`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster vm log`.
#[derive(Args, Debug)]
pub struct LogArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Go on with what happens from now on
    #[arg(long, short)]
    pub follow: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Lists machines.
///
/// # Errors
/// [`Failure`].
pub(super) async fn list(context: &Context, args: &ListArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let (predicate, deleted) = (args.predicate.as_deref(), args.deleted);
    // What programs read is whole; what people read has not room for it.
    if args.json {
        let vms = client.vms(predicate, deleted).await?;
        context.term.json(&vms)?;
        return Ok(found(vms.len(), args));
    }
    let vms = client.vm_briefs(predicate, deleted).await?;
    if vms.is_empty() {
        context.term.note(match (&args.predicate, args.deleted) {
            (Some(_), _) => "no machine matches",
            (None, true) => "no machine was destroyed",
            (None, false) => "no machines yet. Make one: muster vm create --help",
        });
    } else {
        let (paint, width) = (context.term.out, context.term.width);
        context.term.say(&render(&vms, paint, width, now()))?;
    }
    Ok(found(vms.len(), args))
}

/// The exit code. As `nodes`: that a predicate selects nothing is said in it.
fn found(count: usize, args: &ListArgs) -> u8 {
    if count == 0 && args.predicate.is_some() {
        3
    } else {
        0
    }
}

/// Everything known of a machine.
///
/// # Errors
/// [`Failure`].
pub(super) async fn show(context: &Context, args: &ShowArgs) -> Result<u8, Failure> {
    let vm = context.client()?.vm(&args.name).await?;
    if args.json {
        context.term.json(&vm)?;
    } else {
        context.term.say(&card(&vm, context.term.out, now()))?;
    }
    Ok(0)
}

/// Where a machine is.
///
/// # Errors
/// [`Failure`].
pub(super) async fn place(context: &Context, args: &ShowArgs) -> Result<u8, Failure> {
    let vm = context.client()?.vm(&args.name).await?;
    if args.json {
        let place = serde_json::json!({ "vm": vm.name, "hypervisor": vm.hypervisor });
        context.term.json(&place)?;
    } else {
        context.term.line(vm.hypervisor.as_str())?;
    }
    Ok(0)
}

/// What happened to a machine.
///
/// # Errors
/// [`Failure`].
pub(super) async fn log(context: &Context, args: &LogArgs) -> Result<u8, Failure> {
    let asked = events::EventsArgs {
        after: None,
        kinds: Vec::new(),
        subject: Some(args.name.to_string()),
        since: None,
        limit: SHOWN,
        follow: args.follow,
        json: args.json,
    };
    events::run(context, &asked).await
}

/// A status as people read it.
pub(in crate::verbs) fn word(status: VmStatus) -> (&'static str, Tone) {
    match status {
        VmStatus::Creating => ("creating", Tone::Odd),
        VmStatus::Running => ("running", Tone::Good),
        VmStatus::Paused => ("paused", Tone::Odd),
        VmStatus::Stopped => ("stopped", Tone::Plain),
        VmStatus::Crashed => ("crashed", Tone::Bad),
        VmStatus::Unreachable => ("unreachable", Tone::Bad),
        VmStatus::Missing => ("missing", Tone::Bad),
        VmStatus::Destroying => ("destroying", Tone::Odd),
        VmStatus::Deleted => ("deleted", Tone::Plain),
        VmStatus::Doubtful => ("doubtful", Tone::Bad),
    }
}

/// The table, and under it what should be looked at.
#[must_use]
pub(super) fn render(vms: &[VmBrief], paint: Paint, width: usize, now: Timestamp) -> String {
    let heads = &[
        "NAME",
        "STATUS",
        "UP",
        "HYPERVISOR",
        "CPUS",
        "MEMORY",
        "ADDRESSES",
        "ACCOUNT",
        "ROLES",
    ];
    let mut table = Table::new(heads);
    let mut statuses = BTreeMap::<&str, usize>::new();
    for vm in vms {
        let (text, tone) = word(vm.status);
        *statuses.entry(text).or_default() += 1;
        let addresses: Vec<String> = vm.addresses.iter().map(ToString::to_string).collect();
        let roles: Vec<&str> = vm.roles.iter().map(|role| role.as_str()).collect();
        table.row([
            vm.name.as_str().into(),
            Cell::toned(text, tone),
            vm.since
                .map_or_else(|| "-".into(), |since| coarse(elapsed(since, now)))
                .into(),
            vm.hypervisor.as_str().into(),
            vm.cpus.to_string().into(),
            vm.memory.to_string().into(),
            addresses.join(",").into(),
            vm.account.as_ref().map_or("-", |a| a.as_str()).into(),
            roles.join(",").into(),
        ]);
    }
    let mut out = table.render(paint, width);
    for vm in vms {
        for drift in &vm.drift {
            let text = printable_line(&drift.text);
            out.push_str(&format!("{} {text}\n", paint.odd(&format!("{}:", vm.name))));
        }
        if let Some(why) = &vm.why {
            let why = printable_line(why);
            out.push_str(&format!("{} {why}\n", paint.odd(&format!("{}:", vm.name))));
        }
        if let Some(text) = vm.configured.as_ref().and_then(unconfigured) {
            let text = printable_line(&text);
            out.push_str(&format!("{} {text}\n", paint.odd(&format!("{}:", vm.name))));
        }
        if let Some(until) = vm.kept_until {
            let text = format!("its disk is kept until {}", moment(until));
            out.push_str(&format!("{}: {text}\n", vm.name));
        }
    }
    let parts: Vec<String> = statuses
        .iter()
        .map(|(status, n)| format!("{n} {status}"))
        .collect();
    out.push_str(&format!(
        "{}: {}\n",
        count(vms.len(), "machine"),
        parts.join(", ")
    ));
    out
}

/// That a machine is not configured.
fn unconfigured(last: &Configured) -> Option<String> {
    let state = last.state?;
    let why = last.why.as_deref().unwrap_or_else(|| state.as_str());
    (state != RunPhase::Succeeded).then(|| format!("{} did not configure it: {why}", last.scenario))
}

/// What configures a machine, and what came of that last.
fn configure(vm: &VmView) -> String {
    let mut text = match &vm.configure {
        None => return String::new(),
        Some(Configure { scenario, params }) => {
            let params = params.iter().map(|(name, value)| match value {
                Value::String(value) => format!(" {name}={value}"),
                value => format!(" {name}={value}"),
            });
            format!("by {scenario}{}", params.collect::<String>())
        }
    };
    if let Some(last) = &vm.configured {
        let run = last.run.prefix(8);
        text.push_str(&match (&last.state, &last.why) {
            (None, _) => format!("; run {run} is under way"),
            (Some(state), None) => format!("; run {run} {}", state.as_str()),
            (Some(state), Some(why)) => format!("; run {run} {}: {why}", state.as_str()),
        });
    }
    text
}

/// What its interfaces have carried since it was started.
pub(super) fn carried(traffic: Traffic) -> String {
    format!("received {}, sent {}", traffic.received, traffic.sent)
}

/// A machine on several lines.
fn card(vm: &VmView, paint: Paint, now: Timestamp) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        if !text.is_empty() {
            out.push_str(&format!("{name:<12} {}\n", printable(&text, 2_000)));
        }
    };
    let (status, tone) = word(vm.status);
    let status = match tone {
        Tone::Good => paint.good(status),
        Tone::Odd => paint.odd(status),
        Tone::Bad => paint.bad(status),
        Tone::Plain => status.to_owned(),
    };
    line("name", vm.name.to_string());
    line("id", vm.id.to_string());
    let mut is = String::new();
    if let Some(since) = vm.since {
        is = format!(", started {}", ago(since, now));
    }
    if vm.protected {
        is.push_str(", protected");
    }
    line("hypervisor", vm.hypervisor.to_string());
    line(
        "size",
        format!(
            "{}, {} of memory, {} of disk",
            count(usize::from(vm.cpus), "processor"),
            vm.memory,
            vm.disk
        ),
    );
    line(
        "image",
        format!("{} ({:.12})", vm.image, vm.image_sha256.to_string()),
    );
    for nic in &vm.nics {
        let addresses: Vec<String> = nic.addresses.iter().map(ToString::to_string).collect();
        let text = format!("{} {} {}", nic.network, nic.mac, addresses.join(", "));
        line("network", text);
    }
    if let Some(traffic) = vm.traffic {
        line("traffic", carried(traffic));
    }
    line(
        "account",
        vm.account
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    );
    let groups: Vec<&str> = vm.groups.iter().map(|group| group.as_str()).collect();
    line("groups", groups.join(", "));
    line("may use", super::guard::pairs_of(&vm.pairs));
    let roles: Vec<&str> = vm.roles.iter().map(|role| role.as_str()).collect();
    line("roles", roles.join(", "));
    line("labels", labels(&vm.labels));
    line("agent", if vm.agent { "yes" } else { "no" }.to_owned());
    line("made", format!("{} by {}", moment(vm.made), vm.by));
    line("configured", configure(vm));
    if let Some(run) = vm.run {
        line("run", run.prefix(8).to_owned());
    }
    if let Some(deleted) = vm.deleted {
        let kept = vm
            .kept_until
            .map(|until| format!(", its disk is kept until {}", moment(until)));
        line(
            "destroyed",
            format!("{}{}", moment(deleted), kept.unwrap_or_default()),
        );
    }
    for drift in &vm.drift {
        line("drift", drift.text.clone());
    }
    line("why", vm.why.clone().unwrap_or_default());
    // Its colours are ours: nothing of it came from outside.
    let head = format!("{:<12} {status}{is}\n", "status");
    let at = out.find("hypervisor").unwrap_or(0);
    out.insert_str(at, &head);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(name: &str, status: &str) -> VmBrief {
        let whole = serde_json::to_value(vm(name, status)).expect("JSON");
        serde_json::from_value(whole).expect("a machine in short")
    }

    fn vm(name: &str, status: &str) -> VmView {
        serde_json::from_value(serde_json::json!({
            "name": name, "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "status": status,
            "should_run": true, "hypervisor": "gva2-r03-h12", "cpus": 2, "memory": 2147483648u64,
            "disk": 10737418240u64, "image": "debian-12", "since": "2026-11-22T08:00:00Z",
            "traffic": { "received": 1288490189u64, "sent": 52428800u64 },
            "image_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "nics": [{ "network": "public", "bridge": "br0", "mac": "52:54:00:12:ab:0f", "tap": "mtabc",
                "addresses": ["192.0.2.57"] }],
            "addresses": ["192.0.2.57"], "account": "acme", "roles": ["web"], "labels": { "tier": "front" },
            "groups": [], "agent": true, "ready": "agent", "autostart": true, "protected": true,
            "by": "ana", "made": "2026-11-22T07:00:00Z",
        }))
        .expect("a machine")
    }

    #[test]
    fn the_list_says_what_is_otherwise() {
        let mut vms = vec![
            brief("web-01", "running"),
            brief("web-02", "stopped"),
            brief("web-03", "deleted"),
        ];
        vms[1].drift = vec![muster_protocol::api::DriftView {
            what: "state".into(),
            text: "is stopped, and should run\u{1b}[31m".into(),
        }];
        vms[2].kept_until = Some("2026-11-23T07:00:00Z".parse().expect("a time"));
        (vms[1].since, vms[2].since) = (None, None);
        let now = "2026-11-22T10:00:00Z".parse().expect("a time");
        insta::assert_snapshot!(render(&vms, Paint::plain(), 120, now), @r"
        NAME    STATUS   UP   HYPERVISOR    CPUS  MEMORY  ADDRESSES   ACCOUNT  ROLES
        web-01  running  2 h  gva2-r03-h12  2     2GiB    192.0.2.57  acme     web
        web-02  stopped  -    gva2-r03-h12  2     2GiB    192.0.2.57  acme     web
        web-03  deleted  -    gva2-r03-h12  2     2GiB    192.0.2.57  acme     web
        web-02: is stopped, and should run\x1b[31m
        web-03: its disk is kept until 2026-11-23 07:00:00
        3 machines: 1 deleted, 1 running, 1 stopped
        ");
    }

    #[test]
    fn a_machine_is_shown_with_everything() {
        let now = "2026-11-22T10:00:00Z".parse().expect("a time");
        insta::assert_snapshot!(card(&vm("web-01", "running"), Paint::plain(), now), @r"
        name         web-01
        id           0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102
        status       running, started 2 h ago, protected
        hypervisor   gva2-r03-h12
        size         2 processors, 2GiB of memory, 10GiB of disk
        image        debian-12 (e3b0c44298fc)
        network      public 52:54:00:12:ab:0f 192.0.2.57
        traffic      received 1.2GiB, sent 50MiB
        account      acme
        roles        web
        labels       tier=front
        agent        yes
        made         2026-11-22 07:00:00 by ana
        ");
    }
}
