//! The measurements, one after the other.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tracing::info;

use super::figures::{Row, Spread, Unit, exponent, line};
use super::machine::{Disk, Machine, load};
use super::process::{busy_and_idle, cpu, memory};
use super::table::Report;
use super::world::{Nodes, Programs, Role, Started, World};
use super::{BenchError, Part};
use crate::floor::Floor;

/// The size that the targets are for.
const JUDGED: u32 = 5000;
/// The size that the targets of lists and policies are for.
const LARGE: u32 = 10_000;
/// Longest wait for a quiet machine before something is measured.
const SETTLE: Duration = Duration::from_secs(10);
/// A machine is quiet when it is busy for less than this share.
const QUIET: f64 = 0.15;
/// A pause after which two commands do not measure each other's remains: what
/// the first has caused on the disk and in the nodes.
const PAUSE: Duration = Duration::from_millis(100);

/// What is to be measured.
pub struct Plan {
    /// With less of everything.
    pub quick: bool,
    /// Real agents.
    pub agents: u32,
    /// Sizes of the simulated fleet, rising.
    pub sizes: Vec<u32>,
    /// Only these parts; all when there is none.
    pub only: Vec<Part>,
    /// Where all state is kept.
    pub dir: PathBuf,
    /// The executables.
    pub programs: Programs,
    /// What the reader has to know.
    pub notes: Vec<String>,
}

/// What one size of the fleet has cost.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// How many nodes.
    pub nodes: u32,
    /// One signed request, answered by plain subscribers.
    pub floor: Spread,
    /// `muster ping '*'`.
    pub ping: Spread,
    /// `muster run '*' --yes -- true`.
    pub step: Spread,
    /// Memory of the broker after all this, resident, in KiB.
    pub broker_kib: u64,
    /// Of that, its own.
    pub broker_own_kib: u64,
    /// Memory of the NATS server, resident, in KiB.
    pub nats_kib: u64,
    /// Seconds until all nodes were enrolled and welcomed.
    pub ready_s: f64,
    /// Where the time goes.
    pub cost: Cost,
}

/// Processor time of one request, in milliseconds, in the mean.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    /// One round of the floor.
    pub floor: Share,
    /// One ping.
    pub ping: Share,
    /// One step.
    pub step: Share,
}

/// Who has used it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Share {
    /// The broker.
    pub broker: f64,
    /// The NATS server.
    pub nats: f64,
    /// The nodes, or the floor's publisher and subscribers.
    pub nodes: f64,
}

/// What the real agents have cost.
struct Agents {
    ping: Spread,
    all: Spread,
    one: Spread,
    overhead: Spread,
    resident_mib: Spread,
    own_mib: Spread,
    cpu_percent: Spread,
}

/// Measures.
pub struct Work {
    plan: Plan,
    started: Started,
    machine: Machine,
    disk: Disk,
}

impl Work {
    /// Looks at the machine first.
    ///
    /// # Errors
    /// [`BenchError::Directory`].
    pub fn new(plan: Plan, started: Started) -> Result<Self, BenchError> {
        let machine = Machine::look(&plan.programs.nats_server);
        let scratch = tempfile::Builder::new()
            .prefix("muster-bench-")
            .tempdir_in(&plan.dir)
            .map_err(BenchError::Directory)?;
        info!("the disk");
        let disk = Disk::measure(scratch.path()).map_err(BenchError::Directory)?;
        Ok(Self {
            plan,
            started,
            machine,
            disk,
        })
    }

