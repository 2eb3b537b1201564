//! `muster vm apply`

use std::cell::RefCell;
use std::time::Duration;

use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use muster_client::{Client, ClientError, Key, Reference};
use muster_protocol::api::{Presence, PutNetwork, VmAction, VmStatus, VmView};
use muster_protocol::ids::RunId;
use muster_protocol::names::{LanName, NodeName, VmName};
use muster_protocol::problem::Kind as Problem;
use muster_protocol::run::RunPhase;
use muster_protocol::vm::VmId;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::create::{head, step};
use super::destroy;
use super::plan::{Found, StackArgs};
use super::provision::configured;
use super::wait::{Steps, as_wanted, failed, found, settled, wait};
use crate::Context;
use crate::failure::{DENIED, Failure, NOT_ALL, UNREACHABLE};
use crate::stack::{
    Change, Is, Item, Kind, LABEL, Machine, Network, Plan, Stack, Still, Why, changed, item_of,
    render, still, summary,
};
use crate::ui::count;
use crate::verbs::confirm;

/// Machines that something is done with at a time.
const AT_ONCE: usize = 8;
/// Most steps to make one machine right.
const MAX_STEPS: usize = 12;
/// How long a broker that is away is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the agent of a machine that was started may take to be heard.
const HEARD_WITHIN: Duration = Duration::from_secs(300);
/// How often it is asked meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

const AFTER: &str = "\
Machines are made and changed in the order that `after` says, those that do not depend on each other
at once. What does not work out holds up only what depends on it. Killed in the middle and called
again, it does the rest.

Examples:
  muster vm apply shop.toml --env test
  muster vm apply shop.toml --prune --yes";

/// Arguments of `muster vm apply`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct ApplyArgs {
    /// What of.
    #[command(flatten)]
    pub stack: StackArgs,
    /// Destroy machines, and remove networks, of the stack that are in the file no more
    #[arg(long)]
    pub prune: bool,
    /// The disks of machines that are destroyed go, too; else they are kept for a day
    #[arg(long, requires = "prune")]
    pub purge: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Makes it so.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(context: &Context, args: &ApplyArgs) -> Result<u8, Failure> {
    let stack = args.stack.read(context, args.json)?;
    let client = context.client()?;
    let found = Found::ask(&client).await?;
    let plan = found.plan(&stack);
    let file = args.stack.file.display().to_string();
    let text = render(&plan, &file, args.prune, context.term.err);
    if plan.is_refused() {
        context.term.note(text.trim_end());
        let text = "a name of it is not this stack's; nothing was done";
        return Err(Failure::new(NOT_ALL, text));
    }
    if !plan.has_work(args.prune) {
        if args.json {
            context
                .term
                .json(&json!({ "plan": plan, "done": [], "failed": [] }))?;
        } else if plan.stays_otherwise() {
            context.term.note(text.trim_end());
        } else {
            let sum = summary(&plan, args.prune);
            context
                .term
                .line(&format!("nothing is to be done: {sum}"))?;
        }
        return otherwise(&plan, &file);
    }
    if !args.json || !args.yes {
        context.term.note(text.trim_end());
    }
    confirm(context, args.yes, "Make it so?")?;
    let width = plan.items.iter().map(|item| item.name.len()).max();
    let work = Work {
        context,
        client: &client,
        stack: &stack,
        found: &found,
        args,
        width: width.unwrap_or(0),
        done: RefCell::default(),
    };
    let failures = Box::pin(work.all(&plan)).await;
    let done = work.done.into_inner();
    if args.json {
        let failed: Vec<_> = failures
            .iter()
            .map(|(name, failure)| json!({ "name": name, "why": failure.message }))
            .collect();
        let all = json!({ "plan": plan, "done": done, "failed": failed });
        context.term.json(&all)?;
    }
    match failures.as_slice() {
        [] => {
            if !args.json {
                context
                    .term
                    .line(&format!("{} is as {file} says", stack.id))?;
            }
            otherwise(&plan, &file)
        }
        failures => {
            let lines: Vec<String> = failures.iter().map(|(name, why)| said(name, why)).collect();
            let code = failures.iter().map(|(_, failure)| failure.code);
            // The broker said no to all of it, or is away: that is what happened.
            let code = code.clone().min().filter(|_| same(code)).unwrap_or(NOT_ALL);
            let text = format!(
                "{} of {} not done",
                failures.len(),
                count(
                    plan.items
                        .iter()
                        .filter(|item| item.is.is_work(args.prune))
                        .count(),
                    "thing"
                )
            );
            Err(Failure::new(code, text)
                .detail(lines.join("\n"))
                .hint("apply again when that is cured: what is done is not done again"))
        }
    }
}

