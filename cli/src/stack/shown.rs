//! A plan, for people: pure.

use std::collections::BTreeMap;

use muster_protocol::text::printable_line;
use muster_protocol::vm::Size;

use super::StackId;
use super::plan::{Change, Difference, Is, Item, Kind, Plan, exact};
use crate::ui::{Paint, count, pad};

/// Widest name that others are filled up to.
const MAX_NAME: usize = 40;

/// Each line of it, and a sum.
#[must_use]
pub fn render(plan: &Plan, file: &str, prune: bool, paint: Paint) -> String {
    let mut out = format!("stack {}, of {file}\n", plan.id);
    let title = |item: &Item| match item.kind {
        Kind::Network => format!("network {}", item.name),
        Kind::Machine => item.name.clone(),
    };
    let width = plan.items.iter().map(|item| title(item).chars().count());
    let width = width.max().unwrap_or(0).min(MAX_NAME);
    for item in &plan.items {
        let (sign, text) = line(&plan.id, item, prune);
        let sign = match sign {
            '+' | '~' => paint.good(&sign.to_string()),
            '!' => paint.bad(&sign.to_string()),
            '-' => paint.odd(&sign.to_string()),
            _ => sign.to_string(),
        };
        let text = format!("{}  {text}", pad(&title(item), width));
        out.push_str(&format!("{sign} {}\n", printable_line(text.trim_end())));
        let indent = " ".repeat(width + 4);
        for fixed in &item.fixed {
            let text = format!("{}, which is not changed", difference(fixed));
            let sign = paint.bad("!");
            let rest = printable_line(&format!("{}{text}", &indent[2..]));
            out.push_str(&format!("{sign} {rest}\n"));
        }
        if !item.fixed.is_empty() {
            let hint = if item.fixed.iter().all(|fixed| fixed.what == "disk") {
                "a disk only grows".to_owned()
            } else {
                let name = &item.name;
                format!("muster vm destroy {name} --purge, and apply again makes it anew")
            };
            out.push_str(&format!("{indent}{}\n", printable_line(&hint)));
        }
        if let Is::Blocked { hint, .. } = &item.is {
            out.push_str(&format!("{indent}{}\n", printable_line(hint)));
        }
        for note in &item.notes {
            out.push_str(&format!("{indent}{}\n", printable_line(note)));
        }
    }
    out.push_str(&summary(plan, prune));
    out.push('\n');
    out
}

fn line(id: &StackId, item: &Item, prune: bool) -> (char, String) {
    match &item.is {
        Is::New { text } => ('+', text.clone()),
        Is::BeingMade { .. } => ('+', "is being made".to_owned()),
        Is::Changed { changes } => {
            let all: Vec<String> = changes.iter().map(changed).collect();
            ('~', all.join("; "))
        }
        Is::Same if item.fixed.is_empty() => ('=', String::new()),
        Is::Same => ('!', "is otherwise than in the file".to_owned()),
        Is::Foreign { of } => {
            let whose = match of {
                Some(other) if other.name == id.name && other.env.is_none() => {
                    format!("is of the stack {other} without --env")
                }
                Some(other) => format!("is of the stack {other}"),
                None => "is of no stack".to_owned(),
            };
            let then = match item.kind {
                Kind::Network => "machines can be in it all the same: take its table out",
                Kind::Machine => "choose another name; it is never taken over",
            };
            ('!', format!("{whose}: {then}"))
        }
        Is::Blocked { why, .. } => ('!', why.clone()),
        Is::Vanished {
            protected: true, ..
        } => (
            '-',
            format!(
                "is in the file no more; it is protected and stays: muster vm unprotect {}",
                item.name
            ),
        ),
        Is::Vanished { .. } => {
            let text = match (item.kind, prune) {
                (Kind::Machine, true) => "is in the file no more, and is destroyed",
                (Kind::Machine, false) => "is in the file no more; --prune destroys it",
                (Kind::Network, true) => "is in the file no more, and is removed",
                (Kind::Network, false) => "is in the file no more; --prune removes it",
            };
            ('-', text.to_owned())
        }
    }
}

fn difference(difference: &Difference) -> String {
    let Difference { what, is, wanted } = difference;
    format!("{what} {is} → {wanted}")
}

/// A change, in words.
#[must_use]
pub fn changed(change: &Change) -> String {
    match change {
        Change::Size { cpus, memory, disk } => {
            let size = |what: &str, sizes: &Option<(Size, Size)>| {
                let (is, wanted) = (*sizes)?;
                Some(format!("{what} {} → {}", exact(is), exact(wanted)))
            };
            let cpus = cpus.map(|(is, wanted)| format!("cpus {is} → {wanted}"));
            let later = cpus.is_some() || memory.is_some();
            let parts: Vec<String> = [cpus, size("memory", memory), size("disk", disk)]
                .into_iter()
                .flatten()
                .collect();
            let mut text = parts.join(", ");
            if later {
                text.push_str(", from its next start");
            }
            text
        }
        Change::Running { running: true } => "is started".to_owned(),
        Change::Running { running: false } => "is stopped".to_owned(),
        Change::Protect { protect: true } => "is protected".to_owned(),
        Change::Protect { protect: false } => "is protected no more".to_owned(),
        Change::Configure { configure, why } => super::configure::changed(configure, why),
        Change::Network { differences } => {
            let all: Vec<String> = differences.iter().map(difference).collect();
            all.join(", ")
        }
    }
}

/// `1 network and 2 machines to make, 1 machine to change`.
#[must_use]
pub fn summary(plan: &Plan, prune: bool) -> String {
    let mut counts: BTreeMap<(u8, Kind), usize> = BTreeMap::new();
    for item in &plan.items {
        let which = match &item.is {
            Is::New { .. } | Is::BeingMade { .. } => 0,
            Is::Changed { .. } => 1,
            Is::Vanished { protected, .. } if prune && !protected => 2,
            Is::Vanished { .. } => 5,
            Is::Foreign { .. } | Is::Blocked { .. } => 3,
            Is::Same if !item.fixed.is_empty() => 3,
            Is::Same => 4,
        };
        *counts.entry((which, item.kind)).or_default() += 1;
    }
    let mut parts = Vec::new();
    const WORDS: [&str; 6] = [
        "to make",
        "to change",
        "to destroy",
        "that cannot be as in the file",
        "as in the file",
        "kept, though not in the file",
    ];
    for (which, words) in (0u8..).zip(WORDS) {
        let of = |kind, what| {
            let n = counts.get(&(which, kind)).copied();
            n.map(|n| count(n, what))
        };
        let both: Vec<String> = [of(Kind::Network, "network"), of(Kind::Machine, "machine")]
            .into_iter()
            .flatten()
            .collect();
        if !both.is_empty() {
            parts.push(format!("{} {words}", both.join(" and ")));
        }
    }
    if parts.is_empty() {
        return "nothing is in it".to_owned();
    }
    parts.join(", ")
}
