//! What a hypervisor holds in these tests, and the engine that holds it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use muster_nft::groups::{Groups, Setting, Unable};
use muster_nft::netlink::Kernel;
use muster_protocol::firewall::{Change, GroupsAnswer, GroupsMark, GroupsUpdate, Holding};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::space::Space;

pub(crate) const WITHIN: Duration = Duration::from_secs(20);

pub(crate) fn mark(sequence: u64) -> GroupsMark {
    GroupsMark { epoch: 1, sequence }
}

pub(crate) fn mac(number: u8) -> String {
    format!("52:54:00:00:00:{number:02x}")
}

/// Number, direction, traffic, peer.
pub(crate) type Rule<'a> = (u32, &'a str, &'a str, &'a str);

/// Machines with the taps `mt1`, `mt2` …, the addresses 10.7.0.1, fd07::1 …
/// and these groups.
pub(crate) fn holding(
    machines: &[(u8, &[&str])],
    groups: &[(&str, &[Rule<'_>])],
    members: &[(&str, &[&str])],
) -> Holding {
    let interfaces: BTreeMap<_, _> = machines
        .iter()
        .map(|(n, groups)| {
            let interface = json!({
                "machine": format!("0c7e1a52-93b4-8d3f-a1c2-5d6e7f8091{n:02x}"),
                "name": format!("vm-{n}"), "bridge": "br0", "mac": mac(*n),
                "addresses": [format!("10.7.0.{n}"), format!("fd07::{n}")], "groups": groups,
            });
            (format!("mt{n}"), interface)
        })
        .collect();
    let groups: BTreeMap<_, _> = groups
        .iter()
        .map(|(name, rules)| {
            let rules = rules.iter().map(|(id, direction, traffic, peer)| {
                json!({"id": id, "direction": direction, "traffic": traffic, "peer": peer})
            });
            (*name, rules.collect::<Vec<_>>())
        })
        .collect();
    let members: BTreeMap<_, _> = members.iter().map(|(of, all)| (*of, *all)).collect();
    let json = json!({"interfaces": interfaces, "groups": groups, "members": members});
    serde_json::from_value(json).expect("a holding")
}

/// Two machines; who is in `lb` may speak to port 80 of `web`.
pub(crate) fn web(lb: &[&str]) -> Holding {
    holding(
        &[(1, &["web"]), (2, &[])],
        &[("web", &[(1, "ingress", "tcp 80", "group:lb")])],
        &[("group:lb", lb)],
    )
}

/// An engine in a namespace.
pub(crate) struct Engine {
    pub(crate) groups: Groups,
    runtime: Runtime,
    stop: CancellationToken,
    next: u64,
    held: Holding,
}

impl Engine {
    pub(crate) fn start(space: &Space, dir: &Path) -> Self {
        Self::with(space, Setting::new(dir)).expect("starts")
    }

    pub(crate) fn with(space: &Space, setting: Setting) -> Result<Self, Unable> {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let stop = CancellationToken::new();
        let begins = Groups::start(setting, stop.clone());
        let groups = space.here(|| runtime.block_on(begins))?;
        let held = runtime.block_on(groups.holding()).expect("it runs");
        let next = held.as_ref().map_or(0, |(mark, _)| mark.sequence);
        Ok(Self {
            groups,
            runtime,
            stop,
            next,
            held: held.map(|(_, holding)| holding).unwrap_or_default(),
        })
    }

    pub(crate) fn update(&self, update: GroupsUpdate) -> GroupsAnswer {
        let done = self.groups.update(update);
        self.runtime.block_on(done).expect("it runs")
    }

    /// Makes it hold that, by a change.
    pub(crate) fn hold(&mut self, holding: &Holding) -> GroupsAnswer {
        let update = self.change(self.held.change_to(holding));
        let answer = self.update(update);
        if answer.held == Some(mark(self.next)) {
            self.held = holding.clone();
        }
        answer
    }

    /// Waits until nothing is left to do of what was answered.
    pub(crate) fn settled(&self) {
        let holding = self.groups.holding();
        self.runtime.block_on(holding).expect("it runs");
    }

    /// The next update.
    pub(crate) fn change(&mut self, change: Change) -> GroupsUpdate {
        let base = (self.next > 0).then(|| mark(self.next));
        self.next += 1;
        GroupsUpdate {
            base,
            mark: mark(self.next),
            more: false,
            change,
        }
    }

    /// Waits for something to be said.
    pub(crate) fn until(&self, wanted: impl Fn(&GroupsAnswer) -> bool) -> GroupsAnswer {
        let mut answers = self.groups.answers();
        let wait = async { answers.wait_for(wanted).await.map(|answer| answer.clone()) };
        let wait = async { tokio::time::timeout(WITHIN, wait).await };
        let said = self.runtime.block_on(wait);
        said.expect("said in time").expect("it runs")
    }

    /// Counts of the rules.
    pub(crate) fn packets(&self) -> BTreeMap<String, u64> {
        let counters = self.runtime.block_on(self.groups.counters());
        let counters = counters.expect("it runs").expect("it counts");
        counters
            .into_iter()
            .map(|((group, rule), count)| (format!("{group}/{rule}"), count.packets))
            .collect()
    }

    /// Ends it, and waits for its end.
    pub(crate) fn end(self) {
        self.stop.cancel();
        let ended = self.groups.ended();
        self.runtime.block_on(ended);
    }
}

/// The generation of the rules.
pub(crate) fn generation(space: &Space) -> u32 {
    space.here(|| {
        Kernel::open()
            .and_then(|kernel| kernel.generation())
            .expect("a kernel")
    })
}

/// Waits for a state.
pub(crate) fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + WITHIN;
    while !is() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::yield_now();
    }
}
