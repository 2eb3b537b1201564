//! `muster vm create`

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use muster_client::{Client, Key};
use muster_protocol::api::{
    CreateVms, Frame, MAX_USER_DATA, Strategy, VmPlan, VmStatus, VmView, VmsCreated,
};
use muster_protocol::ids::RunId;
use muster_protocol::names::{
    AccountName, GroupName, ImageName, LabelKey, LabelValue, LanName, NodeName, RoleName,
    ScenarioName, SshKeyName, VmName,
};
use muster_protocol::run::{Outcome, RunPhase};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::vm::{Readiness, Size, SshKeyError, check_key_line, is_private_key};

use super::provision::{configure, configured};
use super::wait::{Steps, as_wanted, failed, settled, wait};
use crate::Context;
use crate::failure::{DENIED, Failure, NOT_ALL, UNREACHABLE};
use crate::input;
use crate::ui::count;
use crate::ui::time::took;

/// Machines of which it is said in the end what went wrong.
const MAX_TOLD: usize = 10;

const AFTER: &str = "\
The name can be a range (web-{01..05}), or be made of labels of the hypervisor that is chosen:
{zone}-{rack}-h{n} with the lowest free number.

Examples:
  muster vm create web-25 --image debian-12 --cpus 2 --memory 2GiB --network public --role web
  muster vm create web-26 --image debian-12 --cpus 2 --memory 2GiB --network public --configure web-node --param package=nginx
  muster vm create acme-db --image debian-12 --cpus 4 --memory 8GiB --network public --account acme --no-agent";

/// Arguments of `muster vm create`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct CreateArgs {
    /// Its name, a range of names, or a pattern of the place
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What its disk begins with
    #[arg(long, value_name = "IMAGE")]
    pub image: ImageName,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    pub cpus: u16,
    /// Memory, like 2GiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Size,
    /// Disk, like 10GiB [default: as large as the image]
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<Size>,
    /// A network that it is in; may be repeated
    #[arg(long = "network", value_name = "NETWORK")]
    pub networks: Vec<LanName>,
    /// Whose it is
    #[arg(long, value_name = "ACCOUNT")]
    pub account: Option<AccountName>,
    /// No agent in it: a customer's machine
    #[arg(long)]
    pub no_agent: bool,
    /// Only hypervisors that match
    #[arg(long, value_name = "PREDICATE")]
    pub on: Option<String>,
    /// A role of its node; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<RoleName>,
    /// A label of it and of its node; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = crate::verbs::label)]
    pub labels: Vec<(LabelKey, LabelValue)>,
    /// A group of rules for its interfaces; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<GroupName>,
    /// A public key for ssh by its name (`muster ssh-key`), or a file of them, one a line; may be
    /// repeated
    #[arg(long = "ssh-key", value_name = "NAME|FILE")]
    pub ssh_keys: Vec<String>,
    /// A file with user-data for cloud-init
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// How many; the name has to be a pattern
    #[arg(long, value_name = "N")]
    pub count: Option<u32>,
    /// No two of the same account (or role) where hypervisors have the same value of this label;
    /// `name` for no two on one hypervisor
    #[arg(long, value_name = "LABEL")]
    pub apart: Option<String>,
    /// Which of the hypervisors that fit: with the most, or the least free memory
    #[arg(long, value_enum, default_value_t)]
    pub strategy: Way,
    /// A scenario that configures it once it is up, on its own node
    #[arg(long, value_name = "SCENARIO", conflicts_with = "no_agent")]
    pub configure: Option<ScenarioName>,
    /// A parameter of that scenario; may be repeated
    #[arg(long = "param", value_name = "NAME=VALUE", requires = "configure")]
    pub params: Vec<String>,
    /// It cannot be destroyed before somebody unprotects it
    #[arg(long)]
    pub protect: bool,
    /// When it counts as up [default: agent; boot without one]
    #[arg(long, value_name = "WHEN", value_enum)]
    pub ready: Option<When>,
    /// How long it may take to be up [default: 10m]
    #[arg(long, value_name = "TIME")]
    pub within: Option<Span>,
    /// Do not start it with its hypervisor
    #[arg(long)]
    pub no_autostart: bool,
    /// Say where it would be put, and make nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until it is up
    #[arg(long, conflicts_with = "dry_run")]
    pub detach: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Which hypervisor is taken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Way {
    /// That with the most free memory
    #[default]
    Spread,
    /// That with the least free memory
    Pack,
}