fn same(codes: impl Iterator<Item = u8>) -> bool {
    let mut codes = codes;
    let first = codes.next();
    matches!(first, Some(DENIED | UNREACHABLE)) && codes.all(|code| Some(code) == first)
}

fn said(name: &str, failure: &Failure) -> String {
    let mut out = format!("{name}: {}", failure.message);
    for more in [&failure.detail, &failure.hint].into_iter().flatten() {
        for line in more.lines() {
            out.push_str("\n  ");
            out.push_str(line);
        }
    }
    out
}

/// Everything was done that can be; what cannot is said.
fn otherwise(plan: &Plan, file: &str) -> Result<u8, Failure> {
    let names: Vec<&str> = plan
        .items
        .iter()
        .filter(|item| item.stays_otherwise())
        .map(|item| item.name.as_str())
        .collect();
    if names.is_empty() {
        return Ok(0);
    }
    let text = format!("not as {file} says, and not changed: {}", names.join(", "));
    Err(Failure::new(NOT_ALL, text).hint("muster vm plan says what of them, and what to do"))
}

/// How it stands with an item.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Waits,
    Begun,
    Right,
    Wrong,
}

/// What was done, for `--json`.
#[derive(Debug, Serialize)]
struct Done {
    kind: Kind,
    name: String,
    did: String,
}

/// What comes next with a machine.
enum Next {
    /// It is as in the file.
    Right,
    /// Something was done with it: it is to be looked at again.
    Again,
}

/// What is remembered of a machine while it is made right.
struct Memory {
    /// The request to make it: the same one, however often it is sent.
    key: Key,
    made: bool,
    changes: Vec<Change>,
}

/// A plan that is carried out.
struct Work<'a> {
    context: &'a Context,
    client: &'a Client,
    stack: &'a Stack,
    /// As it was when the plan was shown.
    found: &'a Found,
    args: &'a ApplyArgs,
    width: usize,
    done: RefCell<Vec<Done>>,
}

type Failures = Vec<(String, Failure)>;

