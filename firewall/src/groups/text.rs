//! Objects as text for `nft -f -`: always one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use muster_protocol::firewall::Holding;

use super::build;
use super::ids::Ids;
use super::objects::{
    Chain, Count, Difference, Elements, Listed, ListedRule, Name, Objects, Order, Rule, Set, Table,
};

/// Both tables anew. What counters have counted is carried over; counters
/// that are no more are left out.
#[must_use]
pub fn whole(objects: &Objects, counts: &BTreeMap<Name, Count>) -> String {
    let mut out = String::new();
    for table in Table::ALL {
        line(&mut out, format_args!("add table {table}"));
        line(&mut out, format_args!("delete table {table}"));
    }
    for table in Table::ALL {
        line(&mut out, format_args!("table {table} {{"));
        for name in of(&objects.counters, table) {
            let count = counts.get(name).copied().unwrap_or_default();
            line(
                &mut out,
                format_args!(
                    "  counter {} {{ packets {} bytes {}; }}",
                    name.name, count.packets, count.bytes
                ),
            );
        }
        for (name, set) in objects.sets.iter().filter(|(name, _)| name.table == table) {
            let (word, declaration) = (set.kind.word(), set.kind.declaration());
            line(
                &mut out,
                format_args!("  {word} {} {{\n    {declaration}", name.name),
            );
            if !set.elements.is_empty() {
                let elements = elements(&set.elements, true);
                line(&mut out, format_args!("    elements = {{ {elements} }};"));
            }
            line(&mut out, format_args!("  }}"));
        }
        let chains = objects.chains.iter();
        for (name, chain) in chains.filter(|(name, _)| name.table == table) {
            line(&mut out, format_args!("  chain {} {{", name.name));
            if let Some(hook) = chain.hook {
                line(&mut out, format_args!("    {hook}"));
            }
            for rule in &chain.rules {
                line(&mut out, format_args!("    {}", written(rule)));
            }
            line(&mut out, format_args!("  }}"));
        }
        line(&mut out, format_args!("}}"));
    }
    out
}

/// One transaction that makes the difference, and touches nothing else.
/// `listed` holds the chains of [`Difference::to_list`] as the kernel has
/// them. Empty when nothing differs.
#[must_use]
pub fn update(d: &Difference, listed: &Listed) -> String {
    let mut out = String::new();
    for name in &d.counters_new {
        line(&mut out, format_args!("add counter {name}"));
    }
    // A map names chains, chains name sets: first all of them, empty.
    for (name, Set { kind, .. }) in &d.sets_new {
        let (word, declaration) = (kind.word(), kind.declaration());
        line(
            &mut out,
            format_args!("add {word} {name} {{ {declaration} }}"),
        );
    }
    for (name, Chain { hook, .. }) in &d.chains_new {
        match hook {
            Some(hook) => line(&mut out, format_args!("add chain {name} {{ {hook} }}")),
            None => line(&mut out, format_args!("add chain {name}")),
        }
    }
    for (name, chain) in &d.chains_new {
        add_rules(&mut out, name, &chain.rules);
    }
    for (name, gone) in &d.elements_gone {
        let gone = elements(gone, false);
        line(&mut out, format_args!("delete element {name} {{ {gone} }}"));
    }
    let sets_new = d.sets_new.iter().map(|(name, set)| (name, &set.elements));
    for (name, new) in sets_new.chain(&d.elements_new) {
        if !new.is_empty() {
            let new = elements(new, true);
            line(&mut out, format_args!("add element {name} {{ {new} }}"));
        }
    }
    for (name, chain) in &d.chains_changed {
        match listed.get(name) {
            Some(listed) if chain.order == Order::Any => change(&mut out, name, chain, listed),
            _ => {
                line(&mut out, format_args!("flush chain {name}"));
                add_rules(&mut out, name, &chain.rules);
            }
        }
    }
    // They may name each other.
    for name in &d.chains_gone {
        line(&mut out, format_args!("flush chain {name}"));
    }
    for name in &d.chains_gone {
        line(&mut out, format_args!("delete chain {name}"));
    }
    for name in &d.sets_gone {
        line(&mut out, format_args!("delete set {name}"));
    }
    for name in &d.counters_gone {
        line(&mut out, format_args!("delete counter {name}"));
    }
    out
}

/// The tables of a hypervisor that knows nothing yet: nothing passes from or
/// to any interface of a machine. For the minutes after it has started.
#[must_use]
pub fn bare() -> String {
    whole(
        &build::objects(&Holding::default(), &Ids::default()),
        &BTreeMap::new(),
    )
}

fn of(names: &BTreeSet<Name>, table: Table) -> impl Iterator<Item = &Name> {
    names.iter().filter(move |name| name.table == table)
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

fn written(rule: &Rule) -> String {
    format!("{} comment \"{}\"", rule.text, rule.comment())
}

fn add_rules(out: &mut String, chain: &Name, rules: &[Rule]) {
    for rule in rules {
        line(out, format_args!("add rule {chain} {}", written(rule)));
    }
}

/// Those that are there stay as they are: new ones come first, and what is no
/// more goes then.
fn change(out: &mut String, name: &Name, chain: &Chain, listed: &[ListedRule]) {
    let mut there: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for rule in listed {
        let handles = there.entry(&rule.comment).or_default();
        handles.push(rule.handle);
    }
    for rule in &chain.rules {
        match there.get_mut(rule.comment().as_str()) {
            Some(handles) if !handles.is_empty() => drop(handles.pop()),
            _ => add_rules(out, name, std::slice::from_ref(rule)),
        }
    }
    let mut gone: Vec<u64> = there.into_values().flatten().collect();
    gone.sort_unstable();
    for handle in gone {
        line(out, format_args!("delete rule {name} handle {handle}"));
    }
}

fn elements(elements: &Elements, with_values: bool) -> String {
    let mut out = String::new();
    for (key, value) in elements {
        if !out.is_empty() {
            out.push_str(", ");
        }
        let _ = match value {
            Some(value) if with_values => write!(out, "{key} : {value}"),
            _ => write!(out, "{key}"),
        };
    }
    out
}