/// When a machine counts as up.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum When {
    /// Its agent has enrolled
    Agent,
    /// It was started
    Boot,
    /// Its first address answers
    Ping,
    /// The QEMU guest agent in it answers
    GuestAgent,
}

impl From<When> for Readiness {
    fn from(when: When) -> Self {
        match when {
            When::Agent => Self::Agent,
            When::Boot => Self::Boot,
            When::Ping => Self::Ping,
            When::GuestAgent => Self::GuestAgent,
        }
    }
}

/// The keys in a file of them.
pub(crate) fn key_lines(text: &str) -> Result<Vec<String>, SshKeyError> {
    // Of all of it: of a part nobody could say it.
    if is_private_key(text) {
        return Err(SshKeyError::Private);
    }
    let lines = text.lines().map(str::trim);
    let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = keys.map(str::to_owned).collect();
    if keys.is_empty() {
        return Err(SshKeyError::Shape);
    }
    keys.iter().try_for_each(|key| check_key_line(key))?;
    Ok(keys)
}

impl CreateArgs {
    /// As the API takes it.
    fn request(&self) -> Result<CreateVms, Failure> {
        let mut ssh_keys = Vec::new();
        for key in &self.ssh_keys {
            // A name has no slash in it, and what is there is a file.
            let path = std::path::Path::new(key);
            if !key.contains('/') && !path.exists() && key.parse::<SshKeyName>().is_ok() {
                ssh_keys.push(key.clone());
                continue;
            }
            if is_private_key(key) {
                let text = format!("--ssh-key: {}", SshKeyError::Private);
                return Err(Failure::usage(text));
            }
            let text = input::text(path, input::MAX_KEYS).map_err(Failure::usage)?;
            let keys = key_lines(&text);
            let keys = keys.map_err(|why| Failure::usage(format!("{}: {why}", path.display())))?;
            ssh_keys.extend(keys);
        }
        let user_data = self.user_data.as_deref();
        let user_data = user_data.map(|path| input::text(path, MAX_USER_DATA));
        let user_data = user_data.transpose().map_err(Failure::usage)?;
        Ok(CreateVms {
            name: self.name.clone(),
            count: self.count,
            image: self.image.clone(),
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            networks: self.networks.clone(),
            account: self.account.clone(),
            agent: !self.no_agent,
            ready: self.ready.map(Into::into),
            ready_within: self.within,
            on: self.on.clone(),
            strategy: match self.strategy {
                Way::Spread => Strategy::Spread,
                Way::Pack => Strategy::Pack,
            },
            apart: self.apart.clone(),
            roles: self.roles.clone(),
            labels: self.labels.iter().cloned().collect(),
            groups: self.groups.clone(),
            ssh_keys,
            user_data,
            autostart: !self.no_autostart,
            protect: self.protect,
            configure: configure(self.configure.as_ref(), &self.params)?,
            dry_run: self.dry_run,
        })
    }
}

/// Makes machines.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(context: &Context, args: CreateArgs) -> Result<u8, Failure> {
    let request = args.request()?;
    let client = context.client()?;
    let since = Instant::now();
    let created = client.create_vms(&request, &Key::random()).await?;
    if args.json && (args.detach || created.dry_run) {
        context.term.json(&created)?;
        return Ok(0);
    }
    if created.dry_run {
        for plan in &created.machines {
            let text = head(plan, request.strategy, true);
            context
                .term
                .say(&format!("{} would be made:\n{text}", plan.vm.name))?;
        }
        return Ok(0);
    }
    if args.detach {
        for plan in &created.machines {
            let run = plan.vm.run.map(|run| run.prefix(8).to_owned());
            let run = run.unwrap_or_default();
            context.term.line(&format!("{}  run {run}", plan.vm.name))?;
        }
        return Ok(0);
    }
    follow(context, &client, &args, created, (&request, since)).await
}