    /// All of it.
    ///
    /// # Errors
    /// [`BenchError`]; what was started is ended.
    pub fn measure(self) -> Result<Report, BenchError> {
        let agents = self.wants(Part::Agents).then(|| self.agents());
        let agents = agents.transpose()?;
        let (mut sizes, mut failed) = (Vec::new(), Vec::new());
        let of_fleets = self.wants(Part::Fleets).then_some(&self.plan.sizes);
        for nodes in of_fleets.into_iter().flatten().copied() {
            match self.size(nodes) {
                Ok(size) => sizes.push(size),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                // What was measured before it stands.
                Err(why) => failed.push(format!("{nodes} nodes: {why}")),
            }
        }
        let mut rows = rows(&sizes, agents.as_ref(), self.plan.agents);
        if self.wants(Part::Scripts) {
            rows.extend(super::script::rows());
        }
        let (programs, dir) = (&self.plan.programs, &self.plan.dir);
        let largest = self.plan.sizes.last().copied().unwrap_or(LARGE);
        let mut notes = self.plan.notes.clone();
        for part in [
            Part::Lists,
            Part::Webhooks,
            Part::Watchers,
            Part::Chat,
            Part::Machines,
            Part::Firewall,
        ] {
            if !self.wants(part) {
                continue;
            }
            let (name, measured) = match part {
                Part::Lists => (
                    "lists",
                    super::large::rows(programs, dir, &self.started, largest.min(LARGE)),
                ),
                Part::Webhooks => (
                    "webhooks",
                    super::hooks::row(programs, dir, &self.started, self.plan.quick)
                        .map(|row| vec![row]),
                ),
                Part::Chat => (
                    "chat",
                    super::chat::rows(programs, dir, &self.started, self.plan.quick),
                ),
                Part::Machines => ("machines", self.machines(&mut notes, &mut failed)),
                Part::Firewall => (
                    "firewall",
                    super::firewall::rows(dir, self.plan.quick, &mut notes),
                ),
                _ => (
                    "watchers",
                    super::watchers::rows(programs, dir, &self.started),
                ),
            };
            match measured {
                Ok(more) => rows.extend(more),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(why) => failed.push(format!("{name}: {why}")),
            }
        }
        let fit = |of: fn(&Size) -> f64| {
            let points: Vec<_> = sizes.iter().map(|s| (f64::from(s.nodes), of(s))).collect();
            exponent(&points)
        };
        Ok(Report {
            floor_exponent: fit(|s| s.floor.median),
            ping_exponent: fit(|s| s.ping.median),
            step_exponent: fit(|s| s.step.median),
            machine: self.machine,
            disk: self.disk,
            quick: self.plan.quick,
            notes,
            rows,
            sizes,
            failed,
            load_after: load(),
        })
    }

    /// What of it could be measured stands, whatever becomes of the rest.
    fn machines(
        &self,
        notes: &mut Vec<String>,
        failed: &mut Vec<String>,
    ) -> Result<Vec<Row>, BenchError> {
        let Plan {
            programs,
            dir,
            quick,
            ..
        } = &self.plan;
        let mut rows = Vec::new();
        let parts = [
            super::libvirt::rows(programs, dir, &self.started, notes),
            super::machines::rows(programs, dir, &self.started, *quick, failed),
        ];
        for part in parts {
            match part {
                Ok(more) => rows.extend(more),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(why) => failed.push(why.to_string()),
            }
        }
        Ok(rows)
    }

    fn wants(&self, part: Part) -> bool {
        self.plan.only.is_empty() || self.plan.only.contains(&part)
    }

    fn rounds(&self, whole: u32, quick: u32) -> u32 {
        if self.plan.quick { quick } else { whole }
    }

