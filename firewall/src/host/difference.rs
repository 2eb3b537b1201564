//! What changes from one state of the rules to the next, for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use muster_protocol::firewall::Members;
use muster_protocol::firewall::host::{Fixed, HostDirection, HostRule, Resolved};

/// Most addresses that are named one by one.
const NAMED: usize = 10;

/// What changes, rule by rule: `-` in front of what goes, `+` of what comes,
/// `~` of what stays and is only at another place among its rules. Empty when
/// nothing does.
#[must_use]
pub fn difference(old: Option<&Resolved>, new: &Resolved) -> Vec<String> {
    let mut lines = Vec::new();
    if old.is_none() {
        lines.push("+ the table inet muster_host".to_owned());
    }
    for direction in HostDirection::ALL {
        let was = old.map(|old| old.rules().policy().of(*direction));
        let is = new.rules().policy().of(*direction);
        if was != Some(is) {
            if let Some(was) = was {
                lines.push(format!("- {direction} policy {was}"));
            }
            lines.push(format!("+ {direction} policy {is}"));
        }
    }
    let none = BTreeSet::new();
    let was = old.map_or(&none, |old| old.rules().without());
    for fixed in Fixed::ALL {
        match (was.contains(fixed), new.rules().without().contains(fixed)) {
            (false, true) => lines.push(format!("- always accept {fixed}")),
            (true, false) => lines.push(format!("+ always accept {fixed}")),
            _ => {}
        }
    }
    let empty = BTreeMap::new();
    named(
        &mut lines,
        "set",
        old.map_or(&empty, |old| old.rules().sets()),
        new.rules().sets(),
    );
    let empty = BTreeMap::new();
    named(
        &mut lines,
        "role",
        old.map_or(&empty, |old| old.roles()),
        new.roles(),
    );
    let was: &[HostRule] = old.map_or(&[], |old| old.rules().rules());
    rules(&mut lines, was, new.rules().rules());
    lines
}

fn named<K: Ord + Display>(
    lines: &mut Vec<String>,
    kind: &str,
    old: &BTreeMap<K, Members>,
    new: &BTreeMap<K, Members>,
) {
    let names: BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    let none = Members::new();
    for name in names {
        let (was, is) = (old.get(name), new.get(name));
        let (was, is) = (was.unwrap_or(&none), is.unwrap_or(&none));
        for (sign, gone, from) in [('-', was, is), ('+', is, was)] {
            let some: Vec<String> = gone.difference(from).map(ToString::to_string).collect();
            match some.len() {
                0 => {}
                1..=NAMED => lines.push(format!("{sign} {kind}:{name} {}", some.join(" "))),
                many => {
                    let first = some[..NAMED].join(" ");
                    let rest = many - NAMED;
                    lines.push(format!("{sign} {kind}:{name} {first} and {rest} more"));
                }
            }
        }
    }
}

/// Each rule by what it says: its number is its place, counted from 0 as in
/// the errors of a scenario.
fn rules(lines: &mut Vec<String>, old: &[HostRule], new: &[HostRule]) {
    let texts = |rules: &[HostRule]| rules.iter().map(HostRule::to_string).collect::<Vec<_>>();
    let (old, new) = (texts(old), texts(new));
    let kept = common(&old, &new);
    let kept_old: BTreeSet<usize> = kept.iter().map(|(a, _)| *a).collect();
    let kept_new: BTreeSet<usize> = kept.iter().map(|(_, b)| *b).collect();
    // What goes at one place and comes at another one has moved.
    let mut moved: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, text) in new.iter().enumerate().rev() {
        if !kept_new.contains(&at) {
            moved.entry(text).or_default().push(at);
        }
    }
    let mut taken = BTreeSet::new();
    for (at, text) in old.iter().enumerate() {
        if kept_old.contains(&at) {
            continue;
        }
        match moved.get_mut(text.as_str()).and_then(Vec::pop) {
            Some(to) => {
                taken.insert(to);
                lines.push(format!("~ rules[{at}] is rules[{to}]: {text}"));
            }
            None => lines.push(format!("- rules[{at}]: {text}")),
        }
    }
    for (at, text) in new.iter().enumerate() {
        if !kept_new.contains(&at) && !taken.contains(&at) {
            lines.push(format!("+ rules[{at}]: {text}"));
        }
    }
}

/// Rules that are in both, in the same order: as many as there are.
fn common(old: &[String], new: &[String]) -> Vec<(usize, usize)> {
    let front = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (mid_old, mid_new) = (&old[front..], &new[front..]);
    let back = mid_old
        .iter()
        .rev()
        .zip(mid_new.iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let (n, m) = (mid_old.len() - back, mid_new.len() - back);
    let mut pairs: Vec<(usize, usize)> = (0..front).map(|at| (at, at)).collect();
    // The longest common subsequence: at most 2,000 by 2,000.
    let mut best = vec![vec![0_u16; m + 1]; n + 1];
    for a in (0..n).rev() {
        for b in (0..m).rev() {
            best[a][b] = match mid_old[a] == mid_new[b] {
                true => best[a + 1][b + 1] + 1,
                false => best[a + 1][b].max(best[a][b + 1]),
            };
        }
    }
    let (mut a, mut b) = (0, 0);
    while a < n && b < m {
        if mid_old[a] == mid_new[b] {
            pairs.push((front + a, front + b));
            (a, b) = (a + 1, b + 1);
        } else if best[a + 1][b] >= best[a][b + 1] {
            a += 1;
        } else {
            b += 1;
        }
    }
    pairs.extend((0..back).map(|at| (front + n + at, front + m + at)));
    pairs
}
