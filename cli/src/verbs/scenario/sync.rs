//! `muster scenario sync`: the store becomes what a folder holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use muster_client::Client;
use muster_protocol::api::ScenarioVersion;
use muster_protocol::names::ScenarioName;
use muster_protocol::text::printable;
use muster_scenarios::bundle::SCRIPT;
use muster_scenarios::check::check_bundle;
use serde::Serialize;

use super::difference::{Changed, between};
use super::load::{Loaded, load};
use super::stored::{fetch, name_of, newest};
use super::{SyncArgs, errors, rendered};
use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::Paint;
use crate::ui::count;

/// What becomes of a scenario.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Added,
    Changed,
    Removed,
}

/// One change.
#[derive(Debug, Serialize)]
struct Change {
    name: ScenarioName,
    change: What,
    /// The version before it, a removal too; 0 where there is none.
    from: u32,
    /// The version that it made; absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u32>,
    files: Vec<Changed>,
}

pub(super) async fn run(context: &Context, args: &SyncArgs) -> Result<u8, Failure> {
    let term = &context.term;
    let (wanted, left_out) = read(&args.dir)?;
    for name in &left_out {
        term.note(&format!(
            "{}: left out, there is no `{SCRIPT}` in it",
            printable(name, 100)
        ));
    }
    let mut faults = Vec::new();
    for loaded in wanted.values() {
        if let Err(found) = check_bundle(&loaded.file, &loaded.bundle) {
            faults.extend(found);
        }
    }
    if !faults.is_empty() {
        term.say(&rendered(&faults, term.err))?;
        return Err(Failure::new(
            NOT_ALL,
            format!("{}; nothing was stored", errors(faults.len())),
        ));
    }
    let client = context.client()?;
    let there: BTreeMap<ScenarioName, ScenarioVersion> = client
        .scenarios()
        .await?
        .into_iter()
        .map(|version| (version.name.clone(), version))
        .collect();
    let mut changes = Vec::new();
    let mut equal = 0;
    for (name, loaded) in &wanted {
        let stored = there.get(name);
        // A stock scenario in the folder, unchanged, is stored too: it stays
        // what it is when muster is upgraded.
        let same = stored.is_some_and(|v| !v.is_stock() && v.bundle == Some(loaded.bundle.hash()));
        if same {
            equal += 1;
            continue;
        }
        changes.push(changed(&client, name, loaded, stored).await?);
    }
    for (name, version) in &there {
        if !version.is_stock() && !wanted.contains_key(name) {
            let old = fetch(&client, name, Some(version.version)).await.ok();
            changes.push(Change {
                name: name.clone(),
                change: What::Removed,
                from: version.version,
                to: None,
                files: between(old.as_ref(), None),
            });
        }
    }
    if !args.json {
        for change in &changes {
            term.say(&shown(change, args.dry_run, term.out))?;
        }
    }
    if !args.dry_run {
        for change in &mut changes {
            let note = args.note.as_deref();
            let (name, expect) = (&change.name, Some(change.from));
            let done = match wanted.get(name) {
                Some(loaded) => {
                    let packed = loaded.bundle.pack();
                    client.put_scenario(name, packed, expect, note).await
                }
                None => client.remove_scenario(name, expect, note).await,
            };
            let done = done.map_err(|e| {
                let failure = Failure::from(e);
                let detail = format!("`{name}` and what comes after it was not changed");
                failure.detail(detail)
            })?;
            change.to = Some(done.version.version);
        }
    }
    if args.json {
        term.json(&changes)?;
    } else {
        term.line(&summary(&changes, equal, args.dry_run))?;
    }
    Ok(0)
}