    fn size(&self, nodes: u32) -> Result<Size, BenchError> {
        let large = nodes > JUDGED;
        let rounds = self.rounds(if large { 7 } else { 15 }, 7);
        // Half of the floor before, half after: what else the machine does
        // meanwhile meets both.
        let half = rounds.div_ceil(2);
        info!(nodes, "the floor");
        let first = self.floor(nodes, half)?;
        info!(nodes, "a simulated fleet");
        let begun = Instant::now();
        let world = World::start(&self.plan.programs, &self.plan.dir, &[], &self.started)?;
        let fleet = world.fleet(nodes)?;
        let ready_s = begun.elapsed().as_secs_f64();
        settle();
        let pids = [
            world.pid(Role::Broker),
            world.pid(Role::Nats),
            Some(fleet.pid()),
        ];
        // It ends with the last answer, which is to be in the time.
        let ping_args = ["ping", "*", "--timeout", "30s"];
        let step_args = ["run", "*", "--yes", "--", "true"];
        let (ping, ping_cost) = repeat(&world, &ping_args, rounds, pids)?;
        let (step, step_cost) = repeat(&world, &step_args, rounds, pids)?;
        let of = |role| world.pid(role).and_then(memory).unwrap_or_default();
        let (broker, nats) = (of(Role::Broker), of(Role::Nats));
        let runs = u64::from(rounds) + u64::from(WARM);
        counted(fleet, nodes, runs)?;
        drop(world);
        let last = self.floor(nodes, half)?;
        let both = [first.rounds_ms.as_slice(), &last.rounds_ms].concat();
        Ok(Size {
            nodes,
            floor: spread(&both, "floor")?,
            ping,
            step,
            broker_kib: broker.resident,
            broker_own_kib: broker.own,
            nats_kib: nats.resident,
            ready_s,
            cost: Cost {
                floor: Share {
                    broker: 0.0,
                    nats: f64::midpoint(
                        first.server_cpu_ms.unwrap_or_default(),
                        last.server_cpu_ms.unwrap_or_default(),
                    ),
                    nodes: f64::midpoint(first.cpu_ms, last.cpu_ms),
                },
                ping: ping_cost,
                step: step_cost,
            },
        })
    }

    /// In a process of its own, as the fleet is: nothing of what was measured
    /// before lies in its memory.
    fn floor(&self, nodes: u32, rounds: u32) -> Result<Floor, BenchError> {
        let programs = &self.plan.programs;
        let mut command = programs.command("muster-fleet-sim", &self.plan.dir);
        command
            .args(["floor", "--nodes", &nodes.to_string()])
            .args(["--rounds", &rounds.to_string()])
            .args(["--nats-server", &programs.nats_server]);
        let text = self.started.output("floor", command)?;
        serde_json::from_str(&text).map_err(|e| BenchError::Part {
            name: "floor",
            why: e.to_string(),
        })
    }

    fn agents(&self) -> Result<Agents, BenchError> {
        let count = self.plan.agents;
        info!(agents = count, "real agents");
        let names: Vec<String> = (1..=count).map(|n| format!("n{n:04}")).collect();
        let plan = &self.plan;
        let world = World::start(&plan.programs, &plan.dir, &names, &self.started)?;
        settle();
        let rounds = self.rounds(21, 11);
        let nobody = [None; 3];
        let (ping, _) = repeat(&world, &["ping", "*"], rounds, nobody)?;
        let step = ["run", "*", "--yes", "--", "true"];
        let (all, _) = repeat(&world, &step, rounds, nobody)?;
        let one = ["run", &names[0], "--", "true"];
        let (one, _) = repeat(&world, &one, rounds, nobody)?;
        settle();
        let seconds = if plan.quick { 20 } else { 60 };
        info!(seconds, "idle agents");
        let pids = world.agents(&names);
        if pids.len() != names.len() {
            return Err(BenchError::Part {
                name: "up",
                why: format!("only {} of {count} agents run", pids.len()),
            });
        }
        let before: Vec<_> = pids.iter().map(|pid| cpu(*pid)).collect();
        let begun = Instant::now();
        self.started.pause(Duration::from_secs(seconds))?;
        let took = begun.elapsed().as_secs_f64();
        let used: Vec<f64> = pids
            .iter()
            .zip(before)
            .filter_map(|(pid, before)| {
                let used = cpu(*pid)?.saturating_sub(before?);
                Some(used.as_secs_f64() / took * 100.0)
            })
            .collect();
        let memories: Vec<_> = pids.iter().filter_map(|pid| memory(*pid)).collect();
        let mib = |of: fn(&super::process::Memory) -> u64| {
            memories
                .iter()
                .map(|m| kib(of(m)) / 1024.0)
                .collect::<Vec<_>>()
        };
        // The kernel counts in hundredths of a second, an agent uses fewer in
        // a minute than that is fine for: the mean is what can be said.
        let mut cpu_percent = spread(&used, "agents")?;
        #[allow(clippy::cast_precision_loss, reason = "at most a thousand")]
        let mean = used.iter().sum::<f64>() / used.len() as f64;
        cpu_percent.median = mean;
        Ok(Agents {
            ping,
            all,
            one,
            // Last: an agent that has run a scenario is no idle one for a while.
            overhead: self.overhead(&world, &names[0])?,
            resident_mib: spread(&mib(|m| m.resident), "agents")?,
            own_mib: spread(&mib(|m| m.own), "agents")?,
            cpu_percent,
        })
    }

