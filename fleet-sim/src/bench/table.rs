//! The table as people read it, and as programs do.

use std::fmt;

use serde::Serialize;

use super::figures::{Row, Target, Unit, Verdict};
use super::machine::{Disk, Machine};
use super::work::{Share, Size};

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what.
    pub machine: Machine,
    /// On which disk.
    pub disk: Disk,
    /// With less of everything.
    pub quick: bool,
    /// What the reader has to know.
    pub notes: Vec<String>,
    /// What has to be reached.
    pub rows: Vec<Row>,
    /// What each size of the fleet has cost.
    pub sizes: Vec<Size>,
    /// Sizes that could not be measured, and why.
    pub failed: Vec<String>,
    /// How the floor grows with the fleet.
    pub floor_exponent: Option<f64>,
    /// How a ping does.
    pub ping_exponent: Option<f64>,
    /// How a step does.
    pub step_exponent: Option<f64>,
    /// Load average when all was measured.
    pub load_after: String,
}

impl Report {
    /// Targets that were not reached.
    #[must_use]
    pub fn missed(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| row.verdict == Verdict::Missed)
            .count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.conditions(f)?;
        writeln!(f)?;
        let mut lines = vec![
            ["what", "target", "median", "min", "max", "× floor", ""]
                .map(str::to_owned)
                .to_vec(),
        ];
        lines.extend(self.rows.iter().map(row));
        columns(f, &lines)?;
        if !self.sizes.is_empty() {
            writeln!(f)?;
            self.growth(f)?;
            writeln!(f)?;
            self.costs(f)?;
        }
        for failed in &self.failed {
            writeln!(f, "\nNOT MEASURED: {failed}")?;
        }
        for note in &self.notes {
            writeln!(f, "\nnote: {note}")?;
        }
        Ok(())
    }
}

impl Report {
    fn conditions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (machine, disk) = (&self.machine, &self.disk);
        #[allow(clippy::cast_precision_loss, reason = "memory of a machine")]
        let gib = machine.memory_mib as f64 / 1024.0;
        let lines = [
            vec![
                "machine".to_owned(),
                format!("{}, {} cores, {gib:.1} GiB", machine.cpu, machine.cores),
            ],
            vec![
                "system".to_owned(),
                format!("{}, Linux {}", machine.system, machine.kernel),
            ],
            vec![
                "disk".to_owned(),
                format!(
                    "{} ({}, {}); 4 KiB written and synced: p50 {}, p99 {}",
                    disk.device,
                    disk.file_system,
                    disk.options,
                    fine(disk.sync_p50_ms),
                    fine(disk.sync_p99_ms)
                ),
            ],
            vec![
                "software".to_owned(),
                format!(
                    "muster {} ({}), nats-server {}",
                    env!("CARGO_PKG_VERSION"),
                    if cfg!(debug_assertions) {
                        "debug build: the figures say nothing"
                    } else {
                        "release build"
                    },
                    machine.nats_server
                ),
            ],
            vec![
                "load".to_owned(),
                format!("{} before, {} after", machine.load_before, self.load_after),
            ],
        ];
        columns(f, &lines)
    }

    fn growth(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![
            [
                "nodes",
                "floor",
                "ping",
                "× floor",
                "step",
                "× floor",
                "broker",
                "its own",
                "nats-server",
                "ready in",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for size in &self.sizes {
            lines.push(vec![
                size.nodes.to_string(),
                Unit::Ms.show(size.floor.median),
                Unit::Ms.show(size.ping.median),
                times(size.ping.median / size.floor.median),
                Unit::Ms.show(size.step.median),
                times(size.step.median / size.floor.median),
                mib(size.broker_kib),
                mib(size.broker_own_kib),
                mib(size.nats_kib),
                format!("{:.1} s", size.ready_s),
            ]);
        }
        let exponent = |e: Option<f64>| e.map_or_else(String::new, |e| format!("n^{e:.2}"));
        lines.push(vec![
            "grows with".to_owned(),
            exponent(self.floor_exponent),
            exponent(self.ping_exponent),
            String::new(),
            exponent(self.step_exponent),
        ]);
        columns(f, &lines)
    }

    fn costs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![
            [
                "processor time of one request",
                "broker",
                "nats-server",
                "nodes",
                "all",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for size in &self.sizes {
            let cost = &size.cost;
            for (what, share) in [
                ("floor", &cost.floor),
                ("ping", &cost.ping),
                ("step", &cost.step),
            ] {
                lines.push(shares(&format!("{what}, {} nodes", size.nodes), share));
            }
        }
        columns(f, &lines)
    }
}

fn shares(what: &str, share: &Share) -> Vec<String> {
    let all = share.broker + share.nats + share.nodes;
    let mut line = vec![what.to_owned()];
    line.extend([share.broker, share.nats, share.nodes, all].map(|ms| format!("{ms:.0} ms")));
    line
}

fn row(row: &Row) -> Vec<String> {
    let target = match row.target {
        Some(Target::AtMost(most)) => format!("≤ {}", short(row.unit, most)),
        Some(Target::AtLeast(least)) => format!("≥ {}", short(row.unit, least)),
        Some(Target::TimesFloor(most)) => format!("≤ {most} × floor"),
        None => String::new(),
    };
    let verdict = match row.verdict {
        Verdict::Met => "met",
        Verdict::Missed => "MISSED",
        Verdict::Told => "",
        Verdict::Skipped => "skipped",
    };
    if row.verdict == Verdict::Skipped {
        let none = || String::new();
        return vec![
            row.what.clone(),
            target,
            none(),
            none(),
            none(),
            none(),
            verdict.to_owned(),
        ];
    }
    vec![
        row.what.clone(),
        target,
        row.unit.show(row.spread.median),
        row.unit.show(row.spread.min),
        row.unit.show(row.spread.max),
        row.floors.map_or_else(String::new, times),
        verdict.to_owned(),
    ]
}

/// A target, without digits that it does not have.
fn short(unit: Unit, value: f64) -> String {
    let shown = unit.show(value);
    let name = shown.split_once(' ').map_or("", |(_, name)| name);
    format!("{value} {name}")
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2}")
}

fn mib(kib: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "kibibytes of a process")]
    let mib = kib as f64 / 1024.0;
    format!("{mib:.0} MiB")
}