async fn changed(
    client: &Client,
    name: &ScenarioName,
    loaded: &Loaded,
    stored: Option<&ScenarioVersion>,
) -> Result<Change, Failure> {
    let (from, old) = match stored {
        Some(version) => {
            // One that is damaged has no difference, and is mended by this.
            let old = fetch(client, name, Some(version.version)).await.ok();
            // A stock one may have been stored and removed before.
            let from = match version.is_stock() {
                true => newest(client, name).await?.map_or(0, |v| v.version),
                false => version.version,
            };
            (from, old)
        }
        None => (newest(client, name).await?.map_or(0, |v| v.version), None),
    };
    Ok(Change {
        name: name.clone(),
        change: match stored {
            Some(version) if !version.is_stock() => What::Changed,
            _ => What::Added,
        },
        from,
        to: None,
        files: between(old.as_ref(), Some(&loaded.bundle)),
    })
}

/// The scenarios of a folder, and the directories in it that are none.
fn read(dir: &Path) -> Result<(BTreeMap<ScenarioName, Loaded>, Vec<String>), Failure> {
    let shown = |path: &Path| printable(&path.to_string_lossy(), 300);
    let fail = |e: std::io::Error| Failure::usage(format!("{}: {e}", shown(dir)));
    let mut wanted = BTreeMap::new();
    let mut left_out = Vec::new();
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        paths.push(entry.map_err(fail)?.path());
    }
    paths.sort();
    for path in paths {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if !path.join(SCRIPT).exists() {
                left_out.push(file.into_owned());
                continue;
            }
        } else if path.extension().is_none_or(|end| end != "rhai") {
            continue;
        }
        let loaded = load(&path)?;
        let name = name_of(&loaded)
            .map_err(|failure| Failure::usage(failure.message).hint("rename it in the folder"))?;
        if wanted.insert(name.clone(), loaded).is_some() {
            return Err(Failure::usage(format!(
                "{}: `{name}` is there twice, as a script and as a directory",
                shown(dir)
            )));
        }
    }
    if wanted.is_empty() {
        return Err(Failure::usage(format!(
            "{}: there is no scenario in this folder; nothing was changed",
            shown(dir)
        ))
        .hint("scenarios are NAME.rhai, or directories NAME with a `scenario.rhai`"));
    }
    Ok((wanted, left_out))
}

fn shown(change: &Change, dry_run: bool, paint: Paint) -> String {
    let what = match (change.change, dry_run) {
        (What::Added, false) => "added",
        (What::Added, true) => "would be added",
        (What::Changed, false) => "changed",
        (What::Changed, true) => "would be changed",
        (What::Removed, false) => "removed",
        (What::Removed, true) => "would be removed",
    };
    let after = change.from.saturating_add(1);
    let versions = match change.from {
        0 => format!("v{after}"),
        from => format!("v{from} → v{after}"),
    };
    let name = paint.strong(change.name.as_str());
    let mut out = format!("{name}  {what}  {versions}\n");
    // What is all new or all gone is in the folder, or in the history.
    if change.change != What::Changed {
        for file in &change.files {
            out.push_str(&format!("  {}\n", file.path));
        }
        return out;
    }
    for file in &change.files {
        out.push_str(&format!("  {}\n", file.path));
        for line in &file.lines {
            let line = match line.chars().next() {
                Some('-') => paint.bad(line),
                Some('+') => paint.good(line),
                _ => line.clone(),
            };
            out.push_str(&format!("    {line}\n"));
        }
    }
    out
}

fn summary(changes: &[Change], equal: usize, dry_run: bool) -> String {
    let number = |what| changes.iter().filter(|c| c.change == what).count();
    let parts: Vec<String> = [
        (number(What::Added), "added"),
        (number(What::Changed), "changed"),
        (number(What::Removed), "removed"),
        (equal, "equal"),
    ]
    .into_iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, what)| format!("{n} {what}"))
    .collect();
    let all = count(changes.len() + equal, "scenario");
    let mut line = format!("{all}: {}", parts.join(", "));
    if dry_run {
        line.push_str("  (dry run: nothing is changed)");
    }
    line
}
