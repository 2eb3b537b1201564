//! Machines that are there: whether they run, how large they are, and their
//! snapshots.

use std::time::Duration;

use muster_libvirt::message::FailureKind;
use muster_protocol::envelope::Mode;
use muster_protocol::units::Span;
use muster_protocol::vm::{GuestState, Size, VmId};
use muster_scenarios::node::Performed;
use serde_json::json;
use tokio::time::Instant;

use super::files::volume;
use super::machines::{Done, Inner, VmError, changed, is_on, left, state_name, unchanged};

/// How often a guest that is to end is looked at, where no event tells.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Inner {
    pub(super) async fn start(&self, id: VmId, mode: Mode) -> Done<Performed> {
        let domain = self.there(id).await?;
        match domain.state {
            GuestState::Running => return Ok(unchanged()),
            GuestState::Paused => return Err(VmError::Paused(id)),
            GuestState::Stopped | GuestState::Crashed => {}
        }
        if mode == Mode::Apply {
            self.start_now(id).await?;
        }
        Ok(changed(
            mode,
            format!("{} → started", state_name(domain.state)),
        ))
    }

    pub(super) async fn stop(&self, id: VmId, grace: Span, mode: Mode) -> Done<Performed> {
        let domain = self.there(id).await?;
        if !is_on(domain.state) {
            return Ok(unchanged());
        }
        let before = state_name(domain.state);
        if mode == Mode::Check {
            return Ok(changed(mode, format!("{before} → stopped")));
        }
        let how = self.end(id, domain.state, grace).await?;
        Ok(changed(mode, format!("{before} → stopped{how}")))
    }

    pub(super) async fn reboot(&self, id: VmId, grace: Span, mode: Mode) -> Done<Performed> {
        let domain = self.there(id).await?;
        if mode == Mode::Check {
            return Ok(changed(mode, "start it anew"));
        }
        let mut how = String::new();
        if is_on(domain.state) {
            how = self.end(id, domain.state, grace).await?;
        }
        self.start_now(id).await?;
        Ok(changed(mode, format!("started anew{how}")))
    }

    /// Asked first, then forced; how, for people.
    async fn end(&self, id: VmId, state: GuestState, grace: Span) -> Done<String> {
        let begun = Instant::now();
        // One that is paused hears nothing.
        if state == GuestState::Running && !grace.get().is_zero() {
            let mut changes = self.work.changes();
            changes.borrow_and_update();
            match self.ask().shutdown(id).await {
                Ok(()) => {}
                // It ended meanwhile, or nobody in it would hear: see below.
                Err(e) if !e.is_uncertain() => {}
                Err(first) => {
                    if let Err(then) = self.is_in(id, is_on).await {
                        return Err(VmError::Unseen { first, then });
                    }
                }
            }
            loop {
                if !self.is_in(id, is_on).await? {
                    return Ok(String::new());
                }
                let rest = left(begun, grace);
                if rest.is_zero() {
                    break;
                }
                tokio::select! {
                    _ = changes.changed() => {}
                    () = tokio::time::sleep(rest.min(LOOK_EVERY)) => {}
                }
            }
        }
        self.kill_now(id).await?;
        Ok(format!(" (by force, after {grace})"))
    }

    pub(super) async fn kill_now(&self, id: VmId) -> Done<()> {
        let done = self.ask().kill(id).await;
        if matches!(&done, Err(e) if e.is(FailureKind::State)) && !self.is_in(id, is_on).await? {
            return Ok(());
        }
        self.settled(done, || async { Ok(!self.is_in(id, is_on).await?) })
            .await
    }

    pub(super) async fn resize(
        &self,
        id: VmId,
        (cpus, memory, disk): (Option<u16>, Option<Size>, Option<Size>),
        mode: Mode,
    ) -> Done<Performed> {
        let domain = self.there(id).await?;
        let Some(has) = domain.machine.as_deref() else {
            return Err(VmError::NotOurs {
                name: domain.name.clone(),
                uuid: id,
            });
        };
        let pool = &self.setting.pool;
        let found = self.ask().volume(pool, &volume(id)).await?;
        let capacity = found
            .map(|found| found.capacity)
            .ok_or_else(|| VmError::DiskGone(has.name.clone()))?;
        let mut machine = has.clone();
        machine.cpus = cpus.unwrap_or(machine.cpus);
        machine.memory = memory.unwrap_or(machine.memory);
        machine.disk.size = disk.unwrap_or(machine.disk.size);
        machine.check()?;
        if let Some(wanted) = disk.filter(|wanted| *wanted < capacity) {
            return Err(VmError::Shrinks {
                has: capacity,
                wanted,
            });
        }
        let grows = disk.is_some_and(|wanted| wanted > capacity);
        if !grows && machine == *has {
            return Ok(unchanged());
        }
        let mut what = Vec::new();
        if machine.cpus != has.cpus {
            what.push(format!("{} → {} CPU", has.cpus, machine.cpus));
        }
        if machine.memory != has.memory {
            what.push(format!("{} → {} memory", has.memory, machine.memory));
        }
        // What runs has what it was started with.
        let later = !what.is_empty() && is_on(domain.state);
        if later {
            what.push("from its next start".to_owned());
        }
        if grows || machine.disk.size != has.disk.size {
            what.insert(0, format!("{capacity} → {} disk", machine.disk.size));
        }
        if mode == Mode::Apply {
            if grows {
                let open_in = is_on(domain.state).then_some(id);
                self.grow(id, machine.disk.size, open_in).await?;
            }
            let (files, _) = self.pool().await?;
            self.define(&machine, &files).await?;
        }
        let mut performed = changed(mode, what.join(", "));
        performed.value = json!({ "at_next_start": later });
        Ok(performed)
    }

    pub(super) async fn grow(&self, id: VmId, size: Size, open_in: Option<VmId>) -> Done<()> {
        let (pool, name) = (&self.setting.pool, volume(id));
        let done = self.ask().grow_volume(pool, &name, size, open_in).await;
        self.settled(done, || async {
            let disk = self.ask().volume(pool, &name).await?;
            Ok(disk.is_some_and(|disk| disk.capacity >= size))
        })
        .await
    }
}