impl Work<'_> {
    /// All of it: networks, then machines in their order, then what the file
    /// names no more, if all went well until then.
    async fn all(&self, plan: &Plan) -> Failures {
        let mut failures = Failures::new();
        let of = |kind: Kind| move |item: &&Item| item.kind == kind && item.of.is_some();
        let mut bad_networks: Vec<LanName> = Vec::new();
        for item in plan.items.iter().filter(of(Kind::Network)) {
            let network = item.of.and_then(|at| self.stack.networks.get(at));
            let Some(network) = network.filter(|_| item.is.is_work(false)) else {
                continue;
            };
            if let Err(failure) = self.network(item, network).await {
                bad_networks.push(network.name.clone());
                failures.push((title(item), failure));
            }
        }
        let items: Vec<&Item> = plan.items.iter().filter(of(Kind::Machine)).collect();
        failures.extend(Box::pin(self.machines(&items, &bad_networks)).await);
        if !self.args.prune {
            return failures;
        }
        let gone: Vec<&Item> = plan
            .items
            .iter()
            .filter(|item| item.of.is_none() && item.is.is_work(true))
            .collect();
        let blocked = |item: &Item| matches!(item.is, Is::Blocked { .. });
        if !failures.is_empty() || plan.items.iter().any(blocked) {
            // What should take their place may not be there.
            for item in gone {
                let why = "stays until all else is done";
                failures.push((title(item), Failure::new(NOT_ALL, why)));
            }
            return failures;
        }
        let (machines, networks): (Vec<&Item>, Vec<&Item>) = gone
            .into_iter()
            .partition(|item| item.kind == Kind::Machine);
        let mut all = machines.into_iter();
        let mut open: FuturesUnordered<_> = FuturesUnordered::new();
        loop {
            while open.len() < AT_ONCE
                && let Some(item) = all.next()
            {
                open.push(async move { (item, self.destroy(item).await) });
            }
            match open.next().await {
                None => break,
                Some((_, Ok(()))) => {}
                Some((item, Err(failure))) => failures.push((title(item), failure)),
            }
        }
        for item in networks {
            if let Err(failure) = self.remove_network(item).await {
                failures.push((title(item), failure));
            }
        }
        failures
    }

    /// Makes or changes a network that is as it was when somebody said yes.
    async fn network(&self, item: &Item, network: &Network) -> Result<(), Failure> {
        let replace = self.found.network(&network.name).is_some();
        if !self.is_as_planned(&network.name, Some(network)).await? {
            return Ok(());
        }
        let put = PutNetwork {
            replace,
            ..network.put.clone()
        };
        self.client.put_network(&network.name, &put).await?;
        self.did(item, if replace { "is changed" } else { "is made" });
        Ok(())
    }

    /// The same, of one that the file names no more.
    async fn remove_network(&self, item: &Item) -> Result<(), Failure> {
        let Ok(name) = item.name.parse::<LanName>() else {
            return Ok(());
        };
        if !self.is_as_planned(&name, None).await? {
            return Ok(());
        }
        match self.client.remove_network(&name).await {
            Ok(()) => self.did(item, "is removed"),
            Err(ClientError::Problem(problem)) if problem.kind == Problem::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether a network is as it was when somebody said yes, so that
    /// something is to be done with it; not, when nothing is left to do.
    async fn is_as_planned(
        &self,
        name: &LanName,
        wanted: Option<&Network>,
    ) -> Result<bool, Failure> {
        let now = found(self.client.network(name).await)?;
        let was = self.found.network(name);
        match still(&self.stack.id, wanted, was, now.as_ref()) {
            Still::AsPlanned => Ok(true),
            Still::Right => Ok(false),
            Still::Otherwise(why) => {
                let text = format!("{why}, and nothing was done with it");
                Err(Failure::new(NOT_ALL, text).hint("muster vm plan says what is to be done now"))
            }
        }
    }

    /// Machines of the file: each once those before it are right.
    async fn machines(&self, items: &[&Item], bad_networks: &[LanName]) -> Failures {
        let machines = &self.stack.machines;
        let mut failures = Failures::new();
        let mut states: Vec<State> = items
            .iter()
            .map(|item| match &item.is {
                Is::Same => State::Right,
                Is::Blocked { .. } | Is::Foreign { .. } => State::Wrong,
                _ => State::Waits,
            })
            .collect();
        let mut open: FuturesUnordered<_> = FuturesUnordered::new();
        // Nobody is asked for more once the broker is away or says no.
        let mut over = false;
        loop {
            for (at, machine) in machines.iter().enumerate() {
                if states.get(at) != Some(&State::Waits) {
                    continue;
                }
                let wrong = |at: &usize| states.get(*at) == Some(&State::Wrong);
                let bad_lan = machine
                    .create
                    .networks
                    .iter()
                    .find(|lan| bad_networks.contains(lan));
                let why = if let Some(before) = machine.after.iter().copied().find(|at| wrong(at)) {
                    Some(format!(
                        "waits for {}, which is not right",
                        machines[before].name
                    ))
                } else if let Some(lan) = bad_lan {
                    Some(format!("waits for the network {lan}, which is not right"))
                } else {
                    over.then(|| "was not begun".to_owned())
                };
                if let Some(why) = why {
                    states[at] = State::Wrong;
                    failures.push((machine.name.to_string(), Failure::new(NOT_ALL, why)));
                    continue;
                }
                let right = |at: &usize| states.get(*at) == Some(&State::Right);
                if open.len() < AT_ONCE && machine.after.iter().all(right) {
                    states[at] = State::Begun;
                    open.push(async move { (at, self.machine(machine).await) });
                }
            }
            match open.next().await {
                // Whoever waits now waits for somebody who is wrong.
                None if states.contains(&State::Waits) => {}
                None => return failures,
                Some((at, Ok(()))) => states[at] = State::Right,
                Some((at, Err(failure))) => {
                    over |= matches!(failure.code, DENIED | UNREACHABLE);
                    states[at] = State::Wrong;
                    failures.push((machines[at].name.to_string(), failure));
                }
            }
        }
    }

    fn did(&self, item: &Item, did: &str) {
        self.says(item.kind, &item.name, did);
    }

    fn says(&self, kind: Kind, name: &str, did: &str) {
        if !self.args.json {
            let title = match kind {
                Kind::Network => format!("network {name}"),
                Kind::Machine => name.to_owned(),
            };
            // What cannot be written is said when the results are.
            let _ = self.context.term.line(&format!("{title} {did}"));
        }
        self.done.borrow_mut().push(Done {
            kind,
            name: name.to_owned(),
            did: did.to_owned(),
        });
    }

    fn note(&self, name: &VmName, line: &str) {
        if !self.args.json {
            let width = self.width;
            self.context.term.note(&format!("{name:<width$}{line}"));
        }
    }

    /// Looks at a machine and does what is next, until it is right.
    async fn machine(&self, machine: &Machine) -> Result<(), Failure> {
        let mut memory = Memory {
            key: Key::random(),
            made: false,
            changes: Vec::new(),
        };
        let mut away: Option<Instant> = None;
        for _ in 0..MAX_STEPS {
            loop {
                match self.next(machine, &mut memory).await {
                    Ok(Next::Right) => return Ok(()),
                    Ok(Next::Again) => break,
                    Err(failure) if failure.code == UNREACHABLE => {
                        if away.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                            return Err(failure);
                        }
                        // What was asked for may have been done: look again.
                        sleep(PAUSE).await;
                    }
                    Err(failure) => return Err(failure),
                }
            }
            away = None;
        }
        Err(Failure::new(NOT_ALL, "is otherwise again and again"))
    }

    async fn next(&self, machine: &Machine, memory: &mut Memory) -> Result<Next, Failure> {
        let name = &machine.name;
        let view = self.look(name).await?;
        let item = item_of(&self.stack.id, machine, view.as_ref());
        match item.is {
            Is::Same => Ok(Next::Right),
            Is::New { .. } if memory.made => {
                let why = view.and_then(|view| view.why);
                let text = why.unwrap_or_else(|| "was made, and is gone again".to_owned());
                Err(Failure::new(NOT_ALL, text))
            }
            Is::New { .. } => {
                let created = self.client.create_vms(&machine.create, &memory.key).await?;
                memory.made = true;
                let Some(plan) = created.machines.first() else {
                    return Ok(Next::Again);
                };
                for line in head(plan, machine.create.strategy, false).lines() {
                    self.note(name, line);
                }
                self.made(name, plan.vm.run).await
            }
            Is::BeingMade { run } => {
                memory.made = true;
                self.made(name, run).await
            }
            Is::Changed { changes } if is_under_way(&changes) => {
                if let Some(view) = view {
                    self.is_configured(view).await?;
                }
                Ok(Next::Again)
            }
            Is::Changed { changes } => {
                // Somebody who was here before may not be done yet.
                if let Some(run) = view.and_then(|view| view.run)
                    && self.is_open(run).await?
                {
                    wait(self.context, self.client, run, Steps::Quiet, |_| None).await?;
                    settled(self.client, name).await?;
                    return Ok(Next::Again);
                }
                let Some(change) = changes.into_iter().next() else {
                    return Ok(Next::Right);
                };
                if memory.changes.contains(&change) {
                    let text = format!("was changed, and is as before: {}", changed(&change));
                    return Err(Failure::new(NOT_ALL, text));
                }
                self.change(name, &change).await?;
                memory.changes.push(change);
                Ok(Next::Again)
            }
            Is::Foreign { .. } => {
                let text = format!("is another machine now, without the label {LABEL} of this one");
                Err(Failure::new(NOT_ALL, text))
            }
            Is::Blocked { why, hint } => Err(Failure::new(NOT_ALL, why).hint(hint)),
            Is::Vanished { .. } => Ok(Next::Right),
        }
    }

    async fn look(&self, name: &VmName) -> Result<Option<VmView>, Failure> {
        found(self.client.vm(name).await)
    }

    async fn is_open(&self, run: RunId) -> Result<bool, Failure> {
        let view = found(self.client.run(&Reference::from(run)).await)?;
        Ok(view.is_some_and(|view| !view.brief.state.is_final()))
    }

    /// Waits until a machine is up.
    async fn made(&self, name: &VmName, run: Option<RunId>) -> Result<Next, Failure> {
        let Some(run) = run else {
            sleep(PAUSE).await;
            return Ok(Next::Again);
        };
        let since = std::time::Instant::now();
        let view = wait(self.context, self.client, run, Steps::Quiet, |frame| {
            if let Some(line) = step(frame, since) {
                self.note(name, &line);
            }
            None
        })
        .await?;
        if view.brief.state != RunPhase::Succeeded {
            return Err(failed(&view, "was not made"));
        }
        let vm = settled(self.client, name).await?;
        as_wanted(&vm, &[VmStatus::Running], "was made")?;
        let at = vm.addresses.first();
        let at = at.map(|at| format!(" at {at}")).unwrap_or_default();
        self.says(Kind::Machine, name.as_str(), &format!("is up{at}"));
        self.is_configured(vm).await?;
        Ok(Next::Again)
    }

    /// Waits until what configures a machine has ended, if anything does.
    async fn is_configured(&self, vm: VmView) -> Result<(), Failure> {
        let (vm, failure) = configured(self.context, self.client, vm, true).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        if let Some(configured) = &vm.configured {
            let text = format!("is configured by {}", configured.scenario);
            self.says(Kind::Machine, vm.name.as_str(), &text);
        }
        Ok(())
    }

    /// Waits until the node of a machine that was started takes orders.
    async fn is_heard(&self, name: &VmName) -> Result<(), Failure> {
        let Ok(node) = name.as_str().parse::<NodeName>() else {
            return Ok(());
        };
        let since = Instant::now();
        loop {
            let view = found(self.client.node(&node).await)?;
            if view.is_some_and(|view| view.state == Presence::Up) {
                return Ok(());
            }
            if since.elapsed() > HEARD_WITHIN {
                let text = "runs, and its agent is not heard, so it is not configured";
                return Err(Failure::new(NOT_ALL, text)
                    .hint(format!("muster vm console {name} says what it does")));
            }
            sleep(PAUSE).await;
        }
    }

    async fn change(&self, name: &VmName, change: &Change) -> Result<(), Failure> {
        let second = |pair: &Option<(_, _)>| pair.map(|(_, wanted)| wanted);
        let action = match change {
            Change::Size { cpus, memory, disk } => VmAction::Resize {
                cpus: cpus.map(|(_, wanted)| wanted),
                memory: second(memory),
                disk: second(disk),
            },
            Change::Running { running: true } => VmAction::Start,
            Change::Running { running: false } => VmAction::Stop { grace: None },
            Change::Protect { protect: true } => VmAction::Protect,
            Change::Protect { protect: false } => VmAction::Unprotect,
            Change::Configure { configure, .. } => {
                self.is_heard(name).await?;
                let configure = Some(configure.clone());
                let action = VmAction::Provision { configure };
                let asked = self.client.act_on_vm(name, &action).await?;
                return self.is_configured(asked.vm).await;
            }
            Change::Network { .. } => return Ok(()),
        };
        let asked = self.client.act_on_vm(name, &action).await?;
        if let Some(run) = asked.run {
            let view = wait(self.context, self.client, run, Steps::Quiet, |_| None).await?;
            if view.brief.state != RunPhase::Succeeded {
                return Err(failed(&view, &format!("not done: {}", changed(change))));
            }
            settled(self.client, name).await?;
        }
        self.says(Kind::Machine, name.as_str(), &said_done(change, name));
        Ok(())
    }

    /// Destroys a machine that the file names no more: that very one.
    async fn destroy(&self, item: &Item) -> Result<(), Failure> {
        let Is::Vanished { id, .. } = item.is else {
            return Ok(());
        };
        let Ok(name) = item.name.parse::<VmName>() else {
            return Ok(());
        };
        let Some(view) = self.is_ours_still(&name, id).await? else {
            return Ok(());
        };
        if let Some(run) = view.run
            && self.is_open(run).await?
        {
            wait(self.context, self.client, run, Steps::Quiet, |_| None).await?;
            settled(self.client, &name).await?;
            if self.is_ours_still(&name, id).await?.is_none() {
                return Ok(());
            }
        }
        let that = (&name, view.id);
        let asked = self.client.destroy_this_vm(that, self.args.purge).await?;
        if let Some(run) = asked.run {
            let view = wait(self.context, self.client, run, Steps::Quiet, |_| None).await?;
            if view.brief.state != RunPhase::Succeeded {
                return Err(failed(&view, "may be there still"));
            }
        }
        let vm = settled(self.client, &name).await?;
        let text = destroy::said(&vm)?;
        self.says(Kind::Machine, name.as_str(), &text);
        Ok(())
    }

    /// The machine, if it is there: that of the plan, and no other of its
    /// name.
    async fn is_ours_still(
        &self,
        name: &VmName,
        id: Option<VmId>,
    ) -> Result<Option<VmView>, Failure> {
        let Some(view) = self.look(name).await? else {
            return Ok(None);
        };
        if view.status == VmStatus::Deleted {
            return Ok(None);
        }
        if Some(view.id) != id || !self.stack.id.owns(&view.labels) {
            let text = "is another machine now; it stays";
            return Err(Failure::new(NOT_ALL, text));
        }
        Ok(Some(view))
    }
}

/// Whether a machine is being configured as it should be.
fn is_under_way(changes: &[Change]) -> bool {
    let open = |change: &Change| {
        matches!(
            change,
            Change::Configure {
                why: Why::UnderWay,
                ..
            }
        )
    };
    changes.iter().any(open)
}

fn title(item: &Item) -> String {
    match item.kind {
        Kind::Network => format!("network {}", item.name),
        Kind::Machine => item.name.clone(),
    }
}

/// What was done, in words.
fn said_done(change: &Change, name: &VmName) -> String {
    match change {
        Change::Size { cpus, memory, .. } => {
            let text = format!("is resized: {}", changed(change));
            if cpus.is_some() || memory.is_some() {
                format!("{text}: muster vm reboot {name}")
            } else {
                text
            }
        }
        other => changed(other),
    }
}