/// What was decided of a machine before anything is done.
pub(super) fn head(plan: &VmPlan, strategy: Strategy, dry: bool) -> String {
    let vm = &plan.vm;
    let mut out = String::new();
    let mut line = |name: &str, what: &str, how: &str| {
        out.push_str(format!("  {name:<11} {what:<35} {how}").trim_end());
        out.push('\n');
    };
    let addresses: Vec<String> = vm.addresses.iter().map(ToString::to_string).collect();
    if !addresses.is_empty() {
        line("address", &addresses.join(", "), "reserved");
    } else if dry {
        line("address", "-", "reserved when it is made");
    }
    let most = match strategy {
        Strategy::Spread => "most free memory",
        Strategy::Pack => "least free memory",
    };
    let chosen = match plan.looked_at {
        // The same request came before, and what was looked at is not kept.
        0 => "chosen before".to_owned(),
        looked => format!("chosen of {looked} ({} fit; {most})", plan.fit),
    };
    line("hypervisor", vm.hypervisor.as_str(), &chosen);
    let there = if plan.image_there {
        "already there"
    } else {
        "to be fetched"
    };
    line("image", vm.image.as_str(), there);
    out
}

/// What a frame of the run says, as a line; none where it says nothing new.
pub(super) fn step(frame: &Frame, since: Instant) -> Option<String> {
    let Frame::StepEnded {
        name,
        summary,
        undo,
        failures,
        ..
    } = frame
    else {
        return None;
    };
    let well = summary.keys().all(|outcome| *outcome == Outcome::Succeeded);
    let time = took(since.elapsed());
    let (what, how) = match (name.as_str(), undo, well) {
        ("image", false, true) => ("image", "there"),
        ("create", false, true) => ("domain", "started"),
        ("unseed", false, true) => ("seed", "its invite is taken out"),
        (_, true, true) => ("undo", "taken back"),
        (_, true, false) => ("undo", "could not be taken back"),
        (_, false, true) => return None,
        (_, false, false) => {
            let why = failures.first().and_then(|node| node.reason.as_deref());
            let why = printable(why.unwrap_or("failed"), 200);
            return Some(format!("  {:<11} {why}", printable(name, 11)));
        }
    };
    Some(format!("  {what:<11} {how:<35} {time}"))
}

/// What a frame says of the first contact that is waited for: that it is, and
/// that it was made.
fn contact(frame: &Frame, expected: &mut Option<NodeName>, since: Instant) -> Option<String> {
    let (what, how) = match frame {
        Frame::Sleeps {
            node: Some(node), ..
        } if expected.is_none() => {
            *expected = Some(node.clone());
            ("boot", format!("until {node} is heard"))
        }
        Frame::StepBegan {
            name, undo: false, ..
        } if name == "unseed" => {
            let node = expected.take()?;
            ("contact", format!("{node} takes orders"))
        }
        _ => return None,
    };
    let time = took(since.elapsed());
    Some(format!("  {what:<11} {how:<35} {time}"))
}

/// What came of a machine.
enum Came {
    /// It is as it was asked for.
    Well,
    /// It is up, and not configured.
    Unconfigured(Failure),
    /// It is not up.
    NotUp(Failure),
}

async fn follow(
    context: &Context,
    client: &Client,
    args: &CreateArgs,
    created: VmsCreated,
    (request, since): (&CreateVms, Instant),
) -> Result<u8, Failure> {
    let many = created.machines.len() > 1;
    let mut views = Vec::new();
    let (mut bad, mut unconfigured) = (Vec::new(), Vec::new());
    for plan in &created.machines {
        let Some(run) = plan.vm.run else {
            continue;
        };
        if !args.json {
            let (short, name) = (run.prefix(4), &plan.vm.name);
            let text = head(plan, request.strategy, false);
            let text = format!("run {short}  vm-create {name}\n{text}");
            context.term.note(text.trim_end());
        }
        let steps = if args.json || many {
            Steps::Quiet
        } else {
            Steps::Told
        };
        match one(context, client, args, &plan.vm.name, (run, steps, since)).await {
            Ok((vm, came)) => {
                match came {
                    Came::Well => {}
                    Came::Unconfigured(failure) => unconfigured.push(failure),
                    Came::NotUp(failure) => bad.push(failure),
                }
                views.push(vm);
            }
            // Nobody can be asked of the others either.
            Err(failure) if matches!(failure.code, DENIED | UNREACHABLE) => {
                bad.push(failure);
                break;
            }
            Err(failure) => bad.push(failure),
        }
    }
    if args.json {
        context.term.json(&views)?;
    }
    ended(created.machines.len(), bad, unconfigured)
}

