//! What becomes of runs that make, change and destroy machines: also of those
//! that a broker before has asked for.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use muster_protocol::api::{Configured, VmAction};
use muster_protocol::ids::RunId;
use muster_protocol::names::VmName;
use muster_protocol::run::RunPhase;
use muster_protocol::text::printable;
use muster_protocol::units::{Timestamp, after};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::answers::changed;
use super::error::VmError;
use super::keep::Held;
use super::machines::Machines;
use super::ports::Look;
use super::records::{End, Life, StoredVm};
use crate::refusal::Refusal;
use crate::submit::Refused;

/// How often ended runs are looked for while there are any.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is looked when there is nothing to do.
const IDLE: Duration = Duration::from_secs(5);
/// Machines that are looked after at a time.
const AT_ONCE: usize = 16;
/// What is in doubt is tried again after so long, then after twice that, ...
const AGAIN: Duration = Duration::from_secs(30);
/// ... but not later than that.
const LATEST: Duration = Duration::from_secs(3_600);
/// Whoever only looks waits so long for whoever does something.
const TURN_WITHIN: Duration = Duration::from_secs(2);
/// Longest reason that is kept, in characters.
const MAX_WHY: usize = 500;

impl Machines {
    /// Looks after machines until `cancel`.
    pub async fn keep(self, cancel: CancellationToken) {
        let mut reports = self.parts().observed.changes();
        let mut eased = self.parts().works.eased();
        loop {
            let busy = self.look(Timestamp::now()).await;
            let pause = if busy { LOOK } else { IDLE };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sleep(pause) => {}
                () = self.0.restless.notified() => {}
                Some(()) = eased.next() => self.0.refusals.forget(),
                changed = reports.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Looks after all machines of which something may have ended; whether a
    /// run of any is under way.
    pub(super) async fn look(&self, now: Timestamp) -> bool {
        let restless: Vec<Held> = self
            .parts()
            .records
            .all()
            .into_iter()
            .filter(|held| held.vm.is_restless())
            .collect();
        let waits = |run: Option<RunId>| run.is_some_and(|run| self.0.refusals.waits(run, now));
        let busy = restless.iter().any(|held| {
            let life = &held.vm.life;
            !matches!(life, Life::Kept { .. } | Life::Doubtful { .. }) && !waits(held.vm.run)
        });
        stream::iter(restless)
            .for_each_concurrent(AT_ONCE, |held| async move {
                let name = &held.vm.name;
                // Whoever has its turn does what is to be done.
                let Some(_turn) = self.turn_now(name) else {
                    return;
                };
                let Some(held) = self.parts().records.get(name) else {
                    return;
                };
                if let Err(error) = self.step(&held, now).await {
                    tracing::debug!(vm = %name, %error, "a machine cannot be looked after now");
                }
            })
            .await;
        busy
    }

    /// Looks after one machine now: whoever looks at it sees what has come of
    /// its run. Somebody who does something with it is not waited for long.
    pub async fn look_after(&self, name: &VmName) {
        let Ok(_turn) = timeout(TURN_WITHIN, self.turn(name)).await else {
            return;
        };
        let held = self.parts().records.get(name);
        if let Some(held) = held.filter(|held| held.vm.is_restless())
            && let Err(error) = self.step(&held, Timestamp::now()).await
        {
            tracing::debug!(vm = %name, %error, "a machine cannot be looked after now");
        }
    }

    /// Does what is next in the life of a machine, if anything is. Whoever
    /// calls has its turn.
    pub(super) async fn step(&self, held: &Held, now: Timestamp) -> Result<(), VmError> {
        let vm = &held.vm;
        match &vm.life {
            Life::Ready { .. } | Life::Gone { .. } => Ok(()),
            Life::Reserved => {
                let why = "the broker ended before it was asked for";
                self.take_back(held, why).await.map(drop)
            }
            Life::Creating { run }
            | Life::Changing { run, .. }
            | Life::Destroying { run, .. }
            | Life::Returning { run, .. } => self.follow(held, *run, now).await,
            Life::Ending { .. } => self.over(held).await.map(drop),
            // Of a key that is no node any more it cannot be taken.
            Life::Kept { until, .. } if *until <= now && !vm.protected && !self.is_orphan(vm) => {
                self.try_again(held, End::Purge, 0, now).await
            }
            Life::Kept { .. } => Ok(()),
            Life::Doubtful {
                end, since, tries, ..
            } => {
                let pause = AGAIN.saturating_mul(1 << (*tries).min(10)).min(LATEST);
                if after(*since, pause) > now || !self.says_something(vm, *since) {
                    return Ok(());
                }
                self.try_again(held, end.clone(), *tries + 1, now).await
            }
        }
    }

    /// Whether its hypervisor has reported since then.
    fn says_something(&self, vm: &StoredVm, since: Timestamp) -> bool {
        let heard = self.parts().observed.of(vm.place.serial);
        self.is_connected(vm.place.serial)
            && heard.is_some_and(|heard| heard.at > since && heard.report.problem.is_none())
    }

    /// Destroys it, whatever of it is there.
    async fn try_again(
        &self,
        held: &Held,
        end: End,
        tries: u32,
        now: Timestamp,
    ) -> Result<(), VmError> {
        let next = held
            .vm
            .running(None, |run| Life::Destroying { run, end, tries });
        let held = self.parts().records.change(held, next).await?;
        muster_checkpoint::at("broker.vm.again", || held.vm.name.to_string()).await;
        if let Some(run) = held.vm.run {
            return self.follow(&held, run, now).await;
        }
        Ok(())
    }

    /// What became of its run, and what follows from that.
    async fn follow(&self, held: &Held, run: RunId, now: Timestamp) -> Result<(), VmError> {
        let vm = &held.vm;
        let refusals = &self.0.refusals;
        if refusals.waits(run, now) {
            return Ok(());
        }
        match self.parts().works.look(run).await {
            Look::NotNow | Look::Open => Ok(()),
            Look::Nothing => {
                let Err(error) = self.ask(vm, &vm.order.caller()).await else {
                    refusals.taken(run);
                    return Ok(());
                };
                let refusal = Refusal::of(&error);
                if refusal.passes() {
                    refusals.refused(run, now, refusal);
                    return Ok(());
                }
                refusals.taken(run);
                let why = match &error.detail {
                    Some(detail) => format!("{}: {detail}", error.title),
                    None => error.title.clone(),
                };
                // Nothing was sent to anybody.
                if matches!(vm.life, Life::Creating { .. }) {
                    return self.take_back(held, &why).await.map(drop);
                }
                if vm.is_being_configured() {
                    let why = printable(&why, MAX_WHY);
                    return self
                        .is_configured(held, RunPhase::Failed, why, Some(error))
                        .await;
                }
                self.ended(held, RunPhase::Failed, &why, Timestamp::now())
                    .await
            }
            Look::Ended { phase, why, at } => {
                refusals.taken(run);
                self.ended(held, phase, &why, at).await
            }
        }
    }

    /// Its run has ended.
    async fn ended(
        &self,
        held: &Held,
        phase: RunPhase,
        why: &str,
        at: Timestamp,
    ) -> Result<(), VmError> {
        let why = printable(why, MAX_WHY);
        let why = if why.is_empty() {
            format!("its run ended: {}", phase.as_str())
        } else {
            why
        };
        let well = phase == RunPhase::Succeeded;
        let vm = &held.vm;
        match &vm.life {
            Life::Creating { .. } if well => self.is_up(held).await,
            // What it had made was taken back, everywhere.
            Life::Creating { .. } if matches!(phase, RunPhase::Failed | RunPhase::Cancelled) => {
                self.take_back(held, &why).await.map(drop)
            }
            Life::Creating { .. } => {
                let end = End::Failed { why: why.clone() };
                self.doubt(held, end, why, at, 0).await
            }
            Life::Destroying { end, .. } if well => match end {
                End::Keep => self.is_kept(held).await,
                End::Purge => {
                    let why = format!("{} had it destroyed", vm.order.by);
                    self.end(held, &why).await.map(drop)
                }
                End::Failed { why } => self.take_back(held, why).await.map(drop),
            },
            Life::Destroying { end, tries, .. } => {
                self.doubt(held, end.clone(), why, at, *tries).await
            }
            Life::Returning { .. } if well => self.is_up(held).await,
            // It may run: nobody may take its disk when the time is over.
            Life::Returning { .. } if !matches!(phase, RunPhase::Failed | RunPhase::Cancelled) => {
                self.doubt(held, End::Keep, why, at, 0).await
            }
            Life::Returning { since, until, .. } => {
                let (since, until) = (*since, *until);
                let next = vm.living(Life::Kept { since, until });
                let held = self.parts().records.change(held, next).await?;
                let text = format!("machine {} could not be brought back: {why}", held.vm.name);
                let mark = held.revision.to_string();
                self.tell(&held.vm, "vm.failed", &mark, text).await;
                Ok(())
            }
            Life::Changing { what, .. } => {
                let what = what.clone();
                if let VmAction::Provision { .. } = what {
                    return self.is_configured(held, phase, why, None).await;
                }
                self.is_changed(held, &what, (!well).then_some(why)).await
            }
            _ => Ok(()),
        }
    }

    /// It is there, and up.
    async fn is_up(&self, held: &Held) -> Result<(), VmError> {
        let vm = &held.vm;
        // Whoever enrolled is its node from now on; nobody else can.
        let mut node = vm.node;
        for invite in &vm.invites {
            node = self.parts().doorman.void(invite).await?.or(node);
        }
        let back = matches!(vm.life, Life::Returning { .. });
        let mut next = vm.living(Life::Ready {
            since: Timestamp::now(),
        });
        next.should_run = true;
        next.node = node;
        next.invites.clear();
        next.wish.user_data = None;
        // What configures it is written down with that it is up: it is asked
        // for once, whoever comes after.
        let configure = next.wish.configure.clone().filter(|_| !back);
        let vm = &next.clone();
        if let (Some(configure), Life::Ready { since }) = (configure, &vm.life) {
            next = vm.configuring(None, configure, *since);
        }
        self.parts().records.change(held, next).await?;
        let addresses: Vec<String> = vm
            .nics
            .iter()
            .flat_map(|held| &held.nic.addresses)
            .map(ToString::to_string)
            .collect();
        let at = if addresses.is_empty() {
            String::new()
        } else {
            format!(" at {}", addresses.join(", "))
        };
        let verb = if back { "is back" } else { "is up" };
        let text = format!("machine {} {verb}{at} on {}", vm.name, vm.place.node);
        let mark = vm.runs.to_string();
        self.tell(vm, "vm.created", &mark, text).await;
        self.0.restless.notify_one();
        Ok(())
    }

    /// What configures it has ended, or was `refused`. Whatever came of it, the
    /// machine stays.
    pub(super) async fn is_configured(
        &self,
        held: &Held,
        phase: RunPhase,
        why: String,
        refused: Option<Refused>,
    ) -> Result<(), VmError> {
        let Life::Changing { run, since, .. } = held.vm.life else {
            return Ok(());
        };
        let mut next = held.vm.living(Life::Ready { since });
        let well = phase == RunPhase::Succeeded;
        let scenario = next.wish.configure.as_ref().map(|c| c.scenario.clone());
        let Some(scenario) = scenario else {
            self.parts().records.change(held, next).await?;
            return Ok(());
        };
        next.configured = Some(Configured {
            run,
            scenario: scenario.clone(),
            state: Some(phase),
            why: (!well).then(|| why.clone()),
            refused,
            at: Timestamp::now(),
        });
        let name = &next.name;
        let (kind, text) = if well {
            (
                "vm.configured",
                format!("machine {name} is configured by {scenario}"),
            )
        } else {
            let text = format!(
                "machine {name} is up, and {scenario} did not configure it: {why}; muster vm provision {name} tries it again"
            );
            ("vm.configure-failed", text)
        };
        // Told first: nothing else tells whoever asked, and it is told once,
        // whoever comes after.
        let mark = next.runs.to_string();
        self.tell(&next, kind, &mark, text).await;
        self.parts().records.change(held, next).await?;
        Ok(())
    }

    async fn is_kept(&self, held: &Held) -> Result<(), VmError> {
        let since = Timestamp::now();
        let until = after(since, self.parts().keep_for);
        let mut next = held.vm.living(Life::Kept { since, until });
        // When its time is over, nobody waits for that any more.
        let order = next.order.clone();
        next.order.chat = None;
        next.should_run = false;
        next.drift.clear();
        let held = self.parts().records.change(held, next).await?;
        let text = format!(
            "{} had machine {} destroyed; its disk is kept until {until}",
            held.vm.order.by, held.vm.name
        );
        let mark = held.vm.runs.to_string();
        let told = StoredVm {
            order: order.clone(),
            ..StoredVm::clone(&held.vm)
        };
        self.tell(&told, "vm.deleted", &mark, text).await;
        Ok(())
    }

    /// What was done counts when it was done well; else what is seen says how
    /// it is.
    async fn is_changed(
        &self,
        held: &Held,
        what: &VmAction,
        failed: Option<String>,
    ) -> Result<(), VmError> {
        let mut next = match what {
            VmAction::Resize { cpus, memory, disk } if failed.is_none() => {
                held.vm.resized(*cpus, *memory, *disk)
            }
            _ => StoredVm::clone(&held.vm),
        };
        // What looks only changes nothing that is seen.
        let looks = matches!(what, VmAction::ConsoleLog { .. } | VmAction::Exec { .. });
        let since = match &held.vm.life {
            Life::Changing { since, .. } if looks => *since,
            _ => Timestamp::now(),
        };
        next.life = Life::Ready { since };
        let held = self.parts().records.change(held, next).await?;
        if let Some((kind, text)) = changed(&held.vm, what, failed) {
            let mark = held.vm.runs.to_string();
            self.tell(&held.vm, kind, &mark, text).await;
        }
        Ok(())
    }

    async fn doubt(
        &self,
        held: &Held,
        end: End,
        why: String,
        since: Timestamp,
        tries: u32,
    ) -> Result<(), VmError> {
        // Nobody makes it any more, so nobody needs what it was to be given.
        let never = matches!(end, End::Failed { .. });
        let mut next = held.vm.living(Life::Doubtful {
            end,
            why: why.clone(),
            since,
            tries,
        });
        if never {
            next.wish.user_data = None;
        }
        let held = self.parts().records.change(held, next).await?;
        let vm = &held.vm;
        // Once, however often it is tried.
        if tries == 0 {
            let text = format!(
                "it cannot be said whether machine {} is on {}: {why}; muster looks again as soon as {} is heard",
                vm.name, vm.place.node, vm.place.node
            );
            let mark = vm.runs.to_string();
            self.tell(vm, "alarm.vm-doubtful", &mark, text).await;
        }
        Ok(())
    }
}