fn fine(ms: f64) -> String {
    format!("{ms:.2} ms")
}

/// Columns, the first to the left and, but in two of them, the others to the
/// right.
fn columns(f: &mut fmt::Formatter<'_>, lines: &[Vec<String>]) -> fmt::Result {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for line in lines {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let width = *width;
            if column == 0 || count == 2 {
                text.push_str(&format!("{cell:<width$}  "));
            } else {
                text.push_str(&format!("{cell:>width$}  "));
            }
        }
        writeln!(f, "{}", text.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::figures::Spread;
    use super::*;

    fn of(median: f64) -> Spread {
        Spread {
            median,
            min: median / 2.0,
            max: median * 2.0,
            count: 5,
        }
    }

    #[test]
    fn a_table() {
        let share = Share {
            broker: 50.0,
            nats: 150.0,
            nodes: 250.0,
        };
        let report = Report {
            machine: Machine {
                cpu: "A Processor".into(),
                cores: 2,
                memory_mib: 24_576,
                system: "Debian GNU/Linux 12".into(),
                kernel: "6.1.0".into(),
                nats_server: "v2.9.10".into(),
                load_before: "0.1 0.2 0.3".into(),
            },
            disk: Disk {
                device: "/dev/vda".into(),
                file_system: "ext4".into(),
                options: "rw,relatime".into(),
                sync_p50_ms: 0.512,
                sync_p99_ms: 2.0,
            },
            quick: false,
            notes: vec!["something to know".into()],
            rows: vec![
                Row::told("floor", Unit::Ms, of(240.0)),
                Row::of_floor("ping of 5000 nodes", of(300.0), of(240.0), 1.5),
                Row::at_most("an agent: memory", Unit::Mib, of(11.3), 10.0),
            ],
            sizes: vec![Size {
                nodes: 5000,
                floor: of(240.0),
                ping: of(300.0),
                step: of(500.0),
                broker_kib: 61_440,
                broker_own_kib: 40_960,
                nats_kib: 204_800,
                ready_s: 9.5,
                cost: super::super::work::Cost {
                    floor: share,
                    ping: share,
                    step: share,
                },
            }],
            failed: vec!["20000 nodes: too many".into()],
            floor_exponent: Some(1.01),
            ping_exponent: Some(1.02),
            step_exponent: None,
            load_after: "1 1 1".into(),
        };
        let text = report.to_string();
        for line in [
            "machine   A Processor, 2 cores, 24.0 GiB",
            "floor                                240 ms   120 ms    480 ms",
            "ping of 5000 nodes  ≤ 1.5 × floor    300 ms   150 ms    600 ms     1.25     met",
            "an agent: memory         ≤ 10 MiB  11.3 MiB  5.7 MiB  22.6 MiB           MISSED",
            "note: something to know",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(text.contains("n^1.02"), "{text}");
        assert_eq!(report.missed(), 1);
        let json: serde_json::Value =
            serde_json::from_str(&serde_json::to_string(&report).expect("serialises"))
                .expect("is JSON");
        assert_eq!(json["rows"][1]["verdict"], "met");
        assert_eq!(json["rows"][1]["target"]["times_floor"], 1.5);
        assert_eq!(json["rows"][1]["median"], 300.0);
    }

    #[test]
    fn what_this_machine_cannot_do_is_skipped_and_not_missed() {
        let rows = [
            Row::skipped("over virsh", Unit::Ms, Target::AtMost(300.0)),
            Row::at_least("machines", Unit::PerSecond, of(120.0), 100.0),
        ];
        let shown = rows.each_ref().map(|one| row(one).join("|"));
        assert_eq!(
            shown,
            [
                "over virsh|≤ 300 ms|||||skipped",
                "machines|≥ 100 /s|120 /s|60 /s|240 /s||met",
            ]
        );
    }
}
