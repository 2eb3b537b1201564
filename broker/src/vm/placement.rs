//! Which hypervisor a machine is put on: pure.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::api::{Looked, Strategy};
use muster_protocol::ids::Serial;
use muster_protocol::names::{LabelKey, LabelValue, NodeName};
use muster_protocol::vm::{Capacity, Sha256, Size};

use super::records::{Place, Takes};
use crate::config::VmConfig;
use crate::vm::observed::Heard;

/// Where two machines of one kind must not meet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Apart {
    /// On one hypervisor.
    Name,
    /// On hypervisors with the same value of this label.
    Label(LabelKey),
}

/// What is asked of a hypervisor.
#[derive(Clone, Debug)]
pub struct Need {
    /// What the machine takes.
    pub takes: Takes,
    /// Which of those that fit.
    pub strategy: Strategy,
    /// Where not; with the values at which others are that it is kept from.
    pub apart: Option<(Apart, BTreeSet<String>)>,
    /// Labels that the name is made of.
    pub labels: Vec<LabelKey>,
    /// The image.
    pub image: Sha256,
    /// Whether it has security groups.
    pub groups: bool,
}

/// A hypervisor that could be taken.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its serial.
    pub serial: Serial,
    /// Its name.
    pub node: &'a NodeName,
    /// Its labels.
    pub labels: &'a BTreeMap<LabelKey, LabelValue>,
    /// Whether it is heard.
    pub connected: bool,
    /// Whether its agent says that it can; none while it has said nothing.
    pub able: Option<bool>,
    /// Whether its agent says that it can keep security groups.
    pub guards: bool,
    /// Whether nothing new is put on it.
    pub cordoned: bool,
    /// What it said last.
    pub heard: Option<&'a Heard>,
    /// What is given away of it, what is not muster's included.
    pub given: Takes,
}

impl Candidate<'_> {
    /// At which value it is, for [`Apart`].
    fn value(&self, apart: &Apart) -> Option<&str> {
        match apart {
            Apart::Name => Some(self.node.as_str()),
            Apart::Label(key) => self.labels.get(key).map(LabelValue::as_str),
        }
    }
}

/// A place that was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Placed {
    /// Where.
    pub place: Place,
    /// How many were looked at.
    pub looked_at: u32,
    /// How many fit.
    pub fit: u32,
    /// Whether the image is there already.
    pub image_there: bool,
    /// At which value it is, where machines are kept apart.
    pub value: Option<String>,
}

/// No hypervisor can be taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("no hypervisor can take the machine: {} looked at", .looked.len())]
pub struct NoPlace {
    /// Each of them, and why not.
    pub looked: Vec<Looked>,
}

/// What a hypervisor can give in all.
#[must_use]
pub fn room(capacity: &Capacity, settings: &VmConfig) -> Takes {
    let part = |bytes: Size, percent: u32| {
        let all = u128::from(bytes.0) * u128::from(percent) / 100;
        Size(u64::try_from(all).unwrap_or(u64::MAX))
    };
    Takes {
        cpus: u64::from(capacity.cpus) * u64::from(settings.overcommit_cpu_percent) / 100,
        memory: part(capacity.memory, settings.overcommit_memory_percent),
        disk: part(capacity.disk, settings.overcommit_disk_percent),
    }
}

/// Why a machine cannot have `new` in place of `old` where `given` is given
/// already, its own included. What does not grow is no reason.
#[must_use]
pub fn lacks(room: Takes, given: Takes, old: Takes, new: Takes) -> Option<String> {
    let others = given.without(old);
    let then = others.and(new);
    if new.cpus > old.cpus && then.cpus > room.cpus {
        let free = room.cpus.saturating_sub(others.cpus);
        let (all, needed) = (room.cpus, new.cpus);
        return Some(format!(
            "{free} of {all} processors are free for it, {needed} are needed"
        ));
    }
    let sizes = [
        ("memory", (|takes| takes.memory) as fn(Takes) -> Size),
        ("disk", |takes| takes.disk),
    ];
    sizes.into_iter().find_map(|(what, of)| {
        let (all, needed) = (of(room), of(new));
        let short = needed > of(old) && of(then) > all;
        let free = Size(all.0.saturating_sub(of(others).0));
        short.then(|| format!("{free} of {all} {what} are free for it, {needed} are needed"))
    })
}

