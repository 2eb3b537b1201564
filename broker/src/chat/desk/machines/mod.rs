//! Machines: judged and done as through any other door. What takes time is
//! answered at once; its end is told when it comes.

mod groups;
mod show;

use axum::http::{HeaderMap, HeaderValue};
use muster_protocol::api::{CreateVms, DrainHypervisor, HypervisorChange, VmAction, VmChanged};
use muster_protocol::chat::command::machines::MachineCommand;
use muster_protocol::names::{NodeName, VmName};
use muster_protocol::problem::Kind;
use muster_protocol::units::{Timestamp, after};
use muster_protocol::vm::VmId;

use super::pending::{Confirms, Waiting};
use super::run::SHORT;
use super::{Answer, Line, no, say};
use crate::authz::Action;
use crate::events::Filter;
use crate::events::glob::Glob;
use crate::http::{
    IDEMPOTENCY_KEY, act_on_vm, change_hypervisor, create_vms, destroy_vm, drain_hypervisor,
    find_vms, show_vm,
};
use crate::vm::{Act, Destroy};

/// How long a question waits for a yes.
const ASKED_FOR: std::time::Duration = std::time::Duration::from_secs(300);
/// Events of a machine that are shown.
const EVENTS: usize = 20;

impl Line<'_> {
    pub(super) async fn machines(&self, command: &MachineCommand) -> Answer {
        match command {
            MachineCommand::Create(request) => self.create_vms(request).await,
            MachineCommand::List { on, deleted } => self.list_vms(on.as_deref(), *deleted).await,
            MachineCommand::Show(name) => {
                let vm = show_vm(self.state, &self.caller, name.clone()).await?;
                Ok(vec![show::card(&vm, Timestamp::now())])
            }
            MachineCommand::Where(name) => {
                let vm = show_vm(self.state, &self.caller, name.clone()).await?;
                let line = format!("{} is on {}", vm.name, vm.hypervisor);
                Ok(vec![say::plain(line)])
            }
            MachineCommand::Log(name) => self.vm_log(name).await,
            MachineCommand::Act { name, what } => self.act_on_vm(name, what).await,
            MachineCommand::Destroy { name, purge, yes } => {
                let asked = Destroy {
                    under: Some(self.run),
                    ..Destroy::named(name.clone(), *purge)
                };
                if *yes {
                    return self.destroy_vm(asked).await;
                }
                self.ask_to_destroy(asked).await
            }
            MachineCommand::Images => {
                self.allowed(Action::ReadMachines).await?;
                let uses = self.state.machines.image_uses();
                let of = |image: &_| uses.get(image).copied().unwrap_or_default();
                Ok(vec![show::images(&self.state.images.list(of))])
            }
            MachineCommand::Networks => {
                self.allowed(Action::ReadMachines).await?;
                Ok(vec![show::networks(&self.state.networks.list())])
            }
            MachineCommand::Hypervisors => {
                self.allowed(Action::ReadMachines).await?;
                Ok(vec![show::hypervisors(&self.state.machines.hypervisors())])
            }
            MachineCommand::Groups(command) => Box::pin(self.groups(command)).await,
            MachineCommand::Drain(node) => self.drain(node).await,
            MachineCommand::Cordon { node, cordoned } => self.cordon(node, *cordoned).await,
        }
    }

    async fn create_vms(&self, request: &CreateVms) -> Answer {
        // A line that is told again, to whatever broker, makes them once.
        let mut headers = HeaderMap::new();
        if !request.dry_run
            && let Ok(key) = HeaderValue::from_str(&self.run.to_string())
        {
            headers.insert(IDEMPOTENCY_KEY, key);
        }
        let made = create_vms(self.state, &self.caller, &headers, request.clone()).await?;
        Ok(vec![show::made(&made)])
    }

    async fn list_vms(&self, on: Option<&str>, deleted: bool) -> Answer {
        let found = find_vms(self.state, &self.caller, on, deleted).await?;
        let views = found.iter().map(|(vm, _)| self.state.machines.view(vm));
        let views: Vec<_> = views.collect();
        Ok(vec![show::list(&views, on, deleted)])
    }

    async fn vm_log(&self, name: &VmName) -> Answer {
        self.allowed(Action::ReadEvents).await?;
        let wrong = |error: &dyn std::fmt::Display| no(Kind::InvalidRequest, error.to_string());
        let glob: Glob = name.as_str().parse().map_err(|e| wrong(&e))?;
        let kinds = ["vm.*", "alarm.vm-*"].map(str::parse::<Glob>);
        let kinds = kinds.into_iter().collect::<Result<_, _>>();
        let filter = Filter {
            kinds: kinds.map_err(|e| wrong(&e))?,
            subject: Some(glob),
            since: None,
        };
        let events = self.state.events.newest(&filter, EVENTS).await;
        let events = events.map_err(|e| no(Kind::Unavailable, e.to_string()))?;
        Ok(vec![show::log(name, &events, Timestamp::now())])
    }

    async fn act_on_vm(&self, name: &VmName, what: &VmAction) -> Answer {
        let asked = Act {
            name: name.clone(),
            what: what.clone(),
            // A line that is told again, to whatever broker, does it once.
            under: Some(self.run),
        };
        let changed = act_on_vm(self.state, &self.caller, asked).await?;
        let Some(run) = changed.run else {
            let line = match what {
                VmAction::Protect => format!("{name} cannot be destroyed from now on"),
                VmAction::Unprotect => format!("{name} can be destroyed"),
                _ => format!("{name}: done"),
            };
            return Ok(vec![say::good(line)]);
        };
        // Its end is told anyway.
        if self.ended(run, SHORT).await {
            return Ok(Vec::new());
        }
        let line = show::begun(name, what, &changed.vm);
        Ok(vec![say::about(say::plain(line), &run.short())])
    }

    async fn destroy_vm(&self, asked: Destroy) -> Answer {
        let name = asked.name.clone();
        let VmChanged { run, .. } = destroy_vm(self.state, &self.caller, asked).await?;
        let Some(run) = run else {
            return Ok(vec![say::good(format!("{name} is gone"))]);
        };
        if self.ended(run, SHORT).await {
            return Ok(Vec::new());
        }
        let line = format!("{name} is being destroyed");
        Ok(vec![say::about(say::plain(line), &run.short())])
    }

    /// Shows what would go, and waits for a yes.
    async fn ask_to_destroy(&self, asked: Destroy) -> Answer {
        // Whoever may not do it is asked nothing.
        let state = self.state;
        state.admit(&self.caller, Action::ManageMachines).await?;
        let vm = show_vm(state, &self.caller, asked.name.clone()).await?;
        if vm.protected {
            let line = format!(
                "{} is protected and is not destroyed; !vm unprotect {} ends that",
                vm.name, vm.name
            );
            return Ok(vec![say::bad(line)]);
        }
        if !show::can_go(&vm, asked.purge) {
            return Ok(vec![show::card(&vm, Timestamp::now())]);
        }
        let now = Timestamp::now();
        let line = show::question(&vm, asked.purge, now);
        let waiting = Waiting {
            run: self.run,
            principal: self.caller.principal.clone(),
            place: self.place.clone(),
            confirms: Confirms::Destroy(vm.id, asked),
            diff: Vec::new(),
            until: after(now, ASKED_FOR),
        };
        state.desk.pending.keep(waiting, now);
        Ok(vec![say::about(say::warn(line), &self.run.short())])
    }

    /// The yes: to the machine that was shown, and to no other one of that
    /// name.
    pub(super) async fn yes_destroy(&self, id: VmId, asked: Destroy) -> Answer {
        let asked = Destroy {
            only: Some(id),
            // The line that says yes is the one that may be told again.
            under: Some(self.run),
            ..asked
        };
        self.destroy_vm(asked).await
    }

    /// Its machines are stopped from a shell, or one by one: of many at once
    /// nobody would read the ends here.
    async fn drain(&self, node: &NodeName) -> Answer {
        let how = DrainHypervisor::default();
        let drained = drain_hypervisor(self.state, &self.caller, node.clone(), how).await?;
        Ok(vec![show::drained(&drained)])
    }

    async fn cordon(&self, node: &NodeName, cordoned: bool) -> Answer {
        let change = HypervisorChange {
            cordoned: Some(cordoned),
        };
        let asked = (node.clone(), change);
        let view = change_hypervisor(self.state, &self.caller, asked).await?;
        let line = if cordoned {
            let there = say::count(view.machines as usize, "machine");
            format!("{node} is cordoned: nothing new is put on it, and {there} on it stay")
        } else {
            format!("{node} takes new machines again")
        };
        Ok(vec![say::good(line)])
    }
}