/// Follows a machine until it is up, and configured.
async fn one(
    context: &Context,
    client: &Client,
    args: &CreateArgs,
    name: &VmName,
    (run, steps, since): (RunId, Steps, Instant),
) -> Result<(VmView, Came), Failure> {
    let mut expected = None;
    let view = wait(context, client, run, steps, |frame| {
        let line = contact(frame, &mut expected, since).or_else(|| step(frame, since));
        line.filter(|_| steps == Steps::Told)
    })
    .await?;
    let vm = settled(client, name).await?;
    if view.brief.state != RunPhase::Succeeded {
        let failure = failed(&view, &format!("{name} was not made"));
        return Ok((vm, Came::NotUp(failure)));
    }
    if let Err(failure) = as_wanted(&vm, &[VmStatus::Running], "was made") {
        return Ok((vm, Came::NotUp(failure)));
    }
    let at = vm.addresses.first();
    let at = at.map(|at| format!(" at {at}")).unwrap_or_default();
    let orders = if vm.agent { " and takes orders" } else { "" };
    if !args.json {
        context.term.line(&format!("{name} is up{at}{orders}"))?;
    }
    if vm.configure.is_none() {
        return Ok((vm, Came::Well));
    }
    Ok(
        match configured(context, client, vm.clone(), args.json).await {
            Ok((vm, None)) => (vm, Came::Well),
            Ok((vm, Some(failure))) => (vm, Came::Unconfigured(failure)),
            Err(failure) => (vm, Came::Unconfigured(failure)),
        },
    )
}

/// What is said in the end of so many machines. What was not made is worse
/// than what was not configured.
fn ended(all: usize, bad: Vec<Failure>, unconfigured: Vec<Failure>) -> Result<u8, Failure> {
    let machines = count(all, "machine");
    let text = match (bad.len(), unconfigured.len()) {
        (0, 0) => return Ok(0),
        (bad, 0) => format!("{bad} of {machines} are not up"),
        (0, un) => format!("{un} of {machines} are up, and not configured"),
        (bad, un) => format!("{bad} of {machines} are not up, and {un} are not configured"),
    };
    let hint = if bad.is_empty() {
        "muster vm list says why of each"
    } else {
        "muster vm list --deleted says why of each"
    };
    let mut failures: Vec<Failure> = bad.into_iter().chain(unconfigured).collect();
    if failures.len() == 1 {
        return failures.pop().map_or(Ok(0), Err);
    }
    let more = failures.len().saturating_sub(MAX_TOLD);
    let mut lines = Vec::new();
    for failure in failures.into_iter().take(MAX_TOLD) {
        lines.push(failure.message);
        let detail = failure.detail.unwrap_or_default();
        lines.extend(detail.lines().map(|line| format!("  {line}")));
    }
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    Err(Failure::new(NOT_ALL, text)
        .detail(lines.join("\n"))
        .hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> VmPlan {
        serde_json::from_value(serde_json::json!({
            "vm": {
                "name": "web-25", "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "status": "creating",
                "should_run": true, "hypervisor": "gva2-r03-h12", "cpus": 2, "memory": 2147483648u64,
                "disk": 10737418240u64, "image": "debian-12",
                "image_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "nics": [], "addresses": ["192.0.2.57", "2001:db8::57"], "roles": ["web"], "labels": {},
                "groups": [], "agent": true, "ready": "agent", "autostart": true, "protected": false,
                "by": "ana", "made": "2026-11-22T09:00:00Z",
            },
            "looked_at": 40, "fit": 31, "image_there": true,
        }))
        .expect("a plan")
    }

    #[test]
    fn what_was_decided_is_said() {
        insta::assert_snapshot!(head(&plan(), Strategy::Spread, false), @r"
          address     192.0.2.57, 2001:db8::57            reserved
          hypervisor  gva2-r03-h12                        chosen of 40 (31 fit; most free memory)
          image       debian-12                           already there
        ");
    }
}