/// The memory that is left when the machine is there; else why it cannot be
/// put there.
fn fits(need: &Need, at: &Candidate<'_>, settings: &VmConfig) -> Result<Size, String> {
    if !at.connected {
        return Err("is not connected".to_owned());
    }
    // One that has not said so yet, to a broker that has just begun, will.
    if at.able == Some(false) {
        return Err("its agent does not grant `vm`".to_owned());
    }
    // Nothing would guard the machine there.
    if need.groups && !at.guards {
        return Err("cannot keep security groups: its agent does not say that it can".to_owned());
    }
    if at.cordoned {
        return Err("is cordoned".to_owned());
    }
    let Some(heard) = at.heard else {
        return Err("has not said yet what it has".to_owned());
    };
    if let Some(problem) = &heard.report.problem {
        return Err(format!("has a problem: {problem}"));
    }
    let Some(capacity) = &heard.report.capacity else {
        return Err("does not say what it has".to_owned());
    };
    if let Some(key) = need.labels.iter().find(|key| !at.labels.contains_key(*key)) {
        return Err(format!("has no label `{key}`, which the name is made of"));
    }
    if let Some((apart, taken)) = &need.apart {
        match at.value(apart) {
            None => {
                let Apart::Label(key) = apart else {
                    return Err("has no name".to_owned());
                };
                return Err(format!(
                    "has no label `{key}`, by which machines are kept apart"
                ));
            }
            Some(value) if taken.contains(value) => {
                return Err(match apart {
                    Apart::Name => "one of its kind is there".to_owned(),
                    Apart::Label(key) => format!("one of its kind is at {key}={value}"),
                });
            }
            Some(_) => {}
        }
    }
    let room = room(capacity, settings);
    let then = at.given.and(need.takes);
    if then.cpus > room.cpus {
        let free = room.cpus.saturating_sub(at.given.cpus);
        return Err(format!(
            "{free} of {} processors are free, {} are needed",
            room.cpus, need.takes.cpus
        ));
    }
    let short = |what: &str, room: Size, given: Size, needed: Size| {
        let free = Size(room.0.saturating_sub(given.0));
        format!("{free} of {room} {what} are free, {needed} are needed")
    };
    if then.memory > room.memory {
        return Err(short(
            "memory",
            room.memory,
            at.given.memory,
            need.takes.memory,
        ));
    }
    if then.disk > room.disk {
        return Err(short("disk", room.disk, at.given.disk, need.takes.disk));
    }
    Ok(Size(room.memory.0 - then.memory.0))
}

/// The hypervisor for a machine.
///
/// # Errors
/// [`NoPlace`]: each that was looked at, and why not.
pub fn place(
    need: &Need,
    candidates: &[Candidate<'_>],
    settings: &VmConfig,
) -> Result<Placed, NoPlace> {
    let mut best: Option<(Size, &Candidate<'_>)> = None;
    let mut fit = 0;
    let mut looked = Vec::new();
    for at in candidates {
        let left = match fits(need, at, settings) {
            Ok(left) => left,
            Err(why) => {
                let node = at.node.clone();
                looked.push(Looked { node, why });
                continue;
            }
        };
        fit += 1;
        let better = best.is_none_or(|(most, before)| {
            let more = match need.strategy {
                Strategy::Spread => left.cmp(&most),
                Strategy::Pack => most.cmp(&left),
            };
            // Of two alike the first by name.
            more.then_with(|| before.node.cmp(at.node)).is_gt()
        });
        if better {
            best = Some((left, at));
        }
    }
    let Some((_, at)) = best else {
        looked.sort_by(|a, b| a.node.cmp(&b.node));
        return Err(NoPlace { looked });
    };
    // One that fits has said this.
    let Some(heard) = at.heard else {
        return Err(NoPlace { looked });
    };
    let value = need.apart.as_ref().and_then(|(apart, _)| at.value(apart));
    Ok(Placed {
        place: Place {
            serial: at.serial,
            node: at.node.clone(),
            pool: heard.report.pool.clone(),
        },
        looked_at: u32::try_from(candidates.len()).unwrap_or(u32::MAX),
        fit,
        image_there: heard.report.images.contains(&need.image),
        value: value.map(str::to_owned),
    })
}