    /// What a function of a scenario costs on its node beside the command that
    /// it runs, by the node's own clock. That tells whole milliseconds, so
    /// each value is of several runs of both kinds in turn.
    fn overhead(&self, world: &World, node: &str) -> Result<Spread, BenchError> {
        info!("a step of a scenario");
        const EACH: u32 = 12;
        let script = "scenario(\"One command\");\nfn run(p) { command([\"true\"]); }\n";
        world.store("bench-step", script)?;
        let native = ["run", node, "--json", "--", "true"];
        let scripted = [
            "scenario",
            "run",
            "bench-step",
            "--on",
            node,
            "--yes",
            "--json",
        ];
        world.on_node(&scripted)?;
        let mut differences = Vec::new();
        for _ in 0..self.rounds(11, 5) {
            let mut more = 0.0;
            for _ in 0..EACH {
                more += world.on_node(&scripted)? - world.on_node(&native)?;
            }
            differences.push(more / f64::from(EACH));
        }
        spread(&differences, "a step of a scenario")
    }
}

/// Repetitions that are not counted: when memory is touched first.
const WARM: u32 = 2;

fn repeat(
    world: &World,
    args: &[&str],
    rounds: u32,
    pids: [Option<u32>; 3],
) -> Result<(Spread, Share), BenchError> {
    let mut times = Vec::new();
    let used = || pids.map(|pid| pid.and_then(cpu).unwrap_or_default());
    let mut before = used();
    for round in 0..WARM + rounds {
        if round == WARM {
            before = used();
        }
        let took = world.muster(args)?;
        if round >= WARM {
            times.push(took);
        }
        std::thread::sleep(PAUSE);
    }
    let after = used();
    let [broker, nats, nodes] = [0, 1, 2].map(|i: usize| {
        let spent: Duration = after[i].saturating_sub(before[i]);
        spent.as_secs_f64() * 1000.0 / f64::from(rounds)
    });
    let cost = Share {
        broker,
        nats,
        nodes,
    };
    Ok((spread(&times, "muster")?, cost))
}

fn spread(values: &[f64], name: &'static str) -> Result<Spread, BenchError> {
    Spread::of(values).ok_or_else(|| BenchError::Part {
        name,
        why: "nothing was measured".to_owned(),
    })
}

/// Waits until the machine is quiet, but not for ever: it may be shared.
pub(super) fn settle() {
    let until = Instant::now() + SETTLE;
    loop {
        let (busy, idle) = busy_and_idle();
        std::thread::sleep(Duration::from_millis(500));
        let (busy_now, idle_now) = busy_and_idle();
        let (busy, idle) = (busy_now.saturating_sub(busy), idle_now.saturating_sub(idle));
        #[allow(clippy::cast_precision_loss, reason = "ticks of half a second")]
        let share = busy as f64 / (busy + idle).max(1) as f64;
        if share < QUIET || Instant::now() > until {
            return;
        }
    }
}

/// Every step must have taken effect on every node, once.
fn counted(fleet: Nodes, nodes: u32, runs: u64) -> Result<(), BenchError> {
    let stats = fleet.end()?;
    let twice = stats["more_than_once"].as_u64().unwrap_or(u64::MAX);
    let requests = stats["requests"].as_object();
    let seen: u64 = requests
        .into_iter()
        .flat_map(|all| all.values())
        .filter_map(|one: &Value| one["effects"].as_u64())
        .sum();
    if twice > 0 || seen != runs * u64::from(nodes) {
        return Err(BenchError::Effects {
            seen,
            runs,
            nodes,
            twice,
        });
    }
    Ok(())
}

fn kib(value: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "kibibytes of a process")]
    let value = value as f64;
    value
}

/// The table of targets.
fn rows(sizes: &[Size], agents: Option<&Agents>, count: u32) -> Vec<Row> {
    let mut rows = Vec::new();
    let judged = sizes
        .iter()
        .rev()
        .find(|s| s.nodes <= JUDGED)
        .or(sizes.first());
    if let Some(size) = judged {
        let n = size.nodes;
        rows.push(Row::told(
            format!("floor: {n} plain subscribers, one signature each"),
            Unit::Ms,
            size.floor,
        ));
        rows.push(Row::of_floor(
            format!("ping of {n} simulated nodes"),
            size.ping,
            size.floor,
            1.5,
        ));
        rows.push(Row::of_floor(
            format!("no-op step on {n} simulated nodes"),
            size.step,
            size.floor,
            3.0,
        ));
    }
    if let Some(agents) = agents {
        rows.extend(busy(agents, count));
    }
    for (what, own) in [
        ("broker: memory per node, resident", false),
        ("broker: memory per node, its own", true),
    ] {
        if let Some(spread) = slope(sizes, own) {
            rows.push(if own {
                Row::told(what, Unit::Kib, spread)
            } else {
                Row::at_most(what, Unit::Kib, spread, 20.0)
            });
        }
    }
    if let Some(agents) = agents {
        rows.extend(idle(agents));
    }
    rows
}

/// Real agents at work.
fn busy(agents: &Agents, count: u32) -> [Row; 4] {
    [
        Row::at_most(
            format!("muster ping '*', {count} real agents"),
            Unit::Ms,
            agents.ping,
            40.0,
        ),
        Row::at_most(
            format!("muster run '*' --yes -- true, {count} real agents"),
            Unit::Ms,
            agents.all,
            150.0,
        ),
        Row::at_most("muster run NODE -- true", Unit::Ms, agents.one, 25.0),
        Row::at_most(
            "a step of a scenario, over its command",
            Unit::Ms,
            agents.overhead,
            1.0,
        ),
    ]
}

/// Real agents that have nothing to do.
fn idle(agents: &Agents) -> [Row; 3] {
    [
        Row::at_most(
            "idle agent: memory, resident",
            Unit::Mib,
            agents.resident_mib,
            10.0,
        ),
        Row::told("idle agent: memory, its own", Unit::Mib, agents.own_mib),
        Row::at_most(
            "idle agent: processor, in the mean",
            Unit::PercentOfACore,
            agents.cpu_percent,
            0.05,
        ),
    ]
}

/// What a node more costs the broker, over all sizes, and between neighbours.
fn slope(sizes: &[Size], own: bool) -> Option<Spread> {
    let points: Vec<_> = sizes
        .iter()
        .map(|s| {
            let memory = if own { s.broker_own_kib } else { s.broker_kib };
            (f64::from(s.nodes), kib(memory))
        })
        .collect();
    let (all, _) = line(&points)?;
    let between: Vec<f64> = points
        .windows(2)
        .filter_map(|pair| Some(line(pair)?.0))
        .collect();
    let mut spread = Spread::of(&between)?;
    spread.median = all;
    Some(spread)
}
